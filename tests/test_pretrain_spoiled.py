"""Spoiled clips begin as they were, and then are what their name says and nothing else."""

from __future__ import annotations

import pytest
import torch

from vader.pretrain.spoiled import spoiled
from vader.tinyworld.judge import judge
from vader.tinyworld.scenes import render, sample_scenes


@pytest.fixture(scope="module")
def scenes():
    return sample_scenes(40, torch.Generator().manual_seed(8)).with_vividness(0.8)


@pytest.fixture(scope="module")
def clips(scenes):
    return spoiled(scenes, render, 4, torch.Generator().manual_seed(9))


def test_the_beginning_is_untouched_and_the_rest_is_not(scenes, clips):
    right = render(scenes)
    for clip in clips.values():
        assert torch.equal(clip[:, :4], right[:, :4])
        assert (clip - right)[:, 4:].flatten(1).abs().amax(dim=1).min() > 0.02
        assert 0 <= clip.min() <= clip.max() <= 1


@pytest.mark.parametrize("name", ["color", "shape", "background"])
def test_the_judge_sees_one_attribute_change_and_no_other(scenes, clips, name):
    verdict = judge(clips[name][:, 4:])
    for attribute in ("color", "shape", "background"):
        same = (getattr(verdict, attribute) == getattr(scenes, attribute)).float().mean()
        assert same < 0.1 if attribute == name else same > 0.9


def test_dull_is_dull_and_blur_and_noise_are_even(scenes, clips):
    right = render(scenes)
    assert judge(clips["dull"][:, 4:]).vividness.max() < 0.1
    for name in ("blurred", "noisy"):
        assert (clips[name] - right).mean().abs() < 5e-3
    assert clips["blurred"][:, 4:].diff(dim=-1).abs().mean() < right[:, 4:].diff(dim=-1).abs().mean()
    assert (clips["noisy"] - right)[:, 4:].std() == pytest.approx(0.075, abs=0.01)
