"""Advantages: by how much a video's reward is better than is usual for its prompt.

In go the prompts and rewards of a whole global batch, out comes a number a video, the same on every process. What is
usual is the batch's other videos of the prompt (`group_advantages`), or the prompt's latest rewards over many batches
(`PromptStatistics`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from vader.errors import UserError
from vader.nouns import Prompt

TINY = 1e-6  # added to standard deviations of rewards


def group_advantages(prompts: Sequence[Prompt], rewards: Tensor) -> Tensor:
    """Rewards `[B]` less the mean of those of their prompt in this batch, over their standard deviation (GRPO's
    advantages, arXiv 2402.03300, section 4.1.2): `[B]`."""
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    places = torch.tensor([numbers[prompt] for prompt in prompts])
    values = rewards.detach().double().cpu()
    ones = torch.ones_like(values)

    def mean(of: Tensor) -> Tensor:
        sums, counts = (torch.zeros(len(numbers)).double().index_add(0, places, one) for one in (of, ones))
        return (sums / counts)[places]

    centred = values - mean(values)
    return (centred / (mean(centred.square()).sqrt() + TINY)).to(rewards)


def require_group(group: int) -> None:
    """Raises `UserError` for a group in which there is nothing to compare."""
    if group < 2:
        raise UserError(
            f"algorithm.group is {group}: a video that is alone of its prompt is its own mean, and teaches nothing; "
            "set it to 2 or more"
        )


class PromptStatistics:
    """The latest rewards of each prompt, by which a new one is judged, as DDPO has it (arXiv 2305.13301)."""

    def __init__(self, size: int, min_count: int) -> None:
        self.size, self.min_count = size, min_count
        self.rewards: dict[str, deque[float]] = {}  # by all that a prompt is, as text, which checkpoints hold

    def advantages(self, prompts: Sequence[Prompt], rewards: Tensor) -> Tensor:
        """Remembers rewards `[B]`, and normalises each by mean and standard deviation of those of its prompt.

        While there are fewer than `min_count` of its prompt, the batch's mean and standard deviation do instead.
        """
        keys, values = [repr(prompt) for prompt in prompts], rewards.double().tolist()
        for key, value in zip(keys, values, strict=True):
            self.rewards.setdefault(key, deque(maxlen=self.size)).append(value)
        found = [self._normalised(key, value, values) for key, value in zip(keys, values, strict=True)]
        return rewards.new_tensor(found)

    def _normalised(self, key: str, value: float, batch: list[float]) -> float:
        known = self.rewards[key] if len(self.rewards[key]) >= self.min_count else batch
        return (value - fmean(known)) / (pstdev(known) + TINY)

    def state_dict(self) -> dict[str, Any]:
        return {key: list(rewards) for key, rewards in self.rewards.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rewards = {key: deque(rewards, maxlen=self.size) for key, rewards in state.items()}
