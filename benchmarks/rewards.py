"""What rewards cost at full size, with random weights: seconds and peak memory a frame, forward and backward.

    python benchmarks/rewards.py [REWARD ...] [--device cuda] [--out FILE]

Nothing is downloaded: time and memory do not depend on the values of weights. The networks run as in training, in
bfloat16 (fp16 on old GPUs) or, on a CPU, in float32. A frame reward is measured on one frame and, on a GPU, on eight at
once; one that sees frames together on sixteen.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import GIB, RESULTS, console, run_script, write_result
from rich.table import Table
from torch import Tensor

from vader.engine.device import frozen_dtype
from vader.errors import UserError, nearest
from vader.networks.measure import count_parameters, weight_bytes
from vader.planning.measured import peak_bytes, present_bytes, reset_peak, timed
from vader.planning.rewards import BUILDERS, build
from vader.rewards.base import FrameReward, Reward

HEIGHT, WIDTH = 320, 512  # of VideoCrafter's videos
CLIP_FRAMES = 16
FRAME_COUNTS = {"cuda": (1, 8), "cpu": (1,)}  # on a CPU a frame takes up to minutes
ROUNDS = {"cuda": 5, "cpu": 1}


def measure(names: list[str], device: torch.device) -> list[dict[str, Any]]:
    """A record a reward and number of frames, see `measure_frames`."""
    records = []
    for name in names:
        console.print(name)
        reward = build(name, device, frozen_dtype("auto", device))
        for count in FRAME_COUNTS[device.type] if isinstance(reward, FrameReward) else (CLIP_FRAMES,):
            size = {"reward": name, "parameters": count_parameters(reward), "weights": weight_bytes(reward)}
            records.append(size | measure_frames(reward, count, device))
        del reward
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return records


def measure_frames(reward: Reward, count: int, device: torch.device) -> dict[str, Any]:
    """Median seconds, and peak bytes beyond the weights, of one pass over a video of `count` frames.

    `forward` is without a graph, as in evaluation; `both` is forward with it and backward to the pixels.
    """
    frames = torch.rand(1, count, 3, HEIGHT, WIDTH, device=device)
    passes = {"forward": partial(forward, reward, frames), "both": partial(forward_backward, reward, frames)}
    forward_backward(reward, frames)  # the prompt is encoded, kernels are chosen
    return {
        "frames": count,
        "seconds": {
            name: median(timed(one, device) for _ in range(ROUNDS[device.type])) for name, one in passes.items()
        },
        "peak_memory": {name: peak_of(one, device) for name, one in passes.items()},
    }


@torch.no_grad()
def forward(reward: Reward, frames: Tensor) -> None:
    reward(frames, ["a prompt"])


def forward_backward(reward: Reward, frames: Tensor) -> None:
    leaf = frames.clone().requires_grad_()
    torch.autograd.grad(reward(leaf, ["a prompt"]).sum(), leaf)


def peak_of(call: Callable[[], None], device: torch.device) -> int:
    reset_peak(device)  # first: on a CPU, memory that was freed counts as present until then
    before = present_bytes(device)
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
    settings = {
        "height": HEIGHT,
        "width": WIDTH,
        "precision": str(frozen_dtype("auto", device)),
        "rounds": ROUNDS[device.type],
    }
    write_result(asked.out or RESULTS / "rewards.json", "rewards", device, settings, {"rewards": records})


if __name__ == "__main__":
    run_script(main)
