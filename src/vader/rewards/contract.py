"""Where a reward's code is called: what it gives is held to its contract, and what it raises becomes one line.

In go a reward, what it is shown and its name in the mix; out come scores `[B]`. A mistake in the reward is a
`UserError` that names reward and remedy. `try_reward` looks for the mistakes that a call alone does not show.

Shapes: B videos, n frames, pixels `[B, n, 3, H, W]`; N images `[N, 3, H, W]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vader.errors import UserError, is_out_of_memory
from vader.nouns import Clip, Condition, Prompt, map_latents
from vader.plugins import own_line, told
from vader.rewards.base import (
    BrokenContract,
    FrameReward,
    LatentReward,
    Reward,
    SummedReward,
    head_names,
    require_scores,
)

MORE = "'vader check reward' tells more"


def scored(name: str, reward: Reward, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
    """`reward.score(clip, prompts)`, `[B]`.

    Raises:
        UserError: it fails, or gives anything but one number a video, in float32 or better.
    """
    return _called(name, lambda: require_scores(reward.score(clip, prompts), len(prompts), "score", "video"))


def scored_parts(name: str, reward: Reward, clip: Clip, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """What is reported of a reward: `scored` under its name and, of one that is a sum, its heads behind it."""
    if not isinstance(reward, SummedReward):
        return {name: scored(name, reward, clip, prompts)}
    heads: dict[str, Tensor] = {}

    def call() -> Tensor:
        heads.update(reward.score_heads(clip, prompts))
        return require_scores(reward.total(heads), len(prompts), "score_heads", "video")

    total = _called(name, call)
    return {name: total} | dict(zip(head_names(name, reward), (heads[head] for head in reward.weights), strict=True))


def scored_frames(name: str, reward: FrameReward, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """`reward.score_frames(images, prompts)`, `[N]`; errors as `scored`."""
    return _called(name, lambda: reward.checked_frames(images, prompts))


def scored_latents(name: str, reward: LatentReward, latents: Any, time: Tensor, condition: Condition) -> Tensor:
    """`reward.score_latents(latents, time, condition)`, `[B]`; errors as `scored`."""

    def call() -> Tensor:
        return require_scores(reward.score_latents(latents, time, condition), len(condition), "score_latents", "video")

    return _called(name, call)


def _called(name: str, call: Callable[[], Tensor]) -> Tensor:
    try:
        scores = call()
        if torch.finfo(scores.dtype).bits < 32:
            kind = str(scores.dtype).removeprefix("torch.")
            raise BrokenContract(f"gave {kind} scores: end with .float(), scores go out as float32")
    except BrokenContract as error:
        raise UserError(f"reward {name!r} {error}") from error
    except UserError:
        raise
    except Exception as error:  # the reward may be the user's own: anything may go wrong in it
        if is_out_of_memory(error):
            raise
        raise UserError(f"reward {name!r} fails with {told(error)}: {MORE}") from error
    return scores


# ---- before a run ----


def try_reward(name: str, reward: Reward, clip: Clip, prompts: Sequence[Prompt], gradient: bool) -> None:
    """Scores a clip of two videos in several ways, before hours are spent on what the reward says.

    Args:
        gradient: whether it is to be differentiated; one video is.

    Raises:
        UserError: as `scored`; no score is a number; a video's depends on the others of its batch; there is no gradient
            to the clip.
    """
    _try_batch(name, reward, lambda rows: scored(name, reward, clip[rows], prompts[rows]))
    if gradient:
        _try_gradient(name, reward, clip[:1], prompts[:1])


def try_latent_reward(
    name: str, reward: LatentReward, latents: Any, time: Tensor, condition: Condition, gradient: bool
) -> None:
    """`try_reward` on latents of two videos."""

    def of(rows: slice) -> Tensor:
        some = map_latents(lambda x: x[rows], latents)
        return scored_latents(name, reward, some, time[rows], condition[rows])

    _try_batch(name, reward, of)
    if gradient:
        latents = map_latents(lambda x: x.detach().requires_grad_(), latents)
        scores = of(slice(1))
        sources = [latents] if isinstance(latents, Tensor) else list(latents.values())
        found = torch.autograd.grad(scores.sum(), sources, allow_unused=True) if scores.requires_grad else [None]
        if all(one is None for one in found):
            raise UserError(
                f"reward {name!r} gives scores without a gradient to the latents: {REMEDY.replace('pixels', 'latents')}"
            )


@torch.no_grad()
def _try_batch(name: str, reward: Reward, of: Callable[[slice], Tensor]) -> None:
    together, again = (of(slice(None)) for _ in range(2))
    if not together.isfinite().any():
        raise UserError(
            f"reward {name!r} gives {together[0]:.4g} for random pixels in [0, 1]: let scores be numbers; {MORE}"
        )
    if not torch.equal(together, again):  # random: then this cannot be told
        return
    alone = of(slice(1))
    low, high = reward.sensible_range
    size = max(together.abs().max().item(), abs(high - low))
    if (together[:1] - alone).abs().item() > _tolerance(reward) * size:
        raise UserError(
            f"reward {name!r} gives a video {together[0]:.4g} beside another and {alone[0]:.4g} alone: let nothing of "
            f"the batch into a video's score, no mean over it and no batch normalisation; {MORE}"
        )


def _tolerance(reward: Reward) -> float:
    """How much rounding may make of a score, as batches of other sizes are computed in another order."""
    half = any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in reward.parameters())
    return 5e-2 if half else 1e-3


def _try_gradient(name: str, reward: Reward, clip: Clip, prompts: Sequence[Prompt]) -> None:
    frames = clip.frames.clone().requires_grad_()
    audio = clip.audio and replace(clip.audio, samples=clip.audio.samples.clone().requires_grad_())
    try:
        scores = scored(name, reward, replace(clip, frames=frames, audio=audio), prompts)
    except UserError as error:  # without gradient the same call went well
        where = own_line(error.__cause__ or error)
        raise UserError(
            f"reward {name!r} cannot be differentiated{f' ({where})' if where else ''}: {REMEDY}"
        ) from error
    sources = [frames, *([audio.samples] if audio else [])]
    found = torch.autograd.grad(scores.sum(), sources, allow_unused=True) if scores.requires_grad else [None]
    if all(gradient is None for gradient in found):
        raise UserError(f"reward {name!r} gives scores without a gradient to the pixels: {REMEDY}")


REMEDY = (
    "stay in torch from the pixels on, without detach, no_grad, numpy and PIL, or train with "
    "algorithm='{name: ddpo}', which needs no gradient"
)
