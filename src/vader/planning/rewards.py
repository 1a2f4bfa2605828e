"""The built-in rewards in their releases' sizes, with random weights: nothing is downloaded.

In goes a reward's name, out comes the reward with its networks drawn on a device: for measuring it alone (`build`), or
as a recipe names it (`load_reward_shape`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import (
    BatchEncoding,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipVisionConfig,
    SiglipVisionModel,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    ViTConfig,
    ViTModel,
    XCLIPConfig,
    XCLIPModel,
    YolosConfig,
    YolosForObjectDetection,
)

from vader.planning.models import IMAGE_TOWER, TEXT_TOWER
from vader.planning.qwen import QWEN2_2B, QWEN2_7B, qwen2_vl, qwen3_vl
from vader.rewards import action, aesthetic_v25, hpsv3, mps, object_removal, textvideo, videoreward, vlm
from vader.rewards.aesthetic import Aesthetic
from vader.rewards.base import Reward
from vader.rewards.clip import ImageTower, TextTower
from vader.rewards.compression import Compression
from vader.rewards.consistency import Consistency, DinoTower
from vader.rewards.hps import HPS
from vader.rewards.imagereward import LENGTH, ImageReward
from vader.rewards.needs import AllFrames, Evenly
from vader.rewards.pickscore import PickScore
from vader.rewards.preprocess import crop
from vader.rewards.registry import load_reward, reward_class
from vader.rewards.vjepa.masks import Grid
from vader.rewards.vjepa.networks import VitSize, VJepa1
from vader.rewards.vjepa.reward import VJEPA
from vader.rewards.weather import Weather

VISION_TOWER: dict[str, Any] = {  # CLIP ViT-L/14's
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}
CLIP_H: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": TEXT_TOWER | {"num_hidden_layers": 24, "projection_dim": 1024},
    "vision_config": IMAGE_TOWER,
}
BLIP_VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
}
BLIP_TEXT: dict[str, Any] = {"num_hidden_layers": 12, "num_attention_heads": 12, "is_decoder": True}
YOLOS: dict[str, Any] = {"num_hidden_layers": 12, "image_size": [800, 1344], "num_labels": 91}
VIDEOMAE: dict[str, Any] = {"num_hidden_layers": 12, "num_labels": 400}
DINO: dict[str, Any] = {"num_hidden_layers": 12, "image_size": 224}
VJEPA_L: dict[str, VitSize] = {"encoder": VitSize(24, 1024, 16), "predictor": VitSize(12, 384, 16)}
PAIRS = AllFrames(least=2, multiple=2)  # two frames make a token
VIDEOPRISM: dict[str, Any] = {}  # transformers' own defaults are the base model's, and X-CLIP's
XCLIP: dict[str, Any] = {}
SIGLIP: dict[str, Any] = {  # so400m
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
SIGLIP_HEAD = (1024, 128, 64, 16, 1)
AFFINE_HEAD, RELU_HEAD = (1024, 128, 64, 16, 1), (512, 128, 32, 1)

R = TypeVar("R", bound=nn.Module)


def bare(cls: type[R], **parts: Any) -> R:
    """An object of the class with these parts, past its constructor, which would read weights."""
    found = cls.__new__(cls)
    nn.Module.__init__(found)
    for name, part in parts.items():
        setattr(found, name, part)
    return found


def on_clip_l(cls: type[R], resize: str, widths: tuple[int, ...], **parts: Any) -> R:
    """A head reward on CLIP ViT-L/14's image tower."""
    image = ImageTower(CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION_TOWER)), resize)
    linear = [nn.Linear(a, b) for a, b in pairwise((image.width, *widths))]
    layers = [part for layer in linear for part in ((layer, nn.ReLU()) if widths == RELU_HEAD else (layer,))]
    return bare(cls, image=image, head=nn.Sequential(*layers), **parts)


def on_clip_h(cls: type[R], resize: str) -> R:
    """A similarity of CLIP ViT-H/14's towers; prompts become arbitrary tokens."""
    model = CLIPModel(CLIPConfig(**CLIP_H))
    text = TextTower(model, lambda prompt: torch.arange(77)[None])
    return bare(cls, image=ImageTower(model, resize), text=text, contrast=None, logit_scale=model.logit_scale)


def image_reward() -> ImageReward:
    text = BlipTextConfig(encoder_hidden_size=BLIP_VISION["hidden_size"], **BLIP_TEXT)
    return bare(
        ImageReward,
        vision=BlipVisionModel(BlipVisionConfig(**BLIP_VISION)),
        text=BlipTextModel(text, add_pooling_layer=False),
        head=nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise((text.hidden_size, *AFFINE_HEAD)))),
        tokenizer=arbitrary_tokens,
        resize=crop,
    )


def arbitrary_tokens(prompts: list[str], **settings: Any) -> Any:
    ids = torch.arange(LENGTH).expand(len(prompts), -1)
    return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def yolos() -> object_removal.ObjectRemoval:
    config: Any = YolosConfig(use_mid_position_embeddings=True, **YOLOS)
    model = YolosForObjectDetection(config)
    return bare(
        object_removal.ObjectRemoval,
        detector=bare(object_removal.Yolos, model=model, target=0, multiple=config.patch_size),
        rule=object_removal.soft_confidence,
        resize=partial(object_removal.to_shortest_edge, short=800, long=1333, multiple=config.patch_size),
    )


def videomae() -> action.Action:
    config: Any = VideoMAEConfig(**VIDEOMAE)
    model = VideoMAEForVideoClassification(config)
    names = {name.lower().replace("_", " "): index for index, name in config.id2label.items()}
    settings = {"probability": False, "label": "LABEL_0", "frames": None, "needs": PAIRS}
    return bare(action.Action, model=model, indices=names, resize=action.RESIZERS["crop"], **settings)


def dino() -> Consistency:
    tower = DinoTower(ViTModel(ViTConfig(**DINO), add_pooling_layer=False), "squash")  # ViT-B/16 of 224 pixels
    return bare(Consistency, tower=tower, to_first=True, to_previous=True)


def vjepa() -> VJEPA:
    network = VJepa1(grid=Grid(8, 14, 14), tubelet=2, patch=16, **VJEPA_L)
    settings = {"size": network.size, "needs": PAIRS, "masks": 1, "seed": 0, "context": None, "target_gradient": True}
    return bare(VJEPA, network=network, resize=crop, **settings)


def video_reward() -> videoreward.VideoReward:
    return bare(
        videoreward.VideoReward,
        network=qwen2_vl(QWEN2_2B, list(videoreward.WORDS.values())),
        head=nn.Linear(QWEN2_2B["hidden_size"], 1, bias=False),
        weights=dict.fromkeys(videoreward.WORDS, 1.0),
        limits=videoreward.LIMITS,
        normalise=True,
    )


def hps_v3() -> hpsv3.HPSv3:
    network, head = qwen2_vl(QWEN2_7B, [hpsv3.WORD]), hpsv3.make_head(QWEN2_7B["hidden_size"])
    return bare(hpsv3.HPSv3, network=network, head=head, limits=hpsv3.LIMITS)


def yes_or_no() -> vlm.Vlm:
    network = qwen3_vl()
    needs, limits = vlm.sight(network.layout, fps=2.0)
    settings = {"weights": {"1": 1.0}, "questions": (vlm.QUESTION,), "needs": needs, "limits": limits}
    reward = bare(vlm.Vlm, network=network, **settings)
    reward.register_buffer("direction", torch.zeros(network.model.config.text_config.hidden_size), persistent=False)
    return reward


def arbitrary_texts(prompt: str, max_length: int, **settings: Any) -> BatchEncoding:
    ids = torch.arange(max_length)[None]
    return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def video_prism() -> textvideo.VideoPrism:
    from transformers import VideoPrismClipModel, VideoPrismConfig  # newer than the rest of the package asks for

    model = VideoPrismClipModel(VideoPrismConfig(**VIDEOPRISM))
    return text_video(textvideo.VideoPrism, model)


def x_clip() -> textvideo.XClip:
    return text_video(textvideo.XClip, XCLIPModel(XCLIPConfig(**XCLIP)), resize=crop)


def text_video(cls: type[R], model: Any, **parts: Any) -> R:
    vision, length = model.config.vision_config, model.config.text_config.max_position_embeddings
    needs = Evenly(vision.num_frames, least=vision.num_frames)
    settings = {"needs": needs, "size": vision.image_size, "length": length} | parts
    return bare(cls, model=model, tokenizer=arbitrary_texts, **settings)


def on_cross_attention() -> mps.MPS:
    clip = CLIPModel(CLIPConfig(**CLIP_H))
    features: int = CLIP_H["projection_dim"]
    layers = [mps.CrossLayer(features, features // 64, 64, 4 * features) for _ in range(4)]
    settings: dict[str, Any] = {"tokenize": lambda text: torch.arange(77)[None], "length": 77, "resize": crop}
    return bare(mps.MPS, clip=clip, cross=nn.ModuleList(layers), _read={}, **settings)


def siglip_head() -> aesthetic_v25.AestheticV25:
    model = SiglipVisionModel(SiglipVisionConfig(**SIGLIP))
    widths = (model.config.hidden_size, *SIGLIP_HEAD)
    head = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
    return bare(aesthetic_v25.AestheticV25, model=model, head=head)


BUILDERS: dict[str, Callable[[], Reward]] = {
    "aesthetic": lambda: on_clip_l(Aesthetic, "crop", AFFINE_HEAD, target=None),
    "weather": lambda: on_clip_l(Weather, "squash", AFFINE_HEAD, output="logit"),
    "compression": lambda: on_clip_l(Compression, "squash", RELU_HEAD),
    "hps": lambda: on_clip_h(HPS, "pad"),
    "pickscore": lambda: on_clip_h(PickScore, "crop"),
    "imagereward": image_reward,
    "object_removal": yolos,
    "action": videomae,
    "consistency": dino,
    "vjepa": vjepa,
    "videoreward": video_reward,
    "hpsv3": hps_v3,
    "vlm": yes_or_no,
    "videoprism": video_prism,
    "xclip": x_clip,
    "aesthetic_v25": siglip_head,
    "mps": on_cross_attention,
}


def build(name: str, device: torch.device, dtype: torch.dtype) -> Reward:
    """A frozen reward of the release's size, its big networks in `dtype`."""
    with device:
        return BUILDERS[name]().freeze().to_precision(dtype)


def load_reward_shape(name: str, options: Mapping[str, Any], device: torch.device) -> Reward:
    """A release's reward drawn on a device; any other as `load_reward`."""
    usual = inspect.signature(reward_class(name)).parameters.get("checkpoint")
    released = usual is not None and options.get("checkpoint", usual.default) == usual.default
    if name not in BUILDERS or not released:
        return load_reward(name, **options)
    with device:
        return BUILDERS[name]().freeze()
