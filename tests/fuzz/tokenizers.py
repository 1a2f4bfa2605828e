"""Spoiled tokenizers: vocabularies, merges and settings."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from fuzz.checkpoints import checkpoints
from fuzz.harness import Case
from fuzz.mutations import spoiled_file

NAMES = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model")


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    rng = random.Random(f"tokenizers {seed}")
    places = [(one, name) for one in checkpoints(folder) for name in one.files(*NAMES)]
    for _ in range(count):
        yield spoiled_file(*rng.choice(places), rng)
