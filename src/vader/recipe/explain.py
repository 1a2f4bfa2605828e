"""Turns a recipe's validation error into one line: which key, what it is and what it should be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic import ValidationError

from vader.errors import nearest
from vader.recipe.schema import Recipe


def explain(error: ValidationError, data: dict[str, Any]) -> str:
    """One line on the most telling of pydantic's errors: a misspelt key before what is missing because of it."""
    order = ("extra_forbidden", "value_error")
    first = min(error.errors(), key=lambda e: order.index(e["type"]) if e["type"] in order else len(order))
    if first["type"] == "json_invalid":  # only half a character, as bytes that are no UTF-8 give, has no JSON
        return "a text holds what is no character"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    path, node = _locate(first["loc"])
    dotted = ".".join(map(str, path))
    if first["type"] == "extra_forbidden":
        unknown = str(first["loc"][-1])
        return f"unknown key {'.'.join([*map(str, path), unknown])!r}: {nearest(unknown, _keys(node))}"
    if first["type"] == "missing" and len(path) == len(first["loc"]):
        return f"key {dotted!r} is missing: expected {_describe(node)}"
    why = _reason(node) if first["type"] == "less_than_equal" else ""
    expected = f"{_describe(node)} ({why})" if why else _describe(node)
    return f"{dotted!r} is {shown(_value_at(data, path))}: expected {expected}"


def _reason(node: dict[str, Any]) -> str:
    """Why a number is bounded above, where that is said."""
    return next((one["why"] for one in node.get("anyOf", [node]) if "why" in one), "")


def _keys(node: dict[str, Any]) -> list[str]:
    return list(node["properties"])


def _locate(loc: Sequence[int | str]) -> tuple[list[int | str], dict[str, Any]]:
    """Follows pydantic's location through the JSON schema as far as it names keys: (path, schema node there).

    A location goes on into the branches of a union, or ends at a key that does not exist.
    """
    node = _schema()
    path: list[int | str] = []
    for key in loc:
        below = node.get("items") if isinstance(key, int) else node.get("properties", {}).get(key)
        if below is None:
            break
        node = _resolved(below)
        path.append(key)
    return path, node


@cache
def _schema() -> dict[str, Any]:
    return Recipe.model_json_schema()


def _resolved(node: dict[str, Any]) -> dict[str, Any]:
    """A schema node, or the one that it refers to."""
    resolved: dict[str, Any] = _schema()["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    return resolved


def _value_at(data: Any, path: Sequence[int | str]) -> Any:
    for key in path:
        data = data[key]
    return data


def shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _describe(node: dict[str, Any]) -> str:
    """What a JSON schema node accepts, in words."""
    node = _resolved(node)
    if "anyOf" in node:
        return " or ".join(map(_describe, node["anyOf"]))
    if "enum" in node:
        return f"one of {', '.join(node['enum'])}"
    match node.get("type"):
        case "integer" | "number" as kind:
            return _describe_number(node, "an integer" if kind == "integer" else "a number")
        case "array":
            return _describe_list(node)
        case "object":
            return _describe_section(node)
        case kind:
            return {"string": "a text", "boolean": "true or false", "null": "null"}[str(kind)]


def _describe_number(node: dict[str, Any], noun: str) -> str:
    bounds = {"exclusiveMinimum": "above", "minimum": "from", "maximum": "to", "exclusiveMaximum": "below"}
    return " ".join([noun, *(f"{word} {node[key]:.15g}" for key, word in bounds.items() if key in node)])


def _describe_section(node: dict[str, Any]) -> str:
    if "properties" not in node:
        return "a section"
    if node["additionalProperties"]:
        return f"a part {{{', '.join(f'{key}: ...' for key in _keys(node))}}} with options of its own"
    return f"a section with the keys {', '.join(_keys(node))}"


def _describe_list(node: dict[str, Any]) -> str:
    if "prefixItems" in node:
        return f"a list of {len(node['prefixItems'])}, each {_describe(node['prefixItems'][0])}"
    least = " of at least one" if node.get("minItems") else ""
    return f"a list{least}, each {_describe(node['items'])}"
