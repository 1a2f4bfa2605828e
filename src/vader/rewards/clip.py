"""CLIP's two towers as frozen, differentiable parts of rewards: images or prompts in, unit feature vectors out.

They load from transformers' folders (or hub ids) and from single open_clip checkpoints, which are
renamed to transformers' `CLIPModel`. A prompt is encoded once and remembered.

Shapes: N images or prompts, D features (the shared space of both towers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

from vader.errors import UserError
from vader.files import hub
from vader.files.foreign import reading
from vader.files.open_clip import clean, clip_config, rename_open_clip
from vader.files.weights import load_tensors
from vader.nouns import Prompt
from vader.rewards.base import FrameReward
from vader.rewards.preprocess import CLIP_MEAN, CLIP_STD, normalize, resizer

Tokenize = Callable[[str], Tensor]  # a prompt to token ids [1, length]
Contrast = tuple[str, str]  # wanted and unwanted words, each put before the prompt: "Natural light. a dog runs"

TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # OpenCLIP ViT-H's, for checkpoints that come without one
SINGLE_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


class ImageTower(nn.Module):
    """Images `[N, 3, H, W]` in [0, 1] -> features `[N, D]` of length 1, differentiable to the pixels."""

    def __init__(self, model: CLIPModel | CLIPVisionModelWithProjection, resize: str = "crop") -> None:
        super().__init__()
        self.vision_model = model.vision_model
        self.projection = model.visual_projection
        self.size: int = model.vision_model.config.image_size
        self.resize = resizer(resize)

    @property
    def width(self) -> int:
        return self.projection.out_features

    def forward(self, images: Tensor) -> Tensor:
        pixels = normalize(self.resize(images, self.size), CLIP_MEAN, CLIP_STD)
        pooled = self.vision_model(pixel_values=pixels.to(self.projection.weight.dtype)).pooler_output
        return F.normalize(self.projection(pooled).to(images.dtype), dim=-1)


class TextTower(nn.Module):
    """Prompts -> features `[N, D]` of length 1, without gradient, each prompt encoded once and alone.

    Alone, so that a prompt's features never depend, not even by rounding, on what it was batched with.
    """

    def __init__(self, model: CLIPModel, tokenize: Tokenize) -> None:
        super().__init__()
        self.text_model = model.text_model
        self.projection = model.text_projection
        self.tokenize = tokenize
        self._features: dict[str, Tensor] = {}

    def forward(self, prompts: Sequence[str | Prompt]) -> Tensor:
        return torch.stack([self._feature(str(prompt)) for prompt in prompts])

    def _feature(self, prompt: str) -> Tensor:
        if prompt not in self._features:
            self._features[prompt] = self._encode(prompt)
        return self._features[prompt]

    @torch.no_grad()
    def _encode(self, prompt: str) -> Tensor:
        weight = self.projection.weight
        pooled = self.text_model(input_ids=self.tokenize(prompt).to(weight.device)).pooler_output
        feature = self.projection(pooled)[0].to(torch.promote_types(weight.dtype, torch.float32))
        return F.normalize(feature, dim=-1)

    def _apply(self, *args: Any, **kwargs: Any) -> TextTower:
        self._features.clear()  # moved or cast: what is remembered is of the old device and dtype
        return super()._apply(*args, **kwargs)


class ClipSimilarity(FrameReward):
    """The cosine of an image's and its prompt's features; with a contrast, by how much it is larger with the wanted
    words before the prompt than with the unwanted ones (SRPO's relative reward, arXiv 2509.06942)."""

    def __init__(self, image: ImageTower, text: TextTower, contrast: Contrast | None = None) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.contrast = contrast
        if contrast is not None:
            wanted, unwanted = (words.strip() for words in contrast)
            if not wanted or not unwanted or wanted == unwanted:
                raise UserError(
                    f"contrast is {list(contrast)}: give [wanted words, unwanted words], other ones and none empty"
                )
            low, high = self.sensible_range
            self.sensible_range = (low - high, high - low)

    def score_frames(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return (self.image(images) * self.text_features(prompts)).sum(dim=-1)

    def text_features(self, prompts: Sequence[Prompt]) -> Tensor:
        """What an image's features are multiplied with, `[N, D]`."""
        if self.contrast is None:
            return self.text(prompts)
        wanted, unwanted = (self.text([f"{words}. {prompt}" for prompt in prompts]) for words in self.contrast)
        return wanted - unwanted

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        if not all(prompt.text.strip() for prompt in prompts):
            raise UserError(
                f"{type(self).__name__} compares a video with its prompt, and a prompt is empty: "
                "give every video one (vader score: --prompt or --prompts)"
            )

    def to_precision(self, dtype: torch.dtype) -> ClipSimilarity:
        self.image.to(dtype)
        self.text.to(dtype)
        return self


def locate_clip(source: str, tiny: str = "clip") -> str | Path:
    """Where a CLIP lies: a single file, downloaded if need be, or a folder or hub id. Raises `UserError` if nowhere."""
    return hub.find_file(source, tiny) if source.endswith(SINGLE_FILES) else hub.resolve(source, tiny)


def load_clip(source: str, tiny: str = "clip") -> CLIPModel:
    """Both towers in float32, from a folder, a hub id, a single open_clip file (here or on the hub), or the tiny world.

    Raises:
        UserError: there is nothing, or no CLIP.
    """
    found = locate_clip(source, tiny)
    if isinstance(found, Path):
        return from_open_clip(load_tensors(found), label=str(found))
    return hub.load_pretrained(CLIPModel, found, "CLIP")


def load_both(checkpoint: str, tokenizer: str, tiny: str) -> CLIPModel:
    """`load_clip`, once weights and tokenizer are both there; if not, the error names all that is missing."""
    hub.together(lambda: locate_clip(checkpoint, tiny), lambda: hub.resolve(tokenizer, "clip"))
    return load_clip(checkpoint, tiny)


def towers(model: CLIPModel, tokenizer: str, resize: str) -> tuple[ImageTower, TextTower]:
    """Both towers of a CLIP, prompts tokenized as the folder or hub id `tokenizer` says. Errors as `load_tokenizer`."""
    tokenize = load_tokenizer(tokenizer, length=model.text_model.config.max_position_embeddings)
    return ImageTower(model, resize), TextTower(model, tokenize)


def load_image_tower(source: str, resize: str = "crop", tiny: str = "clip") -> ImageTower:
    """The image tower alone: the text tower's weights are never read. Sources and errors as `load_clip`."""
    if source.endswith(SINGLE_FILES):
        return ImageTower(load_clip(source, tiny), resize)
    folder = hub.resolve(source, tiny)
    model = hub.load_pretrained(_ImageModel, folder, "CLIP", config=_vision_config(folder))
    return ImageTower(model, resize)


def load_tokenizer(source: str, tiny: str = "clip", length: int = 77) -> Tokenize:
    """The tokenizer of a CLIP folder or hub id, with open_clip's cleaning of the text before it.

    Raises:
        UserError: there is no tokenizer.
    """
    tokenizer = hub.load_tokenizer(AutoTokenizer, hub.resolve(source, tiny))

    def tokenize(prompt: str) -> Tensor:
        return tokenizer(clean(prompt), truncation=True, max_length=length, return_tensors="pt").input_ids

    return tokenize


def from_open_clip(
    tensors: dict[str, Tensor], head_widths: tuple[int, int] | None = None, label: str = "the checkpoint"
) -> CLIPModel:
    """A `CLIPModel` in float32 from open_clip's tensors.

    Args:
        head_widths: of the image and the text tower, where they are not open_clip's usual ones: shapes don't tell.

    Raises:
        UserError: the tensors are not those of a CLIP with two transformer towers.
    """
    with reading(f"{label} is not an open_clip checkpoint"):
        config, renamed = clip_config(tensors, head_widths), rename_open_clip(tensors)
    return hub.load_pretrained(CLIPModel, None, f"CLIP of {label}", config=config, state_dict=renamed)


class _ImageModel(CLIPVisionModelWithProjection):
    """Reads a whole CLIP's folder without a word about the text tower it leaves there."""

    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^text_projection\.", r"^logit_scale$", r"position_ids$"]  # noqa: RUF012


def _vision_config(folder: str) -> Any:
    """The image tower's part of a CLIP's config; a whole CLIP's feature width stands only at its top level."""
    config = hub.from_pretrained(AutoConfig, folder, "CLIP", trust_remote_code=False)
    if not isinstance(config, CLIPConfig):
        return config
    vision: Any = config.vision_config
    vision.projection_dim = config.projection_dim
    return vision
