"""How training takes a reward's gradient: only below what is good enough, and from pixels under a little noise.

The scores stay the reward's own. Evaluations, and algorithms that take scores for numbers, know nothing of it.

Shapes: B videos, n frames, pixels `[B, n, 3, H, W]`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vader.nouns import Clip


@dataclass(frozen=True)
class Shaping:
    """What is done to one reward of a mix.

    Attributes:
        hinge: a score from which on there is no gradient, so that what is good enough is left alone: that of
            `min(score, hinge)`, as SRPO (arXiv 2509.06942) and PRFL (arXiv 2511.21541) have it. None: there is none.
        robust: the standard deviation of Gaussian noise on the pixels that it is shown. Over the steps this is the
            gradient of a smoothed reward, in which adversarial peaks are flat (the image part of RSA-FT,
            arXiv 2603.21175).
        downwards: whether the reward's weight is negative: then good enough is what scores no more than the hinge.
    """

    hinge: float | None = None
    robust: float = 0.0
    downwards: bool = False

    def disturbed(self, clip: Clip, noise: Tensor | None) -> Clip:
        """The clip with standard normal noise `[B, n, 3, H, W]` on its pixels, which stay in [0, 1]."""
        if noise is None or not self.robust:
            return clip
        return replace(clip, frames=(clip.frames + self.robust * noise).clamp(0, 1))

    def held(self, scores: Tensor) -> Tensor:
        """The same scores, without gradient where they are good enough."""
        if self.hinge is None:
            return scores
        enough = scores <= self.hinge if self.downwards else scores >= self.hinge
        return torch.where(enough, scores.detach(), scores)


PLAIN = Shaping()
