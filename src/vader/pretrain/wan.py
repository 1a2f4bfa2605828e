"""Pretrains the tiny base model of the Wan family, in diffusers' pipeline folder layout.

One network makes videos of texts and, as TI2V-5B does, of texts and a first frame that it keeps. Clips are 9 frames of
32x32 pixels: 3 latent frames of 4x4, 12 tokens. The text encoder is the T5 of the tiny Open-Sora, in UMT5's class. The
denoiser learns by flow matching, first from first latent frames alone, then from whole clips; in some batches of these
the first latent is given. Nothing tells how vivid a scene is: that is what alignment will change.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor, nn
from transformers import AutoTokenizer, T5EncoderModel, UMT5Config, UMT5EncoderModel

from vader.models import wan_vae
from vader.models.wan import TOKENS, Wan
from vader.models.wan_i2v import WanImage
from vader.nouns import Prompt, VideoSize
from vader.pretrain.loop import Schedule, fit, generator_for
from vader.pretrain.wan_vae import CHANNELS, FRAMES, build_vae, draw_clips, psnr
from vader.sampling.videos import sample_videos
from vader.tinyworld.judge import judge_prompts
from vader.tinyworld.pictures import test_pictures
from vader.tinyworld.scenes import ALL_ATTRIBUTES, CAPTIONS, caption
from vader.tinyworld.split import test_prompts

logger = logging.getLogger(__name__)

SEED = 29
SIZE = VideoSize(frames=FRAMES, height=32, width=32, fps=8)
HEADS, HEAD, LAYERS, TEXT = 5, 32, 4, 64
SHIFT = 2.0  # of the noise levels, in training and sampling
CAPTION_DROPOUT = 0.1
GIVEN = 0.25  # share of the batches whose first latent is given
SAMPLING_STEPS, GUIDANCE = 10, 4.0  # of the videos that are judged, as in the recipe `tiny-wan`

MODEL_INDEX = {
    "_class_name": "WanPipeline",
    "boundary_ratio": None,
    "expand_timesteps": True,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}


class Stage(NamedTuple):
    """A part of a network's training: how many frames of each clip it sees, of how many clips at once."""

    frames: int
    batch: int
    schedule: Schedule


@dataclass(frozen=True)
class Plan:
    """How the VAE is trained, and the denoiser, whose frames are latent ones, on how many clips."""

    vae: tuple[Stage, ...]
    denoiser: tuple[Stage, ...]
    pool: int
    judged: int


DEFAULT = Plan(
    vae=(
        Stage(1, 16, Schedule(steps=1500, lr=2e-3, cooldown=300, warmup=20, ema=0.99)),
        Stage(FRAMES, 8, Schedule(steps=1200, lr=2e-3, cooldown=400, warmup=20, ema=0.99)),
    ),
    denoiser=(
        Stage(1, 64, Schedule(steps=400, lr=2e-3, cooldown=80, warmup=30, ema=0.99, autocast=False)),
        Stage(3, 32, Schedule(steps=3000, lr=1.5e-3, cooldown=800, warmup=30, ema=0.995, autocast=False)),
    ),
    pool=6144,
    judged=200,
)


# ---- text ----


def as_umt5(encoder: T5EncoderModel) -> UMT5EncoderModel:
    """The same encoder in UMT5's class, where each layer has its own table of distances: copies of T5's one."""
    said, weights = encoder.config, encoder.state_dict()
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj")
    config = UMT5Config(**{name: getattr(said, name) for name in names}, dropout_rate=0.0)
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    copies = {bias.format(layer): weights[bias.format(0)] for layer in range(said.num_layers)}
    network = UMT5EncoderModel(config)
    network.load_state_dict(weights | copies)
    return network.eval()


def write_text(out: Path, source: Path) -> None:
    """`out/tokenizer` and `out/text_encoder` from those of the tiny Open-Sora."""
    shutil.copytree(source / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    encoder = T5EncoderModel.from_pretrained(source / "text_encoder", dtype=torch.float32)
    as_umt5(encoder).half().save_pretrained(out / "text_encoder")


@torch.no_grad()
def encode_texts(folder: Path, texts: list[str]) -> Tensor:
    """Features `[N, L, D]`, zero beyond each text, with at least one such place."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    features = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return nn.functional.pad(features * tokens.attention_mask[..., None], (0, 0, 0, 1))


class ShortText(WanAttnProcessor):
    """Attention to texts whose last place, a zero, stands for all up to the full number of tokens: the same, sooner."""

    def __call__(self, attn: WanAttention, seen: Tensor, text: Tensor, *_: Any) -> Tensor:
        weight = text.new_zeros(1, 1, 1, text.shape[1])
        weight[..., -1] = math.log(TOKENS - text.shape[1] + 1)
        return super().__call__(attn, seen, text, weight)


def shorten_text(network: WanTransformer3DModel) -> None:
    """Has the network, in place, take texts for `ShortText`."""
    for block in network.blocks:
        block.attn2.set_processor(ShortText())


# ---- the denoiser ----


def new_transformer() -> WanTransformer3DModel:
    """As the release starts: Xavier weights, a silent head."""
    network = WanTransformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=HEAD, num_layers=LAYERS, ffn_dim=4 * HEADS * HEAD,
        in_channels=CHANNELS, out_channels=CHANNELS, text_dim=TEXT, freq_dim=128, rope_max_seq_len=64,
    )  # fmt: skip
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(network.patch_embedding.weight.flatten(1))
    nn.init.zeros_(network.proj_out.weight)
    return network


def shifted(level: Tensor, shift: float = SHIFT) -> Tensor:
    """Shares of noise, shifted as the scheduler shifts them."""
    return shift * level / (1 + (shift - 1) * level)


def flow_loss(network: Any, clean: Tensor, text: Tensor, given: bool, generator: torch.Generator) -> Tensor:
    """Mean squared error of the velocity, noise minus data (flow matching, arXiv 2210.02747).

    Args:
        clean: latents `[B, C, T, h, w]`.
        given: whether the first latent is not noisy, and told so: then it does not count.
    """
    level = shifted(torch.rand(len(clean), generator=generator)).view(-1, 1, 1, 1, 1)
    noise = torch.randn(clean.shape, generator=generator)
    noisy, first = torch.lerp(clean, noise, level), int(given)
    time = 1000 * level.flatten()
    if given:
        noisy = torch.cat([clean[:, :, :1], noisy[:, :, 1:]], dim=2)
        time = token_times(time, clean)
    velocity = network(noisy, time, text, return_dict=False)[0]
    return (velocity - (noise - clean))[:, :, first:].square().mean()


def token_times(time: Tensor, latents: Tensor) -> Tensor:
    """Times `[B, tokens]` of videos at `time` `[B]` whose first latent is given, and so at 0."""
    _, _, frames, height, width = latents.shape
    times = time.view(-1, 1, 1).repeat(1, frames, height * width // 4)
    times[:, 0] = 0
    return times.flatten(1)


@torch.no_grad()
def encode_pool(vae: AutoencoderKLWan, count: int) -> tuple[Tensor, Tensor]:
    """Latents `[N, C, T, h, w]` of random clips, and their attributes as indices."""
    generator = torch.Generator().manual_seed(SEED)
    parts = [draw_clips(64, generator) for _ in range(0, count, 64)]
    latents = [wan_vae.encode(vae, pixels) for pixels, _ in parts]
    indices = [ALL_ATTRIBUTES.index(item) for _, scenes in parts for item in scenes.attributes()]
    return torch.cat(latents), torch.tensor(indices)


def _cached_pool(vae: AutoencoderKLWan, count: int, path: Path) -> tuple[Tensor, Tensor]:
    if not path.exists():
        torch.save(encode_pool(vae, count), path)
    return torch.load(path, weights_only=True)


def build_transformer(out: Path, work: Path, vae: AutoencoderKLWan, plan: Plan) -> WanTransformer3DModel:
    latents, attributes = _cached_pool(vae, plan.pool, work / "wan-pool.pt")
    texts = [caption(item, template) for item in ALL_ATTRIBUTES for template in range(len(CAPTIONS))]
    *features, none = encode_texts(out, [*texts, ""])
    captions = torch.stack(features).unflatten(0, (len(ALL_ATTRIBUTES), len(CAPTIONS)))
    network = new_transformer()
    shorten_text(network)

    def loss(stage: Stage, generator: torch.Generator) -> Tensor:
        picks = torch.randint(len(latents), (stage.batch,), generator=generator)
        templates = torch.randint(len(CAPTIONS), (stage.batch,), generator=generator)
        dropped, chance = torch.rand(stage.batch, generator=generator), torch.rand((), generator=generator)
        text = torch.where(dropped[:, None, None] < CAPTION_DROPOUT, none, captions[attributes[picks], templates])
        given = stage.frames > 1 and chance.item() < GIVEN
        return flow_loss(network, latents[picks, :, : stage.frames], text, given, generator)

    for seed, stage in enumerate(plan.denoiser, start=SEED):
        unfinished = work / f"wan-{stage.frames}.pt"
        average = fit(network, partial(loss, stage), stage.schedule, seed, unfinished)
        network.load_state_dict(average.state_dict())
    return network


# ---- the whole ----


def build(out: Path, work: Path, opensora: Path, plan: Plan = DEFAULT) -> dict[str, float]:
    """Writes the pipeline folder `out`, and returns its held-out quality.

    Args:
        opensora: the tiny Open-Sora, whose text encoder and tokenizer it takes over.
    """
    torch.manual_seed(SEED)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out, opensora)
    vae = build_vae(work, SEED, {stage.frames: (stage.batch, stage.schedule) for stage in plan.vae})
    quality = {"psnr_db": psnr(vae, draw_clips(64, generator_for(SEED, -2))[0])}
    logger.info("VAE: %.2f dB", quality["psnr_db"])
    write(out, vae, build_transformer(out, work, vae, plan))
    return {**quality, **judged(out, plan.judged)}


def write(out: Path, vae: AutoencoderKLWan, transformer: WanTransformer3DModel) -> None:
    """The rest of the folder that diffusers' `WanPipeline` loads, in half precision."""
    vae.half().save_pretrained(out / "vae")
    transformer.half().save_pretrained(out / "transformer")
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT)
    scheduler.save_pretrained(out / "scheduler")
    (out / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n")


def judged(folder: Path, count: int) -> dict[str, float]:
    """What the judge finds right in videos of `count` held-out prompts, as shares, and their mean vividness; with
    `_pictures`, of held-out prompts that start from pictures."""
    source, prompts = str(folder), [Prompt(text) for text in test_prompts()[:count]]
    found = _judged(Wan.load(source), prompts)
    pictures = _judged(WanImage.load(source), test_pictures()[:count])
    return found | {f"{name}_pictures": value for name, value in pictures.items()}


def _judged(model: Wan, prompts: list[Prompt]) -> dict[str, float]:
    videos = sample_videos(model, prompts, SIZE, SAMPLING_STEPS, GUIDANCE, seed=SEED, batch=16)
    return {name: found.mean().item() for name, found in judge_prompts(videos, prompts).items()}
