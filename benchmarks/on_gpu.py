"""Is this GPU right, and how fast can it be? Its gradients of the tiny recipe against the CPU's, and its bf16 rate.

    python benchmarks/on_gpu.py

The CPU's part runs in a process of its own that sees no GPU. Float32 without TF32 on both sides.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, console, run_script, write_result

from vader.errors import UserError
from vader.planning.measured import TrainingStep, timed
from vader.recipe import load_recipe

SIDE, ROUNDS = 8192, 10
RECIPE = ("tiny", ["model.precision=fp32", "train.batch=2", "sampling.steps=6"])


def adapter_gradients() -> torch.Tensor:
    """The flat gradient of one training step, as the optimiser is given it."""
    step = TrainingStep.of(load_recipe(*RECIPE))
    kept: list[torch.Tensor] = []
    step.engine.optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: kept.append(
            torch.cat([parameter.grad.flatten() for parameter in step.engine.parameters]).cpu()
        )
    )
    step.run()
    return kept[0]


def gradients_without_gpu() -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "gradients.pt"
        unseen = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        subprocess.run([sys.executable, __file__, "--gradients", str(file)], check=True, env=unseen)
        return torch.load(file, weights_only=True)


def compare() -> dict[str, float]:
    """The cosine of the two gradients, and their difference relative to the CPU's norm."""
    ours, reference = adapter_gradients(), gradients_without_gpu()
    cosine = torch.nn.functional.cosine_similarity(ours, reference, dim=0).item()
    return {"cosine": cosine, "relative_difference": ((ours - reference).norm() / reference.norm()).item()}


def rates(device: torch.device) -> dict[str, float]:
    """Operations a second of a large matrix product, a multiply-add being two; random values, median of rounds."""
    found = {}
    for name, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32}.items():
        a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
        timed(lambda a=a, b=b: a @ b, device)
        seconds = sorted(timed(lambda a=a, b=b: a @ b, device) for _ in range(ROUNDS))[ROUNDS // 2]
        found[name] = 2 * SIDE**3 / seconds
    return found


def main() -> None:
    line = argparse.ArgumentParser(description="The GPU's gradients against the CPU's, and its rate.")
    line.add_argument("--gradients", type=Path, metavar="FILE", help="only write this device's gradient")
    line.add_argument("--out", type=Path, metavar="FILE", help="default: in benchmarks/results/")
    asked = line.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if asked.gradients:
        torch.save(adapter_gradients(), asked.gradients)
        return
    if not torch.cuda.is_available():
        raise UserError("there is no GPU here")
    device = torch.device("cuda")
    result: dict[str, Any] = {"operations_per_second": rates(device), "tiny_gradient_to_the_cpu": compare()}
    console.print(result)
    write_result(asked.out or RESULTS / "on_gpu.json", "on_gpu", device, load_recipe(*RECIPE), result)


if __name__ == "__main__":
    run_script(main)
