"""MPS, the multi-dimensional preference score: how well an image fits its prompt and people's taste (arXiv 2405.14705).

CLIP's image tokens look at the prompt's tokens through four layers of cross-attention, and the class token that comes
out is compared with the prompt. A fixed condition, words for what people heed, masks prompt tokens that have nothing to
do with it. The released code takes that mask's maximum over the whole batch; here it is each prompt's own.

Shapes: N images with a prompt each, P image tokens, T text tokens, D features, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, CLIPModel

from vader.errors import UserError
from vader.files.foreign import reading
from vader.files.hub import find_file, from_pretrained, load_pretrained, resolve, together
from vader.files.weights import fill, load_tensors
from vader.nouns import Prompt
from vader.rewards.base import FrameReward
from vader.rewards.clip import TOKENIZER, load_tokenizer
from vader.rewards.preprocess import CLIP_MEAN, CLIP_STD, Resize, normalize, resizer

CHECKPOINT = "RE-N-Y/mpsv1/model.safetensors"
CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
HEEDED = 0.01  # of the largest similarity to the condition: what is below is masked
CLIP_PART, CROSS_PART, WRAPPER = "model.", "cross_model.", "mps."
COMPUTED = (".position_ids", ".inv_freq", ".fn.norm.bias")  # in the file, and the same in every file


class Read(NamedTuple):
    """What is known of a prompt: tokens `[T, D]`, whether each is looked at `[T]`, and the whole `[D]`."""

    tokens: Tensor
    heeded: Tensor
    whole: Tensor


class MPS(FrameReward):
    """How well an image fits its prompt and people's taste (MPS), about 0 to 20."""

    sensible_range = (0.0, 20.0)

    def __init__(self, checkpoint: str = CHECKPOINT, base: str = TOKENIZER, resize: Resize = "crop") -> None:
        """
        Args:
            checkpoint: a file of tensors in the released layout, here or on the hub as `owner/repo/file`.
            base: the CLIP that was trained, a folder or hub id: settings and tokenizer are read from it.
            resize: `crop` as MPS was trained, or another.

        Raises:
            UserError: weights or tokenizer are missing, or the file is of another kind.
        """
        super().__init__()
        path, folder = together(lambda: find_file(checkpoint, "mps.safetensors"), lambda: resolve(base, "clip"))
        parts = split(load_tensors(path), repr(str(path)))
        config = from_pretrained(AutoConfig, folder, "CLIP", trust_remote_code=False)
        config.text_config.eos_token_id = 2  # the old way of finding a text's end, by its largest token
        self.clip: Any = load_pretrained(
            CLIPModel, None, f"the CLIP of {str(path)!r}", config=config, state_dict=parts[CLIP_PART]
        )
        with reading(f"{str(path)!r} is no MPS"), torch.device("meta"):
            self.cross = cross_layers(parts[CROSS_PART])
        fill(self.cross, parts[CROSS_PART], torch.float32, f"the cross-attention in {str(path)!r}")
        length = config.text_config.max_position_embeddings
        self.tokenize = load_tokenizer(folder, length=length)
        self.length: int = length
        self.resize = resizer(resize)
        self._read: dict[str, Read] = {}

    def score_frames(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        pixels = normalize(self.resize(images, self.clip.config.vision_config.image_size), CLIP_MEAN, CLIP_STD)
        seen = self.clip.vision_model(pixel_values=pixels.to(self.clip.dtype)).last_hidden_state
        found = self.clip.visual_projection(seen)
        reads = [self.read(str(prompt)) for prompt in prompts]
        tokens, heeded, whole = (torch.stack(part) for part in zip(*reads, strict=True))
        for layer in self.cross:
            found = layer(found, tokens, heeded)
        similarity = F.cosine_similarity(found[:, 0].to(images.dtype), whole.to(images.dtype), dim=-1)
        return self.clip.logit_scale.exp().to(images.dtype) * similarity

    @torch.no_grad()
    def read(self, prompt: str) -> Read:
        """What is known of a prompt, found once."""
        if prompt not in self._read:
            tokens, whole = self._encoded(prompt)
            condition, _ = self._encoded(CONDITION)
            likeness = (tokens @ condition.T).amax(dim=1)
            self._read[prompt] = Read(tokens, likeness / likeness.max() > HEEDED, whole)
        return self._read[prompt]

    def _encoded(self, text: str) -> tuple[Tensor, Tensor]:
        """Tokens `[T, D]`, padded to the longest as in training, and the whole `[D]`."""
        ids = self.tokenize(text).to(self.clip.device)
        ids = F.pad(ids, (0, self.length - ids.shape[1]), value=int(ids[0, -1]))  # the end's token fills up
        found = self.clip.text_model(input_ids=ids)
        return self.clip.text_projection(found.last_hidden_state)[0], self.clip.text_projection(found.pooler_output)[0]

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        if not all(prompt.text.strip() for prompt in prompts):
            raise UserError(
                "MPS compares a video with its prompt, and a prompt is empty: "
                "give every video one (vader score: --prompt or --prompts)"
            )

    def to_precision(self, dtype: torch.dtype) -> MPS:
        self.clip.to(dtype)
        self.cross.to(dtype)
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> MPS:
        self._read.clear()  # moved or cast: what is remembered is of the old device and dtype
        return super()._apply(*args, **kwargs)


# ---- the released file ----


def split(tensors: dict[str, Tensor], label: str) -> dict[str, dict[str, Tensor]]:
    """CLIP's tensors and the cross-attention's. Raises `UserError` if there are others, or a part is missing."""
    plain = {name.removeprefix(WRAPPER): tensor for name, tensor in tensors.items() if not name.endswith(COMPUTED)}
    parts: dict[str, dict[str, Tensor]] = {CLIP_PART: {}, CROSS_PART: {}}
    for name, tensor in plain.items():
        part = next((part for part in parts if name.startswith(part)), None)
        if part is None:
            raise UserError(f"{label} is no MPS: it has an unknown weight {name}")
        parts[part][name.removeprefix(part).removeprefix("layers.").replace(".fn.", ".")] = tensor
    if absent := [part for part, found in parts.items() if not found]:
        raise UserError(f"{label} is no MPS: it has no {absent[0]}*")
    return parts


def cross_layers(tensors: dict[str, Tensor]) -> nn.ModuleList:
    """The layers that fit the tensors, without weights: `<n>.0.*` looks at the text, `<n>.1.*` at the image."""
    width, heads = tensors["0.0.to_kv.weight"].shape[0] // 2, tensors["0.0.to_q.weight"].shape[0]
    sizes = tensors["0.0.to_q.weight"].shape[1], heads // width, width, tensors["0.0.ff.2.weight"].shape[1]
    return nn.ModuleList(CrossLayer(*sizes) for name in tensors if name.endswith(".0.to_q.weight"))


# ---- cross-attention ----


class CrossLayer(nn.ModuleList):
    """Image tokens look at the text's, and then at one another."""

    def __init__(self, features: int, heads: int, width: int, inner: int) -> None:
        super().__init__([LookAtText(features, heads, width, inner), LookAround(features, heads, width, inner)])

    def forward(self, image: Tensor, text: Tensor, heeded: Tensor) -> Tensor:
        """Image tokens `[N, P, D]`, text tokens `[N, T, D]`, and whether each is looked at `[N, T]` -> `[N, P, D]`."""
        image = image + self[0](image, text, heeded)
        return image + self[1](image)


class LookAtText(nn.Module):
    """Attention to the text beside a gated layer; all heads share one key and value (arXiv 1911.02150)."""

    def __init__(self, features: int, heads: int, width: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(features, bias=False)
        self.to_q = nn.Linear(features, heads * width, bias=False)
        self.to_kv = nn.Linear(features, 2 * width, bias=False)
        self.to_out = nn.Linear(heads * width, features, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(features, 2 * inner, bias=False), SwiGLU(), nn.Linear(inner, features, bias=False)
        )

    def forward(self, image: Tensor, text: Tensor, heeded: Tensor) -> Tensor:
        x = self.norm(image)
        query = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.to_kv(text).chunk(2, dim=-1)
        return self.to_out(attention(query, key, value, heeded[:, None, None])) + self.ff(x)


class LookAround(nn.Module):
    """Attention among image tokens, which know their places by rotation (arXiv 2104.09864), beside a gated layer."""

    def __init__(self, features: int, heads: int, width: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.sizes = (heads * width, width, width, 2 * inner)
        self.norm = nn.LayerNorm(features, bias=False)
        self.fused_attn_ff_proj = nn.Linear(features, sum(self.sizes), bias=False)
        self.attn_out = nn.Linear(heads * width, features, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(inner, features, bias=False))

    def forward(self, image: Tensor) -> Tensor:
        query, key, value, gated = self.fused_attn_ff_proj(self.norm(image)).split(self.sizes, dim=-1)
        heads = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.attn_out(attention(turned(heads), turned(key), value)) + self.ff_out(gated)


class SwiGLU(nn.Module):
    """The first half of the features, gated by the second (arXiv 2002.05202)."""

    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * x


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Queries `[N, H, P, d]`, keys and values `[N, T, d]` of all heads -> `[N, P, H d]`."""
    shape = (-1, query.shape[1], -1, -1)
    found = F.scaled_dot_product_attention(query, key[:, None].expand(shape), value[:, None].expand(shape), mask)
    return found.transpose(1, 2).flatten(2)


def turned(x: Tensor) -> Tensor:
    """Features `[..., P, d]` turned by their place: the first half of d is paired with the second."""
    half = torch.arange(0, x.shape[-1], 2, device=x.device, dtype=torch.float32) / x.shape[-1]
    angles = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)[:, None] / 10000**half
    cos, sin = (part.repeat(1, 2).to(x.dtype) for part in (angles.cos(), angles.sin()))
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
