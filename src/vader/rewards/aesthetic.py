"""The LAION aesthetic predictor: how pleasing people find an image, about 1 to 10, blind to the prompt.

Images pass a CLIP image tower and a small head: a stack of linear layers without activations, read
from the released file by its shapes (improved-aesthetic-predictor, `sac+logos+ava1-l14-linearMSE`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from vader.errors import UserError
from vader.rewards.base import FrameReward
from vader.rewards.clip import load_image_tower
from vader.rewards.preprocess import Resize
from vader.rewards.weights import TINY, find_file, load_tensors

HEAD = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"  # a third party's copy of LAION's file
TARGET_SCALE = 0.1  # the reference code's factor on the distance to a target


class Aesthetic(FrameReward):
    """How pleasing an image looks (LAION aesthetic predictor V2 on CLIP ViT-L/14), about 1 to 10."""

    sensible_range = (1.0, 10.0)

    def __init__(
        self,
        checkpoint: str = "openai/clip-vit-large-patch14",
        head: str | None = None,
        target: float | None = None,
        resize: Resize = "crop",
    ) -> None:
        """
        Args:
            checkpoint: the CLIP: `tiny`, a folder, or a hub id.
            head: the predictor: `tiny`, a file (.pth or .safetensors), or a hub file `owner/repo/file`.
                None: the one that belongs to the checkpoint.
            target: None rewards the score itself; a number rewards `-0.1 * |score - target|`, as the paper's
                code does with 10 (its gradient is 0.1 of the score's, and vanishes at the target).
            resize: `crop` as CLIP was trained, or `squash` as the paper's code does.

        Raises:
            UserError: weights are missing, or head and CLIP don't fit together.
        """
        super().__init__()
        self.image = load_image_tower(checkpoint, resize)
        head = head or (TINY if checkpoint == TINY else HEAD)
        self.head = linear_stack(load_tensors(find_file(head, "aesthetic_head.safetensors")), head)
        self.target = target
        if target is not None:
            low, high = self.sensible_range
            self.sensible_range = (-TARGET_SCALE * max(target - low, high - target), 0.0)
        if self.head[0].in_features != self.image.width:
            raise UserError(
                f"the aesthetic head {head} takes {self.head[0].in_features} features and CLIP {checkpoint} gives "
                f"{self.image.width}: use the CLIP the head was trained on"
            )

    def score_frames(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        score = self.head(self.image(images)).squeeze(-1)
        return score if self.target is None else -TARGET_SCALE * (score - self.target).abs()

    def to_precision(self, dtype: torch.dtype) -> Aesthetic:
        self.image.to(dtype)
        return self


def linear_stack(tensors: dict[str, Tensor], label: str = "the file") -> nn.Sequential:
    """Linear layers from `layers.<n>.weight` and `.bias`, in the order of n (dropouts between them left gaps in n).

    Raises:
        UserError: there are none, or they don't fit one another.
    """
    numbers = sorted(int(name.split(".")[1]) for name in tensors if name.startswith("layers.") and "weight" in name)
    layers = [_linear(tensors[f"layers.{n}.weight"], tensors[f"layers.{n}.bias"]) for n in numbers]
    fitting = all(a.out_features == b.in_features for a, b in pairwise(layers))
    if not layers or not fitting or layers[-1].out_features != 1:
        raise UserError(f"{label} holds no predictor: expected layers.<n>.weight and .bias from features to one score")
    return nn.Sequential(*layers)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer
