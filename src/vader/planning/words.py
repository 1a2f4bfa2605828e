"""A plan in words and a table: what a console shows of it."""

from __future__ import annotations

from shlex import quote

from rich.table import Table

from vader.errors import UserError
from vader.evaluation.formats import counted
from vader.planning.measured import Measured
from vader.planning.search import BESIDE, GIB, Plan
from vader.planning.step import PRECISION, Forecast, forecast
from vader.planning.switches import Changes
from vader.recipe import Recipe
from vader.recipe.files import in_one_line

PHASES = {
    "sample": "sampling without gradient",
    "gradient": "steps with gradient",
    "decode_reward": "decode and reward",
    "optimise": "optimiser",
    "other": "encoding and all else",
}


def headline(recipe: Recipe) -> str:
    """Of what the plan is."""
    size, train = recipe.video.size, recipe.train
    precision = PRECISION if recipe.model.precision == "auto" else recipe.model.precision
    videos, frames = counted(train.batch, "video"), counted(size.frames, "frame")
    return (
        f"{recipe.name}: a step of {videos} of {frames} of {size.height}x{size.width}, "
        f"{train.micro_batch or train.batch} at once, on one GPU in {precision}"
    )


def verdict(plan: Plan, card: int) -> str:
    """Whether it fits, and what makes it fit."""
    before = f"peak {plan.before.peak / GIB:.1f} GiB and about {BESIDE / GIB:g} beside tensors"
    if not plan.changes:
        return f"{before}: {'fits' if plan.fits else 'does not fit'} {card / GIB:g} GiB"
    what = "this does" if plan.fits else "and nothing here does: the least is"
    waits = f", {plan.after.host / GIB:.1f} GiB wait in CPU memory" if plan.after.host else ""
    return (
        f"{before}: does not fit {card / GIB:g} GiB; {what} {_settings(plan.changes)}\n"
        f"then peak {plan.after.peak / GIB:.1f} GiB, operations {plan.work - 1:+.0%}{waits}"
    )


def counted_line(changes: Changes, needs: Forecast) -> str:
    """How far a plan is: the step that was counted last."""
    return f"{_settings(changes) or 'as it is'}: peak {needs.peak / GIB:.1f} GiB"


def _settings(changes: Changes) -> str:
    return " ".join(quote(f"{key}={in_one_line(value)}") for key, value in changes.items())


def peak_line(recipe: Recipe) -> str:
    """What a dry run says of memory; of parts that need data to go through a step, why it says nothing."""
    try:
        found = forecast(recipe)
    except UserError as error:
        return f"how much memory a training step takes is not known before it: {error}"
    return (
        f"a training step takes {found.peak / GIB:.1f} GiB at its peak on a GPU, and about {BESIDE / GIB:g} beside "
        "tensors: 'vader plan' says where, and what lowers it"
    )


def table(found: Forecast, taken: Measured | None = None) -> Table:
    """Where the memory goes: what is always there, and the most in each phase; beside it what was measured."""
    shown = Table("what", "GiB", *(["GiB, measured"] if taken else []), title="Memory of a training step")
    for name, size in found.weights.items():
        shown.add_row(f"{name}, weights", f"{size / GIB:.2f}")
    shown.add_row("adapter, its copies and the optimiser's state", f"{found.adapter / GIB:.2f}", end_section=True)
    for phase, name in PHASES.items():
        if phase in found.peaks:
            beside = [f"{taken.peaks[phase] / GIB:.2f}"] if taken and phase in taken.peaks else []
            shown.add_row(f"{name}, peak", f"{found.peaks[phase] / GIB:.2f}", *beside)
    return shown


def measured_line(found: Forecast, taken: Measured) -> str:
    """What the step took, and how near the forecast was."""
    rate = found.operations / taken.seconds / 1e12
    return (
        f"measured: peak {taken.peak / GIB:.1f} GiB where {found.peak / GIB:.1f} were counted "
        f"({found.peak / taken.peak - 1:+.0%}); {taken.seconds:.1f} s a step, {rate:.0f} TFLOP/s "
        f"({counted(taken.videos, 'video')} of it were run, twice)"
    )
