"""The two ways a command ends badly: the user's mistake (exit status 2) and a run that failed (exit status 1)."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in what the user gave. Its message is one line: what is wrong and what to do."""


class RunError(RuntimeError):
    """A run that started well and cannot go on. Its message is one line; what was saved stays."""


class Stopped(RunError):
    """A run that was asked to stop (Ctrl-C, SIGTERM), and saved where it was."""


class Distrusted(RunError):
    """A run that a guard has stopped, as its gain is not to be trusted; it saved where it was."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that an unknown one was probably meant to be: one that has it as a part, or reads almost so."""
    known = sorted(known)
    close = [one for one in known if word in one.split("_")] or get_close_matches(word, known, n=1, cutoff=0.6)
    return close[0] if close else None


def nearest(word: str, known: Iterable[str], beside: str = "") -> str:
    """A tail for an error about an unknown word: the closest known one, or all of them and what is allowed beside."""
    known = sorted(known)
    if close := closest(word, known):
        return f"did you mean {close!r}?"
    return f"known: {', '.join(known)}" + (f", or {beside}" if beside else "")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this says that a device or the machine has no memory left, in torch's words or in Python's."""
    named = type(error).__name__ == "OutOfMemoryError"  # torch's own, which is not imported for it
    return named or isinstance(error, MemoryError) or "can't allocate memory" in str(error)
