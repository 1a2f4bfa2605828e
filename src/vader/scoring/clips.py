"""From pixels to scores: each reward of a mix on the frames that it is shown, a few images at a time.

In go clips, wherever their pixels lie, and prompts; out come rewards `[B]`. `Scorer` goes on from here to latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from vader.nouns import Audio, Clip, Prompt, VideoSize
from vader.rewards.base import Reward, RewardMix
from vader.rewards.shaping import PLAIN, Shaping
from vader.scoring.choice import Group, Piece, blocks, evaluation_groups
from vader.scoring.shaped import shaped_parts

NOTHING: Mapping[str, Tensor] = {}
UNSHAPED: Mapping[str, Shaping] = {}


@dataclass(frozen=True)
class Scored:
    """Rewards of B videos, detached: each part `[B]`, their weighted sum `[B]`, and the share of clamped pixels."""

    parts: dict[str, Tensor]
    total: Tensor
    clamped: Tensor


@dataclass
class Sheet:
    """Collects scores while pieces come in."""

    parts: dict[str, Tensor] = field(default_factory=dict)
    clamped: float | Tensor = 0.0
    values: int = 0

    def add(self, row: int, videos: int, parts: Mapping[str, Tensor]) -> None:
        """Adds (shares of) the scores `[b]` of some of the videos, from a row on; in float32 or better."""
        for name, part in parts.items():
            kind = torch.promote_types(part.dtype, torch.float32)
            whole = self.parts.setdefault(name, torch.zeros(videos, dtype=kind, device=part.device))
            whole[row : row + len(part)] += part.detach()

    def count_clamped(self, raw: Tensor) -> None:
        """Clamped pixels carry no gradient, so they are counted."""
        self.clamped = self.clamped + ((raw <= 0) | (raw >= 1)).sum().detach()
        self.values += raw.numel()

    def scored(self, mix: RewardMix) -> Scored:
        parts = {name: self.parts[name] for name in mix.part_names}
        total = mix.total(parts)
        return Scored(parts, total, total.new_tensor(float(self.clamped) / max(1, self.values)))


def scored_all(
    rewards: Mapping[str, Reward], clip: Clip, prompts: Sequence[Prompt],
    shaping: Mapping[str, Shaping] = UNSHAPED, noise: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """What is reported of several rewards of one clip, each `[B]`; in training with a shaped gradient."""
    found: dict[str, Tensor] = {}
    for name, reward in rewards.items():
        found |= shaped_parts(name, reward, clip, prompts, shaping.get(name, PLAIN), noise)
    return found


def framewise_scores(
    clip: Clip, prompts: Sequence[Prompt], rewards: Mapping[str, Reward], frames: int, chunk: int,
    shaping: Mapping[str, Shaping] = UNSHAPED, noise: Tensor | None = None,
) -> Iterator[tuple[int, dict[str, Tensor]]]:  # fmt: skip
    """Shares of framewise rewards, of videos from a row on: a mean over `frames` is a sum over chunks of them.

    Pixels are clamped here, chunk by chunk, so that each chunk has a graph of its own.
    """
    for some in blocks(clip.frames.shape[0], clip.frames.shape[1], chunk) if rewards else ():
        seen = Clip(clip.frames[some].clamp(0, 1), clip.times[some])
        share = seen.frames.shape[1] / frames
        texts = prompts[some.rows]
        parts = scored_all(rewards, seen, texts, shaping, None if noise is None else noise[some])
        yield some.rows.start, {name: share * part for name, part in parts.items()}


def score_group(
    group: Group, pieces: Sequence[Piece], pixels: Callable[[Piece], Tensor], prompts: Sequence[Prompt],
    audio: Audio | None, chunk: int, sheet: Sheet,
) -> None:  # fmt: skip
    """Scores one group's frames without gradient; they are kept only if a reward needs them together.

    Args:
        pixels: gives a piece's, not clamped yet.
    """
    videos, frames = group.frames.shape
    kept: list[tuple[Piece, Tensor]] = []
    for piece in pieces:
        raw = pixels(piece)
        sheet.count_clamped(raw)
        seen = Clip(raw.clamp(0, 1), group.times[piece])
        for row, parts in framewise_scores(seen, prompts[piece.rows], group.framewise, frames, chunk):
            sheet.add(piece.rows.start + row, videos, parts)
        kept += [(piece, seen.frames)] if group.whole else []
    if group.whole:
        clip = Clip(assembled(group.frames, kept), group.times, audio)
        sheet.add(0, videos, scored_all(group.whole, clip, prompts))


@torch.no_grad()
def score_clip(
    mix: RewardMix, clip: Clip, prompts: Sequence[Prompt], size: VideoSize, chunk: int, device: torch.device,
    beside: Mapping[str, Tensor] = NOTHING,
) -> Scored:  # fmt: skip
    """The rewards of whole videos; chunks of their pixels are brought to the device.

    Args:
        beside: what the mix's latent rewards say, each `[B]`.
    """
    sheet = Sheet()
    sheet.add(0, len(clip), beside)
    audio = clip.audio and Audio(clip.audio.samples.to(device), clip.audio.rate)
    for group in evaluation_groups(mix, size, len(clip), device):
        shown = clip.at(group.frames.to(clip.frames.device)).frames
        pieces = list(blocks(len(clip), shown.shape[1], chunk))
        score_group(group, pieces, partial(_moved, shown, device), prompts, audio, chunk, sheet)
    return sheet.scored(mix)


def _moved(frames: Tensor, device: torch.device, piece: Piece) -> Tensor:
    return frames[piece].to(device)


def assembled(frames: Tensor, parts: Sequence[tuple[Piece, Tensor]]) -> Tensor:
    """The pixels of all pieces of `frames` `[B, n]` in their places, `[B, n, 3, H, W]`."""
    first = parts[0][1]
    whole = first.new_empty(*frames.shape, *first.shape[2:])
    for piece, pixels in parts:
        whole[piece] = pixels
    return whole
