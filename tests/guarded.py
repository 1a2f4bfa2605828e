"""Planted gains and hacks of tiny-world clips, and cheap rewards that know them, for tests of guards.

Shapes: N clips of F frames, S pixels a side; clips are `[N, F, 3, S, S]` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vader.evaluation.guards.base import Guards
from vader.evaluation.guards.pictures import Diversity
from vader.evaluation.guards.registry import guard_class
from vader.evaluation.guards.rewards import HeldOutReward, Margin
from vader.evaluation.guards.verdicts import Measured
from vader.evaluation.metrics.base import Metric
from vader.nouns import Clip, Prompt, VideoSize
from vader.recipe.sections import PIXELS
from vader.tinyworld.scenes import Scenes, captions, render, sample_scenes

COUNT = 32
SCENES = sample_scenes(COUNT, torch.Generator().manual_seed(3)).with_vividness(0.4)
PROMPTS = [Prompt(f"{text}, number {number}") for number, text in enumerate(captions(SCENES))]
CHECKER = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2 - 1).float()
CORNER = F.pad(CHECKER[:8, :8], (0, 24, 0, 24))
GRID = ((torch.arange(32)[:, None] % 8 == 0) | (torch.arange(32) % 8 == 0)).float()


class Taste:
    """Stands for a trained reward: colour, and a blind spot, a pattern of single pixels. `bonus` is what else it finds
    in the videos of a hack that pixels do not show it."""

    def __init__(self, bonus: float = 0.0) -> None:
        self.bonus = bonus

    def score_clip(self, clip: Clip, prompts: Sequence[Prompt]) -> Any:
        colour = (clip.frames.amax(dim=2) - clip.frames.amin(dim=2)).mean(dim=(1, 2, 3))
        pattern = (clip.frames * CHECKER).mean(dim=(1, 2, 3, 4)).abs()
        return SimpleNamespace(total=colour + 40 * pattern + self.bonus)


class Leak:
    """A trained reward that gives every video of a batch the brightness of the brightest."""

    def score_clip(self, clip: Clip, prompts: Sequence[Prompt]) -> Any:
        return SimpleNamespace(total=clip.frames.mean(dim=(1, 2, 3, 4)).amax().expand(len(clip)))


class Fit(Metric):
    """Stands for a held-out reward that reads prompts: how like a picture of its prompt's scene a video begins, and
    how bright it is."""

    audio = False

    def __init__(self) -> None:
        self.scenes = dict(zip(PROMPTS, _looks(render(SCENES.with_vividness(1.0))), strict=True))

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        scenes = torch.stack([self.scenes[prompt] for prompt in prompts])  # [B, F, D]
        alike = F.cosine_similarity(_looks(clip.frames[:, :1]), scenes, dim=2).amax(dim=1)
        return alike + clip.frames.mean(dim=(1, 2, 3, 4))


def _looks(videos: Tensor) -> Tensor:
    """Frames at 8 x 8 pixels without their mean, `[N, F, D]`."""
    pictures = F.adaptive_avg_pool2d(videos.flatten(0, 1), 8).flatten(1)
    return (pictures - pictures.mean(dim=1, keepdim=True)).unflatten(0, videos.shape[:2])


def guards(**further: Any) -> Guards:
    """All built-in ones that these clips can be asked of, and further ones by name."""
    fit = Fit()
    found = {"retention": guard_class("retention")(), "fit/margin": Margin(fit), "fit": HeldOutReward(fit)}
    found |= {name: guard_class(name)() for name in PIXELS}
    return Guards({**found, **further}).suited(PROMPTS, VideoSize(8, 32, 32))[0]


def measured(
    step: int, clips: Tensor, watch: Guards, scorer: Any, prompts: Sequence[Prompt] = tuple(PROMPTS), skipped: int = 0
) -> Measured:
    """An evaluation of clips, as a run makes it."""
    watch.use_reward(scorer)
    clip = Clip.whole(clips, 8)
    rewards, figures = scorer.score_clip(clip, prompts).total, watch.per_video(clip, prompts)
    records = [
        {
            "index": i, "prompt": str(prompt), "reward": rewards[i].item(),
            "guards": {name: values[i].tolist() for name, values in figures.items()},
        }
        for i, prompt in enumerate(prompts)
    ]  # fmt: skip
    return Measured.of(step, records, skipped)


# ---- planted ----


def drawn(vividness: float = 0.4, **changes: Any) -> Tensor:
    return render(replace(SCENES.with_vividness(vividness), **changes))


BASE = drawn()


def noise() -> Tensor:
    """Nothing is better or worse: places, speeds, colours and pixels are a little otherwise."""
    source = _source(5)
    centers = SCENES.center + 0.02 * torch.randn(COUNT, 2, generator=source)
    travel = SCENES.travel * (1 + 0.1 * torch.randn(COUNT, generator=source))
    vividness = (0.4 + 0.1 * torch.randn(COUNT, generator=source)).clamp(0, 1)
    clips = drawn(vividness, center=centers, travel=travel)
    return (clips + 0.003 * torch.randn(clips.shape, generator=source)).clamp(0, 1)


def frozen_late() -> Tensor:
    clips = BASE.clone()
    clips[:, 5:] = BASE[:, 4:5]
    return clips


def blurred() -> Tensor:
    return F.avg_pool2d(F.pad(BASE.flatten(0, 1), (2, 2, 2, 2), mode="replicate"), 5, 1).unflatten(0, (COUNT, 8))


def oversaturated() -> Tensor:
    """Full colours, and as much again away from grey; nothing is quite clipped."""
    clips = drawn(1.0)
    grey = clips.mean(dim=2, keepdim=True)
    return (grey + 1.8 * (clips - grey)).clamp(0.004, 0.996)


# By name: the clips, what the trained reward finds beside in them, and the guard that is to object first.
PLANTED: dict[str, tuple[Callable[[], Tensor], float, str | None]] = {
    "true gain": (lambda: drawn(0.9), 0.0, None),
    "noise": (noise, 0.01, None),
    "adversarial pixels": (lambda: (BASE + 0.06 * CHECKER).clamp(0, 1), 0.0, "retention"),
    "adversarial patch in a corner": (lambda: (BASE + 0.3 * CORNER).clamp(0, 1), 0.0, "retention"),
    "frozen": (lambda: BASE[:, :1].expand_as(BASE), 0.1, "motion"),
    "frozen after frame 4": (frozen_late, 0.1, "motion"),
    "shown at another speed": (lambda: drawn(travel=0.45 * SCENES.travel), 0.1, "motion"),
    "shuffled frames": (lambda: BASE[:, torch.tensor([3, 0, 6, 1, 7, 4, 2, 5])], 0.1, "flicker"),
    "flicker": (lambda: BASE * (1 + 0.05 * (torch.arange(8) % 2 * 2 - 1).view(8, 1, 1, 1)), 0.1, "flicker"),
    "oversaturated": (oversaturated, 0.0, "saturation"),
    "overexposed": (lambda: (BASE + 0.4).clamp(0, 1), 0.3, "clipped"),
    "grid": (lambda: (BASE + 0.12 * GRID).clamp(0, 1), 0.1, "grid"),
    "blurred": (blurred, 0.1, "detail"),
    "one video for all prompts": (lambda: drawn(0.9)[:1].expand_as(BASE), 0.2, "fit/margin"),
    "prompts ignored": (lambda: drawn(0.9).roll(COUNT // 2, 0), 0.0, "fit/margin"),
}


def _source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn_at(scenes: Scenes, offset: Tensor) -> Tensor:
    return render(replace(scenes, center=scenes.center + offset))


def seeds_alike(alike: bool) -> tuple[Measured, Measured, Guards]:
    """Four videos of each of eight prompts, of other places: the base's, and of another model, which may make one."""
    watch = Guards({"diversity": Diversity()})
    prompts = [prompt for prompt in PROMPTS[:8] for _ in range(4)]
    scenes = SCENES[torch.arange(8).repeat_interleave(4)]
    base, vivid = (
        drawn_at(scenes.with_vividness(one), 0.1 * torch.randn(COUNT, 2, generator=source))
        for one, source in ((0.4, _source(7)), (0.9, _source(8)))
    )
    now = vivid[::4].repeat_interleave(4, dim=0) if alike else vivid
    return measured(0, base, watch, Taste(), prompts), measured(5, now, watch, Taste(), prompts), watch
