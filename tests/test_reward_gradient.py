"""VADER's update: its gradient against finite differences, the pull to the base, and what a policy must reach."""

from __future__ import annotations

import pytest
import torch

from toy_runs import toy_recipe
from toy_walks import SIZE, Float64Noise, TwoExperts, cfg, gradient, make_walk
from toys import Stillness, Warmth
from vader.algorithms.reward_gradient import BaseDistance
from vader.errors import UserError
from vader.networks.adapter import parameters_of
from vader.nouns import Prompt
from vader.rewards import RewardMix
from vader.runs.folder import RunFolder
from vader.sampling import Walk, load_policy
from vader.sampling.walk import Place
from vader.scoring.choice import evaluation_groups
from vader.scoring.scorer import Scorer
from vader.training.before import check_recipe
from vader.training.trainer import build_run, next_batch

STEPS = 5
PROMPTS = [Prompt("a"), Prompt("b")]
MIXED = RewardMix({"warmth": Warmth(), "stillness": Stillness()}, {"warmth": 1.0, "stillness": 0.5})


def losses(walk: Walk, split: bool):
    """What VADER differentiates, with the sign of the reward."""
    scorer, groups = Scorer(walk.sampler.model, MIXED, SIZE, 1), evaluation_groups(MIXED, SIZE, 2)
    scale = -torch.ones(2, dtype=torch.float64)
    if not split:
        return lambda latents: scorer.graph(latents, PROMPTS, groups, scale)[0]
    return lambda latents: (latents * scorer.pull(latents, PROMPTS, groups, scale)[0]).sum()


def truncated_reward(walk: Walk, first: int, base: list[torch.Tensor]) -> torch.Tensor:
    """The reward as a function of the adapter from step `first` on: earlier ones use the weights `base`."""
    parameters = parameters_of(walk.sampler.model.denoisers)
    moved = [parameter.data.clone() for parameter in parameters]

    def use(values: list[torch.Tensor]) -> None:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value

    with torch.no_grad():
        use(base)
        before: Place = walk.frozen(first)
        use(moved)
        return losses(walk, False)(walk.to(STEPS, before).latents)


@pytest.mark.parametrize("split", [True, False], ids=["split", "plain"])
@pytest.mark.parametrize(("scale", "batched"), [(1.0, True), (4.0, True), (4.0, False)], ids=str)
@pytest.mark.parametrize("k", [1, 3, STEPS])
def test_equals_central_differences(k, scale, batched, split):
    walk = make_walk(steps=STEPS, guidance=cfg(scale), batched=batched)
    found = gradient(walk, load_policy("last", {"k": k})(walk, torch.Generator()), losses(walk, split))
    parameters = parameters_of(walk.sampler.model.denoisers)
    base = [parameter.data.clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(7)
    for _ in range(2):
        direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
        slope = torch.dot(found, torch.cat([d.flatten() for d in direction]))
        rewards = []
        for sign in (1, -1):
            for parameter, value, d in zip(parameters, base, direction, strict=True):
                parameter.data = value + sign * 1e-5 * d
            rewards.append(truncated_reward(walk, STEPS - k, base))
            for parameter, value in zip(parameters, base, strict=True):
                parameter.data = value.clone()
        assert slope.item() == pytest.approx(((rewards[0] - rewards[1]) / 2e-5).item(), rel=1e-6)


def test_inputs_without_gradient_cut_the_chain():
    """DRTune: gradient reaches an active step only through the solver's linear part, so steps add up independently."""

    def of(steps: set[int], carry: float) -> torch.Tensor:
        walk = make_walk(steps=STEPS)
        end = walk.to(STEPS, walk.frozen(min(steps)), steps, carry=carry)
        (loss,) = [losses(walk, True)(end.latents)]
        parameters = parameters_of(walk.sampler.model.denoisers)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    both = of({1, 3}, 0.0)
    torch.testing.assert_close(both, of({1}, 0.0) + of({3}, 0.0), rtol=1e-9, atol=1e-13)
    assert not torch.allclose(of({1, 3}, 1.0), both, rtol=1e-3)


# ---- the pull to the base ----


def test_base_distance_is_that_of_the_predictions():
    distance, walk = BaseDistance(), make_walk(steps=STEPS)
    told = Walk(walk.sampler, walk.condition, walk.noise, on_gradient=distance)
    told.to(STEPS, told.frozen(3), {3, 4})
    places = walk.path()
    adapted = [walk.predict(i, places[i].latents) for i in (3, 4)]
    for parameter in parameters_of(walk.sampler.model.denoisers):
        parameter.data.zero_()
    base = [walk.predict(i, places[i].latents) for i in (3, 4)]
    expected = sum((one - other).square().flatten(1).mean(dim=1) for one, other in zip(adapted, base, strict=True))
    torch.testing.assert_close(distance.taken(), expected, rtol=1e-10, atol=0)
    assert distance.sum is None


def test_the_pull_to_the_base_is_part_of_the_gradient(tmp_path, monkeypatch):
    """A step's gradient with weight w is that without, plus w times that of the mean distance."""

    def of(weight: float) -> torch.Tensor:
        run = build_run(
            check_recipe(toy_recipe(f"algorithm.base_distance={weight}")), RunFolder(tmp_path / str(weight))
        )
        generator = torch.Generator().manual_seed(5)
        for parameter in run.engine.parameters:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        found: list[torch.Tensor] = []

        def keep(*_: object) -> tuple[float, bool]:
            found.extend(parameter.grad.flatten() for parameter in run.engine.parameters)
            return 1.0, True

        monkeypatch.setattr(run.engine, "optimise", keep, raising=False)
        metrics = run.algorithm.step(run.engine, next_batch(run, 1))
        assert ("base_distance" in metrics.extra) == (weight > 0)
        return torch.cat(found)

    none, one, three = of(0.0), of(1.0), of(3.0)
    torch.testing.assert_close(three - none, 3 * (one - none), rtol=1e-3, atol=1e-5)
    assert (one - none).abs().max() > 1e-3


# ---- experts ----

EXPERTS = ("model.family=toy_walks:TwoExperts", "sampling.steps=6")


def built(tmp_path, *overrides: str):
    return build_run(check_recipe(toy_recipe(*EXPERTS, *overrides)), RunFolder(tmp_path / "toy"))


def test_a_policy_that_never_reaches_a_denoiser_is_refused_before_the_run(tmp_path):
    with pytest.raises(UserError) as error:
        built(tmp_path, "algorithm.policy={name: last, k: 2}")
    assert str(error.value) == (
        "the policy 'last' never reaches 'transformer', which denoises other steps than [4, 5]: choose a policy that "
        "goes further back, or set adapter.denoisers to [transformer_2]"
    )
    assert not (tmp_path / "toy").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.policy={name: full}"],
        ["algorithm.policy={name: sparse, k: 1}"],
        ["algorithm.policy={name: leap}"],
        ["algorithm.policy={name: last, k: 2}", "adapter.denoisers=[transformer_2]"],
        ["algorithm.policy={name: steps, steps: [0]}", "adapter.denoisers=[transformer]"],
    ],
)
def test_a_policy_that_reaches_all_that_is_trained_is_taken(tmp_path, overrides):
    run = built(tmp_path, *overrides)
    before = [parameter.clone() for parameter in run.engine.parameters]
    assert not run.algorithm.step(run.engine, next_batch(run, 1)).skipped
    assert any(not torch.equal(*pair) for pair in zip(before, run.engine.parameters, strict=True))


def test_the_gradient_reaches_each_expert_in_its_own_steps():
    from toy_walks import FLOW, make_model

    model = make_model(TwoExperts)
    noise = Float64Noise(model.noise_shape(SIZE), 0, "train", 1, (0, 1))
    walk = make_walk(FLOW, steps=6, model=model, noise=noise)
    names = [model.expert(walk.start_of(i).time) for i in range(6)]
    for i, name in enumerate(names):
        gradient(walk, load_policy("steps", {"steps": (i,)})(walk, torch.Generator()), losses(walk, True))
        for other, denoiser in model.denoisers.items():
            touched = any(p.grad is not None and p.grad.abs().max() > 0 for p in parameters_of({other: denoiser}))
            assert touched == (other == name)
