"""The rooms stand on floors: what a room imports stands below it, and no room goes through the package's face."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import vader

PACKAGE = Path(vader.__file__).parent
ROOMS = {path.stem for path in PACKAGE.iterdir() if path.name != "__init__.py"}


@cache
def _names(file: Path) -> list[list[str]]:
    """All that a file imports, wherever in it, each by the parts of its name."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [name.name.split(".") for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{name.name}".split(".") for name in node.names]
    return found


def _imported(file: Path) -> Iterator[str]:
    """The rooms that a file names; the face itself is `vader`."""
    for first, *rest in _names(file):
        if first == "vader":
            yield rest[0] if rest and rest[0] in ROOMS else "vader"


def test_rooms_stand_on_floors() -> None:
    below: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            below.setdefault(room, set()).update(set(_imported(file)) - {room})
    through_the_face = [room for room, rooms in below.items() if "vader" in rooms]
    assert not through_the_face
    assert len(list(TopologicalSorter(below).static_order())) == len(below) > 20  # raises CycleError on a circle


PROJECT = (PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
OPTIONAL = {"bitsandbytes", "fastapi", "tensorboard", "uvicorn", "wandb"}  # whose lack each says, with its extra


def _listed(requirements: str) -> set[str]:
    return {name.lower().replace("_", "-") for name in re.findall(r'"([\w-]+)[^"]*"', requirements)}


def _brought(name: str) -> set[str]:
    """What an installed distribution always brings."""
    return _listed(" ".join(f'"{one}"' for one in requires(name) or () if "extra ==" not in one))


def test_all_that_is_imported_is_installed_with_the_package() -> None:
    named = _listed(PROJECT.partition("\ndependencies = [")[2].partition("\n]")[0])
    extras = _listed(PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0])
    owners = packages_distributions()
    modules = {first for file in PACKAGE.rglob("*.py") for first, *_ in _names(file)} - {"vader"}
    foreign = {owners.get(one, [one])[0].lower().replace("_", "-") for one in modules - sys.stdlib_module_names}
    there = named.union(*map(_brought, named & foreign))
    assert foreign - there == OPTIONAL <= extras
    assert {"sentencepiece", "protobuf"} <= named  # transformers reads T5's vocabularies with them, and names neither
