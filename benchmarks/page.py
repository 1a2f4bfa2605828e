"""Writes docs/performance.md's numbers from the results: between its marks, every other word stays.

    python benchmarks/page.py

In go the JSON files of benchmarks/results; a section whose file is missing stays as it is.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from beside_paper import OURS, PUBLISHED, TWO_CALLS
from full_size import FEW_STEPS, SHIPPED
from measuring import GIB, RESULTS, console, run_script

from vader.files.atomic import atomic_write
from vader.studies.formats import markdown, mean_and_spread
from vader.studies.pages import refreshed, wrapped

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
TITLES = {
    "modelscope": "ModelScope",
    "videocrafter": "VideoCrafter2",
    "svd": "SVD",
    "opensora": "Open-Sora 1.2",
    "wan": "Wan 2.1 1.3B",
}
EARLIER = "earlier"
Result = Mapping[str, Any]


def write(results: Path, page: Path) -> None:
    """Refreshes the page. Raises `UserError` if a mark is opened and not closed."""
    made = {name: wrapped(section(found)) for name, section in SECTIONS.items() if (found := read(results, name))}
    written = refreshed(page.read_text(encoding="utf-8"), made, page)
    with atomic_write(page) as temporary:
        temporary.write_text(written, encoding="utf-8")


def read(results: Path, name: str) -> Result | None:
    file = results / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


# ---- plan_gpu.json ----


def plan_gpu(result: Result) -> str:
    """How far plans are off, the seconds of whole steps with what they use of the chip, and every peak."""
    cases = [case for case in result["cases"] if "ratio" in case]
    lowest, highest = (pick(case["ratio"] for case in cases) - 1 for pick in (min, max))
    rate = result["settings"]["bf16_operations_per_second"] / 1e12
    return "\n\n".join([
        f"What is counted is {lowest:+.1%} to {highest:+.1%} off what the tensors of {_cards(cases)} took, over "
        f"{len(cases)} steps of {len({case['model'] for case in cases})} models. What is marked {EARLIER} was measured "
        "on an earlier state of this code, and has not been since.",
        markdown(["peak, GiB", "case", "counted", "measured", "counted / measured"], [_peaks(case) for case in cases]),
        f"Whole steps, all denoising steps included, and what they use of the {rate:.0f} TFLOP/s that the same card "
        "reaches in products of large matrices in bf16:",
        markdown(
            ["one step, one video", "case", "TFLOP", "seconds", "of the chip's rate"],
            [_use(case) for case in cases if "share" in case and case["steps"] > FEW_STEPS],
        ),
    ])  # fmt: skip


def _cards(cases: list[Result]) -> str:
    return " and ".join(f"an {name}" for name in sorted({case["gpu"] for case in cases}))


def _subject(case: Result) -> str:
    return f"{TITLES[case['model']]} {case['size']}"


def _peaks(case: Result) -> list[str]:
    sizes = (f"{case[name] / GIB:.1f}" for name in ("counted", "measured"))
    return [_subject(case), _way_of(case), *sizes, f"{case['ratio']:.3f}"]


def _use(case: Result) -> list[str]:
    figures = [f"{case['operations'] / 1e12:,.0f}", f"{case['seconds']:.1f}", f"{case['share']:.0%}"]
    return [_subject(case), _way_of(case), *figures]


def _way_of(case: Result) -> str:
    return f"{case['way']} ({EARLIER})" if case["earlier"] else case["way"]


# ---- beside_paper.json ----


def beside_paper(result: Result) -> str:
    """The two steps' work, and the CPU time of ours as a share of the published one's."""
    theirs, ours = (result["counted"][name] for name in (PUBLISHED, SHIPPED))
    more = ours["operations"] / theirs["operations"] - 1
    shipped, two_calls = (result["share"][name] for name in (SHIPPED, TWO_CALLS))
    names = list(theirs["passes"])
    rows = [[name, *_work(result, name, names)] for name in (PUBLISHED, *OURS)]
    return "\n\n".join([
        f"At full size the published step takes {theirs['operations'] / 1e12:.0f} TFLOP, and ours, as its recipe "
        f"ships, {abs(more):.1%} {'more' if more > 0 else 'less'}. On a network of the same architecture with "
        f"{result['parameters'] / 1e6:.0f} million parameters, on a CPU, ours takes {shipped:.2f} of its time as the "
        f"recipe ships, and {two_calls:.2f} with guidance in two calls (median of {len(result['shares'][SHIPPED])}).",
        markdown(["step", *names, "TFLOP", "CPU time, s", "share"], rows),
    ])  # fmt: skip


def _work(result: Result, name: str, passes: list[str]) -> list[str]:
    counts = result["counted"][name]
    return [
        *(str(counts["passes"][one]) for one in passes),
        f"{counts['operations'] / 1e12:.1f}",
        f"{result['cpu_seconds'][name]:.1f}",
        f"{result['share'].get(name, 1.0):.2f}",
    ]


# ---- prefix.json ----

JUDGED = ("judge/damage", "judge/damaged", "gold")


def prefix(result: Result) -> str:
    """What cheaper ways to the steps with gradient are worth: gains and the judge's figures beside what they cost."""
    bases, arms = result["base"], {name: _arm(result, name) for name in result["arms"]}
    head = ["prefix", "learning rate", "seeds", "compute", "gain of held-out reward", "mean damage", "damaged", "gold"]
    before = ["before training", "", str(len(bases)), "", "", *_judged(list(bases.values()))]
    rows = [[_way(name), *arm.cells(arms["whole"].seconds)] for name, arm in arms.items()]
    return markdown(head, [before, *rows])


def _way(name: str) -> str:
    return "the whole way" if name == "whole" else f"`{name}`" if ":" in name else name


@dataclass(frozen=True)
class Trained:
    """An arm at its best rate: its ends by seed, and how far each is above the base model under the same seed."""

    rate: float
    ends: list[Result]
    gains: list[float]

    @property
    def seconds(self) -> float:
        return fmean(end["compute_seconds"] for end in self.ends)

    def cells(self, whole: float) -> list[str]:
        several = len(self.gains) > 1
        spread = {"mean": fmean(self.gains), "spread": stdev(self.gains) if several else math.nan}
        gain = mean_and_spread(spread, 2) if several else f"{self.gains[0]:.2f}"
        return [f"{self.rate:g}", str(len(self.ends)), f"{self.seconds / whole:.2f}", gain, *_judged(self.ends)]


def _arm(result: Result, name: str) -> Trained:
    arm = result["arms"][name]
    ends = {seed: found[-1] for seed, found in arm["seeds"].items()}
    gains = [end["reward"] - result["base"][seed]["reward"] for seed, end in ends.items()]
    return Trained(arm["best_rate"], list(ends.values()), gains)


def _judged(points: Sequence[Result]) -> list[str]:
    damage, damaged, gold = (fmean(point["figures"][name] for point in points) for name in JUDGED)
    return [f"{damage:.3f}", f"{damaged:.0%}", f"{gold:.2f}"]


# ---- components.json, memory.json ----


def components(result: Result) -> str:
    """Overhead, and where the time goes."""
    seconds, hardware, ratio = result["seconds"], result["hardware"], result["overhead_ratio"]
    rows = [[phase, f"{found:.3f}", f"{found / seconds['total']:.1%}"] for phase, found in seconds.items()]
    return "\n\n".join([
        f"A whole training step of the recipe `{result['settings']['name']}` takes {ratio:.3f} of the time of the "
        f"network passes that it cannot do without, on {hardware['cores']} cores of a CPU (torch's threads: "
        f"{hardware['threads']}). It can be less than 1: a step has the adapter merged into the weights until gradient "
        "begins, and the bare passes have it beside them.",
        markdown(["phase", "seconds", "share"], rows),
    ])  # fmt: skip


def memory(result: Result) -> str:
    """Peaks by the number of frames scored, as multiples of one frame's."""
    cases = result["backward"]
    most = max(cases["split"], key=int)
    split, plain = (cases[kind][most]["ratio"] for kind in ("split", "plain"))
    rows = [
        [f"{kind} backward, {what}", *(f"{found[frames][key]:.2f}" for frames in found)]
        for kind, found in cases.items()
        for what, key in (("peak", "ratio"), ("rise above what is loaded", "rise_ratio"))
    ]
    return "\n\n".join([
        f"With {most} frames scored, a step of `{result['settings']['name']}` peaks at {split:.2f} of what it takes "
        f"with one under split backward, and at {plain:.2f} under plain.",
        markdown(["times one frame's", *(f"{frames} scored" for frames in cases["split"])], rows),
    ])  # fmt: skip


SECTIONS: dict[str, Callable[[Result], str]] = {
    "plan_gpu": plan_gpu,
    "prefix": prefix,
    "beside_paper": beside_paper,
    "components": components,
    "memory": memory,
}


def main() -> None:
    argparse.ArgumentParser(description="Refreshes docs/performance.md from benchmarks/results.").parse_args()
    write(RESULTS, PAGE)
    console.print(f"written to {PAGE}")


if __name__ == "__main__":
    run_script(main)
