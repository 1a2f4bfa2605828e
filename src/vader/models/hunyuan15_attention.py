"""The transformer of HunyuanVideo 1.5 (diffusers') where no token is padding.

Its class fills texts up and hides the filling by a mask of all tokens by all, of which it makes several in each layer,
and which keeps attention from the fastest kernels. Here each video comes alone, with its own tokens only, and masks
that say so lie on the host: they are dropped, and the device is not asked how many tokens there are.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15AttnProcessor2_0
from torch import Tensor


def drop_masks(transformer: Any) -> None:
    """Has the network, in place, leave out masks that hide nothing; with others it works as before."""
    for block in transformer.transformer_blocks:
        block.attn.set_processor(Unmasked())
    transformer.context_embedder.register_forward_pre_hook(_without_mask)


def all_of(tokens: Tensor) -> Tensor:
    """The mask `[B, L]` that hides none of tokens `[B, L, D]`, on the host."""
    return torch.ones(tokens.shape[:2], dtype=torch.bool)


def _hides_nothing(mask: Tensor) -> bool:
    return mask.is_cpu and bool(mask.all())


def _without_mask(module: Any, args: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    tokens, time, mask = args
    return tokens, time, None if _hides_nothing(mask) else mask


class Unmasked(HunyuanVideo15AttnProcessor2_0):
    """Joint attention of video and text tokens, without a mask that hides nothing."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """See the class: video tokens `[B, N, D]` and text tokens `[B, L, D]`, both attended to by all."""
        if not _hides_nothing(attention_mask):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        query, key, value = _projected(attn, hidden_states, (attn.to_q, attn.to_k, attn.to_v))
        query, key = (
            apply_rotary_emb(norm(tokens), image_rotary_emb, sequence_dim=1)
            for norm, tokens in ((attn.norm_q, query), (attn.norm_k, key))
        )
        layers = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        told_query, told_key, told_value = _projected(attn, encoder_hidden_states, layers)
        pairs = ((query, attn.norm_added_q(told_query)), (key, attn.norm_added_k(told_key)), (value, told_value))
        how = {"backend": self._attention_backend, "parallel_config": self._parallel_config}
        joint = dispatch_attention_fn(*(torch.cat(pair, dim=1) for pair in pairs), **how).flatten(2, 3)
        video, text = joint.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=1)
        return attn.to_out[1](attn.to_out[0](video)), attn.to_add_out(text)


def _projected(attn: Any, tokens: Tensor, layers: tuple[Any, Any, Any]) -> list[Tensor]:
    """Queries, keys and values `[B, L, heads, D]`."""
    return [layer(tokens).unflatten(2, (attn.heads, -1)) for layer in layers]
