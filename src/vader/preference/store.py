"""Answers that a server has taken: an SQLite file in which an answer that was acknowledged is on the disk.

In go sheets, out come all sheets so far, one a rater. Writing is one transaction a sheet, in WAL mode with
`synchronous=FULL`: after `kill -9` or a power failure a sheet is there whole or not at all.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from threading import Lock

from vader.errors import UserError
from vader.preference.answers import Answer, Sheet
from vader.preference.study import ANSWERS, Study

TABLES = """
CREATE TABLE IF NOT EXISTS raters (rater TEXT PRIMARY KEY, name TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS answers (
  rater TEXT NOT NULL, item TEXT NOT NULL, question TEXT NOT NULL, choice TEXT NOT NULL, left TEXT NOT NULL,
  seconds REAL NOT NULL, at TEXT NOT NULL DEFAULT (datetime('now')),
  PRIMARY KEY (rater, item, question)
) STRICT;
"""
COLUMNS = "rater, item, question, choice, left, seconds"
PATIENCE = 30.0  # seconds that a writer waits for another


class Store:
    """The answers of one study's folder; to be used by any number of threads."""

    def __init__(self, folder: Path, study: Study) -> None:
        """Raises `UserError` if the file cannot be written, or is no SQLite file."""
        self.path, self.study = folder / ANSWERS, study
        self._lock = Lock()
        try:
            self._connection = sqlite3.connect(self.path, timeout=PATIENCE, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(TABLES)
        except sqlite3.Error as error:
            raise UserError(f"answers cannot be kept in {self.path}: {error}") from error

    def add(self, sheet: Sheet) -> None:
        """Returns once the sheet is on the disk. Raises `sqlite3.Error` if it could not be written."""
        rows = [(sheet.rater, a.item, a.question, a.choice, a.left, a.seconds) for a in sheet.answers]
        with self._lock, self._connection:
            self._connection.execute("INSERT OR REPLACE INTO raters VALUES (?, ?)", (sheet.rater, sheet.name))
            self._connection.executemany(f"INSERT OR REPLACE INTO answers ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", rows)

    def sheets(self) -> list[Sheet]:
        """All answers, one sheet a rater."""
        with self._lock:
            return _sheets(self._connection, self.study)

    def close(self) -> None:
        self._connection.close()


def stored_sheets(folder: Path, study: Study) -> list[Sheet]:
    """What a server has taken so far, also while it runs; nothing where none ran.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / ANSWERS
    if not path.is_file():
        return []
    try:
        with closing(sqlite3.connect(path, timeout=PATIENCE)) as connection:
            return _sheets(connection, study)
    except (sqlite3.Error, ValueError) as error:
        raise UserError(f"answers {str(path)!r} cannot be read: {error}") from error


def _sheets(connection: sqlite3.Connection, study: Study) -> list[Sheet]:
    names = dict(connection.execute("SELECT rater, name FROM raters"))
    found: dict[str, list[Answer]] = defaultdict(list)
    for rater, *answer in connection.execute(f"SELECT {COLUMNS} FROM answers ORDER BY rater, rowid"):
        found[rater].append(Answer(**dict(zip(Answer.model_fields, answer, strict=True))))
    return [
        Sheet(study=study.id, rater=rater, name=names.get(rater, ""), answers=tuple(answers))
        for rater, answers in found.items()
    ]
