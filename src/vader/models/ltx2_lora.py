"""The layers of LTX-2's transformer under the names of its original code, which ComfyUI's LoRA files have.

Read from diffusers' own converter, which such files must pass. In blocks they are diffusers' own names. Files that hold
nothing but these names are accepted once this module is imported, as it is with `vader.models`, wherever adapters are.
"""

from __future__ import annotations

from vader.networks.original_names import OriginalNames, register_names

_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "to_gate_logits")
_ATTENTION = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
_INSIDE = [
    *(f"{attention}.{layer}" for attention in _ATTENTION for layer in _PROJECTIONS),
    *(f"{feed_forward}.{layer}" for feed_forward in ("ff", "audio_ff") for layer in ("net.0.proj", "net.2")),
]
_MODULATIONS = {
    "time_embed": "adaln_single",
    "audio_time_embed": "audio_adaln_single",
    "prompt_adaln": "prompt_adaln_single",
    "audio_prompt_adaln": "audio_prompt_adaln_single",
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
}
_INSIDE_MODULATIONS = ("linear", "emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2")
_OUTSIDE = {
    "proj_in": "patchify_proj",
    "audio_proj_in": "audio_patchify_proj",
    **{
        f"{of}{layer}": f"{of}{layer}"
        for of in ("", "audio_")
        for layer in ("proj_out", "caption_projection.linear_1", "caption_projection.linear_2")
    },
    **{f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in _MODULATIONS.items() for part in _INSIDE_MODULATIONS},
}
NAMES = OriginalNames(
    component="transformer",
    inside={layer: layer for layer in _INSIDE},
    outside=_OUTSIDE,
    blocks="transformer_blocks",
)

for family in ("ltx2", "ltx2-i2v"):
    register_names(family, NAMES)
