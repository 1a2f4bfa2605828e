"""How a video drifts from what it started with: colour, sharpness, saturation, content and jumps, frame by frame.

Long videos go on from pictures of their own making, and small errors add up (arXiv 2407.08737, figure 9). Shapes: B
videos, F frames, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vader.errors import UserError
from vader.evaluation.metrics.base import Metric
from vader.nouns import Clip, Prompt, VideoSize
from vader.rewards.clip import load_image_tower

LUMA = (0.299, 0.587, 0.114)
CHUNK = 16  # frames in the tower at once
FLAT = 1e-6  # a jump or sharpness below this is that of a picture without any


class Drift(Metric):
    """How colour, sharpness, saturation and content leave those of the first frame, and how videos jump at seams.

    Over a video's frames:

    - `color`: distance of the frame's mean colour from the first frame's, root mean square over channels in [0, 1].
    - `sharpness`: mean absolute Laplacian of the luma.
    - `saturation`: mean of the largest channel less the smallest.
    - `jump`: root mean square difference from the frame before; 0 at the first.
    - `content`, with a CLIP: 1 minus the cosine of the frame's and the first frame's image features.

    Of a video: how far each of these is in the last segment from what it is in the first (without segments: its last
    and first third), sharpness and saturation as a share of the first; and `seam`, the jumps at seams as a multiple of
    all others' median: 1 where no seam is seen.

    Args:
        checkpoint: of a CLIP, as rewards name it.
    """

    def __init__(self, checkpoint: str | None = None) -> None:
        self.tower = None if checkpoint is None else load_image_tower(checkpoint).eval().requires_grad_(False)
        self.size: VideoSize | None = None

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        if self.tower is not None:
            self.tower.to(device, dtype)

    def rest(self) -> None:
        if self.tower is not None:
            self.tower.to("cpu")

    def check(self, prompts: Sequence[Prompt], size: VideoSize) -> None:
        """Raises `UserError` for videos too short to have a beginning and an end."""
        if size.frames < 3:
            raise UserError(f"metric 'drift' compares a video's end to its beginning: {size.frames} frames are too few")
        self.size = size

    def over_frames(self, clip: Clip, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        frames = clip.frames
        means = frames.mean(dim=(3, 4))
        jumps = (frames[:, 1:] - frames[:, :-1]).square().mean(dim=(2, 3, 4)).sqrt()
        found = {
            "color": (means - means[:, :1]).square().mean(dim=2).sqrt(),
            "sharpness": sharpness(frames),
            "saturation": (frames.amax(dim=2) - frames.amin(dim=2)).mean(dim=(2, 3)),
            "jump": F.pad(jumps, (1, 0)),
        }
        return found if self.tower is None else found | {"content": self._content(frames)}

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        assert self.size is not None  # `check` has been asked
        curves = self.over_frames(clip, prompts)
        jump = curves.pop("jump")
        found = {name: _change(curve, self.size, share=name != "color") for name, curve in curves.items()}
        if "content" in curves:
            found["content"] = _change(curves["content"], self.size, share=False)
        return found | ({"seam": _seam(jump, self.size.seams)} if self.size.seams else {})

    def _content(self, frames: Tensor) -> Tensor:
        """Distance of each frame's features to the first frame's, `[B, F]`."""
        assert self.tower is not None
        tower, images = self.tower, frames.flatten(0, 1)
        device = tower.projection.weight.device
        features = torch.cat([tower(some.to(device)) for some in images.split(CHUNK)])
        each = features.float().cpu().unflatten(0, frames.shape[:2])
        return 1.0 - F.cosine_similarity(each, each[:, :1], dim=2)


def sharpness(frames: Tensor) -> Tensor:
    """Mean absolute Laplacian of the luma of frames `[B, F, 3, H, W]`, `[B, F]`."""
    luma = (frames * frames.new_tensor(LUMA).view(3, 1, 1)).sum(dim=2)
    inner = luma[..., 1:-1, 1:-1]
    around = luma[..., :-2, 1:-1] + luma[..., 2:, 1:-1] + luma[..., 1:-1, :-2] + luma[..., 1:-1, 2:]
    return (around - 4 * inner).abs().mean(dim=(2, 3))


def _change(curve: Tensor, size: VideoSize, share: bool) -> Tensor:
    """How far a curve `[B, F]` is at the end from what it is at the beginning, `[B]`; as a share of that, if asked."""
    first, last = (curve[:, some.start : some.stop].mean(dim=1) for some in _ends(size))
    return (last - first) / first.clamp(min=FLAT) if share else last - first


def _ends(size: VideoSize) -> tuple[range, range]:
    """The frames of a video's beginning and of its end."""
    if size.segments > 1:
        return size.frames_of(0), size.frames_of(size.segments - 1)
    third = -(-size.frames // 3)
    return range(third), range(size.frames - third, size.frames)


def _seam(jump: Tensor, seams: Sequence[int]) -> Tensor:
    """Mean jump `[B]` of the first frames made after a seam, over the median of all other frames'."""
    after = torch.zeros(jump.shape[1], dtype=torch.bool)
    after[[seam + 1 for seam in seams]] = True
    others = jump[:, 1:][:, ~after[1:]]
    return jump[:, after].mean(dim=1) / others.median(dim=1).values.clamp(min=FLAT)
