"""Small random HunyuanVideo 1.5 checkpoints, in the release's own layout, by diffusers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from opensora_factories import write_tokenizer

TEMPLATE = "say: {{ messages[1]['content'] }}"  # the release's is longer than a tiny tokenizer's texts may be
SKIPPED, TOKENS, GLYPH_TOKENS = 3, 12, 30
SMALL = {"intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


@torch.no_grad()
def make_transformer(seed: int, task: str = "t2v") -> HunyuanVideo15Transformer3DModel:
    """Louder than fresh weights are, so that text, pictures and adapters are heard."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = HunyuanVideo15Transformer3DModel(
            in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
            num_refiner_layers=1, text_embed_dim=16, text_embed_2_dim=8, image_embed_dim=8, rope_axes_dim=(2, 4, 4),
            target_size=32, task_type=task,
        )  # fmt: skip
    for parameter in network.parameters():
        parameter.mul_(1.5)
    return network


def make_vae() -> AutoencoderKLHunyuanVideo15:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoencoderKLHunyuanVideo15(block_out_channels=(4, 8, 8, 16, 16), latent_channels=4, layers_per_block=1)


def make_tiny_hunyuan15(folder: Path, task: str = "t2v") -> Path:
    """A `HunyuanVideo15Pipeline` folder, or one of image to video."""
    write_tokenizer(folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", padding_side="right")
    tokenizer.chat_template = TEMPLATE
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        qwen = Qwen2_5_VLTextConfig(
            vocab_size=64, hidden_size=16, num_key_value_heads=2, pad_token_id=0, rope_parameters=rope, **SMALL
        )
        byt5 = T5Config(vocab_size=384, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        parts: dict[str, Any] = {
            "text_encoder": Qwen2_5_VLTextModel(qwen),
            "text_encoder_2": T5EncoderModel(byt5),
            **(_seeing() if task == "i2v" else {}),
        }
    cls = HunyuanVideo15ImageToVideoPipeline if task == "i2v" else HunyuanVideo15Pipeline
    cls(
        **parts,
        tokenizer=tokenizer,
        tokenizer_2=ByT5Tokenizer(),
        vae=make_vae(),
        transformer=make_transformer(0, task),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    ).save_pretrained(folder)
    return folder


def _seeing() -> dict[str, Any]:
    size = {"height": 16, "width": 16}
    config = SiglipVisionConfig(hidden_size=8, image_size=16, patch_size=8, **SMALL)
    return {"image_encoder": SiglipVisionModel(config), "feature_extractor": SiglipImageProcessor(size=size)}
