"""The renderer of the tiny world: coloured shapes that move over backgrounds, with every ground truth.

In go attributes (`Scenes`: what, which colour, where, how it moves, how vivid), out come videos in
[0, 1], captions and boxes. Rendering is resolution-free and vectorised over scenes, and pixels are
linear in vividness: `pixel = dull + v * (vivid - dull)`. The judge inverts exactly this.

Shapes of tensors: N scenes, F frames, 3 colour channels, S pixels a side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

COLORS = {
    "red": (0.90, 0.15, 0.15),
    "orange": (0.98, 0.55, 0.10),
    "yellow": (0.98, 0.90, 0.15),
    "green": (0.25, 0.85, 0.30),
    "blue": (0.15, 0.35, 0.98),
    "purple": (0.68, 0.22, 0.88),
}
BACKGROUNDS = {
    "night": (0.05, 0.06, 0.22),
    "sea": (0.02, 0.36, 0.55),
    "grass": (0.13, 0.43, 0.13),
    "sand": (0.72, 0.57, 0.36),
    "snow": (0.91, 0.94, 1.00),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
MOTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}

CAPTIONS = (
    "a {color} {shape} moving {motion} over {background}",
    "{color} {shape} moves {motion} over the {background}",
    "the {shape} is {color} and goes {motion} over {background}",
)
RADIUS = (0.19, 0.26)  # of the frame's side
TRAVEL = (0.30, 0.42)  # path from the first to the last frame, of the frame's side


class Attributes(NamedTuple):
    """What a caption says of a scene, as indices into COLORS, SHAPES, BACKGROUNDS and MOTIONS."""

    color: int
    shape: int
    background: int
    motion: int


ALL_ATTRIBUTES = [
    Attributes(*item)
    for item in product(range(len(COLORS)), range(len(SHAPES)), range(len(BACKGROUNDS)), range(len(MOTIONS)))
]


@dataclass
class Scenes:
    """A batch of N scenes. Integer attributes are `[N]`, lengths are in frame sides, vividness in [0, 1]."""

    color: Tensor
    shape: Tensor
    background: Tensor
    motion: Tensor
    radius: Tensor
    center: Tensor  # [N, 2], (x, y) of the path's middle
    travel: Tensor
    vividness: Tensor

    def __len__(self) -> int:
        return len(self.color)

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def with_vividness(self, vividness: float | Tensor) -> Scenes:
        """The same scenes, drawn `vividness` vivid (0 dull, 1 full colour)."""
        return replace(self, vividness=torch.as_tensor(vividness, dtype=torch.float32).expand(len(self)))

    def attributes(self) -> list[Attributes]:
        columns = (self.color, self.shape, self.background, self.motion)
        return [Attributes(*row) for row in torch.stack(columns, dim=1).tolist()]


def sample_scenes(count: int, generator: torch.Generator, attributes: list[Attributes] | None = None) -> Scenes:
    """Draws `count` scenes; with `attributes`, scene i has `attributes[i]` and only its geometry is drawn.

    Three in five scenes are dull (vividness below 0.45), as much of the internet's video is: there is
    something to gain by alignment.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    if attributes is None:
        picks = torch.randint(len(ALL_ATTRIBUTES), (count,), generator=generator)
        attributes = [ALL_ATTRIBUTES[i] for i in picks]
    color, shape, background, motion = torch.tensor(attributes).unbind(dim=1)
    radius, travel = uniform(*RADIUS), uniform(*TRAVEL)
    slack = 0.5 - radius[:, None] - 0.5 * travel[:, None] * _directions(motion).abs()
    center = 0.5 + uniform(-1.0, 1.0, 2) * slack * 0.9
    dull = torch.rand(count, generator=generator) < 0.6
    vividness = torch.where(dull, uniform(0.0, 0.45), uniform(0.45, 1.0))
    return Scenes(color, shape, background, motion, radius, center, travel, vividness)


def captions(scenes: Scenes, template: int | Tensor = 0) -> list[str]:
    """One caption a scene, after `CAPTIONS[template]` (one index for all, or one each)."""
    templates = torch.as_tensor(template).expand(len(scenes)).tolist()
    return [caption(item, t) for item, t in zip(scenes.attributes(), templates, strict=True)]


def caption(attributes: Attributes, template: int = 0) -> str:
    return CAPTIONS[template].format(
        color=list(COLORS)[attributes.color],
        shape=SHAPES[attributes.shape],
        background=list(BACKGROUNDS)[attributes.background],
        motion=list(MOTIONS)[attributes.motion],
    )


def look_caption(attributes: Attributes) -> str:
    """A caption that leaves the motion open."""
    color, background = list(COLORS)[attributes.color], list(BACKGROUNDS)[attributes.background]
    return f"a {color} {SHAPES[attributes.shape]} over {background}"


def parse_caption(text: str) -> Attributes:
    """The attributes a caption names.

    Raises:
        ValueError: a kind of attribute is not named, so that there is no ground truth to judge by.
    """
    words = text.lower().replace(",", " ").split()
    names = {"color": list(COLORS), "shape": list(SHAPES), "background": list(BACKGROUNDS), "motion": list(MOTIONS)}
    found = {kind: [known.index(w) for w in words if w in known] for kind, known in names.items()}
    missing = [kind for kind, hits in found.items() if not hits]
    if missing:
        raise ValueError(f"{text!r} names no {missing[0]} of the tiny world: use one of {', '.join(names[missing[0]])}")
    return Attributes(**{kind: hits[0] for kind, hits in found.items()})


def sample_pairs(count: int, generator: torch.Generator) -> tuple[Scenes, Scenes]:
    """Draws `count` scenes of two objects, as two scenes each that share background and vividness (`render_pairs`).

    Each object keeps to its own half of the frame: beside each other they move up or down, one above the other
    left or right, so they never touch. They are a little smaller than single ones.
    """
    first, second = sample_scenes(count, generator), sample_scenes(count, generator)
    beside, far = torch.rand(2, count, generator=generator) < 0.5
    second = replace(second, background=first.background, vividness=first.vividness)
    return _in_half(first, beside, far, generator), _in_half(second, beside, ~far, generator)


def _in_half(scenes: Scenes, beside: Tensor, far: Tensor, generator: torch.Generator) -> Scenes:
    """The objects moved to the near (left, upper) or the far half of a frame that is split beside or above."""
    radius = scenes.radius - 0.03
    offset = 2 * torch.rand(2, len(scenes), generator=generator) - 1
    across = 0.25 + 0.5 * far + offset[0] * (0.25 - radius)
    along = 0.5 + 0.9 * offset[1] * (0.5 - radius - 0.5 * scenes.travel)
    center = torch.stack([torch.where(beside, across, along), torch.where(beside, along, across)], dim=1)
    return replace(scenes, radius=radius, center=center, motion=scenes.motion % 2 + 2 * beside)


def render(scenes: Scenes, frames: int = 8, size: int = 32) -> Tensor:
    """Draws the scenes: float32 `[N, F, 3, S, S]` in [0, 1], antialiased."""
    return draw_objects(render_grounds(scenes, frames, size), scenes)


def render_pairs(first: Scenes, second: Scenes, frames: int = 8, size: int = 32) -> Tensor:
    """Draws the objects of both over the backgrounds of the first: float32 `[N, F, 3, S, S]` in [0, 1]."""
    return draw_objects(render(first, frames, size), second)


def render_grounds(scenes: Scenes, frames: int = 8, size: int = 32) -> Tensor:
    """Draws the backgrounds alone: float32 `[N, F, 3, S, S]` in [0, 1]."""
    ground = painted(backgrounds(size)[scenes.background], scenes.vividness[:, None, None, None])
    return ground[:, None].expand(-1, frames, -1, -1, -1)


def draw_objects(videos: Tensor, scenes: Scenes) -> Tensor:
    """The videos `[N, F, 3, S, S]` with the scenes' objects over them."""
    alpha = object_masks(scenes, videos.shape[1], videos.shape[-1])[:, :, None]
    paint = painted(_color_table(COLORS)[scenes.color], scenes.vividness[:, None])[:, None, :, None, None]
    return torch.lerp(videos, paint.expand_as(videos), alpha)


def object_masks(scenes: Scenes, frames: int, size: int) -> Tensor:
    """Coverage of every pixel by the object: `[N, F, S, S]` in [0, 1]."""
    return shape_masks(scenes.shape[:, None], scenes.radius[:, None], object_centers(scenes, frames), size)


def object_centers(scenes: Scenes, frames: int) -> Tensor:
    """The object's centre in each frame: `[N, F, 2]`, (x, y) in frame sides."""
    progress = torch.linspace(-0.5, 0.5, frames)[None, :, None] if frames > 1 else torch.zeros(1, 1, 1)
    return scenes.center[:, None] + progress * scenes.travel[:, None, None] * _directions(scenes.motion)[:, None]


def boxes(scenes: Scenes, frames: int = 8) -> Tensor:
    """The object's bounding square in each frame: `[N, F, 4]`, (x0, y0, x1, y1) in frame sides."""
    centers, radius = object_centers(scenes, frames), scenes.radius[:, None, None]
    return torch.cat([centers - radius, centers + radius], dim=-1)


def shape_masks(shape: Tensor, radius: Tensor, center: Tensor, size: int) -> Tensor:
    """Antialiased silhouettes `[..., S, S]` of shapes at centers `[..., 2]` (in frame sides)."""
    axis = (torch.arange(size) + 0.5) / size
    x = (axis[None, :] - center[..., 0, None, None]) / radius[..., None, None]
    y = (axis[:, None] - center[..., 1, None, None]) / radius[..., None, None]
    shape, distance = shape.expand(x.shape[:-2]), x.new_empty(*x.shape[:-2], size, size)
    for index, signed in enumerate(_SIGNED_DISTANCES):
        chosen = shape == index
        distance[chosen] = signed(x[chosen], y[chosen])
    return (0.5 - distance * radius[..., None, None] * size).clamp(0, 1)


def painted(vivid: Tensor, vividness: Tensor) -> Tensor:
    """A full-colour paint (channels in dimension 1) at the given vividness; linear in vividness."""
    return torch.lerp(dulled(vivid), vivid, vividness)


def dulled(vivid: Tensor) -> Tensor:
    """The dull version of a paint: chroma at 40 %, brightness drawn to the middle. Channels in dimension 1."""
    weights = vivid.new_tensor((0.299, 0.587, 0.114)).view(-1, *[1] * (vivid.dim() - 2))
    grey = (vivid * weights).sum(dim=1, keepdim=True)
    return 0.4 * vivid + 0.6 * (0.25 + 0.5 * grey)


def backgrounds(size: int) -> Tensor:
    """Every background in full colour: `[len(BACKGROUNDS), 3, S, S]`, base colour and a faint texture."""
    axis = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    turn = 2 * math.pi
    textures = {
        "night": 0.35 * _stars(x, y),
        "sea": 0.07 * torch.sin(turn * (4 * y + 0.15 * torch.sin(turn * 2 * x))),
        "grass": 0.06 * torch.sin(turn * 4 * x) * (0.4 + y),
        "sand": 0.05 * torch.sin(turn * (2.5 * y + 1.5 * x)),
        "snow": 0.10 * (0.5 - y),
    }
    base = _color_table(BACKGROUNDS)[:, :, None, None]
    texture = torch.stack([textures[name] for name in BACKGROUNDS])[:, None]
    return (base + texture).clamp(0, 1)


def _stars(x: Tensor, y: Tensor) -> Tensor:
    spots = ((0.12, 0.18), (0.42, 0.08), (0.78, 0.22), (0.62, 0.52), (0.22, 0.62), (0.88, 0.74), (0.48, 0.90))
    glows = (torch.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 0.035**2)) for u, v in spots)
    return sum(glows, start=torch.zeros_like(x))


def _color_table(colors: dict[str, tuple[float, float, float]]) -> Tensor:
    return torch.tensor(list(colors.values()))


def _directions(motion: Tensor) -> Tensor:
    return torch.tensor(list(MOTIONS.values()))[motion]


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    slope = math.hypot(1.75, 0.95)
    return torch.maximum(y - 0.75, (1.75 * x.abs() - 0.95 * (y + 1.0)) / slope)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    upright = torch.maximum(x.abs() - 0.32, y.abs() - 0.97)
    level = torch.maximum(x.abs() - 0.97, y.abs() - 0.32)
    return torch.minimum(upright, level)


_SIGNED_DISTANCES = (  # in the order of SHAPES; x and y in radii, negative inside
    lambda x, y: torch.hypot(x, y) - 0.95,
    lambda x, y: torch.maximum(x.abs(), y.abs()) - 0.82,
    _triangle,
    _cross,
    lambda x, y: (torch.hypot(x, y) - 0.70).abs() - 0.27,
)
