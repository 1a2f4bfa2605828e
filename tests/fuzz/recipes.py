"""Recipe files: spoiled bytes, odd values in any place, hostile YAML, and what is no file."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from fuzz.harness import Case
from fuzz.mutations import spoiled, spoiled_node
from fuzz.overrides import BASES, VALUES
from vader.recipe import BUILT_IN

ODD: tuple[Any, ...] = (
    None, True, 0, 1, -1, 3, 10**30, 0.5, 1e38, float("nan"), float("inf"), "", "text", "os:abort", "a:b", "tiny", [],
    [1], [None], [[]], {}, {"a": 1}, {"name": None}, {"name": "x"}, {1: 2}, {None: 1}, {True: 1}, "a" * 5_000, "\0",
    "../x",
)  # fmt: skip
HOSTILE = (
    "&a [*a]", "&a {b: *a}", "!!int abc", "!!timestamp 2024-13-45", "!!python/name:os.abort ''", "!!binary ====",
    "!!bool x", "!!omap [a]", "!!pairs [a]", "!!set {a}", "!!null x", "!!str [a]", "!!seq a", "!!map a", "!!float ''",
    "!!int ''", "!!merge x", "9" * 5_000, "0b2", "0o9", "08", "1e999999", "[" * 5_000, "{a: " * 5_000, "? [a]\n: b",
    "<<: 3", "*none", "%TAG", "2024-01-01", '"\\ud800"', '"\\x00"', "|\n", ">-\n", "'", "\x07", "\x85", "\u2028",
    "a: b: c", "- -", "@", "`", "!<>", "&", "*", "#",
)  # fmt: skip
LAUGHS = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))])
NAMES = (
    "r.yaml",
    "r.yml",
    "recipe.yaml",
    "r",
    "r.yaml.txt",
    "ü.yaml",
    "a b.yaml",
    "-r.yaml",
    "tiny.yaml",
    "'.yaml",
    "\n.yaml",
)


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    rng = random.Random(f"recipes {seed}")
    for number in range(count):
        text = (BUILT_IN / f"{rng.choice(BASES)}.yaml").read_text()
        name = rng.choice(NAMES) if rng.random() < 0.2 else "r.yaml"
        done, make = _made(rng, text, name)
        argv = ["train", "--dry-run", "--", f"./{name}"] if name.startswith("-") else ["train", name, "--dry-run"]
        if rng.random() < 0.02:
            argv[-1 if argv[-1] != "--dry-run" else 1] = rng.choice(VALUES) or "x"
        yield Case(f"{name}: {done} ({seed} {number})"[:200], argv, make)


def _made(rng: random.Random, text: str, name: str) -> tuple[str, Callable[[Path], None]]:
    kind = rng.random()
    if kind < 0.03:
        done, write = spoiled_node(rng)
        return done, lambda place: write(place / name)
    if kind < 0.05:
        return "missing", lambda place: None
    if kind < 0.3:
        done, content = spoiled(text.encode(), rng)
    elif kind < 0.35:
        encoding = rng.choice(("utf-16", "utf-32", "latin-1", "utf-8-sig", "cp037"))
        done, content = encoding, text.replace("tiny", "tïny", 1).encode(encoding)
    elif kind < 0.6:
        done, content = _hostile(rng, text)
    else:
        done, content = _odd(rng, text)
    return done, lambda place: (place / name).write_bytes(content) and None


def _hostile(rng: random.Random, text: str) -> tuple[str, bytes]:
    """YAML in the place of a value, or a line more."""
    lines, what = text.splitlines(), rng.choice((*HOSTILE, LAUGHS))
    at = rng.randrange(len(lines))
    if rng.random() < 0.3:
        lines.insert(at, what)
    else:
        key = lines[at].partition(":")[0]
        lines[at] = f"{key}: {what}"
    return f"{what[:30]!r} in line {at}", "\n".join(lines).encode()


def _odd(rng: random.Random, text: str) -> tuple[str, bytes]:
    """One to three values replaced, removed, renamed or nested."""
    whole, done = copy.deepcopy(yaml.safe_load(text)), []
    for _ in range(rng.choice((1, 1, 2, 3))):
        found = list(_places(whole))
        if not found:
            break
        holder, key = rng.choice(found)
        match rng.choice(("value", "value", "remove", "nest", "rename")):
            case "value":
                holder[key] = copy.deepcopy(rng.choice(ODD))
            case "remove":
                del holder[key]
            case "nest":
                holder[key] = [holder[key]]
            case _:
                if isinstance(holder, dict):
                    holder[f"{key}s"] = holder.pop(key)
        done.append(str(key))
    return f"odd {', '.join(done)}", yaml.safe_dump(whole, allow_unicode=True).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every value in a value, as its holder and key there."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])
