"""Rewards by name: the built-in ones and the user's own (`module:Class`), one by one or as a recipe's mix."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from vader.errors import UserError
from vader.files.hub import NoTwin, together
from vader.plugins import checked_options, find_class, instantiate
from vader.rewards.base import LatentReward, Reward, RewardMix
from vader.rewards.needs import Sees, seeing
from vader.rewards.shaping import Shaping

BESIDE = ("weight", "sees", "hinge", "robust")  # keys of a trained reward in a recipe that are no options


class RewardPart(Protocol):
    """A reward as a recipe names it; `sees` is what it is shown (None: what it needs), the last as in `Shaping`."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def sees(self) -> Sees | None: ...
    @property
    def hinge(self) -> float | None: ...
    @property
    def robust(self) -> float: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Named:
    """A reward part made in Python."""

    name: str
    weight: float = 1.0
    sees: Sees | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    hinge: float | None = None
    robust: float = 0.0


BUILT_IN = {
    "action": "vader.rewards.action:Action",
    "aesthetic": "vader.rewards.aesthetic:Aesthetic",
    "hps": "vader.rewards.hps:HPS",
    "pickscore": "vader.rewards.pickscore:PickScore",
    "imagereward": "vader.rewards.imagereward:ImageReward",
    "weather": "vader.rewards.weather:Weather",
    "compression": "vader.rewards.compression:Compression",
    "object_removal": "vader.rewards.object_removal:ObjectRemoval",
    "consistency": "vader.rewards.consistency:Consistency",
    "vjepa": "vader.rewards.vjepa:VJEPA",
    "videoreward": "vader.rewards.videoreward:VideoReward",
    "hpsv3": "vader.rewards.hpsv3:HPSv3",
    "vlm": "vader.rewards.vlm:Vlm",
    "videoprism": "vader.rewards.textvideo:VideoPrism",
    "xclip": "vader.rewards.textvideo:XClip",
    "mps": "vader.rewards.mps:MPS",
    "aesthetic_v25": "vader.rewards.aesthetic_v25:AestheticV25",
    "latent_aesthetic": "vader.rewards.latent_aesthetic:LatentAesthetic",
}

# Mixes by name: of each reward its name, its weight and its options. A mix's own options go to all its rewards.
# hps_aesthetic: the paper's code has the loss (1.5 * 0.1 |aesthetic - 10| + |1 - hps|) / 2, whose gradient below 10
# is that of 0.075 aesthetic + 0.5 hps.
MIXES: dict[str, tuple[Named, ...]] = {
    "hps_aesthetic": (
        Named("hps", 0.5, options={"resize": "squash"}),
        Named("aesthetic", 0.075, options={"resize": "squash"}),
    ),
}


def load_reward(name: str, **options: Any) -> Reward:
    """A frozen reward, ready to score.

    Args:
        name: a built-in name, or `module:Class` for your own subclass of `FrameReward` or `Reward`.
        options: what the reward's constructor takes; of a mix, what all its rewards' constructors take.

    Raises:
        UserError: no such reward, an option it doesn't take, or weights that are missing.
    """
    if name in MIXES:
        return build_mix([Named(name, options=options)])
    cls = reward_class(name)
    label = f"reward {name!r}"
    try:
        return instantiate(cls, label, options).freeze()
    except NoTwin as error:
        raise UserError(f"{label} has no tiny twin: {error.instead}, or leave it to the release") from error


def check_rewards(parts: Sequence[RewardPart], beside: Collection[str] = ()) -> None:
    """Loads no weights.

    Args:
        beside: keys that a reward has here beside its options, for who misspells one of them.

    Raises:
        UserError: there is no reward of a name, or it does not take an option.
    """
    for part in parts:
        if part.name in MIXES and part.hinge is not None:
            raise UserError(f"reward {part.name!r} is a mix, whose parts have other scales: name them one by one")
        for one in _expanded(part):
            checked_options(reward_class(one.name), f"reward {one.name!r}", one.options, beside=beside)


def lonely(parts: Sequence[RewardPart]) -> list[str]:
    """What to know of built-in rewards that want company and have none, a line each."""
    found = {part.name: reward_class(part.name).alone if part.name in BUILT_IN else "" for part in parts}
    if not all(found.values()):
        return []
    return [
        f"Reward {name!r} alone leads to {videos}: put one of the picture beside it, as hps or aesthetic "
        f"(docs/rewards/{name}.md)."
        for name, videos in found.items()
    ]


def build_mix(parts: Sequence[RewardPart], load: Callable[..., Reward] = load_reward) -> RewardMix:
    """The weighted sum of the parts; the second reward of a name becomes part `name_2`, and so on.

    Args:
        load: what makes a reward of its name and options.
    """
    parts = [one for part in parts for one in _expanded(part)]
    names = part_names([part.name for part in parts])
    loads = [partial(load, part.name, **part.options) for part in parts]
    rewards = dict(zip(names, together(*loads), strict=True))
    weights = {name: part.weight for name, part in zip(names, parts, strict=True)}
    shown = {name: seeing(rewards[name].needs, part.sees) for name, part in zip(names, parts, strict=True)}
    for name, part in zip(names, parts, strict=True):
        if isinstance(rewards[name], LatentReward) and (part.sees is not None or part.robust):
            raise UserError(f"reward {name!r} sees latents: its keys sees and robust are about pixels, leave them out")
    shaping = {name: Shaping(part.hinge, part.robust, part.weight < 0) for name, part in zip(names, parts, strict=True)}
    return RewardMix(rewards, weights, shown, shaping)


def _expanded(part: RewardPart) -> Sequence[RewardPart]:
    """A mix stands for its rewards, each with the mix's own options and its weight times the mix's."""
    if part.name not in MIXES:
        return [part]
    return [
        Named(one.name, part.weight * one.weight, part.sees, {**one.options, **part.options}, robust=part.robust)
        for one in MIXES[part.name]
    ]


def reward_class(name: str) -> type[Reward]:
    """The class behind a name. Raises `UserError` as `load_reward`."""
    mixes = dict.fromkeys(MIXES, f"{RewardMix.__module__}:{RewardMix.__name__}")
    return find_class(name, "reward", BUILT_IN | mixes, Reward)


def reward_names() -> dict[str, str]:
    """The built-in rewards and mixes, each with one line of description."""
    rewards = {name: (inspect.getdoc(reward_class(name)) or "").splitlines()[0] for name in BUILT_IN}
    mixes = {name: " + ".join(f"{part.weight:g} {part.name}" for part in parts) for name, parts in MIXES.items()}
    return rewards | {name: f"The mix {parts}, as in the paper's code." for name, parts in mixes.items()}


def part_names(names: Sequence[str]) -> list[str]:
    """Distinct names for metrics: a class stands for `module:Class`, and repeated names are numbered from 2."""
    short = [name.rpartition(":")[2] for name in names]
    counts = [short[: i + 1].count(name) for i, name in enumerate(short)]
    return [name if count == 1 else f"{name}_{count}" for name, count in zip(short, counts, strict=True)]
