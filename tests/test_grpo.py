"""Flow-GRPO by algorithm 'ddpo': groups, and noise in a window of steps; all other steps are the ODE's."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from solver_chains import COGVIDEOX
from toy_runs import assert_close_metrics, metrics, toy_recipe
from toys import DDIM
from vader.algorithms import load_algorithm
from vader.algorithms.ddpo import roll_out
from vader.algorithms.windows import NoiseWindow, noise_window
from vader.errors import UserError
from vader.runs.folder import RunFolder
from vader.sampling import Noise
from vader.solvers import FirstOrder, Level, Solver
from vader.solvers.scheduler_config import solver_from_config
from vader.training.before import check_recipe
from vader.training.trainer import Run, build_run, next_batch, train

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
GROUPS = ("algorithm={name: ddpo, group: 2}", "sampling.eta=1")


def toy_run(folder: Path, *overrides: str, solver: Solver | None = None) -> Run:
    run = build_run(check_recipe(toy_recipe(*GROUPS, *overrides)), RunFolder(folder / "toy"))
    generator = torch.Generator().manual_seed(5)
    for parameter in run.engine.parameters:  # not at zero, where half of the gradients are
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    if solver is not None:
        schedule = solver.schedule(4, run.engine.size)
        run.engine.sampler = replace(run.engine.sampler, solver=solver, schedule=schedule)
    return run


def solvers() -> dict[str, tuple[Solver, Solver]]:
    """Stochastic ones, and those that a recipe without noise would have."""
    edm = DDIM | {"clip_sample": False}
    pairs = {
        "ddim": [solver_from_config(DDIM, eta=eta) for eta in (0.8, 0.0)],
        "edm": [solver_from_config(edm, kind="euler_edm", eta=eta) for eta in (0.8, 0.0)],
        "flow": [solver_from_config(FLOW, eta=eta) for eta in (0.5, 0.0)],
    }
    return {name: (first, second) for name, (first, second) in pairs.items()}


# ---- the window ----


@pytest.mark.parametrize("name", ["ddim", "edm", "flow"])
def test_steps_outside_the_window_are_the_ode_s(tmp_path, name):
    noisy, plain = solvers()[name]
    run = toy_run(tmp_path, solver=noisy)
    batch = next_batch(run, 1)
    rollout = roll_out(run.engine, batch, noisy=range(1, 3))
    run.engine.sampler = replace(run.engine.sampler, solver=plain)
    ode = run.engine.training_walk(batch)
    assert torch.equal(rollout.places[1].latents, ode.path()[1].latents)
    assert torch.equal(rollout.places[4].latents, ode.step(rollout.places[3], grad=False).latents)
    for i in (1, 2):
        assert not torch.equal(rollout.places[i + 1].latents, ode.step(rollout.places[i], grad=False).latents)
    assert [place.std > 0 for place in rollout.places] == [False, False, True, True, False]
    assert list(rollout.log_probs) == [1, 2]


def test_a_multistep_solver_looks_back_over_the_window_s_edge(tmp_path):
    run = toy_run(tmp_path, solver=solver_from_config(COGVIDEOX, kind="dpm"))
    assert run.engine.sampler.solver.rule.eta == 1
    rollout = roll_out(run.engine, next_batch(run, 1), noisy=range(1, 2))
    assert list(rollout.log_probs) == [1]
    assert [place.std > 0 for place in rollout.places] == [False, False, True, False, False]
    again = rollout.walk.step(replace(rollout.places[2], memory=None))
    assert not torch.equal(again.latents, rollout.places[3].latents)  # what it remembers of step 1 counts
    assert torch.equal(rollout.log_probs_now(1), rollout.log_probs[1])


def test_deterministic_solvers_are_their_own_ode():
    for solver in (solver_from_config(DDIM, kind="unipc"), solver_from_config(DDIM, eta=0.0)):
        assert solver.ode == solver
    noisy = solver_from_config(COGVIDEOX, kind="dpm")
    assert (noisy.rule.eta, noisy.ode.rule.eta, noisy.ode.stochastic) == (1, 0, False)
    assert noisy.ode.levels is noisy.levels


def test_a_window_of_all_steps_is_today_s_rollout_to_the_bit(tmp_path):
    run = toy_run(tmp_path)
    batch = next_batch(run, 1)
    all_steps, plain = roll_out(run.engine, batch, noisy=range(4)), roll_out(run.engine, batch)
    for one, other in zip(all_steps.places, plain.places, strict=True):
        assert torch.equal(one.latents, other.latents)
    assert all(torch.equal(all_steps.log_probs[i], other) for i, other in plain.log_probs.items())
    names = ("algorithm={name: ddpo}", "algorithm={name: ddpo, window: [0, 4], window_size: 4}")
    for number, algorithm in enumerate(names):
        train(toy_recipe("sampling.eta=1", algorithm, "train.steps=3"), tmp_path / f"run{number}")
    assert metrics(tmp_path / "run0/toy") == metrics(tmp_path / "run1/toy")


def test_stored_log_probabilities_in_the_window_are_those_of_the_noise(tmp_path):
    run = toy_run(tmp_path, solver=solvers()["flow"][0])
    rollout = roll_out(run.engine, next_batch(run, 1), noisy=[1])
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(rollout.walk.noise.draw("step1").double())
    expected = standard.flatten(1).mean(dim=1) - math.log(rollout.places[2].std)
    torch.testing.assert_close(rollout.log_probs[1].double(), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("a", "sigma"), [(0.7, 0.3), (0.7, 0.9), (1.2, 0.6)])
def test_a_flow_s_noise_is_flow_grpo_s_sde_where_eta_is_a_over_the_root_of_2(a, sigma):
    """Flow-GRPO: dx = [v + s^2 / (2 sigma) (x + (1 - sigma) v)] dsigma + s dw, with s = a sqrt(sigma / (1 - sigma))."""
    rule, (x, v) = FirstOrder(a / math.sqrt(2)), torch.randn(2, 1, 64, dtype=torch.float64)
    errors = []
    for step in (1e-3, 1e-4):
        here, there = Level(1 - sigma, sigma, 0.0), Level(1 - sigma + step, sigma - step, 0.0)
        found = rule(x, x - sigma * v, x + (1 - sigma) * v, here, there, torch.zeros_like(x))
        square = a**2 * sigma / (1 - sigma)
        mean = x - step * (v + square / (2 * sigma) * (x + (1 - sigma) * v))
        assert found.std == pytest.approx(math.sqrt(square * step), rel=10 * step)
        errors.append(float((found.mean - mean).abs().max()) / step)
    assert errors[1] < 0.15 * errors[0] < 0.05  # in the drift, and of first order: the same SDE


def test_the_window_goes_wherever_it_fits():
    window = noise_window((1, 6), 2, steps=8)
    drawn = [window.drawn(3, step) for step in range(200)]
    assert {tuple(place) for place in drawn} == {(1, 2), (2, 3), (3, 4), (4, 5)}
    assert drawn == [window.drawn(3, step) for step in range(200)]
    assert noise_window((2, 5), None, 8).places == [range(2, 5)]
    assert noise_window(None, 3, 4).places == [range(3), range(1, 4)]
    assert noise_window(None, None, 4) == NoiseWindow(0, 4, 4, 4)


def test_an_update_goes_through_the_window_alone(tmp_path, monkeypatch):
    run = toy_run(tmp_path, "algorithm.window=[1, 3]", "algorithm.window_size=1", "algorithm.minibatches=1")
    passes = []
    predict = type(run.engine.training_walk(next_batch(run, 1))).predict
    monkeypatch.setattr(
        "vader.sampling.walk.Walk.predict",
        lambda walk, i, *more: (torch.is_grad_enabled() and passes.append(i), predict(walk, i, *more))[1],
    )
    run.algorithm.step(run.engine, next_batch(run, 1))
    assert passes == list(run.algorithm.window.drawn(run.recipe.train.seed, 1))


# ---- groups ----


def test_neighbours_share_noise_where_asked():
    noise = Noise((4, 2), seed=1, purpose="train", step=3, indices=(2, 3, 4, 5))
    shared, apart = noise.shared(3).draw("x"), noise.draw("x")
    assert torch.equal(shared[1:], apart[1:2].expand(3, -1, -1))  # of video 3, which is the first of its three
    assert torch.equal(shared[0], replace(noise, indices=(0,)).draw("x")[0])


def test_a_group_shares_its_start_where_asked(tmp_path):
    run = toy_run(tmp_path)
    batch = next_batch(run, 1)
    apart, shared = (roll_out(run.engine, batch, sharing=sharing) for sharing in (1, 2))
    start, *_, end = (place.latents for place in shared.places)
    assert torch.equal(start[::2], start[1::2])
    assert torch.equal(start[::2], apart.places[0].latents[::2])
    assert not any(map(torch.equal, end[::2], end[1::2]))  # their steps have noise of their own


def test_groups_are_ddpo_s_statistics_that_remember_one_batch(tmp_path):
    remembered = "algorithm={name: ddpo, videos_per_prompt: 2, prompt_buffer: 2, prompt_min_count: 2}"
    for number, algorithm in enumerate((remembered, GROUPS[0])):
        train(toy_recipe("sampling.eta=1", algorithm, "train.steps=3"), tmp_path / f"run{number}")
    assert_close_metrics(metrics(tmp_path / "run1/toy"), metrics(tmp_path / "run0/toy"), absolute=1e-6)
    run = toy_run(tmp_path / "more")
    run.algorithm.step(run.engine, next_batch(run, 1))
    assert run.algorithm.state_dict() == {}


def test_the_reward_rises_by_groups_in_a_window(tmp_path):
    settings = ("model.family=toys:GaussianModel", "video={frames: 1, height: 4, width: 4}", "sampling.guidance=1")
    algorithm = "{name: ddpo, group: 8, clip_range: 0.1, window: [0, 4], window_size: 2, shared_start: true}"
    reward = ("rewards=[{name: 'toys:Warmth'}]", f"algorithm={algorithm}", "sampling.eta=1")
    loop = ("train.batch=32", "train.steps=30", "optimizer.lr=0.05", "train.checkpoint_every=100")
    many = ("evaluation={every: 100, videos: 64, batch: 64, shown: 1}", "sampling.steps=5")
    result = train(toy_recipe(*settings, *reward, *loop, *many), tmp_path)
    assert result.after[0] > result.before[0] + 5 * (result.before[1] + result.after[1])


# ---- mistakes ----


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.group=1"], "algorithm.group is 1: a video that is alone of its prompt is its own mean"),
        (["algorithm.group=3"], "train.batch 4 is no multiple of algorithm.group 3"),
        (["algorithm.prompt_buffer=64"], "algorithm.prompt_buffer is given, but with algorithm.group"),
        (["algorithm.videos_per_prompt=2"], "algorithm.videos_per_prompt is given, but with algorithm.group"),
        (["algorithm={name: ddpo, shared_start: true}"], "algorithm.shared_start is about several videos of a prompt"),
        (["algorithm.window=[2, 2]"], "algorithm.window is [2, 2]: it begins at a step and ends before another"),
        (["algorithm.window=[2, 5]"], "within [0, 4] with sampling.steps 4"),
        (["algorithm.window=[2, 4]", "algorithm.window_size=3"], "from step 2 to before 4 there are 2: lower it"),
        (["algorithm.window_size=5"], "algorithm.window_size is 5, but from step 0 to before 4 there are 4"),
    ],
    ids=str,
)
def test_contradictions(overrides, message):
    with pytest.raises(UserError) as caught:
        load_algorithm(toy_recipe(*GROUPS, *overrides))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_window_without_a_step_to_train_is_refused_before_the_run(tmp_path):
    with pytest.raises(UserError, match=r"may be steps 2 to 2, which add noise of at most 0\.0\d+, and .* is 0\.2"):
        toy_run(tmp_path, "algorithm.window_size=1", "algorithm.min_std=0.2")
    run = toy_run(tmp_path, "algorithm.window=[2, 4]", "algorithm.window_size=1", solver=solvers()["flow"][0])
    with pytest.raises(UserError, match="may be steps 3 to 3, which add noise of at most 0, and"):
        run.algorithm.check(run.engine)


def test_a_window_that_leaves_out_a_denoiser_is_refused_before_the_run(tmp_path):
    with pytest.raises(UserError, match=r"window never reaches 'transformer_2', .* than 0 to 1: widen it, or leave"):
        toy_run(tmp_path, "model.family=toy_walks:TwoExperts", "algorithm.window=[0, 2]")
