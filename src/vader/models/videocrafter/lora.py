"""The LoRAs that VADER's authors published for VideoCrafter2, as this project's adapters.

Their files (`vader_videocrafter_pickscore.pt`, `vader_videocrafter_hps_aesthetic.pt`) are bare dictionaries that peft
made: two tensors for each of the 198 query, key and value layers, under the release's names. They hold neither
rank nor alpha: the rank is in the shapes, and alpha was peft's default. Once this module is imported, as it is with
`vader.models`, such files are accepted wherever adapters are.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from vader.errors import UserError
from vader.files.weights import read_weights, write_safetensors
from vader.models.videocrafter.names import Pairs, to_diffusers, unet_names
from vader.networks.adapter_files import register_format

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
PREFIX = "base_model.model.model.diffusion_model."
ALPHA = 8.0
RELEASED = unet_names(attention=(True, True, True, False), layers=2)


def import_lora(path: Path | str, out_file: Path | str, alpha: float = ALPHA) -> Path:
    """Writes a published LoRA as an adapter file of ours, in diffusers' LoRA format.

    Raises:
        UserError: as `read_lora`.
    """
    weights, header = read_lora(Path(path).expanduser(), alpha)
    write_safetensors(weights, out_file, header)
    return Path(out_file)


def read_lora(path: Path, alpha: float = ALPHA, pairs: Pairs = RELEASED) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A published LoRA's weights `unet.<module path>.lora_A.weight` (and B), and the header of an adapter file.

    Args:
        alpha: the update is alpha / rank times B A; the factor goes into B, as in our own files.
        pairs: the name map of the UNet that it belongs to.

    Raises:
        UserError: the file is damaged, or is not such a LoRA to the last name.
    """
    tensors, expected = read_weights(path), _expected_names(pairs)
    label = f"{str(path)!r} is no VADER LoRA of VideoCrafter2"
    if len(tensors) != len(expected):
        raise UserError(f"{label}: it holds {len(tensors)} tensors, not {len(expected)}")
    if strange := sorted(tensors.keys() - expected):
        raise UserError(f"{label}: it holds {strange[0]!r}")
    weights = {_our_name(name, pairs): tensor.float().contiguous() for name, tensor in tensors.items()}
    ranks = {len(tensor) for name, tensor in weights.items() if name.endswith("lora_A.weight")}
    if len(ranks) != 1:
        raise UserError(f"{label}: its layers have ranks {sorted(ranks)}")
    rank = ranks.pop()
    scales = {name: alpha / rank for name in weights if name.endswith("lora_B.weight")}
    return {name: weight * scales.get(name, 1.0) for name, weight in weights.items()}, _header(rank, alpha)


def _expected_names(pairs: Pairs) -> set[str]:
    """All query, key and value layers of all transformers: of each two attentions, of each two factors."""
    transformers = [release for release, ours in pairs if "attentions." in ours or ours == "transformer_in."]
    return {
        f"{PREFIX}{transformer}transformer_blocks.0.attn{number}.to_{part}.lora_{factor}.weight"
        for transformer in transformers
        for number in (1, 2)
        for part in "qkv"
        for factor in "AB"
    }


def _our_name(name: str, pairs: Pairs) -> str:
    return f"unet.{to_diffusers(name.removeprefix(PREFIX), pairs)}"


def _header(rank: int, alpha: float) -> dict[str, str]:
    ours = {"family": "videocrafter", "checkpoint": "VideoCrafter/VideoCrafter2", "rank": rank, "alpha": alpha}
    return {
        "format": "pt",
        "vader": json.dumps(ours | {"targets": ["to_k", "to_q", "to_v"]}),
        "lora_adapter_metadata": json.dumps({"unet.r": rank, "unet.lora_alpha": rank}),
    }


register_format(SUFFIXES, read_lora)
