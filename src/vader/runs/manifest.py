"""A checkpoint's manifest: in which version it is written, and a sum of each of its files.

In goes a checkpoint's folder, out comes why it cannot be used, if so: it is empty, half, damaged or of another version.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

STATE, MANIFEST = "state.pt", "manifest.json"
VERSION = 1  # of what is in a checkpoint
EMPTY = "it is empty"


def write_manifest(folder: Path) -> None:
    """Closes a checkpoint: nothing is written into the folder afterwards."""
    content = {"version": VERSION, "sha256": {path.name: _sha256(path) for path in sorted(folder.iterdir())}}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def fault_of(folder: Path, sums: bool = True) -> str | None:
    """Why a checkpoint cannot be used; None if it is whole.

    Args:
        sums: whether all of its files are read, to find what is damaged.
    """
    if not folder.is_dir():
        return "it is no folder"
    try:
        if not any(folder.iterdir()):
            return EMPTY
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["version"] != VERSION:
            return f"it is of version {manifest['version']}, and this vader reads version {VERSION}"
        expected = {STATE: "", **manifest["sha256"]}
        if missing := [name for name in expected if not (folder / name).is_file()]:
            return f"it has no {missing[0]}"
        damaged = [name for name, one in expected.items() if sums and _sha256(folder / name) != one]
    except FileNotFoundError:  # a run that goes on may have removed all of it meanwhile
        return f"it has no {MANIFEST}" if folder.is_dir() else "it is gone"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {MANIFEST} is damaged"
    return f"its {damaged[0]} is damaged" if damaged else None


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()
