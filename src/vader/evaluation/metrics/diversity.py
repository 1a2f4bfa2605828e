"""How much the videos of one prompt differ: what falls when a model collapses onto few pictures.

Shapes: F frames, D features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from vader.evaluation.metrics.base import Metric
from vader.nouns import Clip, Prompt
from vader.rewards.clip import ImageTower, load_image_tower

EYE = 64  # pixels: frames are reduced to at most this before their distance is taken
CHUNK = 16  # frames in the tower at once


class Diversity(Metric):
    """Mean distance of two videos of one prompt: in pixels, and in a CLIP's features if one is given.

    - `pixels`: root mean square difference over frames, channels and pixels, values in [0, 1]; frames larger than 64
      pixels are first reduced to that by averaging.
    - `features`: 1 minus the cosine of two videos' mean CLIP image features over frames.

    Args:
        checkpoint: of a CLIP, as rewards name it.
    """

    def __init__(self, checkpoint: str | None = None) -> None:
        self.tower = None if checkpoint is None else load_image_tower(checkpoint).eval().requires_grad_(False)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        if self.tower is not None:
            self.tower.to(device, dtype)

    def rest(self) -> None:
        if self.tower is not None:
            self.tower.to("cpu")

    def over_set(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> dict[str, float]:
        """Means over all pairs of videos with the same prompt; empty where no prompt has two."""
        groups: dict[Prompt, list[Tensor]] = defaultdict(list)
        for clip, prompt in zip(clips, prompts, strict=True):
            groups[prompt].append(clip.frames[0])
        alike = [videos for videos in groups.values() if len(videos) > 1]
        if not alike:
            return {}
        found = {"pixels": _mean_distance(alike, reduced, pixel_distance)}
        if self.tower is not None:
            tower = self.tower
            found["features"] = _mean_distance(alike, lambda video: features(tower, video), feature_distance)
        return found


def _mean_distance(
    groups: Sequence[Sequence[Tensor]],
    seen: Callable[[Tensor], Tensor],
    distance: Callable[[Tensor, Tensor], float],
) -> float:
    """Over all pairs within each group, of what is seen of each video."""
    return fmean(distance(*pair) for videos in groups for pair in combinations(map(seen, videos), 2))


def reduced(video: Tensor) -> Tensor:
    """Frames `[F, 3, H, W]` at 64 pixels or less."""
    height, width = video.shape[-2:]
    size = (min(height, EYE), min(width, EYE))
    return video if size == (height, width) else F.adaptive_avg_pool2d(video, size)


def pixel_distance(one: Tensor, other: Tensor) -> float:
    """Root mean square difference of two videos `[F, 3, H, W]`."""
    return (one - other).square().mean().sqrt().item()


@torch.no_grad()
def features(tower: ImageTower, video: Tensor) -> Tensor:
    """The mean `[D]` of the features of a video's frames `[F, 3, H, W]`."""
    device = tower.projection.weight.device
    return torch.cat([tower(frames.to(device)) for frames in video.split(CHUNK)]).mean(dim=0)


def feature_distance(one: Tensor, other: Tensor) -> float:
    """1 minus the cosine of two videos' features `[D]`."""
    return 1.0 - F.cosine_similarity(one, other, dim=0).item()
