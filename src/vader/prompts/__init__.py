"""Prompt sets: from a name, a file, a folder of pictures or a user's own `module:Name` to a list of prompts.

Built-in sets are files in `data/`, written for this project, or come from the tiny world. A set's `-train` and
`-test` halves share no subject.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from vader.errors import UserError, nearest
from vader.files.paths import is_path, short, user_path
from vader.nouns import Prompt, as_prompts
from vader.plugins import is_code, load_function, told
from vader.prompts.files import READERS, read_folder

__all__ = ["Prompt", "check_texts", "load_prompts", "prompt_set", "prompt_set_names", "with_negative"]

Function = TypeVar("Function", bound=Callable[[], Any])
LONGEST = 10_000  # characters: text encoders read some hundreds of words, and tokenizers take minutes for a megabyte

DATA = Path(__file__).parent / "data"
GENERATED = {
    "tiny-train": "vader.tinyworld.split:train_prompts",
    "tiny-test": "vader.tinyworld.split:test_prompts",
    "tiny-action-train": "vader.tinyworld.split:action_train_prompts",
    "tiny-action-test": "vader.tinyworld.split:action_test_prompts",
    "tiny-pictures-train": "vader.tinyworld.pictures:train_pictures",
    "tiny-pictures-test": "vader.tinyworld.pictures:test_pictures",
    "tiny-removal-train": "vader.tinyworld.split:removal_train_prompts",
    "tiny-removal-test": "vader.tinyworld.split:removal_test_prompts",
}


def prompt_set_names() -> list[str]:
    """The prompt sets that ship with the package."""
    return sorted([*GENERATED, *_files()])


def prompt_set(function: Function) -> Function:
    """Says of a function that it is a prompt set, which a recipe may name as `module:function`: no other is called.

    The function takes no argument and returns a list of texts or `Prompt`s.
    """
    function.is_prompt_set = True  # type: ignore[attr-defined]
    return function


def load_prompts(spec: str) -> list[Prompt]:
    """Reads a prompt set.

    Args:
        spec: a built-in name (`prompt_set_names`); a `.txt` file with a prompt or a picture's path a line; a `.csv`
            file with some of the columns `prompt`, `label`, `image`, `negative`, `last_image`, or a `.jsonl` file with
            these keys; a picture, or a folder of pictures; or `module:function`, marked by `prompt_set`.

    Raises:
        UserError: there is no such set or file, it is not well-formed, or there are no prompts in it.
    """
    if spec in GENERATED:
        module, _, name = GENERATED[spec].partition(":")
        return as_prompts(getattr(import_module(module), name)())
    path = _files().get(spec) or user_path(spec, "prompt set")
    if reader := READERS.get(path.suffix.lower()):
        return _some(reader(path), path)
    if path.is_dir():
        return read_folder(path)
    if is_code(spec):
        return _from_function(spec)
    if path.exists() or is_path(spec):
        problem = "is of no kind that is read" if path.exists() else "does not exist"
        raise UserError(
            f"{short(spec)} {problem}: give a .txt, .csv or .jsonl file of prompts, or a folder of pictures"
        )
    hint = nearest(spec, prompt_set_names())
    raise UserError(
        f"no prompt set {spec!r}: give a built-in name, a .txt, .csv or .jsonl file, "
        f"a folder of pictures, or module:function; {hint}"
    )


def with_negative(prompts: Sequence[Prompt], negative: str) -> list[Prompt]:
    """The prompts, `negative` being the negative prompt of those that have none of their own."""
    return [prompt if prompt.negative else replace(prompt, negative=negative) for prompt in prompts]


def _files() -> dict[str, Path]:
    return {path.stem: path for path in DATA.iterdir()}


def check_texts(prompts: Sequence[Prompt], where: str) -> None:
    """Raises `UserError` for the first text that is no text, or longer than any model reads."""
    for number, prompt in enumerate(prompts, start=1):
        for text in (prompt.text, prompt.negative, prompt.label or ""):
            if len(text) > LONGEST:
                raise UserError(f"prompt {number} of {where} has {len(text)} characters: {LONGEST} are the most")
            if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in text):
                raise UserError(f"prompt {number} of {where} is no text: it holds what is no character")


def _some(prompts: list[Prompt], path: Path) -> list[Prompt]:
    if not prompts:
        raise UserError(f"prompt file {str(path)!r} holds no prompts: write one a line")
    check_texts(prompts, f"prompt file {str(path)!r}")
    return prompts


def _from_function(spec: str) -> list[Prompt]:
    function = load_function(spec, "prompt set")
    if not getattr(function, "is_prompt_set", False):
        raise UserError(f"prompt set {spec!r} does not say that it is one: write @vader.prompt_set above its def")
    try:
        prompts = function()
    except Exception as error:  # the function is the user's: anything may go wrong in it
        raise UserError(f"prompt set {spec!r} fails with {told(error)}") from error
    if not isinstance(prompts, list | tuple) or not all(isinstance(prompt, str | Prompt) for prompt in prompts):
        raise UserError(f"prompt set {spec!r} returns no list of prompts: texts, or vader.Prompt")
    if not prompts:
        raise UserError(f"prompt set {spec!r} is empty: it must hold at least one prompt")
    found = as_prompts(prompts)
    check_texts(found, f"prompt set {spec!r}")
    return found
