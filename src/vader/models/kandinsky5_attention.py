"""Kandinsky 5's attention with its queries and keys turned in float32.

diffusers' own rounds them to bfloat16 whatever the weights are. In bfloat16 the two are the same; in float32 this one's
gradient is that of its values.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_kandinsky import Kandinsky5Attention
from torch import Tensor, nn


class FloatAttention:
    """A processor of diffusers' `Kandinsky5Attention`."""

    _attention_backend = None  # both are set by diffusers' own switches
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        rotary_emb: Tensor | None = None,
        sparse_params: None = None,
    ) -> Tensor:
        """Attention of `[B, N, D]` to itself, or to `encoder_hidden_states` `[B, L, D]`."""
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        layers = ((attn.to_query, hidden_states), (attn.to_key, seen), (attn.to_value, seen))
        query, key, value = (layer(x).unflatten(-1, (attn.num_heads, -1)) for layer, x in layers)
        query, key = attn.query_norm(query.float()).to(value), attn.key_norm(key.float()).to(value)
        if rotary_emb is not None:
            query, key = _turned(query, rotary_emb), _turned(key, rotary_emb)
        out = dispatch_attention_fn(
            query.to(value),
            key.to(value),
            value,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attn.out_layer(out.flatten(-2))


def _turned(x: Tensor, rotary: Tensor) -> Tensor:
    """`[B, N, heads, D]`, each pair of whose channels is multiplied by a matrix `[..., D / 2, 2, 2]` of float32."""
    return (rotary * x.float().unflatten(-1, (-1, 1, 2))).sum(dim=-1).flatten(-2)


def attend_in_float(network: nn.Module) -> None:
    """Has every attention of a Kandinsky 5 transformer, in place, turn its queries and keys in float32."""
    for layer in network.modules():
        if isinstance(layer, Kandinsky5Attention):
            layer.set_processor(FloatAttention())
