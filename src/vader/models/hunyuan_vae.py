"""The VAE of HunyuanVideo (diffusers' `AutoencoderKLHunyuanVideo`): chosen frames at the price of their tiles in time.

A long video is decoded in tiles of five latents, each begun three after the one before and causal in itself; where two
overlap, four frames go over from one to the next. So a frame needs one tile or two, all of whose latents have gradient:
pixels and gradient are those of the whole decode. Latents are `[B, C, T, h, w]`, scaled; pixels `[B, n, 3, H, W]`,
unclamped, about [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders import autoencoder_kl_hunyuan_video as networks
from torch import Tensor, nn

from vader.networks.measure import weight_dtype
from vader.networks.recompute import checkpoint_parts

# What is recomputed by itself: a level of the decoder as a whole would be most of it.
LAYERS = (networks.HunyuanVideoResnetBlockCausal3D, networks.HunyuanVideoUpsampleCausal3D, Attention)


def recompute_layers(vae: nn.Module) -> None:
    """Has every layer of the VAE, in place, run again in the backward pass."""
    checkpoint_parts(layer for layer in vae.modules() if isinstance(layer, LAYERS))


class TileDecoder:
    """Decodes chosen frames of videos from the tiles that they need; the VAE is diffusers' own."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        step = vae.temporal_compression_ratio
        self.step = step
        self.length = vae.tile_sample_min_num_frames // step  # latents of a tile, less the one that it is begun with
        self.stride = vae.tile_sample_stride_num_frames // step  # latents from tile to tile
        self.blend = step * (self.length - self.stride)  # frames that go over from one to the next

    def windows(self, latents: int) -> list[range]:
        """The frames that each tile alone shows or goes over to: 13 of the first, 12 of each later one."""
        count = self.step * (latents - 1) + 1
        if latents <= self.length:
            return [range(count)]
        each = self.step * self.stride
        ends = [*range(each + 1, count, each), count]
        return [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def __call__(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        """The frames `[B, n]` of videos, each its own; None for all. See `VideoModel.decode_unclamped`."""
        count = self.step * (latents.shape[2] - 1) + 1
        chosen = [list(range(count))] * len(latents) if frames is None else frames.tolist()
        rows = zip(range(len(latents)), chosen, strict=True)
        return torch.stack([self._video(latents[row : row + 1], wanted) for row, wanted in rows])

    def _video(self, latents: Tensor, wanted: Sequence[int]) -> Tensor:
        """The wanted frames `[n, 3, H, W]` of one video's latents `[1, C, T, h, w]`."""
        tiles: dict[int, Tensor] = {}
        pixels: dict[int, Tensor] = {}
        for number, window in enumerate(self.windows(latents.shape[2])):
            own = [frame for frame in window if frame in wanted]
            shared = number > 0 and any(frame - window.start < self.blend for frame in own)
            for at in [number - 1] * shared + [number] * bool(own):
                if at not in tiles:
                    tiles[at] = self._tile(latents, at)
            pixels |= {frame: self._frame(tiles, number, frame - window.start) for frame in own}
        return torch.stack([pixels[frame] for frame in wanted])

    def _tile(self, latents: Tensor, number: int) -> Tensor:
        """A tile's frames `[n, 3, H, W]`; later ones are begun with a latent whose frame is dropped."""
        start = number * self.stride
        whole = latents.shape[2] <= self.length
        own = latents if whole else latents[:, :, start : start + self.length + 1]
        z = (own / self.vae.config.scaling_factor).to(weight_dtype(self.vae))
        frames = self.vae.decoder(self.vae.post_quant_conv(z))[0].movedim(1, 0).to(latents.dtype) / 2 + 0.5
        return frames[1:] if number else frames

    def _frame(self, tiles: dict[int, Tensor], number: int, place: int) -> Tensor:
        """A tile's frame `[3, H, W]`, which the tile before has a share in where both have it."""
        if number == 0 or place >= self.blend:
            return tiles[number][place]
        share = place / self.blend
        return (1 - share) * tiles[number - 1][place - self.blend] + share * tiles[number][place]
