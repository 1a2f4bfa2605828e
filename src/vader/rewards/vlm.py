"""A vision language model's yes or no: how sure a Qwen-VL is that a question on the video is to be answered with Yes.

The reward is log p(Yes) - log p(No) where the answer would begin (VQAScore, arXiv 2404.01291; as a training signal for
video models, arXiv 2601.04153). Odds in place of a probability, whose gradient dies where the model is sure; far out
they are bent softly towards a bound. Several questions are averaged, each reported by itself.

Shapes: B videos, n frames.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from vader.errors import UserError
from vader.files.hub import resolve
from vader.nouns import Clip, Prompt
from vader.rewards.base import SummedReward
from vader.rewards.needs import PerSecond, check_rate
from vader.rewards.qwen_vl.network import load_qwen_vl
from vader.rewards.qwen_vl.pixels import Limits, PatchLayout

QUESTION = 'Does this video show "{prompt}"? Answer Yes or No.'
PROMPT = "{prompt}"
BOUND = 6.0  # of the log-odds: p = 0.9975
TOKENS = (4, 256)  # of a frame, at least and at most


class Vlm(SummedReward):
    """How sure a vision language model is of Yes to questions on the video, in log-odds from -6 to 6 (Qwen-VL)."""

    needs: PerSecond
    sensible_range = (-BOUND, BOUND)

    def __init__(
        self,
        checkpoint: str = "Qwen/Qwen3-VL-2B-Instruct",
        questions: tuple[str, ...] = (QUESTION,),
        fps: float = 2.0,
    ) -> None:
        """
        Args:
            checkpoint: a folder or hub id of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL in transformers' layout.
            questions: each to be answered with Yes where the video is good; `{prompt}` stands for the video's prompt.
            fps: frames of a second that are seen.

        Raises:
            UserError: weights are missing, the model is of another kind, or there is no question, or one with a place
                that nothing fills; or `fps` is not above 0.
        """
        if not questions or not all(question.strip() for question in questions):
            raise UserError("reward 'vlm' needs questions: give one or more, as ['Is the motion smooth?']")
        for place in re.findall(r"\{\w*\}", " ".join(questions)):
            if place != PROMPT:
                raise UserError(
                    f"reward 'vlm' asks for {place}: {PROMPT} alone stands for something, the video's prompt"
                )
        if not 0 < fps < math.inf:
            raise UserError(f"reward 'vlm': fps is {fps}, which shows it nothing: give frames of a second, above 0")
        super().__init__({str(number): 1 / len(questions) for number in range(1, len(questions) + 1)})
        self.network, language_head = load_qwen_vl(resolve(checkpoint, "qwen"))
        yes, no = (language_head.weight[self.network.word(answer)] for answer in ("Yes", "No"))
        self.register_buffer("direction", (yes - no).float(), persistent=False)
        self.questions = questions
        self.needs, self.limits = sight(self.network.layout, fps)

    def score_heads(self, clip: Clip, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """The log-odds of every question, by its number from 1, each `[B]`.

        Raises:
            UserError: the frames are not as many a second as were asked for.
        """
        check_rate("vlm", clip.times, self.needs)
        odds = torch.stack(
            [
                torch.stack([self._odds(frames, times, question, prompt.text) for question in self.questions])
                for frames, times, prompt in zip(clip.frames, clip.times, prompts, strict=True)
            ]
        )
        return dict(zip(self.weights, softly_clipped(odds, BOUND).unbind(dim=1), strict=True))

    def _odds(self, frames: Tensor, times: Tensor, question: str, prompt: str) -> Tensor:
        """log p(Yes) - log p(No) of one question on one video."""
        read = self.network(frames, question.replace(PROMPT, prompt), self.limits, times)
        return read.hidden[-1] @ self.get_buffer("direction").to(frames.dtype)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self.network.check_text(prompt.text)
        if any(PROMPT in question for question in self.questions) and not all(p.text.strip() for p in prompts):
            raise UserError(
                "reward 'vlm' asks for the prompt, and a prompt is empty: give every video one (vader score: --prompt "
                "or --prompts), or questions without {prompt}"
            )

    def to_precision(self, dtype: torch.dtype) -> Vlm:
        self.network.to(dtype)
        return self


def sight(layout: PatchLayout, fps: float) -> tuple[PerSecond, Limits]:
    """Which frames are seen, whole groups of them, and with how many pixels."""
    low, high = (count * (layout.patch * layout.merge) ** 2 for count in TOKENS)
    return PerSecond(fps, least=layout.temporal, multiple=layout.temporal), Limits(low, high)


def softly_clipped(values: Tensor, bound: float) -> Tensor:
    """Nearly as they are around 0, and never beyond the bound; a gradient is left everywhere."""
    return bound * torch.tanh(values / bound)
