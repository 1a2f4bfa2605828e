"""Pretrains the tiny text-to-video base model of the ModelScope family, in diffusers' pipeline folder layout.

The denoiser first sees the first frames of clips, then clips of four frames, then whole ones: eight times and twice
cheaper at first. First frames, not random ones, because of the direction of motion: UNet3D knows a frame's place in
time by the padding of its temporal convolutions alone, so that word x place in the picture x place in time is learned
only after word x place in the picture is, and that is what first frames show. Latents of a fixed pool of scenes are
encoded once; captions, noise and times are drawn afresh. Nothing in a caption tells how vivid a scene is: that is what
alignment will change.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from vader.models.base import VideoModel
from vader.models.modelscope import ModelScope
from vader.nouns import VideoSize
from vader.pretrain.loop import Schedule, fit
from vader.pretrain.text import WIDTH, tokenize
from vader.sampling.videos import sample_videos
from vader.tinyworld.judge import judge_prompts
from vader.tinyworld.scenes import ALL_ATTRIBUTES, CAPTIONS, caption, render, sample_scenes
from vader.tinyworld.split import test_prompts

logger = logging.getLogger(__name__)

SEED = 13
POOL = 20_480
CAPTION_DROPOUT = 0.1
SAMPLING_STEPS, GUIDANCE = 10, 4.0  # of the videos that are judged, as in the recipe `tiny`


@dataclass(frozen=True)
class Stage:
    """A part of the training: which frames of each clip the denoiser sees, how many clips at once, and how long."""

    name: str
    frames: tuple[int, ...]
    batch: int
    schedule: Schedule


STAGES = (
    Stage("first-frames", (0,), 128, Schedule(steps=500, lr=1.5e-3, cooldown=100)),
    Stage("four-frames", (0, 2, 5, 7), 32, Schedule(steps=1100, lr=1e-3, cooldown=100)),
    Stage("clips", tuple(range(8)), 16, Schedule(steps=1600, lr=1e-3, cooldown=500)),
)


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
    """The noise schedule of `ali-vilab/text-to-video-ms-1.7b`, with v-prediction: a small network learns it faster."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


@dataclass
class LatentPool:
    """Encoded scenes: latents `[N, 4, F, h, w]` of unit variance, and each scene's attributes as an index."""

    latents: Tensor
    attributes: Tensor

    def batch(self, stage: Stage, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A stage's latents `[N, 4, frames, h, w]` of random scenes, and their attribute indices `[N]`."""
        picks = torch.randint(len(self.latents), (stage.batch,), generator=generator)
        return self.latents[picks][:, :, list(stage.frames)].float(), self.attributes[picks]


def draw_features(captions: Tensor, indices: Tensor, generator: torch.Generator) -> Tensor:
    """Text features `[N, tokens, width]` of attribute indices `[N]`: any template, or none of the caption at all."""
    dropped = torch.rand(len(indices), generator=generator) < CAPTION_DROPOUT
    indices = indices.masked_fill(dropped, len(ALL_ATTRIBUTES))
    return captions[torch.randint(len(CAPTIONS), (len(indices),), generator=generator), indices]


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


def cached_pool(vae: AutoencoderKL, path: Path) -> LatentPool:
    """The pool that all denoisers of the image VAE's latents share, encoded at the first call."""
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
    """Error of the v-prediction (arXiv 2202.00512, appendix D) at uniform times; `signal` is the table of alpha-bar.

    Its target is minus the clean latents at high noise, where it is decided what is seen and where it goes; there an
    epsilon-prediction is all but a copy of its input.
    """
    device = features.device
    times = torch.randint(len(signal), (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    alpha, sigma = (part.sqrt().view(-1, 1, 1, 1, 1) for part in (signal[times], 1 - signal[times]))
    noisy, velocity = alpha * latents + sigma * noise, alpha * noise - sigma * latents
    prediction = unet(noisy.to(device), times.to(device), features).sample.float()
    return (prediction - velocity.to(device)).square().mean()


def build(out: Path, work: Path) -> dict[str, float]:
    """Trains the denoiser on top of `out/{vae,text_encoder,tokenizer}` and completes the pipeline folder `out`.

    Returns:
        What the judge finds right in videos of held-out prompts, see `judged`.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(SEED)
    vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32).to(device)
    pool = cached_pool(vae, work / "pool.pt")
    logger.info("encoded %d clips, latent std %.3f", len(pool.latents), pool.latents.float().std())
    captions, signal = encode_captions(out).to(device), new_scheduler().alphas_cumprod
    unet = new_unet().eval().to(device)  # eval: no dropout, as in sampling
    if device == "cpu":
        unet.set_attn_processor(AttnProcessor())  # for sequences of 8 to 64 tokens faster there than fused attention

    def loss(stage: Stage, generator: torch.Generator) -> Tensor:
        latents, indices = pool.batch(stage, generator)
        return denoising_loss(unet, signal, latents, draw_features(captions, indices, generator), generator)

    fit_stages(unet, loss, STAGES, SEED, work, device)
    unet.half().save_pretrained(out / "unet")
    new_scheduler().save_pretrained(out / "scheduler")
    write_model_index(out)
    return judged(ModelScope.load(str(out)).to(device))


def fit_stages(
    unet: nn.Module,
    loss: Callable[[Stage, torch.Generator], Tensor],
    stages: Sequence[Stage],
    seed: int,
    work: Path,
    device: torch.device | str = "cpu",
) -> None:
    """Trains in place, stage after stage, each on its own seed and from the moving average of the one before."""
    for number, stage in enumerate(stages, start=seed):
        average = fit(unet, partial(loss, stage), stage.schedule, number, work / f"{stage.name}.pt", device)
        unet.load_state_dict(average.state_dict())


def judged(model: VideoModel, count: int = 200) -> dict[str, float]:
    """What the judge finds right in videos of `count` held-out prompts, as shares, and their mean vividness."""
    prompts = test_prompts()[:count]
    videos = sample_videos(model, prompts, VideoSize(8, 32, 32), SAMPLING_STEPS, GUIDANCE, seed=SEED, batch=16)
    return {name: found.mean().item() for name, found in judge_prompts(videos, prompts).items()}


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
