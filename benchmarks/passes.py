"""The network passes that a training step cannot do without: how many, and each as a bare call of its network.

In go the engine, the algorithm and a batch, out come `Pass`es on tensors of the shapes and types that the step has.
Their sum is what an ideal step would cost; their floating-point operations can be counted on the meta device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vader import randomness
from vader.algorithms.reward_gradient import RewardGradient
from vader.engine.batch import Batch
from vader.engine.engine import Engine
from vader.files.images import prompt_images
from vader.models.base import VideoModel
from vader.models.modelscope import ModelScope
from vader.nouns import Clip, Condition, Prompt, VideoSize
from vader.rewards.base import Reward
from vader.sampling.guidance import Guidance
from vader.sampling.guidance import Passes as Guided
from vader.sampling.noise import Noise
from vader.sampling.policies import Policy
from vader.sampling.walk import EXACT, Prefix, Sampler, Walk
from vader.scoring.choice import Group, Piece, blocks, pieces, training_groups
from vader.solvers import Schedule
from vader.solvers.scheduler_config import solver_from_config

Run = Callable[[], Any]


@dataclass(frozen=True)
class Pass:
    """A call of one network (or its calls on all pieces of a video), and how often a training step needs it."""

    name: str
    count: int
    run: Run

    def run_all(self) -> None:
        for _ in range(self.count):
            self.run()


def necessary_passes(engine: Engine, algorithm: RewardGradient, batch: Batch) -> list[Pass]:
    """The passes of a training step of the reward gradient on this batch.

    Networks are called as the recipe sets them up: adapter attached, blocks recomputed where it says so.
    """
    micro = next(engine.micro_batches(batch))
    repeats = len(batch.prompts) // len(micro.prompts)
    generator = randomness.generator(engine.recipe.train.seed, "policy", batch.step)
    walk = engine.training_walk(micro)
    needed, views = necessary_calls(algorithm.policy, engine.recipe.sampling.steps, generator, walk.prefix)
    if algorithm.settings.base_distance:
        needed += [Call(call.i, grad=False, through=False) for call in needed if call.grad]
    return [
        Pass("encoder", repeats, encoding(engine.model, micro.prompts, engine.size)),
        *denoiser_passes(walk, needed, repeats),
        *scoring_passes(engine, batch, walk.noise.draw("start"), views, algorithm.settings.split_backward),
        Pass("optimiser", 1, optimising(engine)),
    ]


# ---- what a policy asks of the denoiser: told by its moves on a chain of numbers ----


class Call(NamedTuple):
    """One prediction at step i: whether with gradient to the adapter, and on through the latents; whether guided."""

    i: int
    grad: bool
    through: bool
    guided: bool = True

    @property
    def name(self) -> str:
        if not self.grad:
            return "denoiser, no gradient"
        return "denoiser, gradient to latents too" if self.through else "denoiser, gradient to adapter"


class Asking(Guidance):
    """A model and its guidance in one: predicts nothing, and notes what it is asked."""

    denoisers: ClassVar[dict[str, nn.Module]] = {}

    def __init__(self, schedule: Schedule) -> None:
        self.times, self.asked = [level.time for level in schedule.starts], list[Call]()

    def __call__(self, passes: Guided) -> Tensor:
        return self._noted(passes.latents, passes.time, guided=True)

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The conditional prediction alone: what guidance would not ask for."""
        return self._noted(latents, time, guided=False)

    def _noted(self, latents: Tensor, time: Tensor, guided: bool) -> Tensor:
        i = min(range(len(self.times)), key=lambda one: abs(self.times[one] - float(time)))
        grad = torch.is_grad_enabled()
        self.asked.append(Call(i, grad, grad and latents.requires_grad, guided))
        return 0.0 * latents + torch.zeros((), requires_grad=grad)


def necessary_calls(
    policy: Policy, steps: int, generator: torch.Generator, prefix: Prefix = EXACT
) -> tuple[list[Call], int]:
    """The predictions that a policy needs of each micro-batch, and how many views of them the reward sees."""
    solver = solver_from_config({"_class_name": "FlowMatchEulerDiscreteScheduler"})
    schedule = solver.schedule(steps)
    asking: Any = Asking(schedule)
    noise = Noise((1,), 0, "benchmark", 0, [0])
    walk = Walk(Sampler(asking, solver, schedule, asking), Condition({"": torch.zeros(1)}, {}), noise, prefix=prefix)
    return asking.asked, len(list(policy(walk, generator)))


# ---- bare calls: of ModelScope's networks directly, of another family's through its contract's one call ----


def encoding(model: VideoModel, prompts: Sequence[Prompt], size: VideoSize) -> Run:
    """Prompts, and their negative texts where these differ, or the pictures that videos start from."""
    if not isinstance(model, ModelScope):
        images = prompt_images(prompts, size.height, size.width) if model.takes_images else None
        return lambda: model.encode(prompts, size, images)
    settings = {"padding": "max_length", "max_length": model.tokenizer.model_max_length, "truncation": True}
    texts = [[prompt.text for prompt in prompts], *([text] for text in dict.fromkeys(p.negative for p in prompts))]
    ids = [model.tokenizer(some, return_tensors="pt", **settings).input_ids.to(model.device) for some in texts]
    return torch.no_grad()(lambda: [model.text_encoder(some)[0] for some in ids])


def denoiser_passes(walk: Walk, calls: Sequence[Call], repeats: int) -> Iterator[Pass]:
    """Guided passes, forward and, with gradient, backward. Those that differ in what guidance asks stand apart."""
    latents = walk.noise.draw("start")
    alike: dict[tuple[str, int], list[Call]] = defaultdict(list)
    for call in calls:
        alike[call.name, sum(len(branch.latents) for branch in branches(walk, call, latents))].append(call)
    for (name, rows), same in alike.items():
        several = sum(other == name for other, _ in alike) > 1
        run = denoising(walk.sampler.model, branches(walk, same[0], latents), same[0].through)
        yield Pass(f"{name}, of {rows} videos" if several else name, repeats * len(same), run)


class Branch(NamedTuple):
    """What guidance asks of the denoiser in one call."""

    latents: Tensor
    time: Tensor
    inputs: dict[str, Tensor]
    grad: bool


class Listener:
    """Stands for a model before guidance, and notes what it is asked; it predicts nothing."""

    def __init__(self, model: VideoModel) -> None:
        self.model, self.asked = model, list[Branch]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        self.asked.append(Branch(latents, time, inputs, torch.is_grad_enabled()))
        return torch.zeros_like(latents)


def branches(walk: Walk, call: Call, latents: Tensor) -> list[Branch]:
    listener: Any = Listener(walk.sampler.model)
    with torch.set_grad_enabled(call.grad):
        replace(walk, sampler=replace(walk.sampler, model=listener)).predict(call.i, latents, call.guided)
    return listener.asked


def denoising(model: VideoModel, asked: Sequence[Branch], through: bool) -> Run:
    """One guided pass; where there is gradient, to the adapter and perhaps to the latents."""
    network = model.denoisers[model.expert(float(asked[0].time))] if len(model.denoisers) > 1 else model.denoiser
    calls = [
        differentiated(_denoiser(model, branch), branch.latents, network, through)
        if branch.grad
        else torch.no_grad()(_bound(_denoiser(model, branch), branch.latents))
        for branch in asked
    ]
    return lambda: [call() for call in calls]


def _denoiser(model: VideoModel, branch: Branch) -> Callable[[Tensor], Tensor]:
    if not isinstance(model, ModelScope):
        return lambda latents: model.denoise(latents, branch.time, branch.inputs)
    dtype, text = model.denoiser.dtype, branch.inputs["text"].to(model.denoiser.dtype)
    return lambda latents: model.denoiser(latents.to(dtype), branch.time, text).sample


def scoring_passes(engine: Engine, batch: Batch, latents: Tensor, views: int, split: bool) -> list[Pass]:
    """Decoder and rewards, each on all pieces of the frames that each micro-batch shows."""
    seed, found = engine.recipe.train.seed, defaultdict[str, list[Run]](list)
    for micro in engine.micro_batches(batch):
        for group in training_groups(engine.reward, engine.size, seed, batch.step, micro.indices):
            for name, run in scoring_runs(engine, group, micro.prompts, latents, split):
                found[name].append(run)
    return [Pass(name, views, _together(runs)) for name, runs in found.items()]


def scoring_runs(
    engine: Engine, group: Group, prompts: Sequence[Prompt], latents: Tensor, split: bool
) -> Iterator[tuple[str, Run]]:
    """Each call, in the pieces that the scorer makes: forward and backward to the latents or pixels."""
    model, frames = engine.model, group.frames
    if not split:
        yield "decoder", decoding(model, latents, frames, [Piece(*map(slice, frames.shape))])
        yield "reward", scoring(engine, {**group.framewise, **group.whole}, prompts, frames.shape)
        return
    parts = pieces(frames, model.windows(engine.size), engine.recipe.scoring.images)
    yield "decoder", decoding(model, latents, frames, parts)
    yield from (("reward", run) for piece in parts for run in framewise_runs(engine, group, prompts, piece))
    if group.whole:
        yield "decoder, no gradient", torch.no_grad()(decoding(model, latents, frames, parts))
        yield "reward", scoring(engine, group.whole, prompts, frames.shape)


def framewise_runs(engine: Engine, group: Group, prompts: Sequence[Prompt], piece: Piece) -> Iterator[Run]:
    """Rewards of single frames, on chunks of what was decoded together."""
    videos, frames = group.frames[piece].shape
    for some in blocks(videos, frames, engine.recipe.scoring.images) if group.framewise else ():
        told = prompts[piece.rows][some.rows]
        yield scoring(engine, group.framewise, told, (len(told), len(range(frames)[some.places])))


def decoding(model: VideoModel, latents: Tensor, frames: Tensor, parts: Sequence[Piece]) -> Run:
    """Frames piece by piece, forward and, where there is gradient, backward to the latents. These are new at each run,
    as a step's are: a causal decoder goes on from where it was in the same ones."""

    def run() -> None:
        leaf = latents.detach().requires_grad_(torch.is_grad_enabled())
        for piece in parts:
            pixels = _decoded(model, leaf[piece.rows], frames[piece])
            if pixels.requires_grad:
                pixels.backward(torch.ones_like(pixels))

    return run


def _decoded(model: VideoModel, latents: Tensor, chosen: Tensor) -> Tensor:
    if not isinstance(model, ModelScope):
        return model.decode_unclamped(latents, chosen)
    images = latents.movedim(2, 1)[:, : chosen.shape[1]].flatten(0, 1)
    return model.vae.decode(images.to(model.vae.dtype)).sample


def scoring(engine: Engine, rewards: dict[str, Reward], prompts: Sequence[Prompt], shape: Sequence[int]) -> Run:
    """Rewards of `shape` (videos, frames) images, forward and backward to the pixels."""
    size = engine.size
    pixels = torch.rand(*shape, 3, size.height, size.width, device=engine.model.device)

    def total(leaf: Tensor) -> Tensor:
        clip = Clip.whole(leaf, size.fps)
        return engine.reward.total({name: reward.score(clip, prompts) for name, reward in rewards.items()})

    return differentiated(total, pixels)


def optimising(engine: Engine) -> Run:
    grads = [1e-3 * torch.randn_like(parameter) for parameter in engine.parameters]

    def step() -> None:
        for parameter, grad in zip(engine.parameters, grads, strict=True):
            parameter.grad = grad
        engine.optimizer.step()
        engine.optimizer.zero_grad(set_to_none=True)

    return step


# ---- calls as runs ----


def differentiated(
    call: Callable[[Tensor], Tensor], inputs: Tensor, network: nn.Module | None = None, to_inputs: bool = True
) -> Run:
    """`call(inputs)` and its backward: to the inputs (if `to_inputs`) and to what the network trains."""
    leaf = inputs.detach().requires_grad_(to_inputs)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad] if network else []

    def forward_backward() -> None:
        output = call(leaf)
        output.backward(torch.ones_like(output))
        for tensor in (leaf, *trained):
            tensor.grad = None

    return forward_backward


def _bound(call: Callable[[Tensor], Tensor], inputs: Tensor) -> Run:
    return lambda: call(inputs)


def _together(runs: Sequence[Run]) -> Run:
    return lambda: [run() for run in runs]
