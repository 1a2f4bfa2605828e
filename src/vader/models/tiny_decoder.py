"""Tiny decoders of videos (TAEHV, https://github.com/madebyollin/taehv): nearly a VAE's frames, for little work.

In go final latents and chosen frames, out come their pixels, in a model's own words. The network is one of images, but
for nine blocks that see the frame before as well and layers that make two frames of one. So a frame hangs on eight
latents at most: every layer runs on what the chosen frames need of it and on nothing else, and pixels and gradient are
those of the whole decode, wherever in the video the frames are.

Shapes: T latents and n frames of one video: `[T, C, h, w]`, `[n, 3, H, W]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vader.errors import UserError
from vader.files.paths import user_path
from vader.files.weights import fill, load_tensors
from vader.models.base import VideoModel
from vader.networks.measure import weight_dtype
from vader.nouns import VideoSize

TOGETHER = 2  # latents whose frames are decoded together: what they need of others is much of one's work


# ---- the network ----


@dataclass(frozen=True)
class Layout:
    """What the published networks differ in.

    Attributes:
        channels: of the latents.
        grows: how many frames each of the three levels makes of one.
        patch: so many pixels a side are channels of the last layer.
        widths: channels, each at twice the height and width of the one before.
    """

    channels: int = 16
    grows: tuple[int, ...] = (1, 2, 2)
    patch: int = 1
    widths: tuple[int, ...] = (256, 128, 64, 64)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], label: str) -> Layout:
        """Of a released file's weights. Raises `UserError` if its layers are not there."""
        try:
            widths = tuple(len(weights[f"decoder.{at}.weight"]) for at in (1, 8, 14, 20))
            grown = (len(weights[f"decoder.{at}.conv.weight"]) for at in (7, 13, 19))
            grows = tuple(made // width for made, width in zip(grown, widths, strict=False))
            first, last = weights["decoder.1.weight"], weights["decoder.22.weight"]
            return cls(first.shape[1], grows, isqrt(len(last) // 3), widths)
        except (KeyError, IndexError) as error:
            raise UserError(f"{label} is no tiny decoder of videos: it has no layers of TAEHV's names") from error


# By the names of their files.
RELEASES = {
    "taehv": Layout(),
    "taecvx": Layout(),
    "taew2_1": Layout(),
    "taew2_2": Layout(48, patch=2),
    "taehv1_5": Layout(32, patch=2),
}


class Bound(nn.Module):
    """Latents softly bounded to ±3."""

    def forward(self, latents: Tensor) -> Tensor:
        return 3 * torch.tanh(latents / 3)


class Memory(nn.Module):
    """A residual block that sees the frame before beside each frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = nn.Conv2d(2 * width, width, 3, padding=1)
        narrow = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.conv = nn.Sequential(wide, nn.ReLU(), next(narrow), nn.ReLU(), next(narrow))

    def forward(self, frames: Tensor, before: Tensor) -> Tensor:
        return F.relu(self.conv(torch.cat([frames, before], dim=1)) + frames)


class Grow(nn.Module):
    """Makes `times` frames of each."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.times = times
        self.conv = nn.Conv2d(width, width * times, 1, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        return self.conv(frames).unflatten(1, (self.times, -1)).flatten(0, 1)


class TinyDecoder(nn.Module):
    """The decoder of a released file; its state dict has the file's names."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.dropped = prod(layout.grows) - 1  # frames of the first latent, which is one: they come before the video
        widths = layout.widths
        layers: list[nn.Module] = [Bound(), nn.Conv2d(layout.channels, widths[0], 3, padding=1), nn.ReLU()]
        for (width, narrower), times in zip(pairwise(widths), layout.grows, strict=True):
            layers += [Memory(width) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), Grow(width, times)]
            layers += [nn.Conv2d(width, narrower, 3, padding=1, bias=False)]
        layers += [nn.ReLU(), nn.Conv2d(widths[-1], 3 * layout.patch**2, 3, padding=1)]
        self.decoder = nn.ModuleList(layers)

    def forward(self, latents: Tensor, frames: range) -> Tensor:
        """These frames of one video's latents, about [0, 1] and unclamped."""
        spans = self._spans(range(frames.start + self.dropped, frames.stop + self.dropped))
        hidden = latents[spans[0].start : spans[0].stop]
        for layer, (given, made) in zip(self.decoder, pairwise(spans), strict=True):
            hidden = _run(layer, hidden, given, made)
        return F.pixel_shuffle(hidden, self.layout.patch)

    def _spans(self, wanted: range) -> list[range]:
        """What every layer is given, first to last, to make what is wanted of the last."""
        spans = [wanted]
        for layer in reversed(self.decoder):
            spans.append(_needed(layer, spans[-1]))
        return spans[::-1]


def _needed(layer: nn.Module, made: range) -> range:
    """Which frames a layer needs to make these."""
    if isinstance(layer, Memory):
        return range(max(0, made.start - 1), made.stop)
    if isinstance(layer, Grow):
        return range(made.start // layer.times, -(-made.stop // layer.times))
    return made


def _run(layer: nn.Module, hidden: Tensor, given: range, made: range) -> Tensor:
    """What a layer makes of the frames that it is given."""
    if isinstance(layer, Memory):
        first = [torch.zeros_like(hidden[:1])] if made.start == 0 else []  # before the first latent there is nothing
        return layer(hidden[made.start - given.start :], torch.cat([*first, hidden[:-1]]))
    out = layer(hidden)
    if isinstance(layer, Grow):
        start = given.start * layer.times
        out = out[made.start - start : made.stop - start]
    return out


# ---- a file ----


def load_tiny_decoder(file: str, dtype: torch.dtype = torch.float32) -> TinyDecoder:
    """A released file's decoder, `.pth` or `.safetensors`, on the CPU: frozen, in eval mode.

    Raises:
        UserError: there is no such file, or it holds anything but the weights of such a network.
    """
    path, label = user_path(file, "tiny decoder"), f"tiny decoder {file!r}"
    if not path.is_file():
        raise UserError(f"{label} is no file here: name one of https://github.com/madebyollin/taehv, as taew2_1.pth")
    weights = load_tensors(path)
    layout = Layout.of(weights, label)
    own = {name: weight for name, weight in weights.items() if not name.startswith("encoder.")}
    with torch.device("meta"):
        network = TinyDecoder(layout)
    return fill(network, own, dtype, label)


# ---- in a model's place ----


class TinyVideos:
    """Decodes a model's final latents as the model does (`VideoModel.windows`, `decode_unclamped`), by a tiny decoder.

    Raises:
        UserError: the decoder is for latents of another kind, or the family has none.
    """

    def __init__(self, model: VideoModel, network: TinyDecoder) -> None:
        self.model = model
        self.network = network
        self._check()

    def _check(self) -> None:
        size, layout = self.model.check_size, self.network.layout
        latents = self.model.tiny_latents(torch.empty(1, *self.model.noise_shape(size), device="meta"))
        _, count, channels, height, _ = latents.shape
        if channels != layout.channels:
            raise UserError(
                f"model.decoder is for latents of {layout.channels} channels, and this model's have {channels}: "
                "name the file that is made for it"
            )
        made = self._frames(count), height * 2 ** len(layout.grows) * layout.patch
        if made != (size.frames, size.height):
            raise UserError(
                f"model.decoder makes {made[0]} frames of {made[1]} rows where this model makes {size.frames} of "
                f"{size.height}: name the file that is made for it"
            )

    @property
    def device(self) -> torch.device:
        return self.model.device

    def noise_shape(self, size: VideoSize) -> Any:
        """See `VideoModel.noise_shape`."""
        return self.model.noise_shape(size)

    def windows(self, size: VideoSize) -> Sequence[range]:
        """The frames of some latents together: any can be decoded alone, and what they share is much."""
        return self._windows(size.frames)

    def decode_unclamped(self, latents: Any, frames: Tensor | None = None) -> Tensor:
        """See `VideoModel.decode_unclamped`."""
        given = self.model.tiny_latents(latents)
        count = self._frames(given.shape[1])
        chosen = [list(range(count))] * len(given) if frames is None else frames.tolist()
        videos = zip(given.to(weight_dtype(self.network)), chosen, strict=True)
        return torch.stack([self._video(video, wanted) for video, wanted in videos]).to(given.dtype)

    def _frames(self, latents: int) -> int:
        """Of so many latents."""
        return (self.network.dropped + 1) * (latents - 1) + 1

    def _windows(self, frames: int) -> list[range]:
        step = TOGETHER * (self.network.dropped + 1)
        return [range(start, stop) for start, stop in pairwise([0, *range(1 + step, frames, step), frames])]

    def _video(self, latents: Tensor, wanted: Sequence[int]) -> Tensor:
        """The wanted frames of one video's latents; of each window no more than lies between them."""
        pixels: dict[int, Tensor] = {}
        for window in self._windows(self._frames(len(latents))):
            if own := [frame for frame in wanted if frame in window]:
                span = range(min(own), max(own) + 1)
                pixels |= zip(span, self.network(latents, span), strict=True)
        return torch.stack([pixels[frame] for frame in wanted])
