"""HPSv3: how much people like an image for its prompt, on pictures of every kind (Ma et al., 2025, arXiv 2508.03789).

A Qwen2-VL sees the image, reads what is asked with the prompt in it, and a small head makes of its state at one special
word the mean and the spread of a score; the mean is the reward.

Shapes: N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import torch
from torch import Tensor, nn

from vader.errors import UserError
from vader.files.hub import find_file, resolve, together
from vader.nouns import Prompt
from vader.rewards.base import FrameReward
from vader.rewards.qwen_vl.network import QwenVL, qwen_config
from vader.rewards.qwen_vl.pixels import Limits
from vader.rewards.qwen_vl.release import load_release

CHECKPOINT = "MizzenAI/HPSv3/HPSv3.safetensors"
BASE = "Qwen/Qwen2-VL-7B-Instruct"
TEMPLATE = files("vader.rewards.qwen_vl").joinpath("hpsv3.txt").read_text(encoding="utf-8")
WORD = "<|Reward|>"
WIDTHS = (1024, 16, 2)  # of the head's layers
LIMITS = Limits(low=256 * 28 * 28, high=256 * 28 * 28)


class HPSv3(FrameReward):
    """How much people like an image for its prompt (Human Preference Score v3), about -10 to 15."""

    sensible_range = (-10.0, 15.0)

    def __init__(self, checkpoint: str = CHECKPOINT, base: str = BASE) -> None:
        """
        Args:
            checkpoint: a file in the released layout, here or on the hub as `owner/repo/file`.
            base: the Qwen2-VL that it was trained on, a folder or hub id: settings and tokenizer are read from it.

        Raises:
            UserError: the checkpoint is missing, lacks a weight or has one too many, or does not fit the base.
        """
        super().__init__()
        path, folder = together(lambda: find_file(checkpoint, "hpsv3.safetensors"), lambda: resolve(base, "qwen"))
        with torch.device("meta"):
            self.head = make_head(qwen_config(folder).text_config.hidden_size)
        self.network: QwenVL = load_release(path, folder, [WORD], self.head, lora_scale=1.0)
        self.limits = LIMITS

    def score_frames(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.stack([self._mean(image, str(prompt)) for image, prompt in zip(images, prompts, strict=True)])

    def _mean(self, image: Tensor, prompt: str) -> Tensor:
        read = self.network(image[None], TEMPLATE.format(text_prompt=prompt), self.limits, flat=True)
        return self.head(read.at(self.network.word(WORD)))[0]

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self.network.check_text(prompt.text)
        if not all(prompt.text.strip() for prompt in prompts):
            raise UserError(
                "reward 'hpsv3' compares a video with its prompt, and a prompt is empty: "
                "give every video one (vader score: --prompt or --prompts)"
            )

    def to_precision(self, dtype: torch.dtype) -> HPSv3:
        self.network.to(dtype)
        return self


def make_head(width: int) -> nn.Sequential:
    """The layers under the released names: 0, 3 and 5; in between an activation, a dropout that is off, and another."""
    first, second, last = WIDTHS
    return nn.Sequential(
        nn.Linear(width, first), nn.ReLU(), nn.Identity(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, last)
    )
