"""Prompt sets: from a name, a file, a folder of pictures or a user's own `module:Name` to a list of prompts.

Built-in sets are files in `data/`, written for this project, or come from the tiny world. A set's `-train` and
`-test` halves share no subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vader.errors import UserError, nearest
from vader.nouns import Prompt, as_prompts
from vader.plugins import import_plugin
from vader.prompts.files import READERS, read_folder

__all__ = ["Prompt", "load_prompts", "prompt_set_names", "with_negative"]

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


def load_prompts(spec: str) -> list[Prompt]:
    """Reads a prompt set.

    Args:
        spec: a built-in name (`prompt_set_names`); a `.txt` file with a prompt or a picture's path a line; a `.csv`
            file with some of the columns `prompt`, `label`, `image`, `negative`, `last_image`, or a `.jsonl` file with
            these keys; a picture, or a folder of pictures; or `module:Name`, a list of texts or `Prompt`s or a function
            that returns one.

    Raises:
        UserError: there is no such set or file, it is not well-formed, or there are no prompts in it.
    """
    if spec in GENERATED:
        return _from_object(GENERATED[spec])
    path = _files().get(spec, Path(spec).expanduser())
    if reader := READERS.get(path.suffix.lower()):
        return _some(reader(path), path)
    if path.is_dir():
        return read_folder(path)
    if ":" in spec:
        return _from_object(spec)
    hint = nearest(spec, prompt_set_names())
    raise UserError(
        f"no prompt set {spec!r}: give a built-in name, a .txt, .csv or .jsonl file, "
        f"a folder of pictures that exists, or module:Name; {hint}"
    )


def with_negative(prompts: Sequence[Prompt], negative: str) -> list[Prompt]:
    """The prompts, `negative` being the negative prompt of those that have none of their own."""
    return [prompt if prompt.negative else replace(prompt, negative=negative) for prompt in prompts]


def _files() -> dict[str, Path]:
    return {path.stem: path for path in DATA.iterdir()}


def _some(prompts: list[Prompt], path: Path) -> list[Prompt]:
    if not prompts:
        raise UserError(f"prompt file {str(path)!r} holds no prompts: write one a line")
    return prompts


def _from_object(spec: str) -> list[Prompt]:
    named = _named(spec)
    prompts = named() if callable(named) else named
    if not isinstance(prompts, list | tuple) or not all(isinstance(prompt, str | Prompt) for prompt in prompts):
        raise UserError(f"prompt set {spec!r} is no list of prompts: it must be one, or a function that returns one")
    if not prompts:
        raise UserError(f"prompt set {spec!r} is empty: it must hold at least one prompt")
    return as_prompts(prompts)


def _named(spec: str) -> Any:
    module_name, _, name = spec.partition(":")
    names = vars(import_plugin(module_name, f"prompt set {spec!r}"))
    if name not in names:
        public = [known for known in names if not known.startswith("_")]
        raise UserError(f"prompt set {spec!r}: {module_name} has no {name!r}: {nearest(name, public)}")
    return names[name]
