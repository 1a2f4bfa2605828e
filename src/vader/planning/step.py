"""A recipe's training step, walked through on the meta device: how much memory it takes, where, and how much work.

In goes a recipe, out comes a `Forecast`. The engine, the algorithm and every network are the trainer's own; only data
and weights are missing. The four releases and the built-in rewards come from the package's own tables of sizes
(`vader.planning.models`, `rewards`); any other checkpoint is loaded as for training, and then forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vader.algorithms import load_algorithm
from vader.algorithms.base import Algorithm
from vader.engine.batch import Batch
from vader.engine.build import assemble, check_decoder, check_prefix, check_segments, check_shaping, joined, with_tiny
from vader.engine.device import frozen_dtype
from vader.engine.engine import Clock, Engine, Setup
from vader.errors import UserError
from vader.models.base import VideoModel
from vader.networks.compile import Compile
from vader.networks.offload import OffloadActivations
from vader.networks.park import Park
from vader.networks.techniques import Stage, Technique, Techniques, load_techniques
from vader.nouns import Prompt
from vader.planning.counter import Counter, Remembered, fused_attention
from vader.planning.drawn import Drawn
from vader.planning.models import load_model_shape, load_tiny_shape
from vader.planning.rewards import load_reward_shape
from vader.plugins import explained
from vader.prompts import load_prompts
from vader.recipe import Recipe
from vader.rewards.base import RewardMix
from vader.rewards.registry import build_mix
from vader.scoring.choice import Group, training_groups

META = torch.device("meta")
PROMPT = Prompt("a prompt")
PRECISION = "bf16"  # of "auto", on the GPUs that training is planned for


@dataclass(frozen=True)
class Forecast:
    """What one training step of one process needs, on a GPU that holds all of it. Bytes are those of tensors.

    Attributes:
        weights: frozen weights by network or reward.
        adapter: the trained weights with the optimiser's state, their average and an algorithm's older copy of them.
        peak: the most bytes at once, weights and adapter included; `peaks`, by phase.
        host: the most bytes that wait in CPU memory.
        operations: floating-point operations, a multiply-add being two.
    """

    weights: dict[str, int]
    adapter: int
    peak: int
    peaks: dict[str, int]
    host: int
    operations: int


def forecast(recipe: Recipe, device: torch.device = META) -> Forecast:
    """Walks through one training step.

    Args:
        device: meta, or the CPU, where the step is computed and its tensors are counted alike.

    Raises:
        UserError: a part of the recipe cannot be had, or does not fit the others.
    """
    algorithm, counter = load_algorithm(recipe), Counter(device)
    check_prefix(recipe, algorithm.differentiates)
    check_decoder(recipe, algorithm.differentiates)
    check_shaping(recipe, algorithm.differentiates)
    check_segments(recipe, algorithm.chains)
    with torch.random.fork_rng(devices=[]):
        setup = drawn_setup(recipe, device)
        batch = planned_batch(recipe, algorithm.videos_per_prompt, setup.model)
        setup.model.prepare(batch.prompts)
        engine = planned_engine(recipe, setup, device, counter)
        algorithm.check(engine)
        fill(engine)
        algorithm.fill(engine, batch)
        weights, state = _weights(engine, counter), _state(engine, algorithm)
        for tensor in state:
            counter.add(tensor)
        adapter = sum(tensor.nbytes for tensor in state)
        with explained("the training step cannot be walked through without data"), counter, fused_attention(counter):
            algorithm.step(engine, batch)
    operations = counter.operations * recipe.train.batch // len(batch.prompts)
    return Forecast(weights, adapter, counter.peak, counter.peaks, counter.host_peak, operations)


def planned_batch(recipe: Recipe, group: int, model: VideoModel) -> Batch:
    """The step's videos, or as many of them as show all there is to see: two micro-batches, whole groups.

    Models that are mere shapes take any prompt; others may need what the recipe's prompts carry.
    """
    total = recipe.train.batch
    count = min(total, max(2 * (recipe.train.micro_batch or total), group))
    prompts = [PROMPT] if isinstance(model, Drawn) else load_prompts(recipe.prompts.train)
    return Batch(1, tuple(islice(cycle(prompts), count)), tuple(range(count)), total)


def planned_engine(recipe: Recipe, setup: Setup, device: torch.device, counter: Counter) -> Engine:
    """The trainer's engine on a device without data, whose clock tells the counter the phases."""
    built = assemble(recipe, setup, _techniques(recipe, counter), device)
    for network in setup.model.denoisers.values() if device == META else ():
        network.forward = Remembered(network, counter)
    return PlannedEngine(**{**vars(built), "clock": PhasesTold(device, counter)})


class PlannedEngine(Engine):
    """An engine of one process without data, but for its choice of frames: which are decoded together hangs on them."""

    def gather(self, values: Tensor, indices: Sequence[int], total: int) -> Tensor:
        """See `Engine.gather`."""
        return values.new_empty(total, *values.shape[1:])

    def shown(self, batch: Batch) -> list[Group]:
        """See `Engine.shown`."""
        return training_groups(self.reward, self.size, self.recipe.train.seed, batch.step, batch.indices)


class PhasesTold(Clock):
    """The engine's clock, which tells a counter where the step is."""

    def __init__(self, device: torch.device, counter: Counter) -> None:
        super().__init__(device)
        self.counter = counter

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        before, self.counter.phase = self.counter.phase, name
        with super().__call__(name):
            yield
        self.counter.phase = before


class CountedOffload(Technique):
    """`OffloadActivations` without data."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter

    def gradient_step(self) -> AbstractContextManager[None]:
        return self.counter.offload()


def _techniques(recipe: Recipe, counter: Counter) -> Techniques:
    found = [one for one in load_techniques(recipe.memory) if not isinstance(one, Compile)]  # there is nothing to run
    if any(technique.stage is Stage.SHARD for technique in found):
        raise UserError("memory shares the networks over several GPUs, and a plan is for one: leave out 'shard'")
    counted = (CountedOffload(counter) if isinstance(one, OffloadActivations) else one for one in found)
    return Techniques(counted)


# ---- networks drawn on a device, which may have no data ----


def drawn_setup(recipe: Recipe, device: torch.device) -> Setup:
    """The recipe's model and rewards: what the package has the sizes of as random weights, all else as for training.

    Raises:
        UserError: a part of the recipe cannot be had, or a reward would see too few frames.
    """
    one_process = Accelerator(cpu=not torch.accelerator.is_available())  # as in training: there is one for the program
    setup = joined(recipe, _model(recipe, device), _mix(recipe, device), one_process)
    setup.reward.check_size(setup.size)
    decoder = recipe.model.decoder
    return with_tiny(setup, None if decoder is None else load_tiny_shape(decoder, _dtype(recipe, device), device))


def _model(recipe: Recipe, device: torch.device) -> VideoModel:
    section = recipe.model
    return load_model_shape(section.family, section.checkpoint, section.options, _dtype(recipe, device), device)


def _mix(recipe: Recipe, device: torch.device) -> RewardMix:
    def load(name: str, **options: Any) -> Any:
        return load_reward_shape(name, options, device)

    return build_mix(recipe.rewards, load).to_precision(_dtype(recipe, device))


def _dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    asked = recipe.model.precision
    return frozen_dtype(PRECISION if asked == "auto" else asked, device)


def fill(engine: Engine) -> None:
    """How a run's second step finds things, and every later one: the optimiser has its state, what is parked waits."""
    for parameter in engine.parameters:
        parameter.grad = torch.zeros_like(parameter)
    engine.optimizer.step()
    engine.optimizer.zero_grad(set_to_none=True)
    for park in _parks(engine):
        park.leave()


def _parks(engine: Engine) -> list[Park]:
    return [technique for technique in engine.memory if isinstance(technique, Park)]


def _weights(engine: Engine, counter: Counter) -> dict[str, int]:
    """The bytes of frozen weights by network; those that are there when a step begins are told to the counter."""
    parks, found = _parks(engine), {}
    for name, network in {**engine.networks, **dict(engine.reward.items())}.items():
        tensors = [*network.parameters(), *network.buffers()]
        found[name] = sum(tensor.nbytes for tensor in tensors if not tensor.requires_grad)
        for tensor in () if any(network in park.places for park in parks) else tensors:
            counter.add(tensor)
    return found


def _state(engine: Engine, algorithm: Algorithm) -> list[Tensor]:
    """The trained weights with the optimiser's state, their average, and what the algorithm remembers on the device.

    What several weights share, as tables of codes, is there once.
    """
    held = [tensor for one in engine.parameters for tensor in (one, *engine.optimizer.state[one].values())]
    average = engine.average.state() if engine.average else []
    remembered = tree_leaves(algorithm.state_dict())
    tensors = [one for one in (*held, *average, *remembered) if isinstance(one, Tensor) and one.dim()]
    here = engine.parameters[0].device
    return list({id(tensor): tensor for tensor in tensors if tensor.device == here}.values())
