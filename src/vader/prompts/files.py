"""Reads the files that prompts come in: texts, tables with labels and images, and pictures.

In goes a path, out come `Prompt`s. Image paths in a file are relative to that file. Whatever is wrong in a
file is one `UserError` that says where.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vader.errors import UserError, nearest
from vader.files.paths import read_text as read_utf8
from vader.files.paths import user_path
from vader.nouns import Prompt

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
COLUMNS = ("prompt", "label", "image", "negative", "last_image")


def read_text(path: Path) -> list[Prompt]:
    """A prompt a line; `#` starts a comment line. A file of which every line names a picture is a list of pictures.

    Raises:
        UserError: no such file, not text, a picture is missing.
    """
    lines = [(number, line.strip()) for number, line in enumerate(_content(path).split("\n"), start=1)]
    texts = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if texts and all(line.lower().endswith(IMAGES) for _, line in texts):
        return [_prompt({"image": line}, path, number) for number, line in texts]
    return [Prompt(line) for _, line in texts]


def read_csv(path: Path) -> list[Prompt]:
    """A table with a header: `prompt` and, if you like, the other `COLUMNS`; `prompt` may be left out beside `image`.

    Raises:
        UserError: no such file, not text, a column is missing or unknown, a row doesn't fit, a picture is missing.
    """
    reader = csv.DictReader(io.StringIO(_content(path)), skipinitialspace=True)
    try:
        columns = [(name or "").strip() for name in reader.fieldnames or ()]
        _check_columns(columns, f"prompt file {str(path)!r}")
        reader.fieldnames = columns
        return [_prompt(_whole(row, path, reader.line_num), path, reader.line_num) for row in reader]
    except csv.Error as error:
        raise UserError(f"{_at(path, reader.line_num)} is no line of a table: {error}") from None


def read_jsonl(path: Path) -> list[Prompt]:
    """A JSON object a line, with the keys of `read_csv`'s columns; a bare string is a prompt.

    Raises:
        UserError: no such file, not text, a line is no such object, a picture is missing.
    """
    lines = enumerate(_content(path).split("\n"), start=1)
    return [_prompt(_object(line, path, number), path, number) for number, line in lines if line.strip()]


def read_image(path: Path) -> list[Prompt]:
    """One picture: its prompt is its name in words.

    Raises:
        UserError: no such file.
    """
    if not path.is_file():
        raise UserError(f"image {str(path)!r} does not exist: give a picture, or a folder of pictures")
    return [_named(path)]


def read_folder(path: Path) -> list[Prompt]:
    """The pictures of a folder (not of its subfolders) by name: each one's prompt is its name in words.

    Raises:
        UserError: there are none.
    """
    pictures = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES and file.is_file())
    if not pictures:
        raise UserError(f"folder {str(path)!r} holds no pictures: it needs files that end in {', '.join(IMAGES)}")
    return [_named(picture) for picture in pictures]


def read_pictures(path: Path) -> list[Prompt]:
    """A picture, or the pictures of a folder, as `read_image` and `read_folder`.

    Raises:
        UserError: no such file or folder, it is no picture, or there is none in it.
    """
    path = user_path(path, "image")
    if path.is_dir():
        return read_folder(path)
    if path.is_file() and path.suffix.lower() not in IMAGES:
        raise UserError(f"image {str(path)!r} is no picture: its name must end in {', '.join(IMAGES)}")
    return read_image(path)


READERS: dict[str, Callable[[Path], list[Prompt]]] = {
    ".txt": read_text,
    ".csv": read_csv,
    ".jsonl": read_jsonl,
    **dict.fromkeys(IMAGES, read_image),
}


def _content(path: Path) -> str:
    return read_utf8(path, "prompt file")


def _check_columns(columns: list[str], where: str) -> None:
    for name in columns:
        if name not in COLUMNS:
            raise UserError(f"{where} has a column {name!r}: {nearest(name, COLUMNS)}")
        if columns.count(name) > 1:
            raise UserError(f"{where} has two columns {name!r}: keep one")
    if columns and "prompt" not in columns and "image" not in columns:
        raise UserError(f"{where} has no column 'prompt': name the columns {', '.join(COLUMNS)} in the first line")


def _whole(row: dict[Any, Any], path: Path, line: int) -> dict[str, Any]:
    if None in row:
        raise UserError(f"{_at(path, line)} has more columns than the header: put quotes round text with commas")
    return row


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets without end, too
        raise UserError(f"{_at(path, number)} is not JSON: {error}") from None
    found = {"prompt": found} if isinstance(found, str) else found
    if not isinstance(found, dict) or not all(isinstance(value, str | None) for value in found.values()):
        raise UserError(f'{_at(path, number)} is no object of texts: write {{"prompt": "a dog runs"}}')
    _check_columns(list(found), _at(path, number))
    return found


def _prompt(row: Mapping[str, str | None], path: Path, line: int) -> Prompt:
    text, label, negative = ((row.get(name) or "").strip() for name in ("prompt", "label", "negative"))
    image, last_image = (_picture(row.get(name), path, line) for name in ("image", "last_image"))
    if not text and image is None:
        raise UserError(f"{_at(path, line)} has no prompt: write a text or name an image")
    if not text and image is not None:
        return replace(_named(image), negative=negative, label=label or None, last_image=last_image)
    return Prompt(text, negative, label or None, image, last_image)


def _picture(name: str | None, path: Path, line: int) -> Path | None:
    """The picture of that name, relative to the prompt file; None where none is named."""
    if not (name and name.strip()):
        return None
    picture = path.parent / user_path(name.strip(), f"{_at(path, line)} names an image:")
    if not picture.is_file():
        raise UserError(f"{_at(path, line)} names the image {str(picture)!r}, which does not exist")
    return picture


def _at(path: Path, line: int) -> str:
    return f"line {line} of prompt file {str(path)!r}"


def _named(picture: Path) -> Prompt:
    """A picture without a text: its name in words stands for one."""
    return Prompt(picture.stem.replace("_", " ").replace("-", " ").strip(), image=picture, text_is_name=True)
