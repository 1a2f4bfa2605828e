"""Scores of files equal scores of tensors; frames come in chunks; a bad file spoils no other."""

from __future__ import annotations

import json
import re

import pytest
import torch

from vader.cli import main
from vader.errors import UserError
from vader.files.video import write_mp4, write_png_frames
from vader.rewards import AllFrames, FixedFrames, FrameReward, PerSecond, Reward, RewardMix
from vader.scoring.files import CHUNK, find_videos, over_files, prompts_beside, score_files


class Brightness(FrameReward):
    def __init__(self):
        super().__init__()
        self.calls: list[tuple[int, set[str]]] = []

    def score_frames(self, images, prompts):
        self.calls.append((len(images), {prompt.text for prompt in prompts}))
        return images.mean(dim=(1, 2, 3))


class Flicker(Reward):
    """Says itself what it needs."""

    def score(self, clip, prompts):
        if clip.frames.shape[1] < 2:
            raise UserError("reward 'flicker' needs two frames, got 1: set max_frames")
        return -clip.frames.diff(dim=1).abs().mean(dim=(1, 2, 3, 4))


def mix(**rewards):
    return RewardMix(rewards, {name: i + 1.0 for i, name in enumerate(rewards)})


def ramp(frames: int) -> torch.Tensor:
    return torch.linspace(0, 1, frames).mul(255).round().div(255)[:, None, None, None].expand(frames, 3, 8, 8)


def test_scores_equal_the_rewards_own(tmp_path):
    video = torch.rand(5, 3, 8, 8).mul(255).round().div(255)
    write_png_frames(tmp_path / "clip", video)
    both = mix(brightness=Brightness(), flicker=Flicker())
    (score,) = score_files([tmp_path / "clip"], both, ["a prompt"])
    expected = {name: reward(video[None], ["a prompt"]) for name, reward in both.items()}
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


class Together(Reward):
    needs = AllFrames(least=2)

    def score(self, clip, prompts):
        return clip.frames.mean(dim=(1, 2, 3, 4))


def test_too_few_frames_for_a_reward_are_refused_before_a_video_is_opened(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.mp4").write_bytes(b"no video, and never opened")
    line = "reward 'together' needs at least 2 frames together, and of 1 (vader score: --max-frames) it sees too few"
    for shown, most in ((None, 1), (FixedFrames("every_second"), 2)):
        some = RewardMix({"together": Together()}, {"together": 1.0}, shown and {"together": shown})
        with pytest.raises(UserError, match=re.escape(line.replace("of 1", f"of {most}"))):
            score_files([tmp_path / "a.mp4"], some, [""], max_frames=most)
        (score,) = score_files([tmp_path / "a.mp4"], some, [""], max_frames=most + 1)
        assert "no video that can be read" in score.error
    monkeypatch.setattr("vader.rewards.registry.build_mix", lambda sections: mix(together=Together()))
    assert main(["score", str(tmp_path / "a.mp4"), "--reward", "x", "--max-frames", "1"]) == 2
    assert capsys.readouterr().err == f"vader: {line}: score more of them\n"


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
    assert scores[2].error.startswith(f"{tmp_path / 'single'}: reward 'flicker' needs two frames")
    assert scores[0].parts == {}
    assert scores[0].total is None
    assert scores[3].error is None
    assert scores[3].parts["flicker"].mean == pytest.approx(-1 / 3, abs=1e-6)


def test_a_score_that_is_not_finite_is_an_error_of_its_file(tmp_path):
    class Wild(FrameReward):
        def score_frames(self, images, prompts):
            return images.mean(dim=(1, 2, 3)).log()

    write_png_frames(tmp_path / "black", torch.zeros(2, 3, 8, 8))
    write_png_frames(tmp_path / "white", torch.ones(2, 3, 8, 8))
    black, white = score_files([tmp_path / "black", tmp_path / "white"], mix(wild=Wild()), ["", ""])
    assert black.error.endswith("black: the score by reward 'wild' is not finite")
    assert white.total == pytest.approx(0.0, abs=1e-6)


def test_a_clip_reward_says_how_many_frames_it_takes(tmp_path):
    class Pairs(Flicker):
        needs = AllFrames(least=2, multiple=2)

    write_png_frames(tmp_path / "odd", ramp(5))
    write_png_frames(tmp_path / "one", ramp(1))
    (odd,) = score_files([tmp_path / "odd"], mix(pairs=Pairs()), [""])
    assert "reward 'pairs' needs a multiple of 2 frames, got 5" in odd.error
    assert "--max-frames 4" in odd.error
    (even,) = score_files([tmp_path / "odd"], mix(pairs=Pairs()), [""], max_frames=4)
    assert even.error is None
    (one,) = score_files([tmp_path / "one"], mix(pairs=Pairs()), [""])
    assert "reward 'pairs' needs at least 2 frames together, got 1" in one.error


class Times(Reward):
    """The times at which it sees frames, as decimals of one number."""

    needs = PerSecond(2.0, multiple=2)

    def score(self, clip, prompts):
        return (clip.times[0] * 10.0 ** -torch.arange(clip.times.shape[1])).sum()[None]


def test_frames_by_the_second_follow_the_file_s_own_speed(tmp_path):
    write_mp4(tmp_path / "fast.mp4", ramp(17), fps=8)
    write_mp4(tmp_path / "slow.mp4", ramp(17), fps=2)
    write_png_frames(tmp_path / "folder", ramp(17))
    fast, slow, folder = score_files(
        [tmp_path / name for name in ("fast.mp4", "slow.mp4", "folder")], mix(times=Times()), [""] * 3
    )
    assert fast.total == pytest.approx(0 / 1 + (5 / 8) / 10 + (11 / 8) / 100 + (16 / 8) / 1000, abs=1e-5)
    spread = torch.linspace(0, 16, 16).round() / 2  # 17 frames at two a second: the nearest even number
    assert slow.total == pytest.approx((spread * 10.0 ** -torch.arange(16)).sum().item(), abs=1e-5)
    assert "reward 'times' needs frames by the second, and nothing tells how fast these are" in folder.error


def test_prompts_are_checked_before_anything_is_read(tmp_path):
    class Picky(Brightness):
        def check_prompts(self, prompts):
            raise UserError("a prompt is empty")

    reward = Picky()
    with pytest.raises(UserError, match="a prompt is empty"):
        score_files([tmp_path], mix(picky=reward), [""])
    assert reward.calls == []


def test_spread_over_files(tmp_path):
    levels = (0.2, 0.6)
    for level in levels:
        write_png_frames(tmp_path / str(level), torch.full((2, 3, 8, 8), level))
    paths = [tmp_path / str(level) for level in levels] + [tmp_path / "missing"]
    overall = over_files(score_files(paths, mix(brightness=Brightness(), flicker=Flicker()), [""] * 3))
    assert list(overall) == ["brightness", "flicker", "total"]
    assert overall["brightness"].mean == pytest.approx(0.4, abs=1e-3)
    assert overall["brightness"].std == pytest.approx(0.2, abs=1e-3)
    assert over_files(score_files(paths[2:], mix(brightness=Brightness()), [""])) == {}


def test_a_folder_of_videos_stands_for_its_videos(tmp_path):
    for name in ("b.mp4", "a.GIF", "contact-sheet.png", "prompts.json", ".half.mp4"):
        (tmp_path / name).touch()
    write_png_frames(tmp_path / "frames", ramp(2))
    alone, missing = tmp_path / "frames" / "frame-0000.png", tmp_path / "missing.mp4"
    found = find_videos([tmp_path, tmp_path / "frames", alone, missing])
    assert found == [tmp_path / "a.GIF", tmp_path / "b.mp4", tmp_path / "frames", alone, missing]


def test_a_folder_of_folders_stands_for_what_they_hold(tmp_path):
    for name in ("step-0/a.mp4", "step-0/b.mp4", "step-9/a.mp4", "empty/notes.txt", ".hidden/a.mp4", "deep/er/c.mov"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    write_png_frames(tmp_path / "frames", ramp(2))
    (tmp_path / "loop").symlink_to(tmp_path)
    names = ["deep/er/c.mov", "frames", "step-0/a.mp4", "step-0/b.mp4", "step-9/a.mp4"]
    assert find_videos([tmp_path]) == [tmp_path / name for name in names]
    assert find_videos([tmp_path / "empty"]) == [tmp_path / "empty"]


def test_where_nothing_is_there_nothing_is_loaded(tmp_path):
    with pytest.raises(UserError, match=r"^no video at .*gone.mp4: give video files, folders of them"):
        find_videos([tmp_path / "gone.mp4", tmp_path / "gone too"])
    assert find_videos([]) == []


def test_prompts_come_from_the_list_beside_the_videos(tmp_path):
    videos = [tmp_path / "a" / "0.mp4", tmp_path / "a" / "1.mp4", tmp_path / "b" / "0.mp4"]
    (tmp_path / "a").mkdir()
    listed = [{"file": "1.mp4", "prompt": "a dog", "reward": 1.5}, {"file": "gone.mp4", "prompt": "a cat"}]
    (tmp_path / "a" / "prompts.json").write_text(json.dumps(listed))
    assert [prompt.text for prompt in prompts_beside(videos)] == ["", "a dog", ""]


@pytest.mark.parametrize("text", ["", "{}x", '{"a": 1}', "[1]", '[{"file": "a"}]', "\xff"])
def test_a_damaged_list_of_prompts_is_one_line(tmp_path, text):
    (tmp_path / "prompts.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"prompts.json is no list of files and their prompts: remove it"):
        prompts_beside([tmp_path / "a.mp4"])


def test_each_video_needs_its_prompt(tmp_path):
    with pytest.raises(UserError, match="2 videos need as many prompts, got 1"):
        score_files([tmp_path, tmp_path], mix(brightness=Brightness()), ["one"])
