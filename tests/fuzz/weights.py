"""Spoiled weights: bytes of the files, and files that are whole and hold the wrong things."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fuzz.checkpoints import Checkpoint, checkpoints
from fuzz.harness import Case
from fuzz.mutations import spoiled_file

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
Tensors = dict[str, Tensor]


class _Code:
    """Unpickled by the unrestricted reader, this makes a file outside its folder."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ../code-ran",)


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    rng = random.Random(f"weights {seed}")
    places = [(one, name) for one in checkpoints(folder) for name in one.files(*SUFFIXES)]
    for number in range(count):
        checkpoint, name = rng.choice(places)
        if rng.random() < 0.25:
            yield spoiled_file(checkpoint, name, rng)
        else:
            yield spoiled_content(checkpoint, name, f"{seed} {number}")


def spoiled_content(checkpoint: Checkpoint, name: str, seed: str) -> Case:
    """The case of a file that its library writes, with tensors or containers that are wrong."""
    rng = random.Random(seed)
    spoil = rng.choice(TORCH if not name.endswith(".safetensors") and rng.random() < 0.4 else TENSORS)

    def make(place: Path) -> None:
        path = checkpoint.copied(place, name)
        source = checkpoint.source / name if checkpoint.source.is_dir() else checkpoint.source
        spoil(source, path, rng)

    done = spoil.__name__.replace("_", " ").strip()
    argv = checkpoint.argv(checkpoint.source.name)
    statuses = (0, 1, 2) if argv[0] == "score" else (0, 2)  # 1: no video has a score that is finite
    return Case(f"{checkpoint.name}: {name}: {done} ({seed})", argv, make, statuses)


# ---- tensors that are wrong ----


def _on_tensors(change: Callable[[Tensors, str, random.Random], None]) -> Callable[[Path, Path, random.Random], None]:
    """A way to spoil a file from one to spoil its tensors, of which one is chosen."""

    def spoil(source: Path, path: Path, rng: random.Random) -> None:
        content = _read(source)
        tensors = content
        while not any(isinstance(value, Tensor) for value in tensors.values()):
            tensors = rng.choice([value for value in tensors.values() if isinstance(value, dict) and len(value) > 3])
        change(tensors, rng.choice([name for name, value in tensors.items() if isinstance(value, Tensor)]), rng)
        _write(content, path)

    spoil.__name__ = change.__name__
    return spoil


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, weights_only=True)


def _write(content: dict[str, Any], path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, path, {"format": "pt"})
    else:
        torch.save(content, path)


def missing(tensors: Tensors, name: str, rng: random.Random) -> None:
    del tensors[name]


def renamed(tensors: Tensors, name: str, rng: random.Random) -> None:
    tensors[rng.choice((f"{name}_", name.upper(), f"x.{name}", name.replace(".", "/"), "", "é"))] = tensors.pop(name)


def unknown(tensors: Tensors, name: str, rng: random.Random) -> None:
    tensors[rng.choice(("layers.x.weight", "layers.weight", "more", f"{name}.weight", "layers.99.weight"))] = (
        torch.ones(2, 2)
    )


def shapeless(tensors: Tensors, name: str, rng: random.Random) -> None:
    tensors[name] = tensors[name].flatten()[0].clone()


def empty(tensors: Tensors, name: str, rng: random.Random) -> None:
    tensors[name] = torch.zeros(rng.choice(((0,), (0, 3), (3, 0), (*tensors[name].shape[:-1], 0))))


def transposed(tensors: Tensors, name: str, rng: random.Random) -> None:
    tensors[name] = tensors[name].T if tensors[name].ndim == 2 else tensors[name][None]


def flattened(tensors: Tensors, name: str, rng: random.Random) -> None:
    tensors[name] = tensors[name].flatten()


def shortened(tensors: Tensors, name: str, rng: random.Random) -> None:
    if tensors[name].ndim:
        tensors[name] = tensors[name][:-1].clone()


def squared(tensors: Tensors, name: str, rng: random.Random) -> None:
    tensors[name] = torch.zeros(7, 7, 7, 7, 7)


def retyped(tensors: Tensors, name: str, rng: random.Random) -> None:
    kinds = (torch.int64, torch.uint8, torch.bool, torch.float64, torch.float16, torch.bfloat16, torch.complex64)
    tensors[name] = tensors[name].to(rng.choice(kinds))


def not_a_number(tensors: Tensors, name: str, rng: random.Random) -> None:
    tensors[name] = tensors[name].float().clone()
    tensors[name].view(-1)[-1:] = rng.choice((float("nan"), float("inf"), -float("inf"), 3e38))


def all_zero(tensors: Tensors, name: str, rng: random.Random) -> None:
    for key, value in tensors.items():
        tensors[key] = torch.zeros_like(value) if isinstance(value, Tensor) else value


def no_biases(tensors: Tensors, name: str, rng: random.Random) -> None:
    for key in [key for key in tensors if key.endswith("bias")]:
        del tensors[key]


def none_at_all(tensors: Tensors, name: str, rng: random.Random) -> None:
    tensors.clear()


def one_alone(tensors: Tensors, name: str, rng: random.Random) -> None:
    kept = tensors[name]
    tensors.clear()
    tensors[name] = kept


# ---- torch files that are no dicts of tensors ----


def _saved(content: Callable[[dict[str, Any]], Any], name: str, **options: Any) -> Callable[..., None]:
    def spoil(source: Path, path: Path, rng: random.Random) -> None:
        torch.save(content(_read(source)), path, **options)

    spoil.__name__ = name
    return spoil


def pickled(source: Path, path: Path, rng: random.Random) -> None:
    path.write_bytes(pickle.dumps({"state_dict": _Code()}, protocol=rng.choice((0, 2, 4, 5))))


def zeros(source: Path, path: Path, rng: random.Random) -> None:
    path.write_bytes(bytes(rng.choice((1, 64, 4096, source.stat().st_size))))


def nested_pickle(source: Path, path: Path, rng: random.Random) -> None:
    path.write_bytes(b"(" * rng.choice((10, 1000, 100_000)) + b".")


TENSORS = [
    _on_tensors(change)
    for change in (
        missing, renamed, unknown, shapeless, empty, transposed, flattened, shortened, squared, retyped, not_a_number,
        not_a_number, all_zero, no_biases, none_at_all, one_alone,
    )
]  # fmt: skip
TORCH = [
    pickled,
    zeros,
    nested_pickle,
    _saved(lambda content: {1: torch.ones(2)}, "numbers for names"),
    _saved(lambda content: {None: torch.ones(2)}, "None for a name"),
    _saved(lambda content: {"state_dict": None}, "no state_dict"),
    _saved(lambda content: {"state_dict": [1, 2]}, "a list for a state_dict"),
    _saved(lambda content: {"module": 3}, "a number for a module"),
    _saved(lambda content: list(content.values()), "a list of tensors"),
    _saved(lambda content: torch.ones(3), "a tensor alone"),
    _saved(lambda content: None, "None"),
    _saved(lambda content: "text", "a text"),
    _saved(lambda content: dict.fromkeys(content), "None for tensors"),
    _saved(lambda content: {name: str(name) for name in content}, "texts for tensors"),
    _saved(lambda content: {name: [1.0, 2.0] for name in content}, "lists for tensors"),
    _saved(lambda content: {"encoder": content, "predictor": None, "target_encoder": 1}, "other parts"),
    _saved(lambda content: content | {"vader": 5}, "settings that are a number"),
    _saved(lambda content: content | {"vader": {"unet_groups": 0, "vae_groups": "x"}}, "odd settings"),
    _saved(lambda content: {"a": _Code()}, "code"),
    _saved(lambda content: {"a": _Code()}, "code in the old format", _use_new_zipfile_serialization=False),
    _saved(lambda content: content, "the old format", _use_new_zipfile_serialization=False),
    _saved(lambda content: {"a": torch.nn.Linear(2, 2)}, "a module"),
    _saved(lambda content: {"a": torch.ones(2, 2).to_sparse()}, "a sparse tensor"),
    _saved(lambda content: {name: torch.ones(2, device="meta") for name in content}, "meta tensors"),
]  # fmt: skip
