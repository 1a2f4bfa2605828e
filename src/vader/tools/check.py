"""Proof that a part of one's own keeps its contract, before hours of training are spent on it.

A reward or a base model comes in, a list of `Check`s goes out: shapes, ranges, independence within the
batch, frozen weights, and a gradient that arrives and agrees with central finite differences. A check
that raises has failed, with the error as its detail.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from vader.errors import UserError
from vader.models.base import VideoModel
from vader.networks.adapter import add_adapters, parameters_of
from vader.nouns import Audio, Clip, Condition, Prompt, VideoSize, as_prompts, flat, map_latents
from vader.plugins import one_line, told
from vader.randomness import generator
from vader.rewards.base import Reward, require_scores
from vader.rewards.needs import Needs
from vader.sampling.guidance import Passes, load_guidance
from vader.sampling.noise import Noise
from vader.sampling.videos import make_sampler, solver_of
from vader.sampling.walk import Walk

PROMPTS = (Prompt("a red circle moving left over snow"), Prompt("a blue square moving up over grass"))
SIZE = VideoSize(frames=4, height=32, width=32)
SOUND_RATE = 8000  # samples a second
MOST_CLAMPED = 0.9  # of a chain's pixels: beyond, there is hardly anything to learn from
SHORT_CHAIN = 8  # steps
CHAIN = 40  # steps: enough that every denoiser has some of them


@dataclass(frozen=True)
class Check:
    """One line of the table: what was checked, whether it holds, and the figures or the error."""

    name: str
    passed: bool
    detail: str


Outcome = tuple[bool, str]


def _run(tests: Mapping[str, Callable[[], Outcome]]) -> list[Check]:
    return [_check(name, test) for name, test in tests.items()]


def _check(name: str, test: Callable[[], Outcome]) -> Check:
    try:
        passed, detail = test()
    except UserError as error:
        return Check(name, False, one_line(error))
    except Exception as error:  # the part under test is the user's: whatever it raises is the finding
        return Check(name, False, told(error))
    return Check(name, passed, detail)


# ---- rewards ----


def check_reward(reward: Reward, prompts: Sequence[str | Prompt] = PROMPTS, size: VideoSize = SIZE) -> list[Check]:
    """Checks a reward on random videos of `size`, one for each prompt (two or more), with sound if it listens."""
    device = next(reward.parameters(), torch.empty(0)).device
    clip = _shown(reward.needs, size, _random_clip(len(prompts), size, reward.needs.audio, device))
    reached = "pixels or sound" if reward.needs.audio else "the pixels"
    tests = {
        "one finite number a video": _scores,
        "the same again": _same_again,
        "videos don't mix": _videos_independent,
        "frames don't mix": _frames_independent,
        f"gradient reaches {reached}": _reaches_clip,
        "gradient agrees with finite differences": _clip_gradient_agrees,
    }
    if not reward.framewise:
        del tests["frames don't mix"]
    bound = {name: partial(test, reward, clip, as_prompts(prompts)) for name, test in tests.items()}
    return _run(bound | {"weights are frozen, in eval mode": partial(_frozen, {"reward": reward})})


def _random_pixels(count: int, size: VideoSize) -> Tensor:
    """Uniform in [0.2, 0.8]: finite differences stay within [0, 1]."""
    shape = (count, size.frames, 3, size.height, size.width)
    return 0.2 + 0.6 * torch.rand(shape, generator=generator(0, "check/pixels"))


def _random_clip(count: int, size: VideoSize, sound: bool, device: torch.device) -> Clip:
    """Pixels and, if wanted, sound in stereo, half as loud as can be."""
    length = math.ceil(SOUND_RATE * size.frames / size.fps)
    samples = torch.rand((count, 2, length), generator=generator(0, "check/sound")) - 0.5
    audio = Audio(samples.to(device), SOUND_RATE) if sound else None
    return Clip.whole(_random_pixels(count, size).to(device), size.fps, audio)


def _shown(needs: Needs, size: VideoSize, clip: Clip) -> Clip:
    """The frames that a reward needs of a whole video."""
    return clip.at(needs.choose(size).to(clip.frames.device).expand(len(clip), -1))


@torch.no_grad()
def _scores(reward: Reward, clip: Clip, prompts: list[Prompt]) -> Outcome:
    scores = require_scores(reward.score(clip, prompts), len(prompts), "score", "video")
    if scores.dtype != torch.float32:
        return False, f"dtype is {scores.dtype}, should be torch.float32"
    low, high = reward.sensible_range
    return bool(scores.isfinite().all()), f"{_listed(scores)}; sensible range {low:g} to {high:g}"


@torch.no_grad()
def _same_again(reward: Reward, clip: Clip, prompts: list[Prompt]) -> Outcome:
    return _equal(reward.score(clip, prompts), reward.score(clip, prompts))


@torch.no_grad()
def _videos_independent(reward: Reward, clip: Clip, prompts: list[Prompt]) -> Outcome:
    alone = torch.cat([reward.score(clip[i : i + 1], prompts[i : i + 1]) for i in range(len(prompts))])
    return _equal(reward.score(clip, prompts), alone, _tolerance(reward))


@torch.no_grad()
def _frames_independent(reward: Reward, clip: Clip, prompts: list[Prompt]) -> Outcome:
    places = torch.arange(clip.frames.shape[1], device=clip.frames.device).expand(len(clip), -1).split(1, dim=1)
    alone = torch.stack([reward.score(clip.at(place), prompts) for place in places])
    return _equal(reward.score(clip, prompts), alone.mean(dim=0), _tolerance(reward))


def _reaches_clip(reward: Reward, clip: Clip, prompts: list[Prompt]) -> Outcome:
    gradient = _clip_gradient(reward, clip, _numbers(clip), prompts)
    videos = gradient.norm(dim=1)
    reached = (gradient != 0).float().mean().item()
    return bool(videos.isfinite().all() and (videos > 0).all()), f"{reached:.0%} of them; norms {_listed(videos)}"


def _numbers(clip: Clip) -> Tensor:
    """All pixels of each video and, where there is sound, its samples: `[B, D]`."""
    return torch.cat([clip.frames.flatten(1), *([clip.audio.samples.flatten(1)] if clip.audio else [])], dim=1)


def _with_numbers(clip: Clip, numbers: Tensor) -> Clip:
    """The clip of other pixels and samples."""
    count = clip.frames[0].numel()
    audio = clip.audio and Audio(numbers[:, count:].view_as(clip.audio.samples), clip.audio.rate)
    return Clip(numbers[:, :count].view_as(clip.frames), clip.times, audio)


def _clip_gradient(reward: Reward, clip: Clip, numbers: Tensor, prompts: list[Prompt]) -> Tensor:
    numbers = numbers.clone().requires_grad_()
    return torch.autograd.grad(reward.score(_with_numbers(clip, numbers), prompts).sum(), numbers)[0]


def _clip_gradient_agrees(reward: Reward, clip: Clip, prompts: list[Prompt]) -> Outcome:
    def error(dtype: torch.dtype) -> float:
        probe, numbers = CASTS[dtype](copy.deepcopy(reward)), _numbers(clip).to(dtype)
        _require_dtype(probe.score(_with_numbers(clip, numbers), prompts), dtype)
        gradient = _clip_gradient(probe, clip, numbers, prompts)
        return _gradient_error(gradient, _shifted_scores(probe, clip, numbers, prompts), PIXEL_STEPS[dtype])

    def error_as_it_is() -> float:
        numbers = _numbers(clip)
        gradient = _clip_gradient(reward, clip, numbers, prompts)
        shifted = _shifted_scores(reward, clip, numbers, prompts)
        return _gradient_error_along(gradient, shifted, PIXEL_STEPS[torch.float32])

    return _agreement(error, error_as_it_is)


def _shifted_scores(reward: Reward, clip: Clip, numbers: Tensor, prompts: list[Prompt]) -> Callable[[Tensor], float]:
    """The sum of the scores of a clip of displaced numbers."""

    @torch.no_grad()
    def shifted(displacement: Tensor) -> float:
        return reward.score(_with_numbers(clip, numbers + displacement), prompts).double().sum().item()

    return shifted


# ---- base models ----


def check_model(
    model: VideoModel, size: VideoSize | None = None, prompts: Sequence[str | Prompt] = PROMPTS
) -> list[Check]:
    """Checks a model on random latents of `size` (by default `VideoModel.check_size`), one for each prompt (two or
    more), and random pictures if it starts from them.

    Adapters are tried on copies of the denoisers; the model itself stays as it is.
    """
    tests = {
        "latents have a shape": _noise_shape,
        "one condition a prompt": _conditions,
        "solver steps": _solver_steps,
        "every denoiser has its times": _experts,
        "prediction is like the latents": _prediction,
        "videos don't mix": _predictions_independent,
        "pixels in [0, 1]": _pixels,
        "chosen frames are those of the whole": _chosen_frames,
        "windows are parts of the whole": _windows,
        "gradient reaches the latents": _reaches_latents,
        "gradient reaches the adapter": _reaches_adapter,
        "gradient agrees with finite differences": _adapter_gradient_agrees,
        "the last step trains": _last_step_trains,
    }
    if type(model).decode_audio is not VideoModel.decode_audio:
        tests["sound in [-1, 1], with gradient"] = _sound
    size = size or model.check_size
    bound = {name: partial(test, model, size, as_prompts(prompts)) for name, test in tests.items()}
    return _run(bound | {"weights are frozen, in eval mode": lambda: _frozen(model.networks())})


def _latents(model: VideoModel, size: VideoSize, count: int) -> Any:
    return Noise(model.noise_shape(size), 0, "check", 0, range(count), model.device).draw("latents")


def _condition(model: VideoModel, size: VideoSize, prompts: list[Prompt]) -> Condition:
    """The prompts, encoded; where videos start from pictures, random ones."""
    images = _random_pixels(len(prompts), size)[:, 0] if model.takes_images else None
    return model.encode(prompts, size, images)


def _times(model: VideoModel, size: VideoSize) -> dict[str, list[float]]:
    """The times of a chain by the denoiser that `expert` names of them."""
    times: dict[str, list[float]] = {}
    for level in solver_of(model).schedule(CHAIN, size).starts:
        times.setdefault(model.expert(level.time), []).append(level.time)
    return times


def _predict(model: VideoModel, size: VideoSize, latents: Any, condition: Condition, time: float | None = None) -> Any:
    """The guided prediction at a time, or in the middle of a chain."""
    at = solver_of(model).schedule(4, size).starts[2].time if time is None else time
    first = latents if isinstance(latents, Tensor) else next(iter(latents.values()))
    guidance = load_guidance(model.guidance, {"scale": 2.0})
    return guidance(Passes(model, latents, torch.tensor(at).to(first), condition))


def _noise_shape(model: VideoModel, size: VideoSize, prompts: list[Prompt]) -> Outcome:
    shape = model.noise_shape(size)
    shapes = list(shape.values()) if isinstance(shape, dict) else [shape]
    whole = all(isinstance(length, int) and length > 0 for one in shapes for length in one)
    return (
        whole,
        f"{', '.join(str(list(one)) for one in shapes)} for {size.frames} frames of {size.height}x{size.width}",
    )


def _conditions(model: VideoModel, size: VideoSize, prompts: list[Prompt]) -> Outcome:
    condition = _condition(model, size, prompts)
    shapes = {name: list(value.shape) for name, value in condition.cond.items()}
    if shapes != {name: list(value.shape) for name, value in condition.uncond.items()}:
        return False, "cond and uncond differ in names or shapes"
    if any(shape[0] != len(prompts) for shape in shapes.values()):
        return False, f"first dimension should be {len(prompts)}: {shapes}"
    latents = _latents(model, size, len(prompts))
    if condition.known is not None and _shapes(condition.known.keep(latents)) != _shapes(latents):
        return False, f"with what is known in their place latents are {_shapes(condition.known.keep(latents))}"
    attached = [name for name, value in condition.both().items() if value.requires_grad]
    return not attached, f"{attached[0]} carries a graph" if attached else f"{shapes}"


@torch.no_grad()
def _solver_steps(model: VideoModel, size: VideoSize, prompts: list[Prompt]) -> Outcome:
    solver = solver_of(model)
    schedule = solver.schedule(4, size)
    latents = flat(_latents(model, size, len(prompts)))
    nothing = torch.zeros_like(latents)
    step = solver.step(latents, nothing, schedule.starts[2], schedule.ends[2], nothing)
    times = torch.tensor([level.time for level in schedule.starts])
    return bool(step.next.isfinite().all()), f"times {_listed(times)}"


def _experts(model: VideoModel, size: VideoSize, prompts: list[Prompt]) -> Outcome:
    found = _times(model, size)
    if unknown := [name for name in found if name not in model.denoisers]:
        return False, f"expert() names {unknown[0]!r}, but the denoisers are {', '.join(model.denoisers)}"
    if idle := [name for name in model.denoisers if name not in found]:
        return False, f"{idle[0]!r} works at no time of a chain of {CHAIN} steps: expert() never names it"
    return True, "; ".join(f"{name} from {max(times):.4g} to {min(times):.4g}" for name, times in found.items())


@torch.no_grad()
def _prediction(model: VideoModel, size: VideoSize, prompts: list[Prompt]) -> Outcome:
    latents = _latents(model, size, len(prompts))
    found = _predict(model, size, latents, _condition(model, size, prompts))
    if _shapes(found) != _shapes(latents):
        return False, f"{_shapes(found)}, should be {_shapes(latents)}"
    prediction = flat(found)
    return bool(prediction.isfinite().all()), f"mean {prediction.mean():.3g}, standard deviation {prediction.std():.3g}"


def _shapes(latents: Any) -> str:
    """What latents, or a prediction, are: sizes and types."""
    parts = [latents] if isinstance(latents, Tensor) else [latents[name] for name in sorted(latents)]
    return ", ".join(f"{list(part.shape)} {part.dtype}" for part in parts)


@torch.no_grad()
def _predictions_independent(model: VideoModel, size: VideoSize, prompts: list[Prompt]) -> Outcome:
    latents, condition = _latents(model, size, len(prompts)), _condition(model, size, prompts)
    rows = [slice(i, i + 1) for i in range(len(prompts))]
    alone = [_predict(model, size, map_latents(lambda x, row=row: x[row], latents), condition[row]) for row in rows]
    together = flat(_predict(model, size, latents, condition))
    return _equal(together, torch.cat([flat(one) for one in alone]), _tolerance(model.denoiser))


@torch.no_grad()
def _pixels(model: VideoModel, size: VideoSize, prompts: list[Prompt]) -> Outcome:
    pixels = model.decode(_latents(model, size, len(prompts)))
    expected = (len(prompts), size.frames, 3, size.height, size.width)
    if tuple(pixels.shape) != expected or pixels.dtype != torch.float32:
        return False, f"{list(pixels.shape)} {pixels.dtype}, should be {list(expected)} torch.float32"
    low, high = pixels.min().item(), pixels.max().item()
    return 0 <= low <= high <= 1, f"{list(pixels.shape)}, from {low:.2f} to {high:.2f}"


@torch.no_grad()
def _chosen_frames(model: VideoModel, size: VideoSize, prompts: list[Prompt]) -> Outcome:
    latents = _latents(model, size, len(prompts))
    rows = torch.arange(len(prompts), device=model.device)[:, None]
    chosen = (rows + torch.tensor([0, size.frames // 2], device=model.device)) % size.frames  # each video its own
    return _equal(model.decode(latents, chosen), model.decode(latents)[rows, chosen], _tolerance(model.denoiser))


@torch.no_grad()
def _windows(model: VideoModel, size: VideoSize, prompts: list[Prompt]) -> Outcome:
    windows = [list(window) for window in model.windows(size)]
    if [frame for window in windows for frame in window] != list(range(size.frames)):
        return False, f"they should hold every frame once, in order: {windows}"
    latents, count = _latents(model, size, len(prompts)), len(prompts)
    alone = [model.decode(latents, torch.tensor(window, device=model.device).expand(count, -1)) for window in windows]
    same, detail = _equal(torch.cat(alone, dim=1), model.decode(latents), _tolerance(model.denoiser))
    return same, f"{len(windows)} of at most {max(map(len, windows))} frames; {detail}"


def _sound(model: VideoModel, size: VideoSize, prompts: list[Prompt]) -> Outcome:
    latents = map_latents(lambda x: x.requires_grad_(), _latents(model, size, len(prompts)))
    parts = [latents] if isinstance(latents, Tensor) else list(latents.values())
    samples = model.decode_audio(latents).samples
    if samples.ndim != 3 or len(samples) != len(prompts) or samples.dtype != torch.float32:
        return False, f"{list(samples.shape)} {samples.dtype}, should be [{len(prompts)}, C, N] torch.float32"
    gradients = torch.autograd.grad(samples.sum(), parts, allow_unused=True)
    reached = any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    reached &= all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)
    low, high = samples.min().item(), samples.max().item()
    return reached and -1 <= low <= high <= 1, f"{list(samples.shape)}, from {low:.2f} to {high:.2f}"


def _reaches_latents(model: VideoModel, size: VideoSize, prompts: list[Prompt]) -> Outcome:
    latents = map_latents(lambda x: x.requires_grad_(), _latents(model, size, len(prompts)))
    parts = [latents] if isinstance(latents, Tensor) else list(latents.values())
    gradients = torch.autograd.grad(model.decode_unclamped(latents).sum(), parts, allow_unused=True)
    norms = torch.cat([one.flatten(1) for one in gradients if one is not None], dim=1).norm(dim=1)
    return bool(norms.isfinite().all() and (norms > 0).all()), f"norms {_listed(norms)}"


def _reaches_adapter(model: VideoModel, size: VideoSize, prompts: list[Prompt]) -> Outcome:
    probe, parameters, objective = _adapter_objective(model, size, prompts, torch.float32)
    gradients = torch.autograd.grad(objective(), parameters, allow_unused=True)
    reached = sum(gradient is not None and bool(gradient.any()) for gradient in gradients)
    finite = all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)
    targets = ", ".join(probe.lora_targets)
    return finite and reached == len(parameters), f"{reached} of {len(parameters)} tensors of {targets}"


def _adapter_gradient_agrees(model: VideoModel, size: VideoSize, prompts: list[Prompt]) -> Outcome:
    def error(dtype: torch.dtype) -> float:
        _, parameters, objective = _adapter_objective(model, size, prompts, dtype)
        start = parameters_to_vector(parameters).detach().clone()
        value = objective()
        _require_dtype(value, dtype)
        gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        gradient = torch.cat([one.flatten() for one in gradients])

        @torch.no_grad()
        def shifted(displacement: Tensor) -> float:
            vector_to_parameters(start + displacement, parameters)
            return objective().item()

        return _gradient_error(gradient, shifted, ADAPTER_STEPS[dtype])

    return _agreement(error)


def _last_step_trains(model: VideoModel, size: VideoSize, prompts: list[Prompt]) -> Outcome:
    """A whole chain whose last step, the one that is trained by default, has a graph from the adapter to the pixels."""
    probe = _copy_with_adapters(model)
    noise = Noise(model.noise_shape(size), 0, "check/chain", 0, range(len(prompts)), model.device)
    walk = Walk(make_sampler(probe, size, SHORT_CHAIN, 2.0), _condition(model, size, prompts), noise)
    raw = probe.decode_unclamped(walk.kept(walk.step(walk.frozen(len(walk) - 1)).latents))
    weights = torch.randn(raw.shape, generator=generator(0, "check/projection")).to(raw)
    objective = (raw.clamp(0, 1) * weights).sum()
    gradients = torch.autograd.grad(objective, parameters_of(probe.denoisers), allow_unused=True)
    norm = torch.cat([one.flatten() for one in gradients if one is not None] or [raw.new_zeros(1)]).norm().item()
    clamped = ((raw <= 0) | (raw >= 1)).float().mean().item()
    found = f"norm {norm:.3g}; {clamped:.0%} of the pixels are clamped to [0, 1], where none flows"
    return 0 < norm < math.inf and clamped <= MOST_CLAMPED, found


def _adapter_objective(
    model: VideoModel, size: VideoSize, prompts: list[Prompt], dtype: torch.dtype
) -> tuple[VideoModel, list[nn.Parameter], Callable[[], Tensor]]:
    """A copy of the model with small random adapters, all in `dtype`, and a random projection of its predictions,
    one for each denoiser, in the middle of its times."""
    probe = _copy_with_adapters(model)
    for denoiser in probe.denoisers.values():
        CASTS[dtype](denoiser)
    latents = map_latents(lambda x: x.to(dtype), _latents(model, size, len(prompts)))
    condition = _cast(_condition(model, size, prompts), dtype)
    middles = [times[len(times) // 2] for times in _times(model, size).values()]
    numbers = flat(latents)
    weights = torch.randn(numbers.shape, generator=generator(0, "check/projection")).to(numbers)

    def objective() -> Tensor:
        predictions = [flat(_predict(probe, size, latents, condition, time)) for time in middles]
        return sum((one * weights).sum() for one in predictions) / weights.numel() ** 0.5  # type: ignore[return-value]

    return probe, parameters_of(probe.denoisers), objective


def _copy_with_adapters(model: VideoModel) -> VideoModel:
    """Only denoisers are copied; the other networks are shared with the original."""
    own = set(map(id, model.denoisers.values()))
    shared = {id(network): network for network in model.networks().values() if id(network) not in own}
    probe = copy.deepcopy(model, shared)
    add_adapters(probe.denoisers, model.lora_targets, rank=2)
    for index, parameter in enumerate(parameters_of(probe.denoisers)):
        fresh = torch.randn(parameter.shape, generator=generator(0, "check/adapter", index=index))
        parameter.data.copy_(0.05 * fresh)
    return probe


def _cast(condition: Condition, dtype: torch.dtype) -> Condition:
    def cast(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in values.items()}

    return Condition(cast(condition.cond), cast(condition.uncond), condition.known)


# ---- common ----

CASTS = {torch.float64: nn.Module.double, torch.float32: nn.Module.float}

# Steps of the finite differences: so small that few kinks (|x|, ReLU) lie within, but well above the rounding.
PIXEL_STEPS = {torch.float64: 1e-7, torch.float32: 2e-3}
ADAPTER_STEPS = {torch.float64: 1e-6, torch.float32: 1e-3}
TOLERANCES = {torch.float64: 1e-3, torch.float32: 0.1}
HALF_TOLERANCE = 0.2  # of what computes in half precision


def _gradient_error(gradient: Tensor, shifted: Callable[[Tensor], float], step: float, directions: int = 3) -> float:
    """The median of `|g.d - (f(x + h d) - f(x - h d)) / 2h| / |g|` over random directions d of +1 and -1.

    Relative to |g|, which is the spread of g.d, so that a direction almost at right angles to g does no harm;
    the median, so that a kink in one direction's way doesn't either.

    Raises:
        TypeError: half the step gives other differences: within, something computes in less than this precision.
    """
    _require_some(gradient)
    norm, errors, spreads = gradient.norm().item(), [], []
    for index in range(directions):
        signs = torch.randint(2, gradient.shape, generator=generator(0, "check/direction", index=index))
        direction = (2 * signs - 1).to(gradient)
        numeric, halved = ((shifted(h * direction) - shifted(-h * direction)) / (2 * h) for h in (step, step / 2))
        errors.append(abs((gradient * direction).sum().item() - numeric) / norm)
        spreads.append(abs(numeric - halved) / norm)
    if statistics.median(spreads) > TOLERANCES[gradient.dtype]:
        raise TypeError(f"does not compute in {_word(gradient.dtype)} throughout")
    return statistics.median(errors)


def _gradient_error_along(gradient: Tensor, shifted: Callable[[Tensor], float], step: float) -> float:
    """The median of `|1 - (f(x + h d) - f(x - h d)) / 2h / g.d|`, each d the signs of g at a random half of its places.

    In half precision a step in any other direction changes less than rounding does.
    """
    _require_some(gradient)
    errors = []
    for index in range(3):
        places = torch.randint(2, gradient.shape, generator=generator(0, "check/places", index=index))
        direction = gradient.sign() * places.to(gradient)
        numeric = (shifted(step * direction) - shifted(-step * direction)) / (2 * step)
        errors.append(abs(1 - numeric / (gradient * direction).sum().item()))
    return statistics.median(errors)


def _agreement(error: Callable[[torch.dtype], float], as_it_is: Callable[[], float] | None = None) -> Outcome:
    """In float64 where the part computes in it, else in float32 with a wider tolerance.

    Args:
        as_it_is: the error of what computes in neither: in half precision, along its gradient.
    """
    for dtype in (torch.float64, torch.float32):
        try:
            relative = error(dtype)
        except Exception:  # many a network cannot, each in its own way; the last precision then tells what is wrong
            if dtype == torch.float32 and as_it_is is None:
                raise
            continue
        return relative < TOLERANCES[dtype], f"relative error {relative:.1e} in {_word(dtype)}"
    assert as_it_is is not None
    relative = as_it_is()
    return relative < HALF_TOLERANCE, f"relative error {relative:.1e} along the gradient, in half precision"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _require_dtype(value: Tensor, dtype: torch.dtype) -> None:
    if value.dtype != dtype:
        raise TypeError(f"computes in {value.dtype}, not in {dtype}")


def _require_some(gradient: Tensor) -> None:
    if not gradient.any():
        raise UserError("the gradient is zero everywhere")


def _frozen(networks: Mapping[str, nn.Module]) -> Outcome:
    for label, network in networks.items():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                return False, f"{label}: {name} takes a gradient: call requires_grad_(False)"
        for name, module in network.named_modules():
            if module.training:
                return False, f"{label}: {name or 'it'} is in training mode: call eval()"
    count = sum(parameter.numel() for network in networks.values() for parameter in network.parameters())
    return True, f"{count:,} weights"


def _equal(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> Outcome:
    """Equal up to rounding: relative to the largest absolute value."""
    if one.shape != other.shape:
        return False, f"shapes differ: {list(one.shape)} and {list(other.shape)}"
    difference = ((one - other).abs().max() / one.abs().max().clamp(min=1e-12)).item()
    return difference <= tolerance, f"relative difference {difference:.1e}"


def _tolerance(network: nn.Module) -> float:
    """What rounding may make of it."""
    half = any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in network.parameters())
    return 5e-2 if half else 1e-4


def _listed(values: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.tolist())
