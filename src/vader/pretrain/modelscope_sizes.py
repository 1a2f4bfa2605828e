"""Trains the tiny text-to-video base on at several sizes, so that it can be aligned at each (figure 4 of the paper).

The finished denoiser of 32 pixels goes on with clips of 24, 32, 48 and 64 pixels in turn. At sizes that it has never
seen, objects come out double or misshapen, the more the larger the frame. VAE and text encoder are taken as they are.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file
from torch import Tensor

from vader.models.modelscope import ModelScope
from vader.nouns import VideoSize
from vader.pretrain import modelscope
from vader.pretrain.loop import Schedule, fit
from vader.sampling.videos import sample_videos
from vader.tinyworld.judge import judge_prompts
from vader.tinyworld.scenes import ALL_ATTRIBUTES, CAPTIONS, render, sample_scenes
from vader.tinyworld.split import test_prompts

SEED = 41
BATCHES = {24: 16, 32: 16, 48: 8, 64: 4}  # clips at once, by their side in pixels
SCHEDULE = Schedule(steps=1200, lr=5e-4, cooldown=400)
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def build(out: Path, work: Path, base: Path, schedule: Schedule = SCHEDULE, judged: int = 48) -> dict[str, float]:
    """Trains the denoiser of the pipeline folder `base` on, and writes a pipeline folder `out`.

    Returns:
        By size, what the judge finds right in videos of `judged` held-out prompts, as shares.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shutil.copytree(base, out, dirs_exist_ok=True)
    vae = AutoencoderKL.from_pretrained(base / "vae", torch_dtype=torch.float32).to(device)
    unet = UNet3DConditionModel.from_pretrained(base / "unet", torch_dtype=torch.float32).eval().to(device)
    if device == "cpu":
        unet.set_attn_processor(AttnProcessor())
    captions, signal = modelscope.encode_captions(base).to(device), modelscope.new_scheduler().alphas_cumprod

    def loss(generator: torch.Generator) -> Tensor:
        latents, indices = clips(vae, generator)
        dropped = torch.rand(len(latents), generator=generator) < modelscope.CAPTION_DROPOUT
        indices = indices.masked_fill(dropped, len(ALL_ATTRIBUTES))
        templates = torch.randint(len(CAPTIONS), (len(latents),), generator=generator)
        return modelscope.denoising_loss(unet, signal, latents, captions[templates, indices], generator)

    average = fit(unet, loss, schedule, SEED, work / "sizes.pt", device)
    save_file(average.half().state_dict(), out / UNET_WEIGHTS, {"format": "pt"})
    return {f"{name}_{size}": share for size in BATCHES for name, share in judged_at(out, size, judged).items()}


@torch.no_grad()
def clips(vae: AutoencoderKL, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fresh clips of one random size: latents `[N, 4, F, h, w]` of unit variance, and attribute indices `[N]`."""
    sizes = list(BATCHES)
    size = sizes[int(torch.randint(len(sizes), (), generator=generator))]
    scenes = sample_scenes(BATCHES[size], generator)
    pixels = render(scenes, size=size) * 2 - 1
    moments = vae.encode(pixels.flatten(0, 1).to(vae.device)).latent_dist
    latents = (moments.mean * vae.config.scaling_factor).unflatten(0, pixels.shape[:2]).transpose(1, 2)
    return latents.float().cpu(), torch.tensor([ALL_ATTRIBUTES.index(item) for item in scenes.attributes()])


def judged_at(folder: Path, size: int, count: int) -> dict[str, float]:
    """What the judge finds right in videos of `count` held-out prompts at a size, as shares, and their vividness."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, prompts = ModelScope.load(str(folder)).to(device), test_prompts()[:count]
    video, guidance = VideoSize(8, size, size), modelscope.GUIDANCE
    videos = sample_videos(model, prompts, video, modelscope.SAMPLING_STEPS, guidance, seed=SEED, batch=BATCHES[size])
    return {name: found.mean().item() for name, found in judge_prompts(videos, prompts).items()}
