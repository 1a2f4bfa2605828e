"""The causal VAE of Wan (diffusers' `AutoencoderKLWan`): chosen frames with gradient, at the price of their windows.

The decoder makes one frame of the first latent and four of each later one, from that latent and caches of those before
it. Latents are `[B, C, T, h, w]`, normalised; pixels `[B, n, 3, H, W]`, unclamped, about [0, 1].
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders import autoencoder_kl_wan as networks
from torch import Tensor, nn

from vader.models.causal_vae import CausalDecoder, frame_window
from vader.networks.measure import weight_dtype
from vader.networks.recompute import checkpoint_parts

# What is recomputed by itself: a level of the decoder as a whole would be most of it.
LAYERS = (networks.WanResidualBlock, networks.WanAttentionBlock, networks.WanResample)
Caches = list[Any]  # what each causal convolution keeps of the frames before, one after the other


def recompute_layers(vae: nn.Module) -> None:
    """Has every layer of the VAE, in place, run again in the backward pass."""
    checkpoint_parts(layer for layer in vae.modules() if isinstance(layer, LAYERS))


# ---- latents ----


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


class WindowDecoder(CausalDecoder):
    """Decodes chosen frames of videos from the latents that they need; a latent is a window.

    Args:
        vae: diffusers' `AutoencoderKLWan`, of Wan 2.1 or 2.2.
        back: so many latents before a window's own have gradient too.
    """

    def windows(self, latents: int) -> list[range]:
        """The first frame, and some of each later latent."""
        return [frame_window(latent, self.vae.config.scale_factor_temporal) for latent in range(latents)]

    def fresh(self) -> Caches:
        return empty_caches(self.vae)

    def step(self, latents: Tensor, window: int, caches: Caches) -> tuple[Tensor, Caches]:
        """See `CausalDecoder.step`."""
        frames, left = decode_chunk(self.vae, latents[:, :, window : window + 1], caches, first=window == 0)
        return frames[0].movedim(1, 0), left


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
