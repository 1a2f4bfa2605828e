"""Solvers against themselves: exact properties of every kind on every interval, gradients, and users' mistakes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from diffusers.schedulers import scheduling_euler_ancestral_discrete as ancestral
from torch import Tensor

from solver_chains import (
    CLIP_240P,
    COGVIDEOX,
    FLOW,
    LTX,
    MOCHI,
    MODELSCOPE,
    OPEN_SORA,
    SD,
    SHAPE,
    SVD,
    VIDEOCRAFTER2,
    WAN,
    Size,
    assert_near,
    column,
    draw,
    stand_in,
    tokens,
    walk,
)
from vader.errors import UserError
from vader.solvers import FirstOrder, Level, Multistep, Solver, UniPC, posterior_std, scheduler_config
from vader.solvers.scheduler_config import KINDS, solver_from_config

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
    "unipc epsilon": (SD, {"kind": "unipc"}),
    "cogvideox ddim": (COGVIDEOX, {}),
    "cogvideox dpm": (COGVIDEOX, {"kind": "dpm"}),
    "svd": (SVD, {}),
    "svd eta": (SVD, {"eta": 1.0}),
    "euler epsilon": (SD, {"kind": "euler_edm"}),
    "flow": (FLOW, {}),
    "flow eta": (FLOW, {"eta": 0.5}),
    "open-sora": (OPEN_SORA, {}),
    "open-sora eta": (OPEN_SORA, {"eta": 1.0}),
    "wan": (WAN, {}),
    "wan euler": (WAN, {"kind": "euler_flow", "eta": 0.7}),
    "ltx": (LTX, {"tokens": tokens, "sigmas": "even"}),
    "mochi": (MOCHI, {"sigmas": "linear_quadratic"}),
}
each_solver = pytest.mark.parametrize("solver", [solver_from_config(c, **k) for c, k in EACH.values()], ids=list(EACH))


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


def exact_prediction(solver: Solver, here: Level, clean: Tensor, noise: Tensor) -> Tensor:
    """What a perfect denoiser says of `renoise(clean, noise)`."""
    v = (here.alpha * noise - here.sigma * clean) / (here.alpha**2 + here.sigma**2) ** 0.5
    return {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": v,
        "velocity": noise - clean,
        "minus_velocity": clean - noise,
    }[solver.prediction]


@each_solver
def test_renoised_latents_and_the_exact_prediction_give_the_clean_ones_back(solver):
    """On every interval of a chain, neighbours or not; the exact prediction stays on the path."""
    schedule = solver.schedule(5, CLIP_240P)
    clean, noise, fresh = (draw(*SHAPE, seed=seed, dtype=torch.float64) for seed in (1, 2, 3))
    for i, here in enumerate(schedule.starts):
        latents, prediction = solver.renoise(clean, noise, here), exact_prediction(solver, here, clean, noise)
        for there in schedule.ends[i:]:
            step = solver.step(latents, prediction, here, there, fresh)
            assert_near(step.clean, clean, 1e-9)
            assert_near(torch.stack(solver.estimates(latents, prediction, here)), torch.stack([clean, noise]), 1e-8)
            if not solver.stochastic:
                assert_near(step.next, solver.renoise(clean, noise, there), 1e-9)


@each_solver
def test_the_exact_prediction_stays_on_the_path_whatever_is_remembered(solver):
    """Uneven intervals too: only every other level of a chain is visited, with memory."""
    schedule = solver.schedule(10, CLIP_240P)
    levels = [*schedule.starts[::2], schedule.ends[-1]]
    clean, noise = (draw(*SHAPE, seed=seed, dtype=torch.float64) for seed in (1, 2))
    latents, memory = solver.renoise(clean, noise, levels[0]), None
    for here, there in pairwise(levels):
        prediction = exact_prediction(solver, here, clean, (latents - here.alpha * clean) / here.sigma)
        step = solver.step(latents, prediction, here, there, torch.randn_like(latents), memory)
        assert_near(step.clean, clean, 1e-8)
        latents, memory = step.next, step.memory
        if not solver.stochastic:
            assert_near(latents, solver.renoise(clean, noise, there), 1e-8)


@each_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_step_is_pure_and_its_next_is_mean_plus_std_noise(solver, dtype):
    schedule = solver.schedule(5, CLIP_240P)
    latents, prediction, noise = (draw(*SHAPE, seed=seed, dtype=dtype) for seed in (1, 2, 3))
    for i, to in ((3, 3), (0, 0), (3, 3), (4, 4), (1, 3), (0, 4)):
        step, again = (solver.step(latents, prediction, schedule.starts[i], schedule.ends[to], noise) for _ in range(2))
        assert step.next.dtype == step.mean.dtype == step.clean.dtype == dtype
        assert torch.equal(step.next, again.next)
        assert torch.equal(step.next, step.mean + step.std * noise)
        assert isinstance(step.std, float)
        assert step.std == solver.std(schedule.starts[i], schedule.ends[to])
        assert solver.stochastic or step.std == 0.0
    assert len(schedule) == len(schedule.starts) == len(schedule.ends) == 5


@each_solver
def test_levels_fall_from_noise_to_clean_and_are_plain_numbers(solver):
    schedule = solver.schedule(5, CLIP_240P)
    for here, there in zip(schedule.starts, schedule.ends, strict=True):
        assert here.log_snr < there.log_snr
        assert all(type(value) is float for level in (here, there) for value in vars(level).values())


@each_solver
def test_a_half_precision_prediction_leaves_latents_in_float32(solver):
    schedule, latents = solver.schedule(5, CLIP_240P), draw(*SHAPE)
    step = solver.step(latents, latents.bfloat16(), schedule.starts[1], schedule.ends[1], latents)
    assert step.next.dtype == step.clean.dtype == torch.float32


# ---- intervals ----


@pytest.mark.parametrize("config", [SD, SD | {"prediction_type": "sample"}, SVD, FLOW, OPEN_SORA])
def test_a_step_in_two_is_a_step_in_one_where_the_estimates_stay(config):
    """On a straight line in (alpha, sigma) the first-order rule does not depend on how it is divided."""
    solver = solver_from_config(config)
    starts = solver.schedule(6, CLIP_240P).starts
    x, prediction = (draw(*SHAPE, seed=seed, dtype=torch.float64) for seed in (1, 2))
    clean, noise = solver.estimates(x, prediction, starts[1])
    half = solver.step(x, prediction, starts[1], starts[3]).next
    onward = solver.step(half, exact_prediction(solver, starts[3], clean, noise), starts[3], starts[5]).next
    assert_near(onward, solver.step(x, prediction, starts[1], starts[5]).next, 1e-12)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("config", [SD, COGVIDEOX, SVD, FLOW])
def test_a_multistep_rule_without_memory_is_the_first_order_rule(config, eta):
    solver = solver_from_config(config)
    first, multi, unipc = (
        Solver(solver.levels, solver.prediction, rule) for rule in (FirstOrder(eta), Multistep(eta), UniPC())
    )
    starts = solver.schedule(6).starts
    x, prediction, noise = (draw(*SHAPE, seed=seed, dtype=torch.float64) for seed in (1, 2, 3))
    for interval in ((starts[0], starts[1]), (starts[1], starts[4]), (starts[5], solver.schedule(6).ends[5])):
        expected = first.step(x, prediction, *interval, noise)
        assert_near(multi.step(x, prediction, *interval, noise).next, expected.next, 1e-10)
        assert multi.step(x, prediction, *interval, noise).std == expected.std
        if eta == 0:
            assert_near(unipc.step(x, prediction, *interval).next, expected.next, 1e-10)


@pytest.mark.parametrize(("rule", "order"), [(FirstOrder(), 1), (Multistep(), 2), (UniPC(), 3)], ids=str)
def test_order_of_convergence_on_uneven_intervals(rule, order):
    """Of a denoiser that says tanh(x) at every level: halving all intervals divides the error by 2 to the order."""

    def end(rule: FirstOrder | Multistep | UniPC, steps: int) -> Tensor:
        log_snr = 3 * torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 1.3 - 1
        alpha = torch.sigmoid(2 * log_snr).sqrt()
        levels = [Level(float(a), float((1 - a * a).sqrt()), 0.0) for a in alpha]
        x, memory = torch.linspace(-2, 2, 9, dtype=torch.float64), None
        for here, there in pairwise(levels):
            x, *_, memory = Solver(levels, "sample", rule).step(x, x.tanh(), here, there, memory=memory)
        return x

    exact = end(UniPC(), 5000)
    errors = [float((end(rule, steps) - exact).abs().max()) for steps in (50, 100)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.2)


def test_way_up_is_the_way_down_backwards():
    """DDIM inversion: a step to a noisier level adds no fresh noise, and the step back undoes it."""
    solver = solver_from_config(SD, eta=1.0)
    starts = solver.schedule(6).starts
    x, prediction = (draw(*SHAPE, seed=seed, dtype=torch.float64) for seed in (1, 2))
    up = solver.step(x, prediction, starts[4], starts[2])
    assert up.std == posterior_std(starts[4], starts[2]) == 0.0
    down = solver_from_config(SD).step(up.next, prediction, starts[2], starts[4])
    assert_near(down.next, x, 1e-12)


# ---- noise ----


def test_noise_at_eta_1_keeps_the_variance_of_the_path():
    """Under exact predictions the next latents are distributed as the forward process says, on any interval."""
    solver = solver_from_config(SD, eta=1.0)
    schedule = solver.schedule(10)
    clean, noise = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for i, here in enumerate(schedule.starts):
        for there in schedule.ends[i:]:
            step = solver.step(solver.renoise(clean, noise, here), noise, here, there, noise)
            assert float(step.mean) ** 2 + step.std**2 == pytest.approx(there.sigma**2, rel=1e-12, abs=1e-15)
    assert step.std == 0  # with set_alpha_to_one the last step ends in the clean estimate


@pytest.mark.parametrize("config", [SD, VIDEOCRAFTER2, SVD, FLOW, OPEN_SORA])
@pytest.mark.parametrize("far", [1, 3])
def test_noise_at_eta_1_is_that_of_the_posterior(config, far):
    """Bayes's rule for Gaussians: precisions of prior (from the clean latents) and likelihood (one noising) add up."""
    starts = solver_from_config(config).schedule(10, CLIP_240P).starts
    for here, there in zip(starts, starts[far:], strict=False):
        kept = here.alpha / here.signal_scale / (there.alpha / there.signal_scale)
        noising = here.sigma**2 - (kept * there.sigma) ** 2
        expected = (1 / there.sigma**2 + kept**2 / noising) ** -0.5
        one = torch.ones(1, dtype=torch.float64)
        for eta in (1.0, 0.5):
            step = solver_from_config(config, eta=eta).step(one, one, here, there, one)
            assert step.std == pytest.approx(eta * expected, rel=1e-9)


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
    with pytest.raises(ValueError, match="this step adds noise"):
        solver.step(latents, latents, schedule.starts[0], schedule.ends[0])
    assert solver.step(latents, latents, schedule.starts[9], schedule.ends[9]).std == 0.0


@each_solver
def test_stochastic_says_whether_any_step_adds_noise(solver):
    schedule = solver.schedule(10, CLIP_240P)
    x = draw(*SHAPE)
    assert solver.stochastic == any(
        solver.step(x, x, *interval, x).std > 0 for interval in zip(schedule.starts, schedule.ends, strict=True)
    )


def test_clipping_bounds_the_clean_estimate_and_stops_its_gradient():
    solver = solver_from_config(SD | {"clip_sample": True, "prediction_type": "sample"})
    schedule, latents = solver.schedule(10), draw(*SHAPE)
    prediction = draw(*SHAPE, seed=1).requires_grad_()
    clean = solver.step(latents, prediction, schedule.starts[9], schedule.ends[9]).clean
    assert clean.abs().max() == 1.0
    (gradient,) = torch.autograd.grad(clean.sum(), prediction)
    assert torch.equal(gradient == 0, prediction.abs() > 1)


def test_zero_terminal_snr_starts_from_pure_noise():
    alpha_bar = solver_from_config(SD | {"rescale_betas_zero_snr": True}).levels.alpha_bar
    assert alpha_bar[-1] == 0
    assert alpha_bar[0] == pytest.approx(1 - 0.00085, rel=1e-12)
    assert (alpha_bar.diff() < 0).all()


def test_spacing_argument_replaces_the_config_s():
    for kind in ("ddim", "euler_edm"):
        by_argument = solver_from_config(SD, kind=kind, spacing="trailing").schedule(10)
        by_config = solver_from_config(SD | {"timestep_spacing": "trailing"}, kind=kind).schedule(10)
        assert by_argument == by_config
        assert by_argument.starts[0].time == 999


@pytest.mark.parametrize("name", ["PNDMScheduler", "DPMSolverMultistepScheduler", "DDPMScheduler"])
def test_ddim_samples_checkpoints_of_other_solvers(name):
    betas = {key: value for key, value in SD.items() if key.startswith("beta")}
    solver = solver_from_config({"_class_name": name, **betas, "timestep_spacing": "leading"}, kind="ddim")
    assert torch.equal(column(solver.schedule(10), "time"), column(solver_from_config(SD).schedule(10), "time"))
    assert (solver.clip is None) == (name != "DDPMScheduler")
    assert (solver.levels.final_alpha_bar == 1.0) == (name != "PNDMScheduler")


# ---- users' mistakes ----


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
        (SD, {"spacing": "even"}, "unknown timestep spacing 'even': known: auto, leading"),
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
        (SD, {"kind": "unipc", "eta": 0.5}, "sampling.eta"),
        (COGVIDEOX, {"kind": "dpm", "eta": 0.5}, "sampling.eta"),
        (COGVIDEOX, {"kind": "euler_edm"}, "CogVideoXDDIMScheduler cannot be sampled by euler_edm"),
        (COGVIDEOX | {"set_alpha_to_one": False}, {"kind": "dpm"}, "set_alpha_to_one False"),
        (COGVIDEOX | {"snr_shift": 3.0}, {}, "unknown field 'snr_shift', did you mean 'snr_shift_scale'"),
        (SD | {"snr_shift_scale": 3.0}, {"kind": "dpm"}, "snr_shift_scale=3.0 is not supported"),
        (SD, {"shift": 3.0}, "leave sampling.shift"),
        (SVD, {"sigmas": "even"}, "leave sampling.shift"),
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
        (SD | {"_class_name": "DPMSolverMultistepScheduler"}, 1000, None, "between 1 and 999 for the solvers dpm"),
        (MODELSCOPE, 1000, None, "beyond timestep 999"),
        (VIDEOCRAFTER2, 30, None, "divides 1000, got 30"),
        (SD | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 10, None, "zero SNR"),
        (OPEN_SORA, 30, Size(16, 240, 426), "at least 17 frames, got 16"),
    ],
)
def test_impossible_schedules_are_users_errors(config, steps, size, said):
    with pytest.raises(UserError, match=said):
        solver_from_config(config).schedule(steps, size)


def test_kinds_are_those_that_can_be_built():
    builders = scheduler_config._BUILDERS
    assert set(KINDS) == {"auto", *builders}
    assert {kind for kinds in scheduler_config._SAMPLED_BY.values() for kind in kinds} == set(builders)
    assert set(scheduler_config._OWN_KIND.values()) <= set(builders)
