"""A run that was stopped or killed, at any moment, goes on as if nothing had been: same metrics, same adapter."""

from __future__ import annotations

import json
import os
import pkgutil
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from regenerate_golden import modelscope_run
from toy_runs import TOY, Command, adapter, lines_of, metrics, toy_recipe, wait_until
from vader.algorithms.reward_gradient import RewardGradient
from vader.errors import Stopped
from vader.files.video import read_video
from vader.runs.checkpoints import Checkpoints
from vader.runs.log import MetricsLog
from vader.training.trainer import train

# ---- asked to stop ----


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """The process gets a signal while it works on a step."""
    whole_step = RewardGradient.step

    def interrupted(self, engine, batch):
        if batch.step == step:
            signal.raise_signal(number)
        return whole_step(self, engine, batch)

    monkeypatch.setattr(RewardGradient, "step", interrupted)


VARIANTS = {
    "plain": [],
    "micro-batches": ["train.micro_batch=1"],
    "stochastic solver": ["sampling.eta=1"],
    "random policy": ["algorithm.policy={name: random_tail}", "rewards.0.sees=2"],
    "several views": ["algorithm.policy={name: draft_lv, k: 2}", "train.micro_batch=2"],
    "pull to the base": ["algorithm.base_distance=0.1", "optimizer.weight_decay=0.01"],
}


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("step", [1, 4])
def test_stopped_and_continued_equals_uninterrupted(tmp_path, overrides, step):
    recipe = toy_recipe("train.checkpoint_every=100", *overrides)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Stopped, match=f"^stopped at step {step} of 6 and saved: the same command goes on$"):
            train(recipe, tmp_path / "stopped")
    assert metrics(tmp_path / "stopped/toy")[-1]["step"] == step
    train(recipe, tmp_path / "stopped")
    train(recipe, tmp_path / "whole")
    assert metrics(tmp_path / "stopped/toy") == metrics(tmp_path / "whole/toy")
    assert adapter(tmp_path / "stopped/toy") == adapter(tmp_path / "whole/toy")


def test_the_loss_scale_of_half_precision_is_continued(tmp_path):
    small = ("train.steps=2", "video.frames=1", "rewards.0.sees=1", "evaluation.videos=1")
    recipe = modelscope_run(tmp_path, "model.precision=fp16", *small)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stopped):
            train(recipe, tmp_path / "stopped")
    scaler = torch.load(tmp_path / "stopped/toy/checkpoints/step-000001/state.pt", weights_only=True)["scaler"]
    assert scaler["_growth_tracker"] == 1
    for runs in ("stopped", "whole"):
        train(recipe, tmp_path / runs)
    assert metrics(tmp_path / "stopped/toy") == metrics(tmp_path / "whole/toy")
    assert adapter(tmp_path / "stopped/toy") == adapter(tmp_path / "whole/toy")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_is_one_line_and_status_130(tmp_path, number):
    arguments = ["train", str(TOY), "train.steps=60", "train.checkpoint_every=100", "--runs"]
    run = tmp_path / "stopped/toy"
    stopped = Command([*arguments, str(run.parent)], tmp_path / "logs")
    wait_until(lambda: lines_of(run) > 5)
    stopped.send(number)
    assert stopped.status() == 130
    step = metrics(run)[-1]["step"]
    assert stopped.errors == f"vader: stopped at step {step} of 60 and saved: the same command goes on\n"
    assert [path.name for path in Checkpoints(run / "checkpoints", 2).steps()] == ["step-000000", f"step-{step:06d}"]
    for runs in (run.parent, tmp_path / "whole"):
        assert Command([*arguments, str(runs)], tmp_path / "logs").status() == 0
    assert metrics(run) == metrics(tmp_path / "whole/toy")
    assert adapter(run) == adapter(tmp_path / "whole/toy")


# ---- killed ----

KILLED = [str(TOY), "train.steps=80", "train.checkpoint_every=1", "evaluation.every=8"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """The run that no one has killed."""
    runs = tmp_path_factory.mktemp("uninterrupted")
    assert Command(["train", *KILLED, "--runs", str(runs)], runs / "logs").status() == 0
    return runs / "toy"


def test_killed_ten_times_and_continued(tmp_path, uninterrupted):
    """Half of the kills are at random moments, half as soon as a checkpoint is being written."""
    rng = random.Random(0)
    run = tmp_path / "toy"
    for attempt in range(10):
        wanted = lines_of(run) + rng.randint(0, 4)
        process = Command(["train", *KILLED, "--runs", str(tmp_path)], tmp_path / "logs")
        wait_until(lambda wanted=wanted: lines_of(run) >= wanted)
        if attempt % 2:
            wait_until(lambda: any((run / "checkpoints").glob(".step-*")))
        else:
            time.sleep(rng.uniform(0, 0.05))
        process.send(signal.SIGKILL)
        assert process.status() == -signal.SIGKILL
        assert_readable(run)
    assert Command(["train", *KILLED, "--runs", str(tmp_path)], tmp_path / "logs").status() == 0
    assert_same_run(run, uninterrupted)


def half_file(weights: object, path: Path, *_: object) -> None:
    path.write_bytes(b"half")


def half_video(path: Path, *_: object) -> None:
    path.write_bytes(b"half")


def half_line(log: MetricsLog, line: dict) -> None:
    with open(log.path, "a") as file:
        file.write(json.dumps(line)[:40])


# Where the process dies: a function, in which of its calls, and what that call has done by then.
PLACES = {
    "before anything": ("vader.training.trainer._restore", 1, None),
    "within the first evaluation": ("vader.evaluation.held_out.HeldOut.summary", 1, None),
    "before the first checkpoint": ("vader.training.trainer._save", 1, None),
    "within a line of metrics": ("vader.runs.log.MetricsLog.append", 3, half_line),
    "checkpoint written but not in place": ("os.rename", 3, None),
    "checkpoint in place, the old one not yet removed": ("vader.runs.checkpoints.remove", 1, None),
    "within a video": ("vader.files.video._encode", 2, half_video),
    "videos written but not in place": ("os.rename", 4, None),
    "within a checkpoint's adapter": ("vader.networks.adapter_files.save_tensors", 2, half_file),
    "within the best adapter": ("vader.networks.adapter_files.save_tensors", 3, half_file),
    "the best adapter written but not in place": ("os.rename", 5, None),
    "before the verdicts": ("vader.training.watch.write_verdicts", 3, None),
    "within the adapter": ("vader.networks.adapter_files.save_tensors", 7, half_file),
    "before the adapter": ("vader.training.trainer.atomic_folder", 1, None),
    "within a report": ("vader.evaluation.report.report_page", 2, None),
    "within the last report": ("vader.evaluation.report.report_page", 4, None),
}


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("short")
    assert Command(["train", str(TOY), "--runs", str(runs)], runs / "logs").status() == 0
    return runs / "toy"


@pytest.mark.parametrize(("target", "call", "until_then"), PLACES.values(), ids=PLACES)
def test_killed_at_the_worst_moment_and_continued(tmp_path, short, target, call, until_then):
    arguments = ["train", str(TOY), "--runs", str(tmp_path)]
    killed = Command(arguments, tmp_path / "logs", prepare=partial(die_in, target, call, until_then))
    assert killed.status() == -signal.SIGKILL
    assert_readable(tmp_path / "toy")
    assert Command(arguments, tmp_path / "logs").status() == 0
    assert_same_run(tmp_path / "toy", short)


def die_in(target: str, call: int, until_then: Callable[..., None] | None) -> None:
    """Kills this process in the n-th call of a function, named by its dotted path."""
    owner, name = pkgutil.resolve_name(target.rpartition(".")[0]), target.rpartition(".")[2]
    whole, calls = getattr(owner, name), count(1)

    def dying(*args: object, **options: object) -> object:
        if next(calls) < call:
            return whole(*args, **options)
        if until_then:
            until_then(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, dying)


READERS = {
    ".yaml": lambda path: yaml.safe_load(path.read_text()),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().split("\n")[:-1]],
    ".json": lambda path: json.loads(path.read_text()),
    ".pt": lambda path: torch.load(path, weights_only=True),
    ".mp4": read_video,
    ".safetensors": load_file,
    ".html": lambda path: path.read_text().index("</html>"),
}


def visible_files(run: Path) -> list[Path]:
    """All files of a run but those with a dot before their name or their folder's, which are not finished."""
    relative = [path.relative_to(run) for path in sorted(run.rglob("*")) if path.is_file()]
    return [path for path in relative if not any(part.startswith(".") for part in path.parts)]


def assert_readable(run: Path) -> None:
    for path in visible_files(run):
        READERS[path.suffix](run / path)


def assert_same_run(run: Path, other: Path) -> None:
    assert visible_files(run) == visible_files(other)
    assert metrics(run) == metrics(other)
    assert adapter(run) == adapter(other)
    for name in ("guards.jsonl", *(f"evaluations/{path}" for path in visible_files(other / "evaluations"))):
        assert (run / name).read_bytes() == (other / name).read_bytes()
    for path in visible_files(other / "samples"):
        assert (run / "samples" / path).read_bytes() == (other / "samples" / path).read_bytes()
