"""HunyuanVideo 1.5's releases in their size, with random weights: what `vader.planning.models` takes for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo15, HunyuanVideo15Transformer3DModel
from torch import Tensor, nn

from vader.models.hunyuan15 import HunyuanVideo15
from vader.models.hunyuan15_i2v import HunyuanVideo15Image
from vader.nouns import Condition, Prompt, VideoSize
from vader.planning.drawn import PROMPT_TOKENS, Drawn, RandomText, drawn

TRANSFORMER: dict[str, Any] = {}  # where it differs from the class's defaults: those are the releases'
TEXT_WIDTH, GLYPH_WIDTH = 3584, 1472  # of Qwen 2.5 VL 7B and of ByT5
PICTURE_TOKENS = 729  # SigLIP's of a picture
SCHEDULER: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0}


class RandomHunyuanVideo15(Drawn, HunyuanVideo15):
    """`hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v` in shape, without the text encoders, which are gone
    before training begins; nothing is quoted."""

    tokens_of_text = PROMPT_TOKENS

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32, back: int = 0) -> RandomHunyuanVideo15:
        """See `HunyuanVideo15.load`; `checkpoint` is the device to draw the weights on."""
        networks = drawn(
            checkpoint,
            dtype,
            transformer=lambda: HunyuanVideo15Transformer3DModel(**TRANSFORMER),
            vae=AutoencoderKLHunyuanVideo15,
        )
        text: Any = RandomText(TEXT_WIDTH, cls.tokens_of_text)
        glyphs: Any = RandomText(GLYPH_WIDTH, 0)
        parts = {"text": text, "glyphs": glyphs, "scheduler": SCHEDULER, "guider": {}, "back": back}
        return cls(**networks, **parts, **cls.seeing())

    @classmethod
    def seeing(cls) -> dict[str, Any]:
        """What it looks at pictures with."""
        return {}


class RandomHunyuanVideo15Image(RandomHunyuanVideo15, HunyuanVideo15Image):  # type: ignore[misc]
    """`hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v` in shape, without the image encoder; its pictures
    are random, so prompts are texts."""

    takes_images = False
    # Pictures' tokens stand among the text's: whether there is a picture the class asks the features' values.
    tokens_of_text = PROMPT_TOKENS + PICTURE_TOKENS

    @classmethod
    def seeing(cls) -> dict[str, Any]:
        """Nothing: the encoder takes part in no step."""
        return {"image_encoder": nn.Module(), "image_config": {}}

    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """See `HunyuanVideo15Image.encode`, of random pictures."""
        pictures = torch.rand(len(prompts), 3, size.height, size.width, device=self.device)
        return HunyuanVideo15Image.encode(self, prompts, size, pictures)

    def _features(self, images: Tensor) -> Tensor:
        return torch.empty(len(images), 0, self.denoiser.config.image_embed_dim, device=images.device)


def _releases(kind: str, cls: type[Drawn]) -> dict[str, type[Drawn]]:
    """By the hub ids that diffusers' documentation has had."""
    names = (f"{size}_{kind}{more}" for size in ("480p", "720p") for more in ("", "_distilled"))
    forms = ("HunyuanVideo-1.5-Diffusers", "HunyuanVideo-1.5")
    return {f"hunyuanvideo-community/{form}-{name}": cls for name in names for form in forms}


RELEASES = _releases("t2v", RandomHunyuanVideo15)
FROM_PICTURES = _releases("i2v", RandomHunyuanVideo15Image)
