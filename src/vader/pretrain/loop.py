"""The one optimisation loop that all of the tiny world's models are pretrained with.

AdamW, for some matrices Muon (https://kellerjordan.github.io/posts/muon), under a trapezoidal learning rate, an
exponential moving average of the weights, bf16 autocast, and checkpoints to continue from. The data of step i depend
on (seed, i) alone, so a continued training sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vader.files import quiet as _quiet  # noqa: F401 (of norms whose weights stay in float32 under autocast)
from vader.files.atomic import atomic_write

logger = logging.getLogger(__name__)
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: the learning rate rises over `warmup` steps, and falls to zero over the last `cooldown`.

    In between it is constant, so that a training can be cut or lengthened while it runs (arXiv 2405.18392).
    Where a network's layers are so small that casting costs more than it saves, `autocast` is off. `muon` is the
    rate of the matrices that Muon trains.
    """

    steps: int
    lr: float
    ema: float = 0.998
    warmup: int = 100
    cooldown: int = 400
    weight_decay: float = 0.01
    autocast: bool = True
    muon: float = 0.0

    def factor(self, step: int) -> float:
        """The share of the peak learning rate at a step."""
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / self.cooldown)


def generator_for(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def fit(
    model: Network,
    loss: Callable[[torch.Generator], Tensor],
    schedule: Schedule,
    seed: int,
    checkpoint: Path | None = None,
    device: torch.device | str = "cpu",
    report_every: int = 100,
    matrices: Sequence[Tensor] = (),
) -> Network:
    """Minimises `loss(generator)` over the parameters of `model` and returns its moving average, in eval mode.

    Args:
        model: trained in place; `loss` closes over it.
        loss: the loss of one freshly drawn batch; all its randomness comes from the generator.
        checkpoint: where to keep the state of an unfinished training; continued from if it is there.
        matrices: those of the parameters that Muon trains, not AdamW (torch 2.9 and later).
    """
    optimizers = _optimizers(model, schedule, matrices)
    rates = [torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor) for optimizer in optimizers]
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(schedule.ema))
    stateful: dict[str, Any] = {"model": model, "average": average}
    for number, (optimizer, rate) in enumerate(zip(optimizers, rates, strict=True)):
        stateful |= {f"optimizer-{number}": optimizer, f"rate-{number}": rate}
    start = _restore(stateful, checkpoint)
    began, running = time.monotonic(), 0.0

    for step in range(start, schedule.steps):
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=schedule.autocast):
            value = loss(generator_for(seed, step))
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
        average.update_parameters(model)

        running += value.item() / report_every
        if (step + 1) % report_every == 0:
            pace = (time.monotonic() - began) / (step + 1 - start)
            logger.info("step %d/%d  loss %.5f  %.2f s/step", step + 1, schedule.steps, running, pace)
            running = 0.0
            _save(stateful, step + 1, checkpoint)
    return cast(Network, average.module.eval())


def _optimizers(model: nn.Module, schedule: Schedule, matrices: Sequence[Tensor]) -> list[torch.optim.Optimizer]:
    apart = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in apart]
    decay = schedule.weight_decay
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=schedule.lr, weight_decay=decay, betas=(0.9, 0.99))
    ]
    if matrices:
        scale = "match_rms_adamw"  # its rates are then of AdamW's size
        optimizers.append(torch.optim.Muon(matrices, lr=schedule.muon, weight_decay=decay, adjust_lr_fn=scale))
    return optimizers


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
    with atomic_write(checkpoint) as temporary:
        torch.save({"step": step, **{name: part.state_dict() for name, part in stateful.items()}}, temporary)
