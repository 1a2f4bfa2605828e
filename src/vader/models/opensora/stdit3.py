"""STDiT3, the denoiser of Open-Sora 1.2 (arXiv:2412.20404, section 2.2): a video transformer in two alternating kinds.

Spatial blocks attend within a frame, temporal blocks along time at one place; both read the caption by cross-attention
and are modulated by time and frame rate as in DiT (arXiv:2212.09748). In go latents, a time, text tokens and the
video's size; out comes the velocity from noise to data. Parameter names are those of the release, `STDiT3-XL/2`.

Shapes: B videos, T latent frames, H x W latent pixels, S = ceil(H/2) * ceil(W/2) tokens a frame, L text tokens,
C channels, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vader.errors import UserError

FREQUENCIES = 128  # of the sinusoids that embed times and frame rates
EPS = 1e-6  # of every norm
PATCH = 2  # latent pixels a side; a patch is one frame long
FIXED: dict[str, Any] = {"patch_size": [1, PATCH, PATCH], "qk_norm": True, "pred_sigma": True}


@dataclass(frozen=True)
class STDiT3Config:
    """The sizes in a release's `config.json`; the defaults are those of STDiT3-XL/2."""

    in_channels: int = 4
    depth: int = 28  # pairs of one spatial and one temporal block
    hidden_size: int = 1152
    num_heads: int = 16
    mlp_ratio: float = 4.0
    caption_channels: int = 4096
    model_max_length: int = 300
    input_sq_size: int = 512

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> STDiT3Config:
        """Takes the sizes out of a `config.json`; whatever else it holds does not change the mathematics.

        Raises:
            UserError: it asks for a variant that is not this network.
        """
        for name, value in FIXED.items():
            if settings.get(name, value) != value:
                raise UserError(f"STDiT3 with {name}={settings[name]!r} is not supported: it must be {value!r}")
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in settings.items() if name in known})


class STDiT3(nn.Module):
    """The whole network; see `forward`."""

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.x_embedder = PatchEmbedder(config.in_channels, width)
        self.t_embedder = ScalarEmbedder(width)
        self.fps_embedder = ScalarEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.y_embedder = CaptionEmbedder(config)
        self.spatial_blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.temporal_blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(width, 2 * config.in_channels)
        self.rope = Rotary(width // config.num_heads)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        text_mask: Tensor | None,
        fps: Tensor,
        height: Tensor,
        width: Tensor,
        frame_mask: Tensor | None = None,
    ) -> Tensor:
        """One pass.

        Args:
            latents: `[B, 4, T, H, W]`.
            timestep: `[B]` from 0 (data) to 1000 (noise).
            text: the text encoder's output `[B, L, caption_channels]`.
            text_mask: bool `[B, L]`, the tokens to read; None for all.
            fps: frames a second `[B]`; 120 stands for a still image.
            height, width: of the video in pixels `[B]`; one size for the whole batch, the first is taken.
            frame_mask: bool `[B, T]`, False where a frame is given clean and not to be denoised; None for all True.

        Returns:
            `[B, 8, T, H, W]` in at least float32: the velocity (data minus noise), then as many unused channels.
        """
        dtype, (rows, columns) = self.dtype, latents.shape[-2:]
        x = self.x_embedder(latents.to(dtype))  # [B, T, h, w, C]
        grid = x.shape[2:4]
        x = (x + self._positions(grid, height, width)).flatten(2, 3)  # [B, T, S, C]
        frame_rate = self.fps_embedder(fps)
        t = self.t_embedder(timestep) + frame_rate  # [B, C]
        t_clean = None if frame_mask is None else self.t_embedder(torch.zeros_like(timestep)) + frame_rate
        modulation = self._modulation(t, t_clean, frame_mask)
        text = self.y_embedder(text.to(dtype))
        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            x = spatial(x, text, text_mask, modulation)
            x = temporal(x.transpose(1, 2), text, text_mask, modulation.transpose(1, 2), self.rope).transpose(1, 2)
        x = self.final_layer(x, t, t_clean, frame_mask)
        patches = {"h": grid[0], "p": PATCH, "q": PATCH}
        out = rearrange(x, "b t (h w) (p q c) -> b c t (h p) (w q)", **patches)[..., :rows, :columns]
        return out.to(at_least_float32(out.dtype))

    def _positions(self, grid: tuple[int, int], height: Tensor, width: Tensor) -> Tensor:
        exact = at_least_float32(self.dtype)
        scale = (height[0].to(exact) * width[0].to(exact)).sqrt() / self.config.input_sq_size
        return position_table(grid, scale, self.config.hidden_size).to(self.dtype)

    def _modulation(self, t: Tensor, t_clean: Tensor | None, frame_mask: Tensor | None) -> Tensor:
        """What all blocks are modulated by, `[B, T or 1, 1, 6, C]`: by frame where some frames are clean."""
        noisy = self.t_block(t).unflatten(-1, (6, -1))[:, None, None]
        if t_clean is None or frame_mask is None:
            return noisy
        clean = self.t_block(t_clean).unflatten(-1, (6, -1))[:, None, None]
        return torch.where(frame_mask[:, :, None, None, None], noisy, clean)


class Block(nn.Module):
    """Self-attention, cross-attention to the caption, MLP. Spatial and temporal blocks differ in what they are fed."""

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        width = config.hidden_size
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.attn = SelfAttention(width, config.num_heads)
        self.cross_attn = CrossAttention(width, config.num_heads)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), width)

    def forward(
        self, x: Tensor, text: Tensor, text_mask: Tensor | None, modulation: Tensor, rope: Rotary | None = None
    ) -> Tensor:
        """Attends along the third dimension.

        Args:
            x: `[B, T, S, C]`, or `[B, S, T, C]` for a temporal block.
            text: caption tokens `[B, L, C]`, of which `text_mask` `[B, L]` (None: all) says which are read.
            modulation: `[B, T or 1, 1, 6, C]`, or `[B, 1, T or 1, 6, C]` for a temporal block.
            rope: rotary positions, for a temporal block.
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (self.scale_shift_table + modulation).unbind(dim=-2)
        x = x + gate * self.attn(modulate(x, shift, scale), rope)
        x = x + self.cross_attn(x, text, text_mask)
        return x + mlp_gate * self.mlp(modulate(x, mlp_shift, mlp_scale))


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.RMSNorm(width // heads, eps=EPS)
        self.k_norm = nn.RMSNorm(width // heads, eps=EPS)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: Rotary | None = None) -> Tensor:
        """`[B, M, N, C]`: each of the M rows of N tokens attends to itself."""
        heads = rearrange(self.qkv(x), "b m n (three h d) -> three (b m) h n d", three=3, h=self.heads)
        q, k, v = heads.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rope(q), rope(k)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(out, "(b m) h n d -> b m n (h d)", b=len(x)))


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor, text_mask: Tensor | None) -> Tensor:
        """Every token of x `[B, M, N, C]` reads the caption's tokens `[B, L, C]`, those whose mask `[B, L]` is True."""
        q = rearrange(self.q_linear(x), "b m n (h d) -> b h (m n) d", h=self.heads)
        k, v = rearrange(self.kv_linear(text), "b l (two h d) -> two b h l d", two=2, h=self.heads).unbind(0)
        mask = None if text_mask is None else text_mask[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(rearrange(out, "b h (m n) d -> b m n (h d)", m=x.shape[1]))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class PatchEmbedder(nn.Module):
    """Latents `[B, 4, T, H, W]`, padded with zeros to whole patches at the right and bottom -> `[B, T, h, w, C]`."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        patch = (1, PATCH, PATCH)
        self.proj = nn.Conv3d(channels, width, patch, stride=patch)

    def forward(self, latents: Tensor) -> Tensor:
        rows, columns = latents.shape[-2:]
        return self.proj(F.pad(latents, (0, -columns % PATCH, 0, -rows % PATCH))).movedim(1, -1)


class ScalarEmbedder(nn.Module):
    """A number for each video `[B]` (time, frame rate) -> `[B, C]`, by sinusoids and an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, number: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        exact = at_least_float32(dtype)
        angles = number.to(exact)[:, None] * frequencies(FREQUENCIES, number.device, exact)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))


class CaptionEmbedder(nn.Module):
    """Projects text tokens to the network's width; `y_embedding` `[L, caption_channels]` stands for no caption."""

    y_embedding: Tensor

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        channels = config.caption_channels
        self.y_proj = Mlp(channels, config.hidden_size, config.hidden_size)
        self.register_buffer("y_embedding", torch.randn(config.model_max_length, channels) / channels**0.5)

    def forward(self, text: Tensor) -> Tensor:
        return self.y_proj(text)


class FinalLayer(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.linear = nn.Linear(width, PATCH * PATCH * channels)

    def forward(self, x: Tensor, t: Tensor, t_clean: Tensor | None, frame_mask: Tensor | None) -> Tensor:
        """`[B, T, S, C]` -> the numbers of each patch `[B, T, S, 2*2*8]`.

        Clean frames are normalised and modulated twice, first as noisy ones: the release was trained so.
        """
        out = self._modulated(x, t)
        if t_clean is not None and frame_mask is not None:
            out = torch.where(frame_mask[:, :, None, None], out, self._modulated(out, t_clean))
        return self.linear(out)

    def _modulated(self, x: Tensor, t: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + t[:, None, None, None]).unbind(dim=-2)
        return modulate(x, shift, scale)


class Rotary(nn.Module):
    """Rotary positions (arXiv:2104.09864) of neighbouring pairs of channels, along the last dimension but one."""

    def __init__(self, head_size: int) -> None:
        super().__init__()
        frozen = frequencies(head_size // 2, None, torch.float32)
        self.freqs = nn.Parameter(frozen, requires_grad=False)  # [D / 2]; the release stores it

    def forward(self, x: Tensor) -> Tensor:
        """`[..., N, D]` -> the same, the pair of channels (2k, 2k + 1) of token n turned by `n * freqs[k]`."""
        exact = at_least_float32(x.dtype)
        places = torch.arange(x.shape[-2], device=x.device, dtype=exact)
        angles = places[:, None] * self.freqs.to(exact)
        cos, sin = angles.cos(), angles.sin()
        a, b = x.to(exact).unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights of its own, then scaled and shifted (adaLN, arXiv:2212.09748, section 3.2)."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


def position_table(grid: tuple[int, int], scale: Tensor, channels: int) -> Tensor:
    """What is added to the tokens of every frame, `[h, w, C]`: the column's sinusoids, then the row's.

    Places are counted so that they mean the same at every resolution: a square video of scale 1 counts its patches,
    a larger one counts finer (arXiv:2310.00426, section 2.2).
    """
    base = round((grid[0] * grid[1]) ** 0.5)
    frequency = frequencies(channels // 4, scale.device, scale.dtype)
    codes = []
    for count in grid:
        place = torch.arange(count, device=scale.device, dtype=scale.dtype) / scale * (base / count)
        angles = place[:, None] * frequency
        codes.append(torch.cat([angles.sin(), angles.cos()], dim=-1))  # [count, C / 2]
    row, column = codes
    return torch.cat([column.expand(grid[0], -1, -1), row[:, None].expand(-1, grid[1], -1)], dim=-1)


def frequencies(count: int, device: torch.device | None, dtype: torch.dtype) -> Tensor:
    """`10000^(-k / count)` for k = 0 .. count - 1 (arXiv:1706.03762, section 3.5)."""
    return torch.exp(-math.log(10000.0) * torch.arange(count, device=device, dtype=dtype) / count)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
