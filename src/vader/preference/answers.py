"""What raters answered: as their pages send it or leave it in files, checked against the study.

In go JSON of strangers, out come `Sheet`s, and from all of them one `Judgement` a rater, pair and question. What names
another study, a pair that it has not, or a video that was not on the left of it, is refused as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from vader.errors import UserError
from vader.preference.study import Id, Item, Study, questions_of, told

MOST = 10_000  # answers in one sheet


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Answer(_Sent):
    """One answer: which of the two was preferred, and which of them stood on the left."""

    item: Id
    question: str
    choice: Literal["left", "tie", "right"]
    left: Id
    seconds: Annotated[float, Field(ge=0, le=1e7)] = 0.0  # from when the pair came up


class Sheet(_Sent):
    """Answers of one rater, all or some. The rater is a random number, or whatever a marketplace calls its workers."""

    study: Id
    rater: Annotated[str, StringConstraints(pattern=r"^[\w.@-]{1,64}$")]
    name: Annotated[str, StringConstraints(max_length=40, strip_whitespace=True)] = ""
    answers: Annotated[tuple[Answer, ...], Field(max_length=MOST)]


@dataclass(frozen=True)
class Judgement:
    """One answer about one pair. `winner` is a video's id; None is a tie. `seconds` are from when the pair came up."""

    rater: str
    item: Item
    question: str
    winner: str | None
    seconds: float


def parse_sheet(study: Study, content: str | bytes, what: str) -> Sheet:
    """A sheet that belongs to the study.

    Raises:
        UserError: it is no sheet, is of another study, or of what the study has not; begins with `what`.
    """
    try:
        sheet = Sheet.model_validate_json(content)
    except ValidationError as error:
        raise UserError(f"{what}: {told(error)}") from None
    return checked_sheet(study, sheet, what)


def checked_sheet(study: Study, sheet: Sheet, what: str) -> Sheet:
    """The sheet itself. Raises `UserError` as `parse_sheet`."""
    items = {item.id: item for item in study.items()}
    if sheet.study != study.id:
        raise UserError(f"{what}: it answers another study ({sheet.study})")
    for answer in sheet.answers:
        item = items.get(answer.item)
        if item is None:
            raise UserError(f"{what}: the study has no pair {answer.item!r}")
        if answer.left not in item.videos:
            raise UserError(f"{what}: pair {answer.item!r} has no video {answer.left!r}")
        if answer.question not in questions_of(item):
            raise UserError(f"{what}: pair {answer.item!r} asks no question of that name")
    return sheet


def judgements(study: Study, sheets: Iterable[Sheet]) -> list[Judgement]:
    """One a rater, pair and question: where there are several, as when an answer was corrected, the last one."""
    items = {item.id: item for item in study.items()}
    found = {}
    for sheet in sheets:
        for answer in sheet.answers:
            item = items[answer.item]
            found[sheet.rater, item.id, answer.question] = Judgement(
                sheet.rater, item, answer.question, _winner(item, answer), answer.seconds
            )
    return list(found.values())


def _winner(item: Item, answer: Answer) -> str | None:
    if answer.choice == "tie":
        return None
    right = next(video for video in item.videos if video != answer.left)
    return answer.left if answer.choice == "left" else right
