"""`vader check`: a reward or a model of one's own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from vader.cli.parts import load_with_adapter, model_section, print_wide, reward_section
from vader.cli.root import app
from vader.errors import RunError, UserError

if TYPE_CHECKING:
    from vader.nouns import VideoSize
    from vader.tools.check import Check

check_app = typer.Typer(help="Prove that a reward or a model of your own keeps its contract, before hours are spent.")
app.add_typer(check_app, name="check")


@check_app.command("reward", epilog="Example: vader check reward my_rewards:Redness:strength=3")
def check_reward(
    spec: Annotated[str, typer.Argument(metavar="NAME[:KEY=VALUE,...]", help="A name or module:Class, with options.")],
) -> None:
    """Check a reward: shapes, batch independence, a gradient that reaches pixels and agrees with finite differences."""
    section = reward_section(spec)
    from vader.rewards.registry import load_reward
    from vader.tools import check

    _print_checks(check.check_reward(load_reward(section.name, **section.options)))


@check_app.command("model", epilog="Example: vader check model my_models:Mine:path/to/checkpoint --size 16x256x256")
def check_model(
    spec: Annotated[
        str, typer.Argument(metavar="FAMILY[:CHECKPOINT]", help="A family or module:Class, and what it loads.")
    ],
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="FRAMESxHEIGHTxWIDTH", help="The videos to check it on; else the model's own."),
    ] = None,
) -> None:
    """Check a model: shapes, ranges, batch independence, frozen weights, a gradient that reaches the adapter."""
    video = None if size is None else _video_size(size)
    section = model_section(spec)
    from vader.tools import check

    _print_checks(check.check_model(load_with_adapter(section, adapter=None), video))


def _video_size(text: str) -> VideoSize:
    from vader.nouns import VideoSize

    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2}", text):
        raise UserError(f"size {text!r}: write FRAMESxHEIGHTxWIDTH, as in 16x256x256")
    return VideoSize(*map(int, text.split("x")))


def _print_checks(checks: list[Check]) -> None:
    """The table of checks; a check that failed is exit status 1."""
    from rich.table import Table

    table = Table("check", "", "what was found")
    for item in checks:
        table.add_row(item.name, "[green]pass[/]" if item.passed else "[red]FAIL[/]", escape(item.detail))
    print_wide(table)
    if failed := [item.name for item in checks if not item.passed]:
        raise RunError(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")
