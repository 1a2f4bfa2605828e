"""Causal video VAEs by windows: chosen frames with gradient, at the price of what they are decoded from.

Such a decoder makes a few frames, a window, from a few latents and from caches of all latents before. So the windows
before one that is wanted only fill caches, without graph, and its own latents run with one: the pixels are those of
the whole decode, and gradient reaches the window's latents. Families say which windows there are, and run one.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vader.errors import UserError


@dataclass
class Prefix:
    """How far the last decode without graph has come, so that a video's windows one after the other cost it once.

    Attributes:
        of: the tensor that the latents are, or are a part of; the caches go when it does.
        version: how often that was changed in place, and which part of it the latents are.
        at: the next window.
        caches: what those before have left.
    """

    of: weakref.ref[Tensor] | None = None
    version: tuple[Any, ...] = ()
    at: int = 0
    caches: Any = None

    def take(self, latents: Tensor, start: int) -> tuple[int, Any] | None:
        """Where to go on from to reach window `start`; None: from the beginning."""
        known = self.of is not None and self.of() is _owner(latents) and self.version == _version(latents)
        return (self.at, self.caches) if known and self.at <= start else None

    def keep(self, latents: Tensor, at: int, caches: Any) -> None:
        owner = _owner(latents)
        self.of, self.version, self.at, self.caches = weakref.ref(owner, self.drop), _version(latents), at, caches

    def drop(self, gone: Any = None) -> None:
        """Forgets all, unless it is of another tensor by now."""
        if gone is None or gone is self.of:
            self.of, self.caches = None, None


def _owner(latents: Tensor) -> Tensor:
    return latents if latents._base is None else latents._base


def _version(latents: Tensor) -> tuple[Any, ...]:
    return latents._version, latents.storage_offset(), latents.shape, latents.stride()


class CausalDecoder(ABC):
    """Decodes chosen frames of videos from the latents that they need.

    Args:
        vae: diffusers' network.
        back: so many windows before a frame's own have gradient too.
        frame_axis: which axis of the latents counts frames.
    """

    def __init__(self, vae: Any, back: int = 0, frame_axis: int = 2) -> None:
        self.vae = vae
        self.back = back
        self.frame_axis = frame_axis
        self.prefix = Prefix()

    @abstractmethod
    def windows(self, latents: int) -> list[range]:
        """The frames of every window of a video of so many latents."""

    @abstractmethod
    def fresh(self) -> Any:
        """The caches before the first window."""

    @abstractmethod
    def step(self, latents: Tensor, window: int, caches: Any) -> tuple[Tensor, Any]:
        """One window's frames `[n, 3, H, W]` of one video's latents `[1, ...]`, about [0, 1] and unclamped, and the
        caches for the next; those given stay as they are."""

    def __call__(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        """The frames `[B, n]` of videos, each its own; None for all. See `VideoModel.decode_unclamped`."""
        count = self.windows(latents.shape[self.frame_axis])[-1].stop
        chosen = [list(range(count))] * len(latents) if frames is None else frames.tolist()
        rows = zip(range(len(latents)), chosen, strict=True)
        return torch.stack([self._video(latents[row : row + 1], wanted) for row, wanted in rows])

    def _video(self, latents: Tensor, wanted: Sequence[int]) -> Tensor:
        """The wanted frames `[n, 3, H, W]` of one video's latents `[1, ...]`."""
        pixels: dict[int, Tensor] = {}
        for window, frames in enumerate(self.windows(latents.shape[self.frame_axis])):
            if not set(frames).isdisjoint(wanted):
                pixels |= zip(frames, self._window(latents, window), strict=True)
        return torch.stack([pixels[frame] for frame in wanted])

    def _window(self, latents: Tensor, window: int) -> Tensor:
        """A window's frames `[n, 3, H, W]`; gradient reaches its latents and those of `back` windows before, whatever
        else is decoded."""
        start = max(window - self.back, 0) if torch.is_grad_enabled() else window
        caches = self._filled(latents, start)
        for at in range(start, window + 1):
            frames, caches = self.step(latents, at, caches)
        if not torch.is_grad_enabled():
            self.prefix.keep(latents, window + 1, caches)
        return frames

    @torch.no_grad()
    def _filled(self, latents: Tensor, start: int) -> Any:
        """The caches that the windows before `start` leave, without graph."""
        at, caches = self.prefix.take(latents, start) or (0, self.fresh())
        for window in range(at, start):
            _, caches = self.step(latents, window, caches)
        self.prefix.keep(latents, start, caches)
        return caches


def frame_window(latent: int, step: int) -> range:
    """The frames that a latent becomes, where each but the first becomes `step` of them."""
    return range(1) if latent == 0 else range(step * (latent - 1) + 1, step * latent + 1)


def check_back(back: int) -> None:
    """Raises `UserError` if the option `back` is below 0."""
    if back < 0:
        raise UserError(f"model.options.back is {back}: it counts what is decoded before a frame's own, 0 or more")
