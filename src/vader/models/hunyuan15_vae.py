"""The causal VAE of HunyuanVideo 1.5 (diffusers' `AutoencoderKLHunyuanVideo15`): chosen frames, latent by latent.

The class decodes a video as a whole, and its attention has a mask of all places by all. But nothing in the decoder
looks ahead: a latent's frames, one of the first and four of each later one, hang on it and on what its layers saw of
those before, two frames a convolution and the attention's keys and values. So that is kept, and no mask is needed.
Latents are `[B, C, T, h, w]`, scaled; pixels `[B, n, 3, H, W]`, unclamped, about [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.models.autoencoders import autoencoder_kl_hunyuanvideo15 as networks
from torch import Tensor, nn
from torch.nn import functional as F

from vader.models.causal_vae import CausalDecoder, frame_window
from vader.networks.measure import weight_dtype
from vader.networks.recompute import Recomputed, checkpoint_parts

# What is recomputed by itself: a level of the decoder as a whole would be most of it.
LAYERS = (networks.HunyuanVideo15ResnetBlock, networks.HunyuanVideo15AttnBlock, networks.HunyuanVideo15Upsample)
Seen = Any  # what a layer keeps of the latents before; None: there are none
Run = Callable[[Any, Tensor, Seen], tuple[Tensor, Seen]]  # layer, hidden states `[1, C, t, h, w]`, what it has seen


def recompute_layers(vae: nn.Module) -> None:
    """Has every layer of the VAE, in place, run again in the backward pass."""
    checkpoint_parts(layer for layer in vae.modules() if isinstance(layer, LAYERS))


class WindowDecoder(CausalDecoder):
    """Decodes chosen frames of videos from the latents that they need; a latent is a window.

    Args:
        vae: diffusers' `AutoencoderKLHunyuanVideo15`.
        back: so many latents before a window's own have gradient too.
    """

    def __init__(self, vae: Any, back: int = 0) -> None:
        super().__init__(vae, back)
        self.layers = list(_layers(vae.decoder))

    def windows(self, latents: int) -> list[range]:
        """The first frame, and four of each later latent."""
        return [frame_window(latent, self.vae.temporal_compression_ratio) for latent in range(latents)]

    def fresh(self) -> list[Seen]:
        return [None] * len(self.layers)

    def step(self, latents: Tensor, window: int, caches: list[Seen]) -> tuple[Tensor, list[Seen]]:
        """See `CausalDecoder.step`."""
        own = latents[:, :, window : window + 1] / self.vae.config.scaling_factor
        hidden, left = own.to(weight_dtype(self.vae)), []
        for (run, layer), seen in zip(self.layers, caches, strict=True):
            again = isinstance(layer.forward, Recomputed)
            hidden, kept = (Recomputed(run) if again else run)(layer, hidden, seen)
            left.append(kept)
        return hidden[0].movedim(1, 0).to(latents.dtype) / 2 + 0.5, left


@torch.no_grad()
def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Scaled latents `[B, C, T, h, w]` of pixels `[B, F, 3, H, W]` in [0, 1]: the mode of the posterior.

    One video after the other: the class's mask does not fit several (as of diffusers 0.42).
    """
    videos = (pixels.movedim(2, 1) * 2 - 1).to(weight_dtype(vae)).split(1)
    latents = torch.cat([vae.encode(video).latent_dist.mode() for video in videos])
    return latents.to(pixels.dtype) * vae.config.scaling_factor


# ---- the decoder's layers, as its classes run them on a whole video ----


def _layers(decoder: Any) -> Iterator[tuple[Run, Any]]:
    """All of them, in the order of its `forward`."""
    first, *others = decoder.mid_block.resnets
    yield _first, decoder
    yield _residual, first
    for attention, block in zip(decoder.mid_block.attentions, others, strict=True):
        yield _attention, attention
        yield _residual, block
    for level in decoder.up_blocks:
        yield from ((_residual, block) for block in level.resnets)
        yield from ((_grown, layer) for layer in level.upsamplers or ())
    yield _last, decoder


def _convolved(layer: Any, hidden: Tensor, seen: Seen) -> tuple[Tensor, Seen]:
    """A convolution over a frame and those before, as many as it looks back to; before the first it sees that again."""
    *sides, back, _ = layer.time_causal_padding
    before = hidden[:, :, :1].expand(-1, -1, back, -1, -1) if seen is None else seen
    frames = torch.cat([before, hidden], dim=2)
    kept = frames[:, :, -back:].clone()  # a part of them would keep all
    return layer.conv(F.pad(frames, (*sides, 0, 0), mode=layer.pad_mode)), kept


def _first(decoder: Any, hidden: Tensor, seen: Seen) -> tuple[Tensor, Seen]:
    widened, kept = _convolved(decoder.conv_in, hidden, seen)
    return widened + hidden.repeat_interleave(decoder.repeat, dim=1), kept


def _last(decoder: Any, hidden: Tensor, seen: Seen) -> tuple[Tensor, Seen]:
    return _convolved(decoder.conv_out, decoder.conv_act(decoder.norm_out(hidden)), seen)


def _residual(block: Any, hidden: Tensor, seen: Seen) -> tuple[Tensor, Seen]:
    one, two = seen or (None, None)
    inner, one = _convolved(block.conv1, block.nonlinearity(block.norm1(hidden)), one)
    inner, two = _convolved(block.conv2, block.nonlinearity(block.norm2(inner)), two)
    straight = hidden if block.conv_shortcut is None else block.conv_shortcut(hidden)
    return inner + straight, (one, two)


def _attention(block: Any, hidden: Tensor, seen: Seen) -> tuple[Tensor, Seen]:
    """The places of a frame attend to each other and to all of the frames before: keys and values `[1, 1, L, C]`."""
    normed = block.norm(hidden)
    parts = (block.to_q, block.to_k, block.to_v)
    query, *own = (part(normed).flatten(2).transpose(1, 2)[:, None].contiguous() for part in parts)
    key, value = own if seen is None else (torch.cat(pair, dim=2) for pair in zip(seen, own, strict=True))
    found = F.scaled_dot_product_attention(query, key, value)
    return block.proj_out(found[:, 0].transpose(1, 2).view_as(hidden)) + hidden, (key, value)


def _grown(layer: Any, hidden: Tensor, seen: Seen) -> tuple[Tensor, Seen]:
    """Twice as high and wide, and where the layer doubles frames twice as many, but of the video's first one."""
    made, kept = _convolved(layer.conv, hidden, seen)
    if not layer.add_temporal_upsample:
        return _unpacked(made, 1) + _unpacked(hidden.repeat_interleave(layer.repeats, dim=1), 1), kept
    if seen is None:
        made = _unpacked(made, 1)
        half = made[:, : made.shape[1] // 2]  # the other frame's channels
        return half + _unpacked(hidden, 1).repeat_interleave(layer.repeats // 2, dim=1), kept
    return _unpacked(made, 2) + _unpacked(hidden, 2).repeat_interleave(layer.repeats, dim=1), kept


def _unpacked(packed: Tensor, times: int) -> Tensor:
    """`[1, times 2 2 C, t, h, w]` -> `[1, C, times t, 2h, 2w]`."""
    cells = packed.unflatten(1, (times, 2, 2, -1))  # [1, times, 2 (height), 2 (width), C, t, h, w]
    return cells.permute(0, 4, 5, 1, 6, 2, 7, 3).flatten(6, 7).flatten(4, 5).flatten(2, 3)
