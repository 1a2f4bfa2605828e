"""Drift and segments: figures by hand on videos whose change is known, curves in a run, its report and comparison."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from torch import Tensor

from test_chain import long_recipe
from vader.errors import UserError
from vader.evaluation.compare import comparison_page, read_entries
from vader.evaluation.metrics.base import HeldOutMetrics, Metric
from vader.evaluation.metrics.drift import Drift, sharpness
from vader.evaluation.metrics.registry import build_metrics
from vader.evaluation.report import report_page
from vader.nouns import Clip, Prompt, VideoSize
from vader.plugins import Part
from vader.runs.reader import read_run
from vader.tinyworld.judge import judge_prompts
from vader.tinyworld.scenes import captions, render, sample_scenes
from vader.training.trainer import train

LONG = VideoSize(frames=10, height=16, width=16, fps=4, segments=3)  # seams at 3 and 6
PROMPTS = [Prompt("a"), Prompt("b")]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def measured(frames: Tensor, size: VideoSize = LONG) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Figures of each video, and curves over its frames."""
    metrics = HeldOutMetrics({"drift": Drift()})
    prompts = PROMPTS[: len(frames)]
    metrics, _ = metrics.suited(prompts, size)
    clip = Clip.whole(frames, size.fps)
    return metrics.per_video(clip, prompts), metrics.over_frames(clip, prompts)


def test_a_still_video_drifts_nowhere():
    figures, curves = measured(noise(2, 1, 3, 16, 16).expand(-1, 10, -1, -1, -1).contiguous())
    for name in ("color", "sharpness", "saturation"):
        torch.testing.assert_close(figures[f"drift/{name}"], torch.zeros(2), atol=1e-6, rtol=0)
    assert curves["drift/color"].abs().max() < 1e-6
    assert curves["drift/jump"].abs().max() < 1e-6


def test_colour_is_the_distance_of_mean_colours():
    frames = torch.full((1, 10, 3, 16, 16), 0.2)
    frames[:, 7:, 0] += 0.3  # red alone, in the last segment's own frames
    figures, curves = measured(frames)
    by_hand = [0.0] * 7 + [0.3 / math.sqrt(3)] * 3
    torch.testing.assert_close(curves["drift/color"][0], torch.tensor(by_hand))
    assert figures["drift/color"].item() == pytest.approx(0.75 * 0.3 / math.sqrt(3))  # three of its four frames


def test_saturation_and_sharpness_are_shares_of_the_beginnings():
    colours = torch.tensor([0.8, 0.2, 0.2]).view(3, 1, 1).expand(10, 3, 16, 16).clone()
    colours[6:] = torch.tensor([0.5, 0.2, 0.2]).view(3, 1, 1)
    figures, curves = measured(colours[None])
    assert curves["drift/saturation"][0, [0, 9]].tolist() == pytest.approx([0.6, 0.3])
    assert figures["drift/saturation"].item() == pytest.approx(-0.5)
    sharp = noise(1, 10, 3, 16, 16)
    sharp[:, 6:] = 0.5 + 0.25 * (sharp[:, 6:] - 0.5)
    assert measured(sharp)[0]["drift/sharpness"].item() == pytest.approx(-0.75, abs=0.05)


def test_sharpness_of_a_single_bright_pixel():
    frames = torch.zeros(1, 1, 3, 5, 5)
    frames[..., 2, 2] = 1.0
    assert sharpness(frames).item() == pytest.approx((4 + 4 * 1) / 9)  # of the nine inner pixels: itself, four beside


def test_a_seam_is_seen_where_the_jump_is():
    steps = torch.zeros(10)
    steps[1:] = 0.01
    steps[[4, 7]] = 0.05  # the first frames made after seams 3 and 6
    frames = steps.cumsum(0).view(1, 10, 1, 1, 1).expand(1, 10, 3, 16, 16).contiguous()
    figures, curves = measured(frames)
    assert figures["drift/seam"].item() == pytest.approx(5.0, rel=1e-3)
    torch.testing.assert_close(curves["drift/jump"][0], steps, atol=1e-6, rtol=0)
    assert "drift/seam" not in measured(frames, VideoSize(10, 16, 16))[0]


def test_content_is_measured_by_a_clip():
    metrics, _ = build_metrics([Part.model_validate({"name": "drift", "checkpoint": "tiny"})], 4).suited(PROMPTS, LONG)
    metrics.prepare(torch.device("cpu"), torch.float32)
    scenes = sample_scenes(2, torch.Generator().manual_seed(1))
    videos = render(scenes)[:, :1].expand(-1, 10, -1, -1, -1).clone()
    videos[1, 5:] = videos[0, 5:]  # the second video becomes the first
    clip = Clip.whole(videos, 4)
    figures, curves = metrics.per_video(clip, PROMPTS), metrics.over_frames(clip, PROMPTS)
    assert curves["drift/content"][0].abs().max() < 1e-5
    assert curves["drift/content"][1, :5].abs().max() < 1e-5
    assert curves["drift/content"][1, 5:].min() > 0.01
    assert figures["drift/content"][1] == pytest.approx(curves["drift/content"][1, 5].item(), rel=1e-4)


def test_a_video_of_two_frames_has_no_end():
    with pytest.raises(UserError, match="2 frames are too few"):
        HeldOutMetrics({"drift": Drift()}).suited(PROMPTS, VideoSize(2, 8, 8))


# ---- segments ----


def segments(**of: object) -> HeldOutMetrics:
    return build_metrics([Part.model_validate({"name": "segments", "of": of})], 4)


def test_each_segment_is_judged_as_a_video_of_its_own():
    size = VideoSize(frames=22, height=32, width=32, fps=8, segments=3)
    scenes = [sample_scenes(2, torch.Generator().manual_seed(seed)) for seed in (1, 2, 3)]
    made = [render(some) for some in scenes]
    videos = torch.cat([made[0], made[1][:, 1:], made[2][:, 1:]], dim=1)
    prompts = captions(scenes[0])
    metrics, _ = segments(name="judge").suited(prompts, size)
    clip = Clip.whole(videos, 8)
    figures, curves = metrics.per_video(clip, prompts), metrics.over_frames(clip, prompts)
    for number in range(3):
        frames = size.frames_of(number)
        expected = judge_prompts(videos[:, frames.start : frames.stop], prompts)
        assert list(expected) == [name.split("/")[2] for name in figures if name.endswith(f"/{number + 1}")]
        for name, values in expected.items():
            torch.testing.assert_close(figures[f"segments/judge/{name}/{number + 1}"], values.float())
            own = curves[f"segments/judge/{name}"][:, frames.stop - 1]
            torch.testing.assert_close(own, values.float())


def test_segments_ask_for_segments():
    with pytest.raises(UserError, match="is given a single one"):
        segments(name="judge").suited(PROMPTS, VideoSize(8, 32, 32))
    with pytest.raises(UserError, match="which measures sets of videos or sound"):
        segments(name="diversity")
    with pytest.raises(UserError, match="unknown metric"):
        segments(name="juge")


# ---- the contract ----


class Wrong(Metric):
    def per_video(self, clip, prompts):
        return clip.frames.mean(dim=(1, 2, 3, 4))

    def over_frames(self, clip, prompts):
        return {"curve": clip.frames.mean(dim=(2, 3, 4))[:, 1:]}


def test_a_curve_has_a_number_for_each_frame():
    clip = Clip.whole(noise(2, 4, 3, 8, 8), 4)
    with pytest.raises(UserError, match=r"metric 'wrong/curve' gave shape \[2, 3\] from `over_frames`"):
        HeldOutMetrics({"wrong": Wrong()}).over_frames(clip, PROMPTS)


# ---- on the pages ----


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train(long_recipe("evaluation.metrics=[{name: drift}]", "train.steps=2", "evaluation.every=2"), folder)
    return folder / "toy"


def test_curves_are_means_over_videos(long_run):
    evaluation = read_run(long_run).evaluations[-1]
    lines = (long_run / "evaluations" / "step-000002.jsonl").read_text().splitlines()
    each = torch.tensor([json.loads(line)["curves"]["drift/jump"] for line in lines], dtype=torch.float64)
    assert each.shape == (3, 10)
    assert evaluation.curves["drift/jump"] == pytest.approx(each.mean(dim=0).tolist())
    assert list(evaluation.curves) == ["drift/color", "drift/sharpness", "drift/saturation", "drift/jump"]


def test_report_and_comparison_draw_them_with_their_seams(long_run, tmp_path):
    page = report_page(read_run(long_run))
    assert "Along the video" in page
    assert "10 frames in 3 segments of 4" in page
    assert page.count('class="seam"') == 2 * 4  # two seams in each of four charts
    shutil.copytree(long_run, tmp_path / "twin")
    compared = comparison_page(read_entries([long_run, tmp_path / "twin"]))
    assert compared.count('class="seam"') == 2 * 4
