"""Pretrains the tiny text-to-video base model of the ModelScope family, in diffusers' pipeline folder layout.

The denoiser first sees single frames, eight times cheaper than clips, and then clips. Latents of a fixed
pool of scenes are encoded once; captions, noise and times are drawn afresh. Nothing in a caption tells how
vivid a scene is: that is what alignment will change.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from vader.tinyworld.pretrain.loop import Schedule, fit
from vader.tinyworld.pretrain.text import WIDTH, tokenize
from vader.tinyworld.scenes import ALL_ATTRIBUTES, CAPTIONS, caption, render, sample_scenes

logger = logging.getLogger(__name__)

SEED = 13
FRAMES_SCHEDULE = Schedule(steps=700, lr=1.5e-3, cooldown=200)
CLIPS_SCHEDULE = Schedule(steps=12_500, lr=1e-3, cooldown=1000)
FRAMES_BATCH, CLIPS_BATCH = 128, 16
POOL = 20_480
CAPTION_DROPOUT = 0.1
MIN_SNR_GAMMA = 5.0
MAX_WEIGHT = 20.0


def new_unet() -> UNet3DConditionModel:
    return UNet3DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(48, 96),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=16,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """The noise schedule of `ali-vilab/text-to-video-ms-1.7b`."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@dataclass
class LatentPool:
    """Encoded scenes: latents `[N, 4, F, h, w]` of unit variance, and each scene's attributes as an index."""

    latents: Tensor
    attributes: Tensor

    def batch(self, count: int, frames: int | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` latents, whole clips or (with `frames=1`) one random frame of each, and their attribute indices."""
        picks = torch.randint(len(self.latents), (count,), generator=generator)
        latents = self.latents[picks].float()
        if frames == 1:
            chosen = torch.randint(latents.shape[2], (count,), generator=generator)
            latents = latents[torch.arange(count), :, chosen].unsqueeze(2)
        return latents, self.attributes[picks]


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, count: int, generator: torch.Generator) -> LatentPool:
    latents, indices = [], []
    for _ in range(0, count, 64):
        scenes = sample_scenes(64, generator)
        pixels = render(scenes) * 2 - 1
        moments = vae.encode(pixels.flatten(0, 1).to(vae.device)).latent_dist
        code = moments.mean * vae.config.scaling_factor
        latents.append(code.unflatten(0, pixels.shape[:2]).transpose(1, 2).half().cpu())
        indices.append(torch.tensor([ALL_ATTRIBUTES.index(item) for item in scenes.attributes()]))
    return LatentPool(torch.cat(latents), torch.cat(indices))


def _cached_pool(vae: AutoencoderKL, path: Path) -> LatentPool:
    if not path.exists():
        pool = encode_pool(vae, POOL, torch.Generator().manual_seed(SEED))
        torch.save({"latents": pool.latents, "attributes": pool.attributes}, path)
    return LatentPool(**torch.load(path, weights_only=True))


@torch.no_grad()
def encode_captions(folder: Path) -> Tensor:
    """Text features of all captions: `[templates, attributes + 1, tokens, width]`; the last row is the empty one."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    tables = []
    for template in range(len(CAPTIONS)):
        texts = [caption(item, template) for item in ALL_ATTRIBUTES] + [""]
        tables.append(encoder(input_ids=tokenize(tokenizer, texts)).last_hidden_state)
    return torch.stack(tables)


def denoising_loss(
    unet: UNet3DConditionModel, signal: Tensor, latents: Tensor, features: Tensor, generator: torch.Generator
) -> Tensor:
    """Epsilon-prediction error under the min-SNR weights of v-prediction; `signal` is the table of alpha-bar.

    The weight `(min(SNR, gamma) + 1) / SNR` (arXiv 2303.09556, arXiv 2202.00512) favours high noise, where it is
    decided what is seen and where it goes; plain epsilon weights leave the direction of motion to chance.
    """
    device = features.device
    times = torch.randint(len(signal), (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    alpha = signal[times].view(-1, 1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    prediction = unet(noisy.to(device), times.to(device), features).sample.float()
    snr = alpha / (1 - alpha)
    weight = ((snr.clamp(max=MIN_SNR_GAMMA) + 1) / snr).clamp(max=MAX_WEIGHT).to(device)
    return (weight * (prediction - noise.to(device)).square()).mean()


def build(out: Path, work: Path) -> dict[str, float]:
    """Trains the denoiser on top of `out/{vae,text_encoder,tokenizer}` and completes the pipeline folder `out`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(SEED)
    vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32).to(device)
    pool = _cached_pool(vae, work / "pool.pt")
    logger.info("encoded %d clips, latent std %.3f", len(pool.latents), pool.latents.float().std())
    captions, signal = encode_captions(out).to(device), new_scheduler().alphas_cumprod
    unet = new_unet().eval().to(device)  # eval: no dropout, as in sampling
    if device == "cpu":
        unet.set_attn_processor(AttnProcessor())  # for sequences of 8 to 64 tokens faster there than fused attention

    def loss(count: int, frames: int | None, generator: torch.Generator) -> Tensor:
        latents, indices = pool.batch(count, frames, generator)
        dropped = torch.rand(count, generator=generator) < CAPTION_DROPOUT
        indices = indices.masked_fill(dropped, len(ALL_ATTRIBUTES))
        templates = torch.randint(len(CAPTIONS), (count,), generator=generator)
        return denoising_loss(unet, signal, latents, captions[templates, indices], generator)

    average = fit(unet, lambda g: loss(FRAMES_BATCH, 1, g), FRAMES_SCHEDULE, SEED, work / "frames.pt", device)
    unet.load_state_dict(average.state_dict())
    average = fit(unet, lambda g: loss(CLIPS_BATCH, None, g), CLIPS_SCHEDULE, SEED + 1, work / "clips.pt", device)
    average.half().save_pretrained(out / "unet")
    new_scheduler().save_pretrained(out / "scheduler")
    write_model_index(out)
    return {"clips_seen": CLIPS_SCHEDULE.steps * CLIPS_BATCH, "frames_seen": FRAMES_SCHEDULE.steps * FRAMES_BATCH}


def write_model_index(out: Path) -> None:
    """The file by which diffusers' `TextToVideoSDPipeline` finds its components."""
    index = {
        "_class_name": "TextToVideoSDPipeline",
        "_diffusers_version": "0.32.0",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet3DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
