"""What tests of solvers share: configs, a denoiser in closed form, our chain and diffusers' chain beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from factories import SVD_SCHEDULER
from vader.solvers import Schedule, Solver

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
COGVIDEOX = SD | {  # 2b; 5b has snr_shift_scale 1
    "_class_name": "CogVideoXDDIMScheduler",
    "clip_sample_range": 1.0,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "snr_shift_scale": 3.0,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}
WAN = {
    "_class_name": "UniPCMultistepScheduler",
    "_diffusers_version": "0.33.0.dev0",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "disable_corrector": [],
    "dynamic_thresholding_ratio": 0.995,
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "predict_x0": True,
    "prediction_type": "flow_prediction",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "solver_order": 2,
    "solver_p": None,
    "solver_type": "bh2",
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "linspace",
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_flow_sigmas": True,
    "use_karras_sigmas": False,
}
LTX = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 1024,
    "base_shift": 0.95,
    "invert_sigmas": False,
    "max_image_seq_len": 4096,
    "max_shift": 2.05,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.1,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}
MOCHI = {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True, "shift": 1.0}


class Size(NamedTuple):
    frames: int
    height: int
    width: int


CLIP_240P = Size(51, 240, 426)


def tokens(size: Any) -> int:
    return size.frames * size.height * size.width // 1000


def stand_in(x: Tensor, t: Tensor) -> Tensor:
    """A denoiser in closed form: bounded, nonlinear, time matters."""
    return torch.tanh(0.7 * x.roll(1, -1) + 0.3 * x) + 0.1 * torch.sin(t.to(x.dtype) / 50)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def walk(
    solver: Solver, schedule: Schedule, start: Tensor, noise: Tensor | None = None, denoiser: Callable = stand_in
) -> Tensor:
    """The latents after each step, `[S, ...]`, from standard normal `start`."""
    x, memory, visited = start * schedule.init_scale, None, []
    for i, (here, there) in enumerate(zip(schedule.starts, schedule.ends, strict=True)):
        prediction = denoiser(x * here.input_scale, torch.tensor(here.time, dtype=torch.float64))
        x, *_, memory = solver.step(x, prediction, here, there, None if noise is None else noise[i], memory)
        visited.append(x)
    return torch.stack(visited)


def diffusers_walk(scheduler: Any, start: Tensor, denoiser: Callable = stand_in) -> Tensor:
    """The latents after each step of a deterministic scheduler of diffusers, whose timesteps are set."""
    scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
    x, visited = start * getattr(scheduler, "init_noise_sigma", 1.0), []
    for t in scheduler.timesteps:
        x = scheduler.step(denoiser(scaled(x, t), t), t, x).prev_sample
        visited.append(x)
    return torch.stack(visited)


def column(schedule: Schedule, name: str, of: str = "starts") -> Tensor:
    """One number of each level, `[S]` float64."""
    return torch.tensor([getattr(level, name) for level in getattr(schedule, of)], dtype=torch.float64)


def assert_near(actual: Tensor, expected: Tensor, relative: float) -> None:
    """Within `relative` of the largest expected entry, everywhere."""
    assert actual.shape == expected.shape
    gap = (actual.double() - expected.double()).abs().max() / expected.abs().max()
    assert gap <= relative, f"relative gap {gap:.2e}"
