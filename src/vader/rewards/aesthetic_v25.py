"""Aesthetic Predictor V2.5: how pleasing people find an image, about 1 to 10, blind to the prompt.

A stack of linear layers on the pooled feature of SigLIP's image tower (arXiv 2303.15343), made for illustrations as
well as photographs; 5.5 and more is good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, SiglipConfig, SiglipVisionModel

from vader.errors import UserError
from vader.files.hub import find_file, from_pretrained, load_pretrained, resolve, together
from vader.files.weights import load_tensors
from vader.nouns import Prompt
from vader.rewards.base import FrameReward
from vader.rewards.heads import linear_stack
from vader.rewards.preprocess import normalize, resize

CHECKPOINT = "google/siglip-so400m-patch14-384"
NAMES = ("layers.scoring_head.", "scoring_head.")  # of the head's layers: in a whole model, and alone
MEAN = STD = (0.5, 0.5, 0.5)


class AestheticV25(FrameReward):
    """How pleasing an image looks (Aesthetic Predictor V2.5 on SigLIP), about 1 to 10."""

    sensible_range = (1.0, 10.0)

    def __init__(self, head: str, checkpoint: str = CHECKPOINT) -> None:
        """
        Args:
            head: the predictor's file, `aesthetic_predictor_v2_5.pth` of its author's repository.
            checkpoint: the SigLIP, a folder or hub id.

        Raises:
            UserError: weights are missing, or head and SigLIP don't fit together.
        """
        super().__init__()
        source, path = together(
            lambda: resolve(checkpoint, "siglip"), lambda: find_file(head, "aesthetic_v25.safetensors")
        )
        self.model: Any = load_siglip(source)
        tensors = load_tensors(path)
        for name in NAMES:
            tensors = {key.replace(name, "layers."): tensor for key, tensor in tensors.items()}
        self.head = linear_stack(tensors, head)
        if self.head[0].in_features != self.model.config.hidden_size:
            raise UserError(
                f"the head {head} takes {self.head[0].in_features} features and SigLIP {checkpoint} gives "
                f"{self.model.config.hidden_size}: use the SigLIP the head was trained on"
            )

    def score_frames(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        size = self.model.config.image_size
        pixels = normalize(resize(images, size, size, "bicubic"), MEAN, STD)
        pooled = self.model(pixel_values=pixels.to(self.model.dtype)).pooler_output.to(images.dtype)
        return self.head(F.normalize(pooled, dim=-1)).squeeze(-1)

    def to_precision(self, dtype: torch.dtype) -> AestheticV25:
        self.model.to(dtype)
        return self


class _ImageModel(SiglipVisionModel):
    """Reads a whole SigLIP's folder without a word about the text tower it leaves there."""

    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^logit_scale$", r"^logit_bias$"]  # noqa: RUF012


def load_siglip(source: str) -> Any:
    """SigLIP's image tower, from a folder of it alone or of both towers."""
    config = from_pretrained(AutoConfig, source, "SigLIP", trust_remote_code=False)
    if isinstance(config, SiglipConfig):
        config = config.vision_config
    return load_pretrained(_ImageModel, source, "SigLIP", config=config)
