"""Guidance whose result is as loud as the conditional prediction (arXiv 2305.08891, section 3.4)."""

from dataclasses import dataclass

from vader import Guidance


@dataclass(frozen=True)
class Rescaled(Guidance):
    scale: float
    rescale: float = 0.7

    def __call__(self, passes):
        cond, uncond = passes.both()
        guided = uncond + self.scale * (cond - uncond)
        axes = tuple(range(1, cond.ndim))
        louder = cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
        return guided * (self.rescale * louder + 1 - self.rescale)
