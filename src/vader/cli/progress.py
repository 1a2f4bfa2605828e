"""How far a command is, on stderr: a bar or a word on a terminal, lines in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(done: str, count: int) -> Iterator[Callable[[int], None]]:
    """Within, `advance(number)` says that so many more of `count` videos are done.

    A log hears of it where it takes long (`PATIENCE`), the first time even if none is done by then.

    Args:
        done: what is done with a video, as "sampled".
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        with _Log(done, count, console.print).open() as advance:
            yield advance
        return
    columns = ("videos", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=count)
        yield lambda number: bar.advance(task, number)


@contextmanager
def told(doing: str) -> Iterator[Callable[[str], None]]:
    """Within, `tell(words)` says how far something without a count is; a log hears of it where it takes long."""
    from rich.console import Console
    from rich.markup import escape

    from vader.training.progress import PATIENCE

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if console.is_terminal:
        with console.status(doing) as status:
            yield lambda words: status.update(f"{doing}: {escape(words)}")
        return
    heard = time.monotonic()

    def tell(words: str) -> None:
        nonlocal heard
        if time.monotonic() - heard >= PATIENCE:
            heard = time.monotonic()
            console.print(f"{doing}: {words}", markup=False)

    yield tell


class _Log:
    def __init__(self, done: str, count: int, say: Callable[[str], object]) -> None:
        from vader.training.progress import PATIENCE

        self.done, self.count, self.say, self.patience = done, count, say, PATIENCE
        self.number = 0
        self.began = self.heard = time.monotonic()

    @contextmanager
    def open(self) -> Iterator[Callable[[int], None]]:
        """Within, a log hears that nothing is done yet, should the first videos take long."""
        self.first = threading.Timer(self.patience, self._tell)
        self.first.daemon = True
        self.first.start()
        try:
            yield self.advance
        finally:
            self.first.cancel()

    def advance(self, number: int) -> None:
        self.first.cancel()
        self.number += number
        if time.monotonic() - self.heard >= self.patience:
            self._tell()

    def _tell(self) -> None:
        from vader.evaluation.formats import duration

        now = self.heard = time.monotonic()
        left = (now - self.began) / self.number * (self.count - self.number) if self.number else 0.0
        self.say(f"{self.done} {self.number}/{self.count} videos" + (f"  left {duration(left)}" if left else ""))
