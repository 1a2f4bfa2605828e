"""What rewards cost at full size, with random weights: seconds and peak memory a frame, forward and backward.

    python benchmarks/rewards.py [REWARD ...] [--device cuda] [--out FILE]
    python benchmarks/rewards.py [REWARD ...] --device meta    # counted: operations and bytes, in bf16, anywhere

Nothing is downloaded: time and memory do not depend on the values of weights. The networks run as in training, in
bfloat16 (fp16 on old GPUs) or, on a CPU, in float32. A frame reward is measured on one frame and, on a GPU, on eight at
once; one that sees frames together on sixteen, and counted on 48 too.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import GIB, RESULTS, console, run_script, write_result
from rich.table import Table

from vader.engine.device import frozen_dtype
from vader.errors import UserError, nearest
from vader.networks.measure import count_parameters, weight_bytes
from vader.networks.recompute import checkpoint_blocks
from vader.nouns import Clip, Prompt, VideoSize
from vader.planning.counter import Counter, fused_attention
from vader.planning.measured import peak_bytes, present_bytes, reset_peak, timed
from vader.planning.rewards import BUILDERS, build
from vader.rewards.base import Reward

HEIGHT, WIDTH, FPS = 480, 832, 8
PROMPTS = (Prompt("a prompt"),)
FRAME_COUNTS = {"cuda": (1, 8), "cpu": (1,), "meta": (1,)}  # on a CPU a frame takes up to minutes
CLIP_FRAMES = {"cuda": (16,), "cpu": (16,), "meta": (16, 48)}  # two seconds, and six
ROUNDS = {"cuda": 5, "cpu": 1}


def measure(names: list[str], device: torch.device) -> list[dict[str, Any]]:
    """A record a reward and number of frames, see `measure_frames` and `count_frames`."""
    records = []
    for name in names:
        console.print(name)
        reward = build(name, device, precision(device))
        size = {"reward": name, "parameters": count_parameters(reward), "weights": weight_bytes(reward)}
        counts = (FRAME_COUNTS if reward.framewise else CLIP_FRAMES)[device.type]
        look = count_frames if device.type == "meta" else measure_frames
        records += [size | one for one in look(reward, counts, device)]
        del reward
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return records


def precision(device: torch.device) -> torch.dtype:
    """What the networks run in; counted is what a GPU does."""
    return torch.bfloat16 if device.type == "meta" else frozen_dtype("auto", device)


def clip_of(reward: Reward, count: int, device: torch.device) -> Clip:
    """What the reward sees of a video of so many frames: no others are decoded for it."""
    places = reward.needs.choose(VideoSize(count, HEIGHT, WIDTH, FPS))
    frames = torch.rand(1, len(places), 3, HEIGHT, WIDTH, device=device)
    return Clip(frames, (places / FPS)[None].to(device))


# ---- measured ----


def measure_frames(reward: Reward, counts: tuple[int, ...], device: torch.device) -> list[dict[str, Any]]:
    """Median seconds, and peak bytes beyond the weights, of one pass over a video of so many frames each.

    `forward` is without a graph, as in evaluation; `both` is forward with it and backward to the pixels.
    """
    records = []
    for count in counts:
        clip = clip_of(reward, count, device)
        passes = {"forward": partial(forward, reward, clip), "both": partial(forward_backward, reward, clip)}
        forward_backward(reward, clip)  # the prompt is encoded, kernels are chosen
        rounds = range(ROUNDS[device.type])
        seconds = {name: median(timed(one, device) for _ in rounds) for name, one in passes.items()}
        peaks = {name: peak_of(one, device) for name, one in passes.items()}
        records.append({"frames": count, "seen": len(clip.times[0]), "seconds": seconds, "peak_memory": peaks})
    return records


# ---- counted ----


def count_frames(reward: Reward, counts: tuple[int, ...], device: torch.device) -> list[dict[str, Any]]:
    """Floating-point operations, and peak bytes beyond the weights, of the same passes, walked through without data.

    `recomputed` is `both` where the network's blocks are recomputed in the backward pass, as recipes do.
    """
    clips = [clip_of(reward, count, device) for count in counts]
    walked(forward_backward, reward, clips[0])  # the prompt is encoded
    found = [{"forward": walked(forward, reward, one), "both": walked(forward_backward, reward, one)} for one in clips]
    checkpoint_blocks(reward)
    for passes, clip in zip(found, clips, strict=True):
        passes["recomputed"] = walked(forward_backward, reward, clip)
    return [
        {
            "frames": count,
            "seen": len(clip.times[0]),
            "operations": {name: operations for name, (operations, _) in passes.items()},
            "peak_memory": {name: peak for name, (_, peak) in passes.items()},
        }
        for count, clip, passes in zip(counts, clips, found, strict=True)
    ]


def walked(call: Callable[[Reward, Clip], None], reward: Reward, clip: Clip) -> tuple[int, int]:
    """Operations of a pass, and its peak in bytes beyond weights and pixels."""
    counter = Counter(clip.frames.device)
    for tensor in (clip.frames, *reward.parameters(), *reward.buffers()):
        counter.add(tensor)
    before = counter.now
    with counter, fused_attention(counter):
        call(reward, clip)
    return counter.operations, counter.peak - before


# ---- passes ----


@torch.no_grad()
def forward(reward: Reward, clip: Clip) -> None:
    reward.score(clip, PROMPTS)


def forward_backward(reward: Reward, clip: Clip) -> None:
    leaf = clip.frames.clone().requires_grad_()
    torch.autograd.grad(reward.score(replace(clip, frames=leaf), PROMPTS).sum(), leaf)


def peak_of(call: Callable[[], None], device: torch.device) -> int:
    reset_peak(device)  # first: on a CPU, memory that was freed counts as present until then
    before = present_bytes(device)
    call()
    return max(0, peak_bytes(device) - before)


# ---- output ----


def table(records: list[dict[str, Any]]) -> Table:
    """Measured seconds and GiB a video."""
    times = ("s forward", "and backward", "GiB forward", "and backward")
    found = Table("reward", "weights, GiB", "frames", *times, title=f"Rewards, frames of {WIDTH}x{HEIGHT}")
    for record in records:
        seconds = [record["seconds"][name] for name in ("forward", "both")]
        memory = [record["peak_memory"][name] / GIB for name in ("forward", "both")]
        figures = [f"{value:.4f}" for value in (*seconds, *memory)]
        found.add_row(record["reward"], f"{record['weights'] / GIB:.2f}", str(record["seen"]), *figures)
    return found


def counted_table(records: list[dict[str, Any]]) -> str:
    """Counted operations and GiB a video, in Markdown: docs/rewards/README.md has it."""
    work, memory = ("TFLOP forward", "both", "recomputed"), ("GiB forward", "both", "recomputed")
    head = ("reward", "weights, G", "GiB", "frames", "seen", *work, *memory)
    rows = [head, ("---",) * len(head)]
    for record in records:
        size = (f"{record['parameters'] / 1e9:.2f}", f"{record['weights'] / GIB:.2f}")
        figures = [
            *(f"{operations / 1e12:.2f}" for operations in record["operations"].values()),
            *(f"{peak / GIB:.2f}" for peak in record["peak_memory"].values()),
        ]
        rows.append((f"`{record['reward']}`", *size, str(record["frames"]), str(record["seen"]), *figures))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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
    counted = device.type == "meta"
    console.print(counted_table(records) if counted else table(records))
    settings: dict[str, Any] = {"height": HEIGHT, "width": WIDTH, "fps": FPS, "precision": str(precision(device))}
    if not counted:
        settings["rounds"] = ROUNDS[device.type]
    out = asked.out or RESULTS / ("rewards_meta.json" if counted else "rewards.json")
    write_result(out, "rewards", device, settings, {"rewards": records})


if __name__ == "__main__":
    run_script(main)
