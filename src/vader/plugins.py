"""Parts that a user brings: a class named `module:Class` in a recipe, found, checked and built like a built-in one.

In go the name as written and the recipe's options, out comes the class or its instance; whatever the
user got wrong on the way is one line. The working directory is importable, as it is for a script.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from torch import nn

from vader.errors import UserError, nearest

T = TypeVar("T")


class Part(BaseModel):
    """A part by name, built in or `module:Name`; every other key is an option of its own."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def load_object(spec: str, kind: str, base: type[T]) -> type[T]:
    """The class that `spec` ("module:Class") names.

    Args:
        kind: what it is to be, for the error: "reward", "model", ...
        base: the class it must derive from.

    Raises:
        UserError: no such module or class, the module fails on import, or the class does not meet the contract.
    """
    module_name, _, class_name = spec.partition(":")
    if not (module_name and class_name):
        raise UserError(f"{kind} {spec!r}: write it as module:Class, for instance my_module:MyClass")
    module = import_plugin(module_name, f"{kind} {spec!r}")
    found = getattr(module, class_name, None)
    if found is None:
        raise UserError(f"{kind} {spec!r}: {module_name} has no {class_name}: {_classes(module, class_name)}")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{kind} {spec!r} is not a {base.__name__}: derive it from {base.__module__}.{base.__name__}")
    if missing := _abstract(found):
        raise UserError(f"{kind} {spec!r} lacks {', '.join(missing)}: {base.__name__} asks for it")
    return found


def instantiate(cls: type[T], label: str, options: Mapping[str, Any]) -> T:
    """`cls(**options)`, with every option's name and type checked against the constructor first.

    Raises:
        UserError: an option is unknown, missing, or of the wrong type; the line starts with `label`.
    """
    return cls(**_checked(_parameters(cls), _hints(cls.__init__), label, options))  # type: ignore[misc]


def checked_options(
    function: Callable[..., Any], label: str, options: Mapping[str, Any], reserved: Collection[str]
) -> dict[str, Any]:
    """Options as keyword arguments of a function, names and types checked; `reserved` parameters are no options.

    Raises:
        UserError: an option is unknown, missing, or of the wrong type; the line starts with `label`.
    """
    parameters = inspect.signature(function).parameters
    own = {name: parameter for name, parameter in parameters.items() if name not in reserved}
    return _checked(own, _hints(function), label, options)


def import_plugin(name: str, label: str) -> ModuleType:
    """A user's module. Raises `UserError`, which starts with `label`, if there is none or its import fails."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"{label}: no module {error.name!r} here ({os.getcwd()}) or installed") from error
    except Exception as error:  # the module is the user's: anything may go wrong in it
        raise UserError(f"{label}: importing {name} fails with {type(error).__name__}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The first line of an error's message that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _classes(module: ModuleType, wanted: str) -> str:
    own = [name for name, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]
    return nearest(wanted, own) if own else "it defines no class"


def _abstract(cls: type) -> list[str]:
    return [name for name in dir(cls) if getattr(getattr(cls, name, None), "__isabstractmethod__", False)]


def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    if cls.__init__ is nn.Module.__init__:  # type: ignore[misc]  # by its signature it takes anything, in truth nothing
        return {}
    return inspect.signature(cls).parameters


def _checked(
    parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any], label: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    _check_names(parameters, label, options)
    return {name: _validated(hints.get(name, Any), value, f"{label}: {name}") for name, value in options.items()}


def _check_names(parameters: Mapping[str, inspect.Parameter], label: str, options: Mapping[str, Any]) -> None:
    named = {name: p for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [name for name in options if name not in named]
    if unknown and not takes_any:
        known = nearest(unknown[0], named) if named else "it takes none"
        raise UserError(f"{label} has no option {unknown[0]!r}: {known}")
    missing = [name for name, p in named.items() if p.default is p.empty and name not in options]
    if missing:
        raise UserError(f"{label} needs the option {missing[0]!r}")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """A function's type hints; none where they name what only a type checker imports."""
    try:
        return get_type_hints(function, include_extras=True)
    except NameError:
        return {}


def _validated(hint: Any, value: Any, label: str) -> Any:
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{label} is {value!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def _adapter(hint: Any) -> TypeAdapter[Any]:
    """A validator of what YAML can hold; other classes are taken as they come."""
    try:
        return TypeAdapter(hint)
    except PydanticSchemaGenerationError:
        return TypeAdapter(Any)
