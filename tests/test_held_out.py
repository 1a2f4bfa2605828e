"""Held-out videos on several processes: as many passes each, one table of figures, pixels where they are needed."""

from __future__ import annotations

import json
import os
import socket
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from toy_runs import CONTEXT, PATIENCE
from vader.evaluation.held_out import HeldOut, evaluate, write_samples, write_scores
from vader.evaluation.metrics.base import HeldOutMetrics, Metric
from vader.files.video import read_video
from vader.nouns import Clip, Prompt, VideoSize

PROMPTS = [Prompt("one", negative="dull"), Prompt("two"), Prompt("three", label="left")]


class Mean(Metric):
    """The mean pixel; of the set, how many videos there are and their pixels' sum."""

    def per_video(self, clip, prompts):
        return clip.frames.mean(dim=(1, 2, 3, 4))

    def over_set(self, clips, prompts):
        assert all(len(clip) == 1 for clip in clips)
        return {"videos": len(clips), "sum": sum(clip.frames.mean().item() for clip in clips)}


class Grey:
    """Stands for a setup: video i is grey of level (i + seed) / 20, and its reward is that level."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator, self.passes = accelerator, []
        self.scorer = self

    def chain(self, prompts, seed, purpose, step, indices):
        assert (purpose, step) == ("sample", 0)
        self.passes.append(len(prompts))
        return GreyChain((torch.tensor(list(indices)) + seed) / 20)

    def decode(self, levels, audio):
        assert not audio
        return Clip.whole(levels[:, None, None, None, None].expand(-1, 2, 3, 8, 8), fps=8)

    def score_clip(self, clip, prompts, latents):
        levels = clip.frames.mean(dim=(1, 2, 3, 4))
        return SimpleNamespace(parts={"grey": levels}, total=levels)


class GreyChain:
    def __init__(self, levels):
        self.levels = levels

    def final(self):
        return self.levels


def measured(accelerator: Accelerator, metrics: HeldOutMetrics) -> tuple[HeldOut, list[int]]:
    setup = Grey(accelerator)
    return evaluate(setup, PROMPTS, 5, seed=2, metrics=metrics, shown=2, batch=2), setup.passes


def in_process(rank: int, port: int, out) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    found = {}
    for name, metrics in (("set", HeldOutMetrics({"mean": Mean()})), ("none", HeldOutMetrics({}))):
        held_out, passes = measured(accelerator, metrics)
        clips = [video.index for video in held_out.videos if video.clip is not None]
        found[name] = {"summary": held_out.summary(), "passes": passes, "clips": clips}
    (out / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture
def alone() -> HeldOut:
    return measured(Accelerator(cpu=True), HeldOutMetrics({"mean": Mean()}))[0]


def test_one_table_of_figures(alone):
    found = alone.summary()
    assert found["reward"] == pytest.approx(4 / 20)
    assert found["videos"] == 5
    assert found["figures"] == pytest.approx({"mean": 4 / 20, "mean/videos": 5, "mean/sum": 1.0})
    assert "figures" not in HeldOut([measured(Accelerator(cpu=True), HeldOutMetrics({}))[0].videos[0]], {}).summary()


def test_two_processes_measure_what_one_does(alone, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [CONTEXT.Process(target=in_process, args=(rank, port, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for name in ("set", "none"):
        assert first[name]["passes"] == second[name]["passes"] == [2, 1]
        assert first[name]["summary"] == second[name]["summary"]
    assert first["set"]["summary"] == alone.summary()
    assert first["set"]["clips"] == [0, 1, 2, 3, 4]
    assert first["none"]["clips"] == [0, 1]  # those that are shown
    assert second["set"]["clips"] == second["none"]["clips"] == []


def test_scores_and_samples_on_disk(alone, tmp_path):
    for _ in range(2):  # a run that goes on writes an evaluation again
        write_scores(tmp_path / "evaluations" / "step-000003.jsonl", alone.videos)
        write_samples(tmp_path / "samples" / "step-000003", alone.videos[:2], VideoSize(8, 32, 32))
    lines = [json.loads(line) for line in (tmp_path / "evaluations/step-000003.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 4]
    assert (lines[3]["prompt"], lines[3]["negative"], "label" in lines[3]) == ("one", "dull", False)
    assert lines[2]["label"] == "left"
    assert lines[1] == {
        "index": 1, "prompt": "two", "reward": pytest.approx(0.15), "parts": {"grey": pytest.approx(0.15)},
        "figures": {"mean": pytest.approx(0.15)},
    }  # fmt: skip
    listed = json.loads((tmp_path / "samples/step-000003/prompts.json").read_text())
    assert [one["file"] for one in listed] == ["000.mp4", "001.mp4"]
    assert read_video(tmp_path / "samples/step-000003/001.mp4").mean().item() == pytest.approx(0.15, abs=0.02)
