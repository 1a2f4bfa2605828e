"""Pretrains the tiny base model of the LTX-Video family, in diffusers' pipeline folder layout, as of LTX-Video 0.9.0.

One network makes videos of texts, and of texts and a first frame that it keeps: `vader.pretrain.flow` tells how. Each
of the 3 x 8 x 8 latents is a token. The text encoder is the T5 of the tiny Open-Sora, which attends to what texts are
filled up with, as the release's does.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXVideoTransformer3DModel
from torch import Tensor, nn
from transformers import AutoTokenizer, T5EncoderModel

from vader.models.ltx import FIRST, LTX, embedder
from vader.models.ltx_i2v import LTXImage
from vader.pretrain import flow, video_vae
from vader.pretrain.flow import CAPTIONS_AND_NONE, SHIFT, SIZE, Batch, Plan, Pool, judged
from vader.pretrain.loop import Schedule
from vader.pretrain.ltx_vae import new_codec
from vader.pretrain.naming import NamingHead
from vader.pretrain.video_vae import CHANNELS, FRAMES, LATENTS, SIDE, Codec, Stage

SEED = 31
HEADS, HEAD, LAYERS, TEXT = 4, 32, 4, 64
SCHEDULER = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
MODEL_INDEX = {
    "_class_name": "LTXPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "LTXVideoTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLLTXVideo"],
}

DEFAULT = Plan(
    vae=(
        Stage(1, 32, Schedule(steps=1800, lr=7e-4, cooldown=400, warmup=50, ema=0.99)),
        Stage(FRAMES, 8, Schedule(steps=900, lr=7e-4, cooldown=350, warmup=20, ema=0.99)),
    ),
    denoiser=(
        Stage(1, 32, Schedule(1600, lr=1.5e-3, muon=4e-3, cooldown=200, warmup=100, ema=0.99, autocast=False)),
        Stage(LATENTS, 16, Schedule(1800, lr=1e-3, muon=2.5e-3, cooldown=700, warmup=30, ema=0.99, autocast=False)),
    ),
    pool=6144,
    judged=200,
)


def write_text(out: Path, source: Path) -> None:
    """`out/tokenizer` and `out/text_encoder`: those of the tiny Open-Sora."""
    for part in ("tokenizer", "text_encoder"):
        shutil.copytree(source / part, out / part, dirs_exist_ok=True)


@torch.no_grad()
def encode_texts(folder: Path, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Features `[N, L, D]`, zero beyond each text, and where there are tokens `[N, L]`."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    tokens = tokenizer(texts, padding="max_length", max_length=FIRST.tokens, return_tensors="pt")
    longest = int(tokens.attention_mask.sum(dim=1).max())
    mask = tokens.attention_mask[:, :longest]
    features = [encoder(ids).last_hidden_state[:, :longest] for ids in tokens.input_ids.split(64)]
    return torch.cat(features) * mask[..., None], mask.bool()


def new_transformer() -> LTXVideoTransformer3DModel:
    """Xavier weights, and a silent head."""
    network = LTXVideoTransformer3DModel(
        in_channels=CHANNELS, out_channels=CHANNELS, num_attention_heads=HEADS, attention_head_dim=HEAD,
        cross_attention_dim=HEADS * HEAD, num_layers=LAYERS, caption_channels=TEXT,
    )  # fmt: skip
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.zeros_(network.proj_out.weight)
    return network


def build_transformer(out: Path, work: Path, codec: Codec, plan: Plan) -> LTXVideoTransformer3DModel:
    pool = Pool.cached(codec, plan.pool, SEED, work / "ltx-pool.pt")
    features, there = encode_texts(out, CAPTIONS_AND_NONE)
    network = new_transformer()
    model = LTX(network, codec.vae, embedder(str(out), torch.float32, FIRST), SCHEDULER.config)

    def velocity(noisy: Tensor, times: Tensor, batch: Batch) -> Tensor:
        fps = torch.full((len(noisy), 1), float(SIZE.fps))
        inputs = {"text": features[batch.texts], "mask": there[batch.texts], "fps": fps}
        return model.velocity(noisy, times.repeat_interleave(SIDE * SIDE, dim=1), inputs)

    named = NamingHead(network.transformer_blocks[LAYERS // 2 - 1], HEADS * HEAD, SIDE)
    flow.train(network, velocity, named, pool, plan.denoiser, SEED, work / "ltx")
    return network


def build(out: Path, work: Path, opensora: Path, plan: Plan = DEFAULT) -> dict[str, float]:
    """Writes the pipeline folder `out`, and returns its held-out quality.

    Args:
        opensora: the tiny Open-Sora, whose text encoder and tokenizer it takes over.

    Raises:
        UserError: see `flow.begin`.
    """
    flow.begin(out, SEED)
    write_text(out, opensora)
    codec = new_codec()
    quality = {"psnr_db": video_vae.train(codec, plan.vae, SEED, work / "ltx-vae")}
    flow.write(out, codec.vae, build_transformer(out, work, codec, plan), SCHEDULER, MODEL_INDEX)
    return {**quality, **judged(LTX.load(str(out)), LTXImage.load(str(out)), plan.judged, SEED)}
