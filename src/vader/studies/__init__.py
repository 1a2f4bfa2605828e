"""Every figure and table of the paper by one command: `reproduce("figure7")` trains what is missing and writes it down.

In goes the name of a study and a scale; out come, in one folder, the recipes that were run, the runs, and for each
study its numbers as JSON, a Markdown table and a picture. What is finished is found again; what was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vader.errors import UserError
from vader.files.atomic import atomic_write, remove_parts
from vader.files.lock import held
from vader.recipe import Recipe, library_versions
from vader.studies import pages
from vader.studies.pages import write_page
from vader.studies.processes import Start, run_jobs, start_process
from vader.studies.study import Arm, Options, RunStore, Study, Trained

STUDIES: dict[str, Study] = {study.name: study for study in pages.STUDIES}
ALL = "all"
WITH_PARTS = ("figure4", "figure7", "table1")  # one task of them can be done alone


def chosen_studies(what: str, options: Options) -> list[Study]:
    """The studies that were asked for. Raises `UserError` if there are none of that name, or no such part of them."""
    if what != ALL and what not in STUDIES:
        raise UserError(f"cannot reproduce {what!r}: known: {', '.join(sorted([ALL, *STUDIES]))}")
    if options.only is not None and what not in WITH_PARTS:
        raise UserError(f"--only picks one reward of {', '.join(WITH_PARTS)}; {what} has no such parts")
    return list(STUDIES.values()) if what == ALL else [STUDIES[what]]


def reproduce(
    what: str, options: Options, out: Path, jobs: int = 1, page: Path | None = None, start: Start = start_process
) -> list[Path]:
    """Runs what is missing of a study, or of all, and writes its results.

    Args:
        what: a name of `STUDIES`, or "all".
        options: scale, one part only, seeds.
        out: the folder for everything; runs are in `out/runs` and shared by the studies.
        jobs: how many commands work side by side, each with its share of the cores.
        page: where the page of all results goes; None: `out/results.md`.
        start: how a command is started; for tests.

    Returns:
        What was written.

    Raises:
        UserError: no such study, it cannot be run here, or another command works in that folder; nothing was started.
        RunError: a run failed. `Stopped` if it was asked to stop; the same call goes on.
    """
    studies = chosen_studies(what, options)
    arms = {study.name: study.arms(options) for study in studies}
    if options.scale == "full":
        check_machine([arm.recipe for found in arms.values() for arm in found])
    written = []
    with held(out):
        remove_parts(out / "recipes")
        for study in studies:
            written += run_study(study, arms[study.name], options, out, jobs, start)
        return [*written, write_page(out, page or out / "results.md")]


def run_study(
    study: Study, arms: Sequence[Arm], options: Options, out: Path, jobs: int = 1, start: Start = start_process
) -> list[Path]:
    """Trains what is missing, evaluates what is missing, and writes JSON, table and plot."""
    options = study.limited(options)
    store = RunStore(out / "runs")
    placed = [[store.place(recipe) for recipe in arm.seeded(options.seeds)] for arm in arms]
    training = [store.job(recipe, out / "recipes") for recipes in _by_seed(placed) for recipe in recipes]
    print(f"{study.name}: {len(training)} runs, {sum(job.done for job in training)} of them finished", flush=True)
    run_jobs(training, out / "logs", jobs, start)
    trained = [
        Trained(arm, [store.run(recipe) for recipe in recipes]) for arm, recipes in zip(arms, placed, strict=True)
    ]
    run_jobs(study.jobs(trained), out / "logs", jobs, start)
    return write_result(study, study.summarise(trained), options, out)


def _by_seed(placed: Sequence[Sequence[Recipe]]) -> list[tuple[Recipe, ...]]:
    """All arms under the first seed come first: a study that is stopped early has something to show."""
    return list(zip(*placed, strict=True))


def write_result(study: Study, result: dict[str, Any], options: Options, out: Path) -> list[Path]:
    """Writes `<study>.json`, `<study>.md` and `<study>.png`; of one task alone, under a name of its own."""
    name = study.name if options.only is None else f"{study.name}-{options.only}"
    head = {"study": study.name, "title": study.title, "scale": options.scale, "seeds": options.seeds}
    content = head | {"versions": library_versions()} | result
    with atomic_write(out / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with atomic_write(out / f"{name}.md") as temporary:
        temporary.write_text(study.table(result) + "\n", encoding="utf-8")
    return [out / f"{name}.json", out / f"{name}.md", study.draw(result, out / f"{name}.png")]


def check_machine(recipes: Sequence[Recipe]) -> None:
    """Raises `UserError` if there is no GPU, or a checkpoint cannot be had: before any work."""
    import torch

    from vader.files.hub import resolve
    from vader.prompts import load_prompts

    if not torch.cuda.is_available():
        raise UserError(
            "--scale full needs a GPU, and torch sees none here: run it where there is one, or --scale tiny"
        )
    for family, checkpoint in dict.fromkeys((recipe.model.family, recipe.model.checkpoint) for recipe in recipes):
        resolve(checkpoint, family)
    for name in dict.fromkeys(name for recipe in recipes for name in (recipe.prompts.train, recipe.prompts.test)):
        load_prompts(name)
