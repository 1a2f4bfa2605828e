"""Rewards are brought to a target, not as high as they go."""

import math
from dataclasses import dataclass

from vader import Algorithm, Metrics, UserError


@dataclass(frozen=True)
class TargetSettings:
    target: float = 0.5


class Target(Algorithm):
    """Descends `(reward - target)^2` through the last step."""

    Settings = TargetSettings

    def __init__(self, settings, recipe):
        super().__init__(settings, recipe)
        if not math.isfinite(settings.target):
            raise UserError("algorithm.target must be a number")

    def step(self, engine, batch):
        walk, shown = engine.training_walk(batch), engine.shown(batch)
        latents = walk.step(walk.frozen(len(walk) - 1)).latents
        above = engine.scorer.score(latents, batch.prompts, shown).total - self.settings.target
        loss, scored = engine.scorer.graph(latents, batch.prompts, shown, -2 * above / batch.total)
        loss.backward()
        parts = {name: part.sum().item() for name, part in scored.parts.items()}
        total, missed, *sums = engine.sums([scored.total.sum().item(), above.abs().sum().item(), *parts.values()])
        norm, taken = engine.optimise(math.isfinite(total))
        return Metrics(
            reward=total / batch.total,
            parts={name: value / batch.total for name, value in zip(parts, sums, strict=True)},
            queries=batch.total,
            grad_norm=norm,
            clamped=scored.clamped.item(),
            skipped=not taken,
            extra={"missed_by": missed / batch.total},
        )
