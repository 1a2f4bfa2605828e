"""Verdicts in sentences, for consoles, errors and the report."""

from __future__ import annotations

from collections.abc import Sequence

from vader.evaluation.formats import counted
from vader.evaluation.guards.base import Finding
from vader.evaluation.guards.verdicts import Verdict, best_step
from vader.recipe import Recipe

ENOUGH = 32  # videos, with which a rule that stops runs stops hardly any for nothing (docs/evaluation.md)


def objection(name: str, finding: Finding) -> str:
    """ "videos move less (motion: 0.43 times the base's, 1.90 of its spread)"."""
    return f"{finding.wrong} ({name}: {finding.said})"


def headline(verdict: Verdict) -> str:
    """What a verdict comes to, without its reasons."""
    words = {
        "green": "no guard objects",
        "yellow": "a guard objects, for the first time",
        "red": "this gain is not to be trusted",
        "not learning": f"the reward is no higher than at step {verdict.green}, and guards object",
    }
    return words[verdict.colour]


def sentence(verdict: Verdict) -> str:
    """A verdict with the objection that weighs most."""
    if verdict.guard is None:
        return headline(verdict)
    again = ", again" if verdict.guard in verdict.again else ""
    others = len(verdict.objections) - 1
    more = f", and {others} more" if others else ""
    return f"{headline(verdict)}: {objection(verdict.guard, verdict.objections[verdict.guard])}{again}{more}"


def stopped_by(verdict: Verdict, verdicts: Sequence[Verdict], run: object, steps: int) -> str:
    """What ends a run that a guard stops."""
    best = best_step(verdicts)
    stays = f"{run}@best is the adapter of step {best}" if best else "no step before it was above the base's reward"
    return (
        f"stopped by guard {verdict.guard!r} at step {verdict.step} of {steps} and saved: {sentence(verdict)}; "
        f"{stays}; guards.mode=warn goes on"
    )


def closing(verdicts: Sequence[Verdict], run: object) -> list[str]:
    """Lines for the end of a run: the last verdict, and where the best adapter is, if that is not the last."""
    if not verdicts:
        return []
    last, best = verdicts[-1], best_step(verdicts)
    lines = [f"guards:  {sentence(last)}"]
    if best is not None and best != last.step:
        lines.append(
            f"best:    step {best}, to which no guard objected: vader export {run}@best --adapter --out exports/best"
        )
    return lines


def weak_points(recipe: Recipe) -> list[str]:
    """A word where guards find less than their recipe seems to ask: too few videos or evaluations to stop a run by, a
    held-out reward that is trained on."""
    mode, videos, every = recipe.guards.mode, recipe.evaluation.videos, recipe.evaluation.every
    trained = [(one.name, one.options) for one in recipe.rewards]
    found = [
        f"guards.rewards has {one.name!r}, which is trained on: held out is another reward, or other weights"
        for one in recipe.guards.rewards
        if mode != "off" and (one.name, one.options) in trained
    ]
    if mode == "stop" and videos < ENOUGH:
        found.append(
            f"guards.mode is stop and evaluation.videos {videos}: with {ENOUGH} a run is hardly ever stopped by chance"
        )
    if mode == "stop" and every >= recipe.train.steps:
        steps = counted(recipe.train.steps, "step")
        found.append(
            f"guards.mode is stop and evaluation.every {every}, of {steps}: none is evaluated before the last, so that "
            "nothing can be stopped"
        )
    return found
