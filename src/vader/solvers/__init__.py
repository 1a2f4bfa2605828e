"""Solvers turn a denoiser's prediction at step i into the latents of the next step.

A solver makes a `Schedule` once (tables in float64; `scheduler_config` builds it from a checkpoint's settings),
and then `step` is a pure function of tensors: no hidden index, no host synchronisation, gradient flows.

All of them walk a path `x = alpha * clean + sigma * noise`, so they share one step rule (`PathSolver`): split
the prediction into its clean and noise estimates, and put these together again at the next level. DDIM, Euler
for EDM and Euler for rectified flow differ in nothing but the levels they visit; DPM-Solver++ 2M also looks back
at the clean estimate of the step before.
"""

from vader.solvers.base import (
    SPLITS,
    PathSolver,
    Schedule,
    Solver,
    Split,
    Step,
    path_tables,
    posterior_std,
    split_epsilon,
    split_sample,
    split_v,
    split_velocity,
)
from vader.solvers.ddim import DDIM
from vader.solvers.dpm import DPMSolver2M
from vader.solvers.edm import EulerEDM
from vader.solvers.flow import EulerFlow, OpenSoraFlow, open_sora_shift, shifted
from vader.solvers.levels import (
    BETAS,
    SPACINGS,
    cosine_betas,
    interpolate,
    karras_sigmas,
    leading_times,
    linear_betas,
    linspace_times,
    scaled_linear_betas,
    trailing_times,
    uniform_times,
    videocrafter_scale,
    zero_terminal_snr,
)

__all__ = [
    "BETAS",
    "DDIM",
    "SPACINGS",
    "SPLITS",
    "DPMSolver2M",
    "EulerEDM",
    "EulerFlow",
    "OpenSoraFlow",
    "PathSolver",
    "Schedule",
    "Solver",
    "Split",
    "Step",
    "cosine_betas",
    "interpolate",
    "karras_sigmas",
    "leading_times",
    "linear_betas",
    "linspace_times",
    "open_sora_shift",
    "path_tables",
    "posterior_std",
    "scaled_linear_betas",
    "shifted",
    "split_epsilon",
    "split_sample",
    "split_v",
    "split_velocity",
    "trailing_times",
    "uniform_times",
    "videocrafter_scale",
    "zero_terminal_snr",
]
