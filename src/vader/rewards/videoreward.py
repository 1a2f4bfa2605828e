"""VideoReward: what people think of a generated video's looks, motion and fit to its prompt (VideoAlign, 2501.13918).

A Qwen2-VL sees the video, reads what is asked, and a linear head scores its state at three special words: visual
quality (VQ), motion quality (MQ), text alignment (TA). The prompt stands behind the first two, so that only TA can
depend on it.

Shapes: B videos, n frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Literal

import torch
from torch import Tensor, nn

from vader.errors import UserError
from vader.files.hub import find_file, resolve, together
from vader.nouns import Clip, Prompt
from vader.rewards.base import SummedReward
from vader.rewards.needs import PerSecond, check_rate
from vader.rewards.qwen_vl.network import QwenVL, qwen_config
from vader.rewards.qwen_vl.pixels import Limits
from vader.rewards.qwen_vl.release import load_release

CHECKPOINT = "KlingTeam/VideoReward/checkpoint-11352/model.pth"
BASE = "Qwen/Qwen2-VL-2B-Instruct"
TEMPLATE = files("vader.rewards.qwen_vl").joinpath("videoreward.txt").read_text(encoding="utf-8")
WORDS = {"vq": "<|VQ_reward|>", "mq": "<|MQ_reward|>", "ta": "<|TA_reward|>"}
MEAN_STD = {"vq": (3.6757, 2.2476), "mq": (1.1646, 1.3811), "ta": (2.8105, 2.5121)}  # on the authors' validation set
LORA_SCALE = 128 / 64  # alpha / rank of the release
LIMITS = Limits(low=128 * 28 * 28, high=256 * 28 * 28)
NEEDS = PerSecond(2.0, least=4, multiple=2)


class VideoReward(SummedReward):
    """What people think of a video's looks, motion and fit to its prompt (VideoReward), about -2 to 2 each."""

    needs = NEEDS
    sensible_range = (-6.0, 6.0)

    def __init__(
        self,
        checkpoint: str = CHECKPOINT,
        base: str = BASE,
        weights: dict[Literal["vq", "mq", "ta"], float] | None = None,
        normalise: bool = True,
    ) -> None:
        """
        Args:
            checkpoint: a file in the released layout, here or on the hub as `owner/repo/file`.
            base: the Qwen2-VL that it was trained on, a folder or hub id: settings and tokenizer are read from it.
            weights: of visual quality, motion quality and text alignment in the sum; one that is not named is only
                reported. None: 1 each.
            normalise: subtract the published mean of each and divide by its deviation.

        Raises:
            UserError: the checkpoint is missing, lacks a weight or has one too many, or does not fit the base.
        """
        given = dict.fromkeys(WORDS, 1.0) if weights is None else {str(name): one for name, one in weights.items()}
        super().__init__(dict.fromkeys(WORDS, 0.0) | given)
        size = sum(abs(weight) for weight in self.weights.values())
        self.sensible_range = (-2.0 * size, 2.0 * size)
        path, folder = together(lambda: find_file(checkpoint, "videoreward.safetensors"), lambda: resolve(base, "qwen"))
        with torch.device("meta"):
            self.head = nn.Linear(qwen_config(folder).text_config.hidden_size, 1, bias=False)
        self.network: QwenVL = load_release(path, folder, list(WORDS.values()), self.head, LORA_SCALE)
        self.limits = LIMITS
        self.normalise = normalise

    def score_heads(self, clip: Clip, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """The three scores by name, each `[B]`.

        Raises:
            UserError: the frames are not two a second, as the clip's times tell.
        """
        check_rate("videoreward", clip.times, NEEDS)
        videos = zip(clip.frames, clip.times, prompts, strict=True)
        raw = torch.stack([self._raw(frames, times, prompt.text) for frames, times, prompt in videos])
        return dict(zip(WORDS, self._scaled(raw).unbind(dim=1), strict=True))

    def _raw(self, frames: Tensor, times: Tensor, prompt: str) -> Tensor:
        """The head's numbers `[3]` for one video."""
        read = self.network(frames, TEMPLATE.format(text_prompt=prompt), self.limits, times, flat=True)
        states = torch.stack([read.at(self.network.word(word)) for word in WORDS.values()])
        return self.head(states)[:, 0]

    def _scaled(self, raw: Tensor) -> Tensor:
        mean, std = raw.new_tensor(list(MEAN_STD.values())).T
        return (raw - mean) / std if self.normalise else raw

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self.network.check_text(prompt.text)
        if self.weights["ta"] and not all(prompt.text.strip() for prompt in prompts):
            raise UserError(
                "reward 'videoreward' compares a video with its prompt, and a prompt is empty: give every video one "
                "(vader score: --prompt or --prompts), or set the weight of ta to 0"
            )

    def to_precision(self, dtype: torch.dtype) -> VideoReward:
        self.network.to(dtype)
        return self
