"""The tiny world's judge as a rater: what the ground truth prefers of each pair, as the answers of one person.

In goes a study's folder, out comes a sheet like that of any rater. It looks at the files that people see, answers the
attention checks among the pairs, and does not know which system made what.

Of two videos it prefers by quality (`fidelity`) the one that is not damaged, as far as eyes see damage, or, where both
or neither are, the more vivid one; colours beyond the world's fullest count as these. By text (`alignment`) it prefers
the one with more of colour, shape, background and motion as the prompt says. It is not asked how things move.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vader.evaluation.metrics.gold import ATTRIBUTES
from vader.files.video import read_video
from vader.preference.answers import Answer, Sheet
from vader.preference.study import VIDEOS, Item, Study
from vader.tinyworld.judge import judge_prompts, wanted

RATER = "judge"
NOTICED = 0.05  # smaller differences of vividness are none


def can_judge(study: Study) -> bool:
    """Whether all prompts are of the tiny world."""
    try:
        wanted([item.prompt for item in study.items()])
    except ValueError:
        return False
    return True


def judge_sheet(study: Study, folder: Path) -> Sheet:
    """The judge's answers about every pair of the study in a folder.

    Raises:
        UserError: a video cannot be read.
        ValueError: a prompt is not of the tiny world.
    """
    answers = tuple(answer for item in study.items() for answer in _answers(item, folder / VIDEOS))
    return Sheet(study=study.id, rater=RATER, name="the tiny world's judge", answers=answers)


def _answers(item: Item, videos: Path) -> list[Answer]:
    """What it says about a pair, the first video of which stands on the left."""
    pair = torch.stack([read_video(videos / f"{video}.mp4") for video in item.videos])
    seen = judge_prompts(pair, [item.prompt] * len(pair))
    preferred = {"fidelity": _better_made(seen), "alignment": _closer_to_text(seen)}
    return [
        Answer(item=item.id, question=question, choice=choice, left=item.videos[0])
        for question, choice in preferred.items()
    ]


Choice = Literal["left", "tie", "right"]


def _better_made(seen: Mapping[str, Tensor]) -> Choice:
    whole = _larger(1 - seen["damaged"])
    return _larger(seen["vividness"].clamp(max=1.0)) if whole == "tie" else whole


def _closer_to_text(seen: Mapping[str, Tensor]) -> Choice:
    return _larger(torch.stack([seen[name] for name in ATTRIBUTES]).sum(dim=0))


def _larger(pair: Tensor) -> Choice:
    """Which of two numbers `[2]` is larger by more than is noticed."""
    left, right = pair.tolist()
    if abs(left - right) <= NOTICED:
        return "tie"
    return "left" if left > right else "right"
