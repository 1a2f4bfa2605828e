"""Small random Open-Sora 1.2 checkpoints in the exact release formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import T5Config, T5EncoderModel

from vader.models.opensora.parts import save_part
from vader.models.opensora.stdit3 import STDiT3, STDiT3Config
from vader.models.opensora.vae import OpenSoraVAE, VAEConfig
from vader.pretrain import opensora

TRANSFORMER = {"depth": 2, "hidden_size": 32, "num_heads": 4, "caption_channels": 16, "model_max_length": 40}
VAE = VAEConfig(
    block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
    filters=8, num_res_blocks=1, channel_multipliers=(1, 1, 1, 2), num_groups=4,
)  # fmt: skip
T5 = {
    "vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip


def make_tiny_opensora(folder: Path, seed: int = 0) -> Path:
    """One folder with all parts: 32x32 pixels become 16x16 latents. No weight is zero, so every layer takes part."""
    write_transformer(folder / "transformer", seed)
    write_vae(folder / "vae", seed)
    write_text_encoder(folder / "text_encoder", seed)
    write_tokenizer(folder / "tokenizer")
    return folder


def make_release(folder: Path, seed: int = 0) -> dict[str, str]:
    """The three folders of the release by the words of `OpenSora.load`: text encoder and tokenizer share one."""
    write_transformer(folder / "OpenSora-STDiT-v3", seed)
    write_vae(folder / "OpenSora-VAE-v1.2", seed)
    write_text_encoder(folder / "t5", seed)
    write_tokenizer(folder / "t5")
    names = {"checkpoint": "OpenSora-STDiT-v3", "vae": "OpenSora-VAE-v1.2", "text_encoder": "t5"}
    return {word: str(folder / name) for word, name in names.items()}


def write_transformer(folder: Path, seed: int) -> None:
    save_part(_seeded(lambda: STDiT3(STDiT3Config(**TRANSFORMER)), seed), folder)


def write_vae(folder: Path, seed: int) -> None:
    save_part(_seeded(lambda: OpenSoraVAE(VAE), seed), folder)


def write_text_encoder(folder: Path, seed: int) -> None:
    _seeded(lambda: T5EncoderModel(T5Config(**T5)), seed).save_pretrained(folder)


def write_tokenizer(folder: Path) -> None:
    letters = [f"{letter} a {letter}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789.:,"]
    opensora.write_tokenizer(folder, ["a red ball aesthetic score: 6.5.", *letters], size=60)


@torch.no_grad()
def _seeded(build: Any, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build()
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return network
