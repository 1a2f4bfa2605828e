"""Solvers turn a denoiser's prediction at one noise level into the latents at another.

A `Solver` is put together from parts that know nothing of each other: the levels that it visits, and so the path it
is on (`paths`), what the denoiser predicts (`prediction`), and how a step is made (`rules`). `scheduler_config`
does so from a checkpoint's settings.
"""

from vader.solvers.levels import (
    BETAS,
    SIGMAS,
    SPACINGS,
    cosine_betas,
    ending_at,
    even_sigmas,
    fixed_sigmas,
    interpolate,
    karras_sigmas,
    leading_times,
    linear_betas,
    linspace_times,
    open_sora_shift,
    scaled_linear_betas,
    shifted,
    shifted_snr,
    trailing_times,
    uniform_times,
    videocrafter_scale,
    zero_terminal_snr,
)
from vader.solvers.paths import DDIMLevels, EDMLevels, FlowLevels, MultistepLevels, UniPCFlowLevels
from vader.solvers.prediction import PREDICTIONS
from vader.solvers.rules import FirstOrder, Multistep, UniPC, posterior_std
from vader.solvers.solver import Level, Levels, Rule, Schedule, Solver, Step

__all__ = [
    "BETAS",
    "PREDICTIONS",
    "SIGMAS",
    "SPACINGS",
    "DDIMLevels",
    "EDMLevels",
    "FirstOrder",
    "FlowLevels",
    "Level",
    "Levels",
    "Multistep",
    "MultistepLevels",
    "Rule",
    "Schedule",
    "Solver",
    "Step",
    "UniPC",
    "UniPCFlowLevels",
    "cosine_betas",
    "ending_at",
    "even_sigmas",
    "fixed_sigmas",
    "interpolate",
    "karras_sigmas",
    "leading_times",
    "linear_betas",
    "linspace_times",
    "open_sora_shift",
    "posterior_std",
    "scaled_linear_betas",
    "shifted",
    "shifted_snr",
    "trailing_times",
    "uniform_times",
    "videocrafter_scale",
    "zero_terminal_snr",
]
