"""Parts: everything that can be brought has the shape `{name, **options}`, the name built in or `module:Name`.

In go the name as written and the recipe's options, out come the class or its instance, the options checked against
the part's own signature; whatever the user got wrong on the way is one line. A user's modules are looked for among the
installed ones, in the working directory and beside the recipe, and never in a run's folder, which may be a stranger's.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import math
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from types import ModuleType, NoneType, SimpleNamespace, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_core import ErrorDetails, to_jsonable_python
from torch import nn

from vader.errors import RunError, UserError, is_out_of_memory, nearest

T = TypeVar("T")


class Part(BaseModel):
    """Something by name; every key that is not declared is an option of what the name stands for."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def at_most(most: int, why: str) -> Any:
    """Of an integer that counts: its bound, and the reason, which is told to whoever goes beyond."""
    return Field(ge=1, le=most, json_schema_extra={"why": why})


# ---- found ----


def find_class(name: str, kind: str, built_in: Mapping[str, type[T] | str], base: type[T]) -> type[T]:
    """The class of a part: a built-in one by name (or by where it is, "module:Class"), or a user's `module:Class`.

    Raises:
        UserError: there is no part of this name, and as `load_object`.
    """
    if ":" in name:
        return load_object(name, kind, base)
    if name not in built_in:
        raise UserError(f"unknown {kind} {name!r}: {nearest(name, built_in, 'your own as module:Class')}")
    found = built_in[name]
    return load_object(found, kind, base) if isinstance(found, str) else found


def load_object(spec: str, kind: str, base: type[T], *others: type[T]) -> type[T]:
    """The class that `spec` ("module:Class") names.

    Args:
        kind: what it is to be, for the error: "reward", "model", ...
        base: the contract that it must derive from, or from one of the others.

    Raises:
        UserError: no such module or class, the module fails on import, or the class does not meet the contract.
    """
    found, bases = _found(spec, kind, "Class", inspect.isclass), (base, *others)
    if not (isinstance(found, type) and any(issubclass(found, one) for one in bases)):
        raise UserError(f"{kind} {spec!r} is {_not_one_of(found, bases)}")
    if missing := _abstract(found):
        raise UserError(f"{kind} {spec!r} lacks {', '.join(missing)}: {base.__name__} asks for it")
    return cast("type[T]", found)


def _not_one_of(found: object, bases: Sequence[type]) -> str:
    """What was found in place of a class of one of these contracts, and what to write, by their public names."""
    public = " or ".join(f"vader.{name}" for base in bases for name in getattr(base, "derived_from", [base.__name__]))
    if isinstance(found, type):
        return f"not a {' or '.join(base.__name__ for base in bases)}: derive it from {public}"
    what = "function" if inspect.isroutine(found) else type(found).__name__
    return f"a {what}: write a class that is derived from {public}"


def load_function(spec: str, kind: str) -> Callable[..., Any]:
    """The function that `spec` ("module:function") names.

    Args:
        kind: what it is to be, for the error: "policy", ...

    Raises:
        UserError: no such module or function, or the module fails on import.
    """
    found = _found(spec, kind, "function", inspect.isfunction)
    if not inspect.isroutine(found):
        raise UserError(f"{kind} {spec!r} is no function: define it by def")
    return cast("Callable[..., Any]", found)


CODE = re.compile(r"[^\s:/\\]+:\w+")
_beside: list[Path] = []  # the folders of recipes


def is_code(spec: str) -> bool:
    """Whether a name is `module:Name`: only what has this form is ever imported."""
    return CODE.fullmatch(spec) is not None


def look_beside(recipe: Path) -> None:
    """From now on a user's modules are looked for beside this recipe too, after the working directory.

    But not beside a run's: nothing is imported from there, and who reads many runs would search them all each time.
    """
    folder = recipe.absolute().parent
    if folder not in _beside and not run_around(folder):
        _beside.append(folder)


def run_around(path: Path) -> Path | None:
    """The run's folder that a path is or lies in, if there is one: it has a recipe and what training makes."""
    for folder in (path, *path.parents):
        if (folder / "recipe.yaml").exists() and any((folder / made).exists() for made in ("metrics.jsonl", "adapter")):
            return folder
    return None


def import_plugin(name: str, label: str) -> ModuleType:
    """A user's module. Raises `UserError`, which starts with `label`, if there is none or its import fails."""
    places = [place for place in dict.fromkeys((Path.cwd(), *_beside)) if not run_around(place)]
    _refuse_run(name, label, places)
    with _importable(places):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            where = ", ".join(map(str, places)) or "a run's folder has none"
            raise UserError(f"{label}: no module {error.name!r} here ({where}) or installed") from error
        except (Exception, SystemExit) as error:  # the module is the user's: anything may go wrong in it
            raise UserError(
                f"{label}: importing {name} fails with {type(error).__name__}: {one_line(error)}"
            ) from error


def _refuse_run(name: str, label: str, places: Collection[Path]) -> None:
    """A package may be a folder of any name: none that leads into a run's folder is entered."""
    *packages, _ = name.split(".")
    for place in (*places, *map(Path, sys.path)):
        if packages and (found := run_around(place.joinpath(*packages))):
            raise UserError(f"{label}: it lies in the run's folder {str(found)!r}, from which nothing is imported")


@contextmanager
def _importable(places: Collection[Path]) -> Iterator[None]:
    """Within, modules are found in these places too, behind the installed ones: a stray file replaces no library."""
    added = [str(place) for place in places if str(place) not in sys.path]
    sys.path.extend(added)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = [place for place in sys.path if place not in added]


def _found(spec: str, kind: str, noun: str, is_one: Callable[[Any], bool]) -> Any:
    """What `spec` names, a `noun` by what is expected; `is_one` tells which names of the module it could have been."""
    module_name, _, name = spec.partition(":")
    if name and module_name.endswith(".py"):
        raise UserError(f"{kind} {spec!r}: write {Path(module_name).stem}:{name}, the module and not its file")
    if not is_code(spec) or "" in module_name.split("."):
        example = f"my_module:{'MyClass' if noun == 'Class' else 'my_function'}"
        raise UserError(f"{kind} {spec!r}: write it as module:{noun}, for instance {example}")
    module = import_plugin(module_name, f"{kind} {spec!r}")
    if not hasattr(module, name):
        own = [known for known, one in inspect.getmembers(module, is_one) if one.__module__ == module.__name__]
        hint = nearest(name, own) if own else f"it defines no {noun.lower()}"
        raise UserError(f"{kind} {spec!r}: {module_name} has no {name}: {hint}{_hidden(module)}")
    return getattr(module, name)


def _hidden(module: ModuleType) -> str:
    """A word on a user's file that an installed module of the same name stands before."""
    for place in (Path.cwd(), *_beside):
        file = place / f"{module.__name__}.py"
        if file.is_file() and file != Path(getattr(module, "__file__", None) or file):
            return f"; an installed module has the name of {str(file)!r}, give it another"
    return ""


def _abstract(cls: type) -> list[str]:
    return [name for name in dir(cls) if getattr(getattr(cls, name, None), "__isabstractmethod__", False)]


# ---- failing ----

MOST_LINES = 5  # of an error's message that are told


def one_line(error: BaseException) -> str:
    """The first line of an error's message that says something, with those after it where it ends in mid-sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    whole = next((i for i, line in enumerate(lines[:MOST_LINES]) if not line.endswith((":", ","))), MOST_LINES - 1)
    return " ".join(lines[: whole + 1]) or type(error).__name__


def told(error: BaseException) -> str:
    """An error of a user's own code in one line: its class, its message, and the line of that code where it arose."""
    where = own_line(error)
    return f"{type(error).__name__}: {one_line(error)}{f' ({where})' if where else ''}"


def own_line(error: BaseException) -> str | None:
    """The innermost line of code that is no library's: "my_reward.py, line 12"; None if there is none."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _of_a_library(frame.filename)]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else None


def in_own_code(error: BaseException) -> str | None:
    """A line on an error that passed through code of the user's own, if it did, where no contract has named the part:
    a hook that torch calls, a property."""
    return f"your own code fails with {told(error)}" if own_line(error) else None


def _of_a_library(file: str) -> bool:
    """Whether code is installed, or Python's or this package's own."""
    libraries = (sysconfig.get_path("stdlib"), str(Path(__file__).parent))
    return file.startswith(("<", *libraries)) or not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Within, code of users' own may run, or networks of strangers: what it raises is a `UserError` that begins with
    `what`. That the memory is full passes, as it is nobody's mistake.

    Raises:
        UserError: the block raised anything else but a `RunError`; a `UserError` passes as it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError | RunError) or is_out_of_memory(error):
            raise
        raise UserError(f"{what}: {told(error)}") from error


def explain_methods(cls: type, names: Collection[str], label: Callable[[Any], str]) -> None:
    """Whatever these methods of a class raise is a `UserError` that names the part and the method.

    Contracts ask for it when they are subclassed, so that wherever a part is called its failure is told alike.

    Args:
        cls: of its methods those are changed that it defines itself.
        label: what a part is called, of its instance: "metric 'Mine'".
    """
    for name in names:
        if inspect.isfunction(method := vars(cls).get(name)):
            setattr(cls, name, _explained(method, label))


def _explained(method: Callable[..., Any], label: Callable[[Any], str]) -> Callable[..., Any]:
    @wraps(method)
    def work(self: Any, *args: Any, **options: Any) -> Any:
        with explained(f"{label(self)} fails in {method.__name__}"):
            return method(self, *args, **options)

    return work


def is_built_in(cls: type) -> bool:
    """Whether a class is this package's own, so that its failures are faults to report and no user's mistakes."""
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


# ---- options, checked against the signature ----


def instantiate(cls: type[T], label: str, options: Mapping[str, Any], beside: Collection[str] = ()) -> T:
    """`cls(**options)` of a class or dataclass, with every option's name and type checked first.

    Args:
        beside: keys that the part has in a recipe beside its options, for who misspells one of them.

    Raises:
        UserError: an option is unknown, missing, or of the wrong type, or the constructor fails; the line starts with
            `label`.
    """
    checked = checked_options(cls, label, options, beside=beside)
    with explained(f"{label} does not load"):
        return cls(**checked)


def checked_options(
    target: Callable[..., Any],
    label: str,
    options: Mapping[str, Any],
    reserved: Collection[str] = (),
    beside: Collection[str] = (),
) -> dict[str, Any]:
    """Options as keyword arguments of a function, class or dataclass; `reserved` parameters are no options.

    Types are taken at their word, as a recipe's are: "3" is no number and 2.5 no integer; a list may stand for a tuple,
    an integer for a float, and a mapping `{name: ...}` for a `Part`.

    Raises:
        UserError: an option is unknown, missing, or of the wrong type; the line starts with `label`.
    """
    own = {name: parameter for name, parameter in _parameters(target).items() if name not in reserved}
    _check_names(own, label, options, beside)
    for name, value in options.items():
        if not _finite(value):
            raise UserError(f"{label}: {name} is {value}: numbers must be finite")
    hints = _hints(target)
    return {name: _validated(hints.get(name, Any), value, f"{label}: {name}") for name, value in options.items()}


def _finite(value: Any) -> bool:
    """Whether no number in a value, however deep, is infinite or nan."""
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def complete(target: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options together with the target's defaults for all that are not given, as values that JSON and YAML can hold.

    Args:
        target: a function, class or dataclass.
        options: as `checked_options` takes them.
    """
    whole: dict[str, Any] = to_jsonable_python(_defaults(target) | dict(options))
    return whole


def option_names(target: Callable[..., Any], reserved: Collection[str] = ()) -> list[str]:
    """What a recipe can give a function, class or dataclass by name; `reserved` parameters are no options."""
    return [name for name, p in _parameters(target).items() if name not in reserved and p.kind not in _REST]


_REST = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    if getattr(target, "__init__", None) is nn.Module.__init__:  # by its signature it takes anything, in truth nothing
        return {}
    return inspect.signature(target).parameters


def _defaults(target: Callable[..., Any]) -> dict[str, Any]:
    made = {
        field.name: field.default_factory()
        for field in (dataclasses.fields(target) if dataclasses.is_dataclass(target) else ())
        if field.default_factory is not dataclasses.MISSING
    }
    parameters = _parameters(target).values()
    return {p.name: made.get(p.name, p.default) for p in parameters if p.default is not p.empty}


def _check_names(
    parameters: Mapping[str, inspect.Parameter], label: str, options: Mapping[str, Any], beside: Collection[str]
) -> None:
    named = {name: p for name, p in parameters.items() if p.kind not in _REST}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [name for name in options if name not in named]
    if unknown and not takes_any:
        known = nearest(unknown[0], [*named, *beside]) if named or beside else "it takes none"
        raise UserError(f"{label} has no option {unknown[0]!r}: {known}")
    missing = [name for name, p in named.items() if p.default is p.empty and name not in options]
    if missing:
        raise UserError(f"{label} needs the option {missing[0]!r}")


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The type hints of a signature, but for those that name what only a type checker imports."""
    hints: dict[str, Any] = {}
    for written, names in _annotations(target):
        for name, hint in written.items():
            alone = SimpleNamespace(__annotations__={name: hint})
            with suppress(NameError):
                hints |= get_type_hints(alone, globalns=names, include_extras=True)
    return hints


def _annotations(target: Callable[..., Any]) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Annotations with the names of the module where they are written: of a dataclass, those of each base's fields."""
    if isinstance(target, type) and "__dataclass_fields__" in vars(target):
        for base in reversed(target.__mro__):
            yield inspect.get_annotations(base), vars(sys.modules[base.__module__])
        return
    function = inspect.unwrap(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    yield getattr(function, "__annotations__", {}), getattr(function, "__globals__", {})


def _validated(hint: Any, value: Any, label: str) -> Any:
    try:
        return _strict(_adapter(hint), value)
    except ValidationError as error:
        raise UserError(f"{label} is {value!r}: {_said(hint, error.errors())}{_why(hint, error)}") from error


def _why(hint: Any, error: ValidationError) -> str:
    """The reason for a bound that was passed, where the hint gives one."""
    extras = [getattr(one, "json_schema_extra", None) or {} for one in getattr(hint, "__metadata__", ())]
    reasons = [extra["why"] for extra in extras if "why" in extra]
    return f" ({reasons[0]})" if reasons and error.errors()[0]["type"] == "less_than_equal" else ""


def _strict(adapter: TypeAdapter[Any] | None, value: Any) -> Any:
    """A value by its type, nothing converted but what JSON has no form for; what JSON cannot hold must be an instance.

    Strict JSON mode takes lists for tuples, texts for paths, mappings for parts, and integers for floats.
    """
    if adapter is None:
        return value
    try:
        text = json.dumps(value, default=_plain)
    except (TypeError, ValueError):
        return adapter.validate_python(value, strict=True)
    return adapter.validate_json(text, strict=True)


def _plain(value: Any) -> Any:
    """What stands for an object in JSON: a part is a mapping, and nothing else is anything."""
    if isinstance(value, Part):
        return value.model_dump(mode="json")
    raise TypeError


def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    """A validator of what YAML can hold; None for other classes, which are taken as they come."""
    if hint is Any:
        return None
    try:
        return TypeAdapter(hint)
    except PydanticSchemaGenerationError:
        return None


def _said(hint: Any, errors: Sequence[ErrorDetails]) -> str:
    """Pydantic's word on a value, after a colon; where a hint allows several forms, on every one of them."""
    forms = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    null = ", or null" if NoneType in forms else ""
    if len(forms) - bool(null) > 1:
        by_form = {error["loc"][0]: error for error in reversed(errors)}  # of each the first
        return f"input should be {', or '.join(_form(by_form[name]) for name in reversed(by_form))}{null}"
    if _is_of_part(errors[0]):
        return "a part has a name, write it as {name: ...} with its options beside the name"
    if get_origin(forms[0] if forms else hint) is tuple and errors[0]["type"] in ("missing", "too_long"):
        return f"input should be a list of {len(get_args(forms[0] if forms else hint))}{null}"
    return f"{errors[0]['msg'][0].lower()}{errors[0]['msg'][1:]}{null}"


def _form(error: ErrorDetails) -> str:
    """What one form of several asks for, as "a list" or "'last' or 'all'"."""
    if _is_of_part(error):
        return "a part {name: ...}"
    asked = error["msg"].removeprefix("Input should be ").replace("a valid array", "a list")
    return f"a list, each {asked}" if len(error["loc"]) > 1 else asked


def _is_of_part(error: ErrorDetails) -> bool:
    return error["type"] == "model_type" or error["loc"][-1:] == ("name",)
