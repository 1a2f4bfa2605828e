"""Kandinsky 5 Lite in its size, with random weights: what `vader.planning.models` takes for its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, Kandinsky5Transformer3DModel
from torch import Tensor, nn

from vader.models.kandinsky5 import Kandinsky5
from vader.models.kandinsky5_attention import attend_in_float
from vader.planning.drawn import Drawn, RandomText, drawn

TEXT_WIDTH, POOLED_WIDTH = 3584, 768  # of Qwen2.5-VL-7B and of CLIP ViT-L
SCHEDULER: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0}
LITE: dict[str, Any] = {
    "in_visual_dim": 16,
    "out_visual_dim": 16,
    "model_dim": 1792,
    "ff_dim": 7168,
    "visual_cond": True,
}


class RandomKandinsky5(Drawn, Kandinsky5):
    """`kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers` in shape; both text encoders are gone before training."""

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32) -> RandomKandinsky5:
        """See `Kandinsky5.load`; `checkpoint` is the device to draw the weights on."""
        networks = drawn(
            checkpoint,
            dtype,
            transformer=lambda: Kandinsky5Transformer3DModel(**LITE),
            vae=AutoencoderKLHunyuanVideo,
        )
        attend_in_float(networks["transformer"])
        nothing: Any = nn.Module()
        text: Any = RandomText(TEXT_WIDTH)
        return cls(**networks, text=text, text_encoder_2=nothing, tokenizer_2=None, scheduler=SCHEDULER)

    def _pooled(self, texts: Sequence[str]) -> Tensor:
        return torch.randn(len(texts), POOLED_WIDTH, device=self.device)

    def _lengths(self, mask: Tensor) -> Tensor:
        return torch.full(mask.shape[:1], mask.shape[1])


RELEASES: dict[str, type[Drawn]] = dict.fromkeys(
    (f"kandinskylab/Kandinsky-5.0-T2V-Lite-{kind}-5s-Diffusers" for kind in ("sft", "pretrain")), RandomKandinsky5
)
