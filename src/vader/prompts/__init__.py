"""Prompt sets: from a name, a text file or a user's own `module:Name` to a list of prompts.

Built-in sets are text files in `data/` (a prompt a line, `#` starts a comment line) or come from the tiny world.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vader.errors import UserError, nearest
from vader.plugins import import_plugin

DATA = Path(__file__).parent / "data"
GENERATED = {
    "tiny-train": "vader.tinyworld.split:train_prompts",
    "tiny-test": "vader.tinyworld.split:test_prompts",
}


def prompt_set_names() -> list[str]:
    """The prompt sets that ship with the package."""
    return sorted([*GENERATED, *(path.stem for path in DATA.glob("*.txt"))])


def load_prompts(spec: str) -> list[str]:
    """Reads a prompt set.

    Args:
        spec: a built-in name (`prompt_set_names`), a `.txt` file with a prompt a line, or `module:Name`,
            a list of prompts or a function that returns one.

    Raises:
        UserError: there is no such set or file, or there are no prompts in it.
    """
    if spec in prompt_set_names():
        return _from_object(GENERATED[spec]) if spec in GENERATED else _from_file(DATA / f"{spec}.txt")
    if spec.endswith(".txt"):
        return _from_file(Path(spec))
    if ":" in spec:
        return _from_object(spec)
    hint = nearest(spec, prompt_set_names())
    raise UserError(f"no prompt set {spec!r}: give a built-in name, a .txt file or module:Name; {hint}")


def _from_file(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise UserError(f"prompt file {str(path)!r} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompt file {str(path)!r} cannot be read as text: {error}") from None
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UserError(f"prompt file {str(path)!r} holds no prompts: write one a line")
    return prompts


def _from_object(spec: str) -> list[str]:
    named = _named(spec)
    prompts = named() if callable(named) else named
    if not isinstance(prompts, list | tuple) or not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError(f"prompt set {spec!r} is no list of texts: it must be one, or a function that returns one")
    if not prompts:
        raise UserError(f"prompt set {spec!r} is empty: it must hold at least one prompt")
    return list(prompts)


def _named(spec: str) -> Any:
    module_name, _, name = spec.partition(":")
    names = vars(import_plugin(module_name, f"prompt set {spec!r}"))
    if name not in names:
        public = [known for known in names if not known.startswith("_")]
        raise UserError(f"prompt set {spec!r}: {module_name} has no {name!r}: {nearest(name, public)}")
    return names[name]
