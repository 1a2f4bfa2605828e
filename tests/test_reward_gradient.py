"""The reward gradient through the sampling chain: against finite differences, and two ways of computing agree."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import pytest
import torch

from toys import Stillness, ToyModel, Warmth
from vader.models.base import Guidance, VideoSize
from vader.networks.adapter import adapter_parameters, add_adapter
from vader.rewards.base import RewardMix
from vader.sampling.policies import Plan
from vader.sampling.walk import Chain, Noise, sample_latents, views
from vader.scoring.scorer import Scorer, split_backward

STEPS, SIZE = 5, VideoSize(frames=4, height=8, width=8)
FRAMEWISE = RewardMix({"warmth": Warmth()}, {"warmth": 1.0})
MIXED = RewardMix({"warmth": Warmth(), "stillness": Stillness()}, {"warmth": 1.0, "stillness": 0.5})


@dataclass(frozen=True)
class Float64Noise(Noise):
    def draw(self, use: str) -> torch.Tensor:
        return super().draw(use).double()


NOISE = Float64Noise((4, 4, 2, 2), 0, "train", 1, (0, 1))


def make_chain(guidance: Guidance, eta: float = 0.0) -> Chain:
    model = ToyModel(eta, torch.float64)
    add_adapter(model.denoiser, model.lora_targets, rank=2)
    generator = torch.Generator().manual_seed(3)
    for parameter in adapter_parameters(model.denoiser):
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    condition = model.encode(["red", "blue"])
    return Chain(model, model.solver.schedule(STEPS, SIZE), condition, guidance)


def all_frames() -> torch.Tensor:
    return torch.arange(SIZE.frames).expand(2, -1)


def gradient(chain: Chain, plan: Plan, mix: RewardMix, frames: torch.Tensor, split: bool) -> torch.Tensor:
    """The reward's gradient in all adapter weights, as one vector."""
    parameters = adapter_parameters(chain.model.denoiser)
    for parameter in parameters:
        parameter.grad = None
    scorer = Scorer(chain.model, mix, ["a", "b"])
    for view in views(chain, NOISE, plan):
        if split:
            at_latents, _ = split_backward(scorer, view.latents, frames, 1, -1.0 / plan.views)
            (view.latents * at_latents).sum().backward()
        else:
            total, _ = scorer(view.latents, frames)
            (total.sum() / plan.views).backward()
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


def truncated_reward(chain: Chain, plan: Plan, base: list[torch.Tensor]) -> torch.Tensor:
    """The reward as a function of the adapter in the active steps only: inactive ones use the weights `base`."""
    parameters = adapter_parameters(chain.model.denoiser)
    moved = [parameter.data.clone() for parameter in parameters]

    def use(values: list[torch.Tensor]) -> None:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value

    latents, state = chain.start(NOISE), None
    with torch.no_grad():
        for i in range(STEPS):
            use(moved if i in plan.active else base)
            latents, *_, state = chain.advance(i, latents, chain.predict(i, latents), NOISE, state)
        use(moved)
        return Scorer(chain.model, MIXED, ["a", "b"])(latents, all_frames())[0].sum()


@pytest.mark.parametrize("split", [True, False], ids=["split", "plain"])
@pytest.mark.parametrize("guidance", [Guidance(1.0), Guidance(4.0), Guidance(4.0, batched=False)], ids=str)
@pytest.mark.parametrize("k", [1, 3, STEPS])
def test_equals_central_differences(k: int, guidance: Guidance, split: bool) -> None:
    chain, plan = make_chain(guidance), Plan(frozenset(range(STEPS - k, STEPS)))
    found = gradient(chain, plan, MIXED, all_frames(), split)
    parameters = adapter_parameters(chain.model.denoiser)
    base = [parameter.data.clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(7)
    for _ in range(2):
        direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
        slope = torch.dot(found, torch.cat([d.flatten() for d in direction]))
        rewards = []
        for sign in (1, -1):
            for parameter, value, d in zip(parameters, base, direction, strict=True):
                parameter.data = value + sign * 1e-5 * d
            rewards.append(truncated_reward(chain, plan, base))
            for parameter, value in zip(parameters, base, strict=True):
                parameter.data = value.clone()
        assert slope.item() == pytest.approx(((rewards[0] - rewards[1]) / 2e-5).item(), rel=1e-6)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_split_equals_plain(eta: float) -> None:
    chain, plan = make_chain(Guidance(3.0), eta), Plan(frozenset({2, 3, 4}))
    for mix in (FRAMEWISE, MIXED):
        plain = gradient(chain, plan, mix, all_frames(), split=False)
        torch.testing.assert_close(gradient(chain, plan, mix, all_frames(), split=True), plain, rtol=1e-12, atol=0)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_random_frames_average_to_all_frames(count: int) -> None:
    """Over all equally likely choices of frames the gradient's mean is exactly the all-frames gradient."""
    chain, plan = make_chain(Guidance(3.0)), Plan(frozenset({4}))
    choices = [torch.tensor(c).expand(2, -1) for c in combinations(range(SIZE.frames), count)]
    mean = torch.stack([gradient(chain, plan, FRAMEWISE, c, split=True) for c in choices]).mean(dim=0)
    torch.testing.assert_close(mean, gradient(chain, plan, FRAMEWISE, all_frames(), split=True), rtol=1e-12, atol=1e-16)


def test_sampling_is_the_same_with_and_without_gradient() -> None:
    chain = make_chain(Guidance(3.0), eta=1.0)
    plain = sample_latents(chain, NOISE)
    for plan in (Plan(frozenset({4})), Plan(frozenset(range(STEPS))), Plan(frozenset({1, 3}), detach_input=True)):
        assert torch.equal(next(views(chain, NOISE, plan)).latents, plain)


def test_no_graph_before_the_first_active_step() -> None:
    """The unconditional twin of truth: with K = 1 the latents' graph holds exactly one pass of the denoiser."""
    chain = make_chain(Guidance(1.0))
    calls = []
    chain.model.denoiser.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    next(views(chain, NOISE, Plan(frozenset({STEPS - 1}))))
    assert calls == [False] * (STEPS - 1) + [True]


def test_detached_input_cuts_the_chain() -> None:
    """DRTune: gradient reaches an active step only through the solver's linear part, so steps add up independently."""
    chain, frames = make_chain(Guidance(3.0)), all_frames()
    both = gradient(chain, Plan(frozenset({1, 3}), detach_input=True), FRAMEWISE, frames, split=True)
    alone = [gradient(chain, Plan(frozenset({i}), detach_input=True), FRAMEWISE, frames, split=True) for i in (1, 3)]
    torch.testing.assert_close(both, alone[0] + alone[1], rtol=1e-10, atol=1e-14)
    chained = gradient(chain, Plan(frozenset({1, 3})), FRAMEWISE, frames, split=True)
    assert not torch.allclose(chained, both, rtol=1e-3)


def test_refl_sees_the_clean_estimate() -> None:
    chain = make_chain(Guidance(3.0))
    view = next(views(chain, NOISE, Plan(frozenset({2}), sees="clean")))
    latents, state = chain.start(NOISE), None
    for i in range(3):
        step = chain.advance(i, latents, chain.predict(i, latents), NOISE, state)
        latents, state = step.next, step.state
    assert torch.equal(view.latents, step.clean)


def test_draft_lv_runs_the_last_step_from_fresh_noisings() -> None:
    chain, plan = make_chain(Guidance(3.0)), Plan(frozenset({STEPS - 1}), views=3)
    seen = [view.latents.detach() for view in views(chain, NOISE, plan)]
    assert torch.equal(seen[0], sample_latents(chain, NOISE))
    again = chain.model.solver.renoise(chain.schedule, STEPS - 1, seen[0], NOISE.draw("view2"))
    expected = chain.advance(STEPS - 1, again, chain.predict(STEPS - 1, again), NOISE).next
    assert torch.equal(seen[2], expected)
    assert not torch.equal(seen[1], seen[2])


def test_base_distance_is_that_of_the_predictions() -> None:
    model_chain = make_chain(Guidance(3.0))
    chain = Chain(
        model_chain.model, model_chain.schedule, model_chain.condition, model_chain.guidance, base_distance=True
    )
    view = next(views(chain, NOISE, Plan(frozenset({0}))))
    start = chain.start(NOISE)
    adapted = chain.predict(0, start)
    for parameter in adapter_parameters(chain.model.denoiser):
        parameter.data.zero_()
    expected = (adapted - chain.predict(0, start)).square().flatten(1).mean(dim=1).sum()
    torch.testing.assert_close(view.distance, expected)
