"""Text and video in one space: the cosine of a video's and its prompt's features, seen as a whole and not by frames.

VideoPrism's video-text model (arXiv 2402.13217) and X-CLIP (arXiv 2208.02816), which lets the prompt's features look at
the video's frames first. Small beside the vision language models, and another family than what is trained on CLIP.

Shapes: B videos, n frames, D features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from vader.errors import UserError
from vader.files.hub import load_pretrained, load_tokenizer, resolve
from vader.nouns import Clip, Prompt
from vader.rewards.base import Reward
from vader.rewards.needs import Evenly
from vader.rewards.preprocess import CLIP_MEAN, CLIP_STD, Resize, normalize, resizer


class TextVideo(Reward):
    """The cosine of one video's features and its prompt's; no other video is in the same pass."""

    sensible_range = (0.0, 0.4)
    model: Any
    tokenizer: Any

    def score(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        if clip.frames.shape[1] != (count := self.needs.least):
            raise UserError(f"it sees {count} frames, got {clip.frames.shape[1]}: leave out the reward's key sees")
        videos = zip(clip.frames, prompts, strict=True)
        pairs = [self.features(frames, str(prompt)) for frames, prompt in videos]
        return torch.stack([F.cosine_similarity(video, text, dim=0).to(clip.frames.dtype) for video, text in pairs])

    @abstractmethod
    def features(self, frames: Tensor, prompt: str) -> tuple[Tensor, Tensor]:
        """Of frames `[n, 3, H, W]` and of a prompt, `[D]` each."""

    def tokens(self, prompt: str, device: torch.device, **settings: Any) -> dict[str, Tensor]:
        found = self.tokenizer(prompt, truncation=True, return_tensors="pt", **settings).to(device)
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        if not all(prompt.text.strip() for prompt in prompts):
            raise UserError(
                f"{type(self).__name__} compares a video with its prompt, and a prompt is empty: "
                "give every video one (vader score: --prompt or --prompts)"
            )

    def to_precision(self, dtype: torch.dtype) -> TextVideo:
        self.model.to(dtype)
        return self


class VideoPrism(TextVideo):
    """How well a video fits its prompt: the cosine of their features, about 0 to 0.4 (VideoPrism LvT)."""

    def __init__(self, checkpoint: str = "google/videoprism-lvt-base-f16r288") -> None:
        """
        Args:
            checkpoint: a folder or hub id of a VideoPrism with text.

        Raises:
            UserError: weights are missing, or transformers has no VideoPrism yet.
        """
        super().__init__()
        self.model, self.tokenizer = load_pair("VideoPrismClipModel", resolve(checkpoint, "videoprism"))
        vision = self.model.config.vision_config
        self.needs = Evenly(vision.num_frames, least=vision.num_frames)
        self.size: int = vision.image_size
        self.length: int = self.model.config.text_config.max_position_embeddings

    def features(self, frames: Tensor, prompt: str) -> tuple[Tensor, Tensor]:
        pixels = resizer("squash")(frames, self.size)[None].to(self.model.dtype)
        tokens = self.tokens(prompt, frames.device, padding="max_length", max_length=self.length)
        found = self.model(pixel_values_videos=pixels, **tokens)  # its own logits compare the videos of a batch
        return found.video_embeds[0], found.text_embeds[0]


class XClip(TextVideo):
    """How well a video fits its prompt: the cosine of their features, about 0 to 0.4 (X-CLIP)."""

    def __init__(self, checkpoint: str = "microsoft/xclip-base-patch32", resize: Resize = "crop") -> None:
        """
        Args:
            checkpoint: a folder or hub id of an X-CLIP.
            resize: `crop` as X-CLIP was trained, `squash` or `pad` to see the whole frame.

        Raises:
            UserError: weights are missing.
        """
        super().__init__()
        self.model, self.tokenizer = load_pair("XCLIPModel", resolve(checkpoint, "xclip"))
        vision = self.model.config.vision_config
        self.needs = Evenly(vision.num_frames, least=vision.num_frames)
        self.size: int = vision.image_size
        self.resize = resizer(resize)
        self.length: int = self.model.config.text_config.max_position_embeddings

    def features(self, frames: Tensor, prompt: str) -> tuple[Tensor, Tensor]:
        pixels = normalize(self.resize(frames, self.size), CLIP_MEAN, CLIP_STD)[None].to(self.model.dtype)
        found = self.model(pixel_values=pixels, **self.tokens(prompt, frames.device, max_length=self.length))
        return found.video_embeds[0], found.text_embeds[0, 0]


def load_pair(network: str, source: str) -> tuple[Any, Any]:
    """A network of transformers by the name of its class, in float32, and its tokenizer.

    Raises:
        UserError: one of them cannot be loaded, or transformers is too old to have such a network.
    """
    if not hasattr(transformers, network):
        raise UserError(f"transformers {transformers.__version__} has no {network}: pip install -U transformers")
    tokenizer = load_tokenizer(transformers.AutoTokenizer, source)
    return load_pretrained(getattr(transformers, network), source, network), tokenizer
