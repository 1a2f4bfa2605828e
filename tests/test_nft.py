"""DiffusionNFT: its loss in closed form, its gradient, what it is for every kind of prediction, its runs as a whole."""

from __future__ import annotations

import math
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from toy_runs import adapter, assert_close_metrics, metrics, toy_recipe
from toy_walks import FLOW, make_walk
from toys import DDIM, Warmth
from vader.algorithms import load_algorithm
from vader.algorithms.advantages import group_advantages
from vader.algorithms.nft import NFT, OldPolicy, clean_estimate, nft_loss
from vader.algorithms.rollouts import score
from vader.engine.engine import Engine
from vader.errors import Stopped, UserError
from vader.nouns import Known, as_prompts
from vader.runs.folder import RunFolder
from vader.training.before import check_recipe
from vader.training.trainer import Run, build_run, next_batch, train

NFT_2 = "algorithm={name: nft, group: 2, updates: 2, times: 2, decay_rate: 0.2}"


def toy_run(folder: Path, *overrides: str) -> Run:
    run = build_run(check_recipe(toy_recipe(NFT_2, *overrides)), RunFolder(folder / "toy"))
    generator = torch.Generator().manual_seed(5)
    for parameter in run.engine.parameters:  # not at zero, where half of the gradients are
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return run


def latents(count: int = 3) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(count, 4, 6, generator=generator, dtype=torch.float64).unbind()


# ---- the loss ----


def test_the_loss_by_hand():
    """x = 0, old = 1, new = 3 and beta = 1/2: the positive estimate is 2 and the negative one 0."""
    clean, old, new = (torch.full((2, 5), value) for value in (0.0, 1.0, 3.0))
    found = nft_loss(clean, new, old, torch.tensor([1.0, 0.25]), beta=0.5)
    assert found.tolist() == pytest.approx([2.0**2 / 2 / 0.5, 0.25 * 2.0**2 / 2 / 0.5])


def test_where_the_model_is_the_old_one_the_loss_forgets_the_reward_but_its_gradient_does_not():
    """The gradient is (2 r - 1) times that of plain regression to the video, by 2 (x_hat - x) / (D w)."""
    clean, old, _ = latents()
    new, optimality = old.clone().requires_grad_(), torch.tensor([0.0, 0.5, 0.8, 1.0], dtype=torch.float64)
    loss = nft_loss(clean, new, old, optimality, beta=0.3)
    error = old - clean
    weight = error.abs().mean(dim=1)
    torch.testing.assert_close(loss, error.square().mean(dim=1) / weight / 0.3)
    loss.sum().backward()
    torch.testing.assert_close(new.grad, (2 * optimality - 1)[:, None] * 2 * error / error.shape[1] / weight[:, None])


def test_the_gradient_is_the_finite_difference_under_fixed_weights():
    clean, old, new = latents()
    optimality, beta = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64), 0.7
    weights = [(old + sign * beta * (new - old) - clean).abs().mean(dim=1) for sign in (1, -1)]

    def value(at: Tensor) -> Tensor:
        errors = [(old + sign * beta * (at - old) - clean).square().mean(dim=1) for sign in (1, -1)]
        return ((optimality * errors[0] / weights[0] + (1 - optimality) * errors[1] / weights[1]) / beta).sum()

    at = new.clone().requires_grad_()
    nft_loss(clean, at, old, optimality, beta).sum().backward()
    for row, column in ((0, 0), (1, 3), (3, 5)):
        step = torch.zeros_like(new)
        step[row, column] = 1e-5
        difference = (value(new + step) - value(new - step)) / 2e-5
        assert at.grad[row, column].item() == pytest.approx(difference.item(), rel=1e-6)


def test_an_exact_estimate_has_a_weight_and_no_loss():
    clean, *_ = latents()
    assert nft_loss(clean, clean, clean, torch.ones(4).double(), 1.0).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("config", [FLOW, DDIM, DDIM | {"prediction_type": "v_prediction"}], ids=["flow", "eps", "v"])
@pytest.mark.parametrize("beta", [0.4, 1.0])
def test_implicit_policies_are_mixes_of_predictions_whatever_is_predicted(config, beta):
    """v+ = (1 - beta) v_old + beta v and v- = (1 + beta) v_old - beta v, in estimates as in what a denoiser says."""
    walk, i = make_walk(config), 2
    clean, noise, old, new = torch.randn(4, *walk.start().latents.shape, dtype=torch.float64)
    noisy = walk.renoised(clean, i, noise).latents

    def estimate(prediction: Tensor) -> Tensor:
        return clean_estimate(walk, i, noisy, prediction, clean)

    for sign in (1, -1):
        mixed = estimate((1 - sign * beta) * old + sign * beta * new)
        torch.testing.assert_close(estimate(old) + sign * beta * (estimate(new) - estimate(old)), mixed)


def test_in_a_flow_the_error_is_that_of_velocity_times_sigma():
    walk, i = make_walk(FLOW), 1
    clean, noise, velocity = torch.randn(3, *walk.start().latents.shape, dtype=torch.float64)
    noisy = walk.renoised(clean, i, noise).latents
    found = clean_estimate(walk, i, noisy, velocity, clean) - clean.flatten(1)
    torch.testing.assert_close(found, walk.start_of(i).sigma * (noise - clean - velocity).flatten(1))


def test_the_true_prediction_has_no_error_and_known_latents_have_none_ever():
    walk, i = make_walk(DDIM), 1
    clean, noise = torch.randn(2, *walk.start().latents.shape, dtype=torch.float64)
    noisy = walk.renoised(clean, i, noise).latents
    torch.testing.assert_close(clean_estimate(walk, i, noisy, noise, clean), clean.flatten(1))
    mask = torch.zeros(1, 1, 4, 1, 1)
    mask[:, :, 0] = 1
    known = replace(walk, condition=replace(walk.condition, known=Known(clean, mask)))
    off = clean_estimate(known, i, noisy, noise + 1, clean).unflatten(1, clean.shape[1:]) - clean
    assert off[:, :, 0].abs().max() == 0 < off[:, :, 1:].abs().min()


# ---- groups ----


def test_advantages_are_of_a_prompt_s_videos_in_the_batch():
    prompts = as_prompts(["a", "a", "b", "b", "a", "c", "c"])
    found = group_advantages(prompts, torch.tensor([1.0, 2.0, 5.0, 5.0, 6.0, -1.0, 3.0]))
    deviation = math.sqrt((4 + 1 + 9) / 3)
    expected = [-2 / deviation, -1 / deviation, 0, 0, 3 / deviation, -1, 1]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_the_reward_becomes_a_probability(tmp_path):
    algorithm = load_algorithm(toy_recipe(NFT_2, "algorithm.advantage_clip=2"))
    assert algorithm._optimality(torch.tensor([-9.0, -2, 0, 1, 3])).tolist() == [0, 0, 0.5, 0.75, 1]


# ---- the old policy ----


def test_the_old_policy_is_a_running_mean_and_gone_when_used():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    old = OldPolicy()
    old.begin([parameter])
    parameter.data = torch.tensor([3.0, 6.0])
    with old.used([parameter]):
        assert parameter.tolist() == [1, 2]
        assert not (parameter * 2).requires_grad
    assert parameter.tolist() == [3, 6]
    old.begin([parameter])  # nothing new
    old.follow([parameter], decay=0.75)
    assert old.weights[0].tolist() == [1.5, 3]
    old.follow([parameter], decay=0.0)
    assert old.weights[0].tolist() == [3, 6]


def test_the_old_policy_samples_and_follows(tmp_path, monkeypatch):
    run = toy_run(tmp_path)
    run.algorithm.step(run.engine, next_batch(run, 1))
    first = [weight.clone() for weight in run.algorithm.old.weights]
    seen: list[list[Tensor]] = []

    def noting(engine: Engine, *more):
        seen.append([parameter.detach().clone() for parameter in engine.parameters])
        return score(engine, *more)

    monkeypatch.setattr("vader.algorithms.nft.score", noting)
    run.algorithm.step(run.engine, next_batch(run, 2))
    assert all(map(torch.equal, seen[0], first))
    assert not any(map(torch.equal, first, run.engine.parameters))
    for old, now, parameter in zip(first, run.algorithm.old.weights, run.engine.parameters, strict=True):
        torch.testing.assert_close(now, 0.4 * old + 0.6 * parameter)


# ---- the gradient of a step ----


def test_a_step_s_gradient_is_that_of_the_mean_loss(tmp_path, monkeypatch):
    """At the first update model and old one are the same: minus the advantage, times the gradient of regression."""
    run = toy_run(tmp_path, "algorithm.updates=1", "algorithm.times=1", "sampling.guidance=1", "sampling.steps=1")
    engine, batch = run.engine, next_batch(run, 1)
    found: list[Tensor] = []
    scores: list[Tensor] = []

    def keep(engine: Engine, finite: bool = True) -> tuple[float, bool]:
        found.extend(parameter.grad.clone() for parameter in engine.parameters)
        return 0.0, True

    monkeypatch.setattr(Engine, "optimise", keep)
    monkeypatch.setattr(
        "vader.algorithms.nft.group_advantages", lambda *of: scores.append(group_advantages(*of)) or scores[0]
    )
    run.algorithm.step(engine, batch)
    walk = engine.training_walk(batch)
    clean = walk.frozen(1).latents
    noisy = walk.renoised(clean, 0, walk.noise.draw("nft0/0")).latents
    engine.optimizer.zero_grad()
    estimate = walk.sampler.solver.estimates(noisy, walk.predict(0, noisy), walk.start_of(0))[0]
    error = (estimate - clean).flatten(1)
    loss = error.square().mean(dim=1) / error.detach().abs().mean(dim=1)
    (scores[0] * loss).mean().backward()
    for one, parameter in zip(found, engine.parameters, strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-3, atol=1e-5 * float(one.abs().max()))
        assert one.abs().max() > 0


# ---- whole runs ----


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("plain")
    train(toy_recipe(NFT_2), runs)
    return runs / "toy"


def test_what_a_step_reports(plain_run):
    step = next(line for line in metrics(plain_run) if line["kind"] == "train")
    assert step["queries"] == 4
    assert step["loss"] > 0
    assert step["divergence"] > 0  # after the first of two updates


@pytest.mark.parametrize("step", [1, 4])
def test_stopped_and_continued_equals_uninterrupted(tmp_path, plain_run, step):
    whole_step = NFT.step

    def interrupted(self, engine, batch):
        if batch.step == step:
            signal.raise_signal(signal.SIGTERM)
        return whole_step(self, engine, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NFT, "step", interrupted)
        with pytest.raises(Stopped):
            train(toy_recipe(NFT_2), tmp_path)
    train(toy_recipe(NFT_2), tmp_path)
    assert metrics(tmp_path / "toy") == metrics(plain_run)
    assert adapter(tmp_path / "toy") == adapter(plain_run)


@pytest.mark.parametrize("override", ["train.micro_batch=1", "memory=[{name: offload_activations}]"])
def test_what_must_not_change_the_numbers(tmp_path, plain_run, override):
    train(toy_recipe(NFT_2, override), tmp_path)
    assert_close_metrics(metrics(tmp_path / "toy"), metrics(plain_run), absolute=1e-5)


@pytest.mark.parametrize(
    "override", ["algorithm.beta=0.2", "algorithm.decay=0", "algorithm.times=1", "algorithm.base_distance=1"]
)
def test_what_must_change_the_numbers(tmp_path, plain_run, override):
    train(toy_recipe(NFT_2, override), tmp_path)
    changed, plain = (metrics(folder)[-2]["divergence"] for folder in (tmp_path / "toy", plain_run))
    assert changed != pytest.approx(plain, rel=1e-3)


def test_the_distance_to_the_base_is_of_predictions(tmp_path):
    run = toy_run(tmp_path, "algorithm.base_distance=0.5")
    found = run.algorithm.step(run.engine, next_batch(run, 1))
    assert found.extra["base_distance"] > 0
    recipe = toy_recipe("algorithm={name: nft, base_distance: 0.5, group: 2}")
    fresh = build_run(check_recipe(recipe), run.folder)
    assert fresh.algorithm.step(fresh.engine, next_batch(fresh, 1)).extra["base_distance"] == 0  # B is zero


def test_a_reward_that_is_not_finite_skips_the_step(tmp_path, monkeypatch):
    run = toy_run(tmp_path)
    before = [parameter.clone() for parameter in run.engine.parameters]
    warmth = Warmth.score_frames
    monkeypatch.setattr(Warmth, "score_frames", lambda self, images, prompts: warmth(self, images, prompts) * math.nan)
    found = run.algorithm.step(run.engine, next_batch(run, 1))
    assert found.skipped
    assert math.isnan(found.grad_norm)
    assert all(map(torch.equal, before, run.engine.parameters))
    assert all(map(torch.equal, before, run.algorithm.old.weights))


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
def test_the_reward_rises_with_any_solver(tmp_path, solver):
    settings = ("model.family=toys:GaussianModel", "video={frames: 1, height: 4, width: 4}", "sampling.guidance=1")
    reward = ("rewards=[{name: 'toys:Warmth'}]", "algorithm={name: nft, group: 8, times: 2}")
    loop = ("train.batch=32", "train.steps=40", "optimizer.lr=0.02", "train.checkpoint_every=100")
    many = ("evaluation={every: 100, videos: 64, batch: 64, shown: 1}", f"sampling={{steps: 5, solver: {solver}}}")
    result = train(toy_recipe(*settings, *reward, *loop, *many), tmp_path)
    assert result.after[0] > result.before[0] + 5 * (result.before[1] + result.after[1])


# ---- mistakes ----


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.group=1"], "algorithm.group is 1: a video that is alone of its prompt is its own mean"),
        (["algorithm.group=3"], "train.batch 4 is no multiple of algorithm.group 3"),
        (["algorithm.times=5"], "algorithm.times is 5, but the chain to whose steps videos are noised has 4"),
        (["sampling.guidance_detach_uncond=true"], "nft trains the conditional prediction alone: leave it out"),
        (["algorithm.decay=1"], "algorithm 'nft': decay is 1: input should be less than 1"),
    ],
    ids=str,
)
def test_contradictions(overrides, message):
    with pytest.raises(UserError) as caught:
        load_algorithm(toy_recipe(NFT_2, *overrides))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_few_prompts_a_step_are_told(tmp_path):
    run = toy_run(tmp_path)
    assert run.algorithm.words(run.engine)[0].startswith("a step learns from 2 prompts: below 8 the reward may swing")
    many = load_algorithm(toy_recipe(NFT_2, "train.batch=16"))
    assert many.words(run.engine) == []
