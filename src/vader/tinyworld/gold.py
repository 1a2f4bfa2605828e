"""Gold: one number from the judge's findings that says how much of what a reward stands for a video really has.

A learned reward is a proxy of it. Where the proxy rises and gold does not, the proxy is being hacked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

ATTRIBUTES = ("color", "shape", "background", "motion")


def gold(judged: Mapping[str, float], rewards: Sequence[str]) -> float:
    """From 0 to 1, of one video's or the means of many videos' findings (`judge_prompts`), for rewards by name.

    Of rewards of looks and taste it is vividness times the share of attributes that are what the prompt says: full
    colour of something else is worth nothing, and colours beyond the world's fullest are worth no more than these. Of
    rewards of one thing alone it is that thing.
    """
    if "action" in rewards:
        return judged["motion"]
    if "object_removal" in rewards:
        return 1.0 - judged["shape"]  # the shape that is to vanish is the prompt's
    right = fmean(judged[name] for name in ATTRIBUTES)
    return right if "vjepa" in rewards else min(judged["vividness"], 1.0) * right
