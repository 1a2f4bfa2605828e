"""V-JEPA's networks: a video transformer that sees part of a clip's tokens, and a predictor of the others' features.

They are written to the released checkpoints' own names, so that those load as they are
(Bardes et al., 2024, arXiv 2404.08471). Other clip sizes than the trained one interpolate the position tables.

Shapes: B clips `[B, 3, F, H, W]`, ImageNet-normalised; N tokens in the order (time, height, width), of which K are
seen and M predicted; D features. Indices are `[B, K]`, or `[1, K]` for all clips alike.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vader.rewards.vjepa.masks import MASK_SETS, Grid, Masks

EPS = 1e-6  # of every layer norm inside the networks


class Jepa(nn.Module, ABC):
    """A joint-embedding predictive architecture for video: what the reward asks of V-JEPA 1 and 2 alike."""

    tubelet: int  # frames a token
    patch: int  # pixels a token's side
    size: int  # pixels a frame's side, as trained

    @abstractmethod
    def targets(self, clips: Tensor) -> Tensor:
        """What is to be predicted: features `[B, N, D]` of all tokens, seen in the whole clip."""

    @abstractmethod
    def predict(self, clips: Tensor, masks: Masks, mask_set: int) -> Tensor:
        """Predicted features `[B, M, D]` of the target tokens from the context tokens alone."""

    def grid(self, clips: Tensor) -> Grid:
        """The tokens of clips of this shape."""
        frames, height, width = clips.shape[2:]
        return Grid(frames // self.tubelet, height // self.patch, width // self.patch)


class VitSize(NamedTuple):
    """The size of a transformer: blocks, features and attention heads."""

    depth: int
    width: int
    heads: int


class VJepa1(Jepa):
    """Context encoder, target encoder (its moving average) and predictor, as V-JEPA 1 releases them."""

    def __init__(self, encoder: VitSize, predictor: VitSize, grid: Grid, tubelet: int, patch: int) -> None:
        super().__init__()
        self.tubelet, self.patch, self.size = tubelet, patch, patch * grid.height
        self.encoder = Encoder(encoder, grid, tubelet, patch)
        self.target_encoder = Encoder(encoder, grid, tubelet, patch)
        self.predictor = Predictor(predictor, encoder.width, grid)

    def targets(self, clips: Tensor) -> Tensor:
        return self.target_encoder(clips)

    def predict(self, clips: Tensor, masks: Masks, mask_set: int) -> Tensor:
        return self.predictor(self.encoder(clips, masks.context), self.grid(clips), masks, mask_set)


class Encoder(nn.Module):
    """A vision transformer over spatio-temporal patches."""

    pos_embed: Tensor

    def __init__(self, size: VitSize, grid: Grid, tubelet: int, patch: int) -> None:
        super().__init__()
        self.trained_grid, self.heads = grid, size.heads
        self.patch_embed = PatchEmbed(size.width, tubelet, patch)
        self.register_buffer("pos_embed", sine_table(grid, size.width))
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width, eps=EPS)

    def forward(self, clips: Tensor, keep: Tensor | None = None) -> Tensor:
        """Features `[B, N, D]` of all tokens, or `[B, K, D]` of those to `keep`, which then see nothing but each other.

        Frames and pixels beyond a whole token are ignored.
        """
        patches = self.patch_embed(clips)  # [B, D, t, h, w]
        positions = resample(self.pos_embed, self.trained_grid, Grid(*patches.shape[2:]))
        x_BND = rearrange(patches, "b d t h w -> b (t h w) d") + positions
        if keep is not None:
            x_BND = take_tokens(x_BND, keep)
        for block in self.blocks:
            x_BND = block(x_BND)
        return self.norm(x_BND)


class Predictor(nn.Module):
    """A narrow transformer that fills in the features of tokens it knows the place of, but has not seen."""

    predictor_pos_embed: Tensor

    def __init__(self, size: VitSize, features: int, grid: Grid) -> None:
        super().__init__()
        self.trained_grid = grid
        self.predictor_embed = nn.Linear(features, size.width)
        self.mask_tokens = nn.ParameterList(nn.Parameter(torch.zeros(1, 1, size.width)) for _ in MASK_SETS)
        self.register_buffer("predictor_pos_embed", sine_table(grid, size.width))
        self.predictor_blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.depth))
        self.predictor_norm = nn.LayerNorm(size.width, eps=EPS)
        self.predictor_proj = nn.Linear(size.width, features)

    def forward(self, context: Tensor, grid: Grid, masks: Masks, mask_set: int) -> Tensor:
        """Context features `[B, K, D]` -> predictions `[B, M, D]`; each kind of mask has its own mask token."""
        positions = resample(self.predictor_pos_embed, self.trained_grid, grid)
        seen = self.predictor_embed(context) + take_tokens(positions, masks.context)
        hidden = self.mask_tokens[mask_set] + take_tokens(positions, masks.target)
        x_BND = torch.cat([seen, hidden.expand(len(seen), -1, -1)], dim=1)
        for block in self.predictor_blocks:
            x_BND = block(x_BND)
        return self.predictor_proj(self.predictor_norm(x_BND[:, seen.shape[1] :]))


class PatchEmbed(nn.Module):
    """Cuts clips into tokens of `tubelet` frames by `patch` x `patch` pixels, and embeds each: `[B, D, t, h, w]`."""

    def __init__(self, width: int, tubelet: int, patch: int) -> None:
        super().__init__()
        shape = (tubelet, patch, patch)
        self.proj = nn.Conv3d(3, width, kernel_size=shape, stride=shape)

    def forward(self, clips: Tensor) -> Tensor:
        return self.proj(clips)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Multi-head self-attention with a fused projection to queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (qkv heads d) -> qkv b heads n d", qkv=3, heads=self.heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)"))


class Mlp(nn.Module):
    """Two layers with an exact GELU between them, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def take_tokens(x: Tensor, indices: Tensor) -> Tensor:
    """Tokens `[B, N, D]` at indices `[B, K]` or `[1, K]` -> `[B, K, D]`."""
    return torch.take_along_dim(x, indices[..., None], dim=1)


def sine_table(grid: Grid, width: int) -> Tensor:
    """V-JEPA's fixed position table `[1, N, width]`: for each axis sines, then cosines, of the place along it.

    Every axis gets a third of the channels, rounded up to an even number (`uniform_power`); the last one is cut.
    """
    half = math.ceil(width / 6)
    rates = 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    places = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in grid))  # [N, 3]
    angles = places[..., None] * rates  # [N, 3, half]
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)[None, :, :width].float()


def table_grid(table: Tensor) -> Grid:
    """The grid of a position table `[1, N, D]` for square frames, which its shape alone does not tell.

    Channel 0 holds the sine of the time: it changes where the second frame's tokens begin.

    Raises:
        ValueError: the table is not of square frames.
    """
    time = table[0, :, 0]
    per_frame = int((time == time[0]).sum())
    side = math.isqrt(per_frame)
    grid = Grid(len(time) // per_frame, side, side)
    if math.prod(grid) != len(time):
        raise ValueError(f"a position table of {len(time)} tokens, {per_frame} a frame, is not of square frames")
    return grid


def resample(table: Tensor, trained: Grid, grid: Grid) -> Tensor:
    """A position table `[1, N, D]` of the trained grid, stretched over another one (trilinear)."""
    if grid == trained:
        return table
    volume = rearrange(table, "1 (t h w) d -> 1 d t h w", t=trained.time, h=trained.height)
    return rearrange(F.interpolate(volume, size=tuple(grid), mode="trilinear"), "1 d t h w -> 1 (t h w) d")
