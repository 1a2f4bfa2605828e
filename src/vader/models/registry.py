"""Base models by family name, or by `module:Class` for one's own; both are loaded in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vader.models.base import VideoModel
from vader.plugins import checked_options, explained, find_class

FAMILIES = {
    "cogvideox": "vader.models.cogvideox:CogVideoX",
    "cogvideox-i2v": "vader.models.cogvideox_i2v:CogVideoXImage",
    "hunyuan": "vader.models.hunyuan:HunyuanVideo",
    "hunyuan15": "vader.models.hunyuan15:HunyuanVideo15",
    "hunyuan15-i2v": "vader.models.hunyuan15_i2v:HunyuanVideo15Image",
    "kandinsky5": "vader.models.kandinsky5:Kandinsky5",
    "ltx": "vader.models.ltx:LTX",
    "ltx-i2v": "vader.models.ltx_i2v:LTXImage",
    "ltx2": "vader.models.ltx2:LTX2",
    "ltx2-i2v": "vader.models.ltx2_i2v:LTX2Image",
    "modelscope": "vader.models.modelscope:ModelScope",
    "opensora": "vader.models.opensora.model:OpenSora",
    "svd": "vader.models.svd:StableVideoDiffusion",
    "videocrafter": "vader.models.videocrafter.model:VideoCrafter",
    "wan": "vader.models.wan:Wan",
    "wan-i2v": "vader.models.wan_i2v:WanImage",
}
ABOUT = {  # what `vader list models` says of each
    "cogvideox": "CogVideoX, text to video: zai-org/CogVideoX-2b, zai-org/CogVideoX-5b, zai-org/CogVideoX1.5-5B.",
    "cogvideox-i2v": "CogVideoX, image to video: zai-org/CogVideoX-5b-I2V, zai-org/CogVideoX1.5-5B-I2V.",
    "hunyuan": "HunyuanVideo, text to video, 12.8B: hunyuanvideo-community/HunyuanVideo.",
    "hunyuan15": "HunyuanVideo 1.5, text to video, 8.3B: hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v.",
    "hunyuan15-i2v": "HunyuanVideo 1.5, image to video: hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v.",
    "kandinsky5": "Kandinsky 5 Lite, text to video, 2.0B: kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers.",
    "ltx": "LTX-Video 0.9.x, text to video, 2B and 13B: Lightricks/LTX-Video, Lightricks/LTX-Video-0.9.5; tiny.",
    "ltx-i2v": "LTX-Video 0.9.x, image to video: Lightricks/LTX-Video-0.9.5 and others; tiny.",
    "ltx2": "LTX-2 and LTX-2.3, text to video with sound, 19B: Lightricks/LTX-2, diffusers/LTX-2.3-Diffusers.",
    "ltx2-i2v": "LTX-2 and LTX-2.3, image to video with sound, 19B: Lightricks/LTX-2, diffusers/LTX-2.3-Diffusers.",
    "modelscope": "Text to video, 1.7B: ali-vilab/text-to-video-ms-1.7b; tiny.",
    "opensora": "Open-Sora 1.2, text to video, 1.2B, a flow transformer: hpcai-tech/OpenSora-STDiT-v3; tiny.",
    "svd": "Stable Video Diffusion, image to video: stabilityai/stable-video-diffusion-img2vid, ...-img2vid-xt; tiny.",
    "videocrafter": "VideoCrafter2, text to video at 320 x 512, 1.4B: VideoCrafter/VideoCrafter2, or its file; tiny.",
    "wan": "Wan 2.1 and 2.2 (FastWan, SkyReels-V2), text to video, 1.3B up: Wan-AI/Wan2.1-T2V-1.3B-Diffusers; tiny.",
    "wan-i2v": "Wan 2.1 and 2.2, image to video: Wan-AI/Wan2.2-TI2V-5B-Diffusers and others; tiny.",
}
CONTRACT = ("checkpoint", "dtype")  # what every family's `load` takes


def model_names() -> list[str]:
    """The built-in families."""
    return sorted(FAMILIES)


def load_model(
    family: str,
    checkpoint: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    options: Mapping[str, Any] | None = None,
) -> VideoModel:
    """Loads a base model, frozen and in eval mode, ready to sample.

    Args:
        family: a built-in family (`model_names`) or `module:Class`, a subclass of `VideoModel`.
        checkpoint: what the family loads: for built-in ones `tiny`, a folder or a hub id.
        dtype: of the frozen weights.
        options: what the family's own `load` takes beyond the contract, as svd's `motion_bucket`.

    Raises:
        UserError: no such family, class, checkpoint or option.
    """
    own, cls = model_options(family, options or {}), model_class(family)
    with explained(f"model {family!r} does not load from {checkpoint!r}"):
        return cls.load(checkpoint, dtype=dtype, **own).to(device)


def model_options(family: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A family's own options, checked. Raises `UserError` if there is no such family or option."""
    return checked_options(model_class(family).load, f"model {family!r}", options, CONTRACT)


def model_class(family: str) -> type[VideoModel]:
    """The class behind a family's name. Raises `UserError` if there is none, or if it does not meet the contract."""
    return find_class(family, "model", FAMILIES, VideoModel)
