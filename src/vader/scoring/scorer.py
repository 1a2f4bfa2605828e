"""From the reward back to latents: decode chosen frames, score them, and differentiate, in one of two ways.

Plain: one graph through reward, decoder and denoising steps (`Scorer`). Split: the latents are detached, frame
chunks are decoded, scored and differentiated one after the other, each adding to the gradient at the latents, and
one backward pass then goes from the latents through the denoising steps. The gradient is the same; the peak is the
larger of the two graphs instead of their sum, and for frame rewards it does not grow with the number of frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vader.models.base import VideoModel
from vader.rewards.base import RewardMix


@dataclass
class Scored:
    """Rewards of B videos, detached: each part `[B]`, their weighted sum `[B]`, and the share of clamped pixels."""

    parts: dict[str, Tensor]
    total: Tensor
    clamped: Tensor


@dataclass(frozen=True)
class Scorer:
    """Decodes latents of B videos and scores their frames against B prompts."""

    model: VideoModel
    reward: RewardMix
    prompts: Sequence[str]

    def __call__(self, latents: Tensor, frames: Tensor) -> tuple[Tensor, Scored]:
        """Frames `[B, n]` of latents `[B, ...]`: the rewards `[B]` with graph, and what to report."""
        return self.score(self.model.decode_unclamped(latents, frames))

    def score(self, raw: Tensor) -> tuple[Tensor, Scored]:
        """Rewards of decoded pixels that are not clamped yet. Clamped pixels carry no gradient, so they are counted."""
        parts = self.reward.parts(raw.clamp(0, 1), self.prompts)
        kept = {name: part.detach().float() for name, part in parts.items()}
        clamped = ((raw <= 0) | (raw >= 1)).float().mean().detach()
        return self.reward.total(parts), Scored(kept, self.reward.total(kept), clamped)


def split_backward(
    scorer: Scorer, latents: Tensor, frames: Tensor, chunk: int, scale: float | Tensor
) -> tuple[Tensor, Scored]:
    """The gradient of `-scale * sum of rewards` at the latents, without a graph left behind.

    Args:
        latents: `[B, ...]`; detached here.
        frames: indices `[B, n]` of the frames that the reward sees.
        chunk: how many frames of each video are decoded at once.

    Returns:
        The gradient, shaped like latents, and the scores.
    """
    leaf = latents.detach().requires_grad_()
    differentiate = _by_frames if scorer.reward.framewise else _by_clip
    scored = differentiate(scorer, leaf, frames.split(chunk, dim=1), scale)
    assert leaf.grad is not None  # every chunk's backward ends there
    return leaf.grad, scored


def _by_frames(scorer: Scorer, leaf: Tensor, chunks: Sequence[Tensor], scale: float | Tensor) -> Scored:
    """A mean over frames is a sum over chunks, so each chunk is differentiated and forgotten."""
    count = sum(chunk.shape[1] for chunk in chunks)
    scores = []
    for chunk in chunks:
        share = chunk.shape[1] / count
        total, scored = scorer(leaf, chunk)
        (-scale * share * total.sum()).backward()
        scores.append((share, scored))
    parts = {name: _mean([(share, scored.parts[name]) for share, scored in scores]) for name in scores[0][1].parts}
    clamped = _mean([(share, scored.clamped) for share, scored in scores])
    return Scored(parts, scorer.reward.total(parts), clamped)


def _mean(weighted: Sequence[tuple[float, Tensor]]) -> Tensor:
    return torch.stack([weight * value for weight, value in weighted]).sum(dim=0)


def _by_clip(scorer: Scorer, leaf: Tensor, chunks: Sequence[Tensor], scale: float | Tensor) -> Scored:
    """A clip reward needs all frames at once: the decoder's activations are recomputed chunk by chunk, not kept."""
    decode = scorer.model.decode_unclamped
    raw = torch.cat([checkpoint(decode, leaf, chunk, use_reentrant=False) for chunk in chunks], dim=1)
    total, scored = scorer.score(raw)
    (-scale * total.sum()).backward()
    return scored
