"""HunyuanVideo's release in its size, with random weights: what `vader.planning.models` takes for its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from torch import Tensor, nn

from vader.models.hunyuan import HunyuanVideo
from vader.planning.drawn import Drawn, RandomText, drawn

TEXT_WIDTH, POOLED_WIDTH = 4096, 768  # of Llama-3-8B and of CLIP ViT-L
SCHEDULER: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 7.0}


class RandomHunyuanVideo(Drawn, HunyuanVideo):
    """`hunyuanvideo-community/HunyuanVideo` in shape; both text encoders are gone before training begins."""

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32) -> RandomHunyuanVideo:
        """See `HunyuanVideo.load`; `checkpoint` is the device to draw the weights on."""
        networks = drawn(checkpoint, dtype, transformer=HunyuanVideoTransformer3DModel, vae=AutoencoderKLHunyuanVideo)
        nothing: Any = nn.Module()
        text: Any = RandomText(TEXT_WIDTH)
        return cls(**networks, text=text, text_encoder_2=nothing, tokenizer_2=None, scheduler=SCHEDULER)

    def _pooled(self, texts: Sequence[str]) -> Tensor:
        return torch.randn(len(texts), POOLED_WIDTH, device=self.device)


RELEASES: dict[str, type[Drawn]] = {"hunyuanvideo-community/HunyuanVideo": RandomHunyuanVideo}
