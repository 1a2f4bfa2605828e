"""From latents to scores, and from scores back to latents: the only place where the two meet.

In training, `pull` gives the gradient of the rewards at the latents (split backward): the latents are detached; piece
by piece frames are decoded, scored and differentiated, each piece adding to the gradient; one backward pass then goes
from the latents through the denoising steps. The gradient is that of one large graph (`graph`), and the peak is the
larger of the two graphs, not their sum. Baselines (`score`) and evaluation (`decode`, `score_clip`) go through the same
windows and chunks without gradient.

Shapes: B videos, n chosen frames, pixels `[B, n, 3, H, W]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vader.models.base import VideoModel
from vader.models.joined import Decodes, Joined, decoder_of
from vader.models.tiny_decoder import TinyVideos
from vader.nouns import Audio, Clip, Prompt, VideoSize, detached, flat, map_latents
from vader.rewards.base import RewardMix
from vader.scoring.before_decoder import at_the_end, latent_parts, root_mean_square
from vader.scoring.choice import Group, Piece, pieces
from vader.scoring.clips import NOTHING, Scored, Sheet, assembled, framewise_scores, score_clip, score_group, scored_all


@dataclass(frozen=True)
class Scorer:
    """Scores videos of one size; `chunk` images are decoded and scored at once, over all videos.

    Attributes:
        tiny: decodes what is scored for the gradient in the model's place; all else is always decoded by the model.
        end_time: what the denoiser is told at the level of final latents, for rewards that see these.
    """

    model: VideoModel | Joined
    mix: RewardMix
    size: VideoSize
    chunk: int = 1
    tiny: TinyVideos | None = None
    end_time: float = 0.0

    @property
    def trained(self) -> Decodes | Joined:
        """What decodes the frames that are scored for the gradient."""
        return self.model if self.tiny is None else decoder_of(self.tiny, self.size)

    # ---- with gradient ----

    def pull(
        self, latents: Any, prompts: Sequence[Prompt], groups: Sequence[Group], scale: Tensor,
        beside: Mapping[str, Tensor] = NOTHING,
    ) -> tuple[Any, Scored]:  # fmt: skip
        """The gradient of `-sum over videos of scale * reward` at the latents, without a graph left behind.

        Args:
            latents: of B videos; detached here. Where only some of several by name have a graph, the others are
                constants, whose gradient is zero and costs nothing.
            groups: what each reward is shown (`training_groups`).
            scale: `[B]`.
            beside: what the mix's latent rewards say, whose gradient is not in this one (`pull_latents`).

        Returns:
            The gradient, shaped like the latents, and the scores.
        """
        sheet = Sheet()
        sheet.add(0, len(scale), beside)
        return self._pulled(latents, prompts, groups, scale, sheet), sheet.scored(self.mix)

    def pull_normalised(
        self, latents: Any, prompts: Sequence[Prompt], groups: Sequence[Group], scale: Tensor,
        beside: Mapping[str, Tensor] = NOTHING,
    ) -> tuple[Any, Scored]:  # fmt: skip
        """As `pull`, but each reward's gradient is brought to a root mean square of 1 over a video's latents before its
        weight counts: weights are then shares, whatever units the rewards have.

        Each reward goes through the decoder by itself. One without gradient, as beyond its hinge, stays without.
        """
        gradient, sheet = map_latents(torch.zeros_like, detached(latents)), Sheet()
        sheet.add(0, len(scale), beside)
        for group in groups:
            for name in (*group.framewise, *group.whole):
                alone = replace(self, mix=self.mix.single(name))
                pulled = alone._pulled(latents, prompts, [group.only(name)], scale, sheet)
                factor = self.mix.weights[name] * scale.abs() / root_mean_square(flat(pulled))
                scaled = map_latents(lambda x, f=factor: f.view(-1, *[1] * (x.ndim - 1)) * x, pulled)
                gradient = map_latents(torch.add, gradient, scaled)
        return gradient, sheet.scored(self.mix)

    def _pulled(
        self, latents: Any, prompts: Sequence[Prompt], groups: Sequence[Group], scale: Tensor, sheet: Sheet
    ) -> Any:
        """`pull`'s gradient, the scores going into a sheet."""
        leaf = _leaves(latents)
        for group in groups:
            at_pixels = self._pull_clip(leaf, prompts, group, scale, sheet) if group.whole else None
            self._pull_pieces(leaf, prompts, group, scale, sheet, at_pixels)
        return map_latents(lambda x: torch.zeros_like(x) if x.grad is None else x.grad, leaf)

    def _pull_clip(self, leaf: Any, prompts: Sequence[Prompt], group: Group, scale: Tensor, sheet: Sheet) -> Tensor:
        """Rewards that need the frames together: their gradient `[B, n, 3, H, W]` at pixels that have no graph yet."""
        by = self.trained
        raw = self._joined(by, group.frames, self._decoder(by, detached(leaf), group.frames)).requires_grad_()
        audio = self.model.decode_audio(detached(leaf)) if group.heard else None
        samples = None if audio is None else audio.samples.requires_grad_()
        clip = Clip(raw.clamp(0, 1), group.times, audio)
        parts = scored_all(group.whole, clip, prompts, self.mix.shaping, group.noise_on(raw))
        (-scale * self.mix.total(parts)).sum().backward()
        if samples is not None and samples.grad is not None:
            self.model.decode_audio(leaf).samples.backward(samples.grad)
        sheet.add(0, len(scale), parts)
        return torch.zeros_like(raw) if raw.grad is None else raw.grad

    def _pull_pieces(
        self, leaf: Any, prompts: Sequence[Prompt], group: Group, scale: Tensor, sheet: Sheet, clips: Tensor | None
    ) -> None:
        """Decodes piece by piece with graph, adds framewise rewards' gradient at the pixels, and goes on to the leaf.

        Args:
            clips: the gradient at all pixels that rewards of whole clips have left.
        """
        by, (videos, frames) = self.trained, group.frames.shape
        decode = self._decoder(by, leaf, group.frames)
        for piece in self._pieces(by, group.frames):
            raw = decode(piece)
            sheet.count_clamped(raw)
            pixels = raw.detach().requires_grad_()
            pixels.grad = torch.zeros_like(raw) if clips is None else clips[piece].clone()
            clip, texts = Clip(pixels, group.times[piece]), prompts[piece.rows]
            noise = group.noise_on(raw, *piece)
            shaped = (group.framewise, frames, self.chunk, self.mix.shaping, noise)
            for row, parts in framewise_scores(clip, texts, *shaped):
                total, start = self.mix.total(parts), piece.rows.start + row
                (-scale[start : start + len(total)] * total).sum().backward()
                sheet.add(start, videos, parts)
            if raw.requires_grad:  # not of constants; rewards go backward all the same, in step with other processes
                raw.backward(pixels.grad)

    def graph(
        self, latents: Any, prompts: Sequence[Prompt], groups: Sequence[Group], scale: Tensor,
        beside: Mapping[str, Tensor] = NOTHING,
    ) -> tuple[Tensor, Scored]:  # fmt: skip
        """`-sum over videos of scale * reward` as one graph through rewards and decoder, and the scores."""
        sheet = Sheet()
        parts: dict[str, Tensor] = {}
        for group in groups:
            raw = self.trained.decode_unclamped(latents, group.frames)
            audio = self.model.decode_audio(latents) if group.heard else None
            clip = Clip(raw.clamp(0, 1), group.times, audio)
            noise = group.noise_on(raw)
            parts |= scored_all(group.framewise | group.whole, clip, prompts, self.mix.shaping, noise)
            sheet.count_clamped(raw)
        sheet.add(0, len(scale), {**parts, **beside})
        loss = -(scale * self.mix.total(parts)).sum() if parts else torch.zeros_like(scale).sum()
        return loss, sheet.scored(self.mix)

    # ---- without ----

    @torch.no_grad()
    def score(self, latents: Any, prompts: Sequence[Prompt], groups: Sequence[Group]) -> Scored:
        """The rewards of final latents as mere numbers."""
        sheet = Sheet()
        sheet.add(0, len(prompts), self.latent_parts(latents, prompts))
        for group in groups:
            audio = self.model.decode_audio(latents) if group.heard else None
            decode = self._decoder(self.model, latents, group.frames)
            score_group(group, self._pieces(self.model, group.frames), decode, prompts, audio, self.chunk, sheet)
        return sheet.scored(self.mix)

    @torch.no_grad()
    def decode(self, latents: Any, audio: bool = False) -> Clip:
        """Whole videos on the CPU, decoded piece by piece; with their sound if asked for, or where a reward listens."""
        count = len(latents if isinstance(latents, Tensor) else next(iter(latents.values())))
        frames = torch.arange(self.size.frames, device=self.model.device).expand(count, -1)
        decode = self._decoder(self.model, latents, frames)
        pixels = self._joined(self.model, frames, lambda piece: decode(piece).clamp(0, 1).cpu())
        sound = self.model.decode_audio(latents) if audio or self.mix.listens else None
        return Clip.whole(pixels, self.size.fps, sound and Audio(sound.samples.cpu(), sound.rate))

    def score_clip(self, clip: Clip, prompts: Sequence[Prompt], latents: Any = None) -> Scored:
        """The rewards of whole videos, wherever their pixels lie; chunks of them are brought to the model's device.

        Args:
            latents: from which they were decoded; needed where a reward sees these.
        """
        beside = self.latent_parts(latents, prompts)
        return score_clip(self.mix, clip, prompts, self.size, self.chunk, self.model.device, beside)

    @torch.no_grad()
    def latent_parts(self, latents: Any, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """What the mix's latent rewards say of final latents, each `[B]`."""
        if not self.mix.latent:
            return {}
        assert not isinstance(self.model, Joined)  # `check_latent` has refused it
        condition = self.model.encode(prompts, self.size)
        return latent_parts(self.mix, at_the_end(latents, self.end_time, condition))

    # ---- what they share ----

    def _pieces(self, by: Decodes | Joined, frames: Tensor) -> list[Piece]:
        return pieces(frames, by.windows(self.size), self.chunk)

    def _decoder(self, by: Decodes | Joined, latents: Any, frames: Tensor) -> Callable[[Piece], Tensor]:
        """Gives the pixels of pieces of chosen frames, not clamped."""

        def decode(piece: Piece) -> Tensor:
            return by.decode_unclamped(map_latents(lambda x: x[piece.rows], latents), frames[piece])

        return decode

    def _joined(self, by: Decodes | Joined, frames: Tensor, pixels: Callable[[Piece], Tensor]) -> Tensor:
        """All chosen frames, decoded piece by piece without graph."""
        with torch.no_grad():
            return assembled(frames, [(piece, pixels(piece)) for piece in self._pieces(by, frames)])


def _leaves(latents: Any) -> Any:
    """Latents without their graph that collect gradient; where some have a graph, these alone."""
    some = not isinstance(latents, Tensor) and any(x.requires_grad for x in latents.values())
    return map_latents(lambda x: x.detach().requires_grad_(x.requires_grad or not some), latents)
