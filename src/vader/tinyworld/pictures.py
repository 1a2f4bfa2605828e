"""Pictures to start videos from: first frames of tiny-world scenes, with the split of its texts.

In comes nothing, out come prompts that carry a caption and a picture. The pictures are drawn when first asked for, and
kept in `$VADER_CACHE/tiny-pictures` (by default `~/.cache/vader/tiny-pictures`).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vader.errors import UserError
from vader.files.video import to_bytes, write_png
from vader.nouns import Prompt
from vader.tinyworld.scenes import Attributes, caption, render, sample_scenes
from vader.tinyworld.split import test_attributes, train_attributes

SEED = 23


def train_pictures() -> list[Prompt]:
    """The 400 training prompts, each with the first frame of one such scene."""
    return _pictures(train_attributes(), "train")


def test_pictures() -> list[Prompt]:
    """The 200 test prompts, each with the first frame of one such scene."""
    return _pictures(test_attributes(), "test")


def _pictures(items: list[Attributes], half: str) -> list[Prompt]:
    folder = _folder() / half
    texts = [caption(item) for item in items]
    paths = [folder / f"{text.replace(' ', '-')}.png" for text in texts]
    if not all(path.is_file() for path in paths):
        _draw(items, paths)
    return [Prompt(text, image=path) for text, path in zip(texts, paths, strict=True)]


def _draw(items: list[Attributes], paths: list[Path]) -> None:
    frames = first_frames(items)
    try:
        for path, image in zip(paths, to_bytes(frames), strict=True):
            write_png(path, Image.fromarray(image))  # whole or not at all: several processes may draw at once
    except UserError as error:
        raise UserError(f"cannot keep pictures in {paths[0].parent}: set VADER_CACHE ({error})") from error


def first_frames(items: list[Attributes]) -> Tensor:
    """The first frame of a scene of each attributes, always the same: `[N, 3, 32, 32]` in [0, 1]."""
    scenes = sample_scenes(len(items), torch.Generator().manual_seed(SEED), items)
    return render(scenes)[:, 0]


def _folder() -> Path:
    return Path(os.environ.get("VADER_CACHE", "~/.cache/vader")).expanduser() / "tiny-pictures"
