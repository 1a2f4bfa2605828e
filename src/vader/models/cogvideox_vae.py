"""The causal VAE of CogVideoX (diffusers' `AutoencoderKLCogVideoX`): chosen frames at the price of their windows.

The decoder takes the first three latents together, then two by two, with caches of what was before: nine frames, then
eight by eight. Its group norms look at all that it takes together, so a window is not to be cut. Latents are
`[B, T, C, h, w]`, T odd, of about unit variance; pixels `[B, n, 3, H, W]`, unclamped, about [0, 1].
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders import autoencoder_kl_cogvideox as networks
from torch import Tensor, nn

from vader.models.causal_vae import CausalDecoder
from vader.networks.measure import weight_dtype
from vader.networks.recompute import checkpoint_parts

TOGETHER = 2  # latents that the decoder takes at once, and one more at first
# What is recomputed by itself: a level would be most of the decoder, and norms are half of what a residual block keeps.
LAYERS = (networks.CogVideoXResnetBlock3D, networks.CogVideoXUpsample3D, networks.CogVideoXSpatialNorm3D)
Caches = dict[str, Any]  # what each causal convolution keeps of the frames before, by its name


def recompute_layers(vae: nn.Module) -> None:
    """Has every layer of the VAE, in place, run again in the backward pass."""
    checkpoint_parts(layer for layer in vae.modules() if isinstance(layer, LAYERS))


class WindowDecoder(CausalDecoder):
    """Decodes chosen frames of videos from the latents that they need.

    Args:
        vae: diffusers' `AutoencoderKLCogVideoX`.
        back: so many windows before a frame's own have gradient too.
    """

    def __init__(self, vae: Any, back: int = 0) -> None:
        super().__init__(vae, back, frame_axis=1)
        self.frames = TOGETHER * vae.config.temporal_compression_ratio  # of every window but the first

    def windows(self, latents: int) -> list[range]:
        """Of one latent one frame; else nine frames, and eight of every two latents more."""
        later = range(1, (latents - 1) // TOGETHER)
        first = self.frames + 1 if latents > 1 else 1
        return [range(first), *(range(1 + self.frames * at, 1 + self.frames * (at + 1)) for at in later)]

    def fresh(self) -> Caches:
        return {}

    def step(self, latents: Tensor, window: int, caches: Caches) -> tuple[Tensor, Caches]:
        """See `CausalDecoder.step`."""
        start = 1 + TOGETHER * window if window else 0
        own = latents[:, start : 1 + TOGETHER * (window + 1)].movedim(1, 2)
        z = (own / self.vae.config.scaling_factor).to(weight_dtype(self.vae))
        out, left = self.vae.decoder(z, conv_cache=caches)
        return out[0].movedim(1, 0).to(latents.dtype) / 2 + 0.5, left


@torch.no_grad()
def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Latents `[B, T, C, h, w]` of the VAE's own scale of pixels `[B, F, 3, H, W]` in [0, 1]: the posterior's mode."""
    video = (pixels.movedim(2, 1) * 2 - 1).to(weight_dtype(vae))
    return vae.encode(video).latent_dist.mode().to(pixels.dtype).movedim(1, 2)
