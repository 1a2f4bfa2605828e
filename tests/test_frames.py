"""Needs: the right frames, ascending, evenly drawn, however the batch is split; each reward of a mix sees its own."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
import torch

from toy_runs import toy_recipe
from toys import Stillness, Warmth
from vader.errors import UserError
from vader.nouns import VideoSize
from vader.rewards import AllFrames, FixedFrames, Frames, PerSecond, RewardMix
from vader.rewards.needs import Needs, seeing
from vader.scoring.choice import evaluation_groups, pieces, training_groups


def size(frames: int, fps: int = 8) -> VideoSize:
    return VideoSize(frames, 8, 8, fps)


def chosen(needs: Needs, frames: int, seed: int, step: int, indices) -> torch.Tensor:
    mix = RewardMix({"warmth": Warmth()}, {"warmth": 1.0}, {"warmth": needs})
    (group,) = training_groups(mix, size(frames), seed, step, indices)
    return group.frames


@pytest.mark.parametrize(
    ("sees", "frames", "expected"),
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
def test_fixed_choices_are_the_same_for_every_video(sees, frames, expected):
    needs = seeing(Frames(1), sees)
    assert needs.choose(size(frames)).tolist() == expected
    assert chosen(needs, frames, 0, 5, [0, 3]).tolist() == [expected, expected]


@pytest.mark.parametrize("count", [1, 3, 5])
def test_random_frames_are_distinct_and_ascending(count):
    found = chosen(Frames(count), 5, 0, 1, range(200))
    assert found.shape == (200, count)
    assert (found.diff(dim=1) > 0).all()
    assert {tuple(frames) for frames in found.tolist()} == set(combinations(range(5), count))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_frame_is_drawn_equally_often(count):
    """So that a frame reward's expected gradient is that of all frames."""
    draws, frames = 1500, 6
    counts = Counter(chosen(Frames(count), frames, 0, 1, range(draws)).flatten().tolist())
    share = count / frames
    spread = (draws * share * (1 - share)) ** 0.5
    assert all(abs(counts[frame] - draws * share) < 5 * spread for frame in range(frames))


def test_all_frames_by_number_are_all_frames():
    assert chosen(Frames(4), 4, 0, 1, range(3)).tolist() == [[0, 1, 2, 3]] * 3


def test_random_frames_are_all_frames_where_nothing_is_trained():
    assert Frames(1).choose(size(5)).tolist() == [0, 1, 2, 3, 4]


def test_a_video_keeps_its_frames_however_the_batch_is_split():
    whole = chosen(Frames(2), 8, 7, 3, range(6))
    parts = [chosen(Frames(2), 8, 7, 3, indices) for indices in ([0, 1, 2, 3], [4], [5])]
    assert torch.equal(whole, torch.cat(parts))


def test_the_frames_are_those_of_the_first_edition():
    """Its numbers for three of 16 frames."""
    assert chosen(Frames(3), 16, 7, 3, [0, 1, 5]).tolist() == [[5, 11, 15], [1, 3, 10], [5, 7, 15]]


def test_videos_steps_and_seeds_draw_for_themselves():
    drawn = [chosen(Frames(4), 16, seed, step, range(4)) for seed, step in ((0, 1), (0, 2), (1, 1))]
    assert len({tuple(row) for frames in drawn for row in frames.tolist()}) > 10


# ---- so many a second ----


@pytest.mark.parametrize(
    ("needs", "frames", "fps", "expected"),
    [
        (PerSecond(2.0), 16, 8, [0, 5, 10, 15]),  # two seconds
        (PerSecond(1.0), 24, 8, [0, 12, 23]),
        (PerSecond(2.0), 16, 16, [0, 15]),  # the same frames, shown faster: one second
        (PerSecond(2.0, least=4), 16, 16, [0, 5, 10, 15]),
        (PerSecond(2.0, multiple=2), 20, 8, [0, 6, 13, 19]),  # five wanted, four are a multiple of two
        (PerSecond(8.0), 4, 8, [0, 1, 2, 3]),
        (PerSecond(30.0), 5, 8, [0, 1, 2, 3, 4]),  # no more than there are
        (PerSecond(30.0, multiple=2), 5, 8, [0, 1, 3, 4]),
    ],
)
def test_frames_by_the_second_are_spread_from_the_first_to_the_last(needs, frames, fps, expected):
    """As VideoReward takes them: round(linspace(0, F - 1, n))."""
    assert needs.choose(size(frames, fps)).tolist() == expected
    assert needs.choose(size(frames, fps), torch.Generator()).tolist() == expected  # no choice is left to chance


# ---- each reward of a mix its own ----


def mix(**needs: Needs) -> RewardMix:
    rewards = {name: Warmth() if name.startswith("w") else Stillness() for name in needs}
    return RewardMix(rewards, dict.fromkeys(needs, 1.0), needs)


def test_rewards_that_see_the_same_frames_are_a_group():
    groups = training_groups(mix(w=Frames(2), s=Frames(2), w2=AllFrames(), s2=AllFrames()), size(5), 0, 1, range(3))
    assert [group.frames.shape for group in groups] == [(3, 2), (3, 5)]
    assert [list(group.framewise) for group in groups] == [["w"], ["w2"]]
    assert [list(group.whole) for group in groups] == [["s"], ["s2"]]
    groups = evaluation_groups(mix(w=Frames(2), s=AllFrames(), w2=FixedFrames((0, 1))), size(5), 3)
    assert [[*group.framewise, *group.whole] for group in groups] == [["w", "s"], ["w2"]]
    assert groups[0].frames.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_a_reward_s_own_needs_hold_where_the_recipe_says_nothing():
    own = RewardMix({"w": Warmth(), "s": Stillness()}, {"w": 1.0, "s": 1.0})
    groups = training_groups(own, size(5), 0, 1, range(3))
    assert [group.frames.shape for group in groups] == [(3, 1), (3, 5)]
    assert seeing(PerSecond(2.0), None) == PerSecond(2.0)
    assert seeing(PerSecond(2.0, least=4, multiple=2, audio=True), 6) == Frames(6, least=4, multiple=2, audio=True)


# ---- pieces ----


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("shape", [(1, 4), (2, 3), (3, 1), (4, 5)])
def test_pieces_cover_everything_once_and_hold_no_more_than_a_chunk(chunk, shape):
    frames = torch.arange(shape[1]).expand(*shape)
    seen = torch.zeros(shape)
    for piece in pieces(frames, [range(i, i + 1) for i in range(shape[1])], chunk):
        seen[piece] += 1
        assert 1 <= seen[piece].numel() <= chunk
    assert torch.equal(seen, torch.ones(shape))


def test_a_window_is_never_split_over_two_pieces():
    windows = [range(3), range(3, 6), range(6, 8)]
    frames = torch.tensor([[0, 1, 2, 3], [0, 4, 5, 7]])
    found = [(piece.rows.start, frames[piece].tolist()[0]) for piece in pieces(frames, windows, 1)]
    assert found == [(0, [0, 1, 2]), (0, [3]), (1, [0]), (1, [4, 5]), (1, [7])]


# ---- mistakes, before a run ----


@pytest.mark.parametrize(("sees", "frames"), [(1, 4), ("all", 1), ("every_second", 2), ((3,), 4)])
def test_a_clip_reward_refuses_too_few_frames(sees, frames):
    few = mix(w=Frames(1), s=seeing(Stillness.needs, sees))
    with pytest.raises(UserError, match=r"reward 's' needs at least 2 frames together, got 1: raise video\.frames"):
        few.check_size(size(frames))


@pytest.mark.parametrize(("sees", "frames"), [(2, 4), ("all", 2), ("first_middle_last", 3), ((0, 3), 4)])
def test_a_clip_reward_takes_enough_frames(sees, frames):
    mix(w=Frames(1), s=seeing(Stillness.needs, sees)).check_size(size(frames))


@pytest.mark.parametrize(("sees", "frames", "counted"), [(3, 4, 3), ("all", 5, 5), (2, 5, 5)])
def test_a_clip_reward_refuses_frames_that_make_no_pairs(sees, frames, counted):
    """Neither in training, nor in evaluation, which scores them all."""
    pairs = AllFrames(least=2, multiple=2)
    with pytest.raises(UserError, match=f"reward 's' needs a multiple of 2 frames, got {counted}: set"):
        mix(s=seeing(pairs, sees)).check_size(size(frames))
    mix(s=seeing(pairs, 2)).check_size(size(4))


def test_a_frame_reward_takes_one_frame():
    RewardMix({"warmth": Warmth()}, {"warmth": 1.0}).check_size(size(1))


@pytest.mark.parametrize(
    ("sees", "message"),
    [
        ("5", "rewards.0.sees is 5 but videos have 4 frames: let it see at most 4, or set it to all"),
        ("0", "expected"),
        ("[]", "rewards.0.sees is an empty list"),
        ("[4]", "rewards.0.sees holds 4 but videos have 4 frames"),
        ("[1, 1]", "name each index once"),
        ("some", "expected"),
    ],
)
def test_frames_that_cannot_be_are_refused_with_the_recipe(sees, message):
    with pytest.raises(UserError) as error:
        toy_recipe(f"rewards.0.sees={sees}")
    assert message in str(error.value)


def test_segments_share_pictures_so_that_an_even_number_of_frames_each_may_be_odd_together():
    pairs = AllFrames(least=2, multiple=2)
    pairs.check("vjepa", VideoSize(22, 32, 32, segments=3))
    with pytest.raises(
        UserError, match=r"got 15: 2 segments of 8 frames are 15 together, so choose others .* let it see 14"
    ):
        pairs.check("vjepa", VideoSize(15, 32, 32, segments=2))
    with pytest.raises(UserError, match=r"set video\.frames or the reward's key sees to one, as 14"):
        pairs.check("vjepa", VideoSize(15, 32, 32))
