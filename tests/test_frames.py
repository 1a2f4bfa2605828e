"""Frame subsampling: the right frames, ascending, evenly drawn, the same however the batch is split."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
import torch

from toy_runs import toy_recipe
from toys import Stillness, Warmth
from vader.errors import UserError
from vader.recipe import FramesSection
from vader.rewards.base import RewardMix
from vader.scoring.frames import check_frames, choose_frames, fixed_frames


@pytest.mark.parametrize(
    ("sample", "frames", "expected"),
    [
        ("all", 4, [0, 1, 2, 3]),
        ("all", 1, [0]),
        ("first_middle_last", 8, [0, 4, 7]),
        ("first_middle_last", 3, [0, 1, 2]),
        ("every_second", 8, [0, 2, 4, 6]),
        ("every_second", 7, [0, 2, 4, 6]),
        ("every_second", 1, [0]),
        ((6, 1, 3), 8, [1, 3, 6]),
    ],
)
def test_fixed_choices_are_the_same_for_every_video(sample, frames, expected):
    assert fixed_frames(sample, frames) == expected
    assert choose_frames(FramesSection(sample=sample), frames, 0, 5, [0, 3]).tolist() == [expected, expected]


@pytest.mark.parametrize("count", [1, 3, 5])
def test_random_frames_are_distinct_and_ascending(count):
    chosen = choose_frames(FramesSection(sample=count), 5, 0, 1, range(200))
    assert chosen.shape == (200, count)
    assert (chosen.diff(dim=1) > 0).all()
    assert {tuple(frames) for frames in chosen.tolist()} == set(combinations(range(5), count))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_frame_is_drawn_equally_often(count):
    """So that a frame reward's expected gradient is that of all frames."""
    draws, frames = 1500, 6
    counts = Counter(choose_frames(FramesSection(sample=count), frames, 0, 1, range(draws)).flatten().tolist())
    share = count / frames
    spread = (draws * share * (1 - share)) ** 0.5
    assert all(abs(counts[frame] - draws * share) < 5 * spread for frame in range(frames))


def test_all_frames_by_number_are_all_frames():
    assert choose_frames(FramesSection(sample=4), 4, 0, 1, range(3)).tolist() == [[0, 1, 2, 3]] * 3


def test_a_video_keeps_its_frames_however_the_batch_is_split():
    section = FramesSection(sample=2)
    whole = choose_frames(section, 8, 7, 3, range(6))
    parts = [choose_frames(section, 8, 7, 3, indices) for indices in ([0, 1, 2, 3], [4], [5])]
    assert torch.equal(whole, torch.cat(parts))


def test_videos_steps_and_seeds_draw_for_themselves():
    section = FramesSection(sample=4)
    drawn = [choose_frames(section, 16, seed, step, range(4)) for seed, step in ((0, 1), (0, 2), (1, 1))]
    assert len({tuple(row) for frames in drawn for row in frames.tolist()}) > 10


CLIP = RewardMix({"warmth": Warmth(), "stillness": Stillness()}, {"warmth": 1.0, "stillness": 1.0})


@pytest.mark.parametrize(("sample", "frames"), [(1, 4), ("all", 1), ("every_second", 2), ((3,), 4)])
def test_a_clip_reward_refuses_too_few_frames(sample, frames):
    with pytest.raises(UserError, match="reward 'stillness' needs at least 2 frames together, got 1: raise"):
        check_frames(FramesSection(sample=sample), frames, CLIP)


@pytest.mark.parametrize(("sample", "frames"), [(2, 4), ("all", 2), ("first_middle_last", 3), ((0, 3), 4)])
def test_a_clip_reward_takes_enough_frames(sample, frames):
    check_frames(FramesSection(sample=sample), frames, CLIP)


class Pairs(Stillness):
    frame_multiple = 2


@pytest.mark.parametrize(("sample", "frames", "counted"), [(3, 4, 3), ("all", 5, 5), (2, 5, 5)])
def test_a_clip_reward_refuses_frames_that_make_no_pairs(sample, frames, counted):
    """Neither in training, nor in evaluation, which scores them all."""
    mix = RewardMix({"pairs": Pairs()}, {"pairs": 1.0})
    with pytest.raises(UserError, match=f"reward 'pairs' needs a multiple of 2 frames, got {counted}: set"):
        check_frames(FramesSection(sample=sample), frames, mix)
    check_frames(FramesSection(sample=2), 4, mix)


def test_a_frame_reward_takes_one_frame():
    check_frames(FramesSection(sample=1), 1, RewardMix({"warmth": Warmth()}, {"warmth": 1.0}))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("5", "algorithm.frames.sample is 5 but video.frames is 4: sample at most 4, or set it to all"),
        ("0", "expected"),
        ("[]", "is an empty list"),
        ("[4]", "algorithm.frames.sample holds 4 but video.frames is 4"),
        ("[1, 1]", "name each index once"),
        ("some", "expected"),
    ],
)
def test_frames_that_cannot_be_are_refused_with_the_recipe(sample, message):
    with pytest.raises(UserError) as error:
        toy_recipe(f"algorithm.frames.sample={sample}")
    assert message in str(error.value)
