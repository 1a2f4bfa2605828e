"""YAML as recipes have it: texts, numbers, lists and mappings, and nothing that grows or that runs.

In goes a text, out come Python's own values. Anchors may be used, but not to build what is endless or huge.
"""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from typing import Any

import yaml

from vader.errors import UserError

LONGEST = 2**20  # characters
MOST_VALUES = 10_000  # with every alias in full; a recipe has a hundred
PREFIX = "tag:yaml.org,2002:"
KINDS = {
    "null": "null", "bool": "true or false", "int": "an integer", "float": "a number",
    "str": "a text", "seq": "a list", "map": "a mapping",
}  # fmt: skip


def parse(text: str, where: str) -> Any:
    """The value that a YAML text stands for.

    Args:
        where: what the text is, for errors.

    Raises:
        UserError: it is not YAML, or holds what no recipe holds.
    """
    if len(text) > LONGEST:
        raise UserError(f"{where} has {len(text)} characters: a recipe has at most {LONGEST}")
    try:
        return copy.deepcopy(_loaded(text))
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise UserError(f"{where} is not valid YAML: {error.problem}{line}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{where} is no recipe: it is nested too deeply") from None


@lru_cache(maxsize=32)
def _loaded(text: str) -> Any:
    """What is read is often read again: a run's own recipe, whenever its report is written."""
    return yaml.load(text, Loader=Loader)


def _called(key: yaml.Node) -> str:
    """A key that is no text, as it stands there: YAML takes on, off, yes and no for truth values."""
    if not isinstance(key, yaml.ScalarNode):
        return "a key"
    return f"key {key.value}" + (", a truth value in YAML," if key.tag == f"{PREFIX}bool" else "")


class Loader(yaml.SafeLoader):
    """YAML in which `1e-4` is a number and a date a text; keys are texts, each given once."""

    def construct_document(self, node: yaml.Node) -> Any:
        _count(node, set(), {})
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = KINDS.get(node.tag.removeprefix(PREFIX))
        if kind is None:
            raise _mistake(node, f"the tag {node.tag.replace(PREFIX, '!!')!r} is none of a recipe")
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError):
            raise _mistake(node, f"{str(node.value)[:60]!r} is not {kind}") from None
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise _mistake(node, "a text holds what is no character")
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.tag not in (f"{PREFIX}str", f"{PREFIX}merge"):
                raise _mistake(key, f"{_called(key)} is no text: put quotes round it")
            if key.value in seen:
                raise _mistake(key, f"key {key.value!r} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Quotes the texts that `Loader` would read as numbers."""


def _mistake(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _count(node: yaml.Node, above: set[yaml.Node], known: dict[yaml.Node, int]) -> int:
    """How many values a node stands for, with every alias in full; those of each are counted once."""
    if node in above:
        raise _mistake(node, "an anchor holds itself")
    if node not in known:
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = [one for pair in below for one in pair] if isinstance(node, yaml.MappingNode) else below
        known[node] = 1 + sum(_count(one, above | {node}, known) for one in flat)
    if known[node] > MOST_VALUES:
        raise _mistake(node, f"it stands for more than {MOST_VALUES} values")
    return known[node]


# YAML 1.1 wants a dot in every float and a sign in every exponent; YAML 1.2 and everybody else do not.
_FLOAT = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$")
for _yaml_class in (Loader, Dumper):
    _yaml_class.add_implicit_resolver(f"{PREFIX}float", _FLOAT, list("-+.0123456789"))
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{PREFIX}timestamp"]
    for first, resolvers in Loader.yaml_implicit_resolvers.items()
}
