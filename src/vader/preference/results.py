"""What a study has found: for each question and each two systems a win share and how sure it is, and who was left out.

In go a study and sheets, out comes a `Results`, which is written as JSON and shown by the report. Answers count of
raters who have met an attention check and got four of five right.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import median

import numpy as np

from vader.files.atomic import atomic_write
from vader.preference.answers import Judgement, Sheet, judgements
from vader.preference.statistics import (
    Interval,
    bradley_terry,
    clustered_bootstrap,
    krippendorff_alpha,
    sign_test,
    wilson,
)
from vader.preference.study import CHECKED, PASSED, QUESTIONS, Item, Study

# Table 2 of the paper (arXiv 2407.08737, section 5.3): what was preferred of VADER and ModelScope, by 100 answers each.
PAPER = {"fidelity": 0.79, "alignment": 0.61}
PAPER_ANSWERS = 100


@dataclass(frozen=True)
class Rater:
    """One rater: how much was answered, and how the attention checks went. `fault` says why no answer counts;
    `seconds` is the median over pairs, and 0 where a platform does not tell."""

    id: str
    name: str
    pairs: int
    checks: int
    right: int
    seconds: float
    fault: str | None


@dataclass(frozen=True)
class Comparison:
    """Two systems by one question. Shares are of `first`, a tie counting half for each.

    Attributes:
        wilson: of independent answers.
        bootstrap: over prompts, the answers to one staying together; NaN where there are too few.
        p: of the exact two-sided test that both are as likely to be preferred, ties left out.
        alpha: agreement of raters.
    """

    question: str
    first: str
    second: str
    wins: int
    losses: int
    ties: int
    share: float
    wilson: Interval
    bootstrap: Interval
    p: float
    alpha: float
    prompts: int
    raters: int

    @property
    def answers(self) -> int:
        return self.wins + self.losses + self.ties


@dataclass(frozen=True)
class Results:
    """All of it. `strengths` are Bradley-Terry's by question, of three systems or more; None where there are none."""

    study: str
    systems: tuple[str, ...]
    pairs: int
    raters: list[Rater]
    comparisons: list[Comparison]
    strengths: dict[str, dict[str, float] | None]


def results_of(study: Study, sheets: Sequence[Sheet]) -> Results:
    """Compares every two systems by every question of which there are answers that count."""
    found = judgements(study, sheets)
    raters = _raters(sheets, found)
    counted = {rater.id for rater in raters if rater.fault is None}
    valid = [one for one in found if one.rater in counted and one.item.right is None]
    comparisons = [
        _compared(study, question, first, second, some)
        for question in QUESTIONS
        for first, second in combinations(reversed(study.systems), 2)
        if (some := [one for one in valid if one.question == question and _shows(study, one.item, first, second)])
    ]
    strengths = {question: _strengths(study, question, comparisons) for question in QUESTIONS}
    pairs = sum(item.right is None for item in study.items())
    return Results(study.id, study.systems, pairs, raters, comparisons, strengths if len(study.systems) > 2 else {})


def write_results(results: Results, path: Path) -> Path:
    """Writes the results as JSON, numbers that there are none of as null."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(_finite(asdict(results)), indent=1) + "\n", encoding="utf-8")
    return path


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- raters ----


def _raters(sheets: Sequence[Sheet], found: Sequence[Judgement]) -> list[Rater]:
    """Everybody who has sent anything, in the order of their names."""
    names = {sheet.rater: sheet.name for sheet in sheets}
    by_rater: dict[str, list[Judgement]] = {rater: [] for rater in names}
    for one in found:
        by_rater[one.rater].append(one)
    return sorted((_rater(rater, names[rater], some) for rater, some in by_rater.items()), key=lambda r: (r.name, r.id))


def _rater(rater: str, name: str, given: Sequence[Judgement]) -> Rater:
    pairs = {one.item.id for one in given if one.item.right is None}
    times = [max(one.seconds for one in given if one.item.id == pair) for pair in pairs]
    checks = [one.winner == one.item.right for one in given if one.item.right and one.question == CHECKED]
    fault = None
    if not checks:
        fault = "has met no attention check yet"
    elif sum(checks) < PASSED * len(checks):
        fault = f"failed {len(checks) - sum(checks)} of {len(checks)} attention checks"
    return Rater(rater, name, len(pairs), len(checks), sum(checks), median(times) if times else 0.0, fault)


# ---- comparisons ----


def _shows(study: Study, item: Item, first: str, second: str) -> bool:
    return {study.system_of(video) for video in item.videos} == {first, second}


def _compared(study: Study, question: str, first: str, second: str, given: Sequence[Judgement]) -> Comparison:
    outcomes = [_outcome(study, one, first) for one in given]
    scores, counts = np.array(outcomes), Counter(outcomes)
    names = [_cluster(study, one.item) for one in given]
    prompts = {name: place for place, name in enumerate(dict.fromkeys(names))}
    share = float(scores.mean())
    return Comparison(
        question=question, first=first, second=second,
        wins=counts[1.0], losses=counts[0.0], ties=counts[0.5],
        share=share,
        wilson=wilson(share, len(scores)),
        bootstrap=clustered_bootstrap(scores, np.array([prompts[name] for name in names])),
        p=sign_test(counts[1.0], counts[0.0]),
        alpha=krippendorff_alpha(_table(given, outcomes)),
        prompts=len(prompts),
        raters=len({one.rater for one in given}),
    )  # fmt: skip


def _outcome(study: Study, one: Judgement, first: str) -> float:
    if one.winner is None:
        return 0.5
    return 1.0 if study.system_of(one.winner) == first else 0.0


def _cluster(study: Study, item: Item) -> str:
    """What pairs of one prompt share; what has no text has its file or its picture."""
    return item.prompt or study.videos[item.videos[0]].source


def _table(given: Sequence[Judgement], outcomes: Sequence[float]) -> np.ndarray:
    """How often each pair was given each outcome: `[pairs, 3]`."""
    places = {item: place for place, item in enumerate(dict.fromkeys(one.item.id for one in given))}
    table = np.zeros((len(places), 3))
    for one, outcome in zip(given, outcomes, strict=True):
        table[places[one.item.id], round(2 * outcome)] += 1
    return table


def _strengths(study: Study, question: str, comparisons: Sequence[Comparison]) -> dict[str, float] | None:
    """Bradley-Terry's strengths by system; None where the answers determine none."""
    places = {name: place for place, name in enumerate(study.systems)}
    wins = np.zeros((len(places), len(places)))
    for one in comparisons:
        if one.question == question:
            i, j = places[one.first], places[one.second]
            wins[i, j] += one.wins + one.ties / 2
            wins[j, i] += one.losses + one.ties / 2
    found = bradley_terry(wins)
    return None if found is None else dict(zip(study.systems, found.tolist(), strict=True))
