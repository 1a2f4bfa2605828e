"""Gold: one number from the judge's findings that says how much of what a task asks for a video really has.

A learned reward is a proxy of it. Where the proxy rises and gold does not, the proxy is being hacked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from vader.evaluation.metrics.judge import Judge
from vader.nouns import Clip, Prompt
from vader.tinyworld.judge import judge_prompts

ATTRIBUTES = ("color", "shape", "background", "motion")
Task = Literal["looks", "motion", "removal", "consistency"]


class Gold(Judge):
    """The tiny world's truth in one number from 0 to 1, by task: looks, motion, removal or consistency.

    Of looks it is vividness times the share of attributes that are what the prompt says: full colour of something else
    is worth nothing, and colours beyond the world's fullest are worth no more than these. Of motion it is whether the
    motion is the prompt's, of removal whether the prompt's shape is gone, of consistency the share of attributes alone.
    A damaged video, one that could not have been rendered, is worth nothing in any.
    """

    def __init__(self, task: Task = "looks") -> None:
        self.task: Task = task

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:  # type: ignore[override]
        return gold(judge_prompts(clip.frames, prompts), self.task)


def gold(judged: Mapping[str, Tensor], task: Task) -> Tensor:
    """From the findings of `judge_prompts`, each `[B]`: numbers `[B]` from 0 to 1."""
    return (1.0 - judged["damaged"]) * _if_whole(judged, task)


def _if_whole(judged: Mapping[str, Tensor], task: Task) -> Tensor:
    if task == "motion":
        return judged["motion"]
    if task == "removal":
        return 1.0 - judged["shape"]  # the shape that is to vanish is the prompt's
    right = torch.stack([judged[name] for name in ATTRIBUTES]).mean(dim=0)
    return right if task == "consistency" else judged["vividness"].clamp(max=1.0) * right
