"""The pictures that prompts carry, as the pixels an image-to-video model starts from.

In go prompts and the size of the video, out come pixels `[B, 3, H, W]` in [0, 1]: upright (EXIF orientation applied),
without transparency (laid on white), scaled to cover the video and cut to it around the centre, never stretched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vader.errors import UserError
from vader.files.foreign import reading, require_regular
from vader.nouns import Prompt, VideoSize

WHITE = (255, 255, 255, 255)


def prompt_images(prompts: Sequence[Prompt], height: int, width: int) -> Tensor:
    """The pictures of B prompts, cut to the size of the video: float32 `[B, 3, height, width]` in [0, 1].

    Raises:
        UserError: a prompt carries none, or its file cannot be read.
    """
    return torch.stack([read_picture(_image_of(prompt), height, width) for prompt in prompts])


def _image_of(prompt: Prompt) -> Path:
    if prompt.image is None:
        raise UserError(f"prompt {prompt.text!r} has no image, and the model starts from one: use a set of pictures")
    return prompt.image


def check_pictures(paths: Iterable[Path]) -> None:
    """Raises `UserError` for the first picture that does not exist or is none; looks at their first bytes alone."""
    for path in paths:
        with _opened(path):
            pass


def read_picture(path: Path, height: int, width: int) -> Tensor:
    """A picture cut to `[3, height, width]`, float32 in [0, 1].

    Raises:
        UserError: there is no such file, or it is no picture.
    """
    with _opened(path) as image:
        upright = _on_white(ImageOps.exif_transpose(image))
    fitted = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted).copy()).movedim(-1, 0).float() / 255


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Standardises each channel of `[N, 3, H, W]`, as vision networks want their pixels."""
    return (images - images.new_tensor(mean)[:, None, None]) / images.new_tensor(std)[:, None, None]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture file, not read yet; what goes wrong within, in reading it, is the user's mistake."""
    label = f"image {str(path)!r}"
    require_regular(path, label)
    with reading(f"{label} cannot be read"), Image.open(path) as image:
        yield image


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, WHITE), layer).convert("RGB")


def starting_images(prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None) -> Tensor:
    """What videos start from, `[B, 3, H, W]` in [0, 1]: the images given, or else those that the prompts carry.

    Raises:
        UserError: a prompt carries no image, or those given are of another size than the videos.
    """
    if images is None:
        return prompt_images(prompts, size.height, size.width)
    height, width = images.shape[-2:]
    if (height, width) != (size.height, size.width):
        raise UserError(f"images are {height}x{width}, but the videos {size.height}x{size.width}: make them equal")
    return images
