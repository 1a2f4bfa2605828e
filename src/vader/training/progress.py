"""What a person sees while a run goes on: a live line in a terminal, plain lines in a log.

Only the main process shows anything. Held-out rewards stay on the screen, training steps pass by.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from vader.evaluation.formats import counted, in_console, with_error
from vader.recipe import Recipe

PATIENCE = 30.0  # seconds after which a log, too, hears how far a long step or evaluation is


class TimeLeft:
    """How long a run still takes, as its steps and its held-out videos have taken so far, each for itself."""

    def __init__(self, recipe: Recipe) -> None:
        self.steps, self.evaluations = recipe.train.steps, recipe.evaluation
        self.step_seconds: list[float] = []
        self.video_seconds: list[float] = []

    def step(self, seconds: float) -> None:
        self.step_seconds.append(seconds)

    def evaluation(self, seconds: float, videos: int) -> None:
        self.video_seconds.append(seconds / videos)

    def after(self, step: int) -> str:
        """From the end of a step on, its own evaluation included: "1:05:00", "2:03"; "?" before there is a step."""
        if not self.step_seconds:
            return "?"
        seconds = (self.steps - step) * fmean(self.step_seconds)
        if self.video_seconds:
            seconds += self._videos(step) * fmean(self.video_seconds)
        return _clock(round(seconds))

    def _videos(self, step: int) -> int:
        """Held-out videos that are still to come after a step is trained and before it is evaluated."""
        regular = sum(at % self.evaluations.every == 0 for at in range(max(step, 1), self.steps))
        return regular * self.evaluations.videos + self.evaluations.videos_at_the_ends


def _clock(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Display:
    """Use as a context; `stage` says what is being done, `train` and `evaluation` take lines of the metrics file."""

    def __init__(self, recipe: Recipe, start: int, shown: bool) -> None:
        name, steps = recipe.name, recipe.train.steps
        self.console = Console(quiet=not shown, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and shown
        self.steps, self.every = steps, max(1, steps // 20)
        self.time_left = TimeLeft(recipe)
        self.heard = time.monotonic()  # when something was last said
        self.bar = Progress(
            TextColumn(f"[bold]{name}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}  left"),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.bar.add_task("starting", total=steps, completed=start, left="?")

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def stage(self, text: str) -> None:
        self.heard = time.monotonic()
        if self.live:
            self.bar.update(self.task, description=text)
        else:
            self.console.print(text)

    def inside(self, text: str) -> None:
        """How far a step or an evaluation is; in a log only where it takes long."""
        if self.live or time.monotonic() - self.heard >= PATIENCE:
            self.stage(text)

    def left_out(self, found: Sequence[str]) -> None:
        """What cannot be used of the run that goes on."""
        if found:
            self.console.print(f"left out: {'; '.join(found)}", markup=False)

    def train(self, line: dict[str, Any]) -> None:
        text = f"reward {line['reward']:.3f}{_parts(line['parts'])}  {line['total_seconds']:.2f} s/step"
        if line["skipped"]:
            text += f"  ({line['skipped']} skipped)"
        self.time_left.step(line["total_seconds"])
        left = self.time_left.after(line["step"])
        self.bar.update(self.task, completed=line["step"], description=text, left=left)
        if not self.live and line["step"] % self.every == 0:
            self.console.print(f"step {line['step']}/{self.steps}  {text}  left {left}")
            self.heard = time.monotonic()

    def notice(self, text: str) -> None:
        """A line that stays: something is not as it should be, and the run goes on."""
        self.console.print(text, markup=False)

    def evaluation(self, line: dict[str, Any]) -> None:
        self.time_left.evaluation(line["seconds"], line["videos"])
        self.heard = time.monotonic()
        found = "".join(f"  {name} {value:.2f}" for name, value in line.get("figures", {}).items())
        reward, videos = in_console(with_error(line["reward"], line["stderr"], 3)), counted(line["videos"], "video")
        self.console.print(f"step {line['step']}/{self.steps}  held-out reward {reward} ({videos}){found}")


def _parts(parts: dict[str, float]) -> str:
    """The parts of a mix; a single reward needs none."""
    return " (" + ", ".join(f"{name} {value:.3f}" for name, value in parts.items()) + ")" if len(parts) > 1 else ""
