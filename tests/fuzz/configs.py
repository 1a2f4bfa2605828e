"""Spoiled settings of models: every JSON file of every checkpoint but its tokenizer's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from fuzz.checkpoints import checkpoints
from fuzz.harness import Case
from fuzz.mutations import spoiled_file


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    rng = random.Random(f"configs {seed}")
    places = [(one, name) for one in checkpoints(folder) for name in one.files(".json") if "token" not in name]
    for _ in range(count):
        yield spoiled_file(*rng.choice([place for place in places if "vocab" not in place[1]]), rng)
