"""Solvers of rectified flows against diffusers' schedulers: Wan, LTX, HunyuanVideo, Mochi, distilled models."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

from solver_chains import (
    FLOW,
    LTX,
    MOCHI,
    OPEN_SORA,
    SHAPE,
    WAN,
    Size,
    assert_near,
    column,
    diffusers_walk,
    draw,
    tokens,
    walk,
)
from vader.errors import UserError
from vader.solvers import SIGMAS
from vader.solvers.scheduler_config import solver_from_config

DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)  # LTX-2


def assert_follows(solver, scheduler, size=None) -> None:
    """Levels, what is told of them, and the chain are those of a scheduler whose timesteps are set."""
    start, schedule = draw(*SHAPE), solver.schedule(len(scheduler.timesteps), size)
    sigmas = 1 - scheduler.sigmas if getattr(scheduler.config, "invert_sigmas", False) else scheduler.sigmas
    assert schedule.ends == (*schedule.starts[1:], schedule.ends[-1])
    assert_near(torch.cat([column(schedule, "sigma"), torch.zeros(1)]), sigmas, 1e-6)
    assert (column(schedule, "time") - scheduler.timesteps.double()).abs().max() < 1e-3
    assert_near(walk(solver, schedule, start), diffusers_walk(deepcopy(scheduler), start), 1e-5)


# ---- Wan ----


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 50])
def test_wan_follows_diffusers(shift, steps):
    scheduler = UniPCMultistepScheduler.from_config(WAN | {"flow_shift": shift})
    scheduler.set_timesteps(steps)
    assert_follows(solver_from_config(WAN | {"flow_shift": shift}), scheduler)
    assert_follows(solver_from_config(WAN, shift=shift), scheduler)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_wan_is_told_diffusers_integers_for_every_number_of_steps(shift):
    scheduler, solver = (
        UniPCMultistepScheduler.from_config(WAN | {"flow_shift": shift}),
        solver_from_config(WAN, shift=shift),
    )
    for steps in range(1, 1001, 7):
        scheduler.set_timesteps(steps)
        schedule = solver.schedule(steps)
        assert column(schedule, "time").tolist() == scheduler.timesteps.tolist(), steps
        assert torch.equal(column(schedule, "sigma").float(), scheduler.sigmas[:-1]), steps


def test_wan_s_last_step_gives_the_clean_estimate_of_the_uncorrected_sample():
    solver = solver_from_config(WAN)
    *_, before, here, there = (*solver.schedule(10).starts, solver.schedule(10).ends[-1])
    x, velocity = draw(*SHAPE), draw(*SHAPE, seed=1)
    memory = solver.step(draw(*SHAPE, seed=2), draw(*SHAPE, seed=3), before, here).memory
    step = solver.step(x, velocity, here, there, memory=memory)
    assert torch.equal(step.next, x - here.sigma * velocity)
    assert not torch.equal(step.memory.sample, x)


@pytest.mark.parametrize("steps", [2, 8])
def test_unipc_takes_sigmas_dynamic_and_terminal_shifts(steps):
    changed = WAN | {"use_dynamic_shifting": True, "shift_terminal": 0.1}
    scheduler = UniPCMultistepScheduler.from_config(changed)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=0.5 + 0.65 * (5000 - 256) / (4096 - 256))
    solver = solver_from_config(changed, sigmas="even", tokens=lambda size: size.frames)
    assert_follows(solver, scheduler, Size(5000, 1, 1))


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_unipc_samples_checkpoints_of_euler_s_scheduler(steps):
    scheduler = UniPCMultistepScheduler.from_config(WAN | {"flow_shift": 7.0})
    scheduler.set_timesteps(steps)
    assert_follows(solver_from_config(FLOW | {"shift": 7.0}, kind="unipc"), scheduler)


# ---- Euler ----


@pytest.mark.parametrize("shift", [1.0, 3.0, 7.0])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_euler_flow_follows_diffusers(shift, steps):
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(FLOW | {"shift": shift})
    scheduler.set_timesteps(steps)
    assert_follows(solver_from_config(FLOW | {"shift": shift}), scheduler)
    assert_follows(solver_from_config(FLOW, shift=shift), scheduler)
    assert_follows(solver_from_config(WAN | {"flow_shift": shift}, kind="euler_flow"), scheduler)


@pytest.mark.parametrize("shift", [5.0, 7.0, 9.0])
@pytest.mark.parametrize("steps", [1, 3, 30])
def test_even_sigmas_are_those_of_hunyuan_video_s_pipeline(shift, steps):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1])
    assert_follows(solver_from_config(FLOW | {"shift": shift}, sigmas="even"), scheduler)


@pytest.mark.parametrize("size", [Size(21, 512, 704), Size(9, 256, 256), Size(41, 352, 608)])
@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("steps", [2, 8, 40])
def test_ltx_follows_diffusers(size, kind, steps):
    config = LTX | {"time_shift_type": kind}
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    mu = 0.95 + (2.05 - 0.95) * (tokens(size) - 1024) / (4096 - 1024)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    assert_follows(solver_from_config(config, sigmas="even", tokens=tokens), scheduler, size)


def test_dynamic_shift_has_the_class_s_defaults_and_its_own_sigmas():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(12, mu=0.5 + 0.65 * (1000 - 256) / (4096 - 256))
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    assert_follows(solver_from_config(config, tokens=lambda size: size.frames), scheduler, Size(1000, 1, 1))


def test_a_static_shift_replaces_a_dynamic_one():
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(LTX | {"use_dynamic_shifting": False, "shift": 4.0})
    scheduler.set_timesteps(10)
    assert_follows(solver_from_config(LTX, shift=4.0), scheduler)


@pytest.mark.parametrize("sigmas", [DISTILLED, list(DISTILLED[-3:])], ids=["first stage", "second stage"])
def test_fixed_sigmas_of_distilled_models(sigmas):
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=list(sigmas))
    solver = solver_from_config(LTX | {"use_dynamic_shifting": False, "shift_terminal": None}, sigmas=sigmas)
    assert_follows(solver, scheduler)
    with pytest.raises(UserError, match=f"has {len(sigmas)} numbers"):
        solver.schedule(30)


@pytest.mark.parametrize("steps", [2, 3, 7, 64])
def test_mochi_follows_diffusers(steps):
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(MOCHI)
    scheduler.set_timesteps(sigmas=np.array(linear_quadratic_schedule(steps, 0.025)))
    solver = solver_from_config(MOCHI, sigmas="linear_quadratic")
    assert_follows(solver, scheduler)
    assert solver.schedule(steps).ends[-1].time == 1000.0
    assert_near(
        SIGMAS["linear_quadratic"](steps, 1000, 1.0), torch.tensor(linear_quadratic_schedule(steps, 0.025)), 1e-6
    )


@pytest.mark.parametrize("steps", [1, 6])
def test_mochi_with_the_class_s_own_sigmas_follows_diffusers(steps):
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(MOCHI | {"shift": 2.0})
    scheduler.set_timesteps(steps)
    assert_follows(solver_from_config(MOCHI | {"shift": 2.0}), scheduler)


def test_euler_can_visit_wan_s_sigmas():
    """Of Euler's own sigmas the last is nearly 0, so that its last step changes little."""
    own, wan = (solver_from_config(WAN, kind="euler_flow", sigmas=sigmas).schedule(50) for sigmas in (None, "unipc"))
    assert_near(column(wan, "sigma"), column(solver_from_config(WAN).schedule(50), "sigma"), 2e-6)
    assert own.starts[-1].sigma == pytest.approx(0.0089, abs=1e-4)
    assert wan.starts[-1].sigma == pytest.approx(0.060, abs=1e-3)


def test_a_shift_replaces_open_sora_s():
    solver = solver_from_config(OPEN_SORA, shift=3.0)
    assert_near(column(solver.schedule(4), "sigma"), torch.tensor([1.0, 0.9, 0.75, 0.5]), 1e-7)


# ---- users' mistakes ----


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (WAN | {"solver_order": 3}, {}, "solver_order 3 is not supported"),
        (WAN | {"solver_type": "bh1"}, {}, "solver_type 'bh1' is not supported"),
        (WAN | {"predict_x0": False}, {}, "predict_x0 False"),
        (WAN | {"lower_order_final": False}, {}, "lower_order_final False"),
        (WAN | {"disable_corrector": [0]}, {}, r"disable_corrector \[0\]"),
        (WAN | {"solver_p": "DDIM"}, {}, "solver_p 'DDIM'"),
        (WAN | {"final_sigmas_type": "sigma_min"}, {}, "final_sigmas_type='sigma_min'"),
        (WAN | {"thresholding": True}, {}, "thresholding=True"),
        (WAN | {"use_karras_sigmas": True}, {}, "use_karras_sigmas=True"),
        (WAN | {"prediction_type": "epsilon"}, {}, "prediction_type 'epsilon' is not supported"),
        (WAN | {"flow_shfit": 3.0}, {}, "unknown field 'flow_shfit', did you mean 'flow_shift'"),
        (WAN | {"use_flow_sigmas": False}, {}, "prediction_type 'flow_prediction'"),
        (WAN | {"use_flow_sigmas": False}, {"kind": "euler_flow"}, "cannot be sampled by euler_flow"),
        (WAN, {"kind": "ddim"}, "UniPCMultistepScheduler cannot be sampled by ddim"),
        (WAN, {"eta": 0.5}, "sampling.eta"),
        (WAN, {"spacing": "trailing"}, "sampling.spacing"),
        (WAN, {"shift": 0.0}, "sampling.shift must be above 0"),
        (WAN, {"sigmas": "evn"}, "unknown sampling.sigmas 'evn': did you mean 'even'"),
        (WAN, {"sigmas": (0.5, 0.7)}, "sampling.sigmas must fall"),
        (WAN, {"sigmas": (1.5, 0.7)}, "sampling.sigmas must fall"),
        (WAN, {"sigmas": (0.5, 0.0)}, "sampling.sigmas must fall"),
        (WAN, {"sigmas": ()}, "sampling.sigmas must fall"),
        (MOCHI, {"kind": "unipc"}, "invert_sigmas=True"),
        (LTX, {}, "depends on the number of video tokens"),
        (LTX | {"time_shift_type": "cubic"}, {"tokens": tokens}, "time_shift_type 'cubic'"),
        (FLOW | {"timestep_spacing": "trailing"}, {}, "unknown field 'timestep_spacing'"),
        (OPEN_SORA, {"sigmas": "even"}, "leave sampling.sigmas out"),
        (OPEN_SORA, {"kind": "unipc"}, "RFLOW cannot be sampled by unipc"),
    ],
)
def test_what_is_not_supported_is_named(config, options, said):
    with pytest.raises(UserError, match=said) as caught:
        solver_from_config(config, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "options", "steps", "said"),
    [
        (WAN, {}, 1001, "between 1 and the model's 1000"),
        (LTX, {"shift": 1.0}, 1, "shift_terminal"),
    ],
)
def test_impossible_schedules_are_users_errors(config, options, steps, said):
    with pytest.raises(UserError, match=said):
        solver_from_config(config, **options).schedule(steps)


def test_a_dynamic_shift_needs_the_size():
    with pytest.raises(ValueError, match="pass `size`"):
        solver_from_config(LTX, tokens=tokens).schedule(10)


def test_dynamic_shift_at_the_base_length_is_the_base_shift():
    schedule = solver_from_config(LTX | {"shift_terminal": None}, sigmas="even", tokens=lambda _: 1024).schedule(
        2, Size(1, 1, 1)
    )
    assert schedule.starts[1].sigma == pytest.approx(math.exp(0.95) / (math.exp(0.95) + 1), rel=1e-12)
