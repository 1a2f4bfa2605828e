"""Scores of files equal scores of tensors; frames come in chunks; a bad file spoils no other."""

from __future__ import annotations

import pytest
import torch

from vader.errors import UserError
from vader.evaluation.scoring import CHUNK, score_files
from vader.evaluation.video_io import write_mp4, write_png_frames
from vader.rewards.base import ClipReward, FrameReward, RewardMix


class Brightness(FrameReward):
    def __init__(self):
        super().__init__()
        self.calls: list[tuple[int, set[str]]] = []

    def score_frames(self, images, prompts):
        self.calls.append((len(images), set(prompts)))
        return images.mean(dim=(1, 2, 3))


class Flicker(ClipReward):
    def forward(self, frames, prompts):
        if frames.shape[1] < 2:
            raise UserError("reward 'flicker' needs two frames, got 1: set max_frames")
        return -frames.diff(dim=1).abs().mean(dim=(1, 2, 3, 4))


def mix(**rewards):
    return RewardMix(rewards, {name: i + 1.0 for i, name in enumerate(rewards)})


def ramp(frames: int) -> torch.Tensor:
    return torch.linspace(0, 1, frames).mul(255).round().div(255)[:, None, None, None].expand(frames, 3, 8, 8)


def test_scores_equal_the_rewards_own(tmp_path):
    video = torch.rand(5, 3, 8, 8).mul(255).round().div(255)
    write_png_frames(tmp_path / "clip", video)
    both = mix(brightness=Brightness(), flicker=Flicker())
    (score,) = score_files([tmp_path / "clip"], both, ["a prompt"])
    expected = both.parts(video[None], ["a prompt"])
    assert score.error is None
    assert score.frames == 5
    assert list(score.parts) == ["brightness", "flicker"]
    assert score.parts["brightness"].mean == pytest.approx(expected["brightness"].item(), abs=1e-6)
    assert score.parts["brightness"].std == pytest.approx(video.mean(dim=(1, 2, 3)).std(correction=0).item(), abs=1e-6)
    assert score.parts["flicker"].mean == pytest.approx(expected["flicker"].item(), abs=1e-6)
    assert score.parts["flicker"].std is None
    assert score.total == pytest.approx(both.total(expected).item(), abs=1e-6)


def test_long_videos_come_in_chunks_with_their_prompt(tmp_path):
    write_mp4(tmp_path / "long.mp4", ramp(2 * CHUNK + 3), fps=8)
    reward = Brightness()
    (score,) = score_files([tmp_path / "long.mp4"], mix(brightness=reward), ["dawn"])
    assert reward.calls == [(CHUNK, {"dawn"}), (CHUNK, {"dawn"}), (3, {"dawn"})]
    assert score.frames == 2 * CHUNK + 3
    assert score.parts["brightness"].mean == pytest.approx(0.5, abs=0.01)


def test_max_frames(tmp_path):
    write_png_frames(tmp_path / "clip", ramp(9))
    (score,) = score_files([tmp_path / "clip"], mix(brightness=Brightness()), [""], max_frames=3)
    assert score.frames == 3
    assert score.parts["brightness"].mean == pytest.approx(ramp(9)[[1, 4, 7]].mean().item(), abs=1e-6)


def test_bad_files_are_recorded_and_the_others_scored(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    write_png_frames(tmp_path / "single", ramp(1))
    write_png_frames(tmp_path / "good", ramp(4))
    names, seen = ["broken.mp4", "missing.gif", "single", "good"], []
    scores = score_files([tmp_path / n for n in names], mix(flicker=Flicker()), [""] * 4, on_score=seen.append)
    assert seen == scores
    assert [score.path.name for score in scores] == names
    assert "no video that can be read" in scores[0].error
    assert "no video at" in scores[1].error
    assert "needs two frames" in scores[2].error
    assert scores[0].parts == {}
    assert scores[0].total is None
    assert scores[3].error is None
    assert scores[3].parts["flicker"].mean == pytest.approx(-1 / 3, abs=1e-6)


def test_each_video_needs_its_prompt(tmp_path):
    with pytest.raises(UserError, match="2 videos need as many prompts, got 1"):
        score_files([tmp_path, tmp_path], mix(brightness=Brightness()), ["one"])
