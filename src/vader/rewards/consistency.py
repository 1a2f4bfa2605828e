"""Subject consistency: how alike a video's frames are in the eyes of an image encoder (VBench, arXiv 2311.17982).

The encoder is DINO's, as VBench has it, a newer one of its kind, or CLIP's. A still video is perfectly consistent, and
alone this reward leads there: beside it stands one that a still video does not please.

Shapes: B videos, F frames, N = B * F images, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from vader.errors import UserError
from vader.files.hub import from_pretrained, load_pretrained, resolve
from vader.nouns import Clip, Prompt
from vader.rewards.base import Reward
from vader.rewards.clip import load_image_tower
from vader.rewards.needs import AllFrames
from vader.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, Resize, normalize, resizer

TINY = "hps"  # of the tiny world's encoders the one that sees damage best
SIZE = 224  # pixels a side, at which DINO is used; version 2's settings name a larger one, of its last training
DINO = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")  # transformers' names of the kind


class Consistency(Reward):
    """How alike a video's frames are: the mean cosine of an image encoder's features (VBench's subject consistency)."""

    needs = AllFrames(least=2)
    sensible_range = (0.7, 1.0)
    alone = "videos that stand still"

    def __init__(
        self,
        checkpoint: str = "facebook/dino-vitb16",
        to: Literal["both", "first", "previous"] = "both",
        resize: Resize = "squash",
    ) -> None:
        """
        Args:
            checkpoint: `tiny`, a folder, or a hub id of a DINO (v1, v2, v3) or a CLIP.
            to: what each frame after the first is compared with: the first frame, the one before it, or the mean of
                both, as VBench does.
            resize: `squash` or `pad` to see the whole frame, `crop` to see its middle.

        Raises:
            UserError: weights are missing, or the network is none of these.
        """
        super().__init__()
        self.tower = load_tower(resolve(checkpoint, TINY), resize)
        self.to_first, self.to_previous = to != "previous", to != "first"

    def score(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        features = self.tower(clip.frames.flatten(0, 1)).unflatten(0, clip.frames.shape[:2])
        later, found = features[:, 1:], []
        if self.to_first:
            found.append(similarity(later, features[:, :1]))
        if self.to_previous:
            found.append(similarity(later, features[:, :-1]))
        return torch.stack(found).mean(dim=(0, 2))

    def to_precision(self, dtype: torch.dtype) -> Consistency:
        self.tower.to(dtype)
        return self


def similarity(features: Tensor, others: Tensor) -> Tensor:
    """Cosine of features of length 1, and 0 for those that point apart, as VBench counts."""
    return (features * others).sum(dim=-1).clamp(min=0.0)


class DinoTower(nn.Module):
    """Images `[N, 3, H, W]` in [0, 1] -> the class token's features `[N, D]` of length 1."""

    def __init__(self, model: Any, resize: str) -> None:
        super().__init__()
        self.model = model
        self.size: int = min(model.config.image_size, SIZE)
        self.resize = resizer(resize)

    def forward(self, images: Tensor) -> Tensor:
        pixels = normalize(self.resize(images, self.size), IMAGENET_MEAN, IMAGENET_STD)
        tokens = self.model(pixel_values=pixels.to(self.model.dtype)).last_hidden_state
        return F.normalize(tokens[:, 0].to(images.dtype), dim=-1)


def load_tower(source: str, resize: str) -> nn.Module:
    """The image encoder of a folder or hub id: of the DINO kind, or CLIP's image tower.

    Raises:
        UserError: it cannot be loaded, or is of no such kind.
    """
    kind = from_pretrained(AutoConfig, source, "image encoder", trust_remote_code=False).model_type
    if kind.startswith("clip"):
        return load_image_tower(source, resize, TINY)
    if kind not in DINO:
        raise UserError(f"{source} is a {kind}: reward 'consistency' takes a DINO ({', '.join(DINO)}) or a CLIP")
    options: dict[str, Any] = {"add_pooling_layer": False} if kind == "vit" else {}  # DINO was trained without it
    return DinoTower(load_pretrained(AutoModel, source, "DINO", **options), resize)
