"""The contract of a guard: a metric of each video, and a rule of what its change from the base's video says.

In go the figures of the base's videos and of the aligned model's, of the same prompts and noise; out comes a finding:
how far the figure has moved in its bad direction, and whether that is an objection. Bring your own: subclass `Guard`,
name it `module:Name`. Shapes: n pairs of videos, D numbers of a guard that keeps several a video.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from vader.errors import UserError
from vader.evaluation.guards.student import quantile
from vader.evaluation.metrics.base import HeldOutMetrics, Metric
from vader.nouns import Clip, Prompt
from vader.rewards.base import BrokenContract, require_scores
from vader.scoring.scorer import Scorer

DRIFT = 0.25  # of the base's spread over prompts: a fall beyond it is an objection,
CERTAIN = 0.125  # if, with all likelihood, it is more than this
ERROR = 0.05  # how often one of all guards may object to an evaluation by chance alone
FLOOR = 0.05  # of the base's mean, or of a figure that is a logarithm: a smaller spread is taken for this
LEAST = 1e-12


@dataclass(frozen=True)
class Pairs:
    """A guard's figures `[n]` or `[n, D]` of pairs of videos, their rewards `[n]`, and those of all base videos."""

    keys: Sequence[int]  # which videos these are
    prompts: Sequence[str]
    base: Tensor
    now: Tensor
    base_reward: Tensor
    reward: Tensor
    all_base: Tensor


@dataclass(frozen=True)
class Finding:
    """What a guard says of an evaluation.

    Attributes:
        mean: of the pairs' changes, in the base's spreads; below zero is bad. NaN where it cannot say.
        bound: below which it is with all likelihood.
        objects: whether the gain is doubtful.
        at_once: whether it is not to be trusted, without waiting for the next evaluation.
        said: the change in words.
        by_video: each pair's change.
        wrong: what is objected to, as the guard has it.
    """

    mean: float
    bound: float
    objects: bool
    at_once: bool
    said: str
    by_video: dict[int, float] = field(default_factory=dict)
    wrong: str = ""


class Guard(Metric):
    """A metric of each video with a rule. Implement `per_video`; it gives `[B]`, or `[B, D]` if `changes` is its own.

    Attributes:
        sign: 1 where a fall is bad, -1 where a rise is, 0 where either is.
        wrong: what is bad, in words that go on with how much: "videos move less".
        log: whether figures are logarithms; then words tell ratios.
        allowed: a change that may belong to a true gain, in the figure's unit.
        limit: a mean change that is not to be trusted at once.
        floor: the least spread of the base that is counted with; None is 5 % of its mean, or 0.05 of a logarithm.
    """

    sign: Literal[-1, 0, 1] = 1
    wrong: str = "it has fallen"
    log: bool = False
    allowed: float = 0.0
    limit: float | None = None
    floor: float | None = None

    def use_reward(self, scorer: Scorer) -> None:
        """Given once, before the first video, what scores by the trained reward; most guards have no use for it."""

    def changes(self, pairs: Pairs) -> tuple[dict[int, float], float]:
        """The change of each pair by key, in the figure's unit, and the base's spread in it."""
        return dict(zip(pairs.keys, (pairs.now - pairs.base).tolist(), strict=True)), self.spread(pairs.all_base)

    def spread(self, base: Tensor) -> float:
        """The base's standard deviation over its videos, but no less than the floor."""
        deviation = base.std().item() if len(base) > 1 else 0.0
        least = self.floor if self.floor is not None else FLOOR * (1.0 if self.log else base.mean().abs().item())
        return max(deviation, least, LEAST)

    def find(self, pairs: Pairs, error: float) -> Finding:
        """Says whether the pairs' changes are an objection, with a chance `error` of a false one."""
        changes, spread = self.changes(pairs)
        if not changes:
            return Finding(math.nan, math.nan, False, False, "cannot be told from these videos")
        raw = torch.tensor(list(changes.values()), dtype=torch.float64)
        good = self.sign or (-1 if raw.mean() > 0 else 1)
        each = (good * raw + self.allowed) / spread
        mean, bound, fallen = drift(each, error if self.sign else error / 2)
        at_once = self.limit is not None and good * raw.mean().item() < -self.limit
        said = self.words(raw.mean().item(), mean.item())
        by_video = dict(zip(changes, each.tolist(), strict=True))
        return Finding(mean.item(), bound.item(), at_once or bool(fallen), at_once, said, by_video)

    def words(self, change: float, mean: float) -> str:
        """How much the figure has changed."""
        how = f"{math.exp(change):.2f} times the base's" if self.log else f"{change:+.3g}"
        beyond = " beyond what is allowed" if self.allowed else ""
        return f"{how}, {abs(mean):.2f} of its spread{beyond}" if mean < 0 else how


def drift(changes: Tensor, error: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of changes `[..., n]` in the base's spreads: their mean, what the true mean stays below but for a chance `error`
    (one-sided Student's t), and whether they are an objection; each `[...]`."""
    mean, count = changes.mean(dim=-1), changes.shape[-1]
    if count < 2:
        return mean, torch.full_like(mean, math.inf), torch.zeros_like(mean, dtype=torch.bool)
    bound = mean + quantile(1 - error, count - 1) * changes.std(dim=-1) / math.sqrt(count)
    return mean, bound, (mean < -DRIFT) & (bound < -CERTAIN)


class Guards(HeldOutMetrics):
    """Guards by name, in the order in which they are heard. Raises `UserError` if one's rule is none."""

    kind = "guard"

    def __init__(self, guards: Mapping[str, Guard]) -> None:
        super().__init__(guards)
        self.guards = dict(guards)
        for name, guard in guards.items():
            _check_rule(name, guard)

    def use_reward(self, scorer: Scorer) -> None:
        for guard in self.guards.values():
            guard.use_reward(scorer)

    @property
    def error(self) -> float:
        """Of each single test, so that all together have `ERROR`; who minds both directions makes two tests."""
        return ERROR / max(1, sum(1 if guard.sign else 2 for guard in self.guards.values()))

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Every figure of B videos, each `[B]` or `[B, D]`. Raises `UserError` if a guard gives anything else."""
        return {
            name: _figures(name, guard.per_video(clip, prompts), len(prompts)) for name, guard in self.guards.items()
        }


def _check_rule(name: str, guard: Guard) -> None:
    """Raises `UserError` if a guard's `sign`, `allowed`, `limit` and `floor` make no rule."""
    if guard.sign not in (-1, 0, 1):
        raise UserError(
            f"guard {name!r}: sign is {guard.sign!r}: 1 where a fall is bad, -1 where a rise is, 0 for both"
        )
    for key, value in {"allowed": guard.allowed, "limit": guard.limit, "floor": guard.floor}.items():
        if not _is_number(value) and (value is not None or key == "allowed"):
            raise UserError(f"guard {name!r}: {key} is {value!r}: a number from 0 on")
    if guard.limit is not None and guard.limit < guard.allowed:
        raise UserError(
            f"guard {name!r}: limit {guard.limit} is below allowed {guard.allowed}, which is no objection yet"
        )


def _is_number(value: Any) -> bool:
    """Whether it is one from 0 on."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _figures(name: str, values: Any, count: int) -> Tensor:
    if isinstance(values, Tensor) and values.ndim == 2 and len(values) == count:
        return values.float()
    try:
        return require_scores(values, count, "per_video", "video")
    except BrokenContract as error:
        raise UserError(f"guard {name!r} {error}") from error
