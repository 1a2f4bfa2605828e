"""VideoCrafter2 as a folder in diffusers' layout, as public conversions of the release lie on the hub.

Such a folder has `unet/`, `vae/`, `text_encoder/` and `tokenizer/`, or it is the UNet alone, `config.json` and weights
at its top; the rest is then taken from a ModelScope checkpoint, as the conversion's makers do. The network for the
frames per second stands under `fps_embedding.` in the UNet. The noise schedule is the release's, whose dynamic scale
no scheduler of diffusers' has: `scheduler/` is not read.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from vader.errors import UserError
from vader.files import hub as files
from vader.files.foreign import reading
from vader.files.weights import fill
from vader.models.videocrafter.networks import build_unet
from vader.solvers import scaled_linear_betas

REST = "cerspense/zeroscope_v2_576w"  # VAE, text encoder and tokenizer of Stable Diffusion 2.1, as ModelScope has them
OF_FPS = "fps_embedding."


def is_pipeline(source: str) -> bool:
    """Whether a folder or hub id has the networks each in a folder of its own."""
    return files.has_file(source, "unet/config.json")


def is_unet(source: str) -> bool:
    """Whether a folder or hub id is a UNet in diffusers' layout."""
    return files.has_file(source, "config.json")


def alphas_cumprod() -> Tensor:
    """The release's noise schedule, `[1000]` float64."""
    return (1 - scaled_linear_betas(0.00085, 0.012, 1000)).cumprod(0)


def load_networks(
    source: str, rest: str | None, dtype: torch.dtype
) -> tuple[UNet3DConditionModel, AutoencoderKL, CLIPTextModel, str]:
    """The networks, frozen, and where the tokenizer lies.

    Args:
        rest: a folder or hub id in diffusers' layout for what a UNet alone lacks; None: `REST`.

    Raises:
        UserError: a part cannot be had, or is of another model.
    """
    whole = is_pipeline(source)
    other = source if whole and rest is None else files.resolve(rest or REST, "modelscope")
    unet = _load_unet(source, "unet" if whole else "", dtype)
    vae = files.load_network(AutoencoderKL, other, "vae", dtype)
    return unet, vae, files.load_network(CLIPTextModel, other, "text_encoder", dtype), other


def _load_unet(source: str, subfolder: str, dtype: torch.dtype) -> UNet3DConditionModel:
    label = f"unet of checkpoint {source!r}"
    config = files.load_config(source, subfolder)
    if "3D" not in str(config.get("_class_name")) and "VideoCrafter" not in str(config.get("_class_name")):
        raise UserError(f"{label} is of another family: it is a {config.get('_class_name')}, no UNet3DConditionModel")
    weights = {_our_name(name): tensor for name, tensor in files.load_weights(source, subfolder).items()}
    if not any(name.startswith(_our_name(OF_FPS)) for name in weights):
        raise UserError(
            f"{label} is told no frames per second (no {OF_FPS}*): it may be ModelScope's, family modelscope"
        )
    with reading(f"{label} is of another architecture"), torch.device("meta"):
        unet = build_unet(_settings(config))
    return fill(unet, weights, dtype, label)


def _our_name(name: str) -> str:
    return f"time_embedding.{name}" if name.startswith(OF_FPS) else name


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """What diffusers' UNet3D takes of a config."""
    taken = inspect.signature(UNet3DConditionModel.__init__).parameters
    return {name: value for name, value in config.items() if name in taken and value is not None}
