"""Sheets of videos side by side, as PNG: what several models made of one prompt and noise, or one model over time.

In go the heads of the columns and, for each row, words and a video a column; out comes one picture. A video that was
made in several parts, each after the last one's end, has a line of frames for each, and a mark between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from vader.files.video import GAP, MARGIN, PAPER, SEAM, frame_strip, lettered, write_png

FAINT = (110, 116, 126)
GUTTER = 28  # pixels between columns
SEAM_HEIGHT = 4


@dataclass(frozen=True)
class Row:
    """What stands side by side.

    Attributes:
        title: a line above the caption, fainter.
        caption: the prompt.
        videos: for each column a video's parts in time, each `[F, 3, H, W]` in [0, 1]; of most videos there is one.
        notes: what is said below each video.
    """

    title: str
    caption: str
    videos: Sequence[Sequence[Tensor]]
    notes: Sequence[str]


def draw_sheet(heads: Sequence[str], rows: Sequence[Row], path: str | Path, count: int = 4) -> Path:
    """Writes a sheet, rows below each other.

    Args:
        heads: what made the videos of each column.
        rows: one or more, each with a video and a note a column.
        path: where; an existing file is replaced.
        count: frames of each part that are shown, at most.
    """
    strips = [[_timeline(parts, count) for parts in row.videos] for row in rows]
    widths = [max(strip.width for strip in column) for column in zip(*strips, strict=True)]
    blocks = [_drawn(row, some, widths) for row, some in zip(rows, strips, strict=True)]
    return write_png(path, _framed(_stacked([_words(heads, widths), *blocks], MARGIN)))


def _timeline(parts: Sequence[Tensor], count: int) -> Image.Image:
    """A video's frames, a line a part, and a mark where one part ends and the next begins."""
    lines = [frame_strip(part, count) for part in parts]
    marked = [lines[0]]
    for line in lines[1:]:
        marked += [Image.new("RGB", (line.width, SEAM_HEIGHT), SEAM), line]
    return _stacked(marked, GAP)


def _drawn(row: Row, strips: Sequence[Image.Image], widths: Sequence[int]) -> Image.Image:
    width = sum(widths) + GUTTER * (len(widths) - 1)
    words = [lettered(row.title, width, FAINT), lettered(row.caption, width)]
    return _stacked([*words, _beside(strips, widths), _words(row.notes, widths)], GAP)


def _words(texts: Sequence[str], widths: Sequence[int]) -> Image.Image:
    """A text over or under each column."""
    return _beside([lettered(text, width) for text, width in zip(texts, widths, strict=True)], widths)


def _beside(images: Sequence[Image.Image], widths: Sequence[int]) -> Image.Image:
    whole = Image.new("RGB", (sum(widths) + GUTTER * (len(widths) - 1), max(i.height for i in images)), PAPER)
    left = 0
    for image, width in zip(images, widths, strict=True):
        whole.paste(image, (left, 0))
        left += width + GUTTER
    return whole


def _stacked(images: Sequence[Image.Image], gap: int) -> Image.Image:
    height = sum(image.height for image in images) + gap * (len(images) - 1)
    whole = Image.new("RGB", (max(image.width for image in images), height), PAPER)
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height + gap
    return whole


def _framed(image: Image.Image) -> Image.Image:
    framed = Image.new("RGB", (image.width + 2 * MARGIN, image.height + 2 * MARGIN), PAPER)
    framed.paste(image, (MARGIN, MARGIN))
    return framed
