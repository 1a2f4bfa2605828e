"""The VAEs of LTX-Video and LTX-2 (diffusers' `AutoencoderKLLTXVideo`, `AutoencoderKLLTX2Video`): chosen frames at the
price of what they hang on.

The decoder looks back and ahead, some twenty latents each way, so no window of latents alone gives the whole decode's
pixels. But what looks that far are its early layers, at an eighth of the frames; those at full size see a few
neighbours. So each part of the decoder runs on the frames that the chosen ones hang on, and no others: pixels and
gradient are those of the whole decode. Latents are `[B, C, T, h, w]`, normalised; pixels `[B, n, 3, H, W]`, unclamped,
about [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vader.networks.measure import weight_dtype

TOGETHER = 4  # latents whose frames are decoded together: those of one alone cost nearly as much
DRAW = 0  # seeds what is random in a decode: each video has the same noise, so that its pixels are always the same


@dataclass(frozen=True)
class Told:
    """What decoders of 0.9.1 and later are told, and see: diffusers' `decode_timestep` and `decode_noise_scale`.

    Attributes:
        timestep: in [0, 1], of the noise that is left in the latents.
        noise: the share of fresh noise that latents are mixed with.
    """

    timestep: float = 0.05
    noise: float = 0.025


@dataclass(frozen=True)
class Part:
    """A part of the decoder, and how far it looks.

    Attributes:
        run: hidden states `[1, C, t, h, w]` and what all parts are told -> those of the next part.
        before: how many convolutions over three frames come before the frames are doubled.
        doubles: whether they are; of n there are then 2n - 1.
        after: how many such convolutions come after.
    """

    run: Callable[[Tensor, Tensor | None], Tensor]
    after: int
    before: int = 0
    doubles: bool = False

    def needs(self, wanted: range, count: int, back: int, ahead: int) -> range:
        """Which of `count` frames the wanted ones of its output hang on; a convolution looks so far back and ahead."""
        low, high = wanted.start - self.after * back, wanted.stop + self.after * ahead
        if self.doubles:
            low, high = (low + 1) // 2, high // 2 + 1
        return range(max(0, low - self.before * back), min(count, high + self.before * ahead))

    def grown(self, count: int) -> int:
        """How many frames it makes of so many, or with which one it begins."""
        return 2 * count - 1 if self.doubles else count


class FrameDecoder:
    """Decodes chosen frames of videos from all of their latents.

    Args:
        told: for VAEs that are conditioned on a timestep; None for others.
    """

    def __init__(self, vae: Any, told: Told | None = None) -> None:
        self.vae = vae
        self.told = told
        self.parts = list(self._parts())
        self.draws = any(vae.config.decoder_inject_noise)
        self.sight = (2, 0) if vae.config.decoder_causal else (1, 1)  # of a convolution over three frames

    def __call__(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        """The frames `[B, n]` of videos, each its own; None for all. See `VideoModel.decode_unclamped`."""
        count = self.vae.temporal_compression_ratio * (latents.shape[2] - 1) + 1
        chosen = [list(range(count))] * len(latents) if frames is None else frames.tolist()
        videos = zip(latents.split(1), chosen, strict=True)
        return torch.stack([self._video(scaled(self.vae, video), wanted) for video, wanted in videos])

    def windows(self, frames: int) -> list[range]:
        """The frames of some latents together: any can be decoded alone, and what they share is much."""
        step = TOGETHER * self.vae.temporal_compression_ratio
        starts = [0, *range(1 + step, frames, step)]
        return [range(start, stop) for start, stop in zip(starts, [*starts[1:], frames], strict=True)]

    def _video(self, z: Tensor, wanted: Sequence[int]) -> Tensor:
        """The wanted frames `[n, 3, H, W]` of one video's latents `[1, C, T, h, w]`, and nothing outside them."""
        first, stop = min(wanted), max(wanted) + 1
        with fixed_noise(z.device) if self.draws else nullcontext():
            pixels = self._run(self._noisy(z).to(weight_dtype(self.vae)), range(first, stop))
        return pixels[0].movedim(1, 0)[[frame - first for frame in wanted]].to(z.dtype) / 2 + 0.5

    def _noisy(self, z: Tensor) -> Tensor:
        if self.told is None:
            return z
        draw = torch.Generator().manual_seed(DRAW)
        return (1 - self.told.noise) * z + self.told.noise * torch.randn(z.shape, generator=draw).to(z)

    def _run(self, hidden: Tensor, wanted: range) -> Tensor:
        """Frames `[1, 3, n, H, W]` in [-1, 1]: the decoder's own parts, each on what it needs."""
        time, start = self._time(hidden), 0
        for part, span in zip(self.parts, self._spans(wanted, hidden.shape[2]), strict=True):
            hidden = part.run(hidden[:, :, span.start - start : span.stop - start], time)
            start = 2 * span.start if part.doubles else span.start
        return hidden[:, :, wanted.start - start : wanted.stop - start]

    def _spans(self, wanted: range, latents: int) -> list[range]:
        """What each part has to see, first to last."""
        counts = [latents]
        for part in self.parts[:-1]:
            counts.append(part.grown(counts[-1]))
        spans = []
        for part, count in zip(reversed(self.parts), reversed(counts), strict=True):
            wanted = part.needs(wanted, count, *self.sight)
            spans.append(wanted)
        return spans[::-1]

    def _time(self, hidden: Tensor) -> Tensor | None:
        """The timestep `[1]` as the parts are told it."""
        if self.told is None:
            return None
        return self.vae.decoder.timestep_scale_multiplier * hidden.new_tensor([self.told.timestep])

    # ---- the decoder's parts ----

    def _parts(self) -> Iterator[Part]:
        """The decoder's own, in the order of its `forward`. Residual blocks have two convolutions over three frames."""
        decoder = self.vae.decoder
        yield Part(lambda hidden, time: decoder.conv_in(hidden, **self.more), after=1)
        yield Part(partial(decoder.mid_block, **self.more), after=2 * len(decoder.mid_block.resnets))
        for block in decoder.up_blocks:
            up = block.upsamplers is not None
            doubles = up and block.upsamplers[0].stride[0] == 2
            before = 2 * (block.conv_in is not None) + up
            yield Part(partial(block, **self.more), after=2 * len(block.resnets), before=before, doubles=doubles)
        yield Part(self._pixels, after=1)

    @property
    def more(self) -> dict[str, bool]:
        """What the parts are told beside the timestep."""
        return {}

    def normed(self, hidden: Tensor) -> Tensor:
        """Hidden states after the decoder's last norm."""
        return self.vae.decoder.norm_out(hidden.movedim(1, -1)).movedim(-1, 1)

    def _pixels(self, hidden: Tensor, time: Tensor | None) -> Tensor:
        """What the decoder does after its blocks: a norm, the timestep, a convolution, and channels become pixels."""
        decoder, hidden = self.vae.decoder, self.normed(hidden)
        if decoder.time_embedder is not None and time is not None:
            embedded = decoder.time_embedder(
                timestep=time, resolution=None, aspect_ratio=None, batch_size=1, hidden_dtype=hidden.dtype
            )
            shift, scale = embedded.view(2, 1, -1, 1, 1, 1) + decoder.scale_shift_table[:, None, :, None, None, None]
            hidden = hidden * (1 + scale) + shift
        hidden = decoder.conv_out(decoder.conv_act(hidden), **self.more)
        p, p_t = decoder.patch_size, decoder.patch_size_t
        cells = hidden.unflatten(1, (-1, p_t, p, p))  # [1, 3, p_t, p (width), p (height), t, h, w]
        return cells.permute(0, 1, 5, 2, 6, 4, 7, 3).flatten(6, 7).flatten(4, 5).flatten(2, 3)


class LTX2FrameDecoder(FrameDecoder):
    """`FrameDecoder` of LTX-2's VAE, whose parts are told whether to look back alone, and whose norms are of channels
    where they are."""

    @property
    def more(self) -> dict[str, bool]:
        return {"causal": self.vae.config.decoder_causal}

    def normed(self, hidden: Tensor) -> Tensor:
        return self.vae.decoder.norm_out(hidden)


@contextmanager
def fixed_noise(device: torch.device) -> Iterator[None]:
    """Within, what a decoder draws itself (that of 0.9.1) is the same each time; outside, nothing has been drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(DRAW)
        yield


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
    mean, std = (values.to(latents).view(-1, 1, 1, 1) for values in (vae.latents_mean, vae.latents_std))
    return mean, std / vae.config.scaling_factor
