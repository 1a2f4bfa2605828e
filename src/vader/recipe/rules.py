"""Which keys must fit together, beyond what each must be alone: contradictions, as sentences for the user."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from vader.recipe.sections import Sees, TrainSection

LONGEST_NAME = 200  # bytes: systems allow 255, and files on their way have longer names


def of_name(name: str) -> Iterator[str]:
    if len(name.encode()) > LONGEST_NAME:
        yield f"name {name[:20]!r}... has {len(name.encode())} bytes: a folder's name has at most {LONGEST_NAME}"
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        yield f"name {name!r} names the run's folder: use letters, digits, '-', '_' and '.'"


def of_sees(key: str, sees: Sees | None, count: int) -> Iterator[str]:
    """What is wrong with what a reward is to see of videos of `count` frames."""
    if isinstance(sees, int) and sees > count:
        yield f"{key} is {sees} but videos have {count} frames: let it see at most {count}, or set it to all"
    if sees == "first_middle_last" and count < 3:
        yield f"{key} is first_middle_last but videos have {count} frames: it needs at least 3"
    if isinstance(sees, tuple):
        yield from _of_indices(key, sees, count)


def _of_indices(key: str, indices: Sequence[int], count: int) -> Iterator[str]:
    if not indices:
        yield f"{key} is an empty list: name at least one frame, or set it to all"
    for index in indices:
        if index >= count:
            yield f"{key} holds {index} but videos have {count} frames: indices run from 0 to {count - 1}"
    if len(set(indices)) < len(indices):
        yield f"{key} is {list(indices)}: name each index once"


def of_weight(key: str, weight: float) -> Iterator[str]:
    if weight == 0:
        yield f"{key} is 0, so that nothing would be learned from it: to watch it, name it in evaluation.metrics"


def of_batch(train: TrainSection) -> Iterator[str]:
    if train.micro_batch is not None and train.batch % train.micro_batch:
        yield f"train.batch {train.batch} is no multiple of train.micro_batch {train.micro_batch}: change one of them"
