"""Figure 9: videos of three segments, each started from the last frame of the one before, before and after alignment.

At scale `tiny` the judge says how much of each segment is as the picture's caption has it, and the later segments of
the same pictures and noise are compared, pair by pair. At scale `full` there are the sheet and the trained reward.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist, fmean, stdev
from typing import Any

from vader.evaluation.formats import decimals, fixed, signed
from vader.recipe import load_recipe
from vader.runs.reader import Run
from vader.studies.before_after import Shown, draw, rows
from vader.studies.formats import markdown, mean_and_spread
from vader.studies.study import Arm, Options, Study, Trained, changed, over_seeds, summary_of

BASE = "Stable Video Diffusion"
FIGURES = {
    "gold": "segments/gold",
    "colour": "segments_2/judge/color",
    "shape": "segments_2/judge/shape",
    "background": "segments_2/judge/background",
    "motion": "segments_2/judge/motion",
    "damaged": "segments_2/judge/damaged",
}
JUDGED = [
    {"name": "segments", "of": {"name": "gold", "task": "consistency"}},
    {"name": "segments", "of": {"name": "judge"}},
]
SHOWN = Shown(unseen=3)
LEVEL = 0.95  # of intervals


def arms(options: Options) -> list[Arm]:
    """At scale `tiny` rewards are other than the paper's V-JEPA, which there takes blur for consistency."""
    if options.scale == "full":
        return [Arm({"base": BASE, "reward": "V-JEPA"}, load_recipe("svd-long"))]
    recipe = load_recipe("tiny-long")
    ends = {"every": recipe.train.steps, "videos": recipe.evaluation.videos_at_the_ends, "final_videos": None}
    judged = changed(recipe, evaluation={**ends, "metrics": [*JUDGED, {"name": "drift"}]})
    return [Arm({"base": BASE, "reward": "text match and subject consistency"}, judged)]


# ---- numbers ----


def summarise(trained: Sequence[Trained]) -> dict[str, Any]:
    return {
        "arms": [summary_of(one) | _judged(one) for one in trained],
        "rows": list(rows(trained[0], SHOWN)),
    }


def _judged(trained: Trained) -> dict[str, Any]:
    """The judge's figures of each segment before and after, and the gain in gold over all segments but the first."""
    segments = trained.arm.recipe.video.segments
    names = {name: key for name, key in FIGURES.items() if f"{key}/1" in trained.runs[0].evaluations[0].figures}
    if not names:
        return {}
    found = {name: [_ends(trained.runs, f"{key}/{n + 1}") for n in range(segments)] for name, key in names.items()}
    return {"segments": found, "later": gain(trained.runs, [f"segments/gold/{n + 1}" for n in range(1, segments)])}


def _ends(runs: Sequence[Run], figure: str) -> list[dict[str, Any]]:
    """A figure before and after, over seeds."""
    return [over_seeds([run.evaluations[place].figures[figure] for run in runs]) for place in (0, -1)]


def gain(runs: Sequence[Run], figures: Sequence[str]) -> dict[str, float]:
    """By how much the mean of these figures has risen from the first evaluation to the last, and its interval.

    Pairs are of the same picture and noise; all seeds of a picture are one observation.
    """
    before, after = ([_means(run, place, figures) for run in runs] for place in (0, -1))
    pairs = zip(zip(*before, strict=True), zip(*after, strict=True), strict=True)
    rises = [fmean(late) - fmean(early) for early, late in pairs]
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) * stdev(rises) / math.sqrt(len(rises))
    return {"mean": fmean(rises), "low": fmean(rises) - reach, "high": fmean(rises) + reach, "pictures": len(rises)}


def _means(run: Run, place: int, figures: Sequence[str]) -> list[float]:
    """Of each video of an evaluation, the mean of its figures."""
    lines = run.folder.evaluation(run.evaluations[place].step).read_text(encoding="utf-8").splitlines()
    return [fmean(json.loads(line)["figures"][name] for name in figures) for line in lines]


# ---- words and table ----


def words(result: Mapping[str, Any]) -> Iterator[str]:
    yield "\n".join(f"- {_said(arm)}" for arm in result["arms"])


def _said(arm: Mapping[str, Any]) -> str:
    first, last = arm["curve"][0], arm["curve"][-1]
    places = decimals([first["mean"], last["mean"]])
    said = f"{arm['labels']['reward']}: the reward of the whole videos goes from {fixed(first['mean'], places)} to "
    said += fixed(last["mean"], places)
    if "later" not in arm:
        return f"{said}."
    later = arm["later"]
    sure = "more than chance" if later["low"] > 0 or later["high"] < 0 else "no more than chance"
    return (
        f"{said}, and gold over the segments after the first by {signed(later['mean'], 3)} (95 % of "
        f"{later['pictures']} unseen pictures: {signed(later['low'], 3)} to {signed(later['high'], 3)}), {sure}."
    )


def table(result: dict[str, Any]) -> str:
    """A row a segment of every arm."""
    judged = [arm for arm in result["arms"] if "segments" in arm]
    if not judged:
        head = ["reward", "before", "after"]
        return markdown(head, [[arm["labels"]["reward"], *_curve_ends(arm)] for arm in result["arms"]])
    head = ["reward", "segment", *judged[0]["segments"]]
    return markdown(head, [row for arm in judged for row in _segment_rows(arm)])


def _curve_ends(arm: Mapping[str, Any]) -> list[str]:
    return [mean_and_spread(arm["curve"][place]) for place in (0, -1)]


def _segment_rows(arm: Mapping[str, Any]) -> Iterator[list[str]]:
    """ "0.62 to 0.71" of each figure."""
    for number, ends in enumerate(zip(*arm["segments"].values(), strict=True), start=1):
        cells = [f"{fixed(before['mean'], 2)} to {fixed(after['mean'], 2)}" for before, after in ends]
        yield [arm["labels"]["reward"], str(number), *cells]


STUDY = Study("figure9", "Long videos by Stable Video Diffusion before and after", arms, summarise, table, draw)
