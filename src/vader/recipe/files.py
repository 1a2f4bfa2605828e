"""Recipes as YAML: read with dotted overrides, written whole, and compared."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from vader.errors import UserError, closest, nearest
from vader.files.atomic import atomic_write
from vader.files.paths import is_path, read_text, short, user_path
from vader.plugins import is_code, look_beside, run_around
from vader.recipe.explain import explain, shown
from vader.recipe.moved import moved_keys
from vader.recipe.parse import Dumper, parse
from vader.recipe.schema import Recipe
from vader.version import __version__

BUILT_IN = Path(__file__).parent / "recipes"
DEEPEST = 20  # keys in a dotted path


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(path.stem for path in BUILT_IN.glob("*.yaml"))


def load_recipe(source: str, overrides: Sequence[str] = (), *, trust_code: bool = False) -> Recipe:
    """Reads a recipe. Modules beside a file of the user's own are found from now on.

    Args:
        source: a built-in name (`recipe_names`) or the path of a YAML file.
        overrides: `dotted.path=value`, the value in YAML: `optimizer.lr=1e-4`, `rewards.0.weight=0.5`.
        trust_code: a recipe that comes with a run's folder may name code (`module:Name`), or nothing of it is built.

    Raises:
        UserError: no such recipe, not YAML, an unknown, missing or mistyped key, a key of the first form of recipes,
            keys that contradict each other, or code that is not trusted.
    """
    path = _find(source)
    data = _read(path)
    theirs = set(_code(data)) if _is_of_run(path) else set()
    recipe = _validated(source, data, overrides)
    foreign = [f"{key}: {spec}" for key, spec in _code(recipe.model_dump(mode="json")) if (key, spec) in theirs]
    if foreign and not trust_code:
        raise UserError(
            f"{str(path)!r} names code ({', '.join(foreign)}) and may come with a stranger's run: "
            "add --trust-code if you know it, or give a recipe of your own another name and place"
        )
    if trust_code or not _is_of_run(path):
        look_beside(path)
    return recipe


def _validated(source: str, data: dict[str, Any], overrides: Sequence[str]) -> Recipe:
    for override in overrides:
        keys, value = _parsed(override)
        _refuse_moved(source, data | _nested(keys, value))
        _override(data, keys, value)
    _refuse_moved(source, data)
    return checked_recipe(data, f"recipe {short(source)}")


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with these values, by dotted path. Raises `UserError` as `load_recipe`."""
    data = recipe.model_dump(mode="json")
    for dotted, value in changes.items():
        _override(data, dotted.split("."), value)
    return checked_recipe(data, "what was asked for")


def checked_recipe(data: dict[str, Any], where: str) -> Recipe:
    """A recipe of plain values. Raises `UserError` as `load_recipe`; `where` says in it which recipe this is."""
    try:
        # Strict JSON mode takes lists for tuples and integers for floats, and converts nothing else.
        return Recipe.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, data)}") from None


def _is_of_run(path: Path) -> bool:
    """Whether a recipe comes with a run's folder: the name alone says so, as does what lies beside it."""
    return path.name == "recipe.yaml" or run_around(path.absolute()) is not None


def _code(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Everything in a recipe that would be imported, by dotted path: names of parts, the family, sets of prompts."""
    for key, value in _flat(data):
        names = key.endswith(".name") or key in ("model.family", "prompts.train", "prompts.test")
        if names and isinstance(value, str) and is_code(value):
            yield key, value


def dump_recipe(recipe: Recipe, path: Path, versions: Mapping[str, str]) -> None:
    """Writes every key of a recipe as YAML under a comment of versions; `load_recipe` gives back an equal recipe."""
    header = "# Resolved recipe. Made with " + ", ".join(f"{name} {number}" for name, number in versions.items())
    body = yaml.dump(recipe.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True)
    with atomic_write(path) as temporary:
        temporary.write_text(f"{header}\n{body}", encoding="utf-8")


def in_one_line(value: Any) -> str:
    """A value of a recipe as YAML that may stand behind `key: `."""
    text = yaml.dump([value], Dumper=Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
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
        there_and_here = [in_one_line(side[key]) if key in side else "left out" for side in (theirs, ours)]
        if there_and_here[0] != there_and_here[1]:
            return f"{key} is {there_and_here[0]} there and {there_and_here[1]} here"
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
    return parse(text, where=short(text))


def _find(source: str) -> Path:
    path = BUILT_IN / f"{source}.yaml" if source in recipe_names() else user_path(source, "recipe")
    if not path.exists() and is_path(source):
        meant = closest(path.stem, recipe_names())
        instead = f"did you mean the built-in {meant!r}?" if meant else "give a file, or a name of 'vader list recipes'"
        raise UserError(f"recipe file {short(source)} does not exist: {instead}")
    if not path.exists() or (path.is_dir() and not is_path(source)):
        hint = nearest(source, recipe_names())
        raise UserError(f"no recipe {source!r}: give a built-in name or the path of a YAML file; {hint}")
    return path


def _read(path: Path) -> dict[str, Any]:
    where = f"recipe file {str(path)!r}"
    data = parse(read_text(path, "recipe file"), where)
    if not isinstance(data, dict):
        raise UserError(f"{where} holds no keys: expected a mapping with {', '.join(Recipe.model_fields)}")
    return data


def _parsed(override: str) -> tuple[list[str], Any]:
    """An override's path and value."""
    dotted, equals, text = override.partition("=")
    if not (dotted and equals):
        raise UserError(f"override {short(override)} has no value: write dotted.path=value, as in optimizer.lr=1e-4")
    path = dotted.split(".")
    if "" in path or len(path) > DEEPEST:
        raise UserError(f"override {short(override)}: {short(dotted)} is no path of keys, as optimizer.lr is")
    return path, parse_value(text)


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
