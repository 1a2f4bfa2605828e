"""`vader score`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from vader.cli.parts import print_wide, reward_section
from vader.cli.progress import progress
from vader.cli.root import app
from vader.errors import RunError, UserError

if TYPE_CHECKING:
    from vader.nouns import Prompt
    from vader.scoring.files import FileScore, PartScore


SPREAD = "±: how far a video's frames are apart (standard deviation); in the last row, the videos"


@app.command(
    epilog="Example: vader score videos/*.mp4 --reward aesthetic:checkpoint=tiny --reward hps:checkpoint=tiny,weight=5"
)
def score(
    paths: Annotated[list[Path], typer.Argument(help="Video files, folders of frames, or folders of these.")],
    rewards: Annotated[
        list[str],
        typer.Option("--reward", metavar="NAME[:KEY=VALUE,...]", help="A reward with its options; may be repeated."),
    ],
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="What all the videos should show; else as a prompts.json beside them says."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", metavar="FILE", help="A .txt file with a prompt a line, one for each video."),
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option("--max-frames", min=1, help="Score at most so many frames a video, spread evenly.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Score videos by rewards. Files that cannot be read are reported and the others scored; exit status 1 then."""
    sections = [reward_section(spec) for spec in rewards]
    from vader.engine.device import best_device
    from vader.files.paths import user_path
    from vader.rewards.registry import build_mix
    from vader.scoring.files import find_videos, score_files

    videos = find_videos([user_path(path, "video") for path in paths])
    texts = _prompts_to_score(videos, prompt, prompts)
    mix = build_mix(sections)
    mix.to(best_device())
    with progress("scored", len(videos)) as advance:
        scores = score_files(videos, mix, texts, max_frames, lambda _: advance(1))
    print(_scores_as_json(scores)) if as_json else _print_scores(scores)
    if unreadable := [score.error for score in scores if score.error]:
        count = f"{len(unreadable)} of {len(scores)} videos could not be scored"
        if len(unreadable) == 1:
            raise RunError(f"{count}: {unreadable[0]}")
        print(*unreadable, sep="\n", file=sys.stderr)
        raise RunError(count)


def _prompts_to_score(paths: list[Path], prompt: str | None, file: str | None) -> Sequence[str | Prompt]:
    """One for each video: as asked for, else as the list beside it says."""
    from vader.prompts import load_prompts
    from vader.scoring.files import prompts_beside

    if prompt is not None and file is not None:
        raise UserError("--prompt is one prompt for all videos, --prompts one for each: give one of the two")
    if file:
        return load_prompts(file)
    return prompts_beside(paths) if prompt is None else [prompt] * len(paths)


def _scores_as_json(scores: list[FileScore]) -> str:
    from vader.scoring.files import over_files

    files = [asdict(score) | {"path": str(score.path)} for score in scores]
    overall = over_files(scores)
    mean, std = ({name: getattr(part, kind) for name, part in overall.items()} for kind in ("mean", "std"))
    return json.dumps({"files": files, "mean": mean, "std": std}, indent=2)


def _print_scores(scores: list[FileScore]) -> None:
    """The table: mean ± spread over frames of each video, and over videos below; nothing where no video has a score."""
    from rich.table import Table

    from vader.scoring.files import over_files

    if not (overall := over_files(scores)):
        return
    table = Table("video", "frames", *overall, caption=SPREAD, caption_justify="left")
    for score in scores:
        if score.total is not None:
            parts = map(_mean_and_spread, score.parts.values())
            table.add_row(escape(str(score.path)), str(score.frames), *parts, f"{score.total:.4f}")
    table.add_section()
    table.add_row("mean", "", *map(_mean_and_spread, overall.values()))
    print_wide(table)


def _mean_and_spread(part: PartScore) -> str:
    return f"{part.mean:.4f}" if part.std is None else f"{part.mean:.4f} ± {part.std:.4f}"
