"""What several commands share: models and rewards as they are named on the command line, and tables."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from vader.errors import UserError, nearest

AdapterOption = Annotated[
    Path | None,
    typer.Option(
        "--adapter",
        metavar="ADAPTER",
        help="A file, its folder, a run, a run's checkpoint as in runs/tiny@20, or its best, runs/tiny@best.",
    ),
]

TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Import the code (module:Name) that a run's recipe names: it may do all.")
]

if TYPE_CHECKING:
    from rich.table import Table

    from vader.models.base import VideoModel
    from vader.plugins import Part
    from vader.recipe import ModelSection, Recipe, RewardSection
    from vader.runs.reader import Run


def model_section(spec: str) -> ModelSection:
    """`family:checkpoint`; a family of one's own has a colon itself: `module:Class:checkpoint`.

    `module:Class` alone, known by the capital, is given the checkpoint "none".
    """
    from vader.models.registry import model_names
    from vader.recipe import ModelSection

    parts = spec.split(":")
    cut = 1 if parts[0] in model_names() else 2
    family, checkpoint = ":".join(parts[:cut]), ":".join(parts[cut:])
    if len(parts) == 2 and parts[1][:1].isupper() and not checkpoint:
        checkpoint = "none"
    if not checkpoint:
        hint = nearest(parts[0], model_names())
        raise UserError(
            f"model {spec!r}: write family:checkpoint, as in modelscope:tiny, or module:Class:checkpoint; {hint}"
        )
    return ModelSection(family=family, checkpoint=checkpoint)


def load_with_adapter(section: ModelSection, adapter: Path | None) -> VideoModel:
    """A model on this machine's device, with an adapter (`find_adapter`) if one is named."""
    from vader.engine.device import best_device, frozen_dtype
    from vader.models.registry import load_model
    from vader.networks.adapter_files import load_adapters
    from vader.runs.adapters import find_adapter

    found = find_adapter(adapter) if adapter is not None else None  # before anything large is loaded
    device = best_device()
    dtype = frozen_dtype(section.precision, device)
    model = load_model(section.family, section.checkpoint, dtype=dtype, device=device, options=section.options)
    if found is not None:
        load_adapters(model.denoisers, found, model.family)
    return model


def recipe_of(adapter: Path | None) -> str | None:
    """The recipe of the run whose adapter this is; None of an adapter that is named by its file or folder."""
    from vader.runs.adapters import run_of

    run = run_of(adapter) if adapter is not None else None
    return str(run.recipe) if run else None


def with_changes(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with every change of a key that was asked for (is not None), `video__frames` for `video.frames`.

    Raises:
        UserError: a value is none of its key's.
    """
    from vader.recipe import changed

    return changed(recipe, {key.replace("__", "."): value for key, value in changes.items() if value is not None})


def tell_left_out(runs: Iterable[Run]) -> None:
    """One line a run that holds what could not be used."""
    for run in runs:
        if run.left_out:
            print(f"vader: left out of {run.path}: {'; '.join(run.left_out)}", file=sys.stderr)


def reward_section(spec: str) -> RewardSection:
    """`name` or `name:key=value,key=value`; a name of one's own has a colon itself: `module:Class`."""
    from pydantic import ValidationError

    from vader.recipe import RewardSection

    try:
        return RewardSection.model_validate(_parsed("reward", spec))
    except ValidationError:
        raise UserError(f"reward {spec!r}: its weight must be a number") from None


BETWEEN = r",(?![^\[{]*[\]}])"  # options: commas, but for those of a list or mapping


def metric_part(spec: str) -> Part:
    """A metric, written as `reward_section` reads rewards."""
    from vader.plugins import Part

    return Part.model_validate(_parsed("metric", spec))


def _parsed(kind: str, spec: str) -> dict[str, Any]:
    from vader.recipe import parse_value

    match = re.fullmatch(r"([^=]+?)(?::([^:=]+=.*))?", spec)
    pairs = [pair.partition("=") for pair in re.split(BETWEEN, match[2] or "") if pair] if match else []
    if not match or not all(equals for _, equals, _ in pairs):
        raise UserError(f"{kind} {spec!r}: write name or name:key=value,key=value, as in aesthetic:checkpoint=tiny")
    return {"name": match[1]} | {key: parse_value(value) for key, _, value in pairs}


PIPED = 120  # characters that a table of figures is wide at most in a file or pipe


def print_figures(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table turned over: a line a figure and a column a row, so that a terminal shows all of it.

    Columns that do not fit side by side come below, under the figures' names again.
    """
    from rich.console import Console
    from rich.table import Table

    from vader.evaluation.formats import in_console

    console = Console()
    room = (console.width if console.is_terminal else PIPED) - _width(head) - 1
    columns = [[in_console(cell) for cell in row] for row in rows]
    for some in _side_by_side(columns, room):
        (labels, *lines) = zip(head, *some, strict=True)
        table = Table(*map(escape, labels))
        for cells in lines:
            table.add_row(*map(escape, cells))
        print_wide(table)


def _side_by_side(columns: Iterable[Sequence[str]], room: int) -> Iterator[list[Sequence[str]]]:
    """Neighbours for which there is room, and at least one."""
    some: list[Sequence[str]] = []
    for column in columns:
        if some and sum(map(_width, [*some, column])) > room:
            yield some
            some = []
        some.append(column)
    yield some


def _width(column: Sequence[str]) -> int:
    """Of a column with its frame, in a console's characters."""
    from rich.cells import cell_len

    return max(map(cell_len, column)) + 3


def print_wide(table: Table) -> None:
    """On a terminal as it fits, long words folded and never cut; into a file or pipe without breaking a path."""
    from rich.console import Console

    for column in table.columns:
        column.overflow = "fold"
    console = Console()
    (console if console.is_terminal else Console(width=1000)).print(table)
