"""Before/after sheets: videos of a base model beside those of the same prompts and noise after alignment.

In go trained arms, out come rows of pairs with their scores, and a sheet of them. A run's own evaluations at step 0 and
at its end have pairs of held-out prompts, of which the first are shown, whatever they look like; those of prompts that
it was trained on are sampled by `vader evaluate`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vader.evaluation.formats import decimals, fixed
from vader.files.foreign import reading
from vader.files.sheets import Row, draw_sheet
from vader.files.video import read_video
from vader.runs.folder import RunFolder
from vader.runs.reader import Run
from vader.studies.formats import markdown
from vader.studies.processes import Job
from vader.studies.study import Arm, Options, Study, Trained, summary_of

SEEN = "seen-prompts"  # the folder in a run
ENDS = ("before", "after")
HEADS = ("base model", "VADER")
GOLD = "gold"


@dataclass(frozen=True)
class Shown:
    """How many prompts an arm shows: some that it was trained on, and some that it was not."""

    unseen: int
    seen: int = 0


def sheet_study(name: str, title: str, arms: Callable[[Options], list[Arm]], shown: Shown) -> Study:
    """A study of which the picture is a sheet; one run of each arm is enough for it."""

    def jobs(trained: Sequence[Trained]) -> list[Job]:
        return [_seen_job(one.runs[0], shown.seen) for one in trained if shown.seen]

    def summarise(trained: Sequence[Trained]) -> dict[str, Any]:
        pairs = [row for one in trained for row in rows(one, shown)]
        return {"arms": [summary_of(one) for one in trained], "rows": pairs}

    return Study(name, title, arms, summarise, table, draw, jobs, most_seeds=1)


def _seen_job(run: Run, count: int) -> Job:
    """The base and the adapter on the first training prompts."""
    out = run.path / SEEN
    arguments = ["evaluate", "--adapter", str(run.folder.adapter), "--recipe", str(run.folder.recipe)]
    arguments += ["--prompts", run.recipe.prompts.train, "--videos", str(count), "--seeds", "1", "--shown", str(count)]
    return Job(f"{run.path.name}-on-seen", (*arguments, "--out", str(out)), out / "evaluation.json")


# ---- numbers ----


def rows(trained: Trained, shown: Shown) -> Iterator[dict[str, Any]]:
    """A row a prompt, those that were trained on first."""
    run = trained.runs[0]
    if shown.seen:
        yield from _pairs(trained, RunFolder(run.path / SEEN), (0, 1), shown.seen, seen=True)
    steps = run.evaluations[0].step, run.evaluations[-1].step
    yield from _pairs(trained, run.folder, steps, shown.unseen, seen=False)


def _pairs(
    trained: Trained, folder: RunFolder, steps: tuple[int, int], count: int, *, seen: bool
) -> Iterator[dict[str, Any]]:
    """The first pairs of two evaluations: what they are, and file and scores before and after."""
    home = trained.runs[0].path.parents[1]
    before, after = (_videos(folder, step, home, trained.arm.measure)[:count] for step in steps)
    for pair in zip(before, after, strict=True):  # of one recipe: the same prompts in the same order
        found = {end: {"file": file, "scores": scores} for end, (_, file, scores) in zip(ENDS, pair, strict=True)}
        seams = trained.arm.recipe.video.size.seams
        yield {**trained.arm.labels, "seen": seen, "prompt": pair[0][0], "seams": seams, **found}


Shot = tuple[str, str, dict[str, float]]  # prompt, file as seen from the results' folder, scores


def _videos(folder: RunFolder, step: int, home: Path, measure: str | None) -> list[Shot]:
    """The videos of an evaluation that were kept. Raises `UserError` if they are not there or damaged."""
    with reading(f"the samples of step {step} in {folder.path} cannot be shown"):
        files = [one["file"] for one in json.loads((folder.samples(step) / "prompts.json").read_text(encoding="utf-8"))]
        lines = folder.evaluation(step).read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines[: len(files)]]  # the first ones are kept
    places = [(folder.samples(step) / file).relative_to(home).as_posix() for file in files]
    return [(_caption(record), place, _scores(record, measure)) for place, record in zip(places, records, strict=True)]


def _caption(record: Mapping[str, Any]) -> str:
    """The prompt, and the label that its reward asks for."""
    return f"{record['prompt']} [{record['label']}]" if "label" in record else record["prompt"]


def _scores(record: Mapping[str, Any], measure: str | None) -> dict[str, float]:
    """The rewards of a mix one by one, or the figure that is shown instead; and gold, where it was measured."""
    figures = record["figures"]
    shown = record["parts"] if measure is None else {measure: figures[measure]}
    return shown | ({GOLD: figures[GOLD]} if GOLD in figures else {})


def table(result: dict[str, Any]) -> str:
    head = ["base", "reward", "prompt", "trained on", "before", "after"]
    return markdown(head, [_cells(row) for row in result["rows"]])


def _cells(row: Mapping[str, Any]) -> list[str]:
    seen = "yes" if row["seen"] else "no"
    return [row["base"], row["reward"], row["prompt"], seen, *_notes(row)]


def _notes(row: Mapping[str, Any]) -> list[str]:
    """The scores before and after, each with as many decimals in both."""
    ends = [row[end]["scores"] for end in ENDS]
    places = {name: min(3, decimals([scores[name] for scores in ends])) for name in ends[0]}
    return [
        ", ".join(f"{name.replace('_', ' ')} {fixed(score, places[name])}" for name, score in scores.items())
        for scores in ends
    ]


def words(result: Mapping[str, Any]) -> Iterator[str]:
    """What each arm's held-out prompts gained; the pairs that are shown are a few of them."""
    yield "\n".join(f"- {_gain(arm)}" for arm in result["arms"])


def _gain(arm: Mapping[str, Any]) -> str:
    first, last = arm["curve"][0], arm["curve"][-1]
    places = decimals([first["mean"], last["mean"]])
    said = f"{arm['labels']['base']}, {arm['labels']['reward']}: over all held-out prompts the reward goes from "
    said += f"{fixed(first['mean'], places)} to {fixed(last['mean'], places)}"
    if GOLD in first["figures"]:
        said += f", and gold from {fixed(first['figures'][GOLD], 2)} to {fixed(last['figures'][GOLD], 2)}"
    return f"{said}."


# ---- the sheet ----


def draw(result: dict[str, Any], path: Path) -> Path:
    """The pairs below each other, read from the files that the rows name beside `path`."""
    return draw_sheet(HEADS, [_drawn(row, path.parent) for row in result["rows"]], path)


def parts_of(video: Tensor, seams: Sequence[int]) -> list[Tensor]:
    """The frames that each segment of a video `[F, 3, H, W]` made; the one at a seam is the earlier's."""
    return list(video.tensor_split([seam + 1 for seam in seams]))


def _drawn(row: Mapping[str, Any], home: Path) -> Row:
    seen = "a prompt trained on" if row["seen"] else "an unseen prompt"
    videos = [parts_of(read_video(home / row[end]["file"]), row["seams"]) for end in ENDS]
    return Row(f"{row['base']}, {row['reward']}; {seen}", f"“{row['prompt']}”", videos, _notes(row))
