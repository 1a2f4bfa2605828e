"""V-JEPA 2 (Assran et al., 2025, arXiv 2506.09985) through transformers' `VJEPA2Model`, by its training formula.

The library's own forward lets the context see the whole clip and masks it afterwards, so that the targets
leak; here the context is masked before it is encoded, as in training. Its folder holds one encoder, which
serves for context and target; its predictor has one mask token for all masks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vader.errors import UserError
from vader.files.hub import load_pretrained, resolve
from vader.rewards.vjepa.masks import Masks
from vader.rewards.vjepa.networks import Jepa, take_tokens

if TYPE_CHECKING:
    from transformers import VJEPA2Model


class VJepa2(Jepa):
    """See `Jepa`. Frames must be square and of the size that the model's config says: its positions depend on it."""

    def __init__(self, model: VJEPA2Model) -> None:
        super().__init__()
        config: Any = model.config
        self.tubelet, self.patch, self.size = config.tubelet_size, config.patch_size, config.crop_size
        self.encoder = model.encoder
        self.predictor = model.predictor

    def targets(self, clips: Tensor) -> Tensor:
        return self.encoder(clips.transpose(1, 2)).last_hidden_state

    def predict(self, clips: Tensor, masks: Masks, mask_set: int) -> Tensor:
        tokens = self.encoder.embeddings(clips.transpose(1, 2))  # [B, N, D]
        context, target = (indices.expand(len(tokens), -1) for indices in masks)
        seen = take_tokens(tokens, context)
        for layer in self.encoder.layer:
            seen = layer(seen, context)[0]
        seen = self.encoder.layernorm(seen)
        # The predictor gathers the context from a clip's full length, so that is what it gets.
        full = torch.zeros_like(tokens).scatter(1, context[..., None].expand_as(seen), seen)
        return self.predictor(full, [context], [target]).last_hidden_state


def load_vjepa2(source: str, size: int | None) -> VJepa2:
    """From a folder or hub id, for square frames of `size` pixels (None: the config's own size).

    Raises:
        UserError: there is no such model, or the installed transformers has none.
    """
    try:
        from transformers import VJEPA2Model
    except ImportError as error:
        raise UserError("V-JEPA 2 needs transformers 4.53 or newer: pip install -U transformers") from error
    options: dict[str, Any] = {} if size is None else {"crop_size": size}
    model = load_pretrained(VJEPA2Model, resolve(source, "vjepa2"), "V-JEPA 2", **options)
    return VJepa2(model)
