"""The tiny world's train/test split: combinations of colour, shape and background that are tested are never trained on.

Motions and templates are shared by both sides, so a test prompt has only known words in a combination that is new.
"""

from __future__ import annotations

from hashlib import blake2b

from vader.nouns import Prompt
from vader.tinyworld.scenes import ALL_ATTRIBUTES, SHAPES, Attributes, caption, look_caption

REMOVED = "circle"  # the shape that tiny recipes of object removal make vanish
ACTION = "left"  # the motion that tiny recipes of the action reward make of any


def train_attributes() -> list[Attributes]:
    """The 400 attribute combinations to train on, in a fixed shuffled order."""
    return _shuffled([item for item in ALL_ATTRIBUTES if not is_held_out(item)])


def test_attributes() -> list[Attributes]:
    """The 200 attribute combinations held out, in a fixed shuffled order, so that the first few are diverse."""
    return _shuffled([item for item in ALL_ATTRIBUTES if is_held_out(item)])


def is_held_out(item: Attributes) -> bool:
    """Every third (colour, shape, background), so that each colour, shape and background is on both sides."""
    return (item.color + item.shape + item.background) % 3 == 0


def train_prompts() -> list[str]:
    return [caption(item) for item in train_attributes()]


def test_prompts() -> list[str]:
    return [caption(item) for item in test_attributes()]


def removal_train_prompts() -> list[str]:
    """The 80 training prompts of a circle."""
    return [caption(item) for item in train_attributes() if SHAPES[item.shape] == REMOVED]


def removal_test_prompts() -> list[str]:
    """The 40 test prompts of a circle."""
    return [caption(item) for item in test_attributes() if SHAPES[item.shape] == REMOVED]


def action_train_prompts() -> list[Prompt]:
    """The 100 looks of the training prompts, captioned without a motion and labelled with one."""
    return _labelled(train_attributes())


def action_test_prompts() -> list[Prompt]:
    """The 50 looks of the test prompts, captioned without a motion and labelled with one."""
    return _labelled(test_attributes())


def _labelled(items: list[Attributes]) -> list[Prompt]:
    texts = dict.fromkeys(look_caption(item) for item in items)  # once each, in order
    return [Prompt(text, label=ACTION) for text in texts]


def _shuffled(items: list[Attributes]) -> list[Attributes]:
    """By a hash of the caption: an order that no library version can change."""
    return sorted(items, key=lambda item: blake2b(caption(item).encode()).digest())
