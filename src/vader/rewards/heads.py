"""Rewards that are a small head on CLIP's image feature: they judge an image alone, blind to the prompt.

A head is a stack of linear layers, with or without an activation between them, read from a released file by
its shapes. Images `[N, 3, H, W]` go in, one number an image comes out.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from vader.errors import UserError
from vader.files.foreign import reading
from vader.files.hub import find_file, together
from vader.files.weights import check_numbers, load_tensors
from vader.rewards.base import FrameReward
from vader.rewards.clip import load_image_tower, locate_clip
from vader.rewards.preprocess import Resize

CLIP_L = "openai/clip-vit-large-patch14"  # what all released heads were trained on


class HeadReward(FrameReward):
    """CLIP's image tower and a head on its unit features; a subclass says what the head's number is worth."""

    def __init__(
        self, checkpoint: str, head: str, resize: Resize, tiny: str, activation: type[nn.Module] | None = None
    ) -> None:
        """
        Args:
            checkpoint: the CLIP: `tiny`, a folder, a hub id or a single open_clip file.
            head: `tiny`, a file (.pth, .pt, .safetensors), or a hub file `owner/repo/file`.
            resize: how images become CLIP's square.
            tiny: the head's file in the tiny world.
            activation: what stands between the head's layers; None: nothing.

        Raises:
            UserError: weights are missing, or head and CLIP don't fit together.
        """
        super().__init__()
        together(lambda: locate_clip(checkpoint), lambda: find_file(head, tiny))
        self.image = load_image_tower(checkpoint, resize)
        self.head = linear_stack(load_tensors(find_file(head, tiny)), head, activation)
        if self.head[0].in_features != self.image.width:
            raise UserError(
                f"the head {head} takes {self.head[0].in_features} features and CLIP {checkpoint} gives "
                f"{self.image.width}: use the CLIP the head was trained on"
            )

    def read(self, images: Tensor) -> Tensor:
        """Images `[N, 3, H, W]` in [0, 1] -> the head's numbers `[N]`."""
        return self.head(self.image(images)).squeeze(-1)

    def to_precision(self, dtype: torch.dtype) -> HeadReward:
        self.image.to(dtype)
        return self


def linear_stack(
    tensors: dict[str, Tensor], label: str = "the file", activation: type[nn.Module] | None = None
) -> nn.Sequential:
    """Linear layers from `layers.<n>.weight` and `.bias`, in the order of n, with activations between them or none.

    What has no weights (activations, dropouts) left gaps in n, which tell one kind of head from the other.

    Raises:
        UserError: there are none, they don't fit one another, or the gaps say that the head is of the other kind.
    """
    problem = f"{label} holds no predictor: expected layers.<n>.weight and .bias from features to one score"
    check_numbers(tensors, label)
    with reading(problem):
        numbers = sorted(int(name.split(".")[1]) for name in tensors if name.startswith("layers.") and "weight" in name)
        layers = [_linear(tensors[f"layers.{n}.weight"], tensors[f"layers.{n}.bias"]) for n in numbers]
    fitting = all(a.out_features == b.in_features for a, b in pairwise(layers))
    if not layers or not fitting or layers[-1].out_features != 1:
        raise UserError(problem)
    _check_gaps(numbers, label, activation)
    if activation is None:
        return nn.Sequential(*layers)
    parts = [part for layer in layers for part in (layer, activation())]
    return nn.Sequential(*parts[:-1])  # none after the last


def _check_gaps(numbers: list[int], label: str, activation: type[nn.Module] | None) -> None:
    """Between two linear layers lies at most one dropout, and an activation where there are activations."""
    between = {after - before - 1 for before, after in pairwise(numbers)}
    if not between <= ({0, 1} if activation is None else {1, 2}):
        kinds = ("has", "has none") if activation is None else ("has no", "has them")
        raise UserError(f"{label} {kinds[0]} activations between its layers, and this reward's head {kinds[1]}")


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer
