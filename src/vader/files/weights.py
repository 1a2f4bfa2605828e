"""Weights that strangers made: read without running code, put into networks to the last name; and written.

In go safetensors files or torch checkpoints, out comes what they hold, or a network filled with exactly that. Code in a
pickle is never run: torch's restricted reader takes tensors and plain containers, and refuses all else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vader.errors import UserError
from vader.files.foreign import reading, require_regular

# What trainings put before names, or between them: torch.compile, deepspeed, FSDP, activation checkpointing.
WRAPPERS = re.compile(r"_orig_mod\.|_forward_module\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
ZIP_START = b"PK"  # of torch's checkpoints since 1.6
Network = TypeVar("Network", bound=nn.Module)


# ---- filling ----


def fill(
    network: Network, weights: Mapping[str, Tensor], dtype: torch.dtype, label: str, keep: Collection[str] = ()
) -> Network:
    """Gives a network of our own, built on the meta device, its weights: frozen, in eval mode, in `dtype`.

    Args:
        weights: exactly the network's state dict, by name and shape.
        label: what they are, for errors: "transformer of checkpoint 'x'".
        keep: names of those that stay in their own precision.

    Raises:
        UserError: as `check_weights`.
    """
    check_weights(weights, network.state_dict(), label)
    kept = {name for name, weight in weights.items() if name in keep or not weight.is_floating_point()}
    cast = {name: weight if name in kept else weight.to(dtype) for name, weight in weights.items()}
    check_numbers(cast, label)
    network.load_state_dict(cast, assign=True)
    return network.eval().requires_grad_(False)


def check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], label: str) -> None:
    """Raises `UserError`, naming the first weight that is missing, unknown, or of another shape or kind."""
    if missing := sorted(expected.keys() - weights.keys()):
        raise UserError(f"{label} is not whole: it lacks {len(missing)} weights ({missing[0]} ...)")
    if unknown := sorted(weights.keys() - expected.keys()):
        raise UserError(f"{label} is of another kind: it has {len(unknown)} unknown weights ({unknown[0]} ...)")
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            shapes = f"{list(weight.shape)}, should be {list(expected[name].shape)}"
            raise UserError(f"{label} is of another architecture: {name} is {shapes}")
        if weight.is_floating_point() != expected[name].is_floating_point():
            raise UserError(f"{label} is of another kind: {name} is of {_kind(weight)}, not {_kind(expected[name])}")


def check_numbers(weights: Mapping[str, Tensor], label: str) -> None:
    """Raises `UserError`, naming the first weight that holds a nan, an infinity, or a complex number."""
    for name, weight in weights.items():
        if weight.is_complex():
            raise UserError(f"{label} cannot be used: {name} holds complex numbers")
        if weight.is_floating_point() and not weight.is_meta and not torch.isfinite(weight).all():
            raise UserError(f"{label} cannot be used: {name} holds nan or inf in {_kind(weight)}")


def _kind(weight: Tensor) -> str:
    return str(weight.dtype).removeprefix("torch.")


# ---- reading ----


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch checkpoint (bare, or under `state_dict`), by `plain_names`.

    Raises:
        UserError: as `read_weights`, or there are no tensors.
    """
    content = read_weights(path)
    tensors = content.get("state_dict", content)
    found = tensors_of(tensors) if isinstance(tensors, Mapping) else {}
    if not found:
        raise UserError(f"{str(path)!r} is no readable weight file: it holds no tensors by name")
    return plain_names(found, repr(str(path)))


def tensors_of(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Those values that are tensors under names, with all their numbers there: a training's checkpoint holds more."""
    named = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    return {name: value for name, value in named.items() if value.layout == torch.strided and not value.is_meta}


def plain_names(tensors: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    """Tensors under the names that the network itself gives them, without those of wrappers around it.

    Raises:
        UserError: two of them have the same name then.
    """
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = WRAPPERS.sub("", name).removeprefix("module.")
        if plain in named:
            raise UserError(f"{label} holds the weight {plain!r} twice, wrapped and not: keep one of them")
        named[plain] = tensor
    return named


def read_weights(path: Path) -> dict[str, Any]:
    """What a safetensors file or a torch checkpoint holds, as it is; large tensors are mapped, not copied.

    Raises:
        UserError: the file is neither, is cut short, or holds code, or no names.
    """
    label = f"{str(path)!r} is no readable weight file"
    require_regular(path, label)
    with reading(label):
        content = load_file(path) if path.suffix == ".safetensors" else _torch_load(path, label)
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{label}: it holds something else than tensors by name")
    return dict(content)


def _torch_load(path: Path, label: str) -> Any:
    zipped = is_zipfile(path)
    if not path.stat().st_size:
        raise UserError(f"{label}: it is empty")
    if not zipped and _starts_with(path, ZIP_START):
        raise UserError(f"{label}: it is cut short")
    # mapped: only the tensors that are used are read, and training checkpoints hold far more
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _starts_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(start)) == start


# ---- writing ----


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file; equal tensors and metadata are equal bytes, which the library alone does not give."""
    save_file(dict(tensors), path, dict(metadata))
    with path.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # until here in a random order
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(ordered) != length:  # the tensors' offsets count from the header's end
            raise RuntimeError(f"the header of {str(path)!r} has {length} bytes and would need {len(ordered)}")
        stream.seek(8)
        stream.write(ordered)
