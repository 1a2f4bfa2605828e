"""The one optimisation loop that all of the tiny world's models are pretrained with.

AdamW under a one-cycle schedule, an exponential moving average of the weights, bf16 autocast, and
checkpoints to continue from. The data of step i depend on (seed, i) alone, so a continued training
sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: optimisation steps, peak learning rate, EMA decay, share of steps that warm up."""

    steps: int
    lr: float
    ema: float = 0.998
    warmup: float = 0.1
    weight_decay: float = 0.01


def generator_for(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def fit(
    model: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    schedule: Schedule,
    seed: int,
    checkpoint: Path | None = None,
    device: torch.device | str = "cpu",
    report_every: int = 100,
) -> nn.Module:
    """Minimises `loss(generator)` over the parameters of `model` and returns its moving average, in eval mode.

    Args:
        model: trained in place; `loss` closes over it.
        loss: the loss of one freshly drawn batch; all its randomness comes from the generator.
        checkpoint: where to keep the state of an unfinished training; continued from if it is there.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay, betas=(0.9, 0.99)
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.lr, total_steps=schedule.steps + 1, pct_start=schedule.warmup, final_div_factor=100.0
    )
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(schedule.ema))
    stateful = {"model": model, "optimizer": optimizer, "cycle": cycle, "average": average}
    start = _restore(stateful, checkpoint)
    began, running = time.monotonic(), 0.0

    for step in range(start, schedule.steps):
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            value = loss(generator_for(seed, step))
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        cycle.step()
        average.update_parameters(model)

        running += value.item() / report_every
        if (step + 1) % report_every == 0:
            pace = (time.monotonic() - began) / (step + 1 - start)
            logger.info("step %d/%d  loss %.5f  %.2f s/step", step + 1, schedule.steps, running, pace)
            running = 0.0
            _save(stateful, step + 1, checkpoint)
    return average.module.eval()


def _restore(stateful: dict, checkpoint: Path | None) -> int:
    if checkpoint is None or not checkpoint.exists():
        return 0
    saved = torch.load(checkpoint, weights_only=True)
    for name, part in stateful.items():
        part.load_state_dict(saved[name])
    return saved["step"]


def _save(stateful: dict, step: int, checkpoint: Path | None) -> None:
    if checkpoint is None:
        return
    aside = checkpoint.with_suffix(".tmp")
    torch.save({"step": step, **{name: part.state_dict() for name, part in stateful.items()}}, aside)
    aside.replace(checkpoint)
