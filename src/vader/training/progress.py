"""What a person sees while a run goes on: a live line in a terminal, plain lines in a log.

Only the main process shows anything. Held-out rewards stay on the screen, training steps pass by.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """Use as a context; `stage` says what is being done, `train` and `evaluation` take lines of the metrics file."""

    def __init__(self, name: str, steps: int, start: int, shown: bool) -> None:
        self.console = Console(quiet=not shown, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and shown
        self.steps, self.every = steps, max(1, steps // 20)
        self.began, self.first = time.monotonic(), start
        self.bar = Progress(
            TextColumn(f"[bold]{name}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}  left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.bar.add_task("starting", total=steps, completed=start)

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def stage(self, text: str) -> None:
        if self.live:
            self.bar.update(self.task, description=text)
        else:
            self.console.print(text)

    def train(self, line: dict[str, Any]) -> None:
        text = f"reward {line['reward']:.3f}{_parts(line['parts'])}  {line['total_seconds']:.2f} s/step"
        if line["skipped"]:
            text += f"  ({line['skipped']} skipped)"
        self.bar.update(self.task, completed=line["step"], description=text)
        if not self.live and line["step"] % self.every == 0:
            self.console.print(f"step {line['step']}/{self.steps}  {text}  left {self._left(line['step'])}")

    def notice(self, text: str) -> None:
        """A line that stays: something is not as it should be, and the run goes on."""
        self.console.print(text, markup=False)

    def evaluation(self, line: dict[str, Any]) -> None:
        found = "".join(f"  {name} {value:.2f}" for name, value in line.get("figures", {}).items())
        reward = f"{line['reward']:.3f} ± {line['stderr']:.3f}"
        self.console.print(
            f"step {line['step']}/{self.steps}  held-out reward {reward} ({line['videos']} videos){found}"
        )

    def _left(self, step: int) -> str:
        pace = (time.monotonic() - self.began) / max(1, step - self.first)
        minutes, seconds = divmod(round(pace * (self.steps - step)), 60)
        return f"{minutes}:{seconds:02d}"


def _parts(parts: dict[str, float]) -> str:
    """The parts of a mix; a single reward needs none."""
    return " (" + ", ".join(f"{name} {value:.3f}" for name, value in parts.items()) + ")" if len(parts) > 1 else ""
