"""A study as its folder keeps it: which pairs are shown, and, in `study.json` alone, which system made which video.

In goes that file, out comes a `Study`. Whatever raters see has random ids: of videos, of pairs, of the study itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from vader.errors import UserError
from vader.files.atomic import atomic_write
from vader.files.paths import read_text, user_path
from vader.plugins import one_line

KEY, PAGE, VIDEOS, ANSWERS = "study.json", "study.html", "videos", "answers.sqlite"
VERSION = 1  # of the key
Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]

# The paper's two questions (section 5.3), and one on what its temporal rewards are for.
QUESTIONS = {
    "fidelity": "Which video has the higher quality?",
    "alignment": "Which video matches the text better?",
    "motion": "In which video do things move more naturally?",
}
CHECKED = "fidelity"  # the question whose right answer is beyond doubt where one of two videos is destroyed
PASSED = 0.8  # of the attention checks that a rater has met, so many must be right


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Video(_Record):
    """One video. `system` is None for one that was destroyed for a check; `source` tells it from its kin."""

    system: str | None
    source: str


class Item(_Record):
    """A pair as it is shown. `right` is the video that is better beyond doubt, in an attention check."""

    id: Id
    prompt: str
    videos: tuple[Id, Id]
    right: Id | None = None


class Study(_Record):
    """All of a study. Raters take its blocks in an order of their own; each block has one attention check."""

    version: Literal[1] = 1
    id: Id
    systems: tuple[str, ...]
    videos: dict[Id, Video]
    blocks: tuple[tuple[Item, ...], ...]

    @model_validator(mode="after")
    def _whole(self) -> Study:
        """Raises `ValueError` if an item shows what is not there, or two have one id."""
        shown = {video for item in self.items() for video in (*item.videos, *([item.right] if item.right else []))}
        if missing := shown - self.videos.keys():
            raise ValueError(f"it has no video {min(missing)!r}")
        ids = [item.id for item in self.items()]
        if len(set(ids)) < len(ids):
            raise ValueError("two pairs have the same id")
        return self

    def items(self) -> Iterator[Item]:
        return (item for block in self.blocks for item in block)

    def system_of(self, video: str) -> str:
        """Who made a video that is part of a pair; of a destroyed one there is no answer to ask for."""
        system = self.videos[video].system
        assert system is not None, video
        return system


def questions_of(item: Item) -> list[str]:
    """What is asked of a pair: nothing about a text that it has not."""
    return [name for name in QUESTIONS if item.prompt or name != "alignment"]


def write_study(study: Study, folder: Path) -> Path:
    with atomic_write(folder / KEY) as temporary:
        temporary.write_text(study.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return folder / KEY


def read_study(folder: Path) -> Study:
    """The study of a folder.

    Raises:
        UserError: there is none, or its key is damaged.
    """
    path = user_path(folder, "study") / KEY
    if not path.is_file():
        raise UserError(f"{str(folder)!r} is no study's folder: there is no {KEY} in it, which `vader study new` makes")
    try:
        return Study.model_validate_json(read_text(path, "study"))
    except ValidationError as error:
        raise UserError(f"study {str(path)!r} is damaged: {told(error)}") from None


def told(error: ValidationError) -> str:
    """Where the first mistake is, and what it is, in one line."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {one_line(ValueError(first['msg']))}" if where else one_line(ValueError(first["msg"]))
