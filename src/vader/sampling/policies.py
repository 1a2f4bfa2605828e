"""Gradient policies: where the reward gradient enters the sampling chain.

A policy is a function on a walk, with its own options: it makes moves, some with gradient, and yields what the reward
sees. Backpropagate each view before asking for the next. Random choices come from the generator, afresh in each
optimiser step. Steps are counted from the noise: 0 .. T - 1. Bring your own as `module:function`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Generator, Tensor

from vader.errors import UserError, nearest
from vader.nouns import flat, map_latents
from vader.plugins import checked_options, explained, load_function
from vader.sampling.walk import Place, Walk

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Bias = Annotated[float, Field(ge=0.0, le=10.0)]  # beyond, powers of hundreds of steps leave floating point


@dataclass(frozen=True)
class View:
    """Latents `[B, ...]` that the reward sees, with graph, and how much each reward counts: a number or `[B]`.

    Attributes:
        at: where the last step with gradient arrived, if that is not the end: for rewards that see noisy latents.
        walk: the walk whose view it is; the chain says so.
    """

    latents: Any
    weight: float | Tensor = 1.0
    at: Place | None = None
    walk: Walk | None = None


Policy = Callable[[Walk, Generator], Iterator[View]]


# ---- gradient in some steps of the chain, the reward at its end ----


def last(walk: Walk, generator: Generator, *, k: PositiveInt = 1) -> Iterator[View]:
    """The last K steps; VADER's experiments have K = 1 (arXiv 2407.08737, Algorithm 1; DRaFT-K, arXiv 2309.17400)."""
    _at_most(walk, "k", k)
    yield from _in_steps(walk, range(len(walk) - k, len(walk)))


def full(walk: Walk, generator: Generator) -> Iterator[View]:
    """Every step, K = T (DRaFT, arXiv 2309.17400)."""
    yield from _in_steps(walk, range(len(walk)))


def random_tail(walk: Walk, generator: Generator) -> Iterator[View]:
    """From a uniformly drawn step to the end (AlignProp's randomised truncation, arXiv 2310.03739)."""
    yield from _in_steps(walk, range(_uniform(0, len(walk), generator), len(walk)))


def explicit(walk: Walk, generator: Generator, *, steps: tuple[NonNegativeInt, ...]) -> Iterator[View]:
    """The steps that the recipe names."""
    if not steps or len(set(steps)) < len(steps):
        raise UserError(f"policy 'steps' has the steps {list(steps)}: name at least one, and each once, as [0, 10, 24]")
    if max(steps) >= len(walk):
        raise UserError(f"policy 'steps' names step {max(steps)}, but sampling.steps is {len(walk)}: they start at 0")
    yield from _in_steps(walk, steps)


def sparse(
    walk: Walk, generator: Generator, *, k: PositiveInt = 4, bias: Bias = 1.0, rescale: Share = 0.5
) -> Iterator[View]:
    """K random steps, late ones more often; each sends its gradient straight to the end (FlowBP-Sparse,
    arXiv 2606.11075).

    Step i is drawn with probability ~ (i + 1)^bias, without replacement. No gradient goes through a denoiser's input,
    and each prediction's is multiplied by `1 + rescale * (whole path / chosen part of it - 1)`.
    """
    _at_most(walk, "k", k)
    chosen = late_biased(len(walk), k, bias, generator)
    yield from _in_steps(walk, chosen, compensation(walk, chosen, rescale), carry=0.0)


def bridge(
    walk: Walk, generator: Generator, *, k: Annotated[int, Field(ge=2)] = 5, bias: Bias = 2.0,
    rescale: Share = 1.0, discount: Share = 0.1,
) -> Iterator[View]:  # fmt: skip
    """`sparse` with one bridge: the middle one of the K steps passes `discount` of its gradient on through its input,
    to the steps before it (FlowBP-Bridge, arXiv 2606.11075)."""
    _at_most(walk, "k", k)
    chosen = late_biased(len(walk), k, bias, generator)
    gain, middle = compensation(walk, chosen, rescale), chosen[k // 2]
    at = walk.to(middle, walk.frozen(chosen[0]), chosen, gain, carry=0.0)
    at = walk.step(at, weight=gain, carry=discount)
    yield View(walk.to(len(walk), at, chosen, gain, carry=0.0).latents)


def leap(walk: Walk, generator: Generator, *, discount: Share = 0.3, tolerance: PositiveFloat = 0.1) -> Iterator[View]:
    """Two random steps k < j, each taken for a leap: k to j, and j to the end (LeapAlign, arXiv 2604.15311).

    The leaps' gradients are those of the chain's own two predictions, reweighted: the values stay the true chain's, and
    `discount` of the gradient goes on through the denoiser at j. A video counts `1 / (max(d_j, tolerance) +
    max(d_0, tolerance))`, the d being the mean distances between where the leaps lead and where the chain went.
    """
    if len(walk) < 2:
        raise UserError("policy 'leap' needs at least two steps: raise sampling.steps")
    k, j = sorted(torch.randperm(len(walk), generator=generator)[:2].tolist())
    before = walk.frozen(k)
    after = walk.step(before, weight=leap_weight(walk, k, j))
    middle = walk.to(j, after)
    last_leap = walk.step(middle, weight=leap_weight(walk, j, len(walk)), carry=discount)
    end = walk.to(len(walk), last_leap)
    distance = _mean_distance(walk.led(before, after.clean, j), middle.latents).clamp(min=tolerance)
    distance = distance + _mean_distance(walk.led(middle, last_leap.clean, len(walk)), end.latents).clamp(min=tolerance)
    yield View(end.latents, 1 / distance)


# ---- the reward at a clean estimate ----


def drtune(walk: Walk, generator: Generator, *, k: PositiveInt = 1, stop: Share = 0.4) -> Iterator[View]:
    """K evenly spaced steps from a random offset, inputs without gradient, then an early stop (DRTune,
    arXiv 2405.00760, Algorithm 1).

    The chain ends at a step drawn from its last `stop` share, and the reward sees the clean estimate there; 0: it runs
    to its end.
    """
    _at_most(walk, "k", k)
    reach = min(round(stop * len(walk)), len(walk) - k)
    end = len(walk) - (_uniform(0, reach, generator) if reach else 0)
    stride = end // k
    offset = _uniform(0, end - stride * (k - 1), generator)
    chosen = range(offset, offset + stride * k, stride)
    at = walk.to(end, walk.frozen(offset), chosen, carry=0.0)
    yield View(at.latents) if end == len(walk) else View(at.clean, at=at)


def refl(walk: Walk, generator: Generator, *, window: tuple[Share, Share] = (0.6, 1.0)) -> Iterator[View]:
    """One random step of a window of the chain, whose clean estimate the reward sees (ReFL, arXiv 2304.05977,
    Algorithm 1)."""
    at = walk.step(walk.frozen(_in_window(walk, window, generator)))
    yield View(at.clean, at=at)


# ---- views of noised results ----


def draft_lv(walk: Walk, generator: Generator, *, k: PositiveInt = 1) -> Iterator[View]:
    """The last step, averaged over k noises: lower variance than K = 1 (DRaFT-LV, arXiv 2309.17400, section 4)."""
    end = len(walk) - 1
    first = walk.step(walk.frozen(end)).latents
    yield View(first, 1 / k)
    for view in range(1, k):
        again = walk.renoised(first, end, walk.noise.draw(f"view{view}"))
        yield View(walk.step(again).latents, 1 / k)


def direct_align(
    walk: Walk, generator: Generator, *, window: tuple[Share, Share] = (0.1, 1.0), gap: Share = 0.1
) -> Iterator[View]:
    """The finished video, noised with noise that is known, one short leap, and the clean latents that the known noise
    then gives (Direct-Align in SRPO, arXiv 2509.06942, eq. 4-8).

    Args:
        window: shares of the chain between which the step is drawn; division by alpha amplifies where noise is all.
        gap: the leap's length as a share of the chain.
    """
    clean = walk.frozen(len(walk)).latents
    noise = walk.noise.draw("start")
    i = _in_window(walk, window, generator)
    j = min(len(walk), i + max(1, round(gap * len(walk))))
    there = walk.level(j)
    led = walk.leap(walk.renoised(clean, i, noise), j).latents
    yield View(walk.kept(map_latents(lambda x, e: (x - there.sigma * e) / there.alpha, led, noise)))


# ---- what they share ----


def _in_steps(walk: Walk, steps: Sequence[int], weight: float = 1.0, carry: float = 1.0) -> Iterator[View]:
    """Gradient in these steps; the predictions between them are constants, and the reward sees the end."""
    yield View(walk.to(len(walk), walk.frozen(min(steps)), steps, weight, carry).latents)


def late_biased(count: int, k: int, bias: float, generator: Generator) -> list[int]:
    """K of `count` steps in order, drawn without replacement with probability ~ (i + 1)^bias."""
    probabilities = torch.arange(1, count + 1, dtype=torch.float64) ** bias
    return torch.multinomial(probabilities, k, generator=generator).sort().values.tolist()


def compensation(walk: Walk, chosen: Sequence[int], rescale: float) -> float:
    """`1 + rescale * (path / chosen part - 1)`: what chosen steps are to make up for the rest (arXiv 2606.11075)."""
    reach = list(map(abs, walk.reaches()))
    return 1 + rescale * (sum(reach) / sum(reach[i] for i in chosen) - 1)


def leap_weight(walk: Walk, i: int, end: int) -> float:
    """The factor that makes step i's prediction count at `end` as if a leap led there (arXiv 2604.15311).

    For rectified flow: `(sigma_i - sigma_end) / (sigma_i - sigma_(i + 1))`.
    """
    _, straight = walk.linear(i, walk.level(end))
    _, taken = walk.linear(i, walk.sampler.schedule.ends[i])
    return straight / (taken * walk.passed(i + 1, end))


def _mean_distance(one: Any, other: Any) -> Tensor:
    """Mean absolute difference of each video's latents, `[B]`, without graph."""
    return (flat(one) - flat(other)).detach().abs().mean(dim=1)


def _in_window(walk: Walk, window: tuple[float, float], generator: Generator) -> int:
    if window[0] >= window[1]:
        raise UserError(f"the policy's window is {list(window)}: its first share must be below its second")
    low, high = (round(share * len(walk)) for share in window)
    low = min(low, len(walk) - 1)
    return _uniform(low, max(high, low + 1), generator)


def _uniform(low: int, high: int, generator: Generator) -> int:
    return int(torch.randint(low, high, (), generator=generator))


def _at_most(walk: Walk, name: str, value: int) -> None:
    if value > len(walk):
        raise UserError(f"the policy's {name} is {value} but sampling.steps is {len(walk)}: it can be at most that")


# ---- by name ----

GIVEN = ("walk", "generator")  # a policy's parameters that are no options

POLICIES: dict[str, Callable[..., Iterator[View]]] = {
    "last": last,
    "full": full,
    "random_tail": random_tail,
    "steps": explicit,
    "draft_lv": draft_lv,
    "drtune": drtune,
    "refl": refl,
    "leap": leap,
    "sparse": sparse,
    "bridge": bridge,
    "direct_align": direct_align,
}


def load_policy(name: str, options: Mapping[str, Any]) -> Policy:
    """A policy by name or `module:function`, its options bound.

    Raises:
        UserError: there is none of that name, or an option is unknown, missing or wrong.
    """
    if ":" not in name and name not in POLICIES:
        raise UserError(f"unknown policy {name!r}: {nearest(name, POLICIES, 'your own as module:function')}")
    function = POLICIES[name] if name in POLICIES else load_function(name, "policy")
    policy = partial(function, **checked_options(function, f"policy {name!r}", options, GIVEN))
    return policy if name in POLICIES else _explained(name, policy)


def _explained(name: str, policy: Policy) -> Policy:
    """A user's policy, whose failures are `UserError`s, whether it is called or asked for its next view."""

    def own(walk: Walk, generator: Generator) -> Iterator[View]:
        with explained(f"policy {name!r} fails"):
            found = policy(walk, generator)
        return views(found) if isinstance(found, Iterator) else found

    def views(found: Iterator[View]) -> Iterator[View]:
        with explained(f"policy {name!r} fails"):
            yield from found

    return own
