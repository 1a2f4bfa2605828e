"""Recipes as YAML: read with dotted overrides, written whole, and compared."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from vader import __version__
from vader.errors import UserError, nearest
from vader.files.atomic import atomic_write
from vader.recipe.explain import explain, shown
from vader.recipe.moved import moved_keys
from vader.recipe.schema import Recipe

BUILT_IN = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(path.stem for path in BUILT_IN.glob("*.yaml"))


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        source: a built-in name (`recipe_names`) or the path of a YAML file.
        overrides: `dotted.path=value`, the value in YAML: `optimizer.lr=1e-4`, `rewards.0.weight=0.5`.

    Raises:
        UserError: no such recipe, not YAML, an unknown, missing or mistyped key, a key of the first form of recipes,
            or keys that contradict each other.
    """
    data = _read(_find(source))
    for override in overrides:
        path, value = _parsed(override)
        _refuse_moved(source, data | _nested(path, value))
        _override(data, path, value)
    _refuse_moved(source, data)
    return checked_recipe(data, source)


def checked_recipe(data: dict[str, Any], source: str) -> Recipe:
    """A recipe of plain values. Raises `UserError` as `load_recipe`; `source` says in it which recipe this is."""
    try:
        # Strict JSON mode takes lists for tuples and integers for floats, and converts nothing else.
        return Recipe.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise UserError(f"recipe {source!r}: {explain(error, data)}") from None


def dump_recipe(recipe: Recipe, path: Path, versions: Mapping[str, str]) -> None:
    """Writes every key of a recipe as YAML under a comment of versions; `load_recipe` gives back an equal recipe."""
    header = "# Resolved recipe. Made with " + ", ".join(f"{name} {number}" for name, number in versions.items())
    body = yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    with atomic_write(path) as temporary:
        temporary.write_text(f"{header}\n{body}", encoding="utf-8")


def in_one_line(value: Any) -> str:
    """A value of a recipe as YAML that may stand behind `key: `."""
    text = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return text.strip().removeprefix("[").removesuffix("]")


def library_versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    return (
        {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "diffusers", "peft")}
        | {"vader": __version__}
    )


def first_difference(there: Recipe, here: Recipe) -> str | None:
    """The first key by dotted path in which two recipes differ, with both values; None where they are equal."""
    ours, theirs = (dict(_flat(recipe.model_dump(mode="json"))) for recipe in (here, there))
    for key in [*ours, *theirs]:
        if ours.get(key) != theirs.get(key):
            return f"{key} is {theirs.get(key)} there and {ours.get(key)} here"
    return None


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings and lists, by dotted path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _flat(item, f"{path}.{key}".lstrip("."))
    if not items:
        yield path, value


def parse_value(text: str) -> Any:
    """A YAML scalar, list or mapping as written on the command line.

    Raises:
        UserError: the text is not YAML.
    """
    return _parse(text, where=repr(text))


def _find(source: str) -> Path:
    path = BUILT_IN / f"{source}.yaml" if source in recipe_names() else Path(source)
    if not path.is_file():
        hint = nearest(Path(source).stem, recipe_names())
        raise UserError(f"no recipe {source!r}: give a built-in name or the path of a YAML file; {hint}")
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        data = _parse(path.read_text(encoding="utf-8"), where=f"recipe file {str(path)!r}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe file {str(path)!r} cannot be read as text: {error}") from None
    if not isinstance(data, dict):
        raise UserError(
            f"recipe file {str(path)!r} holds no keys: expected a mapping with {', '.join(Recipe.model_fields)}"
        )
    return data


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise UserError(f"{where} is not valid YAML: {error.problem}{line}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


def _parsed(override: str) -> tuple[list[str], Any]:
    """An override's path and value."""
    dotted, equals, text = override.partition("=")
    if not (dotted and equals):
        raise UserError(f"override {override!r} has no value: write dotted.path=value, as in optimizer.lr=1e-4")
    return dotted.split("."), parse_value(text)


def _nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    """The sections in which there is nothing but this value."""
    first, *rest = path
    return {first: _nested(rest, value) if rest else value}


def _refuse_moved(source: str, data: Mapping[str, Any]) -> None:
    for moved in moved_keys(data):
        raise UserError(f"recipe {source!r}: {moved}")


def _override(data: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets one path in raw recipe data; sections on the way that are still at their defaults are opened."""
    *parents, last = path
    dotted = ".".join(path)
    here: Any = data
    for key in parents:
        here = here.setdefault(key, {}) if isinstance(here, dict) else here[_index(here, key, dotted)]
    here[last if isinstance(here, dict) else _index(here, last, dotted)] = value


def _index(here: Any, key: str, dotted: str) -> int:
    if not isinstance(here, list):
        raise UserError(f"override {dotted!r}: there is nothing below the value {shown(here)}, so no {key!r} in it")
    if not (key.isdecimal() and int(key) < len(here)):
        raise UserError(f"override {dotted!r}: {key!r} is no index of a list of {len(here)}; the first is 0")
    return int(key)


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-4` is a number, and a key given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would read as numbers."""


# YAML 1.1 wants a dot in every float and a sign in every exponent; YAML 1.2 and everybody else do not.
_FLOAT = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$")
for _yaml_class in (_Loader, _Dumper):
    _yaml_class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
