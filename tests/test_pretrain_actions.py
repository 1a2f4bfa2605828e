"""The tiny world's action classifier: true labels, and files that the reward loads."""

from __future__ import annotations

import torch

from vader.files.hub import tiny_weights
from vader.nouns import as_prompts
from vader.pretrain import actions
from vader.pretrain.loop import Schedule
from vader.rewards import load_reward
from vader.tinyworld.judge import judge


def test_labels_are_what_the_judge_sees():
    clips, classes = actions.labelled_clips(64, torch.Generator().manual_seed(0))
    assert clips.shape == (64, 8, 3, 32, 32)
    seen = judge(clips).motion
    assert torch.equal(torch.where(seen < 0, actions.CLASSES.index("still"), seen), classes)
    assert set(classes.tolist()) == set(range(5))
    still = classes == 4
    torch.testing.assert_close(clips[still], clips[still][:, :1].expand_as(clips[still]))


def test_a_few_steps_write_a_classifier_that_the_reward_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(actions, "SCHEDULE", Schedule(steps=3, lr=1e-3, warmup=1, cooldown=1))
    monkeypatch.setattr(actions, "BATCH", 8)
    monkeypatch.setattr(actions, "HELD_OUT", 16)
    found = actions.build(tmp_path / "actions", tmp_path, tiny_weights("modelscope/vae"))
    assert found.keys() == {"motion_accuracy"}
    assert (tmp_path / "actions" / "model.safetensors").stat().st_size < 3e6
    reward = load_reward("action", checkpoint=str(tmp_path / "actions"))
    prompts = as_prompts(["a red ring moving left over sea", "a red ring moving up over sea"])
    assert [reward.target(prompt) for prompt in prompts] == [0, 2]
    assert reward(torch.rand(2, 8, 3, 32, 32), prompts).max() < 0
