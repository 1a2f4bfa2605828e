"""Metrics: figures by hand, flat names, rewards and users' classes as metrics, and that every process is told them."""

from __future__ import annotations

import pytest
import torch

from vader.cli import main
from vader.engine.collectives import even_shares
from vader.errors import UserError
from vader.evaluation.guards.rewards import HeldOutReward
from vader.evaluation.metrics.base import HeldOutMetrics, Metric
from vader.evaluation.metrics.diversity import Diversity, pixel_distance, reduced
from vader.evaluation.metrics.drift import Drift
from vader.evaluation.metrics.gold import gold
from vader.evaluation.metrics.registry import build_metrics, metric_names
from vader.evaluation.metrics.reward import RewardMetric
from vader.evaluation.metrics.segments import Segments
from vader.nouns import Clip, Prompt, VideoSize
from vader.plugins import Part
from vader.rewards.base import FrameReward, Reward
from vader.rewards.needs import AllFrames
from vader.tinyworld.scenes import captions, render, sample_scenes

SIZE = VideoSize(8, 32, 32)


def clip_of(levels, size: int = 8) -> Clip:
    """Grey videos of two frames."""
    return Clip.whole(torch.stack([torch.full((2, 3, size, size), level) for level in levels]), fps=8)


def build(*parts: dict, chunk: int = 4) -> HeldOutMetrics:
    return build_metrics([Part.model_validate(part) for part in parts], chunk)


# ---- gold and judge ----


@pytest.mark.parametrize(
    ("task", "expected"), [("looks", 0.5 * 0.75), ("motion", 1.0), ("removal", 1.0), ("consistency", 0.75)]
)
def test_gold_belongs_to_the_task(task, expected):
    judged = {"vividness": 0.5, "color": 1.0, "shape": 0.0, "background": 1.0, "motion": 1.0}
    both = {name: torch.tensor([value, value]) for name, value in judged.items()}
    found = gold({**both, "damaged": torch.tensor([0.0, 1.0])}, task)
    assert found.tolist() == pytest.approx([expected, 0.0])


def test_colours_beyond_the_world_s_are_worth_no_more():
    judged = {name: torch.ones(1) for name in ("color", "shape", "background", "motion")}
    assert gold({"vividness": torch.tensor([1.1]), "damaged": torch.zeros(1), **judged}, "looks").item() == 1.0


def test_judge_and_gold_of_true_scenes():
    scenes = sample_scenes(3, torch.Generator().manual_seed(0)).with_vividness(1.0)
    prompts, clip = captions(scenes), Clip.whole(render(scenes), fps=8)
    metrics = build({"name": "judge"}, {"name": "gold"}, {"name": "gold", "task": "removal"})
    suited, words = metrics.suited(prompts, SIZE)
    assert (list(suited.metrics), words) == (["judge", "gold", "gold_2"], [])
    found = metrics.per_video(clip, prompts)
    assert list(found) == [
        *(f"judge/{n}" for n in ("vividness", "color", "shape", "background", "motion", "damage", "damaged")),
        "gold",
        "gold_2",
    ]
    assert found["judge/color"].tolist() == [1.0] * 3
    assert found["gold"].tolist() == pytest.approx([1.0] * 3, abs=0.05)
    assert found["gold_2"].tolist() == [0.0] * 3
    assert found["judge/damage"].tolist() == found["judge/damaged"].tolist() == [0.0] * 3


def test_a_metric_that_cannot_speak_of_the_prompts_steps_aside():
    parts = ({"name": "judge"}, {"name": "aesthetic", "checkpoint": "tiny"}, {"name": "action", "checkpoint": "tiny"})
    suited, words = build(*parts).suited([Prompt("a dog runs on the beach")], SIZE)
    assert list(suited.metrics) == ["aesthetic"]
    judge, action = words
    assert judge.startswith(
        "metric 'judge' steps aside: it knows the tiny world alone ('a dog runs on the beach' names"
    )
    assert action.startswith("metric 'action' steps aside: ")
    assert len(suited.per_video(Clip.whole(torch.rand(1, 8, 3, 32, 32), fps=8), [Prompt("a dog")])) == 1


# ---- diversity ----


def test_diversity_by_hand():
    clips = [clip_of([level]) for level in (0.1, 0.1, 0.4, 0.1, 0.8, 0.1)]  # three seeds of two prompts
    prompts = [Prompt("changes"), Prompt("stays")] * 3
    assert Diversity().over_set(clips, prompts) == pytest.approx({"pixels": (0.3 + 0.7 + 0.4) / 6})
    assert Diversity().over_set(clips[:2], prompts[:2]) == {}
    with_clip = Diversity(checkpoint="tiny")
    assert with_clip.over_set(clips[:2], prompts[:1] * 2)["features"] == pytest.approx(0, abs=1e-6)
    noisy = Clip.whole(torch.rand(1, 2, 3, 8, 8), fps=8)
    assert with_clip.over_set([noisy, clips[0]], prompts[:1] * 2)["features"] > 0.01


def test_large_frames_are_reduced_before_they_are_compared():
    fine = torch.zeros(1, 3, 128, 128)
    fine[..., ::2] = 1.0
    assert pixel_distance(reduced(fine), reduced(torch.full_like(fine, 0.5))) == pytest.approx(0.0, abs=1e-6)


# ---- rewards ----


class Counting(FrameReward):
    """The mean pixel; notes how many images it was given at once."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def score_frames(self, images, prompts):
        assert len(images) == len(prompts)
        self.seen.append(len(images))
        return images.mean(dim=(1, 2, 3))


@pytest.mark.parametrize(("chunk", "seen"), [(1, [1] * 6), (2, [2, 1, 2, 1]), (4, [3, 3]), (100, [6])])
def test_a_frame_reward_scores_so_many_images_at_once(chunk, seen):
    reward = Counting()
    metrics = HeldOutMetrics({"Counting": RewardMetric("Counting", reward, chunk)})
    found = metrics.per_video(clip_of([0.1, 0.5, 0.9]), [Prompt(str(i)) for i in range(3)])
    assert found["Counting"].tolist() == pytest.approx([0.1, 0.5, 0.9])
    assert reward.seen == seen


def test_rewards_that_measure_rest_on_the_cpu_but_for_their_work(monkeypatch):
    """Held-out rewards of guards, the networks of other metrics, and what measures segments do too."""
    moved: list[tuple[str, ...]] = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *where: moved.append(tuple(map(str, where))) or self)
    diversity, drift = Diversity(), Drift()
    diversity.tower = drift.tower = torch.nn.Linear(1, 1)
    segments, held_out = Segments({"name": "gold"}), HeldOutReward(RewardMetric("Counting", Counting()))
    segments.inner = HeldOutMetrics({"drift": drift})
    metrics = HeldOutMetrics({"held out": held_out, "segments": segments, "diversity": diversity})
    with metrics.at_work(torch.device("meta"), torch.float32):
        there = len(moved)
    assert [where[0] for where in moved[:there]].count("meta") == 3
    assert moved[there:] == [("cpu",)] * 3


class Still(Reward):
    """How little two neighbouring frames differ."""

    needs = AllFrames(least=2)

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def score(self, clip, prompts):
        return -self.scale * (clip.frames[:, 1:] - clip.frames[:, :-1]).square().mean(dim=(1, 2, 3, 4))


def test_a_reward_for_clips_sees_whole_videos_and_takes_its_options():
    clip = Clip.whole(torch.rand(3, 4, 3, 8, 8), fps=8)
    metrics = build({"name": "test_metrics:Still", "scale": 2.0}, {"name": "aesthetic", "checkpoint": "tiny"}, chunk=1)
    prompts = [Prompt("x")] * 3
    found = metrics.per_video(clip, prompts)
    assert list(found) == ["Still", "aesthetic"]
    assert found["Still"].tolist() == pytest.approx(Still(2.0)(clip.frames, ["x"] * 3).tolist())
    with pytest.raises(UserError, match="reward 'Still' needs at least 2 frames"):
        metrics.suited(prompts, VideoSize(1, 8, 8))


def test_a_mix_is_its_weighted_sum():
    options = {"checkpoint": "tiny"}
    clip, prompts = Clip.whole(torch.rand(2, 3, 3, 8, 8), fps=8), [Prompt("a red circle")] * 2
    parts = [{"name": name, "resize": "squash", **options} for name in ("hps", "aesthetic")]
    found = build({"name": "hps_aesthetic", **options}, *parts).per_video(clip, prompts)
    assert found["hps_aesthetic"].tolist() == pytest.approx((0.5 * found["hps"] + 0.075 * found["aesthetic"]).tolist())


# ---- names and mistakes ----


class Set(Metric):
    def over_set(self, clips, prompts):
        return {"count": float(len(clips)), "prompts": float(len(set(prompts)))}


class Nothing(Metric):
    pass


class Other:
    """Neither a metric nor a reward."""


class Wrong(Metric):
    def per_video(self, clip, prompts):
        return torch.zeros(len(prompts) + 1)


def test_built_in_metrics_have_a_line_each(capsys):
    assert list(metric_names()) == ["judge", "gold", "diversity", "drift", "segments"]
    assert main(["list", "metrics"]) == 0
    assert "gold" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"name": "jugde"}, "unknown metric 'jugde': did you mean 'judge'?"),
        ({"name": "gold", "task": "beauty"}, "metric 'gold': task is 'beauty'"),
        ({"name": "gold", "tsak": "looks"}, "metric 'gold' has no option 'tsak': did you mean 'task'?"),
        ({"name": "hps", "weight": 2.0}, "reward 'hps' has no option 'weight': known: checkpoint, "),
        (
            {"name": "test_metrics:Other"},
            "'test_metrics:Other' is not a Metric or Reward: derive it from vader.Metric",
        ),
        ({"name": "test_metrics:clip_of"}, "'test_metrics:clip_of' is a function: write a class that is derived from "),
        ({"name": "test_metrics:Nothing"}, "'Nothing' measures nothing: Nothing needs per_video or over_set"),
    ],
)
def test_mistakes(part, message):
    with pytest.raises(UserError, match=message):
        build(part)


def test_figures_are_one_a_video():
    said = r"metric 'Wrong' gave shape \[2\] from `per_video`: it should be \[1\], one number for each video"
    with pytest.raises(UserError, match=said):
        build({"name": "test_metrics:Wrong"}).per_video(clip_of([0.5]), [Prompt("x")])


class Whole(Metric):
    """Numbers of other kinds than float tensors."""

    def per_video(self, clip, prompts):
        return {"bright": clip.frames.mean(dim=(1, 2, 3, 4)) > 0.4, "frames": torch.full((len(prompts),), 2)}

    def over_set(self, clips, prompts):
        return {"tensor": clips[0].frames.mean(), "count": len(clips)}


def test_figures_may_be_numbers_of_any_kind():
    metrics, clip = build({"name": "test_metrics:Whole"}), clip_of([0.25, 0.5])
    found = metrics.per_video(clip, [Prompt("x")] * 2)
    assert {name: values.tolist() for name, values in found.items()} == {
        "Whole/bright": [0.0, 1.0],
        "Whole/frames": [2.0, 2.0],
    }
    assert metrics.over_set([clip[:1], clip[1:]], [Prompt("x")] * 2) == {"Whole/tensor": 0.25, "Whole/count": 2.0}


# ---- processes ----


@pytest.mark.parametrize(("count", "world", "batch"), [(45, 8, 4), (3, 1, 8), (2, 4, 1), (16, 2, 8)])
def test_all_processes_make_as_many_passes(count, world, batch):
    shares = [even_shares(count, rank, world, batch) for rank in range(world)]
    assert len({tuple(map(len, share)) for share in shares}) == 1
    assert {index for share in shares for some in share for index in some} == set(range(count))
