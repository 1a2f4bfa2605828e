"""What families with random weights share: networks drawn on a device, and what stands for text encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vader.models.base import VideoModel
from vader.nouns import Condition, Prompt, VideoSize

PROMPT_TOKENS = 32  # T5's of a prompt of some twenty words


class Drawn(VideoModel):
    """A family whose weights are drawn: its `checkpoint` is a device, and nothing has to be found."""

    @classmethod
    def locate(cls, checkpoint: str) -> str:
        """See `VideoModel.locate`."""
        return checkpoint


def drawn(device: str, dtype: torch.dtype, **makers: Callable[[], Any]) -> dict[str, Any]:
    """Networks by component name, made on the device, frozen and in `dtype` but for what their class keeps in float32,
    as they are loaded."""
    with torch.device(device):
        networks = {name: make() for name, make in makers.items()}
    for network in networks.values():
        network.to(dtype)
        kept = getattr(network, "_keep_in_fp32_modules", None) or ()
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if set(kept) & set(name.split(".")):
                tensor.data = tensor.data.float()
    return {name: network.eval().requires_grad_(False) for name, network in networks.items()}


class RandomPictures(VideoModel):
    """Before a family that starts from pictures: they are random too, so prompts are texts."""

    takes_images = False

    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """See the family's, of random pictures."""
        pictures = torch.rand(len(prompts), 3, size.height, size.width, device=self.device)
        return super().encode(prompts, size, pictures)  # type: ignore[safe-super]


class RandomText:
    """Arbitrary features of `width` channels for T5-XXL's, whose billions of parameters take no part in a step."""

    def __init__(self, width: int, tokens: int = PROMPT_TOKENS) -> None:
        self.width = width
        self.tokens = tokens

    def prepare(self, texts: Sequence[str], device: torch.device) -> None:
        """As `TextEmbedder`: there is nothing to encode."""

    def __call__(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """As `TextEmbedder`: features `[B, L, width]`, and where there are tokens, `[B, L]`."""
        features = torch.randn(len(texts), self.tokens, self.width, device=device)
        return features, torch.ones(features.shape[:2], dtype=torch.bool, device=device)
