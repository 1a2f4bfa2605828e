"""The layers of LTX-Video's transformer under the names of its original code, which ComfyUI's LoRA files have.

In blocks they are diffusers' own. Of the layers outside, those that the two call differently are left out: diffusers'
converter would not find them. Files that hold nothing but these names are accepted once this module is imported, as it
is with `vader.models`, wherever adapters are.
"""

from __future__ import annotations

from vader.networks.original_names import OriginalNames, register_names

_ATTENTION = [
    f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")
]
NAMES = OriginalNames(
    component="transformer",
    inside={layer: layer for layer in [*_ATTENTION, "ff.net.0.proj", "ff.net.2"]},
    outside={layer: layer for layer in ("caption_projection.linear_1", "caption_projection.linear_2", "proj_out")},
    blocks="transformer_blocks",
)

for family in ("ltx", "ltx-i2v"):
    register_names(family, NAMES)
