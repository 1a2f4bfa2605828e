"""Reads V-JEPA checkpoints: Meta's releases by name, files in their layout, or V-JEPA 2 in transformers' folders.

A release is a torch file of three dicts of tensors, `encoder`, `target_encoder` and `predictor`, whose names carry
the prefixes of the training's wrappers (`module.backbone.`); beside them lies the optimiser's state, which is not
read. The same names joined by dots make a safetensors file. Sizes follow from the shapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vader.errors import UserError
from vader.files.foreign import reading
from vader.files.hub import TINY, find_file
from vader.files.weights import fill, read_weights
from vader.plugins import one_line
from vader.rewards.vjepa.networks import Jepa, VitSize, VJepa1, table_grid
from vader.rewards.vjepa.transformers2 import load_vjepa2

RELEASES = {
    name: f"https://dl.fbaipublicfiles.com/jepa/{name}/{name}.pth.tar" for name in ("vitl16", "vith16", "vith16-384")
}
PARTS = ("encoder", "target_encoder", "predictor")
WEIGHT_FILES = (".tar", ".pt", ".pth", ".safetensors")
HEADS = 16  # of every released encoder and predictor; no shape tells

Tensors = dict[str, Tensor]


def load_jepa(source: str, size: int | None = None, heads: int | None = None) -> Jepa:
    """The networks of a checkpoint, in float32.

    Args:
        source: a release (`vitl16`, `vith16`, `vith16-384`), `tiny`, a file in their layout (here or
            `owner/repo/file` on the hub), or V-JEPA 2 as a folder or hub id.
        size: pixels of a frame's side, which V-JEPA 2 must know when it is built.
        heads: attention heads of V-JEPA 1; None: what a safetensors file's metadata says, or 16.

    Raises:
        UserError: there is no such checkpoint, or it is not V-JEPA's.
    """
    if source in RELEASES:
        return read_release(_download(source), heads)
    if source == TINY or source.endswith(WEIGHT_FILES):
        return read_release(find_file(source, "vjepa.safetensors"), heads)
    return load_vjepa2(source, size)


def read_release(path: Path, heads: int | None = None) -> VJepa1:
    """V-JEPA 1 from a file in the release's layout. Errors as `load_jepa`."""
    content = read_weights(path)
    with reading(f"{str(path)!r} is not a V-JEPA checkpoint"):
        parts = {part: _part(content, part) for part in PARTS}
        return build(parts, heads or _metadata_heads(path) or HEADS, f"V-JEPA of {str(path)!r}")


def save_release(network: VJepa1, path: Path) -> None:
    """Writes the networks in the release's layout, as a safetensors file in float16."""
    wrapped = {part: network.get_submodule(part).state_dict(prefix="module.backbone.") for part in PARTS}
    tensors = {f"{part}.{n}": t.half().contiguous() for part, named in wrapped.items() for n, t in named.items()}
    save_file(tensors, path, metadata={"heads": str(network.encoder.heads)})


def build(parts: dict[str, Tensors], heads: int, label: str = "V-JEPA") -> VJepa1:
    """The networks that fit the tensors of the three `PARTS` (names without prefixes), holding them."""
    encoder, predictor = parts["encoder"], parts["predictor"]
    width, _, tubelet, patch, _ = encoder["patch_embed.proj.weight"].shape
    narrow = len(predictor["predictor_embed.weight"])
    if width % heads or narrow % heads:
        raise ValueError(f"its {width} and {narrow} features do not split over {heads} heads: set heads")
    with torch.device("meta"):
        network = VJepa1(
            VitSize(_depth(encoder), width, heads),
            VitSize(_depth(predictor), narrow, heads),
            table_grid(encoder["pos_embed"]),
            tubelet,
            patch,
        )
    named = {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
    return fill(network, named, torch.float32, label)


def _download(release: str) -> Path:
    """Meta's file, kept where torch keeps what it downloads."""
    path = Path(torch.hub.get_dir(), "checkpoints", f"{release}.pth.tar")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(RELEASES[release], str(path))
        except OSError as error:
            raise UserError(f"{RELEASES[release]} could not be downloaded to {path}: {one_line(error)}") from error
    return path


def _part(content: dict[str, Any], part: str) -> Tensors:
    """One network's tensors in float32, from its own dict or from among dotted names; without wrappers' prefixes."""
    prefix = f"{part}."
    dotted = {n.removeprefix(prefix): t for n, t in content.items() if n.startswith(prefix)}
    tensors = content.get(part, dotted)
    return {n.removeprefix("module.").removeprefix("backbone."): t.float() for n, t in tensors.items()}


def _depth(tensors: Tensors) -> int:
    return sum(name.endswith(".norm1.weight") for name in tensors)


def _metadata_heads(path: Path) -> int | None:
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, framework="pt") as file:
        heads = (file.metadata() or {}).get("heads")
    return int(heads) if heads else None
