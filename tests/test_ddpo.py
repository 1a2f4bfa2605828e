"""DDPO: its densities against torch's, its gradient against the policy gradient's formula, its runs as a whole."""

from __future__ import annotations

import io
import math
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from toy_runs import adapter, assert_close_metrics, metrics, toy_recipe
from toys import DDIM, Warmth
from vader.algorithms import load_algorithm, resolved
from vader.algorithms.ddpo import DDPO, PromptStatistics, Rollout, clipped_loss, log_probability, roll_out
from vader.engine.engine import Engine
from vader.errors import Stopped, UserError
from vader.nouns import Prompt, as_prompts
from vader.recipe import load_recipe
from vader.runs.folder import RunFolder
from vader.solvers import Solver
from vader.solvers.scheduler_config import solver_from_config
from vader.training.before import check_recipe
from vader.training.trainer import Run, build_run, next_batch, train

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
SETTINGS = ("algorithm={name: ddpo}", "sampling.eta=1")


def toy_run(folder: Path, *overrides: str) -> Run:
    run = build_run(check_recipe(toy_recipe(*SETTINGS, *overrides)), RunFolder(folder / "toy"))
    generator = torch.Generator().manual_seed(5)
    for parameter in run.engine.parameters:  # not at zero, where half of the gradients are
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return run


def use_solver(run: Run, solver: Solver) -> None:
    run.engine.sampler = replace(run.engine.sampler, solver=solver, schedule=solver.schedule(4, run.engine.size))


def stds_of(run: Run) -> list[float]:
    """How much fresh noise each step adds."""
    sampler = run.engine.sampler
    return list(map(sampler.solver.std, sampler.schedule.starts, sampler.schedule.ends))


# ---- densities ----


@pytest.mark.parametrize("std", [0.02, 1.0, 7.0])
def test_log_probability_is_the_normal_density_of_each_video(std):
    mean, sample = torch.randn(2, 3, 4, 5, 2, dtype=torch.float64)
    expected = torch.distributions.Normal(mean, std).log_prob(sample).mean(dim=(1, 2, 3))
    found = log_probability(sample, mean, std)
    assert found.shape == (3,)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def solvers() -> dict:
    edm = solver_from_config(DDIM | {"clip_sample": False}, kind="euler_edm", eta=0.7)
    return {"ddim": solver_from_config(DDIM, eta=0.5), "edm": edm, "flow": solver_from_config(FLOW, eta=1.0)}


@pytest.mark.parametrize("name", ["ddim", "edm", "flow"])
def test_stored_log_probabilities_are_those_of_the_noise_that_was_drawn(tmp_path, name):
    """A step is mean + std * noise, so its density is that of standard normal noise, less log std a dimension."""
    run = toy_run(tmp_path)
    use_solver(run, solvers()[name])
    batch = next_batch(run, 1)
    rollout = roll_out(run.engine, batch)
    noise = rollout.walk.noise
    assert list(rollout.log_probs) == (list(range(4)) if name == "ddim" else list(range(3)))
    stds = stds_of(run)
    for i, found in rollout.log_probs.items():
        standard = torch.distributions.Normal(0.0, 1.0).log_prob(noise.draw(f"step{i}").double())
        expected = standard.flatten(1).mean(dim=1) - math.log(stds[i])
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4)


def test_steps_of_little_noise_are_walked_but_not_trained(tmp_path):
    run = toy_run(tmp_path)
    stds = stds_of(run)
    assert stds[0] > stds[2] > stds[3] > 0
    every, few = roll_out(run.engine, next_batch(run, 1)), roll_out(run.engine, next_batch(run, 1), min_std=stds[2])
    assert list(every.log_probs) == [0, 1, 2, 3]
    assert list(few.log_probs) == [0, 1, 2]
    assert all(torch.equal(*(place.latents for place in two)) for two in zip(every.places, few.places, strict=True))


@pytest.mark.parametrize("name", ["ddim", "edm", "flow"])
@pytest.mark.parametrize("settings", ["sampling.guidance=1", "sampling.guidance=3"])
def test_the_ratio_is_exactly_1_before_the_first_update(tmp_path, name, settings):
    run = toy_run(tmp_path, settings)
    use_solver(run, solvers()[name])
    rollout = roll_out(run.engine, next_batch(run, 1))
    for i, old in rollout.log_probs.items():
        again = rollout.log_probs_now(i)
        assert again.requires_grad
        assert torch.equal((again - old).exp(), torch.ones(4))


@pytest.mark.parametrize(
    "override", ["train.micro_batch=3", "train.micro_batch=1", "memory=[{name: offload_activations}]"]
)
def test_the_first_update_of_a_run_clips_nothing(tmp_path, override):
    once = ("train.batch=6", override, "algorithm.minibatches=1", "algorithm.clip_range=1e-30")
    run = toy_run(tmp_path, *once)
    first = run.algorithm.step(run.engine, next_batch(run, 1))
    assert first.extra == {"clipped_ratios": 0.0, "divergence": 0.0}
    run = toy_run(tmp_path, *once, "algorithm.inner_epochs=2")
    twice = run.algorithm.step(run.engine, next_batch(run, 1))
    assert twice.extra["clipped_ratios"] == 0.5
    assert twice.extra["divergence"] > 0


# ---- the gradient ----


def surrogate_gradient(monkeypatch: pytest.MonkeyPatch, run: Run, rollouts: list[Rollout], advantages: Tensor):
    """The gradient that an update would take its step along, one tensor a parameter."""
    found: list[Tensor] = []

    def keep(engine: Engine, finite: bool = True) -> tuple[float, bool]:
        found.extend(parameter.grad.clone() for parameter in engine.parameters)
        return 0.0, True

    monkeypatch.setattr(Engine, "optimise", keep)
    run.algorithm._update(run.engine, rollouts, advantages, _Ignored())
    return found


class _Ignored:
    def add(self, ratio: Tensor, counts: Tensor, clip_range: float) -> None:
        assert torch.equal(ratio, torch.ones_like(ratio))


def test_the_gradient_of_the_surrogate_is_the_policy_gradient(tmp_path, monkeypatch):
    """REINFORCE: minus the mean of A * (x - mu) / sigma^2 * d mu / d theta, here by a product with mu's Jacobian."""
    run = toy_run(tmp_path, "sampling.steps=1", "algorithm.minibatches=1", "algorithm.clip_range=0.2")
    engine = run.engine
    rollout = roll_out(engine, next_batch(run, 1))
    advantages = torch.tensor([1.5, -0.5, 0.25, -1.0])
    walk, (start, end) = rollout.walk, (place.latents for place in rollout.places)
    here, there = walk.start_of(0), walk.level(1)
    mean = engine.sampler.solver.step(start, walk.predict(0, start), here, there, torch.zeros_like(start)).mean
    std = engine.sampler.solver.std(here, there)
    score = (end - mean.detach()) / std**2 / end[0].numel()
    direction = -advantages[:, None, None, None, None] * score / len(advantages)
    expected = torch.autograd.grad(mean, engine.parameters, direction)
    for found, wanted in zip(surrogate_gradient(monkeypatch, run, [rollout], advantages), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))
        assert wanted.abs().max() > 0


def test_the_gradient_is_that_of_the_expected_reward():
    """x ~ N(theta, 0.5^2) with reward -(x - 1)^2: the expected reward's gradient is 2 (1 - theta)."""
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    x = 0.3 + 0.5 * torch.randn(400_000, 1, dtype=torch.float64)
    log_probs = log_probability(x, theta.expand(x.shape), 0.5)
    loss, _ = clipped_loss(log_probs, log_probs.detach(), -(x[:, 0] - 1).square(), clip_range=0.1)
    loss.mean().backward()
    assert -theta.grad.item() == pytest.approx(2 * (1 - 0.3), rel=0.02)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.05, 2.0, -2.1, -2.1),
        (1.2, 2.0, -2.2, 0.0),  # already more probable by more than the clip range: no more of it
        (0.8, 2.0, -1.6, -1.6),
        (1.2, -2.0, 2.4, 2.4),
        (0.8, -2.0, 1.8, 0.0),
    ],
)
def test_clipping(ratio, advantage, loss, slope):
    log_prob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    found, kept = clipped_loss(log_prob, torch.zeros(1, dtype=torch.float64), torch.tensor([advantage]), 0.1)
    found.sum().backward()
    assert (kept.item(), found.item(), log_prob.grad.item()) == pytest.approx((ratio, loss, slope))


# ---- advantages ----


def normalised(values: list[float], among: list[float]) -> list[float]:
    return [(value - np.mean(among)) / (np.std(among) + 1e-6) for value in values]


def test_rewards_are_normalised_among_those_of_their_prompt():
    statistics = PromptStatistics(size=3, min_count=2)
    first = statistics.advantages(as_prompts(["cat", "dog", "cat"]), torch.tensor([1.0, 5.0, 4.0]))
    assert first[[0, 2]].tolist() == pytest.approx(normalised([1.0, 4.0], [1.0, 4.0]))
    assert first[1].item() == pytest.approx(normalised([5.0], [1.0, 5.0, 4.0])[0])  # alone of its prompt as yet
    second = statistics.advantages(as_prompts(["cat", "cat", "dog"]), torch.tensor([7.0, 2.0, 9.0]))
    assert second[:2].tolist() == pytest.approx(normalised([7.0, 2.0], [4.0, 7.0, 2.0]))  # 1.0 is forgotten
    assert second[2].item() == pytest.approx(normalised([9.0], [5.0, 9.0])[0])


def test_prompts_with_other_pictures_are_other_prompts():
    statistics = PromptStatistics(size=8, min_count=2)
    prompts = [Prompt("a boat", image=Path(f"{name}.png")) for name in "abab"]
    found = statistics.advantages(prompts, torch.tensor([1.0, 10.0, 3.0, 30.0]))
    assert found.tolist() == pytest.approx([-1, -1, 1, 1], abs=1e-5)


@pytest.mark.parametrize("key", ["label", "negative"])
def test_one_text_under_two_labels_is_two_prompts(key):
    """Each has statistics of its own: rewards of "playing piano" say nothing about those of "eating"."""
    statistics = PromptStatistics(size=8, min_count=2)
    prompts = [Prompt("a man", **{key: one}) for one in ("piano", "eating", "piano", "eating")]
    found = statistics.advantages(prompts, torch.tensor([1.0, 10.0, 3.0, 30.0]))
    assert found.tolist() == pytest.approx([-1, -1, 1, 1], abs=1e-5)
    assert len(statistics.state_dict()) == 2


def test_equal_rewards_have_no_advantage():
    assert PromptStatistics(8, 2).advantages(as_prompts(["a", "a"]), torch.tensor([0.5, 0.5])).tolist() == [0, 0]


def test_statistics_are_saved_and_loaded_exactly():
    before, after = PromptStatistics(3, 2), PromptStatistics(3, 2)
    before.advantages(as_prompts(["a", "b", "a"]), torch.rand(3))
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after.load_state_dict(torch.load(file, weights_only=True))
    more = (as_prompts(["a", "a", "b"]), torch.rand(3))
    assert torch.equal(before.advantages(*more), after.advantages(*more))


# ---- whole runs ----

FEW_PROMPTS = "\n".join(["red sun", "blue sea", "green hill"])
WHOLE = (
    "algorithm={name: ddpo, videos_per_prompt: 2, inner_epochs: 2, prompt_min_count: 3, clip_range: 1e-3}",
    "sampling.eta=1",
)


@pytest.fixture(scope="module")
def few_prompts(tmp_path_factory) -> str:
    """With so few prompts their statistics matter from the second step on."""
    path = tmp_path_factory.mktemp("prompts") / "few.txt"
    path.write_text(FEW_PROMPTS)
    return f"prompts.train={path}"


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory, few_prompts) -> Path:
    runs = tmp_path_factory.mktemp("plain")
    train(toy_recipe(*WHOLE, few_prompts), runs)
    return runs / "toy"


def test_neighbours_in_a_batch_share_their_prompt(tmp_path, few_prompts):
    run = build_run(check_recipe(toy_recipe(*WHOLE, few_prompts)), RunFolder(tmp_path / "toy"))
    prompts = [prompt for step in range(1, 4) for prompt in next_batch(run, step).prompts]
    assert prompts[::2] == prompts[1::2]
    assert {prompt.text for prompt in prompts[:6]} == set(FEW_PROMPTS.split("\n"))


@pytest.mark.parametrize("step", [1, 4])
def test_stopped_and_continued_equals_uninterrupted(tmp_path, few_prompts, plain_run, step):
    recipe = toy_recipe(*WHOLE, few_prompts)
    with pytest.MonkeyPatch.context() as patch:
        stop_in(patch, step)
        with pytest.raises(Stopped):
            train(recipe, tmp_path / "stopped")
    train(recipe, tmp_path / "stopped")
    assert metrics(tmp_path / "stopped/toy") == metrics(plain_run)
    assert adapter(tmp_path / "stopped/toy") == adapter(plain_run)


def stop_in(patch: pytest.MonkeyPatch, step: int) -> None:
    whole_step = DDPO.step

    def interrupted(self, engine, batch):
        if batch.step == step:
            signal.raise_signal(signal.SIGTERM)
        return whole_step(self, engine, batch)

    patch.setattr(DDPO, "step", interrupted)


@pytest.mark.parametrize("override", ["train.micro_batch=1", "sampling.guidance_batched=false", "scoring.chunk=2"])
def test_what_must_not_change_the_numbers(tmp_path, few_prompts, plain_run, override):
    train(toy_recipe(*WHOLE, few_prompts, override), tmp_path)
    assert_close_metrics(metrics(tmp_path / "toy"), metrics(plain_run), absolute=1e-5)


@pytest.mark.parametrize(
    "override", ["algorithm.prompt_min_count=30", "algorithm.minibatches=1", "algorithm.min_std=0.5"]
)
def test_what_must_change_the_numbers(tmp_path, few_prompts, plain_run, override):
    train(toy_recipe(*WHOLE, few_prompts, override), tmp_path)
    changed, plain = (metrics(folder)[-2]["divergence"] for folder in (tmp_path / "toy", plain_run))
    assert changed != pytest.approx(plain, rel=1e-3)


def test_a_reward_that_is_not_finite_skips_the_step_and_is_forgotten(tmp_path, monkeypatch):
    run = toy_run(tmp_path)
    before = [parameter.clone() for parameter in run.engine.parameters]
    score = Warmth.score_frames
    monkeypatch.setattr(Warmth, "score_frames", lambda self, images, prompts: score(self, images, prompts) * math.nan)
    found = run.algorithm.step(run.engine, next_batch(run, 1))
    assert found.skipped
    assert math.isnan(found.grad_norm)
    assert found.queries == 4
    assert run.algorithm.state_dict() == {}
    assert all(map(torch.equal, before, run.engine.parameters))


def test_the_reward_rises(tmp_path):
    settings = ("model.family=toys:GaussianModel", "video={frames: 1, height: 4, width: 4}", "sampling.guidance=1")
    reward = ("rewards=[{name: 'toys:Warmth'}]", "algorithm={name: ddpo, clip_range: 0.1}", "sampling.eta=1")
    loop = ("train.batch=32", "train.steps=30", "optimizer.lr=0.05", "train.checkpoint_every=100")
    many = ("evaluation={every: 100, videos: 64, batch: 64, shown: 1}", "sampling.steps=5")
    result = train(toy_recipe(*settings, *reward, *loop, *many), tmp_path)
    assert result.after[0] > result.before[0] + 5 * (result.before[1] + result.after[1])


# ---- mistakes ----


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sampling.eta=0"], "algorithm 'ddpo' learns from the noise in sampling steps, but sampling.eta is 0"),
        (["algorithm.policy={name: last}"], "algorithm 'ddpo' has no option 'policy'"),
        (["algorithm.beta=1"], "algorithm 'ddpo' has no option 'beta'"),
        (
            ["algorithm.prompt_min_count=33"],
            "algorithm.prompt_buffer is 32: no prompt will ever have so many",
        ),
        (["algorithm.minibatches=3"], "train.batch 4 is no multiple of algorithm.minibatches 3"),
        (["algorithm.videos_per_prompt=3"], "train.batch 4 is no multiple of algorithm.videos_per_prompt 3"),
        (["algorithm.clip_rage=1"], "algorithm 'ddpo' has no option 'clip_rage': did you mean 'clip_range'?"),
    ],
    ids=str,
)
def test_contradictions(overrides, message):
    with pytest.raises(UserError) as caught:
        load_algorithm(toy_recipe(*SETTINGS, *overrides))
    assert message in str(caught.value)


def test_a_deterministic_solver_is_refused_before_the_run(tmp_path):
    run = toy_run(tmp_path)
    use_solver(run, solver_from_config(DDIM, kind="dpm"))
    with pytest.raises(UserError, match=r"this solver adds none: set sampling\.eta above 0"):
        run.algorithm.check(run.engine)


def test_no_step_left_to_train_is_refused_before_the_run(tmp_path):
    with pytest.raises(UserError, match=r"min_std is 0\.99, but no sampling step adds more than 0\.\d+: lower it"):
        toy_run(tmp_path, "algorithm.min_std=0.99")


def test_the_resolved_recipe_is_a_recipe_without_the_keys_of_others(tmp_path):
    recipe = toy_recipe(*SETTINGS, "train.steps=1", "evaluation.videos=1")
    train(recipe, tmp_path)
    text = (tmp_path / "toy/recipe.yaml").read_text()
    assert "clip_range" in text
    assert "policy" not in text
    assert load_recipe(str(tmp_path / "toy/recipe.yaml"), trust_code=True) == resolved(recipe)
