"""Guards that compare videos with one another: what they keep of each is a thumbnail, from which distances are told.

Shapes: n pairs, D = 192 numbers of a thumbnail of 8 x 8 pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from vader.errors import UserError
from vader.evaluation.guards.base import Guard, Pairs
from vader.nouns import Clip, Prompt

SIDE = 8
GREY = 1e-6  # colourfulness squared, summed over cells: less is no colour


class _Thumbnails(Guard):
    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        """The mean over frames at 8 x 8 pixels, `[B, D]`."""
        return torch.stack([F.adaptive_avg_pool2d(video.float().mean(dim=0), SIDE).flatten() for video in clip.frames])


class Diversity(_Thumbnails):
    """Mean distance of two videos of one prompt: falls when all seeds give one video."""

    wrong = "videos of one prompt are more alike"

    def changes(self, pairs: Pairs) -> tuple[dict[int, float], float]:
        """By the first video of each prompt that has two or more."""
        places: dict[str, list[int]] = defaultdict(list)
        for place, prompt in enumerate(pairs.prompts):
            places[prompt].append(place)
        several = {some[0]: some for some in places.values() if len(some) > 1}
        base, now = (_apart(several, thumbnails) for thumbnails in (pairs.base, pairs.now))
        changes = {pairs.keys[first]: now[first] - base[first] for first in several}
        return changes, self.spread(torch.tensor(list(base.values()), dtype=torch.float64)) if several else 1.0


class Distance(_Thumbnails):
    """How far videos have moved from the base's, as a multiple of how far base videos of two prompts are apart."""

    sign, wrong, allowed = -1, "videos have little left of the base's", 1.0

    def changes(self, pairs: Pairs) -> tuple[dict[int, float], float]:
        if len(pairs.all_base) < 2:
            return {}, 1.0
        moved = rms(pairs.now - pairs.base)
        between = torch.pdist(pairs.all_base).mean().item() / pairs.all_base.shape[1] ** 0.5
        return dict(zip(pairs.keys, (moved / max(between, 1e-6)).tolist(), strict=True)), 1.0

    def words(self, change: float, mean: float) -> str:
        return f"{change:.2f} of the distance between base videos of two prompts"


class Hue(_Thumbnails):
    """How far colours have turned from the base's, in degrees: rises when one colour becomes another.

    What makes colours stronger or paler leaves it at 0.

    Args:
        allowed: degrees that may belong to a true gain; an objection begins a quarter above it.
    """

    sign, wrong = -1, "colours have turned"

    def __init__(self, allowed: float = 10.0) -> None:
        if not 0 < allowed <= 90:
            raise UserError(f"guard 'hue': allowed is in degrees, above 0 and at most 90, not {allowed}")
        self.allowed = allowed

    def changes(self, pairs: Pairs) -> tuple[dict[int, float], float]:
        return dict(zip(pairs.keys, turned(pairs.base, pairs.now).tolist(), strict=True)), self.allowed

    def words(self, change: float, mean: float) -> str:
        return f"{change:.1f} degrees"


def turned(base: Tensor, now: Tensor) -> Tensor:
    """How far the colours of thumbnails `[n, D]` differ in hue, in degrees from 0 to 180, `[n]`. Cells count by how
    colourful they are in both; where there is no colour it is 0."""
    one, other = (thumbnails.unflatten(1, (3, -1)) for thumbnails in (base, now))
    one, other = (cells - cells.mean(dim=1, keepdim=True) for cells in (one, other))
    across, along = torch.linalg.cross(one, other, dim=1).norm(dim=1), (one * other).sum(dim=1)
    weight = one.norm(dim=1) * other.norm(dim=1)
    angle = torch.atan2(across, along).rad2deg()
    return (weight * angle).sum(dim=1) / weight.sum(dim=1).clamp(min=GREY)


def _apart(groups: Mapping[int, Sequence[int]], thumbnails: Tensor) -> dict[int, float]:
    """The mean distance of two thumbnails of a group."""
    return {
        first: fmean(rms(thumbnails[one] - thumbnails[other]).item() for one, other in combinations(some, 2))
        for first, some in groups.items()
    }


def rms(values: Tensor) -> Tensor:
    """Root mean square over the last axis."""
    return values.square().mean(dim=-1).sqrt()
