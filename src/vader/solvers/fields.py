"""Which fields diffusers' scheduler configs have, what they are by default, and which may be left aside.

In comes a config, out come the fields that a solver uses; what would change its numbers otherwise is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from vader.errors import UserError, nearest

UNIPC = "UniPCMultistepScheduler"

# Scheduler classes of diffusers for models with DDPM's noise levels, and where their defaults differ.
NEVER_CLIPS = {"clip_sample": False, "timestep_spacing": "linspace"}
COGVIDEOX = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": True,
    "snr_shift_scale": 3.0,
}
DDPM_FAMILY: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": True},
    "DDPMScheduler": {"clip_sample": True},
    "PNDMScheduler": {"clip_sample": False, "set_alpha_to_one": False},
    "DPMSolverMultistepScheduler": NEVER_CLIPS,
    "DPMSolverSinglestepScheduler": NEVER_CLIPS,
    "EulerDiscreteScheduler": NEVER_CLIPS,
    UNIPC: NEVER_CLIPS,
    "CogVideoXDDIMScheduler": COGVIDEOX,
    "CogVideoXDPMScheduler": COGVIDEOX,
}
DDPM_FIELDS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
}
DDIM_FIELDS = DDPM_FIELDS | {
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "set_alpha_to_one": True,
    "rescale_betas_zero_snr": False,
    "snr_shift_scale": 1.0,  # CogVideoX's
    "dynamic_rescale": False,  # ours: VideoCrafter2's scale array
}
EDM_FIELDS = DDPM_FIELDS | {
    "use_karras_sigmas": False,
    "sigma_min": None,
    "sigma_max": None,
    "timestep_type": "discrete",
}
FLOW_FIELDS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "shift_terminal": None,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "time_shift_type": "exponential",
}
RFLOW_FIELDS: dict[str, Any] = {  # Open-Sora's own names
    "num_timesteps": 1000,
    "use_timestep_transform": False,
    "use_discrete_timesteps": False,
}
# What a multistep solver's step rule may be set to; the first is its default.
DPM_RULE: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver++",),
    "solver_order": (2,),
    "solver_type": ("midpoint",),
}
UNIPC_RULE: dict[str, tuple[Any, ...]] = {
    "solver_order": (2,),
    "solver_type": ("bh2", "midpoint", "heun", "logrho"),  # diffusers takes DPM-Solver's types for bh2
    "predict_x0": (True,),
    "lower_order_final": (True,),
    "disable_corrector": ([], None),
    "solver_p": (None,),
}

# Fields that would change the numbers in a way no solver here has, with the values under which they do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "clip_sample": (False,),
    "dynamic_rescale": (False,),
    "final_sigmas_type": ("zero",),
    "interpolation_type": ("linear",),
    "invert_sigmas": (False,),
    "lambda_min_clipped": (-math.inf,),
    "rescale_betas_zero_snr": (False,),
    "shift_terminal": (None,),
    "snr_shift_scale": (1.0,),
    "sigma_max": (None,),
    "sigma_min": (None,),
    "stochastic_sampling": (False,),
    "thresholding": (False,),
    "timestep_type": ("discrete",),
    "use_beta_sigmas": (False, None),
    "use_dynamic_shifting": (False,),
    "use_exponential_sigmas": (False, None),
    "use_flow_sigmas": (False,),
    "use_karras_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}

# Fields that say nothing unless one of the above is on, or that belong to the solver that is being replaced.
_IRRELEVANT = {
    "algorithm_type",
    "base_image_seq_len",
    "base_shift",
    "clip_sample_range",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "flow_shift",
    "lower_order_final",
    "max_image_seq_len",
    "max_shift",
    "predict_x0",
    "sample_max_value",
    "set_alpha_to_one",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "time_shift_type",
}


# ---- reading ----


def read(config: Mapping[str, Any], used: dict[str, Any], defaults: dict[str, Any] | None = None) -> dict[str, Any]:
    """The fields that a solver uses, absent ones at their default; any other field must be neutral or irrelevant.

    Args:
        config: a scheduler config.
        used: the fields that the solver uses, with what they are where neither config nor class says otherwise.
        defaults: where the defaults of the config's class differ.

    Raises:
        UserError: a field is unknown, or would change the numbers in a way that the solver has not.
    """
    given = {field: value for field, value in config.items() if not field.startswith("_")}
    fields = used | (defaults or {}) | given
    for field in fields.keys() - used.keys() - _IRRELEVANT:
        if field not in _NEUTRAL:
            raise UserError(
                f"scheduler config: unknown field {field!r}, {nearest(field, [*used, *_NEUTRAL, *_IRRELEVANT])}"
            )
        if fields[field] not in _NEUTRAL[field]:
            raise UserError(f"scheduler config: {field}={fields[field]!r} is not supported by this solver")
    return fields


def one_of(field: str, fields: Mapping[str, Any], known: Collection[Any]) -> Any:
    """The field's value, if it is a known one.

    Raises:
        UserError: it is not.
    """
    if fields[field] not in known:
        raise UserError(
            f"scheduler config: {field} {fields[field]!r} is not supported, "
            f"{nearest(str(fields[field]), map(str, known))}"
        )
    return fields[field]


def rule_defaults(rule: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The fields of a step rule (`DPM_RULE`, `UNIPC_RULE`) with their defaults."""
    return {field: known[0] for field, known in rule.items()}


def check_rule(fields: Mapping[str, Any], rule: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises UserError where a field of a step rule is set to what it may not be."""
    for field, known in rule.items():
        one_of(field, fields, known)
