"""The layers of Wan's transformers under the names of its original code, which ComfyUI's LoRA files have.

Read from diffusers' own converter, which such files must pass. Once this module is imported, as it is with
`vader.models`, they are accepted wherever adapters are.
"""

from __future__ import annotations

from vader.networks.original_names import EXPERTS, OriginalNames, register_names

_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}
_INSIDE = {
    **{f"attn1.{ours}": f"self_attn.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"attn2.{ours}": f"cross_attn.{theirs}" for ours, theirs in _ATTENTION.items()},
    "attn2.add_k_proj": "cross_attn.k_img",
    "attn2.add_v_proj": "cross_attn.v_img",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
_OUTSIDE = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "proj_out": "head.head",
}
NAMES = OriginalNames(
    component="transformer",
    inside=_INSIDE,
    outside=_OUTSIDE,
    together=("add_k_proj", "add_v_proj"),
    experts=dict(zip(("transformer", "transformer_2"), EXPERTS, strict=True)),
)

for family in ("wan", "wan-i2v"):
    register_names(family, NAMES)
