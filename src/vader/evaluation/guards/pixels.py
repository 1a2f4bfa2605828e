"""Guards of pixels, which cost next to nothing: motion, flicker, detail, grids, colour, contrast, clipping.

Each is a figure of one video; where it is a share or a mean, its logarithm, so that changes are ratios.
Shapes: B videos, F frames; pixels `[B, F, 3, H, W]` in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vader.errors import UserError
from vader.evaluation.guards.base import Guard
from vader.evaluation.metrics.base import Aside
from vader.evaluation.metrics.drift import LUMA
from vader.nouns import Clip, Prompt, VideoSize

STILL = 1e-4  # a mean change of pixels below this is none
PLAIN = 1e-3  # and so a colourfulness or contrast
NO_POWER = 1e-8  # of a frequency: an amplitude of 1e-4
HIGH = 0.3  # cycles a pixel, along either axis


class Motion(Guard):
    """Mean change of slightly blurred pixels from frame to frame: falls when videos freeze or slow down."""

    wrong, log, limit = "videos move less", True, -math.log(0.5)

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        return _each(clip, lambda video: _log(_moves(video, 1), STILL))

    def check(self, prompts: Sequence[Prompt], size: VideoSize) -> None:
        if size.frames < 2:
            raise Aside("a single frame does not move")


class Flicker(Guard):
    """Change of the change from frame to frame, as a multiple of motion: rises with flicker and shuffled frames."""

    sign, wrong, log, allowed = -1, "videos flicker or jump more", True, math.log(1.25)

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        return _each(clip, lambda video: _log(_moves(video, 2), STILL) - _log(_moves(video, 1), STILL))

    def check(self, prompts: Sequence[Prompt], size: VideoSize) -> None:
        if size.frames < 3:
            raise Aside("flicker takes three frames")


class Detail(Guard):
    """The share of high frequencies in the power of pictures: rises with noise and texture, falls with blur."""

    sign, wrong, log, allowed = 0, "fine detail has changed", True, math.log(1.05)

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        return _each(clip, _high_share)


class Grid(Guard):
    """Power at a period of so many pixels over that of the frequencies beside it: rises with a decoder's grid.

    Args:
        period: pixels; that of most video autoencoders is 8.
    """

    sign, wrong, log = -1, "a grid shows", True

    def __init__(self, period: int = 8) -> None:
        if period < 2:
            raise UserError("guard 'grid': a period is at least 2 pixels")
        self.period = period

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        return _each(clip, lambda video: _grid(luma(video), self.period))

    def check(self, prompts: Sequence[Prompt], size: VideoSize) -> None:
        if min(size.height, size.width) < 2 * self.period:
            raise Aside(f"a grid of {self.period} pixels is not seen in videos of {size.height}x{size.width}")


class Saturation(Guard):
    """Mean of the largest channel less the smallest: more than twice the base's is too much colour."""

    sign, wrong, log, allowed = -1, "colours are too strong", True, math.log(2)

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        return _each(clip, lambda video: _log((video.amax(dim=1) - video.amin(dim=1)).mean(), PLAIN))


class Contrast(Guard):
    """Standard deviation of the luma within frames: less than half or more than twice the base's is too far."""

    sign, wrong, log, allowed = 0, "contrast is off", True, math.log(2)

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        return _each(clip, lambda video: _log(luma(video).flatten(1).std(dim=1, correction=0).mean(), PLAIN))


class Clipped(Guard):
    """The share of pixel values at 0 or 1: a rise by a tenth is not to be trusted."""

    sign, wrong, limit, floor = -1, "colours are clipped", 0.10, 0.20

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        return _each(clip, lambda video: ((video <= 0) | (video >= 1)).float().mean())


def _each(clip: Clip, figure: Callable[[Tensor], Tensor]) -> Tensor:
    """A figure of every video `[F, 3, H, W]`, one after the other: of large ones there is no room for more."""
    return torch.stack([figure(video.float()) for video in clip.frames])


def _log(value: Tensor, least: float) -> Tensor:
    return value.clamp(min=least).log()


def luma(video: Tensor) -> Tensor:
    """`[F, 3, H, W]` to `[F, H, W]`."""
    return (video * video.new_tensor(LUMA).view(3, 1, 1)).sum(dim=1)


def _moves(video: Tensor, order: int) -> Tensor:
    """The mean size of the `order`-th difference of frames that are blurred over 3 x 3 pixels."""
    blurred = F.avg_pool2d(video, 3, stride=1, padding=1, count_include_pad=False)
    return blurred.diff(n=order, dim=0).abs().mean()


def _high_share(video: Tensor) -> Tensor:
    """The logarithm of the high frequencies' share of all power but the mean's, over frames."""
    grey = luma(video)
    power = torch.fft.fft2(grey - grey.mean(dim=(1, 2), keepdim=True), norm="forward").abs().square().sum(dim=0)
    down, across = (torch.fft.fftfreq(side, device=video.device).abs() for side in power.shape)
    high = (down[:, None] > HIGH) | (across > HIGH)
    return _log((power * high).sum() + NO_POWER, 0.0) - _log(power.sum() + NO_POWER, 0.0)


def _grid(grey: Tensor, period: int) -> Tensor:
    """The logarithm of the power at a period over that beside it, along both axes, of frames `[F, H, W]`."""
    at, beside = grey.new_zeros(()), grey.new_zeros(())
    for picture in (grey, grey.mT):
        power = torch.fft.rfft(picture - picture.mean(dim=-1, keepdim=True), norm="forward").abs().square()
        power, place = power.mean(dim=(0, 1)), round(picture.shape[-1] / period)
        at, beside = at + power[place], beside + (power[place - 1] + power[place + 1]) / 2
    return _log(at + NO_POWER, 0.0) - _log(beside + NO_POWER, 0.0)
