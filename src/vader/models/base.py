"""The contract of a base model: prompts in, condition out; latents in, prediction or pixels out.

A family (ModelScope, ...) says how its denoiser is called and how its latents become pixels. Guidance
is the same for all and lives here. Bring your own: subclass `VideoModel`, name it `module:Class`.

Shapes: B videos, F frames, C channels, H x W pixels. Latents have the family's own layout, float32
outside the networks. Pixels are float32 `[B, F, 3, H, W]` in [0, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vader.errors import UserError
from vader.files.images import check_pictures, image_of
from vader.solvers import Solver
from vader.solvers.scheduler_config import Kind


@dataclass(frozen=True)
class VideoSize:
    """The size of a video in pixels and frames; fps is for models that are conditioned on it and for files."""

    frames: int
    height: int
    width: int
    fps: int = 8


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (`VideoModel.guide`); scale 1 needs no unconditional branch.

    `batched` runs both branches as one batch (faster) or one after the other (less memory).
    `detach_uncond` stops the gradient of the unconditional branch.
    """

    scale: float = 1.0
    batched: bool = True
    detach_uncond: bool = False


@dataclass(frozen=True)
class Condition:
    """What the denoiser is conditioned on, encoded once: tensors `[B, ...]` by name, with their unconditional twins."""

    cond: dict[str, Tensor]
    uncond: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.cond.values())))

    def __getitem__(self, index: slice | Sequence[int]) -> Condition:
        return Condition({k: v[index] for k, v in self.cond.items()}, {k: v[index] for k, v in self.uncond.items()})

    def both(self) -> dict[str, Tensor]:
        """Conditional rows first, then unconditional ones: `[2B, ...]`."""
        return {name: torch.cat([self.cond[name], self.uncond[name]]) for name in self.cond}


def latent_sides(size: VideoSize, factor: int) -> tuple[int, int]:
    """Height and width in latents, for a VAE that makes `factor` x `factor` pixels of one.

    Raises:
        UserError: a side is no multiple of the factor; names the nearest size that is possible.
    """
    if size.height % factor or size.width % factor:
        height, width = (max(1, round(side / factor)) * factor for side in (size.height, size.width))
        raise UserError(
            f"video size {size.height}x{size.width} (height x width) is not possible: "
            f"both must be multiples of {factor}; the nearest is {height}x{width}"
        )
    return size.height // factor, size.width // factor


class VideoModel(ABC):
    """A pretrained video diffusion model. Every network is frozen and in eval mode but for the adapter."""

    family: ClassVar[str]
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    takes_images: ClassVar[bool] = False  # whether a video starts from a picture (image-to-video)

    denoiser: nn.Module  # carries the adapter
    solver: Solver  # built from the checkpoint's own scheduler settings

    @classmethod
    @abstractmethod
    def load(
        cls,
        checkpoint: str,
        *,
        dtype: torch.dtype = torch.float32,
        solver: Kind = "auto",
        eta: float = 0.0,
        spacing: str = "auto",
    ) -> VideoModel:
        """Loads a checkpoint on the CPU: every network frozen, in eval mode, its weights in `dtype`.

        Args:
            checkpoint: what the recipe names: a folder, a file or a hub id; a family may define words of its own.
            solver, eta, spacing: how to sample, as `solver_from_config` takes them (`solver` is its `kind`).

        Raises:
            UserError: there is no such checkpoint, or it is not of this family.
        """

    @classmethod
    def check_prompts(cls, prompts: Sequence[str]) -> None:
        """Before anything is loaded: prompts carry pictures where the family starts from them, and none elsewhere.

        Raises:
            UserError: naming the first prompt that does not fit, or whose picture cannot be opened.
        """
        family = f"models of the family {cls.family!r}"
        for prompt in prompts:
            if image_of(prompt) is None and cls.takes_images:
                raise UserError(f"{family} start from images, but prompt {prompt!r} has none: use a set of pictures")
            if image_of(prompt) is not None and not cls.takes_images:
                raise UserError(f"{family} take no images, but prompt {prompt!r} has one: use a set of texts")
        check_pictures(prompts)

    @abstractmethod
    def encode(self, prompts: Sequence[str], images: Tensor | None = None, size: VideoSize | None = None) -> Condition:
        """Encodes B prompts, without gradient.

        Args:
            prompts: one a video.
            images: `[B, 3, H, W]` in [0, 1], for image-to-video.
            size: of the videos, for families whose denoiser is told it (fps, resolution); sampling and training
                always give it.
        """

    def prepare(self, prompts: Sequence[str]) -> None:  # noqa: B027 (most families have nothing to do)
        """Told every prompt before a run or a batch of samples begins.

        A family whose text encoder is too large to stay in memory encodes them here, and drops it.
        """

    @abstractmethod
    def noise_shape(self, size: VideoSize) -> tuple[int, ...]:
        """The shape of one video's latents.

        Raises:
            UserError: the model cannot make videos of this size.
        """

    @abstractmethod
    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """One pass of the denoiser: scaled latents `[N, ...]`, one time (scalar), inputs `[N, ...]` -> like latents."""

    @abstractmethod
    def decode_unclamped(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        """Pixels of the chosen frames before clamping: about [0, 1], may overshoot.

        Args:
            latents: the final latents of B videos.
            frames: indices `[B, n]` of the frames to decode, each video its own; None for all.

        Returns:
            float32 `[B, n, 3, H, W]`.
        """

    def encode_video(self, pixels: Tensor) -> Tensor:
        """Pixels `[B, F, 3, H, W]` in [0, 1] as final latents, without gradient: what `decode` takes back.

        Raises:
            UserError: this family has no way to; one that has overrides this.
        """
        raise UserError(f"models of {type(self).__name__} cannot encode videos, so they learn from no video files")

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """Every network by its component name ("unet", "vae", ...), for placing, counting and exporting."""

    def diffusers_pipeline(self) -> Any:
        """The same networks and scheduler as a diffusers pipeline, for exporting; families that have one override this.

        Raises:
            UserError: diffusers has no pipeline for this family.
        """
        raise UserError(f"models of {type(self).__name__} have no diffusers pipeline: export the adapter instead")

    def exporter(self) -> Callable[[Path], Any]:
        """What writes the whole model into a folder, for use without this package: as diffusers' pipeline, or else
        families override this.

        Raises:
            UserError: diffusers has no pipeline for this family.
        """
        return self.diffusers_pipeline().save_pretrained

    def decode(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        """Pixels of the chosen frames, in [0, 1]; see `decode_unclamped`."""
        return self.decode_unclamped(latents, frames).clamp(0, 1)

    def predict(self, latents: Tensor, time: Tensor, condition: Condition, guidance: Guidance) -> Tensor:
        """The guided prediction at one time, with a graph wherever the caller's grad mode and weights ask for one."""
        if guidance.scale == 1.0:
            return self.denoise(latents, time, condition.cond)
        return self.guide(*self._branches(latents, time, condition, guidance), guidance.scale)

    def guide(self, cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
        """The guided prediction, `uncond + scale * (cond - uncond)` (arXiv 2207.12598, eq. 6, scale = 1 + w there)."""
        return uncond + scale * (cond - uncond)

    def _branches(
        self, latents: Tensor, time: Tensor, condition: Condition, guidance: Guidance
    ) -> tuple[Tensor, Tensor]:
        if guidance.batched and not (guidance.detach_uncond and torch.is_grad_enabled()):
            cond, uncond = self.denoise(torch.cat([latents, latents]), time, condition.both()).chunk(2)
            return cond, uncond
        cond = self.denoise(latents, time, condition.cond)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not guidance.detach_uncond):
            uncond = self.denoise(latents, time, condition.uncond)
        return cond, uncond

    @property
    def denoiser_name(self) -> str:
        """The denoiser's component name: "unet" or "transformer"."""
        return next(name for name, network in self.networks().items() if network is self.denoiser)

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def to(self, device: torch.device | str) -> VideoModel:
        for network in self.networks().values():
            network.to(device)
        return self
