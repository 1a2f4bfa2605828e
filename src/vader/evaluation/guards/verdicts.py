"""Whether a gain can be trusted: what the guards say of each evaluation of a run, in the order of its steps.

In go what each evaluation has measured of every video, the base's first; out come verdicts. They depend on nothing
else, so that a run that was stopped and goes on comes to the same ones, and so does who evaluates it afterwards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vader.evaluation.formats import counted
from vader.evaluation.guards.base import Finding, Guards, Pairs
from vader.runs.log import read_lines, write_lines

Colour = Literal["green", "yellow", "red", "not learning"]
Values = dict[int, Any]  # by video: a number, or several
REWARD, SKIPPED = "reward", "skipped"  # what is watched beside the guards
MOST_SKIPPED = 0.25  # of the steps since the evaluation before


@dataclass(frozen=True)
class Measured:
    """One evaluation: by video its reward, its prompt, and the guards' figures; steps skipped since the run's start."""

    step: int
    rewards: Values
    prompts: dict[int, str]
    figures: dict[str, Values]
    skipped: int = 0

    @classmethod
    def of(cls, step: int, records: Sequence[Mapping[str, Any]], skipped: int = 0) -> Measured:
        """From the records of its videos (`VideoScore.record`), which are known by their `index`."""
        names = list(records[0].get("guards", {})) if records else []
        return cls(
            step,
            {one["index"]: _number(one["reward"]) for one in records},
            {one["index"]: json.dumps([one["prompt"], one.get("negative"), one.get("label")]) for one in records},
            {name: {one["index"]: _number(one["guards"][name]) for one in records} for name in names},
            skipped,
        )


@dataclass(frozen=True)
class Verdict:
    """What the guards say of one evaluation.

    Attributes:
        gain: mean reward over the base's, of the same videos.
        guard: the first that objects, of those that weigh most; None where none does.
        again: guards that have objected to the evaluation before, too.
        green: the last step that no guard had objected to by then.
    """

    step: int
    colour: Colour
    gain: float
    guard: str | None = None
    again: tuple[str, ...] = ()
    green: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)

    @property
    def objections(self) -> dict[str, Finding]:
        return {name: finding for name, finding in self.findings.items() if finding.objects}

    def line(self) -> dict[str, Any]:
        """As a line of a run's `guards.jsonl`."""
        return asdict(self) | {"findings": {name: _line(finding) for name, finding in self.findings.items()}}


def judge(guards: Guards, evaluations: Sequence[Measured]) -> list[Verdict]:
    """A verdict an evaluation; none at all without the base's, which has step 0."""
    if not evaluations or evaluations[0].step != 0:
        return []
    base, green = evaluations[0], evaluations[0]
    found: list[Verdict] = []
    for before, one in zip([base, *evaluations], evaluations, strict=False):
        earlier = found[-1].objections if found else {}
        verdict = _judged(guards, base, before, one, green, set(earlier))
        found.append(verdict)
        green = one if verdict.colour == "green" else green
    return found


def _judged(
    guards: Guards, base: Measured, before: Measured, now: Measured, green: Measured, earlier: set[str]
) -> Verdict:
    findings = _findings(guards, base, before, now)
    objections = [name for name, finding in findings.items() if finding.objects]
    again = tuple(name for name in objections if name in earlier)
    at_once = [name for name in objections if findings[name].at_once]
    gain, rise = _mean_rise(base, now), _mean_rise(green, now)
    broken = any(math.isnan(findings[name].mean) for name in at_once)
    colour: Colour = "red" if at_once or again else "yellow" if objections else "green"
    if objections and not broken and rise <= 0:
        colour = "not learning"
    first = next(iter([*at_once, *again, *objections]), None)
    return Verdict(now.step, colour, gain, first, again, green.step, findings)


def _findings(guards: Guards, base: Measured, before: Measured, now: Measured) -> dict[str, Finding]:
    """The trained reward itself, skipped steps, and every guard that has measured both."""
    watched = {REWARD: (base.rewards, now.rewards)}
    both = [name for name in guards.guards if name in base.figures and name in now.figures]
    watched |= {name: (base.figures[name], now.figures[name]) for name in both}
    broken = {name: finding for name, values in watched.items() if (finding := _not_finite(*values))}
    if REWARD in broken:
        return broken
    keys = [key for key in now.rewards if key in base.rewards]
    whole = {name: _found(guards, name, base, now, keys) for name in both if name not in broken and keys}
    return broken | _skipped(before, now) | whole


def _found(guards: Guards, name: str, base: Measured, now: Measured, keys: Sequence[int]) -> Finding:
    pairs = Pairs(
        keys,
        [now.prompts[key] for key in keys],
        _tensor(base.figures[name], keys),
        _tensor(now.figures[name], keys),
        _tensor(base.rewards, keys),
        _tensor(now.rewards, keys),
        _tensor(base.figures[name], list(base.rewards)),
    )
    guard = guards.guards[name]
    return replace(guard.find(pairs, guards.error), wrong=guard.wrong)


def _not_finite(base: Values, now: Values) -> Finding | None:
    """Of figures that are not numbers: an objection at once."""
    where = {key: math.nan for values in (now, base) for key, value in values.items() if not _is_finite(value)}
    said = f"in {counted(len(where), 'video')}"
    return Finding(math.nan, math.nan, True, True, said, where, "a figure is no number") if where else None


def _skipped(before: Measured, now: Measured) -> dict[str, Finding]:
    """Steps that trained nothing since the evaluation before."""
    steps, skipped = now.step - before.step, now.skipped - before.skipped
    if steps <= 0 or not skipped:
        return {}
    share = skipped / steps
    said = f"{skipped} of the last {counted(steps, 'step')}"
    return {SKIPPED: Finding(-share, -share, share > MOST_SKIPPED, False, said, wrong="steps trained nothing")}


def _mean_rise(before: Measured, now: Measured) -> float:
    """Of the reward, over the videos that both have."""
    keys = [key for key in now.rewards if key in before.rewards]
    return (_tensor(now.rewards, keys) - _tensor(before.rewards, keys)).mean().item()


def best_step(verdicts: Iterable[Verdict]) -> int | None:
    """The step of the highest gain to which no guard objected; None where there is none above the base."""
    green = [verdict for verdict in verdicts if verdict.colour == "green" and verdict.gain > 0]
    return max(green, key=lambda verdict: verdict.gain).step if green else None


# ---- on disk ----


def write_verdicts(path: Path, verdicts: Iterable[Verdict]) -> None:
    """Writes one JSON line an evaluation, whole or not at all."""
    write_lines(path, (verdict.line() for verdict in verdicts))


def read_verdicts(path: Path) -> list[Verdict]:
    """A run's verdicts so far; lines that are damaged are left out."""
    found = (line and _verdict(line) for line in read_lines(path))
    return [verdict for verdict in found if verdict]


def read_records(path: Path) -> list[dict[str, Any]] | None:
    """What an evaluation has left of its videos; None where it is missing or damaged."""
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError):
        return None
    whole = all(isinstance(one, dict) and {"index", "prompt", "reward"} <= one.keys() for one in records)
    return records if whole and records else None


def _verdict(line: Mapping[str, Any]) -> Verdict | None:
    try:
        findings = {str(name): _finding(found) for name, found in line["findings"].items()}
        verdict = Verdict(**{**line, "findings": findings, "again": tuple(line["again"])})
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return replace(verdict, gain=_number(verdict.gain))


def _line(finding: Finding) -> dict[str, Any]:
    return asdict(finding) | {"by_video": {str(key): round(value, 3) for key, value in finding.by_video.items()}}


def _finding(found: Mapping[str, Any]) -> Finding:
    by_video = {int(key): _number(value) for key, value in found["by_video"].items()}
    return Finding(**{**found, "mean": _number(found["mean"]), "bound": _number(found["bound"]), "by_video": by_video})


def _number(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    return math.nan if value is None else [_number(one) for one in value] if isinstance(value, list) else value


def _is_finite(value: Any) -> bool:
    return all(map(_is_finite, value)) if isinstance(value, list) else math.isfinite(value)


def _tensor(values: Values, keys: Sequence[int]) -> Tensor:
    return torch.tensor([values[key] for key in keys], dtype=torch.float64)
