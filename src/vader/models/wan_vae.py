"""The causal VAE of Wan (diffusers' `AutoencoderKLWan`): chosen frames with gradient, at the price of their windows.

The decoder makes one frame of the first latent and four of each later one, from that latent and caches of those before
it. So the latents before a window only fill caches, without graph, and the window's own latents run with one: the
pixels are those of the whole decode, and gradient reaches the window's latents. Latents are `[B, C, T, h, w]`,
normalised; pixels `[B, n, 3, H, W]`, unclamped, about [0, 1].
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.autoencoders import autoencoder_kl_wan as networks
from torch import Tensor, nn

from vader.networks.measure import weight_dtype
from vader.networks.recompute import checkpoint_parts

# What is recomputed by itself: a level of the decoder as a whole would be most of it.
LAYERS = (networks.WanResidualBlock, networks.WanAttentionBlock, networks.WanResample)
Caches = list[Any]  # what each causal convolution keeps of the frames before, one after the other


def recompute_layers(vae: nn.Module) -> None:
    """Has every layer of the VAE, in place, run again in the backward pass."""
    checkpoint_parts(layer for layer in vae.modules() if isinstance(layer, LAYERS))


# ---- latents and frames ----


def frame_window(latent: int, step: int) -> range:
    """The frames that a latent becomes, where each but the first becomes `step` of them."""
    return range(1) if latent == 0 else range(step * (latent - 1) + 1, step * latent + 1)


def own_latent(frame: int, step: int) -> int:
    """The latent that becomes a frame."""
    return -(-frame // step)


def scaled(vae: Any, latents: Tensor) -> Tensor:
    """Normalised latents as the decoder takes them."""
    mean, std = _statistics(vae, latents)
    return latents * std + mean


@torch.no_grad()
def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Normalised latents `[B, C, T, h, w]` of pixels `[B, F, 3, H, W]` in [0, 1]: the mode of the posterior."""
    video = (pixels.movedim(2, 1) * 2 - 1).to(weight_dtype(vae))
    latents = vae.encode(video).latent_dist.mode().to(pixels.dtype)
    mean, std = _statistics(vae, latents)
    return (latents - mean) / std


def _statistics(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """The trained latents' mean and standard deviation, `[C, 1, 1, 1]`."""
    values = (vae.config.latents_mean, vae.config.latents_std)
    mean, std = (torch.tensor(value).to(latents).view(-1, 1, 1, 1) for value in values)
    return mean, std


# ---- decoding ----


@dataclass
class Prefix:
    """How far the last decode without graph has come, so that a video's windows one after the other cost it once.

    Attributes:
        of: the tensor that the latents are, or are a part of; the caches go when it does.
        version: how often that was changed in place, and which part of it the latents are.
        at: the next latent.
        caches: what those before have left.
    """

    of: weakref.ref[Tensor] | None = None
    version: tuple[Any, ...] = ()
    at: int = 0
    caches: Caches = field(default_factory=list)

    def take(self, latents: Tensor, start: int) -> tuple[int, Caches] | None:
        """Where to go on from to reach latent `start`; None: from the beginning."""
        known = self.of is not None and self.of() is _owner(latents) and self.version == _version(latents)
        return (self.at, self.caches) if known and self.at <= start else None

    def keep(self, latents: Tensor, at: int, caches: Caches) -> None:
        owner = _owner(latents)
        self.of, self.version, self.at, self.caches = weakref.ref(owner, self.drop), _version(latents), at, caches

    def drop(self, gone: Any = None) -> None:
        """Forgets all, unless it is of another tensor by now."""
        if gone is None or gone is self.of:
            self.of, self.caches = None, []


def _owner(latents: Tensor) -> Tensor:
    return latents if latents._base is None else latents._base


def _version(latents: Tensor) -> tuple[Any, ...]:
    return latents._version, latents.storage_offset(), latents.shape, latents.stride()


class WindowDecoder:
    """Decodes chosen frames of videos from the latents that they need.

    Args:
        vae: diffusers' `AutoencoderKLWan`, of Wan 2.1 or 2.2.
        back: so many latents before a window's own have gradient too.
    """

    def __init__(self, vae: Any, back: int = 0) -> None:
        self.vae = vae
        self.back = back
        self.step = vae.config.scale_factor_temporal
        self.prefix = Prefix()

    def __call__(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        """The frames `[B, n]` of videos, each its own; None for all. See `VideoModel.decode_unclamped`."""
        count = self.step * (latents.shape[2] - 1) + 1
        chosen = [list(range(count))] * len(latents) if frames is None else frames.tolist()
        rows = zip(range(len(latents)), chosen, strict=True)
        return torch.stack([self._video(latents[row : row + 1], wanted) for row, wanted in rows])

    def _video(self, latents: Tensor, wanted: Sequence[int]) -> Tensor:
        """The wanted frames `[n, 3, H, W]` of one video's latents `[1, C, T, h, w]`."""
        pixels: dict[int, Tensor] = {}
        for latent in sorted({own_latent(frame, self.step) for frame in wanted}):
            pixels |= zip(frame_window(latent, self.step), self._window(latents, latent), strict=True)
        return torch.stack([pixels[frame] for frame in wanted])

    def _window(self, latents: Tensor, latent: int) -> Tensor:
        """A latent's frames `[n, 3, H, W]`; gradient reaches it and `back` latents before, whatever else is decoded."""
        start = max(latent - self.back, 0) if torch.is_grad_enabled() else latent
        caches = self._filled(latents, start)
        for at in range(start, latent + 1):
            frames, caches = self._step(latents, at, caches)
        if not torch.is_grad_enabled():
            self.prefix.keep(latents, latent + 1, caches)
        return frames[0].movedim(1, 0)

    @torch.no_grad()
    def _filled(self, latents: Tensor, start: int) -> Caches:
        """The caches that the latents before `start` leave, without graph."""
        at, caches = self.prefix.take(latents, start) or (0, empty_caches(self.vae))
        for latent in range(at, start):
            _, caches = self._step(latents, latent, caches)
        self.prefix.keep(latents, start, caches)
        return caches

    def _step(self, latents: Tensor, at: int, caches: Caches) -> tuple[Tensor, Caches]:
        """One latent's frames `[1, 3, n, H, W]`, and the caches for the next."""
        return decode_chunk(self.vae, latents[:, :, at : at + 1], caches, first=at == 0)


def empty_caches(vae: Any) -> Caches:
    """What the decoder has kept before the first latent."""
    return [None] * sum(isinstance(layer, networks.WanCausalConv3d) for layer in vae.decoder.modules())


def decode_chunk(vae: Any, latents: Tensor, caches: Caches, first: bool) -> tuple[Tensor, Caches]:
    """The frames `[B, 3, n, H, W]` of latents after those that left the caches, and the caches for the next.

    As the class's own `decode`, but for its clamp to [-1, 1], which would end the gradient of saturated pixels.

    Args:
        latents: `[B, C, T, h, w]`; the video's first one comes alone.
        caches: stay as they are.
    """
    z = scaled(vae, latents).to(weight_dtype(vae))
    left = list(caches)
    out = vae.decoder(vae.post_quant_conv(z), feat_cache=left, feat_idx=[0], first_chunk=first)
    if vae.config.patch_size is not None:
        out = networks.unpatchify(out, patch_size=vae.config.patch_size)
    return out.to(latents.dtype) / 2 + 0.5, left
