"""Reads a diffusers scheduler config and builds the solver it asks for.

Every field is used, or harmless at its value, or irrelevant to the solver; anything else is refused by name, so that
no setting of a checkpoint is silently ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vader.errors import UserError, nearest
from vader.nouns import VideoSize
from vader.solvers import (
    BETAS,
    SIGMAS,
    SPACINGS,
    DDIMLevels,
    EDMLevels,
    FirstOrder,
    FlowLevels,
    Multistep,
    MultistepLevels,
    Solver,
    UniPC,
    UniPCFlowLevels,
    even_sigmas,
    fixed_sigmas,
    open_sora_shift,
    shifted_snr,
    videocrafter_scale,
    zero_terminal_snr,
)
from vader.solvers.fields import (
    DDIM_FIELDS,
    DDPM_FAMILY,
    DDPM_FIELDS,
    DPM_RULE,
    EDM_FIELDS,
    FLOW_FIELDS,
    NEVER_CLIPS,
    RFLOW_FIELDS,
    UNIPC,
    UNIPC_RULE,
    check_rule,
    one_of,
    read,
    rule_defaults,
)

Kind = Literal["auto", "ddim", "dpm", "euler_edm", "euler_flow", "unipc"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DETERMINISTIC = ("dpm", "unipc")
_DIFFUSION_PREDICTIONS = ("epsilon", "sample", "v_prediction")
Tokens = Callable[[VideoSize], int]

# What checkpoints of each kind of model are sampled by; the scheduler class and its flow switch tell the kind of model.
_SAMPLED_BY: dict[str, tuple[str, ...]] = {
    "diffusion": ("ddim", "dpm", "euler_edm", "unipc"),
    "cogvideox": ("ddim", "dpm"),
    "flow": ("euler_flow", "unipc"),
    "open_sora": ("euler_flow",),
}

_OWN_KIND: dict[str, Kind] = {
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpm",
    "EulerDiscreteScheduler": "euler_edm",
    UNIPC: "unipc",
    "CogVideoXDDIMScheduler": "ddim",
    "CogVideoXDPMScheduler": "dpm",
    "FlowMatchEulerDiscreteScheduler": "euler_flow",
    "RFLOW": "euler_flow",
}


@dataclass(frozen=True)
class _Options:
    """What `solver_from_config` was asked for beside the config."""

    eta: float
    shift: float | None
    sigmas: str | Sequence[float] | None
    tokens: Tokens | None


def solver_from_config(
    config: Mapping[str, Any],
    *,
    eta: float = 0.0,
    kind: str = "auto",
    spacing: str = "auto",
    shift: float | None = None,
    sigmas: str | Sequence[float] | None = None,
    tokens: Tokens | None = None,
) -> Solver:
    """The solver of a checkpoint.

    Args:
        config: a diffusers scheduler config (`scheduler_config.json`); absent fields have their class's default.
            Two additions: in a DDIM config `dynamic_rescale: true` and `timestep_spacing: "uniform"` are
            VideoCrafter2's, and the class `RFLOW` is Open-Sora's, with Open-Sora's field names.
        eta: the share of fresh noise in a step, in [0, 1]. dpm and unipc have none; CogVideoX's dpm is
            SDE-DPM-Solver, which always adds its own.
        kind: which of `KINDS`, levels and step rule, as diffusers makes that scheduler from another one's config;
            "auto" is the one that the config names.
        spacing: replaces the config's `timestep_spacing` (one of `SPACINGS`); "auto" keeps it. Not for flows.
        shift: a static shift in place of the config's, static or dynamic. For flows alone.
        sigmas: the levels before any shift, one of `SIGMAS` or the numbers themselves; None: those of diffusers' class
            for this kind. For flows alone.
        tokens: how many tokens a video of some size is to the denoiser, where the shift depends on it.

    Raises:
        UserError: the config names a scheduler, or sets a field, that this solver does not have; or an option means
            nothing to it.
    """
    name = _class_name(config)
    check_asked(kind, eta, spacing)
    kind = _own_kind(name) if kind == "auto" else kind
    model = _model(name, config)
    if kind not in _SAMPLED_BY[model]:
        raise UserError(f"a checkpoint with {name} cannot be sampled by {kind}: set sampling.solver to auto")
    _check_options(kind, model, eta, spacing, shift, sigmas)
    if spacing != "auto":
        config = {**config, "timestep_spacing": spacing}
    return _BUILDERS[kind](name, config, _Options(eta, shift, sigmas, tokens))


def check_asked(kind: str, eta: float, spacing: str) -> None:
    """What can be said of a wish before any checkpoint is known.

    Raises:
        UserError: there is no such solver or spacing, or the solver has no eta.
    """
    if kind not in KINDS:
        raise UserError(f"unknown solver {kind!r}: {nearest(kind, KINDS)}")
    if spacing not in ("auto", *SPACINGS):
        raise UserError(f"unknown timestep spacing {spacing!r}: {nearest(spacing, ['auto', *SPACINGS])}")
    if not 0.0 <= eta <= 1.0 or (eta > 0.0 and kind in DETERMINISTIC):
        raise UserError(f"sampling.eta is in [0, 1], and 0 for dpm and unipc, which have none; got {eta} for {kind}")


def _class_name(config: Mapping[str, Any]) -> str:
    if "_class_name" not in config:
        raise UserError("this scheduler config names no `_class_name`: give a diffusers scheduler_config.json")
    return config["_class_name"]


def _own_kind(name: str) -> Kind:
    if name in _OWN_KIND:
        return _OWN_KIND[name]
    if name in DDPM_FAMILY:
        raise UserError(f"there is no solver {name}, but ddim fits its checkpoints: set sampling.solver to ddim")
    raise UserError(f"unknown scheduler {name!r}: {nearest(name, [*_OWN_KIND, *DDPM_FAMILY])}")


def _model(name: str, config: Mapping[str, Any]) -> str:
    """Which kind of model a scheduler is for, a key of `_SAMPLED_BY`."""
    if name == "RFLOW":
        return "open_sora"
    if name == "FlowMatchEulerDiscreteScheduler" or (name, config.get("use_flow_sigmas")) == (UNIPC, True):
        return "flow"
    if name not in DDPM_FAMILY:
        raise UserError(f"unknown scheduler {name!r}: {nearest(name, [*_OWN_KIND, *DDPM_FAMILY])}")
    return "cogvideox" if name.startswith("CogVideoX") else "diffusion"


def _check_options(kind: str, model: str, eta: float, spacing: str, shift: Any, sigmas: Any) -> None:
    check_asked(kind, eta, spacing)  # of a kind that the config named, too
    flow = model in ("flow", "open_sora")
    if flow and spacing != "auto":
        raise UserError(f"timestep spacing means nothing to {kind} of a flow: leave sampling.spacing at auto")
    if not flow and (shift is not None or sigmas is not None):
        raise UserError(
            f"shift and sigmas mean nothing to {kind} of a diffusion model: leave sampling.shift and .sigmas out"
        )
    if model == "open_sora" and sigmas is not None:
        raise UserError("Open-Sora's levels are its own: leave sampling.sigmas out")
    if shift is not None and shift <= 0:
        raise UserError(f"sampling.shift must be above 0, got {shift}")


# ---- a builder a kind ----


def _ddim(name: str, config: Mapping[str, Any], options: _Options) -> Solver:
    fields = read(config, DDIM_FIELDS, DDPM_FAMILY[name])
    prediction = one_of("prediction_type", fields, _DIFFUSION_PREDICTIONS)
    if fields["dynamic_rescale"] and prediction != "epsilon":
        raise UserError(f"dynamic_rescale is defined for epsilon prediction alone, got {prediction!r}")
    clips = fields["clip_sample"] and not name.startswith("CogVideoX")  # whose classes have the field and never clip
    clip = fields["clip_sample_range"] if clips else None
    return Solver(_ddim_levels(fields), prediction, FirstOrder(options.eta), clip)


def _ddim_levels(fields: Mapping[str, Any]) -> DDIMLevels:
    alpha_bar = shifted_snr(_alpha_bar(fields), fields["snr_shift_scale"])
    if fields["rescale_betas_zero_snr"]:
        alpha_bar = zero_terminal_snr(alpha_bar)
    if fields["timestep_spacing"] == "uniform" and fields["set_alpha_to_one"]:
        raise UserError("uniform spacing ends at the first trained level: set set_alpha_to_one to false in the config")
    return DDIMLevels(
        alpha_bar=alpha_bar,
        spacing=one_of("timestep_spacing", fields, SPACINGS),
        offset=fields["steps_offset"],
        final_alpha_bar=1.0 if fields["set_alpha_to_one"] else float(alpha_bar[0]),
        scale=videocrafter_scale(len(alpha_bar)) if fields["dynamic_rescale"] else None,
    )


def _dpm(name: str, config: Mapping[str, Any], options: _Options) -> Solver:
    if name.startswith("CogVideoX"):
        return _cogvideox_dpm(name, config)
    return _multistep(config, DPM_RULE, Multistep())


def _cogvideox_dpm(name: str, config: Mapping[str, Any]) -> Solver:
    """CogVideoXDPMScheduler: SDE-DPM-Solver++ 2M on DDIM's levels."""
    fields = read(config, DDIM_FIELDS, DDPM_FAMILY[name])
    one_of("set_alpha_to_one", fields, (True,))
    prediction = one_of("prediction_type", fields, _DIFFUSION_PREDICTIONS)
    return Solver(_ddim_levels(fields), prediction, Multistep(eta=1.0))


def _unipc(name: str, config: Mapping[str, Any], options: _Options) -> Solver:
    if _model(name, config) == "diffusion":
        return _multistep(config, UNIPC_RULE, UniPC())
    fields = _flow_fields(name, config, rule_defaults(UNIPC_RULE))
    check_rule(fields, UNIPC_RULE)
    return Solver(UniPCFlowLevels(**_flow_levels("unipc", fields, options)), "velocity", UniPC())


def _multistep(config: Mapping[str, Any], rule_fields: dict[str, tuple[Any, ...]], rule: Multistep | UniPC) -> Solver:
    """As diffusers makes its scheduler from another one's config: what is absent has this solver's own defaults."""
    fields = read(config, DDPM_FIELDS | rule_defaults(rule_fields), NEVER_CLIPS)
    check_rule(fields, rule_fields)
    levels = MultistepLevels(
        alpha_bar=_alpha_bar(fields),
        spacing=one_of("timestep_spacing", fields, ("leading", "linspace", "trailing")),
        offset=fields["steps_offset"],
    )
    return Solver(levels, one_of("prediction_type", fields, _DIFFUSION_PREDICTIONS), rule)


def _euler_edm(name: str, config: Mapping[str, Any], options: _Options) -> Solver:
    fields = read(config, EDM_FIELDS, DDPM_FAMILY[name])
    prediction = one_of("prediction_type", fields, _DIFFUSION_PREDICTIONS)
    time = one_of("timestep_type", fields, ("discrete", "continuous"))
    levels = EDMLevels(
        alpha_bar=_alpha_bar(fields),
        spacing=one_of("timestep_spacing", fields, SPACINGS),
        offset=fields["steps_offset"],
        karras=bool(fields["use_karras_sigmas"]),
        sigma_min=fields["sigma_min"],
        sigma_max=fields["sigma_max"],
        # for other predictions diffusers keeps timesteps
        continuous=time == "continuous" and prediction == "v_prediction",
    )
    return Solver(levels, prediction, FirstOrder(options.eta))


def _euler_flow(name: str, config: Mapping[str, Any], options: _Options) -> Solver:
    if name == "RFLOW":
        return _open_sora(config, options)
    fields = _flow_fields(name, config, {"invert_sigmas": False})
    ascending = bool(fields["invert_sigmas"])  # Mochi: time rises and the prediction points at the clean latents
    levels = FlowLevels(**_flow_levels("euler", fields, options), ascending=ascending)
    return Solver(levels, "minus_velocity" if ascending else "velocity", FirstOrder(options.eta))


def _open_sora(config: Mapping[str, Any], options: _Options) -> Solver:
    """Even levels, shifted by the size of the video; `use_discrete_timesteps` rounds them to whole times first."""
    fields = read(config, RFLOW_FIELDS)
    count = fields["num_timesteps"]
    own_shift: Any = open_sora_shift if fields["use_timestep_transform"] else 1.0
    levels = FlowLevels(
        sigmas=partial(_whole_times, count=count) if fields["use_discrete_timesteps"] else even_sigmas,
        shift=own_shift if options.shift is None else options.shift,
        train_steps=count,
    )
    return Solver(levels, "minus_velocity", FirstOrder(options.eta))


def _whole_times(steps: int, count: int) -> Tensor:
    return (even_sigmas(steps) * count).round() / count


_BUILDERS: dict[str, Callable[[str, Mapping[str, Any], _Options], Solver]] = {
    "ddim": _ddim,
    "dpm": _dpm,
    "euler_edm": _euler_edm,
    "euler_flow": _euler_flow,
    "unipc": _unipc,
}


def _alpha_bar(fields: Mapping[str, Any]) -> Tensor:
    """The cumulative product of `1 - beta`, `[T]` float64."""
    if fields["trained_betas"] is not None:
        betas = torch.as_tensor(fields["trained_betas"], dtype=torch.float64)
    else:
        schedule = BETAS[one_of("beta_schedule", fields, BETAS)]
        betas = schedule(fields["beta_start"], fields["beta_end"], fields["num_train_timesteps"])
    return (1 - betas).cumprod(0)


# ---- flows ----


def _flow_fields(name: str, config: Mapping[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The fields of a flow's scheduler config, whichever class wrote it; its static shift is under "shift"."""
    if name != UNIPC:
        return read(config, FLOW_FIELDS | own | {"shift": 1.0})
    idle = DDPM_FIELDS.keys() - {"num_train_timesteps"}  # UniPC has them for diffusion models
    used = FLOW_FIELDS | own | {"flow_shift": 1.0, "prediction_type": "epsilon", "use_flow_sigmas": True}
    fields = read({field: value for field, value in config.items() if field not in idle - used.keys()}, used)
    one_of("prediction_type", fields, ("flow_prediction",))
    return fields | {"shift": fields["flow_shift"]}


def _flow_levels(own_sigmas: str, fields: Mapping[str, Any], options: _Options) -> dict[str, Any]:
    """Arguments of `FlowLevels`."""
    dynamic = fields["use_dynamic_shifting"] and options.shift is None  # diffusers then leaves `shift` aside
    static = 1.0 if dynamic else fields["shift"] if options.shift is None else options.shift
    count = fields["num_train_timesteps"]
    return {
        "sigmas": _sigmas(own_sigmas if options.sigmas is None else options.sigmas, count, static),
        "shift": _dynamic_shift(fields, options.tokens) if dynamic else static,
        "train_steps": count,
        "terminal": fields["shift_terminal"] or None,  # diffusers takes 0 for none
    }


def _sigmas(given: str | Sequence[float], count: int, shift: float) -> Callable[[int], Tensor]:
    if not isinstance(given, str):
        return fixed_sigmas(given)
    if given not in SIGMAS:
        raise UserError(f"unknown sampling.sigmas {given!r}: {nearest(given, SIGMAS, 'a list of numbers')}")
    grid = SIGMAS[given]
    return lambda steps: grid(steps, count, shift)


def _dynamic_shift(fields: Mapping[str, Any], tokens: Tokens | None) -> Callable[[VideoSize | None], float]:
    """The shift as a function of the video's size: its logarithm ("exponential"), or itself, is linear in tokens."""
    if tokens is None:
        raise UserError(
            "this checkpoint's shift depends on the number of video tokens: give `tokens`, or a fixed shift"
        )
    exponential = one_of("time_shift_type", fields, ("exponential", "linear")) == "exponential"
    low, high = fields["base_image_seq_len"], fields["max_image_seq_len"]
    slope = (fields["max_shift"] - fields["base_shift"]) / (high - low)

    def shift(size: VideoSize | None) -> float:
        if size is None:
            raise ValueError("the levels depend on the video's size: pass `size`")
        mu = fields["base_shift"] + slope * (tokens(size) - low)
        return math.exp(mu) if exponential else mu

    return shift
