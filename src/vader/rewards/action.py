"""Action classification: how sure a video classifier is of the action that a prompt asks for (paper, section 4.2).

VideoMAE (arXiv 2203.12602), fine-tuned on Kinetics-400, sees the clip as a whole, two frames to a token. Its
position table is a computed sine table, so clips of any even number of frames fit any checkpoint.

Shapes: B videos, F frames, T frames that the classifier sees.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import VideoMAEForVideoClassification

from vader.errors import UserError, nearest
from vader.files.hub import load_pretrained, resolve
from vader.nouns import Clip, Prompt
from vader.rewards.base import Reward
from vader.rewards.needs import AllFrames
from vader.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, Resizer, crop, normalize, squash

RESIZERS: dict[str, Resizer] = {"crop": partial(crop, mode="bilinear"), "squash": squash}


class Action(Reward):
    """How sure a video classifier is of the prompt's action: the log-probability of its label (VideoMAE)."""

    def __init__(
        self,
        checkpoint: str = "MCG-NJU/videomae-base-finetuned-kinetics",
        output: Literal["log_probability", "probability"] = "log_probability",
        label: str | None = None,
        frames: int | None = None,
        resize: Literal["crop", "squash"] = "crop",
    ) -> None:
        """
        Args:
            checkpoint: `tiny`, a folder, or a hub id of a VideoMAE classifier.
            output: `log_probability` as the paper's code trains it, or `probability` as it reports it; the
                latter's gradient vanishes while the classifier is sure of another class.
            label: the class for every prompt that has no label of its own; None: the longest class name that
                the prompt's text holds.
            frames: how many frames the classifier sees, evenly spread and even in number; None: all.
            resize: `crop` as VideoMAE was trained, or `squash` as the paper's code does.

        Raises:
            UserError: weights are missing, the classifier has no such label, or `frames` is odd.
        """
        super().__init__()
        source = resolve(checkpoint, "actions")
        self.model: Any = load_pretrained(VideoMAEForVideoClassification, source, "VideoMAE classifier")
        self.indices = {_plain(name): index for index, name in self.model.config.id2label.items()}
        self.probability = output == "probability"
        self.sensible_range = (0.0, 1.0) if self.probability else (-6.0, 0.0)  # log(1/400) is -6
        self.label = label
        if label is not None:
            self._index(label)
        self.frames = frames
        tubelet = self.model.config.tubelet_size
        self.needs = AllFrames(least=frames or tubelet, multiple=1 if frames else tubelet)
        if self.needs.least % tubelet:
            raise UserError(f"reward 'action' needs an even number of frames, got the option frames={frames}")
        self.resize = RESIZERS[resize]

    def score(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        targets = torch.tensor([self.target(prompt) for prompt in prompts], device=clip.frames.device)
        logp = self.logits(self._spread(clip.frames)).log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
        return logp.exp() if self.probability else logp

    def logits(self, frames: Tensor) -> Tensor:
        """Class logits `[B, C]` of clips `[B, T, 3, H, W]` in [0, 1], T even."""
        pixels = self.resize(frames.flatten(0, 1), self.model.config.image_size)
        pixels = normalize(pixels, IMAGENET_MEAN, IMAGENET_STD).unflatten(0, frames.shape[:2])
        self.model.videomae.embeddings.position_embeddings = self._positions(frames.shape[1])
        return self.model(pixel_values=pixels.to(self.model.dtype)).logits.to(frames.dtype)

    def target(self, prompt: Prompt) -> int:
        """The class that a prompt asks for: by its own label, the option `label`, or a class name in its text.

        Raises:
            UserError: there is none.
        """
        if label := prompt.label or self.label:
            return self._index(label)
        text = _plain(prompt.text)
        named = [name for name in self.indices if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
        if not named:
            raise UserError(
                f"prompt {prompt.text!r} names no action that the classifier knows: give the prompts a label column, "
                "or the reward the option label"
            )
        return self.indices[max(named, key=len)]

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self.target(prompt)

    def to_precision(self, dtype: torch.dtype) -> Action:
        self.model.to(dtype)
        return self

    def _positions(self, frames: int) -> Tensor:
        config, tokens = self.model.config, self.model.videomae.embeddings.num_patches  # of a clip of its own length
        tubes = frames // config.tubelet_size
        return sine_table(tubes * (tokens // (config.num_frames // config.tubelet_size)), config.hidden_size)

    def _index(self, label: str) -> int:
        if _plain(label) not in self.indices:
            raise UserError(f"the action classifier knows no {label!r}: {nearest(_plain(label), self.indices)}")
        return self.indices[_plain(label)]

    def _spread(self, frames: Tensor) -> Tensor:
        count, tubelet = frames.shape[1], self.model.config.tubelet_size
        if count < self.needs.least or (self.frames is None and count % tubelet):
            wanted = f"{self.frames} frames or more" if self.frames else "an even number of frames"
            raise UserError(
                f"reward 'action' needs {wanted}, got {count}: set video.frames, or the reward's sees or frames"
            )
        if self.frames is None:
            return frames
        return frames[:, torch.linspace(0, count - 1, self.frames).round().long()]


def sine_table(positions: int, width: int) -> Tensor:
    """The fixed position code `[1, positions, width]`: sine in even and cosine in odd channels (arXiv 1706.03762, 3.5).

    Frame pairs come first in the order of tokens, so the table of a shorter clip is the beginning of a longer one's.
    """
    channel = torch.arange(width, dtype=torch.float64)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] / 10000 ** (2 * (channel // 2) / width)
    return torch.where(channel % 2 == 0, angles.sin(), angles.cos()).float()[None]


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())
