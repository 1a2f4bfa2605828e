"""Answers in files: what the study's page gave its raters, and what Mechanical Turk and Label Studio give back.

In go paths, out come sheets, all checked against the study. What a platform has left empty, as a task that was
skipped, is no answer.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vader.files.foreign import reading
from vader.files.paths import read_text, user_path
from vader.preference.answers import Sheet, checked_sheet, parse_sheet
from vader.preference.study import Study

Row = Mapping[str, Any]


def read_sheets(study: Study, paths: Sequence[Path]) -> list[Sheet]:
    """All sheets of all files: `.csv` is Mechanical Turk's table, a list in JSON Label Studio's export.

    Raises:
        UserError: a file cannot be read, is damaged, or does not belong to the study.
    """
    return [sheet for path in paths for sheet in _read(study, user_path(path, "answers"))]


def _read(study: Study, path: Path) -> list[Sheet]:
    what, content = f"answers {str(path)!r}", read_text(path, "answers")
    if path.suffix.lower() == ".csv":
        rows = csv.DictReader(io.StringIO(content))
        with reading(f"{what} are no results of a batch of Mechanical Turk"):
            return [checked_sheet(study, sheet, what) for row in rows for sheet in _of_worker(row)]
    if content.lstrip().startswith("["):
        with reading(f"{what} are no JSON export of Label Studio"):
            return [checked_sheet(study, sheet, what) for task in json.loads(content) for sheet in _of_task(task)]
    return [parse_sheet(study, content, what)]


def _of_worker(row: Row) -> Iterator[Sheet]:
    """A line of the table: a block of pairs by one worker. A line that was rejected does not count."""
    if row.get("AssignmentStatus") != "Rejected":
        yield _sheet(row["Input.study"], row["WorkerId"], json.loads(row["Answer.answers"]))


def _of_task(task: Row) -> Iterator[Sheet]:
    """A task: one pair, by as many people as have annotated it."""
    data = task["data"]
    for annotation in task["annotations"]:
        if not annotation.get("was_cancelled"):
            answers = [
                {"item": data["item"], "left": data["left_id"], "question": one["from_name"], "choice": choice}
                for one in annotation["result"]
                for choice in one["value"]["choices"]
                if data["prompt"] or one["from_name"] != "alignment"  # the form asks of every task the same
            ]
            yield _sheet(data["study"], _person(annotation["completed_by"]), answers)


def _person(by: Any) -> str:
    """Label Studio's number of a person, or all that it knows of them."""
    return f"labelstudio-{by['id'] if isinstance(by, dict) else by}"


def _sheet(study: str, rater: str, answers: Any) -> Sheet:
    return Sheet.model_validate({"study": study, "rater": rater, "answers": answers})
