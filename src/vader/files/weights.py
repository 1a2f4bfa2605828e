"""Weights that strangers made: read without running code, put into networks to the last name; and written.

In go safetensors files or torch checkpoints, out comes what they hold, or a network filled with exactly that. Code in a
pickle is never run: torch's restricted reader takes tensors and plain containers, and refuses all else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vader.errors import UserError
from vader.plugins import one_line

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
    network.load_state_dict(cast, assign=True)
    return network.eval().requires_grad_(False)


def check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], label: str) -> None:
    """Raises `UserError`, naming the first weight that is missing, unknown or of another shape than expected."""
    if missing := sorted(expected.keys() - weights.keys()):
        raise UserError(f"{label} is not whole: it lacks {len(missing)} weights ({missing[0]} ...)")
    if unknown := sorted(weights.keys() - expected.keys()):
        raise UserError(f"{label} is of another kind: it has {len(unknown)} unknown weights ({unknown[0]} ...)")
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            shapes = f"{list(weight.shape)}, should be {list(expected[name].shape)}"
            raise UserError(f"{label} is of another architecture: {name} is {shapes}")


# ---- reading ----


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch checkpoint (bare, or under `state_dict`), without `module.`.

    Raises:
        UserError: as `read_weights`.
    """
    content = read_weights(path)
    tensors = content.get("state_dict", content)
    return {name.removeprefix("module."): value for name, value in tensors.items() if isinstance(value, Tensor)}


def read_weights(path: Path) -> dict[str, Any]:
    """What a safetensors file or a torch checkpoint holds, as it is; large tensors are mapped, not copied.

    Raises:
        UserError: the file is neither, is cut short, or holds code.
    """
    try:
        return dict(load_file(path) if path.suffix == ".safetensors" else _torch_load(path))
    except Exception as error:  # a foreign file: every format fails in its own way
        raise UserError(f"{str(path)!r} is no readable weight file: {_reason(path, error)}") from error


def _torch_load(path: Path) -> dict[str, Any]:
    mapped = is_zipfile(path)  # then only the tensors that are used are read: training checkpoints hold far more
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, UnpicklingError):
        code = re.search(r"GLOBAL (\S+)", str(error))
        return f"it holds code ({code[1]}), which is never run" if code else "it holds something else than tensors"
    if path.is_file() and not path.stat().st_size:
        return "it is empty"
    if path.is_file() and not is_zipfile(path) and _starts_with(path, ZIP_START):
        return "it is cut short"
    return one_line(error)


def _starts_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(start)) == start


# ---- writing ----


def write_safetensors(weights: Mapping[str, Tensor], path: Path | str, header: Mapping[str, str]) -> None:
    """Writes a file that is the same to the byte for the same tensors and header.

    The library alone writes the header's keys in another order each time.
    """
    content = save(dict(weights), dict(header))
    start = 8 + int.from_bytes(content[:8], "little")
    keys = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    keys += b" " * (-len(keys) % 8)  # tensors begin at multiples of eight bytes
    with open(path, "wb") as file:
        file.writelines([len(keys).to_bytes(8, "little"), keys, memoryview(content)[start:]])
