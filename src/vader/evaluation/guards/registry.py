"""Guards by name: the built-in ones, the user's own (`module:Name`), and those that are made of a held-out reward."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch

from vader.errors import UserError
from vader.evaluation.guards.base import Guard, Guards
from vader.evaluation.guards.rewards import HeldOutReward, Margin
from vader.evaluation.metrics.reward import RewardMetric
from vader.nouns import Audio, Clip, Prompt, VideoSize
from vader.plugins import checked_options, find_class, instantiate
from vader.recipe import GuardsSection
from vader.rewards.registry import Named, check_rewards, load_reward, part_names
from vader.scoring.scorer import Scorer
from vader.scoring.trial import VIDEOS, random_pixels, random_sound

BUILT_IN: dict[str, type[Guard] | str] = {
    "retention": "vader.evaluation.guards.rewards:Retention",
    "clipped": "vader.evaluation.guards.pixels:Clipped",
    "grid": "vader.evaluation.guards.pixels:Grid",
    "detail": "vader.evaluation.guards.pixels:Detail",
    "motion": "vader.evaluation.guards.pixels:Motion",
    "flicker": "vader.evaluation.guards.pixels:Flicker",
    "saturation": "vader.evaluation.guards.pixels:Saturation",
    "contrast": "vader.evaluation.guards.pixels:Contrast",
    "diversity": "vader.evaluation.guards.pictures:Diversity",
    "distance": "vader.evaluation.guards.pictures:Distance",
    "hue": "vader.evaluation.guards.pictures:Hue",
}
MARGIN = "/margin"


def build_guards(section: GuardsSection, chunk: int) -> Guards:
    """The guards of a recipe, none where they are off. Of each held-out reward there are two: its margin and itself.

    Args:
        chunk: how many images a reward scores at once.

    Raises:
        UserError: no such guard or reward, an option it does not take, or weights that are missing.
    """
    if section.mode == "off":
        return Guards({})
    names = part_names([part.name for part in (*section.rewards, *section.watch)])
    found: dict[str, Guard] = {}
    for name, part in zip(names, section.rewards, strict=False):
        metric = RewardMetric(name, load_reward(part.name, **part.options), chunk)
        found |= {f"{name}{MARGIN}": Margin(metric), name: HeldOutReward(metric)}
    for name, part in zip(names[len(section.rewards) :], section.watch, strict=True):
        found[name] = instantiate(guard_class(part.name), f"guard {part.name!r}", part.options)
    return Guards(found)


def suited_guards(
    section: GuardsSection, chunk: int, prompts: Sequence[Prompt], size: VideoSize
) -> tuple[Guards, list[str]]:
    """The guards of a recipe that can speak of these videos, and a word on each that steps aside and was asked for.

    Raises:
        UserError: as `build_guards`, or one cannot measure videos of this size.
    """
    guards, words = build_guards(section, chunk).suited(prompts, size)
    return guards, [] if section.watch == GuardsSection().watch and not section.rewards else words


def check_guards(section: GuardsSection) -> None:
    """Loads no weights.

    Raises:
        UserError: there is no guard or reward of a name, it does not take an option, or it stands there twice.
    """
    check_rewards([Named(part.name, options=part.options) for part in section.rewards])
    for part in section.watch:
        checked_options(guard_class(part.name), f"guard {part.name!r}", part.options)
    for key, parts in ("rewards", section.rewards), ("watch", section.watch):
        for i, part in enumerate(parts):
            if part in parts[:i]:
                raise UserError(f"guards.{key} names {part.name!r} twice: leave one out, or give it other options")


def guard_class(name: str) -> type[Guard]:
    """The class behind a name. Raises `UserError` if there is none."""
    return find_class(name, "guard", BUILT_IN, Guard)


@torch.no_grad()
def tried(guards: Guards, scorer: Scorer, prompts: Sequence[Prompt]) -> Guards:
    """The guards, once each has measured random videos: without the margins of rewards that do not read prompts.

    Raises:
        UserError: one fails, or gives anything but numbers, or none.
    """
    guards.use_reward(scorer)
    if not guards.guards:
        return guards
    sound = random_sound(scorer) if guards.audio or scorer.mix.listens else None
    audio = sound and Audio(sound.samples.cpu(), sound.rate)
    clip = Clip.whole(random_pixels(scorer.size, scorer.size.frames), scorer.size.fps, audio)
    found = guards.per_video(clip, [prompts[i % len(prompts)] for i in range(VIDEOS)])
    for name, figures in found.items():
        if not figures.isfinite().any():
            raise UserError(
                f"guard {name!r} gives no number for random pixels in [0, 1]: let `per_video` give one a video"
            )
    blind = {name for name, guard in guards.guards.items() if isinstance(guard, Margin) and not found[name].any()}
    return Guards({name: guard for name, guard in guards.guards.items() if name not in blind})


def guard_names() -> dict[str, str]:
    """The built-in guards, each with one line of description."""
    return {name: (inspect.getdoc(guard_class(name)) or "").splitlines()[0] for name in BUILT_IN}
