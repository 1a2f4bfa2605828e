"""What a run will be, in a line or two before it starts: device, precision, processes, trained weights, sizes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vader.engine.device import frozen_dtype
from vader.engine.engine import Engine
from vader.evaluation.formats import counted

LARGE = 200_000_000  # weights that no CPU takes through a step in less than minutes


def summary(engine: Engine) -> Iterator[str]:
    """The lines of a run's beginning, and of a dry run; one more where a large model is to train without a GPU."""
    recipe, device, size = engine.recipe, engine.accelerator.device, engine.size
    networks = engine.model.networks().values()
    weights = sum(parameter.numel() for network in networks for parameter in network.parameters())
    trained = sum(parameter.numel() for parameter in engine.parameters)
    precision = str(frozen_dtype(recipe.model.precision, device)).removeprefix("torch.")
    processes = engine.accelerator.num_processes
    videos, steps = counted(recipe.train.batch, "video"), counted(recipe.sampling.steps, "denoising step")
    yield (
        f"{recipe.name}: {recipe.model.family} on {_named(device)} in {precision}, "
        f"{processes} {'process' if processes == 1 else 'processes'}; "
        f"{_short(trained)} of {_short(weights)} weights are trained; each step {videos} of "
        f"{counted(size.frames, 'frame')} of {size.height}x{size.width} in {steps}"
    )
    if device.type == "cpu" and weights >= LARGE:
        yield f"there is no GPU here, and a model of {_short(weights)} weights needs one: steps will take very long"


def _named(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _short(count: int) -> str:
    """1,234 as it is, then 12.3 k, 45.6 M, 1.7 B."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e4)):
        if count >= size:
            return f"{count / (1e3 if unit == 'k' else size):.1f} {unit}"
    return f"{count:,}"
