"""Metrics by name: the built-in ones, every reward, and the user's own of either kind (`module:Name`)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from vader.errors import UserError, nearest
from vader.evaluation.metrics.base import HeldOutMetrics, Metric
from vader.evaluation.metrics.reward import RewardMetric
from vader.plugins import Part, checked_options, instantiate, load_object
from vader.rewards.base import Reward
from vader.rewards.registry import Named, check_rewards, load_reward, part_names, reward_names

BUILT_IN = {
    "judge": "vader.evaluation.metrics.judge:Judge",
    "gold": "vader.evaluation.metrics.gold:Gold",
    "diversity": "vader.evaluation.metrics.diversity:Diversity",
    "drift": "vader.evaluation.metrics.drift:Drift",
    "segments": "vader.evaluation.metrics.segments:Segments",
}


def build_metrics(parts: Sequence[Part], chunk: int) -> HeldOutMetrics:
    """The metrics of a recipe; the second of a name becomes `name_2`, and so on.

    Args:
        parts: names and options.
        chunk: how many images a reward scores at once.

    Raises:
        UserError: no such metric or reward, an option it does not take, or weights that are missing.
    """
    names = part_names([part.name for part in parts])
    return HeldOutMetrics({name: _load(name, part, chunk) for name, part in zip(names, parts, strict=True)})


def check_metrics(parts: Sequence[Part]) -> None:
    """Raises `UserError` if there is no metric or reward of a name or it does not take an option; loads no weights."""
    for part in parts:
        found = _metric_class(part.name)
        if found is None:
            check_rewards([Named(part.name, options=part.options)])
        else:
            checked_options(found, f"metric {part.name!r}", part.options)


def _load(name: str, part: Part, chunk: int) -> Metric:
    found = _metric_class(part.name)
    if found is not None:
        return instantiate(found, f"metric {part.name!r}", part.options)
    return RewardMetric(name, load_reward(part.name, **part.options), chunk)


def _metric_class(name: str) -> type[Metric] | None:
    """The metric behind a name; None where it is a reward's. Raises `UserError` if it is neither's."""
    if name in BUILT_IN:
        return load_object(BUILT_IN[name], "metric", Metric)
    if ":" not in name:
        rewards = reward_names()
        if name not in rewards:
            known = nearest(name, [*BUILT_IN, *rewards], "your own as module:Name")
            raise UserError(f"unknown metric {name!r}: {known}")
        return None
    found = load_object(name, "metric", Metric, Reward)
    return found if issubclass(found, Metric) else None


def metric_names() -> dict[str, str]:
    """The built-in metrics, each with one line of description; every reward is one too."""
    return {name: (inspect.getdoc(_metric_class(name)) or "").splitlines()[0] for name in BUILT_IN}
