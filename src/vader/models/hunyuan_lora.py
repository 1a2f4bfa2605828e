"""The layers of HunyuanVideo's transformer under the names of its original code, which ComfyUI's LoRA files have.

Read from diffusers' own converter, which such files must pass. It misreads the queries, keys and values of the blocks
that refine the text, so they have no name here. Once this module is imported, as it is with `vader.models`, such files
are accepted wherever adapters are; trainers also write them with keys that begin as diffusers' do.
"""

from __future__ import annotations

from vader.networks.fused_names import Blocks, FusedNames
from vader.networks.original_names import register_names

_QKV = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
_DOUBLE = {
    "attn.to_out.0": "img_attn_proj",
    "attn.to_add_out": "txt_attn_proj",
    "ff.net.0.proj": "img_mlp.fc1",
    "ff.net.2": "img_mlp.fc2",
    "ff_context.net.0.proj": "txt_mlp.fc1",
    "ff_context.net.2": "txt_mlp.fc2",
    "norm1.linear": "img_mod.linear",
    "norm1_context.linear": "txt_mod.linear",
}
_SINGLE = {"proj_out": "linear2", "norm.linear": "modulation.linear"}
_TOLD = {"timestep_embedder": "time_in", "guidance_embedder": "guidance_in"}
_OUTSIDE = {
    **{f"time_text_embed.{ours}.linear_1": f"{theirs}.mlp.0" for ours, theirs in _TOLD.items()},
    **{f"time_text_embed.{ours}.linear_2": f"{theirs}.mlp.2" for ours, theirs in _TOLD.items()},
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "proj_out": "final_layer.linear",
}
NAMES = FusedNames(
    component="transformer",
    inside={},
    outside=_OUTSIDE,
    kinds={
        "transformer_blocks": Blocks(
            "double_blocks",
            _DOUBLE,
            {
                "img_attn_qkv": {f"attn.{part}": 1 for part in _QKV},
                "txt_attn_qkv": {f"attn.{part}": 1 for part in _ADDED},
            },
        ),
        "single_transformer_blocks": Blocks(
            "single_blocks", _SINGLE, {"linear1": {**{f"attn.{part}": 1 for part in _QKV}, "proj_mlp": 4}}
        ),
    },
    mark="img_attn_qkv",
    bare=True,
)

register_names("hunyuan", NAMES)
