"""Overrides of a recipe's keys: any key, misspelt ones too, with any value, likely ones too."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fuzz.harness import Case
from vader.recipe import load_recipe

VALUES = (
    "", "null", "~", "true", "no", "0", "-0", "1", "-1", "2", "3", "7", "9", "10", "1001", "10000", "99999999999",
    str(2**63), str(10**30), "9" * 5_000, "0.5", "-0.5", "1e-4", "1e38", "1e400", ".inf", "-.inf", ".nan", "1_000",
    "0x10", "1:30", "1+2", "text", "'8'", '""', "' '", "tiny", "auto", "all", "module:Class", "os:abort",
    "my_reward.py:Class", "a.b.c:D", ":", "a:", ":b", "a b:c", "..x:y", "x..y:z", "builtins:object", "sys:exit",
    "vader:Reward", "vader.rewards.base:Reward", "[]", "[1]", "[1, 2]", "[null]", "['']", "[-1]", "[[]]", "[0, 0]",
    "{}", "{a: 1}", "{name: null}", "{name: x}", "{name: last, k: 99}", "{name: last, k: -1}",
    "{name: last, k: 1e99}", "{name: cfg, scale: -3}", "{name: recompute, every: 0}", "[{}]", "[{name: judge}]",
    "[{name: aesthetic, checkpoint: null}]", "[{name: hps, checkpoint: 'no/such'}]", "2024-01-01", "2024-13-45",
    "!!int abc", "!!float x", "!!binary abc", "!!set {a}", "!!python/object/apply:os.abort []", "!x y",
    "&a [*a]", "*b", "<<", "{<<: 3}", "{1: 2}", "{[a]: b}", "? x", "- a", "a: b: c", "[", "]", "{", "'", '"', '"\\0"',
    '"\\ud800"', "%", "@x", "`", "\t", "\n", "a\nb", "\u2028", "é", "😀", "日本", "../..", "/", "/dev/null",
    "/dev/zero", "/proc/self/mem", "~", "~nouser/x", "a" * 300, "a/" * 200, "x" * 100_000, "[" * 3_000, "{a: " * 2_000,
)  # fmt: skip
ENDS = (
    "",
    "",
    "",
    "",
    ".x",
    ".0",
    ".-1",
    ".99999999999999999999",
    ".",
    "..",
    "x",
    "_",
    ".name",
    ".name.name",
    " ",
    "é",
    ".²",
)
MORE = (
    "", ".", "=", "x", "rewards.0.wieght", "rewards.1.name", "algorithm.frames.sample", "evaluation.monitors",
    "evaluation.judge", "memory.checkpointing", "algorithm.ddpo.clip_range", "model.options.x", "rewards.0",
    "a" * 300, "a." * 500 + "b", "name.name", "algorithm.policy", "evaluation.metrics.0.name", "memory.0",
)  # fmt: skip
BASES = ("tiny", "tiny-ddpo", "tiny-dpo", "tiny-svd", "tiny-opensora", "tiny-videocrafter", "tiny-action", "tiny-vjepa")


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    rng = random.Random(f"overrides {seed}")
    keys = {base: [*paths(load_recipe(base).model_dump(mode="json")), *MORE] for base in BASES}
    for _ in range(count):
        base = rng.choice((*BASES, "tiny", "tiny", "tiny"))
        given = [one_of(rng, keys[base]) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        yield Case(f"{base}: {' '.join(given)}"[:200], ["train", base, *given, "--dry-run"])


def one_of(rng: random.Random, keys: list[str]) -> str:
    if rng.random() < 0.02:
        return rng.choice(VALUES)
    return f"{rng.choice(keys)}{rng.choice(ENDS)}={rng.choice(VALUES)}"


def paths(value: Any, path: str = "") -> Iterator[str]:
    """Every section and key of a recipe by dotted path."""
    if path:
        yield path
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield from paths(below, f"{path}.{key}".lstrip("."))
