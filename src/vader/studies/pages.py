"""The page of all results, in Markdown: what is made of numbers, between marks in a page that people write.

In goes a folder of results as JSON. Where a page says `<!-- figure7 -->` ... `<!-- /figure7 -->`, what stands between
is made anew (sentences of numbers, picture, table), and every other word stays. A page without marks is written whole
and plain.
"""

from __future__ import annotations

import json
import math
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from vader.errors import UserError
from vader.evaluation.formats import duration
from vader.files.atomic import atomic_write
from vader.studies import ablation, before_after, figure4, figure7, figure9, table1, table2
from vader.studies.formats import count, mean_and_spread
from vader.studies.sheets import SHEETS
from vader.studies.study import Study, arm_of, best
from vader.studies.tasks import TASKS

WIDTH = 120
BESIDE = Path("assets", "results")  # of a page: its copies of results
QUERY_CLAIM, TIME_CLAIM, GENERAL_CLAIM = 1 / 10, 1 / 3, 0.8  # what the studies are to show
HEAD = "# Results\n\nMade by `vader reproduce`. `±` is the standard deviation over seeds."


def write_page(results: Path, page: Path) -> Path:
    """Refreshes the page's marked parts, or writes it; results that lie elsewhere are copied to `assets/results`
    beside it.

    Raises:
        UserError: a mark of the page is opened and not closed, or it cannot be written.
    """
    made = {study.name: _made(study, results, page) for study in STUDIES}
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    written = refreshed(text, made, page) if any(_mark(name) in text for name in made) else _plain(made)
    with atomic_write(page) as temporary:
        temporary.write_text(written, encoding="utf-8")
    return page


def _mark(name: str) -> str:
    return f"<!-- {name} -->"


def refreshed(text: str, made: Mapping[str, str], page: Path) -> str:
    """The page's text with what was made between its marks, by name; where nothing was made, it stays as it is.

    Raises:
        UserError: a mark is opened and not closed.
    """
    for name, content in made.items():
        opened, closed = _mark(name), _mark(f"/{name}")
        if opened in text and closed not in text:
            raise UserError(f"{page} has {opened} and no {closed} after it: add it where the numbers of {name} end")
        if content:
            before, _, rest = text.partition(opened)
            text = f"{before}{opened}\n\n{content}\n\n{closed}{rest.partition(closed)[2]}"
    return text


def _plain(made: Mapping[str, str]) -> str:
    """A page of its own: a heading a study, and what was made, or how to make it."""
    sections = [
        f"## {study.title}\n\n{made[study.name] or f'Not run yet: `vader reproduce {study.name}`.'}"
        for study in STUDIES
    ]
    return "\n\n".join([HEAD, *sections]) + "\n"


def _made(study: Study, results: Path, page: Path) -> str:
    """All that the numbers of a study say; empty without results."""
    found = read_results(results, study, page.parent / BESIDE)
    pieces = [piece for result in found for piece in _pieces(study, result, page)]
    return wrapped("\n\n".join(pieces))


def _pieces(study: Study, result: Mapping[str, Any], page: Path) -> Iterator[str]:
    yield from WORDS[study.name](result)
    yield f"Seeds: {result['seeds']}."
    yield f"![{study.title}]({_picture(result['file'], page)})"
    yield study.table(dict(result))


def wrapped(text: str) -> str:
    """Lines of prose and of lists broken at the page's width; rows of tables and pictures stay whole."""
    return "\n".join(map(_wrapped, text.splitlines()))


def _wrapped(line: str) -> str:
    if line.startswith(("|", "!")):
        return line
    return textwrap.fill(line, WIDTH, subsequent_indent="  " if line.startswith("- ") else "", break_long_words=False)


STUDIES: Sequence[Study] = (
    figure7.STUDY,
    figure4.STUDY,
    table1.STUDY,
    table2.STUDY,
    *SHEETS,
    figure9.STUDY,
    ablation.STUDY,
)


def read_results(folder: Path, study: Study, beside: Path) -> list[dict[str, Any]]:
    """A study's results: of the whole, or of the parts that were done alone; each knows its `file`, without a suffix.

    Args:
        beside: the page's own copies, in which parts may be that were done elsewhere before.
    """
    whole = folder / f"{study.name}.json"
    parts = {file.name: file for place in (beside, folder) for file in place.glob(f"{study.name}-*.json")}
    order = [f"{study.name}-{task}.json" for task in TASKS]
    names = sorted(parts, key=lambda name: (order.index(name) if name in order else len(order), name))
    files = [whole] if whole.is_file() else [parts[name] for name in names]
    return [json.loads(file.read_text(encoding="utf-8")) | {"file": file.with_suffix("")} for file in files]


def _picture(file: Path, page: Path) -> str:
    """The picture's path as the page says it; results that lie elsewhere are copied beside the page."""
    here = page.parent.resolve()
    file = file.resolve()
    if not file.is_relative_to(here):
        copy = here / BESIDE / file.name
        for suffix in (".png", ".json"):
            with atomic_write(copy.with_suffix(suffix)) as temporary:
                shutil.copyfile(file.with_suffix(suffix), temporary)
        file = copy
    return file.with_suffix(".png").relative_to(here).as_posix()


# ---- what the numbers say ----


def _figure7(result: Mapping[str, Any]) -> Iterator[str]:
    lines = [_efficiency(result, one) for one in result["efficiency"]]
    yield "\n".join(f"- {line}" for line in lines)


def _efficiency(result: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    title, method = TASKS[one["task"]].title, one["method"]
    vader = arm_of(result, task=one["task"], method="VADER")
    assert vader is not None  # every task is run by VADER
    highest = best(vader["curve"])["mean"]
    ended = f"{title}: {method}'s best is {one['best']:.3g} ({one['gain']:+.2g}), VADER's {highest:.3g}"
    if one["vader_at"]["queries"] is None:
        return f"{ended}: VADER never is as good."
    if one["gain"] <= 0:
        return f"{title}: {method} is nowhere above the base ({one['best']:.3g}); VADER's best is {highest:.3g}."
    queries, time = (figure7.share(one, axis) for axis in ("queries", "seconds"))
    held = queries <= QUERY_CLAIM and time <= TIME_CLAIM
    verdict = "within" if held else "more than"
    return (
        f"{ended}. VADER is as good after {count(one['vader_at']['queries'])} queries, {queries:.0%} of {method}'s, "
        f"and {duration(one['vader_at']['seconds'])} of computing, {time:.0%} of its time: {verdict} the 1/10 "
        "and 1/3 that were hoped for."
    )


def _figure4(result: Mapping[str, Any]) -> Iterator[str]:
    for task, found in result["tasks"].items():
        yield from _resolution(result, task, found)


def _resolution(result: Mapping[str, Any], task: str, found: Mapping[str, Any]) -> Iterator[str]:
    gaps, sizes, places = found["gaps"], found["sizes"], figure4.places(found)
    grows = all(small["mean"] <= large["mean"] for small, large in pairwise(gaps))
    listed = _listed(f"{mean_and_spread(gap, places)} at {size}" for gap, size in zip(gaps, sizes, strict=True))
    said = "grows with every size" if grows else "does not grow with every size, unlike the paper's"
    title = TASKS[task].title
    yield f"{title}: the gain by reward gradient less that by policy gradient is {listed} pixels: it {said}."
    alone = {
        method: _listed(mean_and_spread(gain, places) for gain in gains) for method, gains in found["gains"].items()
    }
    queries = {one["labels"]["method"]: one["curve"][-1]["queries"] for one in result["arms"]}
    yield (
        f"The reward gradient alone gains {alone['VADER']} in {queries['VADER']} reward queries, the policy gradient "
        f"{alone['DDPO']} in {queries['DDPO']}."
    )


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _table1(result: Mapping[str, Any]) -> Iterator[str]:
    lines = [_generalises(one) for one in result["generalisation"] if one["method"] == "VADER"]
    yield "\n".join(f"- {line}" for line in lines)


def _generalises(one: Mapping[str, Any]) -> str:
    title = table1.TITLES[one["task"]]
    if not one["share"] or not math.isfinite(one["share"]) or one["gains"]["train"] < 0:
        return f"{title}: VADER gained nothing on training prompts."
    verdict = "at least" if one["share"] >= GENERAL_CLAIM else "less than"
    return (
        f"{title}: VADER gains {one['gains']['test']:.3g} on unseen prompts and {one['gains']['train']:.3g} on "
        f"training prompts, {one['share']:.0%} of it: {verdict} the 80 % that were hoped for."
    )


def _ablation(result: Mapping[str, Any]) -> Iterator[str]:
    gain = {_name(one): one["curve"][-1]["mean"] - one["curve"][0]["mean"] for one in result["arms"]}
    cheapest = min(result["arms"], key=lambda one: one["peak_memory"])
    highest = max(gain, key=lambda name: gain[name])
    yield (
        f"Most is gained by {highest} ({gain[highest]:+.2f}); least memory is taken by {_name(cheapest)} "
        f"({gain[_name(cheapest)]:+.2f})."
    )


def _name(one: Mapping[str, Any]) -> str:
    return f"{one['labels']['policy']} with frames {one['labels']['frames']}"


WORDS: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "figure7": _figure7,
    "figure4": _figure4,
    "table1": _table1,
    "table2": table2.words,
    "ablation-truncation": _ablation,
    "figure9": figure9.words,
} | {study.name: before_after.words for study in SHEETS}
