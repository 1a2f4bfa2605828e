"""Ways to spoil a file that are the same whatever it holds: bytes, and JSON values by their places."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuzz.checkpoints import Checkpoint
from fuzz.harness import Case

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 10**30, 0.5, -0.5, 1e38, float("nan"), float("inf"), "", "text", "1", "null",
    [], [1], [None], ["linear"], [[]], {}, {"a": 1}, {"name": None},
)  # fmt: skip
WHOLE: tuple[bytes, ...] = (
    b"", b"null", b"[]", b"0", b'"text"', b"{}", b"{", b"[" * 100_000, b'{"a": ' * 5_000, b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}", b"\x00" * 64, b"<html>no such page</html>", b"{'a': 1}", b'{"a": 1e999}', b'{"a": NaN}',
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 12345\n", b"9" * 5_000,
)  # fmt: skip


def spoiled(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A file's bytes with a piece cut, flipped, doubled, moved or filled, and what was done."""
    if not content:
        return "filled", bytes(rng.randbytes(64))
    at, length = rng.randrange(len(content)), 1 + int(rng.expovariate(1 / 64))
    match rng.choice(("cut", "cut short", "flip", "zeros", "double", "noise", "head", "tail", "other")):
        case "cut":
            return f"{length} bytes cut at {at}", content[:at] + content[at + length :]
        case "cut short":
            return f"cut short at {at}", content[:at]
        case "flip":
            flipped = content[at] ^ (1 << rng.randrange(8))
            return f"byte {at} flipped", content[:at] + bytes([flipped]) + content[at + 1 :]
        case "zeros":
            return f"{length} zeros at {at}", content[:at] + bytes(length) + content[at + length :]
        case "double":
            return f"doubled at {at}", content[:at] + content[at : at + length] + content[at:]
        case "noise":
            return f"noise at {at}", content[:at] + rng.randbytes(length) + content[at + length :]
        case "head":
            near = rng.randrange(min(200, len(content)))
            return f"byte {near} replaced", content[:near] + rng.randbytes(1) + content[near + 1 :]
        case "tail":
            return f"{length} bytes more", content + rng.randbytes(length)
    whole = rng.choice(WHOLE)
    return f"replaced by {whole[:20]!r}", whole


def spoiled_json(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A JSON file with one value replaced, removed or moved, and what was done; now and then its bytes are spoiled."""
    if rng.random() < 0.1:
        return spoiled(content, rng)
    whole = copy.deepcopy(json.loads(content))
    holder, key = rng.choice(list(_places(whole)))
    match rng.choice(("value", "value", "value", "remove", "name", "nest")):
        case "value":
            holder[key] = rng.choice(VALUES)
            done = f"{key!r} is {holder[key]!r}"
        case "remove":
            del holder[key]
            done = f"no {key!r}"
        case "name" if isinstance(holder, dict):
            holder[f"{key}_"] = holder.pop(key)
            done = f"{key!r} misspelt"
        case _:
            holder[key] = {"value": holder[key]}
            done = f"{key!r} nested"
    return done, json.dumps(whole).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every value in a JSON value, as its holder and key there."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def spoiled_node(rng: random.Random) -> tuple[str, Callable[[Path], None]]:
    """What is no regular file, or cannot be read, in a file's place."""

    def link(path: Path) -> None:
        path.symlink_to(path)

    def device(path: Path) -> None:
        path.symlink_to("/dev/zero")

    nodes = {"a pipe": os.mkfifo, "a folder": Path.mkdir, "a link to itself": link, "a device": device}
    name = rng.choice(list(nodes))
    return name, nodes[name]


def spoiled_file(checkpoint: Checkpoint, name: str, rng: random.Random) -> Case:
    """The case of a checkpoint with one of its files spoiled, missing, or no file at all."""
    seed = rng.random()
    content = (checkpoint.source / name).read_bytes() if checkpoint.source.is_dir() else checkpoint.source.read_bytes()
    if seed < 0.05:
        done, write = spoiled_node(rng)
    elif seed < 0.07:
        done, write = "missing", _nothing
    else:
        done, spoilt = (spoiled_json if name.endswith(".json") else spoiled)(content, rng)
        write = _writer(spoilt)

    def make(place: Path) -> None:
        write(checkpoint.copied(place, name))

    argv = checkpoint.argv(checkpoint.source.name)
    statuses = (0, 1, 2) if argv[0] == "score" else (0, 2)  # 1: no video can be scored with it
    return Case(f"{checkpoint.name}: {name}: {done}", argv, make, statuses)


def _nothing(path: Path) -> None:
    pass


def _writer(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write
