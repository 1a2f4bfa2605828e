"""A trial of every reward before a run starts: what breaks its contract is told before the base model is sampled.

In go a scorer and the run's prompts, out comes nothing, or the one `UserError` of the first reward that will not do.
The pixels are random, of the run's size, on the model's device: two videos at once without gradient, one with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import torch
from torch import Tensor

from vader.models.joined import Joined
from vader.nouns import Audio, Clip, Prompt, VideoSize
from vader.randomness import generator
from vader.rewards.base import Reward
from vader.rewards.contract import try_latent_reward, try_reward
from vader.sampling.noise import Noise
from vader.scoring.choice import Group, training_groups
from vader.scoring.scorer import Scorer

VIDEOS = 2  # enough to see that one depends on the other


def try_rewards(scorer: Scorer, prompts: Sequence[Prompt], gradient: bool) -> None:
    """Raises `UserError` as `vader.rewards.contract.try_reward`, for each reward of the mix on frames as in training.

    Args:
        prompts: of the run; the first two are used.
        gradient: whether the rewards are to be differentiated.
    """
    few = list(islice(cycle(prompts), VIDEOS))
    for group in training_groups(scorer.mix, scorer.size, 0, 0, range(VIDEOS), scorer.model.device):
        for name, reward, frames in _shown(group, scorer.chunk):
            try_reward(name, reward, _clip(scorer, group, frames), few, gradient)
    for name, latent in scorer.mix.latent.items():
        model = scorer.model
        assert not isinstance(model, Joined)  # `check_latent` has refused it
        noise = Noise(model.noise_shape(scorer.size), 0, "trial", 0, range(VIDEOS), model.device)
        time = torch.full((VIDEOS,), scorer.end_time, device=model.device)
        with torch.no_grad():
            condition = model.encode(few, scorer.size)
        try_latent_reward(name, latent, noise.draw("latents"), time, condition, gradient)


def _shown(group: Group, chunk: int) -> Iterator[tuple[str, Reward, int]]:
    """Each reward with the number of frames of a video that it is shown at once."""
    together = group.frames.shape[1]
    yield from ((name, reward, min(together, max(1, chunk // VIDEOS))) for name, reward in group.framewise.items())
    yield from ((name, reward, together) for name, reward in group.whole.items())


def _clip(scorer: Scorer, group: Group, frames: int) -> Clip:
    """Random pixels, and where it is listened to the sound of random latents."""
    pixels = random_pixels(scorer.size, frames).to(scorer.model.device)
    return Clip(pixels, group.times[:, :frames], random_sound(scorer) if group.heard else None)


def random_pixels(size: VideoSize, frames: int) -> Tensor:
    """Two videos `[2, frames, 3, H, W]` on the CPU, the second one darker."""
    pixels = torch.rand((VIDEOS, frames, 3, size.height, size.width), generator=generator(0, "trial"))
    return pixels / torch.arange(1, VIDEOS + 1).view(-1, 1, 1, 1, 1)


@torch.no_grad()
def random_sound(scorer: Scorer) -> Audio:
    """Of two videos, on the model's device."""
    model = scorer.model
    noise = Noise(model.noise_shape(scorer.size), 0, "trial", 0, range(VIDEOS), model.device)
    return model.decode_audio(noise.draw("latents"))
