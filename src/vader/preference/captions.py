"""The prompts of a folder of videos, by the list that lies beside them.

`prompts.json` as runs and `vader sample` leave it, `prompts.csv` with the columns `file` and `prompt`, or `prompts.txt`
with a line a video in the order of their names. In goes the folder, out come prompts by the stem of each file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from vader.errors import UserError
from vader.files.foreign import reading
from vader.files.paths import read_text
from vader.nouns import as_prompts
from vader.prompts import check_texts
from vader.scoring.files import prompts_beside


def captions_of(folder: Path, videos: Sequence[Path]) -> dict[str, str]:
    """Prompts by stem, as far as the folder says any: the first list that is there is the one that is read.

    Raises:
        UserError: the list is damaged, or has not as many lines as there are videos.
    """
    there = next((name for name in READERS if (folder / name).is_file()), None)
    if there is None:
        return {}
    found = {stem: text for stem, text in READERS[there](folder / there, videos).items() if text}
    check_texts(as_prompts(list(found.values())), str(folder / there))
    return found


def _from_json(path: Path, videos: Sequence[Path]) -> dict[str, str]:
    with reading(f"{path} is no list of files and their prompts"):
        return {video.stem: prompt.text for video, prompt in zip(videos, prompts_beside(videos), strict=True)}


def _from_csv(path: Path, videos: Sequence[Path]) -> dict[str, str]:
    with reading(f"{path} is no table with the columns 'file' and 'prompt'"):
        rows = csv.DictReader(io.StringIO(read_text(path, "prompts")), skipinitialspace=True)
        return {Path(row["file"]).stem: row["prompt"].strip() for row in rows}


def _from_text(path: Path, videos: Sequence[Path]) -> dict[str, str]:
    lines = [line.strip() for line in read_text(path, "prompts").split("\n") if line.strip()]
    if len(lines) != len(videos):
        raise UserError(f"{path} has {len(lines)} prompts for {len(videos)} videos: write one a line, by file name")
    return {video.stem: line for video, line in zip(videos, lines, strict=True)}


READERS: dict[str, Callable[[Path, Sequence[Path]], dict[str, str]]] = {
    "prompts.json": _from_json,
    "prompts.csv": _from_csv,
    "prompts.txt": _from_text,
}
