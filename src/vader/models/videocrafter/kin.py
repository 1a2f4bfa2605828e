"""Files that are easily taken for VideoCrafter2's, known by the names of their weights, so that an error can say so.

The relatives share its code (latent diffusion's) and most of its names; what each has of its own is listed here.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

UNET = "model.diffusion_model."
FIRST = f"{UNET}input_blocks.0.0.weight"
DYNAMI_CHANNELS = 8  # of its first convolution: the picture's latents beside the noisy ones

# What a weight's name holds, and whose file that is then; the first that fits decides.
SIGNS = (
    ("conditioner.embedders.", "Stable Video Diffusion as one file: take its folder in diffusers' layout, family svd"),
    ("motion_modules.", "an AnimateDiff motion module, which no family here reads"),
    ("relative_position_k.", "VideoCrafter1 or older, by its relative positions: take VideoCrafter2"),
    ("base_model.model.", "a LoRA adapter: give it as --adapter"),
    (".lora_A.", "a LoRA adapter: give it as --adapter"),
    (".lora_down.", "a LoRA adapter of another tool, which is not read here"),
)
IMAGE_TO_VIDEO = ("image_proj_model.", "embedder.model.visual.")  # the parts that look at a picture


def known_stranger(tensors: Mapping[str, Tensor]) -> str | None:
    """What a file is, if its names are those of a model that is not VideoCrafter2; a tail for an error."""
    if any(name.startswith(IMAGE_TO_VIDEO) for name in tensors):
        first = tensors.get(FIRST)
        dynami = first is not None and first.ndim > 1 and first.shape[1] == DYNAMI_CHANNELS
        name = "DynamiCrafter" if dynami else "VideoCrafter1's image-to-video model"
        return f"{name}, which starts from pictures: take VideoCrafter2, or family svd for pictures"
    for sign, whose in SIGNS:
        if any(sign in name for name in tensors):
            return whose
    return _by_absence(tensors)


def _by_absence(tensors: Mapping[str, Tensor]) -> str | None:
    """Models whose names are among VideoCrafter2's, by what they have not."""
    if "input_blocks.0.0.weight" in tensors:
        return (
            "a UNet alone, as ModelScope's own repository has it: take its folder in diffusers' layout, or a whole file"
        )
    unet = [name for name in tensors if name.startswith(UNET)]
    if unet and not any("init_attn." in name or "temopral_conv." in name for name in unet):
        return "an image model such as Stable Diffusion: it has no temporal layers"
    return None
