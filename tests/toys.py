"""A model and rewards in ten lines each, written as a user would: nothing of VADER but its contracts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from vader.files.images import prompt_images
from vader.models.base import VideoModel
from vader.nouns import Clip, Condition, Prompt, VideoSize
from vader.rewards import AllFrames, FrameReward, Reward, SummedReward

DDIM = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


class ToyDenoiser(nn.Module):
    """Attention-free: each pixel's channels through two layers, shifted by text and time."""

    def __init__(self, channels: int = 4, width: int = 8) -> None:
        super().__init__()
        self.to_q = nn.Linear(channels, width)
        self.text = nn.Linear(6, width)
        self.time = nn.Linear(1, width)
        self.to_out = nn.Linear(width, channels)

    def forward(self, latents: Tensor, time: Tensor, text: Tensor) -> Tensor:
        hidden = self.to_q(latents.movedim(1, -1))
        shift = self.text(text) + self.time(time.to(latents.dtype).reshape(1, 1) / 1000)
        return self.to_out(torch.tanh(hidden + shift[:, None, None, None])).movedim(-1, 1)


class ToyModel(VideoModel):
    """Latents `[B, 4, F, H / 4, W / 4]`; a pixel is a linear map of its latent."""

    family = "toy"
    lora_targets = ("to_q", "to_out")

    scheduler = DDIM

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(1)
        self.denoisers = {"unet": ToyDenoiser().to(dtype).requires_grad_(False).eval()}
        self.vae = nn.ConvTranspose2d(4, 3, 4, stride=4).to(dtype).requires_grad_(False).eval()
        self.vae.weight.data *= 0.2

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32):
        return cls(dtype)

    def networks(self) -> dict[str, nn.Module]:
        return {**self.denoisers, "vae": self.vae}

    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        cond, uncond = (self._embed([getattr(prompt, key) for prompt in prompts]) for key in ("text", "negative"))
        return Condition({"text": cond}, {"text": uncond})

    def _embed(self, texts: Sequence[str]) -> Tensor:
        letters = [[float(ord(c) % 7) / 7 for c in text.ljust(6)[:6]] if text else [0.0] * 6 for text in texts]
        return torch.tensor(letters).to(self.vae.weight)

    def noise_shape(self, size: VideoSize) -> tuple[int, ...]:
        return (4, size.frames, size.height // 4, size.width // 4)

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return self.denoiser(latents, time, inputs["text"])

    def encode_video(self, pixels: Tensor) -> Tensor:
        """The latents whose pixels are nearest: the decoder is linear, patch by patch."""
        patches = rearrange(pixels - 0.5, "b f c (h y) (w x) -> b f h w (c y x)", y=4, x=4)
        weight = self.vae.weight.flatten(1)  # [4, 48]
        offset = self.vae.bias.repeat_interleave(16)
        return ((patches - offset) @ torch.linalg.pinv(weight)).movedim(-1, 1)

    def decode_unclamped(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        images = latents.movedim(2, 1)
        if frames is not None:
            images = torch.stack([video[chosen] for video, chosen in zip(images, frames, strict=True)])
        return 0.5 + self.vae(images.flatten(0, 1)).unflatten(0, images.shape[:2])


class Continuing(ToyModel):
    """Image to video: told six numbers of the picture, which the unconditional branch is not."""

    takes_images = True

    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        pictures = prompt_images(prompts, size.height, size.width) if images is None else images
        told = torch.cat([pictures.mean(dim=(2, 3)), pictures[:, :, -1, -1]], dim=1).to(self.vae.weight)
        return Condition({"text": 4 * told}, {"text": torch.zeros_like(told)})


class GaussianDenoiser(nn.Module):
    """The exact denoiser of latents that are standard normal: their noise is `sigma * latents` (DDPM's levels).

    Beside it is a layer of zeros over channels and a constant, for an adapter that moves and turns the latents.
    """

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(5, 4)
        nn.init.zeros_(self.to_q.weight)
        nn.init.zeros_(self.to_q.bias)
        betas = torch.linspace(DDIM["beta_start"] ** 0.5, DDIM["beta_end"] ** 0.5, 1000) ** 2
        self.register_buffer("sigmas", (1 - (1 - betas).cumprod(0)).sqrt())

    def forward(self, latents: Tensor, time: Tensor, text: Tensor) -> Tensor:
        channels = latents.movedim(1, -1)
        moved = self.to_q(torch.cat([channels, torch.ones_like(channels[..., :1])], dim=-1)).movedim(-1, 1)
        return self.sigmas[time.long()] * latents + moved


class GaussianModel(ToyModel):
    """A toy that is a diffusion model: it samples standard normal latents, and losses of denoising mean something."""

    lora_targets = ("to_q",)

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype)
        self.denoisers = {"unet": GaussianDenoiser().to(dtype).requires_grad_(False).eval()}


class Warmth(FrameReward):
    """Red minus blue, with a curve so that its gradient depends on the pixels."""

    def score_frames(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.sin(3 * (images[:, 0] - images[:, 2])).mean(dim=(1, 2))


class Stillness(Reward):
    """Minus the squared change from frame to frame."""

    needs = AllFrames(least=2)

    def score(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        return -(clip.frames[:, 1:] - clip.frames[:, :-1]).square().mean(dim=(1, 2, 3, 4))


class Both(SummedReward):
    """Warmth and stillness as heads of one reward; a third is only reported."""

    needs = AllFrames(least=2)

    def __init__(self) -> None:
        super().__init__({"warm": 1.0, "still": 0.5, "bright": 0.0})

    def score_heads(self, clip: Clip, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        warm, still = Warmth().score(clip, prompts), Stillness().score(clip, prompts)
        return {"warm": warm, "still": still, "bright": clip.frames.mean(dim=(1, 2, 3, 4))}
