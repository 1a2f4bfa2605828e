"""Pretrains the tiny text-to-video base model of the Open-Sora family, in the release's file formats.

Clips are 17 frames of 32x32 pixels, one chunk: 5 latent frames of 8x8. In turn are trained the temporal VAE (on the
latents of the tiny world's image VAE, which becomes the spatial one), a T5 encoder (contrastively, against what the
captions say), and STDiT3 (by flow matching; first on the first latent frame of clips, then on whole ones, as the
ModelScope twin is). Nothing in a caption tells how vivid a scene is: that is what alignment will change.

Levels are even, in training and in sampling: Open-Sora's shift by the size of the video, made for 240p and more,
would at 32x32 pixels spend all but the first steps where the video is already decided.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import sentencepiece
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from vader.models.opensora.model import OpenSora
from vader.models.opensora.parts import save_part
from vader.models.opensora.stdit3 import STDiT3, STDiT3Config
from vader.models.opensora.text import prepared
from vader.models.opensora.vae import SPATIAL_FACTOR, OpenSoraVAE, VAEConfig
from vader.nouns import VideoSize
from vader.pretrain.loop import Schedule, fit, generator_for
from vader.pretrain.text import contrastive_loss, distinct_captions
from vader.sampling.videos import sample_videos
from vader.tinyworld.judge import judge_prompts
from vader.tinyworld.scenes import (
    ALL_ATTRIBUTES,
    BACKGROUNDS,
    CAPTIONS,
    COLORS,
    MOTIONS,
    SHAPES,
    caption,
    render,
    sample_scenes,
)
from vader.tinyworld.split import test_prompts

SEED = 17
SIZE = VideoSize(frames=17, height=32, width=32, fps=8)
WIDTH = 64  # of text features
TOKENS = 32
CAPTION_DROPOUT = 0.1
SAMPLING_STEPS, GUIDANCE = 20, 4.0  # of the videos that are judged

VAE = VAEConfig(
    block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8,
    filters=16, num_res_blocks=1, channel_multipliers=(1, 2, 2, 4), num_groups=8,
)  # fmt: skip
TRANSFORMER = STDiT3Config(depth=4, hidden_size=128, num_heads=4, caption_channels=WIDTH, model_max_length=TOKENS)
SCHEDULER = {"_class_name": "RFLOW", "use_timestep_transform": False}


class Stage(NamedTuple):
    """A part of the denoiser's training: how many latent frames of each clip it sees, of how many clips at once."""

    frames: int
    batch: int
    schedule: Schedule


@dataclass(frozen=True)
class Plan:
    """How long each part is trained, and on how many clips."""

    vae: Schedule
    vae_batch: int
    text: Schedule
    first_frames: Stage
    whole: Stage
    pool: int
    judged: int


DEFAULT = Plan(
    vae=Schedule(steps=2800, lr=2e-3, cooldown=600),
    vae_batch=8,
    text=Schedule(steps=600, lr=1e-3, cooldown=200),
    first_frames=Stage(1, 128, Schedule(steps=800, lr=1.5e-3, cooldown=100, autocast=False)),
    whole=Stage(5, 32, Schedule(steps=3200, lr=1e-3, cooldown=800, autocast=False)),
    pool=8192,
    judged=200,
)


# ---- the VAE ----


def new_vae(image_vae: AutoencoderKL) -> OpenSoraVAE:
    """A fresh temporal VAE around a trained image VAE, whose latents are made to have unit variance."""
    vae = OpenSoraVAE(VAE)
    vae.spatial_vae.module.load_state_dict(image_vae.state_dict())
    _rescale(vae.spatial_vae.module, image_vae.config.scaling_factor / SPATIAL_FACTOR)
    return vae


@torch.no_grad()
def _rescale(image_vae: AutoencoderKL, factor: float) -> None:
    """Latents become `factor` times as large; images stay as they are."""
    means = slice(0, image_vae.config.latent_channels)
    logvars = slice(image_vae.config.latent_channels, None)
    image_vae.quant_conv.weight[means] *= factor
    image_vae.quant_conv.bias[means] *= factor
    image_vae.quant_conv.bias[logvars] += 2 * math.log(factor)
    image_vae.post_quant_conv.weight /= factor


def clips(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random clips `[N, 3, F, 32, 32]` in [-1, 1], and each one's attributes as an index `[N]`."""
    scenes = sample_scenes(count, generator)
    indices = torch.tensor([ALL_ATTRIBUTES.index(item) for item in scenes.attributes()])
    return render(scenes, SIZE.frames).movedim(1, 2) * 2 - 1, indices


def vae_loss(vae: OpenSoraVAE, count: int, generator: torch.Generator) -> Tensor:
    """Error of the image latents after the temporal VAE, and a little KL."""
    with torch.no_grad():
        images = vae.spatial_vae.moments(clips(count, generator)[0])[0] * SPATIAL_FACTOR
    mean, logvar = vae.temporal_vae.moments(images)
    noise = torch.randn(mean.shape, generator=generator)
    restored = vae.temporal_vae.decode(mean + (logvar / 2).exp() * noise, SIZE.frames)
    kl = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2
    return F.mse_loss(restored.float(), images) + 1e-4 * kl


@torch.no_grad()
def set_normalisation(vae: OpenSoraVAE, pixels: Tensor) -> None:
    """Latents have zero mean and unit variance in each channel, as diffusion expects."""
    vae.shift.zero_()
    vae.scale.fill_(1.0)
    latents = vae.encode(pixels, torch.zeros_like).movedim(1, 0).flatten(1)
    vae.shift.copy_(latents.mean(dim=1).view_as(vae.shift))
    vae.scale.copy_(latents.std(dim=1).view_as(vae.scale))


@torch.no_grad()
def psnr(vae: OpenSoraVAE, pixels: Tensor) -> float:
    restored = vae.decode(vae.encode(pixels, torch.zeros_like), SIZE.frames)
    return -10 * math.log10(F.mse_loss(restored, pixels).item() / 4)


def build_vae(image_vae: Path, work: Path, plan: Plan) -> OpenSoraVAE:
    vae = new_vae(AutoencoderKL.from_pretrained(image_vae, torch_dtype=torch.float32))
    vae.spatial_vae.requires_grad_(False)
    vae = fit(vae, lambda g: vae_loss(vae, plan.vae_batch, g), plan.vae, SEED, work / "opensora-vae.pt")
    set_normalisation(vae, clips(64, generator_for(SEED, -1))[0])
    return vae.requires_grad_(False)


# ---- the text encoder ----


def write_tokenizer(folder: Path, texts: Iterable[str], size: int = 256) -> None:
    """T5's tokenizer in its release files: a SentencePiece model of at most `size` pieces, made from texts."""
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=size, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def all_texts() -> list[str]:
    """Every caption of the tiny world as T5 sees it, by template, then attributes."""
    return [prepared(caption(item, template)) for template in range(len(CAPTIONS)) for item in ALL_ATTRIBUTES]


class CaptionMatcher(nn.Module):
    """A T5 encoder and an embedding of attributes that must agree on which caption describes which scene."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        config = T5Config(
            vocab_size=vocabulary, d_model=WIDTH, d_kv=16, d_ff=2 * WIDTH, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", dropout_rate=0.0,
        )  # fmt: skip
        self.text = T5EncoderModel(config)
        self.attributes = nn.ModuleList(
            nn.Embedding(len(kind), WIDTH) for kind in (COLORS, SHAPES, BACKGROUNDS, MOTIONS)
        )

    def forward(self, tokens: Tensor, mask: Tensor, attributes: Tensor) -> Tensor:
        """Cosine similarities `[N, N]` of captions (rows) and attribute tuples (columns)."""
        hidden = self.text(tokens, mask).last_hidden_state.float()
        text = (hidden * mask[..., None]).sum(dim=1)
        scene = sum(table(column) for table, column in zip(self.attributes, attributes.unbind(dim=1), strict=True))
        return F.normalize(text, dim=-1) @ F.normalize(scene.float(), dim=-1).T


def build_text(out: Path, work: Path, plan: Plan) -> float:
    """Writes `out/tokenizer` and `out/text_encoder`; returns how often a caption finds its own attributes."""
    write_tokenizer(out / "tokenizer", all_texts())
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    matcher = CaptionMatcher(len(tokenizer))

    def batch(generator: torch.Generator, count: int) -> Tensor:
        texts, attributes = distinct_captions(count, generator)
        tokens = tokenizer([prepared(text) for text in texts], padding=True, return_tensors="pt")
        return matcher(tokens.input_ids, tokens.attention_mask, torch.tensor(attributes))

    matcher = fit(matcher, lambda g: contrastive_loss(batch(g, 128)), plan.text, SEED, work / "opensora-text.pt")
    with torch.no_grad():
        found = batch(generator_for(SEED, -1), len(ALL_ATTRIBUTES)).argmax(dim=1)
    matcher.text.half().save_pretrained(out / "text_encoder")
    return (found == torch.arange(len(found))).float().mean().item()


@torch.no_grad()
def encode_captions(folder: Path) -> tuple[Tensor, Tensor]:
    """Features of all captions `[templates, attributes, L, WIDTH]`, and where there are tokens (without WIDTH)."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    tokens = tokenizer(all_texts(), padding=True, max_length=TOKENS, truncation=True, return_tensors="pt")
    features = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    shape = (len(CAPTIONS), len(ALL_ATTRIBUTES))
    return features.unflatten(0, shape), tokens.attention_mask.bool().unflatten(0, shape)


# ---- the denoiser ----


def new_transformer() -> STDiT3:
    """As the release starts: Xavier weights; the frame rate, and what is temporal, come in from zero."""
    network = STDiT3(TRANSFORMER)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    _, _, last, _ = network.fps_embedder.mlp.parameters()
    nn.init.zeros_(last)
    for name, parameter in network.temporal_blocks.named_parameters():
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            nn.init.zeros_(parameter)
    return network


def flow_loss(network: STDiT3, latents: Tensor, text: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """Flow matching at even levels, see `velocity_errors`."""
    count = len(latents)
    level, noise = torch.rand(count, generator=generator), torch.randn(latents.shape, generator=generator)
    told = (torch.full((count,), float(value)) for value in (SIZE.fps, SIZE.height, SIZE.width))
    return velocity_errors(lambda z, time: network(z, time, text, mask, *told), latents, noise, level).mean()


def velocity_errors(network: Callable[[Tensor, Tensor], Tensor], clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """Mean squared error `[B]` of the velocity, data minus noise (flow matching, arXiv 2209.03003, eq. 1).

    Args:
        network: of noisy latents `[B, 4, T, h, w]` and times `[B]`; its further channels are not used.
        level: the share of noise, `[B]`.
    """
    share = level.view(-1, 1, 1, 1, 1)
    velocity = network((1 - share) * clean + share * noise, 1000 * level)[:, : clean.shape[1]]
    return (velocity - (clean - noise)).square().flatten(1).mean(dim=1)


@torch.no_grad()
def encode_pool(vae: OpenSoraVAE, count: int) -> tuple[Tensor, Tensor]:
    """Latents `[N, 4, T, h, w]` of random clips, and their attributes as indices."""
    generator = torch.Generator().manual_seed(SEED)
    parts = [clips(64, generator) for _ in range(0, count, 64)]
    latents = [vae.encode(pixels, torch.zeros_like) for pixels, _ in parts]
    return torch.cat(latents), torch.cat([indices for _, indices in parts])


def build_transformer(out: Path, work: Path, vae: OpenSoraVAE, plan: Plan) -> STDiT3:
    latents, attributes = encode_pool(vae, plan.pool)
    features, tokens = encode_captions(out)
    network = new_transformer()

    def loss(stage: Stage, generator: torch.Generator) -> Tensor:
        picks = torch.randint(len(latents), (stage.batch,), generator=generator)
        templates = torch.randint(len(CAPTIONS), (stage.batch,), generator=generator)
        text, mask = features[templates, attributes[picks]], tokens[templates, attributes[picks]]
        dropped = torch.rand(stage.batch, generator=generator) < CAPTION_DROPOUT
        text = torch.where(dropped[:, None, None], network.y_embedder.y_embedding[: text.shape[1]], text)
        return flow_loss(network, latents[picks, :, : stage.frames], text, mask, generator)

    for seed, stage in enumerate((plan.first_frames, plan.whole), start=SEED):
        unfinished = work / f"opensora-{stage.frames}.pt"
        average = fit(network, partial(loss, stage), stage.schedule, seed, unfinished)
        network.load_state_dict(average.state_dict())
    return network


def build(out: Path, work: Path, image_vae: Path, plan: Plan = DEFAULT) -> dict[str, float]:
    """Writes the folder `out`, all parts of it, and returns its held-out quality.

    Args:
        image_vae: the tiny world's trained image VAE.
    """
    torch.manual_seed(SEED)
    vae = build_vae(image_vae, work, plan)
    quality = {"psnr_db": psnr(vae, clips(32, generator_for(SEED, -2))[0]), "retrieval": build_text(out, work, plan)}
    network = build_transformer(out, work, vae, plan)
    save_part(vae.half(), out / "vae")
    save_part(network.half(), out / "transformer")
    (out / "scheduler").mkdir(exist_ok=True)
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=2) + "\n")
    return {**quality, **judged(out, plan.judged)}


def judged(folder: Path, count: int) -> dict[str, float]:
    """What the judge finds right in videos of `count` held-out prompts, as shares, and their mean vividness."""
    model, prompts = OpenSora.load(str(folder)), test_prompts()[:count]
    videos = sample_videos(model, prompts, SIZE, SAMPLING_STEPS, GUIDANCE, seed=SEED, batch=16)
    return {name: found.mean().item() for name, found in judge_prompts(videos, prompts).items()}
