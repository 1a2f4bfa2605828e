"""The VAE of Open-Sora 1.2 (arXiv:2412.20404, section 2.1): an image VAE for each frame, a causal one along time.

Pixels [-1, 1] in, latents out, and back: 8 times smaller in height and width, 17 frames become 5. Every 17 frames
(5 latent ones) are a chunk that is coded alone, so a frame can be decoded from its chunk without the others.
The image VAE is diffusers' own; parameter names are those of the release, `OpenSora-VAE-v1.2`.

Shapes: B videos, F frames, T latent frames, H x W pixels, h x w latent pixels. Both kinds of latents have 4 channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from einops import rearrange
from torch import Tensor, nn

from vader.errors import UserError

CHUNK = 17  # frames that are coded together ...
LATENT_CHUNK = 5  # ... and the latent frames that they become
TIME_FACTOR = 4
CHANNELS = 4
SPATIAL_FACTOR = 0.18215  # the release scales its image latents so, though its image VAE is SDXL's
IMAGES_AT_ONCE = 4
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class VAEConfig:
    """The sizes of both VAEs; the defaults are those of OpenSora-VAE-v1.2, whose `config.json` does not name them."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    filters: int = 128
    num_res_blocks: int = 4
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    num_groups: int = 32

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> VAEConfig:
        """Takes what a `config.json` says of sizes, in its sections `vae_2d` and `vae_temporal`.

        Raises:
            UserError: it asks for other chunks than the release has.
        """
        if settings.get("micro_frame_size", CHUNK) != CHUNK:
            raise UserError(
                f"an Open-Sora VAE with micro_frame_size {settings['micro_frame_size']} is not supported: it must be 17"
            )
        given = {**settings.get("vae_2d", {}), **settings.get("vae_temporal", {})}
        known = {field.name for field in fields(cls)}
        return cls(**{name: _frozen(value) for name, value in given.items() if name in known})

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        image = ("block_out_channels", "layers_per_block", "norm_num_groups")
        sizes = {field.name: getattr(self, field.name) for field in fields(self)}
        temporal = {name: value for name, value in sizes.items() if name not in image}
        return {"micro_frame_size": CHUNK, "vae_2d": {name: sizes[name] for name in image}, "vae_temporal": temporal}


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# ---- how many frames ----


def latent_frames(frames: int) -> int:
    """T for F pixel frames."""
    return LATENT_CHUNK * (frames // CHUNK) + -(-(frames % CHUNK) // TIME_FACTOR)


def pixel_frames(latent: int) -> int:
    """The F that T latent frames stand for: 1 for 1, else 17 a chunk, and 4 for each latent frame beyond.

    (The release also cuts 1 to 3 frames more off the front of a last, incomplete chunk; that T does not tell.)
    """
    return 1 if latent == 1 else CHUNK * (latent // LATENT_CHUNK) + TIME_FACTOR * (latent % LATENT_CHUNK)


# ---- the whole ----


class OpenSoraVAE(nn.Module):
    """Image VAE, temporal VAE, and the scale that makes latents of unit variance: `(z - shift) / scale`."""

    scale: Tensor
    shift: Tensor

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_vae = SpatialVAE(config)
        self.temporal_vae = TemporalVAE(config)
        self.register_buffer("shift", torch.tensor([-0.10, 0.34, 0.27, 0.98]).view(1, CHANNELS, 1, 1, 1))
        self.register_buffer("scale", torch.tensor([3.85, 2.32, 2.33, 3.06]).view(1, CHANNELS, 1, 1, 1))

    @property
    def dtype(self) -> torch.dtype:
        return self.scale.dtype

    @property
    def space_factor(self) -> int:
        """How many pixels a side a latent pixel stands for: 8 in the release."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def encode(self, pixels: Tensor, noise: Callable[[Tensor], Tensor] = torch.randn_like) -> Tensor:
        """Samples latents `[B, 4, T, h, w]` of pixels `[B, 3, F, H, W]`, from both posteriors.

        Args:
            noise: standard normal numbers like its argument; called for the image latents, then for the latents.
        """
        images = _sample(self.spatial_vae.moments(pixels), noise) * SPATIAL_FACTOR
        parts = [self.temporal_vae.moments(chunk) for chunk in images.split(CHUNK, dim=2)]
        mean, logvar = (torch.cat(part, dim=2) for part in zip(*parts, strict=True))
        return (_sample((mean, logvar), noise) - self.shift) / self.scale

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        """Pixels `[B, 3, F, 8h, 8w]` of latents `[B, 4, T, h, w]` that stand for F frames."""
        return self.spatial_vae.decode(self.decode_time(latents, frames))

    def decode_time(self, latents: Tensor, frames: int) -> Tensor:
        """The image latents `[B, 4, F, h, w]` of every frame."""
        chunks = range(-(-latents.shape[2] // LATENT_CHUNK))
        return torch.cat([self.decode_chunk(latents, chunk, frames) for chunk in chunks], dim=2)

    def decode_chunk(self, latents: Tensor, chunk: int, frames: int) -> Tensor:
        """The image latents `[B, 4, at most 17, h, w]` of one chunk of a video of F frames, from its 5 latents."""
        window = latents[:, :, LATENT_CHUNK * chunk : LATENT_CHUNK * (chunk + 1)]
        return self.temporal_vae.decode(window * self.scale + self.shift, min(CHUNK, frames - CHUNK * chunk))

    def decode_frames(self, latents: Tensor, chosen: Sequence[int], frames: int) -> Tensor:
        """Pixels `[B, 3, n, 8h, 8w]` of the n chosen frames, each decoded from its own chunk and no other."""
        chunks = {chunk: self.decode_chunk(latents, chunk, frames) for chunk in sorted({f // CHUNK for f in chosen})}
        return self.spatial_vae.decode(torch.stack([chunks[f // CHUNK][:, :, f % CHUNK] for f in chosen], dim=2))


class SpatialVAE(nn.Module):
    """diffusers' image VAE, frame by frame. (`module`: the release has it in a wrapper.)"""

    module: Any  # diffusers' networks carry their methods in ways that type checkers do not see

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        levels = len(config.block_out_channels)
        self.module = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.norm_num_groups,
            latent_channels=CHANNELS,
        )

    def moments(self, pixels: Tensor) -> Pair:
        """Mean and log-variance `[B, 4, F, h, w]` of the image latents, unscaled."""
        posteriors = [self.module.encode(part).latent_dist for part in _images(pixels).split(IMAGES_AT_ONCE)]
        mean, logvar = (
            torch.cat([getattr(posterior, name) for posterior in posteriors]) for name in ("mean", "logvar")
        )
        return _videos(mean, len(pixels)), _videos(logvar, len(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        """Image latents `[B, 4, n, h, w]` -> pixels `[B, 3, n, 8h, 8w]`, a few frames at a time."""
        parts = (_images(latents) / SPATIAL_FACTOR).split(IMAGES_AT_ONCE)
        return _videos(torch.cat([self.module.decode(part).sample for part in parts]), len(latents))


def _images(video: Tensor) -> Tensor:
    return rearrange(video, "b c f h w -> (b f) c h w")


def _videos(images: Tensor, count: int) -> Tensor:
    return rearrange(images, "(b f) c h w -> b c f h w", b=count)


def _sample(moments: Pair, noise: Callable[[Tensor], Tensor]) -> Tensor:
    mean, logvar = moments
    return mean + (logvar / 2).exp() * noise(mean)


# ---- along time ----


class TemporalVAE(nn.Module):
    """Codes one chunk: image latents `[B, 4, F, h, w]` to latents of a quarter of the frames, and back."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.quant_conv = CausalConv3d(2 * CHANNELS, 2 * CHANNELS, 1)
        self.post_quant_conv = CausalConv3d(CHANNELS, CHANNELS, 1)
        self.decoder = Decoder(config)

    def moments(self, images: Tensor) -> Pair:
        """Mean and clamped log-variance `[B, 4, T, h, w]`; zero frames are put in front up to a multiple of four."""
        padded = F.pad(images, (0, 0, 0, 0, _missing(images.shape[2]), 0))
        mean, logvar = self.quant_conv(self.encoder(padded)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        """`[B, 4, T, h, w]` -> `[B, 4, F, h, w]`, without the frames that were put in front when F were encoded."""
        return self.decoder(self.post_quant_conv(latents))[:, :, _missing(frames) :]


def _missing(frames: int) -> int:
    return -frames % TIME_FACTOR


class Encoder(nn.Module):
    """Four levels of residual blocks; after the second and the third, time is halved."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.filters * factor for factor in config.channel_multipliers]
        self.conv_in = CausalConv3d(CHANNELS, config.filters, 3, bias=False)
        self.block_res_blocks = nn.ModuleList(
            _level(before, width, config) for before, width in zip([config.filters, *widths], widths, strict=False)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, width, 3, time_stride=2) if level else nn.Identity()
            for level, width in enumerate(widths[:-1])
        )
        self.res_blocks = nn.ModuleList(_level(widths[-1], widths[-1], config))
        self.norm1 = nn.GroupNorm(config.num_groups, widths[-1])
        self.conv2 = CausalConv3d(widths[-1], 2 * CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level, conv in zip(self.block_res_blocks, [*self.conv_blocks, nn.Identity()], strict=True):
            x = conv(level(x))
        for block in self.res_blocks:
            x = block(x)
        return self.conv2(F.silu(self.norm1(x)))


class Decoder(nn.Module):
    """The encoder's levels in reverse order; after the last and the last but one, time is doubled."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.filters * factor for factor in config.channel_multipliers]
        self.conv1 = CausalConv3d(CHANNELS, widths[-1], 3)
        self.res_blocks = nn.ModuleList(_level(widths[-1], widths[-1], config))
        self.block_res_blocks = nn.ModuleList(
            _level(before, width, config) for before, width in zip([*widths[1:], widths[-1]], widths, strict=True)
        )
        self.conv_blocks = nn.ModuleList(
            DoubleFrames(width) if level else nn.Identity() for level, width in enumerate(widths[1:])
        )
        self.norm1 = nn.GroupNorm(config.num_groups, widths[0])
        self.conv_out = CausalConv3d(widths[0], CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for block in self.res_blocks:
            x = block(x)
        for level, conv in zip(
            reversed(self.block_res_blocks), [*reversed(self.conv_blocks), nn.Identity()], strict=True
        ):
            x = conv(level(x))
        return self.conv_out(F.silu(self.norm1(x)))


def _level(width_in: int, width: int, config: VAEConfig) -> nn.Sequential:
    first = ResidualBlock(width_in, width, config.num_groups)
    return nn.Sequential(
        first, *(ResidualBlock(width, width, config.num_groups) for _ in range(config.num_res_blocks - 1))
    )


class ResidualBlock(nn.Module):
    def __init__(self, width_in: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in)
        self.conv1 = CausalConv3d(width_in, width, 3, bias=False)
        self.norm2 = nn.GroupNorm(groups, width)
        self.conv2 = CausalConv3d(width, width, 3, bias=False)
        self.conv3 = nn.Identity() if width_in == width else CausalConv3d(width_in, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(x)))
        return self.conv3(x) + self.conv2(F.silu(self.norm2(residual)))


class CausalConv3d(nn.Module):
    """A convolution that sees no later frame: zeros are put in front of time, and around height and width."""

    def __init__(self, width_in: int, width: int, kernel: int, time_stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        side = kernel // 2
        self.padding = (side, side, side, side, kernel - time_stride, 0)
        self.conv = nn.Conv3d(width_in, width, kernel, stride=(time_stride, 1, 1), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class DoubleFrames(CausalConv3d):
    """`[B, C, T, h, w]` -> `[B, C, 2T, h, w]`: each frame becomes two, made by a convolution to 2C channels."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(super().forward(x), "b (c s) t h w -> b c (t s) h w", s=2)
