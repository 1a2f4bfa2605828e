"""Mixes are exactly their weighted parts; what a reward needs to see is checked before a run."""

from __future__ import annotations

import torch

from vader.nouns import Clip
from vader.rewards import FrameReward, Reward, RewardMix


class Redness(FrameReward):
    def score_frames(self, images, prompts):
        return images[:, 0].mean(dim=(1, 2)) + torch.tensor([float(len(prompt.text)) for prompt in prompts])


class Stillness(Reward):
    def score(self, clip, prompts):
        return -clip.frames.diff(dim=1).abs().mean(dim=(1, 2, 3, 4))


def test_frame_reward_pairs_frames_with_their_videos_prompt():
    frames = torch.rand(2, 3, 3, 4, 4)
    expected = frames[:, :, 0].mean(dim=(1, 2, 3)) + torch.tensor([1.0, 4.0])
    torch.testing.assert_close(Redness()(frames, ["a", "long"]), expected)


def test_mix_is_the_weighted_sum_of_its_parts():
    frames, prompts = torch.rand(2, 3, 3, 4, 4), ["a", "b"]
    mix = RewardMix({"red": Redness(), "still": Stillness()}, {"red": 2.0, "still": -0.5})
    parts = {name: reward(frames, prompts) for name, reward in mix.items()}
    torch.testing.assert_close(mix(frames, prompts), 2 * parts["red"] - 0.5 * parts["still"])
    assert torch.equal(mix.total(parts), mix(frames, prompts))


def test_a_plain_call_is_a_score_of_the_whole_clip_at_its_seconds():
    class Late(Reward):
        def score(self, clip, prompts):
            return clip.times.amax(dim=1)

    frames = torch.rand(2, 5, 3, 4, 4)
    assert Late()(frames, ["a", "b"], fps=4.0).tolist() == [1.0, 1.0]
    assert torch.equal(Stillness()(frames, ["a", "b"]), Stillness().score(Clip.whole(frames, 8.0), []))


def test_precision_is_passed_on_and_foreign_rewards_stay_float32():
    class Scaled(Redness):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

    class Halved(Scaled):
        def to_precision(self, dtype):
            return self.to(dtype)

    mix = RewardMix({"a": Scaled(), "b": Halved()}, {"a": 1.0, "b": 1.0}).to_precision(torch.bfloat16)
    assert mix.rewards["a"].scale.dtype == torch.float32
    assert mix.rewards["b"].scale.dtype == torch.bfloat16
