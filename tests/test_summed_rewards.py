"""Rewards that are sums of heads: their gradient is the sum's, and each head is reported wherever rewards are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from toy_runs import toy_recipe
from toys import Both, Stillness, Warmth
from vader.errors import UserError
from vader.nouns import Clip, Prompt
from vader.rewards import AllFrames, PerSecond, RewardMix
from vader.rewards.contract import scored_parts
from vader.runs.folder import RunFolder
from vader.scoring.files import score_video
from vader.training.before import check_recipe
from vader.training.trainer import build_run, next_batch

HEADS = ["Both", "Both/warm", "Both/still", "Both/bright"]
PAIR = "rewards=[{name: 'toys:Warmth', sees: all}, {name: 'toys:Stillness', weight: 0.5, sees: all}]"
SUM = "rewards=[{name: 'toys:Both', sees: all}]"


def step_of(folder: Path, *overrides: str):
    run = build_run(check_recipe(toy_recipe(*overrides)), RunFolder(folder))
    generator = torch.Generator().manual_seed(5)
    for parameter in run.engine.parameters:
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return run.algorithm.step(run.engine, next_batch(run, 1))


@pytest.mark.parametrize("split", ["true", "false"])
def test_a_step_is_that_of_two_rewards(tmp_path, split):
    split = f"algorithm.split_backward={split}"
    summed, pair = step_of(tmp_path / "sum", SUM, split), step_of(tmp_path / "pair", PAIR, split)
    assert list(summed.parts) == HEADS
    assert summed.reward == pytest.approx(pair.reward, rel=1e-5)
    assert summed.grad_norm == pytest.approx(pair.grad_norm, rel=1e-4)
    assert summed.parts["Both"] == pytest.approx(summed.reward, rel=1e-6)
    found = [summed.parts["Both/warm"], summed.parts["Both/still"]]
    assert found == pytest.approx(list(pair.parts.values()), rel=1e-5)


def test_a_baseline_reports_the_heads(tmp_path):
    found = step_of(tmp_path / "toy", SUM, "algorithm={name: ddpo}", "sampling.eta=1")
    assert list(found.parts) == HEADS
    assert found.parts["Both"] == pytest.approx(found.parts["Both/warm"] + 0.5 * found.parts["Both/still"], rel=1e-5)


def test_files_have_the_heads_and_a_head_of_the_wrong_shape_is_told():
    frames, prompt = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), Prompt("a")
    mix = RewardMix({"Both": Both(), "warm": Warmth()}, {"Both": 2.0, "warm": 1.0})
    score = score_video(Path("video.mp4"), frames, mix, prompt, 8.0)
    assert list(score.parts) == [*HEADS, "warm"]
    assert score.total == pytest.approx(2 * score.parts["Both"].mean + score.parts["warm"].mean)
    assert score.parts["Both/still"].mean == pytest.approx(Stillness()(frames[None], [prompt]).item(), rel=1e-5)

    class Broken(Both):
        def score_heads(self, clip, prompts):
            return {name: head[None] for name, head in super().score_heads(clip, prompts).items()}

    with pytest.raises(UserError, match=r"reward 'x' gave shape \[1, 1\] from `score_heads`"):
        scored_parts("x", Broken(), Clip.whole(frames[None], 8.0), [prompt])


def test_a_reward_by_the_second_wants_to_know_the_seconds_whatever_it_is_shown():
    class Rated(Stillness):
        needs = PerSecond(2.0, least=2)

    mix = RewardMix({"rated": Rated()}, {"rated": 1.0}, {"rated": AllFrames()})
    with pytest.raises(UserError, match="reward 'rated' needs frames by the second, and nothing tells how fast"):
        score_video(Path("frames"), torch.rand(4, 3, 8, 8), mix, Prompt("a"), None)
