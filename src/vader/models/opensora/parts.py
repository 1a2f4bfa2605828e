"""Where the parts of an Open-Sora 1.2 checkpoint lie, and how its own two networks are loaded from them.

`checkpoint` is one of

    hpcai-tech/OpenSora-STDiT-v3    the transformer, a hub id or folder: VAE and text encoder are then the release's
    my/opensora                     one folder with transformer/, vae/, text_encoder/, tokenizer/, and scheduler/ if
                                    it is not sampled as the release is
    tiny                            the tiny world's own, laid out so

and `model.options` of a recipe may replace a part: `vae` and `text_encoder`, each a hub id or folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from vader.files import hub as files
from vader.files.foreign import reading
from vader.files.weights import fill, load_tensors
from vader.models.opensora.stdit3 import FIXED, STDiT3, STDiT3Config, frequencies
from vader.models.opensora.vae import OpenSoraVAE, VAEConfig
from vader.models.text_cache import Part

FAMILY = "opensora"
RELEASE_VAE = "hpcai-tech/OpenSora-VAE-v1.2"
RELEASE_TEXT = "DeepFloyd/t5-v1_1-xxl"
ONE_FOLDER = ("transformer", "vae", "text_encoder", "tokenizer")
RELEASE_SCHEDULER = {"_class_name": "RFLOW", "use_timestep_transform": True}  # named in none of the release's files


class Parts(NamedTuple):
    transformer: Part
    vae: Part
    text_encoder: Part
    tokenizer: Part


def find_parts(checkpoint: str, vae: str | None = None, text_encoder: str | None = None) -> Parts:
    """The parts that a recipe names; see the module's text.

    Raises:
        UserError: one is neither a folder nor to be had from the hub, or a folder of all lacks one.
    """
    source = files.resolve(checkpoint, FAMILY)
    if Path(source, "transformer").is_dir():
        files.check_components(source, ONE_FOLDER)
        parts = Parts(*(Part(source, name) for name in ONE_FOLDER))
    else:
        parts = Parts(Part(source), Part(RELEASE_VAE), Part(RELEASE_TEXT), Part(RELEASE_TEXT))
    own = {"vae": vae, "text_encoder": text_encoder, "tokenizer": text_encoder}
    parts = parts._replace(**{name: Part(value) for name, value in own.items() if value is not None})
    sources = files.together(*(partial(files.resolve, part.source, FAMILY) for part in parts))
    return Parts(*(Part(source, part.subfolder) for source, part in zip(sources, parts, strict=True)))


def load_scheduler(part: Part) -> dict[str, Any]:
    """The scheduler config that lies beside a transformer in a folder of all, or else the release's."""
    if part.subfolder and Path(part.source, "scheduler").is_dir():
        return files.load_config(part.source, "scheduler")
    return RELEASE_SCHEDULER


def load_transformer(part: Part, dtype: torch.dtype) -> STDiT3:
    """The denoiser, frozen; rotary frequencies stay in float32 and are made where the file has none."""
    settings, weights = files.load_config(part.source, part.subfolder), _tensors(part)
    with reading(f"transformer of checkpoint {part.source!r} is of another architecture"):
        config = STDiT3Config.from_json(settings)
        weights.setdefault("rope.freqs", frequencies(config.hidden_size // config.num_heads // 2, None, torch.float32))
        with torch.device("meta"):
            network = STDiT3(config)
    return fill(network, weights, dtype, f"transformer of checkpoint {part.source!r}", keep=("rope.freqs",))


def load_vae(part: Part, dtype: torch.dtype) -> OpenSoraVAE:
    """The VAE, frozen."""
    settings = files.load_config(part.source, part.subfolder)
    with reading(f"vae of checkpoint {part.source!r} is of another architecture"), torch.device("meta"):
        network = OpenSoraVAE(VAEConfig.from_json(settings))
    return fill(network, _tensors(part), dtype, f"vae of checkpoint {part.source!r}")


def _tensors(part: Part) -> dict[str, Tensor]:
    return load_tensors(files.find_component(part.source, part.subfolder, "model.safetensors"))


def write_checkpoint(
    folder: Path, transformer: STDiT3, vae: OpenSoraVAE, scheduler: Mapping[str, Any], text: tuple[Part, Part]
) -> None:
    """Writes what `checkpoint` may name: one folder of all, where the text encoder lies in one; else the transformer.

    The transformer alone is laid out as `OpenSora-STDiT-v3`: Open-Sora's own code loads it in the release's place.

    Args:
        text: the text encoder and the tokenizer, which training leaves as they are.
    """
    encoder, tokenizer = text
    if not encoder.subfolder:
        save_part(transformer, folder)
        return
    save_part(transformer, folder / "transformer")
    save_part(vae, folder / "vae")
    for name, part in (("text_encoder", encoder), ("tokenizer", tokenizer)):
        shutil.copytree(Path(part.source, part.subfolder), folder / name)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(dict(scheduler), indent=2) + "\n")


def save_part(network: STDiT3 | OpenSoraVAE, folder: Path) -> None:
    """Writes a network of ours as the release has it: `config.json` and `model.safetensors`, in its own precision."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(network, STDiT3):
        settings = {"architectures": ["STDiT3"], "model_type": "STDiT3", **FIXED, **asdict(network.config)}
    else:
        names = {"architectures": ["VideoAutoencoderPipeline"], "model_type": "VideoAutoencoder"}
        settings = {**names, **network.config.to_json()}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
