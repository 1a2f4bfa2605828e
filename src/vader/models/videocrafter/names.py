"""What VideoCrafter2's release calls a weight, and what diffusers calls the same one.

A name map is a list of pairs (release prefix, diffusers prefix); the first that fits a name decides, in either
direction. The release numbers blocks through; diffusers nests them by level.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Pairs = list[tuple[str, str]]

# Convolutions one pixel or frame wide that diffusers holds as linear layers: how many axes of length 1 they end in.
POINTWISE = {
    "init_attn.0.proj_in.weight": 1,
    "init_attn.0.proj_out.weight": 1,
    **{f"encoder.mid.attn_1.{part}.weight": 2 for part in ("q", "k", "v", "proj_out")},
    **{f"decoder.mid.attn_1.{part}.weight": 2 for part in ("q", "k", "v", "proj_out")},
}


def to_diffusers(name: str, pairs: Pairs) -> str:
    """Raises `KeyError` for a name that no pair fits."""
    return _renamed(name, pairs)


def to_release(name: str, pairs: Pairs) -> str:
    """The inverse of `to_diffusers`."""
    return _renamed(name, ((ours, release) for release, ours in pairs))


def _renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise KeyError(name)


# ---- the UNet: release's UNetModel, diffusers' UNet3DConditionModel ----


def unet_names(attention: Sequence[bool], layers: int) -> Pairs:
    """The map of a UNet.

    Args:
        attention: of each level, from the full resolution down, whether it has transformers.
        layers: residual blocks of a level on the way down; on the way up there is one more.
    """
    levels = len(attention)
    pairs = [
        ("time_embed.0.", "time_embedding.linear_1."),
        ("time_embed.2.", "time_embedding.linear_2."),
        ("fps_embedding.0.", "time_embedding.fps_embedding.linear_1."),
        ("fps_embedding.2.", "time_embedding.fps_embedding.linear_2."),
        ("input_blocks.0.0.", "conv_in."),
        ("init_attn.0.", "transformer_in."),
        ("out.0.", "conv_norm_out."),
        ("out.2.", "conv_out."),
    ]
    block = 1
    for level, attends in enumerate(attention):
        for layer in range(layers):
            pairs += _unit(f"input_blocks.{block}", f"down_blocks.{level}", layer, attends)
            block += 1
        if level < levels - 1:
            pairs.append((f"input_blocks.{block}.0.op.", f"down_blocks.{level}.downsamplers.0.conv."))
            block += 1
    pairs += _unit("middle_block", "mid_block", 0, True) + _residual("middle_block.3", "mid_block", 1)
    block = 0
    for level, attends in enumerate(reversed(attention)):
        for layer in range(layers + 1):
            pairs += _unit(f"output_blocks.{block}", f"up_blocks.{level}", layer, attends)
            block += 1
        if level < levels - 1:
            last = f"output_blocks.{block - 1}.{3 if attends else 1}"
            pairs.append((f"{last}.conv.", f"up_blocks.{level}.upsamplers.0.conv."))
    return pairs


def _unit(release: str, ours: str, layer: int, attends: bool) -> Pairs:
    """A residual block, and where the level attends a spatial and a temporal transformer."""
    transformers = [
        (f"{release}.1.", f"{ours}.attentions.{layer}."),
        (f"{release}.2.", f"{ours}.temp_attentions.{layer}."),
    ]
    return _residual(f"{release}.0", ours, layer) + (transformers if attends else [])


def _residual(release: str, ours: str, layer: int) -> Pairs:
    """A residual block, with the temporal convolutions inside it (the release's spelling) beside it."""
    resnet = f"{ours}.resnets.{layer}"
    return [
        (f"{release}.in_layers.0.", f"{resnet}.norm1."),
        (f"{release}.in_layers.2.", f"{resnet}.conv1."),
        (f"{release}.emb_layers.1.", f"{resnet}.time_emb_proj."),
        (f"{release}.out_layers.0.", f"{resnet}.norm2."),
        (f"{release}.out_layers.3.", f"{resnet}.conv2."),
        (f"{release}.skip_connection.", f"{resnet}.conv_shortcut."),
        (f"{release}.temopral_conv.", f"{ours}.temp_convs.{layer}."),
    ]


# ---- the VAE: latent diffusion's AutoencoderKL, diffusers' AutoencoderKL ----


def vae_names(levels: int, layers: int) -> Pairs:
    """The map of a VAE of so many levels and, in the encoder, residual blocks a level; the decoder has one more."""
    pairs = [(name, name) for name in ("quant_conv.", "post_quant_conv.")]
    for half in ("encoder", "decoder"):
        pairs += [(f"{half}.{name}.", f"{half}.{name}.") for name in ("conv_in", "conv_out")]
        pairs += [(f"{half}.norm_out.", f"{half}.conv_norm_out."), *_vae_middle(f"{half}.mid", f"{half}.mid_block")]
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{levels - 1 - level}"  # the decoder starts deep
        for layer in range(layers):
            pairs += _vae_residual(f"encoder.down.{level}.block.{layer}", f"{down}.resnets.{layer}")
        for layer in range(layers + 1):
            pairs += _vae_residual(f"decoder.up.{level}.block.{layer}", f"{up}.resnets.{layer}")
        pairs.append((f"encoder.down.{level}.downsample.conv.", f"{down}.downsamplers.0.conv."))
        pairs.append((f"decoder.up.{level}.upsample.conv.", f"{up}.upsamplers.0.conv."))
    return pairs


def _vae_middle(release: str, ours: str) -> Pairs:
    attention = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    return [
        *((f"{release}.attn_1.{old}.", f"{ours}.attentions.0.{new}.") for old, new in attention.items()),
        (f"{release}.block_1.", f"{ours}.resnets.0."),
        (f"{release}.block_2.", f"{ours}.resnets.1."),
    ]


def _vae_residual(release: str, ours: str) -> Pairs:
    return [(f"{release}.nin_shortcut.", f"{ours}.conv_shortcut."), (f"{release}.", f"{ours}.")]
