"""The page of all results, in Markdown: this package's numbers beside the paper's, and what differs.

In goes a folder of results as JSON, out comes the page; a study without results yet is said so. The studies' results
are made from the JSON; only what other settings gave, tried on the way, is written here by hand (`DIFFERENCES`).
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

from vader.evaluation.formats import duration
from vader.files.atomic import atomic_write
from vader.studies import ablation, figure4, figure7, table1
from vader.studies.formats import count, markdown, mean_and_spread
from vader.studies.study import Study, arm_of, best
from vader.studies.tasks import TASKS

WIDTH = 120
QUERY_CLAIM, TIME_CLAIM, GENERAL_CLAIM = 1 / 10, 1 / 3, 0.8  # what the studies are to show

INTRODUCTION = """# Results

Made by `vader reproduce`; every number of its studies is from its JSON files. {scale}

`±` is the standard deviation over seeds, each with its own adapter, prompts' order and noise. A reward query is one
video scored once for training; compute time is that of training alone, evaluations left out. Where a curve passes a
level is read off the straight line between two evaluations.
"""
SCALES = {
    "tiny": "They are the tiny world's: small networks of the paper's kinds on 32x32 videos of coloured shapes "
    "([tinyworld](tinyworld.md)), trained on a CPU. Heights of rewards do not compare with the paper's; who wins, by "
    "how much, and why, may. Held-out prompts share no combination of colour, shape and background with training "
    "prompts, and compute time is the processor's, over all threads.",
    "full": "They are those of the paper's models, with the settings of its code.",
}
DIFFERENCES = """## What differs from the paper

- **Size.** Networks of 2 million parameters and less stand for ModelScope (1.7 billion); a few hundred reward queries a
  run for thousands; seconds of a processor for GPU-hours.
- **VADER's own setting** is the last 5 of 10 steps and all frames, where the paper has the last step and one frame; the
  ablation has both.
- **The baselines** are not the code that the paper's authors published ([algorithms](algorithms.md) says what they
  have against it): log-probabilities are per video and pairs are of one prompt, both in the baselines' favour.
- **Equal ground.** All methods sample with DDIM, eta 1 and 10 steps, so that base, noise and held-out prompts are the
  same.
- **DDPO trains the first 8 of 10 steps** (`algorithm.ddpo.min_std`): the last two add noise of 0.04 and 0.02, which no
  reward tells, but which rules the gradient of the log-probability. With all ten, a higher rate and one frame scored it
  had gained 0.1 in aesthetics.
- **Learning rates** and the like were set by few trials of one seed: four for DDPO and three for DPO on the aesthetic
  reward, which serve the other rewards too, and four for VADER on the action reward. All may do better with others.
- **Figure 4's policy gradient** learns at 1e-3 like figure 7's. At 3e-3 it gained 1.06 ± 0.63 at 24 pixels and
  1.03 ± 1.03 at 48, with gaps of 0.51 ± 0.47 and 0.90 ± 0.94: more on average, but less surely.
- **The action reward** asks the tiny world's objects to move left whatever the prompt shows; the paper's is a class
  of Kinetics. A video turns around as a whole or not at all: VADER raises the log-probability from the first steps,
  hardly a video turns for many of them, and then most do. DDPO and DPO stop before many of theirs have turned, so how
  soon VADER is as good is read off where its own curve is still flat.
"""


def write_page(results: Path, page: Path) -> Path:
    """Writes the page; pictures of results that lie elsewhere are copied to `assets/results` beside it."""
    found = {study.name: read_results(results, study) for study in STUDIES}
    known = [one for parts in found.values() for one in parts]
    sections = [section for study in STUDIES for section in _section(study, found[study.name], results, page)]
    scale = known[0]["scale"] if known else "tiny"
    head = INTRODUCTION.format(scale=SCALES[scale])
    text = "\n\n".join([head.rstrip(), *sections, *([DIFFERENCES.rstrip()] if scale == "tiny" else [])])
    with atomic_write(page) as temporary:
        temporary.write_text("\n".join(map(_wrapped, text.splitlines())) + "\n", encoding="utf-8")
    return page


def _wrapped(line: str) -> str:
    """A line of prose or of a list broken at the page's width; rows of tables and pictures stay whole."""
    if line.startswith(("|", "!")):
        return line
    return textwrap.fill(line, WIDTH, subsequent_indent="  " if line.startswith("- ") else "", break_long_words=False)


STUDIES: Sequence[Study] = (figure7.STUDY, figure4.STUDY, table1.STUDY, ablation.STUDY)


def read_results(folder: Path, study: Study) -> list[dict[str, Any]]:
    """A study's results: of the whole, or of the parts that were done alone; each knows its `file`."""
    whole = folder / f"{study.name}.json"
    files = [whole] if whole.is_file() else sorted(folder.glob(f"{study.name}-*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) | {"file": file.stem} for file in files]


def _section(study: Study, found: Sequence[dict[str, Any]], results: Path, page: Path) -> Iterator[str]:
    yield f"## {HEADINGS[study.name]}"
    if not found:
        yield f"Not run yet: `vader reproduce {study.name}`."
    for result in found:
        yield from WORDS[study.name](result)
        yield f"Seeds: {result['seeds']}."
        yield f"![{study.title}]({_picture(results, result['file'], page)})"
        yield study.table(result)
    yield PAPERS[study.name]


def _picture(results: Path, name: str, page: Path) -> str:
    """The picture's path as the page says it."""
    if page.parent.resolve() == results.resolve():
        return f"{name}.png"
    folder = page.parent / "assets" / "results"
    for suffix in (".png", ".json"):
        with atomic_write(folder / f"{name}{suffix}") as temporary:
            shutil.copyfile(results / f"{name}{suffix}", temporary)
    return f"assets/results/{name}.png"


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


WHY_NO_GROWTH = (
    "A reason may be that the tiny world's aesthetic score is mostly one property of the whole picture, its vividness, "
    "which one number a video can teach at any size; real rewards ask something of every part of the picture."
)


def _figure4(result: Mapping[str, Any]) -> Iterator[str]:
    gaps, sizes = result["gaps"], result["sizes"]
    grows = all(small["mean"] <= large["mean"] for small, large in pairwise(gaps))
    listed = _listed(f"{mean_and_spread(gap, 2)} at {size}" for gap, size in zip(gaps, sizes, strict=True))
    said = "grows with every size" if grows else "does not grow with every size, unlike the paper's"
    yield f"The gain by reward gradient less that by policy gradient is {listed} pixels: it {said}."
    alone = {method: _listed(mean_and_spread(gain, 2) for gain in gains) for method, gains in result["gains"].items()}
    queries = {one["labels"]["method"]: one["curve"][-1]["queries"] for one in result["arms"]}
    if not grows:
        yield WHY_NO_GROWTH
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
    "ablation-truncation": _ablation,
}
HEADINGS = {
    "figure7": "Sample and compute efficiency (figure 7)",
    "figure4": "Resolution (figure 4)",
    "table1": "Unseen prompts (table 1)",
    "ablation-truncation": "Truncation and frames (section 4)",
}
PAPERS = {
    "figure7": "*In the paper* (ModelScope): VADER starts converging within at most 12 GPU-hours, while DDPO and DPO "
    "do not show much improvement. The curves themselves are not in its text; the panels span 1,500, 1,000 and 3,000 "
    "reward queries and 8, 20 and 40 GPU-hours, and table 1 has the ends.",
    "figure4": "*In the paper*: after 100 steps the gap between the two grows significantly with resolution, since the "
    "reward gradient has a number for every pixel and the policy gradient one for the whole video. (The figure's "
    "values are not in its text.)",
    "table1": "*In the paper*:\n\n"
    + markdown(
        [
            "method",
            "Aesthetic (T2V), train",
            "test",
            "HPS (T2V), train",
            "test",
            "Action, train",
            "Aesthetic (I2V), train",
            "test",
        ],
        [
            ["Base", "4.61", "4.49", "0.25", "0.24", "0.14", "4.91", "4.96"],
            ["DDPO", "4.63", "4.52", "0.24", "0.23", "0.21", "", ""],
            ["DPO", "4.71", "4.41", "0.25", "0.24", "0.23", "", ""],
            ["VADER", "7.31", "7.12", "0.33", "0.32", "0.79", "7.83", "7.64"],
        ],
    ),
    "ablation-truncation": "*In the paper* there is no table of it: its authors found one step (K = 1) competitive "
    "with several at much less memory, and score randomly drawn frames.",
}
