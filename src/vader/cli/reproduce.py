"""`vader reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vader.cli.root import app
from vader.errors import UserError, nearest

SCALES = ("tiny", "full")


@app.command(epilog="Example: vader reproduce figure7 --only aesthetic --jobs 2")
def reproduce(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="figure3 to figure9, table1, table2, ablation-truncation or all.")
    ],
    scale: Annotated[str, typer.Option("--scale", help="tiny: on a CPU; full: given GPUs and checkpoints.")] = "tiny",
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="REWARD", help="aesthetic, text or action, of figure7, figure4 or table1."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each kind.")] = 3,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs side by side, which share the cores.")] = 1,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Recipes, runs and results.")] = Path(
        "reproduction"
    ),
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE", help="The page of results; default: DIR/results.md.")
    ] = None,
) -> None:
    """Reproduce the paper's figures and tables. The same command again goes on; finished runs are reused."""
    if scale not in SCALES:
        raise UserError(f"no scale {scale!r}: {nearest(scale, SCALES)}")
    from vader.files.paths import check_out

    check_out(out)
    from vader.studies import reproduce as run
    from vader.studies.study import Options

    options: Any = Options(scale, only, seeds)  # type: ignore[arg-type]
    print(*run(what, options, out, jobs, page), sep="\n")
