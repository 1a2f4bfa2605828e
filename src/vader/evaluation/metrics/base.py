"""The contract of a metric, and the metrics of a recipe together: clips and prompts in, figures by flat names out.

A metric measures each video alone (`per_video`), a set of videos as a whole (`over_set`), or both; beside that it may
follow a video along its frames (`over_frames`). Bring your own: subclass `Metric`, name it `module:Name`. Nothing is
trained on what it says.

Shapes: B videos of F frames; clips are whole videos on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor

from vader.errors import UserError
from vader.nouns import Clip, Prompt, VideoSize
from vader.plugins import explain_methods, is_built_in
from vader.rewards.base import BrokenContract, require_scores

Suited = TypeVar("Suited", bound="HeldOutMetrics")
WORK = ("per_video", "over_set", "over_frames", "check", "prepare", "rest")


class Aside(UserError):
    """A metric cannot speak of the prompts that it is given: it steps aside, and the run goes on without it."""


class Metric:
    """A measure of videos. Implement `per_video`, `over_set` or both; which it has is told by what it overrides.

    Attributes:
        audio: whether it listens; clips then have the videos' sound.
    """

    audio: bool = False

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if not is_built_in(cls):
            explain_methods(cls, WORK, lambda metric: f"metric {type(metric).__name__!r}")

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor | dict[str, Tensor]:
        """Figures of B videos and their prompts: `[B]`, or several such by name."""
        raise NotImplementedError

    def over_set(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> float | dict[str, float]:
        """Figures of a set of videos, each a clip of one, with their prompts; empty where they cannot be had."""
        raise NotImplementedError

    def over_frames(self, clip: Clip, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Curves over the frames of B videos, each `[B, F]`, by name; most metrics have none."""
        return {}

    def check(self, prompts: Sequence[Prompt], size: VideoSize) -> None:
        """Raises `UserError` if videos of this size cannot be measured, `Aside` if those of these prompts cannot.

        Asked before a run starts.
        """

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves its networks to the device, the big ones in `dtype`; without networks there is nothing to do.

        Called before a run's first evaluation is tried, and again before each.
        """

    def rest(self) -> None:
        """Moves its networks back to the CPU: training has the room until the next evaluation."""


class HeldOutMetrics:
    """Metrics by name. A figure is called as its metric, or `metric/figure` where a metric gives several."""

    kind = "metric"

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self.metrics = dict(metrics)
        self._per_video = {name: metric for name, metric in metrics.items() if _has(metric, "per_video")}
        self._over_set = {name: metric for name, metric in metrics.items() if _has(metric, "over_set")}
        for name, metric in metrics.items():
            if name not in self._per_video and name not in self._over_set:
                raise UserError(
                    f"{self.kind} {name!r} measures nothing: {type(metric).__name__} needs per_video or over_set"
                )

    @property
    def of_sets(self) -> bool:
        """Whether any of them measures a set, so that all its videos have to be kept."""
        return bool(self._over_set)

    @property
    def audio(self) -> bool:
        """Whether any of them listens."""
        return any(metric.audio for metric in self.metrics.values())

    def suited(self: Suited, prompts: Sequence[Prompt], size: VideoSize) -> tuple[Suited, list[str]]:
        """The metrics that can speak of these prompts, and a word on each that steps aside.

        Raises:
            UserError: as `Metric.check`.
        """
        suited, words = {}, []
        for name, metric in self.metrics.items():
            try:
                metric.check(prompts, size)
                suited[name] = metric
            except Aside as word:
                words.append(f"{self.kind} {name!r} steps aside: {word}")
        return type(self)(suited), words

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        for metric in self.metrics.values():
            metric.prepare(device, dtype)

    def rest(self) -> None:
        for metric in self.metrics.values():
            metric.rest()

    @contextmanager
    def at_work(self, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
        """Within, their networks are on the device; outside it training has the room."""
        try:
            self.prepare(device, dtype)
            yield
        finally:
            self.rest()

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Every figure of B videos, each `[B]`. Raises `UserError` if a metric gives anything else."""
        found: dict[str, Tensor] = {}
        for name, metric in self._per_video.items():
            for figure, values in _flat(name, metric.per_video(clip, prompts)).items():
                found[figure] = _numbers(figure, values, len(prompts))
        return found

    def over_frames(self, clip: Clip, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Every curve over frames, each `[B, F]`. Raises `UserError` if a metric gives anything else."""
        found: dict[str, Tensor] = {}
        for name, metric in self.metrics.items():
            for figure, values in _flat(name, metric.over_frames(clip, prompts)).items():
                found[figure] = _curve(figure, values, tuple(clip.frames.shape[:2]))
        return found

    def over_set(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> dict[str, float]:
        """Every figure of a set of videos. Raises `UserError` if a metric gives anything but numbers."""
        found: dict[str, float] = {}
        for name, metric in self._over_set.items():
            for figure, value in _flat(name, metric.over_set(clips, prompts)).items():
                found[figure] = _number(figure, value)
        return found


def _has(metric: Metric, method: str) -> bool:
    return getattr(type(metric), method) is not getattr(Metric, method)


def _flat(name: str, found: object) -> dict[str, object]:
    """One figure under the metric's name, several under `name/figure`."""
    if isinstance(found, dict):
        return {f"{name}/{figure}": value for figure, value in found.items()}
    return {name: found}


def _numbers(figure: str, values: object, count: int) -> Tensor:
    """What `per_video` gave as a figure, `[count]`; truth values and integers are numbers, too."""
    if isinstance(values, Tensor) and not values.is_floating_point():
        values = values.float()
    try:
        return require_scores(values, count, "per_video", "video")
    except BrokenContract as error:
        raise UserError(f"metric {figure!r} {error}") from error


def _curve(figure: str, values: object, shape: tuple[int, ...]) -> Tensor:
    """What `over_frames` gave as a curve, `[B, F]`."""
    if not isinstance(values, Tensor) or tuple(values.shape) != shape or not torch.isfinite(values).all():
        given = f"shape {list(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise UserError(
            f"metric {figure!r} gave {given} from `over_frames`: let it return finite numbers {list(shape)}, one for "
            "each frame of each video"
        )
    return values


def _number(figure: str, value: object) -> float:
    """What `over_set` gave as a figure."""
    if isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1):
        return float(value)
    given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise UserError(
        f"metric {figure!r} gave {given} from `over_set`: let it return one number for all videos, or several by name"
    )
