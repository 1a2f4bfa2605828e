"""VideoCrafter2's released file, `model.ckpt`: found, read without running code, written.

One torch checkpoint holds everything under `state_dict`: UNet, VAE, text encoder, each under its prefix, and the
buffers of the noise schedule. A file that `write_release` made also says, under `vader`, what no shape tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from vader.errors import UserError
from vader.files import hub as files
from vader.files.foreign import reading
from vader.files.paths import user_path
from vader.files.weights import check_weights, plain_names, read_weights, tensors_of
from vader.models.videocrafter.folder import is_pipeline, is_unet
from vader.models.videocrafter.kin import known_stranger
from vader.models.videocrafter.networks import (
    Settings,
    text_to_release,
    unet_to_release,
    vae_to_release,
)
from vader.solvers import videocrafter_scale

FAMILY = "videocrafter"
FILE_NAME = "model.ckpt"
FILE_NAMES = (FILE_NAME, "model.safetensors")  # the release's, and what people make of it
PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text": "cond_stage_model.model."}
AVERAGES = "model_ema."  # of the UNet's weights over training steps, under names of their own
SPARE_SCALES = 400  # the release's array of scales is longer than its schedule by its ramp; what is beyond is not read


@dataclass(frozen=True)
class Release:
    """A file's tensors by part, under the release's names without prefix; `schedule` has none."""

    label: str
    unet: dict[str, Tensor]
    vae: dict[str, Tensor]
    text: dict[str, Tensor]
    schedule: dict[str, Tensor]
    settings: Settings


def find_release(checkpoint: str) -> Path | str:
    """The file behind what a recipe names: itself, its folder, a hub id, or `tiny`; or the folder or hub id, as text,
    if it is one in diffusers' layout (`vader.models.videocrafter.folder`).

    Raises:
        UserError: there is none.
    """
    path = user_path(checkpoint, "checkpoint")
    if path.is_file():
        return path
    if path.suffix in (".ckpt", ".pt", ".pth", ".safetensors") and not path.is_dir():
        raise UserError(f"there is no file {checkpoint!r}: name a {FILE_NAME}, its folder or a hub id")
    source = files.resolve(checkpoint, FAMILY)
    for name in FILE_NAMES:
        if files.has_file(source, name):
            return files.find_component(source, "", name)
    if is_pipeline(source) or is_unet(source):
        return source
    raise UserError(f"checkpoint {checkpoint!r} is not whole: {FILE_NAME} is missing")


def read_release(path: Path) -> Release:
    """The file's tensors by part; networks are checked where they are built.

    Raises:
        UserError: the file is damaged, holds code, or is of another kind.
    """
    label, content = f"checkpoint {str(path)!r}", read_weights(path)
    tensors = _tensors(content, label)
    if stranger := known_stranger(tensors):
        raise UserError(f"{label} is {stranger}")
    parts: dict[str, dict[str, Tensor]] = {"schedule": {}, **{part: {} for part in PREFIXES}}
    for name, tensor in tensors.items():
        part = next((part for part, prefix in PREFIXES.items() if name.startswith(prefix)), "schedule")
        parts[part][name.removeprefix(PREFIXES.get(part, ""))] = tensor
    for part, prefix in PREFIXES.items():
        if not parts[part]:
            raise UserError(f"{label} is no VideoCrafter2: it has no weights named {prefix}...")
    _check_schedule(parts["schedule"], label)
    return Release(label, **parts, settings=_settings(content, label))


def _tensors(content: Mapping[str, Any], label: str) -> dict[str, Tensor]:
    """The tensors by the release's names: without wrappers', and without the averages that trainings keep beside."""
    found = content.get("module", content.get("state_dict", content))  # `module` is deepspeed's
    if not isinstance(found, Mapping):
        raise UserError(f"{label} is no VideoCrafter2: it holds no tensors by name")
    plain = plain_names(tensors_of(found), label)
    return {name.replace(".module.", "."): value for name, value in plain.items() if not name.startswith(AVERAGES)}


def _settings(content: Mapping[str, Any], label: str) -> Settings:
    with reading(f"{label} was written by another version of vader"):
        return Settings(**content.get("vader", {}))


def _check_schedule(schedule: Mapping[str, Tensor], label: str) -> None:
    if "alphas_cumprod" not in schedule:
        raise UserError(f"{label} is not whole: it lacks alphas_cumprod, its noise schedule")
    expected = schedule_buffers(schedule["alphas_cumprod"])
    check_weights(schedule, expected, label)
    if (schedule["scale_arr"].float() - expected["scale_arr"]).abs().max() > 1e-3:
        raise UserError(f"{label} is no VideoCrafter2: its scale_arr does not fall from 1 to 0.7 over 400 timesteps")


def schedule_buffers(alphas_cumprod: Tensor) -> dict[str, Tensor]:
    """The buffers that latent diffusion's code registers for a schedule `[T]` (DDPM, arXiv 2006.11239), float32.

    The sampler reads `alphas_cumprod` and `scale_arr` alone.
    """
    now = alphas_cumprod.double()
    before = torch.cat([now.new_ones(1), now[:-1]])
    betas = 1 - now / before
    variance = betas * (1 - before) / (1 - now)  # of the posterior, eq. 7
    scale = videocrafter_scale(len(now) + SPARE_SCALES)
    buffers = {
        "betas": betas,
        "alphas_cumprod": now,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": now.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - now).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - now).log(),
        "sqrt_recip_alphas_cumprod": now.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / now - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - now),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - now),
        "scale_arr": scale,
    }
    return {name: buffer.float() for name, buffer in buffers.items()}


def write_release(
    path: Path | str,
    unet: UNet3DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    alphas_cumprod: Tensor,
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes networks as one file in the release's layout, which `VideoCrafter.load` reads.

    Args:
        unet: of `build_unet`, without adapter.
        vae: any `AutoencoderKL` with both 1x1 convolutions; its scaling factor is folded into them.
        text_encoder: its output is what the UNet is conditioned on: the last hidden state, after the final norm.
        alphas_cumprod: `[T]` of the noise schedule that the UNet was trained on, with `videocrafter_scale`.
        dtype: of the networks' weights; None leaves each as it is.
    """
    networks = {
        PREFIXES["unet"]: unet_to_release(unet),
        PREFIXES["vae"]: vae_to_release(vae),
        PREFIXES["text"]: text_to_release(text_encoder),
    }
    weights = {f"{prefix}{name}": weight for prefix, part in networks.items() for name, weight in part.items()}
    settings = Settings(
        unet_groups=unet.config.norm_num_groups,
        vae_groups=vae.config.norm_num_groups,
        text_heads=text_encoder.config.num_attention_heads,
    )
    tensors = {name: weight.detach().cpu().to(dtype or weight.dtype).contiguous() for name, weight in weights.items()}
    torch.save({"state_dict": schedule_buffers(alphas_cumprod) | tensors, "vader": asdict(settings)}, path)
    return Path(path)
