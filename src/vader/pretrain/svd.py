"""Pretrains the tiny image-to-video model of the Stable Video Diffusion family, in diffusers' pipeline folder layout.

Three parts. The image encoder is the tiny CLIP's vision tower. The VAE learns the latents of the tiny world's image
VAE, whose weights it cannot take over: in this class every normalisation has 32 groups. The denoiser learns by EDM
(arXiv 2206.00364) from clips that start from the picture it is shown. Where the object is in that picture tells,
mostly, where it will go; the motion bucket tells how far; and in half of the clips the light changes in a way that
nothing tells: that is what alignment will choose.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    UNetSpatioTemporalConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.resnet import TemporalResnetBlock
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from vader.models.image_vae import encode_frames
from vader.models.svd import StableVideoDiffusion
from vader.nouns import Prompt, VideoSize
from vader.pretrain.loop import Schedule, fit, generator_for
from vader.sampling.videos import sample_videos
from vader.tinyworld.judge import judge_prompts
from vader.tinyworld.pictures import test_pictures
from vader.tinyworld.scenes import Scenes, object_centers, render, sample_scenes

logger = logging.getLogger(__name__)

SEED = 19
SIZE = VideoSize(frames=8, height=32, width=32, fps=8)
SLOWEST = 0.25  # share of the world's own speed, which is motion bucket 255
CHANGING_LIGHT = 0.5  # share of clips
DROPOUT = 0.1  # share of clips whose picture is not shown, for guidance
LOG_SIGMA = (0.7, 1.6)  # mean and deviation (arXiv 2311.15127, appendix D.3)
LOG_AUGMENTATION = (-3.0, 0.5)  # of the noise on the picture (same place)
SAMPLING_STEPS, GUIDANCE = 10, 2.0  # of the videos that are judged, as in the recipe `tiny-svd`


FRAMES_SCHEDULE = Schedule(steps=1000, lr=2e-3, cooldown=300, warmup=50, ema=0.99)
CLIPS_SCHEDULE = Schedule(steps=60, lr=1e-3, cooldown=50, warmup=10, ema=0.95)
DENOISER_SCHEDULE = Schedule(steps=3400, lr=1.5e-3, cooldown=700)


@dataclass(frozen=True)
class Plan:
    """How long the VAE is trained, on frames and on clips, and the denoiser; how many clips at once, and in all."""

    frames: Schedule = FRAMES_SCHEDULE
    clips: Schedule = CLIPS_SCHEDULE
    denoiser: Schedule = DENOISER_SCHEDULE
    batch: int = 8
    pool: int = 6144
    judged: int = 100


DEFAULT = Plan()


# ---- clips ----


def draw_clips(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random clips `[N, F, 3, S, S]` in [0, 1] and their motion buckets `[N]`, 255 times their share of full speed.

    In half of them the light changes evenly, from the first frame's vividness to another scene's.
    """
    scenes = sample_scenes(count, generator)
    speed = SLOWEST + (1 - SLOWEST) * torch.rand(count, generator=generator)
    changes = torch.rand(count, generator=generator) < CHANGING_LIGHT
    last = torch.where(changes, sample_scenes(count, generator).vividness, scenes.vividness)
    progress = torch.linspace(0, 1, SIZE.frames)
    vividness = torch.lerp(scenes.vividness[:, None], last[:, None], progress)
    moving = slowed(scenes, speed)
    dull, vivid = (render(moving.with_vividness(v), SIZE.frames, SIZE.height) for v in (0.0, 1.0))
    return torch.lerp(dull, vivid, vividness[:, :, None, None, None]), 255 * speed


def slowed(scenes: Scenes, speed: Tensor) -> Scenes:
    """The same scenes from the same first frames on, at shares `[N]` of their speed."""
    start, end = object_centers(scenes, 2).unbind(dim=1)
    return replace(scenes, center=torch.lerp(start, end, speed[:, None] / 2), travel=scenes.travel * speed)


# ---- the VAE ----


def new_vae(scaling_factor: float) -> AutoencoderKLTemporalDecoder:
    """A fresh VAE whose decoder does not mix frames yet: what is temporal comes in from zero."""
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 3,
        block_out_channels=(64, 64, 64),
        layers_per_block=1,
        sample_size=SIZE.height,
        scaling_factor=scaling_factor,
    )
    silence_temporal(vae)
    nn.init.dirac_(vae.decoder.time_conv_out.weight)
    nn.init.zeros_(vae.decoder.time_conv_out.bias)
    return vae


def silence_temporal(network: nn.Module) -> None:
    """Temporal residual blocks add nothing."""
    for block in network.modules():
        if isinstance(block, TemporalResnetBlock):
            nn.init.zeros_(block.conv2.weight)
            nn.init.zeros_(block.conv2.bias)


def vae_loss(vae: AutoencoderKLTemporalDecoder, image_vae: AutoencoderKL, clips: Tensor, g: torch.Generator) -> Tensor:
    """Error of pixels decoded from the image VAE's latents, and of this VAE's own latents; clips `[N, F, 3, S, S]`."""
    pixels = clips.flatten(0, 1) * 2 - 1
    with torch.no_grad():
        posterior = image_vae.encode(pixels).latent_dist
    latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=g)
    error = vae.decode(latents, num_frames=clips.shape[1]).sample.float() - pixels
    own = vae.encode(pixels[:: max(1, clips.shape[1] // 2)]).latent_dist.mean.float()
    copied = F.mse_loss(own, posterior.mean[:: max(1, clips.shape[1] // 2)].float())
    return error.abs().mean() + 2 * error.square().mean() + copied


def build_vae(image_vae: Path, work: Path, plan: Plan) -> AutoencoderKLTemporalDecoder:
    """Trains on single frames, then on whole clips."""
    image = AutoencoderKL.from_pretrained(image_vae, torch_dtype=torch.float32).requires_grad_(False)
    vae = new_vae(image.config.scaling_factor)

    def frames(generator: torch.Generator) -> Tensor:
        clips = draw_clips(2 * plan.batch, generator)[0]
        picks = torch.randint(SIZE.frames, (len(clips), 1), generator=generator)
        return vae_loss(vae, image, clips.take_along_dim(picks[:, :, None, None, None], 1), generator)

    def clips(generator: torch.Generator) -> Tensor:
        return vae_loss(vae, image, draw_clips(plan.batch // 2, generator)[0], generator)

    vae.load_state_dict(fit(vae, frames, plan.frames, SEED, work / "svd-vae-frames.pt").state_dict())
    return fit(vae, clips, plan.clips, SEED + 1, work / "svd-vae-clips.pt", report_every=20).requires_grad_(False)


@torch.no_grad()
def psnr(vae: AutoencoderKLTemporalDecoder, clips: Tensor) -> float:
    """Mean reconstruction quality in dB over clips `[N, F, 3, S, S]` in [0, 1]."""
    latents = vae.encode(clips.flatten(0, 1) * 2 - 1).latent_dist.mode()
    restored = vae.decode(latents, num_frames=clips.shape[1]).sample / 2 + 0.5
    errors = (restored - clips.flatten(0, 1)).square().mean(dim=(1, 2, 3))
    return (-10 * errors.log10()).mean().item()


# ---- the image encoder ----

PATCHES = "vision_model.embeddings.patch_embedding.weight"


def image_encoder(clip: Path, side: int = 224) -> CLIPVisionModelWithProjection:
    """The tiny CLIP's vision tower for pictures of 224 pixels, which is what diffusers' pipeline shows it.

    Patches grow with the picture: each is averaged down to what it was.
    """
    tower = CLIPVisionModelWithProjection.from_pretrained(clip, dtype=torch.float32)
    config: Any = tower.config
    factor, weights = side // config.image_size, tower.state_dict()
    patches = weights[PATCHES].repeat_interleave(factor, 2).repeat_interleave(factor, 3) / factor**2
    settings = {"image_size": side, "patch_size": factor * config.patch_size}
    large = CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(config.to_dict() | settings))
    large.load_state_dict(weights | {PATCHES: patches})
    return large.eval().requires_grad_(False)


IMAGE_CONFIG: dict[str, Any] = {  # as the release's, which is CLIP's
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}


MODEL_INDEX: dict[str, Any] = {
    "_class_name": "StableVideoDiffusionPipeline",
    "_diffusers_version": "0.32.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
    "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
}


# ---- the denoiser ----


def new_unet() -> UNetSpatioTemporalConditionModel:
    """Frames are mixed by temporal attention from the first step on, by temporal convolutions from zero."""
    unet = UNetSpatioTemporalConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(64, 64),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        layers_per_block=1,
        cross_attention_dim=64,
        num_attention_heads=(4, 4),
        num_frames=SIZE.frames,
    )
    silence_temporal(unet)
    return unet


def new_scheduler() -> EulerDiscreteScheduler:
    """The settings of `stabilityai/stable-video-diffusion-img2vid`."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        timestep_type="continuous",
        steps_offset=1,
    )


def assemble(
    unet: UNetSpatioTemporalConditionModel, vae: AutoencoderKLTemporalDecoder, encoder: CLIPVisionModelWithProjection
) -> StableVideoDiffusion:
    scheduler = dict(new_scheduler().config) | {"_class_name": "EulerDiscreteScheduler"}
    return StableVideoDiffusion(unet, vae, encoder, scheduler, IMAGE_CONFIG)


@dataclass
class LatentPool:
    """Encoded clips: latents `[N, F, C, h, w]` of unit variance, and what the denoiser is told of each."""

    latents: Tensor
    told: dict[str, Tensor]

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Random clips; some are not shown their picture, as the unconditional branch of guidance is not."""
        picks = torch.randint(len(self.latents), (count,), generator=generator)
        told = {name: values[picks].float() for name, values in self.told.items()}
        shown = (torch.rand(count, generator=generator) >= DROPOUT).float()
        hidden = {name: values * shown.view(-1, *[1] * (values.dim() - 1)) for name, values in told.items()}
        return self.latents[picks].float(), {**hidden, "numbers": told["numbers"]}


@torch.no_grad()
def encode_pool(model: StableVideoDiffusion, count: int, generator: torch.Generator) -> LatentPool:
    """Clips and their first frames as the model encodes them, with 64 at a time under one strength of augmentation."""
    mean, deviation = LOG_AUGMENTATION
    latents, told = [], []
    for _ in range(0, count, 64):
        clips, buckets = draw_clips(64, generator)
        model.noise_augmentation = (mean + deviation * torch.randn((), generator=generator)).exp().item()
        condition = model.encode([Prompt("")] * 64, SIZE, clips[:, 0]).cond
        condition["numbers"][:, 1] = buckets
        latents.append(encode_frames(model.vae, clips).movedim(1, 2).half())
        told.append(condition)
    return LatentPool(torch.cat(latents), {name: torch.cat([some[name] for some in told]) for name in told[0]})


def _cached_pool(model: StableVideoDiffusion, count: int, path: Path) -> LatentPool:
    if not path.exists():
        pool = encode_pool(model, count, torch.Generator().manual_seed(SEED))
        torch.save({"latents": pool.latents, "told": pool.told}, path)
    return LatentPool(**torch.load(path, weights_only=True))


def denoising_loss(model: StableVideoDiffusion, latents: Tensor, told: dict[str, Tensor], g: torch.Generator) -> Tensor:
    """EDM's loss (arXiv 2206.00364, eq. 7-8 and table 1, for data of unit variance) under SVD's preconditioning.

    With c_skip = 1 / (s^2 + 1) and c_out = -s / sqrt(s^2 + 1) (arXiv 2311.15127, appendix D.3), and weighted by
    1 / c_out^2, it is the error of the v-prediction.
    """
    mean, deviation = LOG_SIGMA
    log_sigma = mean + deviation * torch.randn(len(latents), generator=g)
    sigma = log_sigma.exp().view(-1, 1, 1, 1, 1)
    noise, c_in = torch.randn(latents.shape, generator=g), (sigma.square() + 1).rsqrt()
    prediction = model.denoise(c_in * (latents + sigma * noise), log_sigma / 4, told)
    return F.mse_loss(prediction.float(), c_in * (noise - sigma * latents))


def build(out: Path, work: Path, image_vae: Path, clip: Path, plan: Plan = DEFAULT) -> dict[str, float]:
    """Writes the pipeline folder `out` and returns its held-out quality.

    Args:
        image_vae: the tiny world's trained image VAE.
        clip: the tiny CLIP.
    """
    torch.manual_seed(SEED)
    vae = build_vae(image_vae, work, plan)
    quality = {"psnr_db": psnr(vae, draw_clips(64, generator_for(SEED, -1))[0])}
    logger.info("VAE: %.2f dB", quality["psnr_db"])
    unet = new_unet().eval()
    unet.set_attn_processor(AttnProcessor())  # for short sequences faster than fused attention on a CPU
    model = assemble(unet, vae, image_encoder(clip))
    pool = _cached_pool(model, plan.pool, work / "svd-pool.pt")
    logger.info("encoded %d clips, latent std %.3f", len(pool.latents), pool.latents.float().std())

    def loss(generator: torch.Generator) -> Tensor:
        return denoising_loss(model, *pool.batch(plan.batch, generator), generator)

    model.denoisers["unet"] = fit(unet, loss, plan.denoiser, SEED + 2, work / "svd.pt")
    write(model, out)
    return {**quality, **judged(out, plan.judged)}


def write(model: StableVideoDiffusion, out: Path) -> None:
    """The folder that diffusers' `StableVideoDiffusionPipeline` loads, in half precision."""
    parts: dict[str, Any] = dict(model.networks())
    for name, network in parts.items():
        network.half().save_pretrained(out / name)
    new_scheduler().save_pretrained(out / "scheduler")
    _write_json(out / "feature_extractor" / "preprocessor_config.json", IMAGE_CONFIG)
    _write_json(out / "model_index.json", MODEL_INDEX)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def judged(folder: Path, count: int) -> dict[str, float]:
    """What the judge finds right in videos from `count` held-out pictures, as shares, and their mean vividness."""
    model, prompts = StableVideoDiffusion.load(str(folder)), test_pictures()[:count]
    videos = sample_videos(model, prompts, SIZE, SAMPLING_STEPS, GUIDANCE, seed=SEED, batch=16)
    return {name: found.mean().item() for name, found in judge_prompts(videos, prompts).items()}
