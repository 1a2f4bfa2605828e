"""From latents to scores, and from scores back to latents: the only place where the two meet.

In training, `pull` gives the gradient of the rewards at the latents (split backward): the latents are detached; piece
by piece frames are decoded, scored and differentiated, each piece adding to the gradient; one backward pass then goes
from the latents through the denoising steps. The gradient is that of one large graph (`graph`), and the peak is the
larger of the two graphs, not their sum. Baselines (`score`), evaluation and files (`decode`, `score_clip`) go through
the same windows and chunks without gradient.

Shapes: B videos, n chosen frames, pixels `[B, n, 3, H, W]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vader.models.base import VideoModel
from vader.nouns import Audio, Clip, Prompt, VideoSize, detached, map_latents
from vader.rewards.base import Reward, RewardMix
from vader.scoring.choice import Group, Piece, blocks, evaluation_groups, pieces

Pixels = Callable[[Piece], Tensor]  # a piece of the chosen frames -> its pixels, not clamped yet


@dataclass(frozen=True)
class Scored:
    """Rewards of B videos, detached: each part `[B]`, their weighted sum `[B]`, and the share of clamped pixels."""

    parts: dict[str, Tensor]
    total: Tensor
    clamped: Tensor


@dataclass(frozen=True)
class Scorer:
    """Scores videos of one size; `chunk` images are decoded and scored at once, over all videos."""

    model: VideoModel
    mix: RewardMix
    size: VideoSize
    chunk: int = 1

    # ---- with gradient ----

    def pull(
        self, latents: Any, prompts: Sequence[Prompt], groups: Sequence[Group], scale: Tensor
    ) -> tuple[Any, Scored]:
        """The gradient of `-sum over videos of scale * reward` at the latents, without a graph left behind.

        Args:
            latents: of B videos; detached here.
            groups: what each reward is shown (`training_groups`).
            scale: `[B]`.

        Returns:
            The gradient, shaped like the latents, and the scores.
        """
        leaf, sheet = map_latents(lambda x: x.detach().requires_grad_(), latents), _Sheet()
        for group in groups:
            at_pixels = self._pull_clip(leaf, prompts, group, scale, sheet) if group.whole else None
            self._pull_pieces(leaf, prompts, group, scale, sheet, at_pixels)
        return map_latents(lambda x: torch.zeros_like(x) if x.grad is None else x.grad, leaf), sheet.scored(self.mix)

    def _pull_clip(self, leaf: Any, prompts: Sequence[Prompt], group: Group, scale: Tensor, sheet: _Sheet) -> Tensor:
        """Rewards that need the frames together: their gradient `[B, n, 3, H, W]` at pixels that have no graph yet."""
        frames = group.frames.to(scale.device)
        raw = self._joined(frames, self._decoder(detached(leaf), frames)).requires_grad_()
        audio = self._heard(detached(leaf), group.whole)
        samples = audio and audio.samples.requires_grad_()
        clip = self._clip(raw.clamp(0, 1), frames, audio)
        parts = {name: reward.score(clip, prompts) for name, reward in group.whole.items()}
        (-scale * self.mix.total(parts)).sum().backward()
        if samples is not None and samples.grad is not None:
            self.model.decode_audio(leaf).samples.backward(samples.grad)
        sheet.add(0, len(frames), parts)
        return torch.zeros_like(raw) if raw.grad is None else raw.grad

    def _pull_pieces(
        self, leaf: Any, prompts: Sequence[Prompt], group: Group, scale: Tensor, sheet: _Sheet, clips: Tensor | None
    ) -> None:
        """Decodes piece by piece with graph, adds framewise rewards' gradient at the pixels, and goes on to the leaf.

        Args:
            clips: the gradient at all pixels that rewards of whole clips have left.
        """
        frames = group.frames.to(scale.device)
        decode = self._decoder(leaf, frames)
        for piece in self._pieces(frames):
            raw = decode(piece)
            sheet.count_clamped(raw)
            pixels = raw.detach().requires_grad_()
            pixels.grad = torch.zeros_like(raw) if clips is None else clips[piece].clone()
            for row, parts in self._framewise(pixels, piece, frames, prompts, group.framewise):
                some = scale[row : row + len(next(iter(parts.values())))]
                (-some * self.mix.total(parts)).sum().backward()
                sheet.add(row, len(frames), parts)
            raw.backward(pixels.grad)

    def graph(
        self, latents: Any, prompts: Sequence[Prompt], groups: Sequence[Group], scale: Tensor
    ) -> tuple[Tensor, Scored]:
        """`-sum over videos of scale * reward` as one graph through rewards and decoder, and the scores."""
        sheet, parts = _Sheet(), {}
        for group in groups:
            frames = group.frames.to(scale.device)
            raw = self.model.decode_unclamped(latents, frames)
            clip = self._clip(raw.clamp(0, 1), frames, self._heard(latents, group.whole))
            parts |= {name: reward.score(clip, prompts) for name, reward in group.rewards.items()}
            sheet.count_clamped(raw)
        sheet.add(0, len(scale), parts)
        return -(scale * self.mix.total(parts)).sum(), sheet.scored(self.mix)

    # ---- without ----

    @torch.no_grad()
    def score(self, latents: Any, prompts: Sequence[Prompt], groups: Sequence[Group]) -> Scored:
        """The rewards of latents as mere numbers."""
        sheet = _Sheet()
        for group in groups:
            frames = group.frames.to(self.model.device)
            decoder = self._decoder(latents, frames)
            self._score_group(decoder, frames, prompts, group, self._heard(latents, group.whole), sheet)
        return sheet.scored(self.mix)

    @torch.no_grad()
    def score_clip(self, clip: Clip, prompts: Sequence[Prompt]) -> Scored:
        """The rewards of whole videos, wherever their pixels lie; chunks of them are brought to the model's device."""
        sheet, device = _Sheet(), self.model.device
        audio = clip.audio and Audio(clip.audio.samples.to(device), clip.audio.rate)
        for group in evaluation_groups(self.mix, self.size, len(clip)):
            shown = clip.at(group.frames.to(clip.frames.device)).frames
            frames = group.frames.to(device)
            self._score_group(lambda piece, of=shown: of[piece].to(device), frames, prompts, group, audio, sheet)
        return sheet.scored(self.mix)

    @torch.no_grad()
    def decode(self, latents: Any) -> Clip:
        """Whole videos on the CPU, decoded piece by piece; with their sound where a reward listens."""
        count = len(latents if isinstance(latents, Tensor) else next(iter(latents.values())))
        frames = torch.arange(self.size.frames, device=self.model.device).expand(count, -1)
        decoder = self._decoder(latents, frames)
        pixels = self._joined(frames, lambda piece: decoder(piece).clamp(0, 1).cpu())
        audio = self._heard(latents, dict(self.mix.items()))
        return Clip.whole(pixels, self.size.fps, audio and Audio(audio.samples.cpu(), audio.rate))

    def _score_group(
        self,
        pixels: Pixels,
        frames: Tensor,
        prompts: Sequence[Prompt],
        group: Group,
        audio: Audio | None,
        sheet: _Sheet,
    ) -> None:
        kept: list[tuple[Piece, Tensor]] = []
        for piece in self._pieces(frames):
            raw = pixels(piece)
            sheet.count_clamped(raw)
            for row, parts in self._framewise(raw, piece, frames, prompts, group.framewise):
                sheet.add(row, len(frames), parts)
            kept += [(piece, raw)] if group.whole else []
        if group.whole:
            clip = self._clip(_assembled(frames, kept).clamp(0, 1), frames, audio)
            sheet.add(0, len(frames), {name: reward.score(clip, prompts) for name, reward in group.whole.items()})

    # ---- pieces ----

    def _pieces(self, frames: Tensor) -> list[Piece]:
        return pieces(frames, self.model.windows(self.size), self.chunk)

    def _decoder(self, latents: Any, frames: Tensor) -> Pixels:
        def decode(piece: Piece) -> Tensor:
            return self.model.decode_unclamped(map_latents(lambda x: x[piece.rows], latents), frames[piece])

        return decode

    def _joined(self, frames: Tensor, pixels: Pixels) -> Tensor:
        """All chosen frames, decoded piece by piece without graph."""
        with torch.no_grad():
            return _assembled(frames, [(piece, pixels(piece)) for piece in self._pieces(frames)])

    def _framewise(
        self, raw: Tensor, piece: Piece, frames: Tensor, prompts: Sequence[Prompt], rewards: Mapping[str, Reward]
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Shares of framewise rewards, of videos from a row on: a mean over frames is a sum over chunks of them."""
        times, texts = frames[piece] / self.size.fps, prompts[piece.rows]
        for some in blocks(*raw.shape[:2], self.chunk) if rewards else ():
            clip = Clip(raw[some].clamp(0, 1), times[some])
            share = clip.frames.shape[1] / frames.shape[1]
            parts = {name: share * reward.score(clip, texts[some.rows]) for name, reward in rewards.items()}
            yield piece.rows.start + some.rows.start, parts

    def _clip(self, pixels: Tensor, frames: Tensor, audio: Audio | None) -> Clip:
        return Clip(pixels, frames / self.size.fps, audio)

    def _heard(self, latents: Any, rewards: Mapping[str, Reward]) -> Audio | None:
        """The videos' sound, if one of the rewards listens."""
        return self.model.decode_audio(latents) if any(r.needs.audio for r in rewards.values()) else None


def _assembled(frames: Tensor, parts: Sequence[tuple[Piece, Tensor]]) -> Tensor:
    """The pixels of all pieces in their places, `[B, n, 3, H, W]`."""
    first = parts[0][1]
    whole = first.new_empty(*frames.shape, *first.shape[2:])
    for piece, pixels in parts:
        whole[piece] = pixels
    return whole


@dataclass
class _Sheet:
    """Collects scores while pieces come in."""

    parts: dict[str, Tensor] = field(default_factory=dict)
    clamped: float | Tensor = 0.0
    values: int = 0

    def add(self, row: int, videos: int, parts: Mapping[str, Tensor]) -> None:
        """Adds (shares of) the scores `[b]` of some of the videos, from a row on."""
        for name, part in parts.items():
            whole = self.parts.setdefault(name, torch.zeros(videos, device=part.device))
            whole[row : row + len(part)] += part.detach().float()

    def count_clamped(self, raw: Tensor) -> None:
        """Clamped pixels carry no gradient, so they are counted."""
        self.clamped = self.clamped + ((raw <= 0) | (raw >= 1)).sum().detach()
        self.values += raw.numel()

    def scored(self, mix: RewardMix) -> Scored:
        parts = {name: self.parts[name] for name, _ in mix.items()}
        total = mix.total(parts)
        return Scored(parts, total, total.new_tensor(float(self.clamped) / self.values))
