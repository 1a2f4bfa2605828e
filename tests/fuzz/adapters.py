"""Spoiled adapters: bytes, headers, names, shapes and numbers of LoRA files, and adapters of other models."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fuzz import weights
from fuzz.checkpoints import checkpoints, link
from fuzz.harness import Case
from fuzz.mutations import VALUES, spoiled, spoiled_json, spoiled_node
from vader.models import load_model
from vader.networks.adapter import add_adapters
from vader.networks.adapter_files import FILE_NAME, save_adapters

FAMILIES = ("modelscope", "svd", "opensora", "videocrafter")
Spoil = Callable[[Path, Path, random.Random], str]


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    rng = random.Random(f"adapters {seed}")
    made = {family: _adapter(folder, family) for family in FAMILIES}
    argv = {one.name: one.argv("tiny") for one in checkpoints(folder)}
    for number in range(count):
        family = rng.choice(FAMILIES)
        yield _case(family, made, argv[family], f"{seed} {number}")


def _adapter(folder: Path, family: str) -> Path:
    place = folder / "adapters" / family
    if not place.exists():
        model = load_model(family, "tiny")
        add_adapters(model.denoisers, model.lora_targets, 4)
        save_adapters(model.denoisers, place, {"family": family, "checkpoint": "tiny", "recipe": "r"})
    return place / FILE_NAME


def _case(family: str, made: dict[str, Path], argv: list[str], seed: str) -> Case:
    rng = random.Random(seed)
    spoil = rng.choice(
        (_bytes, _bytes, _header, _header, _metadata, _metadata, _tensors, _tensors, _tensors, _node, _torch, _other)
    )
    place = rng.choice(("adapter/" + FILE_NAME, "adapter", "adapter/my.safetensors"))
    if spoil is _torch:
        place = "adapter/lora" + rng.choice((".pt", ".bin", ".ckpt", ".pth"))
    if spoil is _other:
        others = [path for name, path in made.items() if name != family]
        make, status = lambda folder: _linked(rng.choice(others), folder, place), (2,)
    else:
        make, status = lambda folder: _spoilt(spoil, made[family], folder, place, rng), (0, 2)
    done = spoil.__name__.strip("_")
    return Case(f"{family}: {done} ({seed})", [*argv, "--adapter", place], make, status)


def _target(folder: Path, place: str) -> Path:
    (folder / "adapter").mkdir()
    return folder / (place if place != "adapter" else f"adapter/{FILE_NAME}")


def _linked(source: Path, folder: Path, place: str) -> None:
    link(source, _target(folder, place))


def _spoilt(spoil: Spoil, source: Path, folder: Path, place: str, rng: random.Random) -> None:
    spoil(source, _target(folder, place), rng)


def _bytes(source: Path, path: Path, rng: random.Random) -> None:
    path.write_bytes(spoiled(source.read_bytes(), rng)[1])


def _other(source: Path, path: Path, rng: random.Random) -> None:
    """Another model's, whole."""


def _header(source: Path, path: Path, rng: random.Random) -> None:
    """The JSON at the file's beginning, spoiled, with its length told rightly."""
    content = source.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = spoiled_json(content[8 : 8 + length], rng)[1]
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])


def _metadata(source: Path, path: Path, rng: random.Random) -> None:
    """What the adapter says of itself, spoiled."""
    with safe_open(source, framework="pt") as file:
        said, theirs = (json.loads(file.metadata()[key]) for key in ("vader", "lora_adapter_metadata"))
    for one in (said, theirs):
        if rng.random() < 0.7:
            one[rng.choice(list(one))] = rng.choice(VALUES)
    metadata = {"vader": json.dumps(said), "lora_adapter_metadata": json.dumps(theirs)}
    if rng.random() < 0.3:
        metadata[rng.choice(list(metadata))] = rng.choice(
            ("", "null", "[]", "3", "{", "[" * 50_000, '{"component": 3}')
        )
    save_file(load_file(source), path, metadata)


def _tensors(source: Path, path: Path, rng: random.Random) -> None:
    rng.choice(weights.TENSORS)(source, path, rng)


def _torch(source: Path, path: Path, rng: random.Random) -> None:
    """What may lie in a torch file instead of a published LoRA."""
    if rng.random() < 0.5:
        rng.choice(weights.TORCH)(source, path, rng)
    else:
        torch.save(load_file(source), path)


def _node(source: Path, path: Path, rng: random.Random) -> None:
    spoiled_node(rng)[1](path)
