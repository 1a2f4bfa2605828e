"""Solvers: against diffusers' schedulers, and against stored numbers of the reference codes."""

from __future__ import annotations

import inspect
import json

import diffusers
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import scheduling_dpm_cogvideox
from safetensors import safe_open
from torch import Tensor

from solver_chains import (
    CLIP_240P,
    COGVIDEOX,
    MODELSCOPE,
    OPEN_SORA,
    SD,
    SHAPE,
    SVD,
    VIDEOCRAFTER2,
    Size,
    assert_near,
    column,
    diffusers_walk,
    draw,
    stand_in,
    walk,
)
from vader.solvers import Schedule, Solver, fields
from vader.solvers.levels import SPACINGS
from vader.solvers.scheduler_config import solver_from_config

# ------------------------------------------------------------------------------------ against diffusers


def diffusers_ddim(scheduler: DDIMScheduler, steps: int, eta: float, start: Tensor, noise: Tensor) -> Tensor:
    scheduler.set_timesteps(steps)
    x, visited = start, []
    for t, fresh in zip(scheduler.timesteps, noise, strict=True):
        x = scheduler.step(stand_in(x, t), t, x, eta=eta, variance_noise=fresh if eta else None).prev_sample
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
        assert torch.equal(SPACINGS[spacing](1000, steps, 0).round(), expected), steps
        if steps <= 50 or steps % 90 == 0:  # levels are made one by one
            assert torch.equal(column(solver.schedule(steps), "time"), expected), steps


@pytest.mark.parametrize("steps", [4, 10, 25])
def test_euler_edm_follows_diffusers_with_svd_settings(steps):
    solver, start = solver_from_config(SVD), draw(*SHAPE)
    scheduler = EulerDiscreteScheduler.from_config(SVD)
    scheduler.set_timesteps(steps)
    expected = diffusers_walk(scheduler, start)
    schedule = solver.schedule(steps)
    assert_near(walk(solver, schedule, start)[-1], expected[-1], 1e-5)
    assert_near(walk(solver, schedule, start), expected, 1e-5)
    assert_near(column(schedule, "time"), scheduler.timesteps, 1e-6)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("change", [{}, {"use_karras_sigmas": True}, {"timestep_type": "continuous"}], ids=str)
def test_euler_edm_follows_diffusers_on_trained_levels(prediction, spacing, change):
    config = {key: value for key, value in SD.items() if key != "clip_sample"} | change
    config |= {"_class_name": "EulerDiscreteScheduler", "prediction_type": prediction, "timestep_spacing": spacing}
    solver, start = solver_from_config(config), draw(*SHAPE)
    scheduler = EulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(20)
    expected = diffusers_walk(scheduler, start)
    schedule = solver.schedule(20)
    assert schedule.init_scale == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-6)
    assert_near(column(schedule, "time"), scheduler.timesteps, 1e-5)
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
    scheduler.set_timesteps(steps)
    expected = diffusers_walk(scheduler, start)
    assert column(schedule, "time").tolist() == scheduler.timesteps.tolist()
    assert_near(walk(solver, schedule, start), expected, 1e-5)


def test_dpm_times_of_the_reference():
    """25 steps of ModelScope's reference code: 999, 959, ..., 80, 40."""
    times = column(solver_from_config(MODELSCOPE, kind="dpm").schedule(25), "time").tolist()
    assert times[:2] + times[-2:] == [999, 959, 80, 40]


def test_dpm_remembers_the_clean_estimate_with_its_graph():
    solver = solver_from_config(MODELSCOPE, kind="dpm")
    schedule, x, earlier = solver.schedule(5), draw(*SHAPE), draw(*SHAPE, seed=1).requires_grad_()
    (before, here, there), prediction = schedule.starts[:3], draw(*SHAPE, seed=2)
    first = solver.step(x, earlier, before, here)
    assert torch.equal(first.memory.clean, first.clean)
    with_memory = solver.step(first.next.detach(), prediction, here, there, memory=first.memory).next
    (gradient,) = torch.autograd.grad(with_memory.sum(), earlier)
    look_back = (there.log_snr - here.log_snr) / (2 * (here.log_snr - before.log_snr))
    gain = there.alpha - here.alpha * there.sigma / here.sigma
    torch.testing.assert_close(gradient, torch.full_like(gradient, gain * look_back * before.sigma / before.alpha))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 25])
def test_unipc_of_a_diffusion_model_follows_diffusers(prediction, spacing, steps):
    config = SD | {"prediction_type": prediction, "timestep_spacing": spacing}
    scheduler = UniPCMultistepScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    solver, start = solver_from_config(config, kind="unipc"), draw(*SHAPE)
    schedule = solver.schedule(steps)
    assert column(schedule, "time").tolist() == scheduler.timesteps.tolist()
    assert_near(walk(solver, schedule, start), diffusers_walk(scheduler, start), 1e-5)


def test_unipc_reads_its_own_scheduler_config():
    config = dict(UniPCMultistepScheduler(beta_end=0.012).config)
    scheduler, start = UniPCMultistepScheduler.from_config(config), draw(*SHAPE)
    scheduler.set_timesteps(10)
    solver = solver_from_config({"_class_name": "UniPCMultistepScheduler", **config})
    assert_near(walk(solver, solver.schedule(10), start), diffusers_walk(scheduler, start), 1e-5)


# ------------------------------------------------------------------------------------ CogVideoX

cogvideox_settings = pytest.mark.parametrize(
    "change",
    [{}, {"snr_shift_scale": 1.0}, {"timestep_spacing": "linspace"}, {"rescale_betas_zero_snr": False}],
    ids=str,
)


@cogvideox_settings
@pytest.mark.parametrize("steps", [1, 2, 7, 30, 50])
def test_cogvideox_ddim_follows_diffusers(change, steps):
    scheduler, start = CogVideoXDDIMScheduler.from_config(COGVIDEOX | change), draw(*SHAPE)
    scheduler.set_timesteps(steps)
    solver = solver_from_config(COGVIDEOX | change)
    schedule = solver.schedule(steps)
    assert column(schedule, "time").tolist() == scheduler.timesteps.tolist()
    assert_near(walk(solver, schedule, start), diffusers_walk(scheduler, start), 1e-5)


def diffusers_cogvideox_dpm(scheduler: CogVideoXDPMScheduler, start: Tensor, noise: Tensor) -> Tensor:
    """As CogVideoXPipeline calls it, with given noise; what it draws first and throws away is given too."""
    x, clean, back, visited = start, None, None, []
    for t, fresh in zip(scheduler.timesteps, noise, strict=True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scheduling_dpm_cogvideox, "randn_tensor", lambda *_, fresh=fresh, **__: fresh)
            x, clean = scheduler.step(stand_in(x, t), clean, t, back, x)
        back = t
        visited.append(x)
    return torch.stack(visited)


@cogvideox_settings
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
def test_cogvideox_dpm_follows_diffusers(change, steps):
    config = COGVIDEOX | change | {"_class_name": "CogVideoXDPMScheduler"}
    scheduler, start, noise = CogVideoXDPMScheduler.from_config(config), draw(*SHAPE), draw(steps, *SHAPE, seed=1)
    scheduler.set_timesteps(steps)
    solver = solver_from_config(config)
    assert solver.stochastic
    expected = diffusers_cogvideox_dpm(scheduler, start, noise)
    assert_near(walk(solver, solver.schedule(steps), start, noise), expected, 1e-5)
    by_kind = solver_from_config(COGVIDEOX | change, kind="dpm")
    assert_near(walk(by_kind, by_kind.schedule(steps), start, noise), expected, 1e-5)


def test_cogvideox_never_clips_whatever_its_config_says():
    start, changed = draw(*SHAPE), COGVIDEOX | {"clip_sample": True}
    scheduler = CogVideoXDDIMScheduler.from_config(changed)
    scheduler.set_timesteps(10)
    solver = solver_from_config(changed)
    assert_near(walk(solver, solver.schedule(10), start), diffusers_walk(scheduler, start), 1e-5)


def test_cogvideox_of_class_defaults_follows_diffusers():
    scheduler, start = CogVideoXDDIMScheduler(), draw(*SHAPE)
    scheduler.set_timesteps(10)
    solver = solver_from_config({"_class_name": "CogVideoXDDIMScheduler"})
    assert_near(walk(solver, solver.schedule(10), start), diffusers_walk(scheduler, start), 1e-5)


# ------------------------------------------------------------------------------------ class defaults


def test_class_defaults_are_those_of_diffusers():
    for name, different in fields.DDPM_FAMILY.items():
        assert_class_defaults(name, fields.DDIM_FIELDS | fields.EDM_FIELDS | different)
    assert_class_defaults("FlowMatchEulerDiscreteScheduler", fields.FLOW_FIELDS)
    assert_class_defaults("UniPCMultistepScheduler", fields.rule_defaults(fields.UNIPC_RULE))
    assert_class_defaults("DPMSolverMultistepScheduler", fields.rule_defaults(fields.DPM_RULE))


def assert_class_defaults(name: str, ours: dict) -> None:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    for field, value in ours.items():
        if field in parameters:
            assert parameters[field].default == value, (name, field)


# ------------------------------------------------------------------ against stored numbers of the reference codes


def stds(solver: Solver, schedule: Schedule) -> Tensor:
    """The noise of each step, `[S]` float64."""
    intervals = zip(schedule.starts, schedule.ends, strict=True)
    return torch.tensor([solver.std(*interval) for interval in intervals], dtype=torch.float64)


def test_videocrafter2_tables():
    """Numbers of the official sampler, 25 steps, eta 1 (call order: from noise to clean)."""
    solver = solver_from_config(VIDEOCRAFTER2, eta=1.0)
    schedule = solver.schedule(25)
    assert column(schedule, "time").tolist() == list(range(961, 0, -40))
    few = {name: column(schedule, name)[[0, -2, -1]] for name in ("alpha", "sigma")}
    alpha_bar = torch.tensor([0.007281727157533169, 0.9608727693557739, 0.9982960224151611])
    scale = torch.tensor([0.7, 0.9691729545593262, 0.9992481470108032])
    assert_near(few["alpha"], alpha_bar.sqrt() * scale, 1e-6)
    assert_near(few["sigma"], (1 - alpha_bar).sqrt(), 1e-6)
    assert_near(
        stds(solver, schedule)[[0, -2, -1]],
        torch.tensor([0.5969023111267663, 0.04040484790074064, 0.02064835437294855]),
        1e-6,
    )
    assert schedule.ends[-1].alpha == pytest.approx(0.9991499781608582**0.5, rel=1e-6)  # not 1: it ends at level 0


def test_svd_levels():
    """Numbers of diffusers' EulerDiscreteScheduler with the settings of SVD-XT, 4 steps."""
    schedule = solver_from_config(SVD).schedule(4)
    sigmas = torch.tensor([700.0, 70.54084014892578, 2.2691164016723633, 0.0020000000949949026, 0.0])
    assert_near(column(schedule, "sigma"), sigmas[:-1], 1e-6)
    assert_near(column(schedule, "sigma", "ends"), sigmas[1:], 1e-6)
    told = torch.tensor([1.6377700567245483, 1.064047932624817, 0.20484763383865356, -1.553652048110962])
    assert_near(column(schedule, "time"), told, 1e-6)
    assert schedule.init_scale == pytest.approx(700.000732421875, rel=1e-6)


def test_open_sora_times():
    """Numbers of the official Open-Sora 1.2 sampler, 30 steps at 240x426, 51 frames, and 1 frame at 144x256."""
    solver = solver_from_config(OPEN_SORA)
    times = column(solver.schedule(30, CLIP_240P), "time")
    expected = torch.tensor([1000.0, 985.9437255859375, 971.3154907226562, 956.07958984375, 76.98348236083984])
    assert_near(times[[0, 1, 2, 3, -1]], expected, 1e-6)
    image = column(solver.schedule(30, Size(1, 144, 256)), "time")
    assert_near(image[[1, 15]], torch.tensor([915.7895508, 272.7272949]), 1e-6)


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
    starts, ends = (
        {name: column(schedule, name, of).flip(0) for name in ("alpha", "sigma")} for of in ("starts", "ends")
    )
    signal = (official["alphas"].double().sqrt() * official["scale"].double(), official["alphas_prev"].sqrt())
    assert torch.equal(column(schedule, "time").flip(0), official["timesteps"].double())
    assert_near(starts["alpha"], signal[0], 1e-6)
    assert_near(ends["alpha"], signal[1] * official["scale_prev"], 1e-6)
    assert_near(starts["sigma"], official["sqrt_one_minus_alphas"], 1e-6)
    assert_near(stds(solver, schedule).flip(0), official["sigmas_eta1"], 1e-6)


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
    everywhere = solver.levels.at(torch.arange(1000))
    clean, noise = official["q_sample/x0"], official["q_sample/noise"]
    for case in "abc":
        for video, t in enumerate(official[f"q_sample_{case}/t"].tolist()):
            noisy = solver.renoise(clean[video], noise[video], everywhere[t])
            assert_near(noisy, official[f"q_sample_{case}/out"][video], 1e-6)


@pytest.mark.parametrize("steps", [4, 10, 25])
def test_svd_schedule_agrees_with_the_stored_one(stored, steps):
    official = stored("rewards/svd_euler_schedule")
    schedule = solver_from_config(SVD).schedule(steps)
    assert_near(column(schedule, "sigma"), official[f"sigmas_{steps}"][:-1], 1e-6)
    assert_near(column(schedule, "sigma", "ends"), official[f"sigmas_{steps}"][1:], 1e-6)
    assert_near(column(schedule, "time"), official[f"timesteps_{steps}"], 1e-6)
    assert schedule.init_scale == pytest.approx(float(official[f"init_noise_sigma_{steps}"]), rel=1e-6)


def test_svd_step_agrees_with_the_stored_one(stored):
    official = {name[7:]: value for name, value in stored("rewards/svd_euler_schedule").items() if "step20" in name}
    solver = solver_from_config(SVD)
    schedule = solver.schedule(25)
    here, there = schedule.starts[20], schedule.ends[20]
    step = solver.step(official["x"], official["model_output"], here, there)
    assert_near(official["x"] * here.input_scale, official["scaled_input"], 1e-6)
    assert_near(step.next, official["prev_sample"], 1e-6)
    assert_near(step.clean, official["pred_x0"], 1e-6)


def test_open_sora_times_agree_with_the_official_tables(shared):
    solver = solver_from_config(OPEN_SORA)
    tables = json.loads(shared("parity/opensora12/rflow.json").read_text())["timestep_tables"]
    exact = [t for t in tables if t["dtype_of_size_arguments"] == "float32" and t["latent_frames_in_formula"] > 0]
    assert len(exact) > 5
    for table in exact:
        times = column(solver.schedule(30, Size(table["num_frames"], table["height"], table["width"])), "time")
        torch.testing.assert_close(times, torch.tensor(table["timesteps"], dtype=torch.float64), rtol=2e-6, atol=0)


@pytest.mark.parametrize("name", ["plain", "no_transform", "stdit"])
def test_open_sora_trajectories_agree_with_the_official_sampler(stored, name):
    official = stored("opensora12/rflow")
    solver = solver_from_config(OPEN_SORA | {"use_timestep_transform": name != "no_transform"})
    x = official[f"traj_{name}/z_init"]
    schedule = solver.schedule(30, CLIP_240P)
    for i, velocity in enumerate(official[f"traj_{name}/v_pred"]):
        assert_near(x, official[f"traj_{name}/z_model_input"][i], 1e-5)
        x = solver.step(x, velocity, schedule.starts[i], schedule.ends[i]).next
    assert_near(x, official[f"traj_{name}/z_final"], 1e-5)
