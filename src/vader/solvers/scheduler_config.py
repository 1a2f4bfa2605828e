"""Reads a diffusers scheduler config and builds the solver it asks for.

Every field is used, or harmless at its value, or irrelevant to the solver; anything else is refused by name, so that
no setting of a checkpoint is silently ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from vader.errors import UserError, nearest
from vader.solvers import (
    BETAS,
    DDIM,
    SPACINGS,
    SPLITS,
    DPMSolver2M,
    EulerEDM,
    EulerFlow,
    OpenSoraFlow,
    Solver,
    videocrafter_scale,
    zero_terminal_snr,
)

Kind = Literal["auto", "ddim", "dpm", "euler_edm", "euler_flow"]

# Scheduler classes of diffusers for models with DDPM's noise levels, and where their defaults differ.
_NEVER_CLIPS = {"clip_sample": False, "timestep_spacing": "linspace"}
_DDPM_FAMILY: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": True},
    "DDPMScheduler": {"clip_sample": True},
    "PNDMScheduler": {"clip_sample": False, "set_alpha_to_one": False},
    "DPMSolverMultistepScheduler": _NEVER_CLIPS,
    "DPMSolverSinglestepScheduler": _NEVER_CLIPS,
    "EulerDiscreteScheduler": _NEVER_CLIPS,
}
_OWN_KIND: dict[str, Kind] = {
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpm",
    "EulerDiscreteScheduler": "euler_edm",
    "FlowMatchEulerDiscreteScheduler": "euler_flow",
    "RFLOW": "euler_flow",
}

_DDPM_FIELDS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
}
_DDIM_FIELDS = _DDPM_FIELDS | {
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "set_alpha_to_one": True,
    "rescale_betas_zero_snr": False,
    "dynamic_rescale": False,  # ours: VideoCrafter2's scale array
}
_EDM_FIELDS = _DDPM_FIELDS | {
    "use_karras_sigmas": False,
    "sigma_min": None,
    "sigma_max": None,
    "timestep_type": "discrete",
}
_DPM_FIELDS = _DDPM_FIELDS | {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
}
_FLOW_FIELDS: dict[str, Any] = {"num_train_timesteps": 1000, "shift": 1.0}
_RFLOW_FIELDS: dict[str, Any] = {  # Open-Sora's own names
    "num_timesteps": 1000,
    "use_timestep_transform": False,
    "use_discrete_timesteps": False,
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
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "flow_shift",
    "lower_order_final",
    "max_image_seq_len",
    "max_shift",
    "sample_max_value",
    "set_alpha_to_one",
    "skip_prk_steps",
    "solver_order",
    "solver_type",
    "time_shift_type",
}


def solver_from_config(
    config: Mapping[str, Any], *, eta: float = 0.0, kind: Kind = "auto", spacing: str = "auto"
) -> Solver:
    """The solver of a checkpoint.

    Args:
        config: a diffusers scheduler config (`scheduler_config.json`); absent fields have their class's default.
            Two additions: in a DDIM config `dynamic_rescale: true` and `timestep_spacing: "uniform"` are
            VideoCrafter2's, and the class `RFLOW` is Open-Sora's, with Open-Sora's field names.
        eta: the share of fresh noise in a step, in [0, 1]; dpm has none.
        kind: which solver; "auto" is the one that the config names.
        spacing: replaces the config's `timestep_spacing`; "auto" keeps it.

    Raises:
        UserError: the config names a scheduler, or sets a field, that this solver does not have; or eta or spacing
            mean nothing to it.
    """
    name = _class_name(config)
    kind = _own_kind(name) if kind == "auto" else kind
    if kind not in _BUILDERS:
        raise UserError(f"unknown solver {kind!r}: {nearest(kind, _BUILDERS)}")
    if not 0.0 <= eta <= 1.0 or (eta > 0.0 and kind == "dpm"):
        raise UserError(f"sampling.eta is in [0, 1], and 0 for dpm, which is deterministic; got {eta} for {kind}")
    if spacing != "auto":
        config = {**config, "timestep_spacing": spacing}
    return _BUILDERS[kind](name, config, eta)


def _class_name(config: Mapping[str, Any]) -> str:
    if "_class_name" not in config:
        raise UserError("this scheduler config names no `_class_name`: give a diffusers scheduler_config.json")
    return config["_class_name"]


def _own_kind(name: str) -> Kind:
    if name in _OWN_KIND:
        return _OWN_KIND[name]
    if name in _DDPM_FAMILY:
        raise UserError(f"there is no solver {name}, but ddim fits its checkpoints: set sampling.solver to ddim")
    raise UserError(f"unknown scheduler {name!r}: {nearest(name, [*_OWN_KIND, *_DDPM_FAMILY])}")


def _ddim(name: str, config: Mapping[str, Any], eta: float) -> DDIM:
    fields = _read(config, _DDIM_FIELDS, _of_family(name, "ddim"))
    alpha_bar = _alpha_bar(fields)
    if fields["rescale_betas_zero_snr"]:
        alpha_bar = zero_terminal_snr(alpha_bar)
    if fields["timestep_spacing"] == "uniform" and fields["set_alpha_to_one"]:
        raise UserError("uniform spacing ends at the first trained level: set set_alpha_to_one to false in the config")
    return DDIM(
        alpha_bar=alpha_bar,
        prediction=_known("prediction_type", fields, SPLITS),
        spacing=_known("timestep_spacing", fields, SPACINGS),
        offset=fields["steps_offset"],
        final_alpha_bar=1.0 if fields["set_alpha_to_one"] else float(alpha_bar[0]),
        clip=fields["clip_sample_range"] if fields["clip_sample"] else None,
        eta=eta,
        scale=videocrafter_scale(len(alpha_bar)) if fields["dynamic_rescale"] else None,
    )


def _dpm(name: str, config: Mapping[str, Any], eta: float) -> DPMSolver2M:
    """As diffusers makes its scheduler from another one's config: what is absent has this solver's own defaults."""
    _of_family(name, "dpm")
    fields = _read(config, _DPM_FIELDS, _NEVER_CLIPS)
    for field in ("algorithm_type", "solver_order", "solver_type"):
        _known(field, fields, (_DPM_FIELDS[field],))
    return DPMSolver2M(
        alpha_bar=_alpha_bar(fields),
        prediction=_known("prediction_type", fields, SPLITS),
        spacing=_known("timestep_spacing", fields, ("leading", "linspace", "trailing")),
        offset=fields["steps_offset"],
    )


def _euler_edm(name: str, config: Mapping[str, Any], eta: float) -> EulerEDM:
    fields = _read(config, _EDM_FIELDS, _of_family(name, "euler_edm"))
    prediction = _known("prediction_type", fields, SPLITS)
    time = _known("timestep_type", fields, ("discrete", "continuous"))
    return EulerEDM(
        alpha_bar=_alpha_bar(fields),
        prediction=prediction,
        spacing=_known("timestep_spacing", fields, SPACINGS),
        offset=fields["steps_offset"],
        karras=bool(fields["use_karras_sigmas"]),
        sigma_min=fields["sigma_min"],
        sigma_max=fields["sigma_max"],
        continuous=time == "continuous"
        and prediction == "v_prediction",  # for other predictions diffusers keeps timesteps
        eta=eta,
    )


def _euler_flow(name: str, config: Mapping[str, Any], eta: float) -> EulerFlow:
    if "timestep_spacing" in config:
        raise UserError("timestep spacing means nothing to euler_flow: leave sampling.spacing at auto")
    if name == "RFLOW":
        fields = _read(config, _RFLOW_FIELDS)
        flags = {"transform": fields["use_timestep_transform"], "discrete": fields["use_discrete_timesteps"]}
        return OpenSoraFlow(fields["num_timesteps"], eta=eta, **flags)
    if name == "FlowMatchEulerDiscreteScheduler":
        fields = _read(config, _FLOW_FIELDS)
        return EulerFlow(fields["num_train_timesteps"], fields["shift"], eta)
    raise UserError(f"a checkpoint with {name} cannot be sampled by euler_flow: set sampling.solver to auto")


_BUILDERS: dict[str, Callable[[str, Mapping[str, Any], float], Solver]] = {
    "ddim": _ddim,
    "dpm": _dpm,
    "euler_edm": _euler_edm,
    "euler_flow": _euler_flow,
}


def _of_family(name: str, kind: str) -> dict[str, Any]:
    if name not in _DDPM_FAMILY:
        raise UserError(f"a checkpoint with {name} cannot be sampled by {kind}: set sampling.solver to auto")
    return _DDPM_FAMILY[name]


def _read(config: Mapping[str, Any], used: dict[str, Any], defaults: dict[str, Any] | None = None) -> dict[str, Any]:
    """The fields that a solver uses, absent ones at their default; any other field must be neutral or irrelevant."""
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


def _known(field: str, fields: Mapping[str, Any], known: Any) -> str:
    if fields[field] not in known:
        raise UserError(
            f"scheduler config: {field} {fields[field]!r} is not supported, "
            f"{nearest(str(fields[field]), map(str, known))}"
        )
    return fields[field]


def _alpha_bar(fields: Mapping[str, Any]) -> Tensor:
    """The cumulative product of `1 - beta`, `[T]` float64."""
    if fields["trained_betas"] is not None:
        betas = torch.as_tensor(fields["trained_betas"], dtype=torch.float64)
    else:
        schedule = BETAS[_known("beta_schedule", fields, BETAS)]
        betas = schedule(fields["beta_start"], fields["beta_end"], fields["num_train_timesteps"])
    return (1 - betas).cumprod(0)
