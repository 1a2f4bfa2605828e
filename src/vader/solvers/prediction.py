"""What a denoiser's output stands for: each function gives the estimates (clean, noise) by it.

All know that latents = alpha * clean + sigma * noise.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Split = Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor]]


def split_epsilon(latents: Tensor, epsilon: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """The prediction is the noise."""
    return (latents - sigma * epsilon) / alpha, epsilon


def split_sample(latents: Tensor, clean: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """The prediction is the clean sample."""
    return clean, (latents - alpha * clean) / sigma


def split_v(latents: Tensor, v: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """v = (alpha * noise - sigma * clean) / norm (Salimans and Ho 2022, arXiv 2202.00512, appendix D).

    The norm `sqrt(alpha^2 + sigma^2)` is 1 for DDIM; for EDM, where alpha is 1, it is that of the scaled input.
    """
    square = alpha**2 + sigma**2
    scaled = square**0.5 * v
    return (alpha * latents - sigma * scaled) / square, (sigma * latents + alpha * scaled) / square


def split_velocity(latents: Tensor, velocity: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """velocity = noise - clean, on a straight path: alpha + sigma = 1 (rectified flow, arXiv 2209.03003, eq. 1)."""
    return latents - sigma * velocity, latents + alpha * velocity


def split_minus_velocity(latents: Tensor, opposite: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """The prediction is clean - noise, as Open-Sora's and Mochi's are."""
    return split_velocity(latents, -opposite, alpha, sigma)


# ---- the other way round: the prediction that a perfect denoiser would make, from (clean, noise, alpha, sigma) ----

TARGETS: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "epsilon": lambda clean, noise, alpha, sigma: noise,
    "sample": lambda clean, noise, alpha, sigma: clean,
    "v_prediction": lambda clean, noise, alpha, sigma: (alpha * noise - sigma * clean) / (alpha**2 + sigma**2) ** 0.5,
    "velocity": lambda clean, noise, alpha, sigma: noise - clean,
    "minus_velocity": lambda clean, noise, alpha, sigma: clean - noise,
}


PREDICTIONS: dict[str, Split] = {
    "epsilon": split_epsilon,
    "sample": split_sample,
    "v_prediction": split_v,
    "velocity": split_velocity,
    "minus_velocity": split_minus_velocity,
}
