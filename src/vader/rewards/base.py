"""The contract of a reward: a frozen, differentiable map from clips and prompts to one number a video.

Larger is better. A reward says what it `needs` to see, and whether it is `framewise`: a mean over frames, which can be
computed and differentiated a few frames at a time. A mix is a weighted sum that reports each part, and each part sees
its own frames. Bring your own: subclass `FrameReward` or `Reward`, name it `module:Class`.

Shapes: B videos, n frames, N = B * n images. Pixels are float32 `[B, n, 3, H, W]` in [0, 1].
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NoReturn

import torch
from torch import Tensor, nn

from vader.errors import UserError
from vader.nouns import Clip, Condition, Prompt, VideoSize, as_prompts
from vader.rewards.needs import AllFrames, Frames, Needs
from vader.rewards.shaping import Shaping


class BrokenContract(UserError):
    """A reward gave something else than scores. What it gave, to stand after the reward's name."""


def require_scores(found: object, count: int, method: str, noun: str) -> Tensor:
    """What `method` gave for `count` videos or images. Raises `BrokenContract` unless it is a real number for each."""
    if not isinstance(found, Tensor):
        what = "gave None: let it return" if found is None else f"gave a {type(found).__name__}: let it return"
        raise BrokenContract(f"{what} a tensor [{count}] from `{method}`, one number for each {noun}")
    if found.shape != (count,):
        raise BrokenContract(
            f"gave shape {list(found.shape)} from `{method}`: it should be [{count}], one number for each {noun}"
        )
    if not found.is_floating_point():
        kind = str(found.dtype).removeprefix("torch.")
        raise BrokenContract(f"gave {kind} scores from `{method}`: they should be float32, with a gradient")
    return found


class Reward(nn.Module):
    """A differentiable reward.

    Attributes:
        needs: what it must see; set on the class or, where options decide, on the instance.
        framewise: whether it is a mean over frames.
        sensible_range: where real videos score, for plots and targets.
        alone: the videos to which it leads where no other reward stands beside it; empty: none that are known.
    """

    derived_from: ClassVar[tuple[str, ...]] = ("FrameReward", "Reward")  # the public names to derive one's own from
    needs: Needs = AllFrames()
    framewise: bool = False
    sensible_range: tuple[float, float] = (0.0, 1.0)
    alone: ClassVar[str] = ""

    @abstractmethod
    def score(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        """The rewards `[B]` of what it needs of B videos."""

    def forward(self, frames: Tensor, prompts: Sequence[str | Prompt], fps: float = 8.0) -> Tensor:
        """The rewards `[B]` of pixels `[B, F, 3, H, W]`, all frames of videos, `fps` of them a second."""
        count, _, height, width = frames.shape[1:]
        places = self.needs.choose(VideoSize(count, height, width, max(1, round(fps)))).to(frames.device)
        return self.score(Clip.whole(frames, fps).at(places.expand(len(frames), -1)), as_prompts(prompts))

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises `UserError` if a prompt lacks what this reward needs of it. Asked before a run starts."""
        return

    def freeze(self) -> Reward:
        """No parameter takes a gradient and no layer is in training mode: weights are facts, not variables."""
        return self.eval().requires_grad_(False)

    def to_precision(self, dtype: torch.dtype) -> Reward:
        """Runs the big networks in `dtype`, all else in float32; a reward that does not override this stays float32."""
        return self


class FrameReward(Reward):
    """The mean over frames of a score of single images."""

    needs: Needs = Frames(1)
    framewise = True

    @abstractmethod
    def score_frames(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Images `[N, 3, H, W]` in [0, 1] and N prompts -> scores `[N]`."""

    def score(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        return self.score_each(clip, prompts).mean(dim=1)

    def score_each(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        """The score of every frame, `[B, n]`."""
        count = clip.frames.shape[1]
        per_image = [prompt for prompt in prompts for _ in range(count)]
        return self.checked_frames(clip.frames.flatten(0, 1), per_image).unflatten(0, (-1, count))

    def checked_frames(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """`score_frames`, `[N]`. Raises `BrokenContract` if it gives anything but one number an image."""
        return require_scores(self.score_frames(images, prompts), len(images), "score_frames", "image")


class LatentReward(Reward):
    """A reward that looks before the decoder, as a network on noisy latents does (PRFL, arXiv 2511.21541): no pixel is
    decoded for it, and it can judge steps from which no clean picture can be had yet.

    Attributes:
        at: `clean`, the latents that other rewards see decoded; or `noisy`, those at which a policy's last step with
            gradient arrived, at the noise level there (with `refl`: of a step in the midst of the chain).
    """

    at: Literal["clean", "noisy"] = "clean"

    @abstractmethod
    def score_latents(self, latents: Any, time: Tensor, condition: Condition) -> Tensor:
        """The rewards `[B]` of B videos.

        Args:
            latents: in the model's own layout and scale, float32 `[B, ...]`, or several by name.
            time: `[B]`, what the denoiser is told at their noise level.
            condition: what the denoiser is conditioned on (`VideoModel.encode`).
        """

    def score(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        self.refuse_pixels()

    def refuse_pixels(self) -> NoReturn:
        """Raises the `UserError` that it is told where there are pixels alone."""
        raise UserError(
            f"{type(self).__name__} sees latents, and here are pixels: it can be trained on, under rewards "
            "('vader train --dry-run' tries it), but be no metric and score no files"
        )


class SummedReward(Reward):
    """A weighted sum of scores that come from one pass of one network, each reported by itself as `reward/head`.

    Attributes:
        weights: of the heads, by name; a head of weight 0 is only reported.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)

    @abstractmethod
    def score_heads(self, clip: Clip, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """What each head says, `[B]`, by the names of `weights`."""

    def total(self, heads: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum `[B]`."""
        return torch.stack([weight * heads[name] for name, weight in self.weights.items()]).sum(dim=0)

    def score(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        return self.total(self.score_heads(clip, prompts))


class RewardMix(Reward):
    """The weighted sum of named rewards, each of which sees its own frames; `parts` are unweighted.

    Its sensible range is the weighted sum of theirs.
    """

    def __init__(
        self, rewards: Mapping[str, Reward], weights: Mapping[str, float], needs: Mapping[str, Needs] | None = None,
        shaping: Mapping[str, Shaping] | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            needs: what each reward is shown, where that is not its own wish.
            shaping: how the gradient of some is shaped.
        """
        super().__init__()
        self.rewards = nn.ModuleDict(rewards)
        self.weights = dict(weights)
        self.shown = {name: reward.needs for name, reward in rewards.items()} | dict(needs or {})
        self.shaping = dict(shaping or {})
        ends = [sorted(weights[name] * end for end in reward.sensible_range) for name, reward in rewards.items()]
        self.sensible_range = (sum(low for low, _ in ends), sum(high for _, high in ends))

    @property
    def listens(self) -> bool:
        """Whether one of them needs the videos' sound."""
        return any(needs.audio for needs in self.shown.values())

    def items(self) -> Sequence[tuple[str, Reward]]:
        return list(self.rewards.items())  # type: ignore[arg-type]

    @property
    def latent(self) -> dict[str, LatentReward]:
        """Those that look before the decoder."""
        return {name: reward for name, reward in self.items() if isinstance(reward, LatentReward)}

    @property
    def part_names(self) -> list[str]:
        """What is reported: each reward, and behind it the heads that it is a sum of."""
        return [name for one, reward in self.items() for name in (one, *head_names(one, reward))]

    def to_precision(self, dtype: torch.dtype) -> RewardMix:
        for _, reward in self.items():
            reward.to_precision(dtype)
        return self

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        for _, reward in self.items():
            reward.check_prompts(prompts)

    def single(self, name: str) -> RewardMix:
        """One of them as it is in the mix, at weight 1."""
        shaping = {name: self.shaping[name]} if name in self.shaping else None
        return RewardMix({name: self.rewards[name]}, {name: 1.0}, {name: self.shown[name]}, shaping)  # type: ignore[dict-item]

    def check_size(self, size: VideoSize) -> None:
        """Raises `UserError` if a reward would see too few frames of videos of this size, or an uneven number."""
        for name, needs in self.shown.items():
            needs.check(name, size)

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum `[B]` of parts `[B]`, of all rewards or of some; what they are sums of is in them."""
        weighted = [weight * parts[name] for name, weight in self.weights.items() if name in parts]
        return torch.stack(weighted).sum(dim=0)

    def score(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        """All rewards of the same clip, each on all of its frames."""
        return self.total({name: reward.score(clip, prompts) for name, reward in self.items()})


def head_names(name: str, reward: Reward) -> list[str]:
    """Under what names the heads of the reward `name` are reported; most have none."""
    return [f"{name}/{head}" for head in reward.weights] if isinstance(reward, SummedReward) else []


def as_mix(reward: Reward, name: str | None = None) -> RewardMix:
    """A mix as it is, any other reward frozen as the only one of a mix, under its class's name if it is given none."""
    if isinstance(reward, RewardMix):
        return reward
    named = name or type(reward).__name__
    return RewardMix({named: reward.freeze()}, {named: 1.0})
