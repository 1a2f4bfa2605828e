"""What the guards make of a run while it trains: a verdict an evaluation, and the best adapter that they let pass.

All of it follows from the records of each evaluation's videos and the adapters at those steps: a run that goes on
reads them again, and its checkpoint holds the best adapter of the steps before. The main process alone watches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vader.evaluation.guards.base import Guards
from vader.evaluation.guards.verdicts import Measured, Verdict, best_step, judge, read_records, write_verdicts
from vader.files.atomic import atomic_folder, remove
from vader.runs.folder import RunFolder
from vader.runs.log import Line

State = Mapping[str, Mapping[str, Tensor]]  # adapters' weights by denoiser


@dataclass(frozen=True)
class Best:
    """The adapter of the highest gain to which no guard objected, and its step."""

    step: int
    state: dict[str, dict[str, Tensor]]

    @classmethod
    def copied(cls, step: int, state: State) -> Best:
        return cls(
            step, {name: {key: one.detach().cpu().clone() for key, one in of.items()} for name, of in state.items()}
        )


@dataclass
class Watch:
    """The verdicts so far. `save` writes the adapter of a state into a folder."""

    guards: Guards
    folder: RunFolder
    save: Callable[[State, Path], object]
    on: bool
    evaluations: list[Measured] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    best: Best | None = None
    earlier: Best | None = None  # before the evaluation of this step

    @property
    def alarmed(self) -> bool:
        """Whether the last evaluation's gain is not to be trusted."""
        return bool(self.verdicts) and self.verdicts[-1].colour == "red"

    def hear(self, step: int, records: Sequence[Mapping[str, Any]], skipped: int, state: State) -> Verdict | None:
        """Judges an evaluation, and keeps its adapter if it is the best so far."""
        if not self.on:
            return None
        self.earlier = self.best
        self.evaluations.append(Measured.of(step, records, skipped))
        self._judge(step, state)
        return self.verdicts[-1] if self.verdicts else None

    def restore(
        self, step: int, evaluated: Iterable[int], skipped: Mapping[int, int], kept: Mapping[str, Any] | None,
        state: State,
    ) -> None:  # fmt: skip
        """Goes on at a step of a run.

        Args:
            evaluated: the steps of evaluations that it has left, ascending.
            skipped: how many steps had been skipped by each step.
            kept: what `to_keep` gave at this step.
            state: of the adapters now.
        """
        if not self.on:
            return
        found = {one: read_records(self.folder.evaluation(one)) for one in evaluated}
        self.evaluations = [Measured.of(one, some, skipped.get(one, 0)) for one, some in found.items() if some]
        self.best = self.earlier = Best(kept["step"], kept["state"]) if kept else None
        self._judge(step, state)

    def to_keep(self, step: int) -> dict[str, Any] | None:
        """The best of the evaluations before a step, as a checkpoint holds it: that of the step is its own adapter."""
        best = self.best if self.best is None or self.best.step < step else self.earlier
        return {"step": best.step, "state": best.state} if best else None

    def _judge(self, step: int, state: State) -> None:
        self.verdicts = judge(self.guards, self.evaluations)
        write_verdicts(self.folder.guards, self.verdicts)
        wanted = best_step(self.verdicts)
        if wanted == step:
            self.best = Best.copied(step, state)
        elif self.best is not None and self.best.step != wanted:
            self.best = None  # its evaluation is gone
        self._write_best()

    def _write_best(self) -> None:
        if self.best is None:
            remove(self.folder.best)
            return
        with atomic_folder(self.folder.best) as temporary:
            self.save(self.best.state, temporary)


def skipped_by_step(lines: Iterable[Line | None]) -> dict[int, int]:
    """How many steps had been skipped by each step, from the lines of a run's metrics."""
    return {line["step"]: line.get("skipped", 0) for line in lines if line is not None and line.get("kind") == "train"}
