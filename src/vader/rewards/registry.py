"""Rewards by name: the built-in ones and the user's own (`module:Class`), one by one or as a recipe's mix."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from vader.errors import UserError, nearest
from vader.plugins import instantiate, load_object
from vader.recipe import MIXES, RewardSection, expand_mixes
from vader.rewards.base import Reward, RewardMix

BUILT_IN = {
    "action": "vader.rewards.action:Action",
    "aesthetic": "vader.rewards.aesthetic:Aesthetic",
    "hps": "vader.rewards.hps:HPS",
    "pickscore": "vader.rewards.pickscore:PickScore",
    "imagereward": "vader.rewards.imagereward:ImageReward",
    "weather": "vader.rewards.weather:Weather",
    "compression": "vader.rewards.compression:Compression",
    "object_removal": "vader.rewards.object_removal:ObjectRemoval",
    "vjepa": "vader.rewards.vjepa:VJEPA",
}


def load_reward(name: str, **options: Any) -> Reward:
    """A frozen reward, ready to score.

    Args:
        name: a built-in name, or `module:Class` for your own subclass of `FrameReward` or `ClipReward`.
        options: what the reward's constructor takes; of a mix, what all its rewards' constructors take.

    Raises:
        UserError: no such reward, an option it doesn't take, or weights that are missing.
    """
    if name in MIXES:
        return build_mix([RewardSection(name=name, **options)])
    return instantiate(reward_class(name), f"reward {name!r}", options).freeze()


def build_mix(sections: Sequence[RewardSection]) -> RewardMix:
    """The weighted sum a recipe asks for; the second reward of a name becomes part `name_2`, and so on."""
    sections = expand_mixes(sections)
    names = part_names([section.name for section in sections])
    rewards = [load_reward(section.name, **section.options) for section in sections]
    weights = [section.weight for section in sections]
    return RewardMix(dict(zip(names, rewards, strict=True)), dict(zip(names, weights, strict=True)))


def reward_class(name: str) -> type[Reward]:
    """The class behind a name. Raises `UserError` as `load_reward`."""
    if ":" not in name and name not in BUILT_IN:
        raise UserError(f"unknown reward {name!r}: {nearest(name, [*BUILT_IN, *MIXES])}, or your own as module:Class")
    return load_object(BUILT_IN.get(name, name), "reward", Reward)


def reward_names() -> dict[str, str]:
    """The built-in rewards and mixes, each with one line of description."""
    rewards = {name: (inspect.getdoc(reward_class(name)) or "").splitlines()[0] for name in BUILT_IN}
    mixes = {name: " + ".join(f"{part['weight']:g} {part['name']}" for part in parts) for name, parts in MIXES.items()}
    return rewards | {name: f"The mix {parts}, as in the paper's code." for name, parts in mixes.items()}


def part_names(names: Sequence[str]) -> list[str]:
    """Distinct names for metrics: a class stands for `module:Class`, and repeated names are numbered from 2."""
    short = [name.rpartition(":")[2] for name in names]
    counts = [short[: i + 1].count(name) for i, name in enumerate(short)]
    return [name if count == 1 else f"{name}_{count}" for name, count in zip(short, counts, strict=True)]
