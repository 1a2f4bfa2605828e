"""Mixes are exactly their weighted parts."""

from __future__ import annotations

import torch

from vader.rewards.base import ClipReward, FrameReward, RewardMix


class Redness(FrameReward):
    def score_frames(self, images, prompts):
        return images[:, 0].mean(dim=(1, 2)) + torch.tensor([float(len(prompt)) for prompt in prompts])


class Stillness(ClipReward):
    def forward(self, frames, prompts):
        return -frames.diff(dim=1).abs().mean(dim=(1, 2, 3, 4))


def test_frame_reward_pairs_frames_with_their_videos_prompt():
    frames = torch.rand(2, 3, 3, 4, 4)
    expected = frames[:, :, 0].mean(dim=(1, 2, 3)) + torch.tensor([1.0, 4.0])
    torch.testing.assert_close(Redness()(frames, ["a", "long"]), expected)


def test_mix_is_the_weighted_sum_of_its_parts():
    frames, prompts = torch.rand(2, 3, 3, 4, 4), ["a", "b"]
    mix = RewardMix({"red": Redness(), "still": Stillness()}, {"red": 2.0, "still": -0.5})
    parts = mix.parts(frames, prompts)
    assert torch.equal(parts["still"], Stillness()(frames, prompts))
    torch.testing.assert_close(mix(frames, prompts), 2 * parts["red"] - 0.5 * parts["still"])


def test_a_mix_is_framewise_if_all_its_parts_are():
    assert RewardMix({"red": Redness()}, {"red": 1.0}).framewise
    assert not RewardMix({"red": Redness(), "still": Stillness()}, {"red": 1.0, "still": 1.0}).framewise


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
