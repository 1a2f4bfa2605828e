"""From pixels to what a vision network wants: resizing and normalising in plain differentiable torch.

Images `[N, 3, H, W]` in [0, 1] come in, square images of the network's size go out. `squash` is what the
paper's code does for CLIP; `crop` is CLIP's and `pad` HPSv2's own preprocessing. Bicubic resizing may
overshoot [0, 1] a little; it is not clamped, so that no gradient dies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from vader.errors import UserError, nearest
from vader.files.images import normalize as normalize

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Resize = Literal["crop", "squash", "pad"]
Resizer = Callable[[Tensor, int], Tensor]


def resize(images: Tensor, height: int, width: int, mode: Literal["bilinear", "bicubic"]) -> Tensor:
    """Antialiased resizing to `[N, 3, height, width]`."""
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode=mode, antialias=True, align_corners=False)


def squash(images: Tensor, size: int) -> Tensor:
    """The whole image, its aspect ratio given up: bilinear to `[N, 3, size, size]`."""
    return resize(images, size, size, "bilinear")


def crop(images: Tensor, size: int, mode: Literal["bilinear", "bicubic"] = "bicubic") -> Tensor:
    """The centre square: shorter side to `size`, then cut to `[N, 3, size, size]`."""
    height, width = images.shape[-2:]
    short = min(height, width)
    images = resize(images, height * size // short, width * size // short, mode)
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]


def pad(images: Tensor, size: int) -> Tensor:
    """The whole image between black bars: longer side to `size`, bicubic, then `[N, 3, size, size]`."""
    height, width = images.shape[-2:]
    scale = size / max(height, width)
    images = resize(images, max(1, round(height * scale)), max(1, round(width * scale)), "bicubic")
    rows, columns = size - images.shape[-2], size - images.shape[-1]
    return F.pad(images, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


RESIZERS: dict[str, Resizer] = {"crop": crop, "squash": squash, "pad": pad}


def resizer(name: str) -> Resizer:
    """The resizing of that name.

    Raises:
        UserError: there is none.
    """
    if name not in RESIZERS:
        raise UserError(f"no resizing is called {name!r}: {nearest(name, RESIZERS)}")
    return RESIZERS[name]
