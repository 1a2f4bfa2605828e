"""What rewards cost at full size, with random weights: seconds and peak memory a frame, forward and backward.

    python benchmarks/rewards.py [REWARD ...] [--device cuda] [--out FILE]

Nothing is downloaded: time and memory do not depend on the values of weights. The networks run as in training, in
bfloat16 (fp16 on old GPUs) or, on a CPU, in float32. A frame reward is measured on one frame and on eight at once; a
clip reward on sixteen.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from full_size import TEXT_TOWER, VISION_TOWER
from measuring import (
    GIB,
    RESULTS,
    console,
    peak_bytes,
    present_bytes,
    reset_peak,
    run_script,
    timed,
    write_result,
)
from rich.table import Table
from torch import Tensor, nn
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
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    YolosConfig,
    YolosForObjectDetection,
)

from vader.errors import UserError, nearest
from vader.memory import count_parameters
from vader.models.registry import frozen_dtype
from vader.rewards import action, object_removal
from vader.rewards.aesthetic import Aesthetic
from vader.rewards.base import FrameReward, Reward
from vader.rewards.clip import ImageTower, TextTower
from vader.rewards.compression import Compression
from vader.rewards.hps import HPS
from vader.rewards.imagereward import LENGTH, ImageReward
from vader.rewards.pickscore import PickScore
from vader.rewards.preprocess import crop
from vader.rewards.vjepa.masks import Grid
from vader.rewards.vjepa.networks import VitSize, VJepa1
from vader.rewards.vjepa.reward import VJEPA
from vader.rewards.weather import Weather

HEIGHT, WIDTH = 320, 512  # of VideoCrafter's videos
FRAMES = {"frame": (1, 8), "clip": (16,)}
ROUNDS = 5

# ---- the rewards: the releases' architectures, drawn at random ----

CLIP_H: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": TEXT_TOWER | {"num_hidden_layers": 24, "projection_dim": 1024},
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "gelu",
        "projection_dim": 1024,
    },
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
VJEPA_L: dict[str, VitSize] = {"encoder": VitSize(24, 1024, 16), "predictor": VitSize(12, 384, 16)}
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
    return bare(cls, image=ImageTower(model, resize), text=text, logit_scale=model.logit_scale)


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
    model = YolosForObjectDetection(YolosConfig(use_mid_position_embeddings=True, **YOLOS))
    return bare(
        object_removal.ObjectRemoval,
        detector=bare(object_removal.Yolos, model=model, target=0, multiple=model.config.patch_size),
        rule=object_removal.soft_confidence,
        resize=partial(object_removal.to_shortest_edge, short=800, long=1333, multiple=model.config.patch_size),
    )


def videomae() -> action.Action:
    model = VideoMAEForVideoClassification(VideoMAEConfig(**VIDEOMAE))
    names = {name.lower().replace("_", " "): index for index, name in model.config.id2label.items()}
    settings = {"probability": False, "label": "LABEL_0", "frames": None, "frame_multiple": 2, "min_frames": 2}
    return bare(action.Action, model=model, indices=names, resize=action.RESIZERS["crop"], **settings)


def vjepa() -> VJEPA:
    network = VJepa1(grid=Grid(8, 14, 14), tubelet=2, patch=16, **VJEPA_L)
    settings = {"size": network.size, "frame_multiple": 2, "masks": 1, "seed": 0, "target_gradient": False}
    return bare(VJEPA, network=network, resize=crop, **settings)


BUILDERS: dict[str, Callable[[], Reward]] = {
    "aesthetic": lambda: on_clip_l(Aesthetic, "crop", AFFINE_HEAD, target=None),
    "weather": lambda: on_clip_l(Weather, "squash", AFFINE_HEAD, output="logit"),
    "compression": lambda: on_clip_l(Compression, "squash", RELU_HEAD),
    "hps": lambda: on_clip_h(HPS, "pad"),
    "pickscore": lambda: on_clip_h(PickScore, "crop"),
    "imagereward": image_reward,
    "object_removal": yolos,
    "action": videomae,
    "vjepa": vjepa,
}


def build(name: str, device: torch.device, dtype: torch.dtype) -> Reward:
    """A frozen reward of the release's size, its big networks in `dtype`."""
    with device:
        return BUILDERS[name]().freeze().to_precision(dtype)


# ---- measuring ----


def measure(names: list[str], device: torch.device) -> list[dict[str, Any]]:
    """A record a reward and number of frames, see `measure_frames`."""
    records = []
    for name in names:
        console.print(name)
        reward = build(name, device, frozen_dtype("auto", device))
        for count in FRAMES["frame" if isinstance(reward, FrameReward) else "clip"]:
            size = {"reward": name, "parameters": count_parameters(reward), "weights": weight_bytes(reward)}
            records.append(size | measure_frames(reward, count, device))
        del reward
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return records


def weight_bytes(reward: Reward) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in reward.parameters())


def measure_frames(reward: Reward, count: int, device: torch.device) -> dict[str, Any]:
    """Median seconds, and peak bytes beyond the weights, of one pass over a video of `count` frames.

    `forward` is without a graph, as in evaluation; `both` is forward with it and backward to the pixels.
    """
    frames = torch.rand(1, count, 3, HEIGHT, WIDTH, device=device)
    passes = {"forward": partial(forward, reward, frames), "both": partial(forward_backward, reward, frames)}
    forward_backward(reward, frames)  # the prompt is encoded, kernels are chosen
    return {
        "frames": count,
        "seconds": {name: median(timed(one, device) for _ in range(ROUNDS)) for name, one in passes.items()},
        "peak_memory": {name: peak_of(one, device) for name, one in passes.items()},
    }


@torch.no_grad()
def forward(reward: Reward, frames: Tensor) -> None:
    reward(frames, ["a prompt"])


def forward_backward(reward: Reward, frames: Tensor) -> None:
    leaf = frames.clone().requires_grad_()
    torch.autograd.grad(reward(leaf, ["a prompt"]).sum(), leaf)


def peak_of(call: Callable[[], None], device: torch.device) -> int:
    before = present_bytes(device)
    reset_peak(device)
    call()
    return max(0, peak_bytes(device) - before)


def table(records: list[dict[str, Any]]) -> Table:
    """Seconds and GiB a frame."""
    times = ("s/frame forward", "and backward", "GiB/frame forward", "and backward")
    found = Table("reward", "weights, GiB", "frames", *times, title=f"Rewards, a {WIDTH}x{HEIGHT} frame")
    for record in records:
        seconds = [record["seconds"][name] / record["frames"] for name in ("forward", "both")]
        memory = [record["peak_memory"][name] / record["frames"] / GIB for name in ("forward", "both")]
        figures = [f"{value:.4f}" for value in (*seconds, *memory)]
        found.add_row(record["reward"], f"{record['weights'] / GIB:.2f}", str(record["frames"]), *figures)
    return found


def main() -> None:
    line = argparse.ArgumentParser(description="Seconds and memory of rewards at full size with random weights.")
    line.add_argument("rewards", nargs="*", metavar="REWARD", help="default: all")
    line.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    line.add_argument("--out", type=Path, metavar="FILE", help="default: in benchmarks/results/")
    asked = line.parse_args()
    if unknown := [name for name in asked.rewards if name not in BUILDERS]:
        raise UserError(f"no reward {unknown[0]!r} is measured here: {nearest(unknown[0], BUILDERS)}")
    device = torch.device(asked.device)
    records = measure(asked.rewards or list(BUILDERS), device)
    console.print(table(records))
    settings = {"height": HEIGHT, "width": WIDTH, "precision": str(frozen_dtype("auto", device)), "rounds": ROUNDS}
    write_result(asked.out or RESULTS / "rewards.json", "rewards", device, settings, {"rewards": records})


if __name__ == "__main__":
    run_script(main)
