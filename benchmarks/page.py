"""Writes docs/performance.md's numbers from the results: between its marks, every other word stays.

    python benchmarks/page.py

In go the JSON files of benchmarks/results; a section whose file is missing stays as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from beside_paper import OURS, PUBLISHED
from full_size import FEW_STEPS, SHIPPED
from measuring import GIB, RESULTS, console, run_script

from vader.files.atomic import atomic_write
from vader.studies.formats import markdown
from vader.studies.pages import refreshed, wrapped

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
TITLES = {"modelscope": "ModelScope", "videocrafter": "VideoCrafter2", "svd": "SVD", "opensora": "Open-Sora 1.2"}
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
        f"{len(cases)} steps of {len({case['model'] for case in cases})} models.",
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
    return [_subject(case), case["case"], *sizes, f"{case['ratio']:.3f}"]


def _use(case: Result) -> list[str]:
    figures = [f"{case['operations'] / 1e12:,.0f}", f"{case['seconds']:.1f}", f"{case['share']:.0%}"]
    return [_subject(case), case["case"], *figures]


# ---- beside_paper.json ----


def beside_paper(result: Result) -> str:
    """The two steps' work, and the CPU time of ours as a share of the published one's."""
    theirs, ours = (result["counted"][name] for name in (PUBLISHED, SHIPPED))
    more = ours["operations"] / theirs["operations"] - 1
    shipped, one_call = (result["share"][name] for name in (SHIPPED, "guidance in one call"))
    names = list(theirs["passes"])
    rows = [[name, *_work(result, name, names)] for name in (PUBLISHED, *OURS)]
    return "\n\n".join([
        f"At full size the published step takes {theirs['operations'] / 1e12:.0f} TFLOP, and ours, as its recipe "
        f"ships, {abs(more):.1%} {'more' if more > 0 else 'less'}. On a network of the same architecture with "
        f"{result['parameters'] / 1e6:.0f} million parameters, on a CPU, ours takes {shipped:.2f} of its time as the "
        f"recipe ships, and {one_call:.2f} with guidance in one call (median of {len(result['shares'][SHIPPED])}).",
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


# ---- components.json, memory.json ----


def components(result: Result) -> str:
    """Overhead, and where the time goes."""
    seconds, hardware, ratio = result["seconds"], result["hardware"], result["overhead_ratio"]
    rows = [[phase, f"{found:.3f}", f"{found / seconds['total']:.1%}"] for phase, found in seconds.items()]
    return "\n\n".join([
        f"A whole training step of the recipe `{result['settings']['name']}` takes {ratio:.3f} of the time of the "
        f"network passes that it cannot do without, on {hardware['cores']} cores of a CPU (torch's threads: "
        f"{hardware['threads']}).",
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
