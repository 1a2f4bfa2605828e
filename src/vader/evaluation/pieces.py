"""Small pieces that several pages share: sections, notes, videos. In go texts and recipes, out comes HTML."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from vader.recipe import Recipe
from vader.runs.reader import Sample

SMALL = 128  # pixels: videos below this on both sides are shown with hard pixel edges
BUTTONS = (
    '<div class="controls" hidden><button class="primary toggle" type="button">Pause</button>'
    '<button class="restart" type="button">Restart</button></div>'
)


def pixel_class(recipes: Sequence[Recipe]) -> str:
    """The class under which small videos are shown with hard pixel edges."""
    sides = [side for recipe in recipes for side in (recipe.video.height, recipe.video.width)]
    return "pixels" if max(sides) < SMALL else ""


def is_wide(recipe: Recipe) -> bool:
    """Wide videos are shown one above the other, or they would be tiny."""
    return recipe.video.width > 1.5 * recipe.video.height


def video_tile(sample: Sample, name: str, reward: str) -> str:
    """A video, embedded, with a name and a reward below it, which are HTML."""
    data = base64.b64encode(sample.file.read_bytes()).decode()
    return (
        f'<div><video autoplay loop muted playsinline controls preload="auto" '
        f'aria-label="{name}: {escape(sample.prompt)}" src="data:video/mp4;base64,{data}"></video>'
        f'<div class="score"><span>{name}</span><span><b>{reward}</b></span></div></div>'
    )


def section(title: str, content: str, beside: str = "") -> str:
    return f'<section><div class="section-head"><h2>{title}</h2>{beside}</div>{content}</section>'


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'
