"""Pretrains the tiny base model of the Wan family, in diffusers' pipeline folder layout.

One network makes videos of texts and, as TI2V-5B does, of texts and a first frame that it keeps: `vader.pretrain.flow`
tells how. 3 latent frames of 8x8 are 48 tokens. The text encoder is the T5 of the tiny Open-Sora, in UMT5's class.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor, nn
from transformers import AutoTokenizer, T5EncoderModel, UMT5Config, UMT5EncoderModel

from vader.models.wan import TOKENS, Wan
from vader.models.wan_i2v import WanImage
from vader.pretrain import flow, video_vae
from vader.pretrain.flow import CAPTIONS_AND_NONE, SHIFT, Batch, Plan, Pool, judged
from vader.pretrain.loop import Schedule
from vader.pretrain.naming import NamingHead
from vader.pretrain.video_vae import CHANNELS, FRAMES, LATENTS, SIDE, Codec, Stage
from vader.pretrain.wan_vae import new_codec

SEED = 29
HEADS, HEAD, LAYERS, TEXT = 4, 32, 6, 64
SCHEDULER = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT)

DEFAULT = Plan(
    vae=(
        Stage(1, 32, Schedule(steps=2200, lr=2e-3, cooldown=400, warmup=50, ema=0.99)),
        Stage(FRAMES, 8, Schedule(steps=1000, lr=2e-3, cooldown=400, warmup=20, ema=0.99)),
    ),
    denoiser=(
        Stage(1, 64, Schedule(1800, lr=1.5e-3, muon=4e-3, cooldown=200, warmup=100, ema=0.99, autocast=False)),
        Stage(LATENTS, 32, Schedule(2600, lr=1e-3, muon=2.5e-3, cooldown=900, warmup=30, ema=0.99, autocast=False)),
    ),
    pool=6144,
    judged=200,
)

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


def velocity(network: Any, noisy: Tensor, times: Tensor, text: Tensor, given: bool) -> Tensor:
    """What the network makes of latents at `times` `[B, T]`, which it is told by tokens if the first is given."""
    told = times.repeat_interleave(SIDE * SIDE // 4, dim=1) if given else times[:, 0]
    return network(noisy, told, text, return_dict=False)[0]


def build_transformer(out: Path, work: Path, codec: Codec, plan: Plan) -> WanTransformer3DModel:
    pool = Pool.cached(codec, plan.pool, SEED, work / "wan-pool.pt")
    features = encode_texts(out, CAPTIONS_AND_NONE)
    network = new_transformer()
    shorten_text(network)

    def of_batch(noisy: Tensor, times: Tensor, batch: Batch) -> Tensor:
        return velocity(network, noisy, times, features[batch.texts], batch.given)

    named = NamingHead(network.blocks[LAYERS // 2 - 1], HEADS * HEAD, SIDE // 2)
    flow.train(network, of_batch, named, pool, plan.denoiser, SEED, work / "wan")
    return network


# ---- the whole ----


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
    quality = {"psnr_db": video_vae.train(codec, plan.vae, SEED, work / "wan-vae")}
    flow.write(out, codec.vae, build_transformer(out, work, codec, plan), SCHEDULER, MODEL_INDEX)
    return {**quality, **judged(Wan.load(str(out)), WanImage.load(str(out)), plan.judged, SEED)}
