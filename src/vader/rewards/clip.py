"""CLIP's two towers as frozen, differentiable parts of rewards: images or prompts in, unit feature vectors out.

They load from transformers' folders (or hub ids) and from single open_clip checkpoints, which are
renamed to transformers' `CLIPModel`. A prompt is encoded once and remembered.

Shapes: N images or prompts, D features (the shared space of both towers).
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

from vader.errors import UserError
from vader.rewards.base import FrameReward
from vader.rewards.preprocess import CLIP_MEAN, CLIP_STD, normalize, resizer
from vader.rewards.weights import find_file, find_folder, from_pretrained, load_pretrained, load_tensors

Tokenize = Callable[[str], Tensor]  # a prompt to token ids [1, length]

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

    def forward(self, prompts: Sequence[str]) -> Tensor:
        return torch.stack([self._feature(prompt) for prompt in prompts])

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
    """The cosine of an image's and its prompt's features."""

    def __init__(self, image: ImageTower, text: TextTower) -> None:
        super().__init__()
        self.image = image
        self.text = text

    def score_frames(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (self.image(images) * self.text(prompts)).sum(dim=-1)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        if not all(prompt.strip() for prompt in prompts):
            raise UserError(
                f"{type(self).__name__} compares a video with its prompt, and a prompt is empty: "
                "give every video one (vader score: --prompt or --prompts)"
            )

    def to_precision(self, dtype: torch.dtype) -> ClipSimilarity:
        self.image.to(dtype)
        self.text.to(dtype)
        return self


def load_clip(source: str, tiny: str = "clip") -> CLIPModel:
    """Both towers in float32, from a folder, a hub id, a single open_clip file (here or on the hub), or the tiny world.

    Raises:
        UserError: there is nothing, or no CLIP.
    """
    if source.endswith(SINGLE_FILES):
        path = find_file(source, tiny)
        return from_open_clip(load_tensors(path), label=str(path))
    return load_pretrained(CLIPModel, find_folder(source, tiny), "CLIP")


def towers(model: CLIPModel, tokenizer: str, resize: str) -> tuple[ImageTower, TextTower]:
    """Both towers of a CLIP, prompts tokenized as the folder or hub id `tokenizer` says. Errors as `load_tokenizer`."""
    tokenize = load_tokenizer(tokenizer, length=model.text_model.config.max_position_embeddings)
    return ImageTower(model, resize), TextTower(model, tokenize)


def load_image_tower(source: str, resize: str = "crop", tiny: str = "clip") -> ImageTower:
    """The image tower alone: the text tower's weights are never read. Sources and errors as `load_clip`."""
    if source.endswith(SINGLE_FILES):
        return ImageTower(load_clip(source, tiny), resize)
    folder = find_folder(source, tiny)
    model = load_pretrained(_ImageModel, folder, "CLIP", config=_vision_config(folder))
    return ImageTower(model, resize)


def load_tokenizer(source: str, tiny: str = "clip", length: int = 77) -> Tokenize:
    """The tokenizer of a CLIP folder or hub id, with open_clip's cleaning of the text before it.

    Raises:
        UserError: there is no tokenizer.
    """
    tokenizer = from_pretrained(AutoTokenizer, find_folder(source, tiny), "tokenizer")

    def tokenize(prompt: str) -> Tensor:
        return tokenizer(clean(prompt), truncation=True, max_length=length, return_tensors="pt").input_ids

    return tokenize


def clean(prompt: str) -> str:
    """A prompt as open_clip cleans it (less its repair of wrong encodings): HTML unescaped, white space collapsed."""
    return " ".join(html.unescape(html.unescape(prompt)).split())


def from_open_clip(
    tensors: dict[str, Tensor], head_widths: tuple[int, int] | None = None, label: str = "the checkpoint"
) -> CLIPModel:
    """A `CLIPModel` in float32 from open_clip's tensors.

    Args:
        head_widths: of the image and the text tower, where they are not open_clip's usual ones: shapes don't tell.

    Raises:
        UserError: the tensors are not those of a CLIP with two transformer towers.
    """
    try:
        config, renamed = _open_clip_config(tensors, head_widths), rename_open_clip(tensors)
    except KeyError as error:
        raise UserError(f"{label} is not an open_clip checkpoint: it has no {error.args[0]!r}") from error
    return load_pretrained(CLIPModel, None, "CLIP", label, config=config, state_dict=renamed)


# open_clip's names, by the first prefix that fits, then inside the blocks.
_PREFIXES = (
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.proj", "visual_projection.weight"),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
    ("text_projection", "text_projection.weight"),
)
_IN_BLOCKS = (
    (".attn.", ".self_attn."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
_TRANSPOSED = ("visual.proj", "text_projection")
_VISION_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}  # ViT-H, g and bigG by tower width; all others have 64


def rename_open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors under transformers' names; fused q, k, v are split, output projections transposed."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        target = _renamed(name)
        if ".in_proj_" in target:
            stem, kind = target.split("in_proj_")
            renamed |= {f"{stem}{p}_proj.{kind}": part for p, part in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            renamed[target] = tensor.T if name in _TRANSPOSED else tensor
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


def to_open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors under open_clip's names: the inverse of `rename_open_clip`."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        target = _renamed(name, [(new, old) for old, new in _PREFIXES], [(new, old) for old, new in _IN_BLOCKS])
        stem, part, kind = target.rpartition("q_proj.")
        if part:
            fused = [tensors[name.replace("q_proj.", f"{p}_proj.")] for p in "qkv"]
            named[f"{stem}in_proj_{kind}"] = torch.cat(fused)
        elif not target.rpartition(".")[0].endswith((".k_proj", ".v_proj")):
            named[target] = tensor.T if target in _TRANSPOSED else tensor
    return {name: tensor.contiguous() for name, tensor in named.items()}


def _renamed(
    name: str, prefixes: Sequence[tuple[str, str]] = _PREFIXES, in_blocks: Sequence[tuple[str, str]] = _IN_BLOCKS
) -> str:
    name = next((new + name.removeprefix(old) for old, new in prefixes if name.startswith(old)), name)
    for old, new in in_blocks:
        name = name.replace(old, new)
    return name


def _open_clip_config(tensors: dict[str, Tensor], head_widths: tuple[int, int] | None) -> CLIPConfig:
    width, _, patch, _ = tensors["visual.conv1.weight"].shape
    grid = math.isqrt(len(tensors["visual.positional_embedding"]) - 1)
    vocabulary = len(tensors["token_embedding.weight"])
    text_length, text_width = tensors["positional_embedding"].shape
    projection = tensors["text_projection"].shape[1]
    vision_head, text_head = head_widths or (_VISION_HEAD_WIDTHS.get(width, 64), 64)
    vision = _tower_config(tensors, "visual.transformer", width, vision_head, projection)
    text = _tower_config(tensors, "transformer", text_width, text_head, projection)
    special = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": 0}
    return CLIPConfig(
        projection_dim=projection,
        vision_config=vision | {"patch_size": patch, "image_size": patch * grid},
        text_config=text | special | {"vocab_size": vocabulary, "max_position_embeddings": text_length},
    )


def _tower_config(
    tensors: dict[str, Tensor], stem: str, width: int, head_width: int, projection: int
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": len(tensors[f"{stem}.resblocks.0.mlp.c_fc.bias"]),
        "num_hidden_layers": sum(name.startswith(f"{stem}.resblocks.") and "ln_1.bias" in name for name in tensors),
        "num_attention_heads": width // head_width,
        "projection_dim": projection,
        "hidden_act": "gelu",  # open_clip's exact GELU; transformers' default for CLIP is the quick one
    }


class _ImageModel(CLIPVisionModelWithProjection):
    """Reads a whole CLIP's folder without a word about the text tower it leaves there."""

    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^text_projection\.", r"^logit_scale$", r"position_ids$"]  # noqa: RUF012


def _vision_config(folder: str) -> Any:
    """The image tower's part of a CLIP's config; a whole CLIP's feature width stands only at its top level."""
    config = from_pretrained(AutoConfig, folder, "CLIP")
    if not isinstance(config, CLIPConfig):
        return config
    vision: Any = config.vision_config
    vision.projection_dim = config.projection_dim
    return vision
