"""How far a command is with its videos, on stderr: a bar on a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(done: str, count: int) -> Iterator[Callable[[int], None]]:
    """Within, `advance(number)` says that so many more of `count` videos are done.

    A log hears of it where it takes long (`PATIENCE`), and always of `advance(0)`: something long begins.

    Args:
        done: what is done with a video, as "sampled".
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    log = _Log(done, count, console.print)
    columns = ("videos", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=count)
        yield (lambda number: bar.advance(task, number)) if console.is_terminal else log.advance


class _Log:
    def __init__(self, done: str, count: int, say: Callable[[str], object]) -> None:
        self.done, self.count, self.say = done, count, say
        self.number = 0
        self.began = self.heard = time.monotonic()

    def advance(self, number: int) -> None:
        from vader.evaluation.formats import duration
        from vader.training.progress import PATIENCE

        self.number, now = self.number + number, time.monotonic()
        if number and now - self.heard < PATIENCE:
            return
        left = (now - self.began) / self.number * (self.count - self.number) if self.number else 0.0
        self.say(f"{self.done} {self.number}/{self.count} videos" + (f"  left {duration(left)}" if left else ""))
        self.heard = now
