"""Table 2: which of two videos is preferred, VADER's or the base model's, by quality and by text.

The paper asked people about the HPS reward on ModelScope. Here a blind study of the same kind is made of the runs of
all seeds, and left for people to rate (`vader study serve`); on the tiny world the judge rates it first. Answers of
people, by the server or in the folder `answers`, are counted beside it once there are any.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from vader.evaluation.formats import counted
from vader.evaluation.plots import RUN_COLOURS, new_figure, save, tidy
from vader.files.atomic import atomic_write
from vader.files.lock import new_folder
from vader.preference.answers import Sheet
from vader.preference.build import build_study
from vader.preference.collected import read_sheets
from vader.preference.judge import RATER, can_judge, judge_sheet
from vader.preference.report import write_report
from vader.preference.results import PAPER, PAPER_ANSWERS, results_of, write_results
from vader.preference.statistics import Interval, wilson
from vader.preference.store import stored_sheets
from vader.preference.study import KEY, read_study
from vader.preference.study import Study as Pairs
from vader.preference.systems import Sampled, Seeded, find_scenes
from vader.runs.reader import Run
from vader.studies.formats import markdown
from vader.studies.study import Arm, Options, Study, Trained, summary_of
from vader.studies.tasks import arm

BASE, VADER = "ModelScope", "VADER"
TITLES = {"fidelity": "fidelity", "alignment": "text alignment"}
ANSWERS = "answers"  # the folder in the study's of what raters sent
RATERS = {RATER: "the tiny world's judge", "people": "people, here"}
PAPER_RATERS = "people, in the paper"


def arms(options: Options) -> list[Arm]:
    return [arm("text", VADER, options.scale)]


def summarise(trained: Sequence[Trained]) -> dict[str, Any]:
    (one,) = trained
    folder = _made(one.runs)
    study = read_study(folder)
    given = _given(study, folder)
    return {
        "arms": [summary_of(one)],
        "folder": folder.name,
        "pairs": sum(item.right is None for item in study.items()),
        "raters": {who: _counted(study, sheets, folder, who) for who, sheets in given.items() if sheets},
    }


def _made(runs: Sequence[Run]) -> Path:
    """The study's folder: what is there stays, people may be rating it."""
    folder = runs[0].path.parents[1] / f"table2-study-{len(runs)}-seeds"
    if not (folder / KEY).is_file():
        with new_folder(folder) as temporary:
            _build(runs, temporary)
    return folder


def _build(runs: Sequence[Run], folder: Path) -> None:
    """Pairs of the held-out prompts under each run's noise, which is that of its own evaluations."""
    base = Sampled(BASE, runs[0].recipe, None)
    aligned = {run.recipe.train.seed: Sampled(VADER, run.recipe, run.folder.adapter) for run in runs}
    scenes = find_scenes([base], None, len(runs), runs[0].recipe.evaluation.videos)
    build_study([base, Seeded(VADER, aligned)], scenes, folder)


def _given(study: Pairs, folder: Path) -> dict[str, list[Sheet]]:
    """Sheets by who answered: the judge, where it knows the world, and people."""
    own = folder / ANSWERS / f"{RATER}.json"
    judged = read_sheets(study, [_judged(study, folder, own)]) if can_judge(study) else []
    files = sorted(path for path in (folder / ANSWERS).glob("*") if path.suffix in (".json", ".csv") and path != own)
    return {RATER: judged, "people": [*stored_sheets(folder, study), *read_sheets(study, files)]}


def _judged(study: Pairs, folder: Path, path: Path) -> Path:
    """The file of the judge's answers, as any rater would send it."""
    with atomic_write(path) as temporary:
        temporary.write_text(judge_sheet(study, folder).model_dump_json(indent=1) + "\n", encoding="utf-8")
    return path


def _counted(study: Pairs, sheets: Sequence[Sheet], folder: Path, who: str) -> list[dict[str, Any]]:
    """The report of some raters, beside the study, and its comparisons."""
    results = results_of(study, sheets)
    write_report(results, folder / f"report-{who}.html")
    written = write_results(results, folder / f"report-{who}.json")
    return json.loads(written.read_text(encoding="utf-8"))["comparisons"]


# ---- shown ----


def _shares(result: Mapping[str, Any]) -> Iterator[tuple[str, str, float, Interval]]:
    """Raters, question, VADER's share and its interval; the paper's interval is Wilson's of its 100 answers."""
    for question, share in PAPER.items():
        yield PAPER_RATERS, question, share, wilson(share, PAPER_ANSWERS)
    for who, comparisons in result["raters"].items():
        for one in comparisons:
            if one["question"] in TITLES:
                yield RATERS[who], one["question"], one["share"], _interval(one)


def _interval(one: Mapping[str, Any]) -> Interval:
    """Over prompts; of fewer prompts than that takes, Wilson's."""
    low, high = one["wilson"] if None in one["bootstrap"] else one["bootstrap"]
    return low, high


def table(result: dict[str, Any]) -> str:
    found = list(_shares(result))
    rows = []
    for raters in dict.fromkeys(raters for raters, *_ in found):
        shares = {question: (share, interval) for who, question, share, interval in found if who == raters}
        rows.append([raters, BASE, *(_percent(1 - shares[name][0]) if name in shares else "" for name in TITLES)])
        rows.append([raters, VADER, *(_with_interval(*shares[name]) if name in shares else "" for name in TITLES)])
    return markdown(["rated by", "method", *TITLES.values()], rows)


def _with_interval(share: float, interval: Interval) -> str:
    return f"{_percent(share)} ({100 * interval[0]:.0f} to {100 * interval[1]:.0f})"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def words(result: Mapping[str, Any]) -> Iterator[str]:
    """What the judge found, and how people can rate the same pairs."""
    lines = [_finding(RATERS[who], one) for who, found in result["raters"].items() for one in found]
    yield "\n".join(f"- {line}" for line in lines)
    yield (
        f"The study's folder, `{result['folder']}` in that of the results, has {result['pairs']} pairs and is ready "
        "for people to rate; the same `vader reproduce table2` counts what they have answered."
    )


def _finding(raters: str, one: Mapping[str, Any]) -> str:
    low, high = _interval(one)
    said = (
        f"{TITLES.get(one['question'], one['question'])}, by {raters}: {one['first']}'s video is preferred "
        f"{counted(one['wins'], 'time')}, {one['second']}'s {counted(one['losses'], 'time')}, and neither "
        f"{counted(one['ties'], 'time')}: a share of {_percent(one['share'])} ({low:.0%} to {high:.0%} over prompts)"
    )
    return f"{said}; in the paper {PAPER[one['question']]:.0%}." if one["question"] in PAPER else f"{said}."


def draw(result: dict[str, Any], path: Path) -> Path:
    """VADER's share by question and raters, with its interval; one half is no preference."""
    figure = new_figure(8, 2.6)
    found = list(_shares(result))
    for axes, question in zip(figure.subplots(1, len(TITLES), sharey=True), TITLES, strict=True):
        _draw_shares(axes, [(who, share, interval) for who, asked, share, interval in found if asked == question])
        tidy(axes, TITLES[question], grid="x")
    return save(figure, path)


def _draw_shares(axes: Axes, shares: Sequence[tuple[str, float, Interval]]) -> None:
    axes.axvline(50, color="#5d6470", ls="--", lw=1)
    for place, (_, share, (low, high)) in enumerate(shares):
        error = [[100 * (share - low)], [100 * (high - share)]]
        axes.errorbar(100 * share, place, xerr=error, fmt="o", capsize=4, lw=2, color=RUN_COLOURS[place])
    axes.set(xlim=(0, 100), xlabel=f"{VADER} preferred to {BASE}, %", yticks=range(len(shares)))
    axes.set_yticklabels([who for who, *_ in shares])
    axes.set_ylim(len(shares) - 0.5, -0.5)


STUDY = Study("table2", "Preference of VADER over the base model", arms, summarise, table, draw)
