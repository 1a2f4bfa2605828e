"""Damage: what a renderer of the judged scene would not have drawn, such as off-colour patches, flicker or halos.

The judge's findings are drawn again at the place, size and colours that fit the video best. A legal pixel lies between
the background and the paint, as far along as the silhouette over it and its neighbours allows; what is farther off than
soft decoding explains can be seen. Paints may be a little off the palette where all of the object is, and vividness may
change evenly over time, as a scene's light does; what comes and goes is damage.

Shapes: N videos, F frames, S pixels a side; videos are `[N, F, 3, S, S]` in [0, 1].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from vader.tinyworld.scenes import COLORS, backgrounds, dulled, shape_masks

DAMAGED = 0.075  # a video with more is called damaged: what eyes say of the videos of the tiny base and its adapters
SHOWS = (0.06, 0.30)  # colour distance that begins to be seen, and that is seen in full
UNSTEADY = {"object": 0.05, "ground": 0.02}  # the same of a region's mean colour, against its own mean over time
TINT = 0.15  # how far a whole object's colour may lie from the palette's
BRIGHTEST = 1.2  # vividness
MISFIT = 0.2  # colour distance from which on a pixel pulls no harder at place and size
LEAST_AREA = 0.05  # of the frame: the smallest object's, and what damage is measured by where there is none
STEPS = (3.0, 2.0, 1.0, 0.5, 0.25)  # pixels of 32 a side by which place and size are moved to fit


def find_damage(
    videos: Tensor, background: Tensor, color: Tensor, shape: Tensor, radius: Tensor, centers: Tensor, mask: Tensor
) -> Tensor:
    """How damaged each video is: `[N]`, from 0 (it could have been rendered) to 1.

    That is the area of what can be seen to be wrong, as a share of the object's, in the worst quarter of the frames.

    Args:
        background, color, shape: `[N]`, indices; colour and shape are -1 where there is no object.
        radius, centers: `[N]` and `[N, F, 2]`, about where the object is, in frame sides.
        mask: `[N, F, S, S]`, about which pixels are the object's, 0 or 1.
    """
    ground = _ground(videos, background)
    there = (shape >= 0).float()[:, None, None, None]
    color, shape = color.clamp(min=0), shape.clamp(min=0)
    paint = _paint(videos, color, mask > 0.5)
    silhouette = there * _fitted(videos, ground, paint, shape, radius, centers)
    least, most = _neighbourhood(silhouette)
    paint = _paint(videos, color, _core(silhouette, least))
    return _damage(videos, ground, paint, least, most, silhouette.mean(dim=(1, 2, 3)))


# ---- the scene, drawn again ----


def _ground(videos: Tensor, background: Tensor) -> Tensor:
    """The background `[N, F, 3, S, S]` at the vividness that fits half of each frame's pixels best, even over time."""
    vivid = backgrounds(videos.shape[-1])[background]
    dull = dulled(vivid)[:, None]
    axis = vivid[:, None] - dull
    vividness = torch.full((*videos.shape[:2], 1, 1, 1), 0.5)
    for _ in range(4):
        error = (videos - dull - vividness * axis).square().sum(dim=2, keepdim=True)
        close = (error <= error.flatten(2).median(dim=2).values[..., None, None, None]).float()
        above = ((videos - dull) * axis * close).sum(dim=(2, 3, 4), keepdim=True)
        vividness = above / (axis.square() * close).sum(dim=(2, 3, 4), keepdim=True)
    return dull + _even(vividness).clamp(0, BRIGHTEST) * axis


def _paint(videos: Tensor, color: Tensor, where: Tensor) -> Tensor:
    """The object's colour `[N, F, 3, 1, 1]`: the median `where` it is `[N, F, S, S]`, even over time."""
    pixels = torch.where(where[:, :, None], videos, torch.nan).flatten(3)
    median = pixels.nanmedian(dim=3).values
    median = torch.where(median.isnan(), median.nanmedian(dim=1, keepdim=True).values, median).nan_to_num(0.5)
    found, vivid = _even(median), torch.tensor(list(COLORS.values()))[color]
    dull = dulled(vivid)[:, None]
    axis = vivid[:, None] - dull
    along = ((found - dull) * axis).sum(dim=2, keepdim=True) / axis.square().sum(dim=2, keepdim=True)
    nearest = dull + along.clamp(0, BRIGHTEST) * axis
    off = found - nearest
    return (nearest + off * (TINT / off.norm(dim=2, keepdim=True).clamp(min=TINT)))[..., None, None]


def _even(values: Tensor) -> Tensor:
    """The straight line over time (dimension 1) that is closest to the values."""
    time = torch.arange(values.shape[1]).view(1, -1, *[1] * (values.dim() - 2)) - 0.5 * (values.shape[1] - 1)
    slope = (values * time).sum(dim=1, keepdim=True) / time.square().sum().clamp(min=1e-6)
    return values.mean(dim=1, keepdim=True) + slope * time


def _fitted(videos: Tensor, ground: Tensor, paint: Tensor, shape: Tensor, radius: Tensor, centers: Tensor) -> Tensor:
    """The silhouette `[N, F, S, S]` with which the scene is closest to the video, found by steps from a guess.

    The size is one for all frames, the place is each frame's own. The squared error is a parabola in the coverage of a
    pixel, and is cut off so that damage does not draw the silhouette to itself.
    """
    difference, axis = videos - ground, paint - ground
    constant, linear = difference.square().sum(dim=2), (difference * axis).sum(dim=2)
    square, size = axis.square().sum(dim=2), videos.shape[-1]

    def drawn(radius: Tensor, centers: Tensor) -> Tensor:
        frames = centers.shape[:2]
        return shape_masks(shape[:, None].expand(frames), radius[:, None].expand(frames), centers, size)

    def error(radius: Tensor, centers: Tensor) -> Tensor:
        cover = drawn(radius, centers)
        return (constant - 2 * cover * linear + cover.square() * square).clamp(max=MISFIT**2).sum(dim=(2, 3))

    for step in STEPS:
        for axis_step in step / 32 * torch.eye(2):
            tried = torch.stack([centers - axis_step, centers, centers + axis_step])
            best = torch.stack([error(radius, places) for places in tried]).argmin(dim=0)
            centers = tried.gather(0, best[None, ..., None].expand(1, *centers.shape))[0]
        tried = torch.stack([radius - 0.5 * step / 32, radius, radius + 0.5 * step / 32])
        best = torch.stack([error(sizes, centers).sum(dim=1) for sizes in tried]).argmin(dim=0)
        radius = tried.gather(0, best[None])[0]
    return drawn(radius, centers)


def _neighbourhood(values: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the most of each pixel and those around it, as far as one pixel of 32 a side; `[N, F, S, S]`."""
    reach = max(1, values.shape[-1] // 32)
    most, least = (max_pool2d(some, 2 * reach + 1, 1, reach) for some in (values, -values))
    return -least, most


def _core(silhouette: Tensor, least: Tensor) -> Tensor:
    """The object's pixels `[N, F, S, S]` that no edge touches; all full ones where it is too thin for that."""
    core = least > 0.99
    return torch.where(core.any(dim=(2, 3), keepdim=True), core, silhouette > 0.9)


# ---- what differs from it ----


def _damage(videos: Tensor, ground: Tensor, paint: Tensor, least: Tensor, most: Tensor, area: Tensor) -> Tensor:
    """The share `[N]` of what is wrong; `area` `[N]` is the object's, of the frame's."""
    axis = paint - ground
    cover = ((videos - ground) * axis).sum(dim=2) / axis.square().sum(dim=2).clamp(min=1e-6)
    cover = cover.clamp(least, most)[:, :, None]
    off = videos - ground - cover * axis
    texture = torch.stack([high - low for low, high in map(_neighbourhood, ground.unbind(dim=2))], dim=2)
    soft = 0.5 * (1 - cover) * texture.norm(dim=2, keepdim=True)
    excess = off.norm(dim=2, keepdim=True) - soft - SHOWS[0]
    for name, region in (("object", least > 0.99), ("ground", most < 0.01)):
        inside = region[:, :, None].float()
        mean = (off * inside).sum(dim=(3, 4), keepdim=True) / inside.sum(dim=(3, 4), keepdim=True).clamp(min=1)
        unsteady = (mean - mean.mean(dim=1, keepdim=True)).norm(dim=2, keepdim=True) - UNSTEADY[name]
        excess = torch.where(inside > 0.5, torch.maximum(excess, unsteady), excess)
    seen = (excess / (SHOWS[1] - SHOWS[0])).clamp(0, 1).mean(dim=(2, 3, 4))
    worst = seen.topk(math.ceil(seen.shape[1] / 4), dim=1).values.mean(dim=1)
    return (worst / area.clamp(min=LEAST_AREA)).clamp(max=1)
