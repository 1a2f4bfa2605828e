"""Solvers: against diffusers' schedulers, against stored numbers of the reference codes, and against themselves."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import NamedTuple

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers import scheduling_euler_ancestral_discrete as ancestral
from safetensors import safe_open
from torch import Tensor

from factories import SVD_SCHEDULER
from vader import solvers
from vader.errors import UserError
from vader.solvers import Schedule, Solver, scheduler_config
from vader.solvers.scheduler_config import solver_from_config

SHAPE = (2, 3, 4, 2, 2)
SD = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
}
MODELSCOPE = SD | {
    "_diffusers_version": "0.15.0.dev0",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
VIDEOCRAFTER2 = SD | {"timestep_spacing": "uniform", "set_alpha_to_one": False, "dynamic_rescale": True}
SVD = SVD_SCHEDULER
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
OPEN_SORA = {"_class_name": "RFLOW", "use_timestep_transform": True}


class Size(NamedTuple):
    frames: int
    height: int
    width: int


CLIP_240P = Size(51, 240, 426)

# Every kind of solver, for properties that all share.
EACH = {
    "ddim": (SD, {}),
    "ddim eta": (SD, {"eta": 1.0}),
    "ddim v zero-snr": (
        SD | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"eta": 0.5},
    ),
    "ddim sample": (SD | {"prediction_type": "sample"}, {"eta": 0.3}),
    "videocrafter2": (VIDEOCRAFTER2, {"eta": 1.0}),
    "dpm": (MODELSCOPE, {"kind": "dpm"}),
    "dpm v": (SD | {"prediction_type": "v_prediction"}, {"kind": "dpm", "spacing": "trailing"}),
    "svd": (SVD, {}),
    "svd eta": (SVD, {"eta": 1.0}),
    "euler epsilon": (SD, {"kind": "euler_edm"}),
    "flow": (FLOW, {}),
    "flow eta": (FLOW, {"eta": 0.5}),
    "open-sora": (OPEN_SORA, {}),
    "open-sora eta": (OPEN_SORA, {"eta": 1.0}),
}
each_solver = pytest.mark.parametrize("solver", [solver_from_config(c, **k) for c, k in EACH.values()], ids=list(EACH))


def stand_in(x: Tensor, t: Tensor) -> Tensor:
    """A denoiser in closed form: bounded, nonlinear, time matters."""
    return torch.tanh(0.7 * x.roll(1, -1) + 0.3 * x) + 0.1 * torch.sin(t.to(x.dtype) / 50)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def walk(
    solver: Solver, schedule: Schedule, start: Tensor, noise: Tensor | None = None, denoiser: Callable = stand_in
) -> Tensor:
    """The latents after each step, `[S, ...]`, from standard normal `start`."""
    x, state, visited = start * schedule.init_scale, None, []
    for i in range(len(schedule)):
        prediction = denoiser(x * schedule.input_scale[i], schedule.times[i])
        x, *_, state = solver.step(schedule, i, x, prediction, None if noise is None else noise[i], state)
        visited.append(x)
    return torch.stack(visited)


def assert_near(actual: Tensor, expected: Tensor, relative: float) -> None:
    """Within `relative` of the largest expected entry, everywhere."""
    assert actual.shape == expected.shape
    gap = (actual.double() - expected.double()).abs().max() / expected.abs().max()
    assert gap <= relative, f"relative gap {gap:.2e}"


# ------------------------------------------------------------------------------------ against diffusers


def diffusers_ddim(scheduler: DDIMScheduler, steps: int, eta: float, start: Tensor, noise: Tensor) -> Tensor:
    scheduler.set_timesteps(steps)
    x, visited = start, []
    for t, fresh in zip(scheduler.timesteps, noise, strict=True):
        x = scheduler.step(stand_in(x, t), t, x, eta=eta, variance_noise=fresh if eta else None).prev_sample
        visited.append(x)
    return torch.stack(visited)


def diffusers_euler(scheduler: EulerDiscreteScheduler, steps: int, start: Tensor) -> Tensor:
    scheduler.set_timesteps(steps)
    x, visited = start * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        x = scheduler.step(stand_in(scheduler.scale_model_input(x, t), t), t, x).prev_sample
        visited.append(x)
    return torch.stack(visited)


def diffusers_dpm(scheduler: DPMSolverMultistepScheduler, steps: int, start: Tensor) -> Tensor:
    scheduler.set_timesteps(steps)
    x, visited = start, []
    for t in scheduler.timesteps:
        x = scheduler.step(stand_in(x, t), t, x).prev_sample
        visited.append(x)
    return torch.stack(visited)


def diffusers_flow(scheduler: FlowMatchEulerDiscreteScheduler, steps: int, start: Tensor) -> Tensor:
    scheduler.set_timesteps(steps)
    x, visited = start, []
    for t in scheduler.timesteps:
        x = scheduler.step(stand_in(x, t), t, x).prev_sample
        visited.append(x)
    return torch.stack(visited)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [10, 30])
def test_ddim_follows_diffusers(prediction, spacing, eta, steps):
    config = SD | {"prediction_type": prediction, "timestep_spacing": spacing}
    solver = solver_from_config(config, eta=eta)
    start, noise = draw(*SHAPE), draw(steps, *SHAPE, seed=1)
    expected = diffusers_ddim(DDIMScheduler.from_config(config), steps, eta, start, noise)
    assert_near(walk(solver, solver.schedule(steps), start, noise), expected, 1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"rescale_betas_zero_snr": True},
        {"set_alpha_to_one": False, "steps_offset": 1},
        {"clip_sample": True},
        {"clip_sample": True, "clip_sample_range": 0.6, "prediction_type": "sample"},
        {"trained_betas": torch.linspace(0.001, 0.01, 1000).tolist()},
        {"num_train_timesteps": 400},
    ],
    ids=lambda change: "-".join(change),
)
def test_ddim_follows_diffusers_in_every_setting(change):
    start, noise = draw(*SHAPE), draw(20, *SHAPE, seed=1)
    solver = solver_from_config(SD | change, eta=0.7)
    expected = diffusers_ddim(DDIMScheduler.from_config(SD | change), 20, 0.7, start, noise)
    assert_near(walk(solver, solver.schedule(20), start, noise), expected, 1e-5)


def test_ddim_follows_diffusers_with_its_class_defaults():
    start, noise = draw(*SHAPE), draw(20, *SHAPE, seed=1)
    solver = solver_from_config({"_class_name": "DDIMScheduler"})
    expected = diffusers_ddim(DDIMScheduler(), 20, 0.0, start, noise)
    assert_near(walk(solver, solver.schedule(20), start), expected, 1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_times_are_diffusers_for_every_number_of_steps(spacing):
    scheduler = DDIMScheduler(timestep_spacing=spacing)
    solver = solver_from_config(SD, spacing=spacing)
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        expected = scheduler.timesteps[:steps].double()  # a rounding in diffusers' trailing can add one time too many
        assert torch.equal(solver.schedule(steps).times, expected), steps


@pytest.mark.parametrize("steps", [4, 10, 25])
def test_euler_edm_follows_diffusers_with_svd_settings(steps):
    solver, start = solver_from_config(SVD), draw(*SHAPE)
    scheduler = EulerDiscreteScheduler.from_config(SVD)
    expected = diffusers_euler(scheduler, steps, start)
    schedule = solver.schedule(steps)
    assert_near(walk(solver, schedule, start)[-1], expected[-1], 1e-5)
    assert_near(walk(solver, schedule, start), expected, 1e-5)
    assert_near(schedule.times, scheduler.timesteps, 1e-6)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("change", [{}, {"use_karras_sigmas": True}, {"timestep_type": "continuous"}], ids=str)
def test_euler_edm_follows_diffusers_on_trained_levels(prediction, spacing, change):
    config = {key: value for key, value in SD.items() if key != "clip_sample"} | change
    config |= {"_class_name": "EulerDiscreteScheduler", "prediction_type": prediction, "timestep_spacing": spacing}
    solver, start = solver_from_config(config), draw(*SHAPE)
    scheduler = EulerDiscreteScheduler.from_config(config)
    expected = diffusers_euler(scheduler, 20, start)
    schedule = solver.schedule(20)
    assert schedule.init_scale == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-6)
    assert_near(schedule.times, scheduler.timesteps, 1e-5)
    assert_near(walk(solver, schedule, start)[-1], expected[-1], 1e-5)
    assert_near(walk(solver, schedule, start), expected, 1e-5)


@pytest.mark.parametrize("change", [{}, {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}], ids=str)
@pytest.mark.parametrize("spacing", ["auto", "leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 10, 25])
def test_dpm_follows_diffusers_with_modelscope_settings(change, spacing, steps):
    solver = solver_from_config(MODELSCOPE | change, kind="dpm", spacing=spacing)
    spaced = {} if spacing == "auto" else {"timestep_spacing": spacing}
    scheduler = DPMSolverMultistepScheduler.from_config(MODELSCOPE | change | spaced)
    start, schedule = draw(*SHAPE), solver.schedule(steps)
    expected = diffusers_dpm(scheduler, steps, start)
    assert schedule.times.tolist() == scheduler.timesteps.tolist()
    assert_near(walk(solver, schedule, start), expected, 1e-5)


def test_dpm_times_of_the_reference():
    """25 steps of ModelScope's reference code: 999, 959, ..., 80, 40."""
    times = solver_from_config(MODELSCOPE, kind="dpm").schedule(25).times.tolist()
    assert times[:2] + times[-2:] == [999, 959, 80, 40]


def test_dpm_remembers_the_clean_estimate_with_its_graph():
    solver = solver_from_config(MODELSCOPE, kind="dpm")
    schedule, x, earlier = solver.schedule(5), draw(*SHAPE), draw(*SHAPE, seed=1).requires_grad_()
    first = solver.step(schedule, 0, x, earlier)
    assert torch.equal(first.state, first.clean)
    with_memory = solver.step(schedule, 1, first.next.detach(), draw(*SHAPE, seed=2), state=first.state).next
    (gradient,) = torch.autograd.grad(with_memory.sum(), earlier)
    sigma_over_alpha = float(schedule.tables["sigma"][0] / schedule.tables["alpha"][0])
    weight = float(schedule.tables["gain"][1] * schedule.tables["look_back"][1]) * sigma_over_alpha
    torch.testing.assert_close(gradient, torch.full_like(gradient, weight))


@pytest.mark.parametrize("shift", [1.0, 3.0, 7.0])
@pytest.mark.parametrize("steps", [1, 20])
def test_euler_flow_follows_diffusers(shift, steps):
    config = FLOW | {"shift": shift}
    solver, start = solver_from_config(config), draw(*SHAPE)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    expected = diffusers_flow(scheduler, steps, start)
    schedule = solver.schedule(steps)
    assert_near(schedule.times, scheduler.timesteps, 1e-6)
    assert_near(walk(solver, schedule, start), expected, 1e-5)


def test_class_defaults_are_those_of_diffusers():
    for name, different in scheduler_config._DDPM_FAMILY.items():
        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
        for field, value in (scheduler_config._DDIM_FIELDS | scheduler_config._EDM_FIELDS | different).items():
            if field in parameters:
                assert parameters[field].default == value, (name, field)


# ------------------------------------------------------------------ against stored numbers of the reference codes


def test_videocrafter2_tables():
    """Numbers of the official sampler, 25 steps, eta 1 (call order: from noise to clean)."""
    schedule = solver_from_config(VIDEOCRAFTER2, eta=1.0).schedule(25)
    assert schedule.times.tolist() == list(range(961, 0, -40))
    few = {name: table[[0, -2, -1]] for name, table in schedule.tables.items()}
    alpha_bar = torch.tensor([0.007281727157533169, 0.9608727693557739, 0.9982960224151611])
    scale = torch.tensor([0.7, 0.9691729545593262, 0.9992481470108032])
    assert_near(few["alpha"], alpha_bar.sqrt() * scale, 1e-6)
    assert_near(few["sigma"], (1 - alpha_bar).sqrt(), 1e-6)
    assert_near(few["std"], torch.tensor([0.5969023111267663, 0.04040484790074064, 0.02064835437294855]), 1e-6)
    assert float(few["alpha_next"][-1]) == pytest.approx(0.9991499781608582**0.5, rel=1e-6)  # not 1: it ends at level 0


def test_svd_levels():
    """Numbers of diffusers' EulerDiscreteScheduler with the settings of SVD-XT, 4 steps."""
    schedule = solver_from_config(SVD).schedule(4)
    sigmas = torch.tensor([700.0, 70.54084014892578, 2.2691164016723633, 0.0020000000949949026, 0.0])
    assert_near(schedule.tables["sigma"], sigmas[:-1], 1e-6)
    assert_near(schedule.tables["direction"], sigmas[1:], 1e-6)
    told = torch.tensor([1.6377700567245483, 1.064047932624817, 0.20484763383865356, -1.553652048110962])
    assert_near(schedule.times, told, 1e-6)
    assert schedule.init_scale == pytest.approx(700.000732421875, rel=1e-6)


def test_open_sora_times():
    """Numbers of the official Open-Sora 1.2 sampler, 30 steps at 240x426, 51 frames, and 1 frame at 144x256."""
    solver = solver_from_config(OPEN_SORA)
    times = solver.schedule(30, CLIP_240P).times
    expected = torch.tensor([1000.0, 985.9437255859375, 971.3154907226562, 956.07958984375, 76.98348236083984])
    assert_near(times[[0, 1, 2, 3, -1]], expected, 1e-6)
    assert_near(solver.schedule(30, Size(1, 144, 256)).times[[1, 15]], torch.tensor([915.7895508, 272.7272949]), 1e-6)


@pytest.fixture
def stored(shared):
    def load(name: str) -> dict[str, Tensor]:
        with safe_open(shared(f"parity/{name}.safetensors"), "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    return load


@pytest.mark.parametrize("steps", [25, 50])
def test_videocrafter2_tables_agree_with_the_official_sampler(stored, steps):
    official = {
        name.split("/")[1]: table for name, table in stored("videocrafter2/sampler").items() if f"S{steps}/" in name
    }
    solver = solver_from_config(VIDEOCRAFTER2, eta=1.0)
    schedule = solver.schedule(steps)
    tables = {name: table.flip(0) for name, table in schedule.tables.items()}
    signal = (official["alphas"].double().sqrt() * official["scale"].double(), official["alphas_prev"].sqrt())
    assert torch.equal(schedule.times.flip(0), official["timesteps"].double())
    assert_near(tables["alpha"], signal[0], 1e-6)
    assert_near(tables["alpha_next"], signal[1] * official["scale_prev"], 1e-6)
    assert_near(tables["sigma"], official["sqrt_one_minus_alphas"], 1e-6)
    assert_near(tables["std"], official["sigmas_eta1"], 1e-6)


@pytest.mark.parametrize(
    "name", ["S25_eta0", "S25_eta1", "S50_eta0", "S50_eta1", "S25_eta1_noscale", "S25_eta1_guidance1"]
)
def test_videocrafter2_trajectories_agree_with_the_official_sampler(stored, name):
    official = stored("videocrafter2/sampler")
    steps, eta = int(name[1:3]), float(name[7])
    guidance = 1.0 if name.endswith("guidance1") else 12.0
    solver = solver_from_config(VIDEOCRAFTER2 | {"dynamic_rescale": "noscale" not in name}, eta=eta)

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        cond, uncond = 0.3 * x + 0.01 * t / 1000, 0.2 * x
        return uncond + guidance * (cond - uncond)

    noise = official.get(f"traj_{name}/noise")
    visited = walk(solver, solver.schedule(steps), official[f"traj_{name}/x_T"], noise, denoiser)
    assert_near(visited, official[f"traj_{name}/x"], 2e-5)


def test_videocrafter2_forward_process_agrees_with_the_official_one(stored):
    official = stored("videocrafter2/sampler")
    solver = solver_from_config(VIDEOCRAFTER2)
    everywhere = solvers.DDIM(solver.alpha_bar, scale=solver.scale).schedule(1000)
    clean, noise = official["q_sample/x0"], official["q_sample/noise"]
    for case in "abc":
        for video, t in enumerate(official[f"q_sample_{case}/t"].tolist()):
            noisy = solver.renoise(everywhere, 999 - t, clean[video], noise[video])
            assert_near(noisy, official[f"q_sample_{case}/out"][video], 1e-6)


@pytest.mark.parametrize("steps", [4, 10, 25])
def test_svd_schedule_agrees_with_the_stored_one(stored, steps):
    official = stored("rewards/svd_euler_schedule")
    schedule = solver_from_config(SVD).schedule(steps)
    assert_near(schedule.tables["sigma"], official[f"sigmas_{steps}"][:-1], 1e-6)
    assert_near(schedule.tables["direction"], official[f"sigmas_{steps}"][1:], 1e-6)
    assert_near(schedule.times, official[f"timesteps_{steps}"], 1e-6)
    assert schedule.init_scale == pytest.approx(float(official[f"init_noise_sigma_{steps}"]), rel=1e-6)


def test_svd_step_agrees_with_the_stored_one(stored):
    official = {name[7:]: value for name, value in stored("rewards/svd_euler_schedule").items() if "step20" in name}
    solver = solver_from_config(SVD)
    schedule = solver.schedule(25)
    step = solver.step(schedule, 20, official["x"], official["model_output"])
    assert_near(official["x"] * schedule.input_scale[20], official["scaled_input"], 1e-6)
    assert_near(step.next, official["prev_sample"], 1e-6)
    assert_near(step.clean, official["pred_x0"], 1e-6)


def test_open_sora_times_agree_with_the_official_tables(shared):
    solver = solver_from_config(OPEN_SORA)
    tables = json.loads(shared("parity/opensora12/rflow.json").read_text())["timestep_tables"]
    exact = [t for t in tables if t["dtype_of_size_arguments"] == "float32" and t["latent_frames_in_formula"] > 0]
    assert len(exact) > 5
    for table in exact:
        times = solver.schedule(30, Size(table["num_frames"], table["height"], table["width"])).times
        torch.testing.assert_close(times, torch.tensor(table["timesteps"], dtype=torch.float64), rtol=2e-6, atol=0)


@pytest.mark.parametrize("name", ["plain", "no_transform", "stdit"])
def test_open_sora_trajectories_agree_with_the_official_sampler(stored, name):
    official = stored("opensora12/rflow")
    solver = solver_from_config(OPEN_SORA | {"use_timestep_transform": name != "no_transform"})
    x = official[f"traj_{name}/z_init"]
    schedule = solver.schedule(30, CLIP_240P)
    for i, velocity in enumerate(official[f"traj_{name}/v_pred"]):
        assert_near(x, official[f"traj_{name}/z_model_input"][i], 1e-5)
        x = solver.step(schedule, i, x, velocity).next
    assert_near(x, official[f"traj_{name}/z_final"], 1e-5)


# ------------------------------------------------------------------------------------ against themselves


@each_solver
@pytest.mark.parametrize("through", ["latents", "prediction"])
def test_gradient_of_a_chain_equals_central_differences(solver, through):
    schedule = solver.schedule(4, CLIP_240P)
    start, along, weight = (draw(*SHAPE, seed=seed, dtype=torch.float64) for seed in (1, 2, 3))
    noise = draw(4, *SHAPE, seed=4, dtype=torch.float64)

    def objective(h: Tensor) -> Tensor:
        moved = start + h * along if through == "latents" else start
        bias = h * along if through == "prediction" else 0
        return (walk(solver, schedule, moved, noise, lambda x, t: stand_in(x, t) + bias)[-1] * weight).sum()

    h = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(objective(h), h)
    difference = (objective(h.detach() + 1e-5) - objective(h.detach() - 1e-5)) / 2e-5
    assert float(gradient) != 0
    assert float(gradient) == pytest.approx(float(difference), rel=1e-6)


def exact_prediction(solver: Solver, schedule: Schedule, i: int, clean: Tensor, noise: Tensor) -> Tensor:
    """What a perfect denoiser says of `renoise(clean, noise)`."""
    alpha, sigma = schedule.tables["alpha"][i], schedule.tables["sigma"][i]
    if isinstance(solver, solvers.OpenSoraFlow):
        return clean - noise
    if isinstance(solver, solvers.EulerFlow):
        return noise - clean
    v = (alpha * noise - sigma * clean) / (alpha**2 + sigma**2).sqrt()
    return {"epsilon": noise, "sample": clean, "v_prediction": v}[solver.prediction]


@each_solver
def test_renoised_latents_and_the_exact_prediction_give_the_clean_ones_back(solver):
    schedule = solver.schedule(5, CLIP_240P)
    clean, noise, fresh = (draw(*SHAPE, seed=seed, dtype=torch.float64) for seed in (1, 2, 3))
    for i in range(5):
        latents = solver.renoise(schedule, i, clean, noise)
        prediction = exact_prediction(solver, schedule, i, clean, noise)
        step = solver.step(schedule, i, latents, prediction, fresh)
        assert_near(step.clean, clean, 1e-9)
        if i + 1 < 5 and not solver.stochastic:  # the exact prediction stays on the path
            assert_near(step.next, solver.renoise(schedule, i + 1, clean, noise), 1e-9)


@each_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_step_is_pure_and_its_next_is_mean_plus_std_noise(solver, dtype):
    schedule = solver.schedule(5, CLIP_240P)
    latents, prediction, noise = (draw(*SHAPE, seed=seed, dtype=dtype) for seed in (1, 2, 3))
    for i in (3, 0, 3, 4):
        step = solver.step(schedule, i, latents, prediction, noise)
        again = solver.step(schedule, i, latents, prediction, noise)
        assert step.next.dtype == step.mean.dtype == step.clean.dtype == dtype
        assert torch.equal(step.next, again.next)
        assert torch.equal(step.next, step.mean + step.std * noise)
        assert isinstance(step.std, float)
        assert solver.stochastic or step.std == 0.0
    assert schedule.times.dtype == schedule.tables["alpha"].dtype == torch.float64
    assert len(schedule) == len(schedule.input_scale) == 5


@each_solver
def test_a_half_precision_prediction_leaves_latents_in_float32(solver):
    schedule, latents = solver.schedule(5, CLIP_240P), draw(*SHAPE)
    step = solver.step(schedule, 1, latents, latents.bfloat16(), latents)
    assert step.next.dtype == step.clean.dtype == torch.float32


def test_noise_at_eta_1_keeps_the_variance_of_the_path():
    """Under exact predictions the next latents are distributed as the forward process says."""
    schedule = solver_from_config(SD, eta=1.0).schedule(10)
    tables = schedule.tables
    for i in range(9):
        variance = tables["direction"][i] ** 2 + tables["std"][i] ** 2
        assert variance == pytest.approx(float(tables["sigma"][i + 1] ** 2), rel=1e-12)
    assert tables["std"][-1] == 0  # with set_alpha_to_one the last step ends in the clean estimate


@pytest.mark.parametrize("config", [SD, SVD, FLOW, OPEN_SORA], ids=["ddim", "edm", "flow", "open-sora"])
def test_noise_at_eta_1_is_that_of_the_posterior(config):
    """Bayes's rule for Gaussians: precisions of prior (from the clean latents) and likelihood (one noising) add up."""
    tables = solver_from_config(config, eta=1.0).schedule(10, CLIP_240P).tables
    half = solver_from_config(config, eta=0.5).schedule(10, CLIP_240P).tables
    for i in range(9):
        at = {name: float(table[i]) for name, table in tables.items()}
        sigma_next = float(tables["sigma"][i + 1])
        kept = at["alpha"] / at["alpha_next"]
        noising = at["sigma"] ** 2 - (kept * sigma_next) ** 2
        expected = (1 / sigma_next**2 + kept**2 / noising) ** -0.5
        assert at["std"] == pytest.approx(expected, rel=1e-9)
        assert at["direction"] ** 2 + at["std"] ** 2 == pytest.approx(sigma_next**2, rel=1e-9)
        assert float(half["std"][i]) == pytest.approx(expected / 2, rel=1e-9)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_edm_at_eta_1_follows_diffusers_ancestral_sampler(spacing):
    config = SD | {"timestep_spacing": spacing}
    solver = solver_from_config(config, kind="euler_edm", eta=1.0)
    scheduler = EulerAncestralDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(12)
    start, noise = draw(*SHAPE), draw(12, *SHAPE, seed=1)
    x, expected = start * scheduler.init_noise_sigma, []
    for t, fresh in zip(scheduler.timesteps, noise, strict=True):
        prediction = stand_in(scheduler.scale_model_input(x, t), t)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ancestral, "randn_tensor", lambda *_, fresh=fresh, **__: fresh)
            x = scheduler.step(prediction, t, x).prev_sample
        expected.append(x)
    assert_near(walk(solver, solver.schedule(12), start, noise), torch.stack(expected), 1e-4)


def test_missing_noise_is_an_error_only_where_noise_is_added():
    solver, latents = solver_from_config(SD, eta=0.5), draw(*SHAPE)
    schedule = solver.schedule(10)
    with pytest.raises(ValueError, match="step 0 adds noise"):
        solver.step(schedule, 0, latents, latents)
    assert solver.step(schedule, 9, latents, latents).std == 0.0


@each_solver
def test_stochastic_says_whether_any_step_adds_noise(solver):
    schedule = solver.schedule(10, CLIP_240P)
    x = draw(*SHAPE)
    assert solver.stochastic == any(solver.step(schedule, i, x, x, x).std > 0 for i in range(len(schedule)))


def test_clipping_bounds_the_clean_estimate_and_stops_its_gradient():
    solver = solver_from_config(SD | {"clip_sample": True, "prediction_type": "sample"})
    schedule, latents = solver.schedule(10), draw(*SHAPE)
    prediction = draw(*SHAPE, seed=1).requires_grad_()
    clean = solver.step(schedule, 9, latents, prediction).clean
    assert clean.abs().max() == 1.0
    (gradient,) = torch.autograd.grad(clean.sum(), prediction)
    assert torch.equal(gradient == 0, prediction.abs() > 1)


def test_zero_terminal_snr_starts_from_pure_noise():
    alpha_bar = solver_from_config(SD | {"rescale_betas_zero_snr": True}).alpha_bar
    assert alpha_bar[-1] == 0
    assert alpha_bar[0] == pytest.approx(1 - 0.00085, rel=1e-12)
    assert (alpha_bar.diff() < 0).all()


def test_spacing_argument_replaces_the_config_s():
    for kind in ("ddim", "euler_edm"):
        by_argument = solver_from_config(SD, kind=kind, spacing="trailing").schedule(10)
        by_config = solver_from_config(SD | {"timestep_spacing": "trailing"}, kind=kind).schedule(10)
        assert torch.equal(by_argument.times, by_config.times)
        assert by_argument.times[0] == 999


@pytest.mark.parametrize("name", ["PNDMScheduler", "DPMSolverMultistepScheduler", "DDPMScheduler"])
def test_ddim_samples_checkpoints_of_other_solvers(name):
    betas = {key: value for key, value in SD.items() if key.startswith("beta")}
    solver = solver_from_config({"_class_name": name, **betas, "timestep_spacing": "leading"}, kind="ddim")
    assert torch.equal(solver.schedule(10).times, solver_from_config(SD).schedule(10).times)
    assert (solver.clip is None) == (name != "DDPMScheduler")
    assert (solver.final_alpha_bar == 1.0) == (name != "PNDMScheduler")


# ------------------------------------------------------------------------------------ users' mistakes


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (SD | {"thresholding": True}, {}, "thresholding=True"),
        (SD | {"use_karras_sigmas": True}, {}, "use_karras_sigmas=True"),
        (
            SVD,
            {"kind": "ddim"},
            "(sigma_max=700.0|sigma_min=0.002|timestep_type='continuous'|use_karras_sigmas=True) is not",
        ),
        (SVD | {"use_beta_sigmas": True}, {}, "use_beta_sigmas=True"),
        (SVD | {"final_sigmas_type": "sigma_min"}, {}, "final_sigmas_type='sigma_min'"),
        (SVD | {"rescale_betas_zero_snr": True}, {}, "rescale_betas_zero_snr=True"),
        (SVD | {"interpolation_type": "log_linear"}, {}, "interpolation_type='log_linear'"),
        ({"_class_name": "DDIMScheduler"}, {"kind": "euler_edm"}, "clip_sample=True"),
        (FLOW | {"use_dynamic_shifting": True}, {}, "use_dynamic_shifting=True"),
        (FLOW | {"shift_terminal": 0.1}, {}, "shift_terminal=0.1"),
        (FLOW | {"stochastic_sampling": True}, {}, "stochastic_sampling=True"),
        (SD | {"variance_type": "learned"}, {}, "variance_type='learned'"),
        (SD | {"predicton_type": "epsilon"}, {}, "unknown field 'predicton_type', did you mean 'prediction_type'"),
        (SD | {"beta_schedule": "scaled"}, {}, "beta_schedule 'scaled' is not supported, did you mean 'scaled_linear'"),
        (SD | {"prediction_type": "flow_prediction"}, {}, "prediction_type 'flow_prediction' is not supported"),
        (
            SD | {"dynamic_rescale": True, "prediction_type": "v_prediction"},
            {},
            "dynamic_rescale is defined for epsilon",
        ),
        (SD, {"spacing": "even"}, "timestep_spacing 'even' is not supported"),
        (SD, {"spacing": "uniform"}, "set_alpha_to_one"),
        (SD, {"eta": 1.5}, "sampling.eta"),
        (SVD, {"eta": -0.5}, "sampling.eta"),
        (SD, {"kind": "ddimm"}, "unknown solver 'ddimm': did you mean 'ddim'"),
        (SD, {"kind": "euler_flow"}, "DDIMScheduler cannot be sampled by euler_flow"),
        (FLOW, {"kind": "ddim"}, "FlowMatchEulerDiscreteScheduler cannot be sampled by ddim"),
        (FLOW, {"spacing": "trailing"}, "sampling.spacing"),
        (SD | {"solver_order": 3}, {"kind": "dpm"}, "solver_order 3 is not supported"),
        (SD | {"algorithm_type": "sde-dpmsolver++"}, {"kind": "dpm"}, "algorithm_type 'sde-dpmsolver"),
        (SD | {"solver_type": "heun"}, {"kind": "dpm"}, "solver_type 'heun'"),
        (SD | {"final_sigmas_type": "sigma_min"}, {"kind": "dpm"}, "final_sigmas_type='sigma_min'"),
        (SD | {"rescale_betas_zero_snr": True}, {"kind": "dpm"}, "rescale_betas_zero_snr=True"),
        (SD, {"kind": "dpm", "eta": 0.5}, "sampling.eta"),
        (FLOW, {"kind": "dpm"}, "cannot be sampled by dpm"),
        ({"_class_name": "PNDMScheduler"}, {}, "set sampling.solver to ddim"),
        ({"_class_name": "DDIMSchedule"}, {}, "unknown scheduler 'DDIMSchedule': did you mean 'DDIMScheduler'"),
        ({}, {}, "_class_name"),
    ],
)
def test_what_is_not_supported_is_named(config, options, said):
    with pytest.raises(UserError, match=said) as caught:
        solver_from_config(config, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "steps", "size", "said"),
    [
        (SD, 1001, None, "between 1 and the model's 1000"),
        (SVD, 1001, None, "between 1 and the model's 1000"),
        (FLOW, 1001, None, "between 1 and the model's 1000"),
        (SD, 0, None, "between 1 and"),
        (SD | {"_class_name": "DPMSolverMultistepScheduler"}, 1000, None, "between 1 and 999 for the solver dpm"),
        (MODELSCOPE, 1000, None, "beyond timestep 999"),
        (VIDEOCRAFTER2, 30, None, "divides 1000, got 30"),
        (SD | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 10, None, "zero SNR"),
        (OPEN_SORA, 30, Size(16, 240, 426), "at least 17 frames, got 16"),
    ],
)
def test_impossible_schedules_are_users_errors(config, steps, size, said):
    with pytest.raises(UserError, match=said):
        solver_from_config(config).schedule(steps, size)
