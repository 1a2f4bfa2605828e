"""A trial of every metric before a run starts: what breaks its contract is told before the base model is sampled.

In go metrics, a scorer and held-out prompts, out comes nothing, or the one `UserError` of the first metric that will
not do. The pixels are random, of the run's size: two videos at once, then as many as an evaluation has.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

import torch

from vader.evaluation.metrics.base import HeldOutMetrics
from vader.nouns import Audio, Clip, Prompt
from vader.plugins import is_built_in
from vader.scoring.scorer import Scorer
from vader.scoring.trial import VIDEOS, random_pixels, random_sound


@torch.no_grad()
def try_metrics(metrics: HeldOutMetrics, scorer: Scorer, prompts: Sequence[Prompt], count: int) -> None:
    """Measures random videos with each metric, once it is prepared.

    Args:
        prompts: that are held out; the first ones are used.
        count: how many videos the smallest evaluation has. A metric of the user's own measures a set of as many.

    Raises:
        UserError: a metric fails, or gives anything but numbers.
    """
    size = scorer.size
    sound = random_sound(scorer) if metrics.audio else None
    audio = sound and Audio(sound.samples.cpu(), sound.rate)
    clip = Clip.whole(random_pixels(size, size.frames), size.fps, audio)
    few = list(islice(cycle(prompts), VIDEOS))
    metrics.per_video(clip, few)
    metrics.over_frames(clip, few)
    own = HeldOutMetrics({name: one for name, one in metrics.metrics.items() if not is_built_in(type(one))})
    if own.of_sets:
        alone = [clip[i % VIDEOS : i % VIDEOS + 1] for i in range(count)]  # the same two again and again
        own.over_set(alone, list(islice(cycle(prompts), count)))
