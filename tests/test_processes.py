"""Several processes give the run of one: same metrics, same adapter, one writer; each launcher really starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from safetensors.numpy import load_file

from test_chain import CONTINUING
from toy_runs import TOY, Command, assert_close_metrics, lines_of, metrics, toy_recipe, wait_until
from toys import Stillness, ToyDenoiser, ToyModel, Warmth
from vader.errors import UserError
from vader.runs.checkpoints import Checkpoints
from vader.runs.folder import ADAPTER
from vader.training.trainer import train

FIVE_STEPS = ("train.steps=5", "evaluation.every=2")


def assert_same_numbers(run: Path, other: Path) -> None:
    """Metrics and adapter to 1e-5: sums over processes are rounded in another order."""
    assert_close_metrics(metrics(run), metrics(other), absolute=1e-7)
    weights, others = load_file(run / ADAPTER), load_file(other / ADAPTER)
    assert weights.keys() == others.keys()
    for name in weights:
        np.testing.assert_allclose(weights[name], others[name], rtol=0, atol=1e-5)


# ---- the launchers ----

LAUNCHERS = {
    "torchrun": "torch.distributed.run --nproc-per-node=2 --master-port={port} --log-dir={logs} --tee=3",
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes=2 --num_machines=1 --mixed_precision=no "
    "--dynamo_backend=no --main_process_port={port} --log_dir={logs} --tee=3",
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.rare)])
def test_two_launched_processes_equal_one(tmp_path, launcher):
    launch_two = LAUNCHERS[launcher].format(port=free_port(), logs=tmp_path / "logs").split()
    command = [sys.executable, "-m", *launch_two, "-m", "vader", "train", str(TOY), *FIVE_STEPS]
    here = os.pathsep.join([str(TOY.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--runs", str(tmp_path)], env=environment, check=True, capture_output=True)
    first, second = (next((tmp_path / "logs").rglob(f"{rank}/stdout.log")).read_text() for rank in (0, 1))
    assert "report:" in first
    assert second == ""
    train(toy_recipe(*FIVE_STEPS), tmp_path / "one")
    assert_same_numbers(tmp_path / "toy", tmp_path / "one/toy")


def test_accelerate_has_torchrun_start_them_and_its_variables_change_nothing(tmp_path, monkeypatch):
    """What it hands over, and two processes of our own that are told what it tells them."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        "torch.distributed.run.run", lambda args: asked.update(vars(args), environment=dict(os.environ))
    )
    before = dict(os.environ)
    _, *options = LAUNCHERS["accelerate"].format(port=free_port(), logs=tmp_path / "launched").split()
    launch_command(launch_command_parser().parse_args([*options, "-m", "vader", "train", str(TOY)]))
    assert (asked["nproc_per_node"], asked["module"], asked["training_script"]) == ("2", True, "vader")
    assert asked["training_script_args"] == ["train", str(TOY)]
    told = {name: value for name, value in asked["environment"].items() if before.get(name) != value}
    assert "ACCELERATE_DYNAMO_BACKEND" in told
    equals_one(tmp_path, 2, [], told)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# ---- processes of our own, which start faster ----


def launch(
    count: int, arguments: list[str], logs: Path, runs: Path, told: Mapping[str, str] | None = None
) -> list[Command]:
    """The command in `count` processes that know of each other; all but the first may not write to `runs`.

    Each leaves a list of its network passes in `logs`. Beside what every launcher sets, they are `told` this.
    """
    world = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "OMP_NUM_THREADS": 1}  # as launchers set them
    shared = world | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        Command(
            ["train", str(TOY), *arguments, "--runs", str(runs)],
            logs / str(rank),
            {**(told or {}), **{name: str(one) for name, one in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}},
            prepare=partial(_prepare, str(runs) if rank else None, str(logs / f"passes-{rank}")),
        )
        for rank in range(count)
    ]


def _prepare(forbidden: str | None, passes: str) -> None:
    if forbidden:
        _forbid_writing(forbidden)
    _record_passes(passes)


def _record_passes(path: str) -> None:
    """Writes a line for every pass of denoiser, decoder and rewards: its inputs' shape, and whether it has a graph."""
    file = open(path, "w", buffering=1)  # noqa: SIM115

    def record(owner: Any, name: str) -> None:
        whole = getattr(owner, name)

        def recording(self: Any, seen: Any, *args: Any, **options: Any) -> Any:
            shape = tuple(getattr(seen, "frames", seen).shape)
            file.write(f"{owner.__name__} {shape} {torch.is_grad_enabled()}\n")
            return whole(self, seen, *args, **options)

        setattr(owner, name, recording)

    record(ToyDenoiser, "forward")
    record(ToyModel, "decode_unclamped")
    record(Warmth, "score_frames")
    record(Stillness, "score")


def passes(logs: Path, count: int) -> list[list[str]]:
    return [(logs / f"passes-{rank}").read_text().splitlines() for rank in range(count)]


def _forbid_writing(folder: str) -> None:
    """Ends this process with status 99 when it makes, opens for writing, moves or removes anything in a folder."""
    changing = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in changing or (event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if changes and str(arguments[0]).startswith(folder):
            os._exit(99)

    sys.addaudithook(watch)


# Adam divides by gradients that are near their rounding here: a larger eps keeps the comparison one of gradients.
DPO = ["algorithm={name: diffusion_dpo, pairs: 3, capacity: 6}", "optimizer.eps=1e-4"]
NFT = "algorithm={name: nft, group: 2, updates: 2, times: 2, base_distance: 0.1}"
VARIANTS = {
    "two processes": (2, []),
    "four processes": (4, []),
    "micro-batches": (2, ["train.micro_batch=1"]),
    "stochastic solver, random policy": (2, ["sampling.eta=1", "algorithm.policy={name: random_tail}"]),
    "frame rewards alone": (2, ["rewards=[{name: 'toys:Warmth', sees: 2}]"]),
    "ddpo": (
        2,
        [
            "algorithm={name: ddpo, videos_per_prompt: 2, prompt_min_count: 2}",
            "sampling.eta=1",
        ],
    ),
    "ddpo, fewer videos a process than minibatches": (
        4,
        ["algorithm={name: ddpo, minibatches: 4, inner_epochs: 2}", "sampling.eta=1"],
    ),
    "diffusion_dpo": (2, DPO),
    "pull to the base": (2, ["algorithm.base_distance=0.1"]),
    "fewer held-out videos than processes": (4, ["evaluation.videos=2"]),
    "an odd number of held-out videos": (2, ["evaluation={every: 2, videos: 5, batch: 2}"]),
    "held-out videos, three processes": (3, ["evaluation={every: 2, videos: 4, batch: 1}", "train.batch=6"]),
    "ddpo, shares that fall into no minibatches": (
        2,
        ["algorithm={name: ddpo, minibatches: 2}", "sampling.eta=1", "train.batch=6", "train.micro_batch=1"],
    ),
    "ddpo, three processes": (3, ["algorithm={name: ddpo, minibatches: 3}", "sampling.eta=1", "train.batch=6"]),
    "diffusion_dpo, three processes": (3, [*DPO, "algorithm.pairs=4", "train.batch=6"]),
    "three segments": (
        2,
        [*CONTINUING, "rewards.0.sees=all", "algorithm.segments=[1, 2]", "evaluation.metrics=[{name: drift}]"],
    ),
    "nft": (2, [NFT, "train.micro_batch=1"]),
    "ddpo, groups in a window": (
        2,
        ["algorithm={name: ddpo, group: 4, shared_start: true, window_size: 2}", "sampling.eta=1"],
    ),
    "each reward its own frames": (2, ["rewards.0.sees=1", "rewards.1.sees=all", "scoring.chunk=2"]),
}


@pytest.mark.parametrize(("count", "overrides"), VARIANTS.values(), ids=VARIANTS)
def test_several_processes_equal_one(tmp_path, count, overrides):
    equals_one(tmp_path, count, overrides)


def equals_one(tmp_path: Path, count: int, overrides: list[str], told: Mapping[str, str] | None = None) -> None:
    processes = launch(count, [*FIVE_STEPS, *overrides], tmp_path / "logs", tmp_path / "runs", told)
    assert [process.status() for process in processes] == [0] * count
    first, *others = passes(tmp_path / "logs", count)
    assert first
    assert all(other == first for other in others)  # in step at every pass, so that frozen weights can be sharded
    train(toy_recipe(*FIVE_STEPS, *overrides), tmp_path / "one")
    assert_same_numbers(tmp_path / "runs/toy", tmp_path / "one/toy")


UNEVEN = {
    "held-out videos": (2, ["evaluation={every: 2, videos: 5, shown: 1, batch: 2}"]),
    "ddpo": (4, ["algorithm={name: ddpo, minibatches: 4, inner_epochs: 2}", "sampling.eta=1"]),
    "diffusion_dpo": (2, DPO),
}


@pytest.mark.parametrize(("count", "overrides"), UNEVEN.values(), ids=UNEVEN)
def test_sharded_processes_keep_in_step(tmp_path, count, overrides):
    """Frozen weights shared out over them: the numbers of one process, and the same passes in the same order on all."""
    counter = f"{{name: 'pass_counter:NotePasses', folder: {tmp_path}}}"
    memory = f"memory=[{{name: shard, rewards: true}}, {{name: recompute}}, {counter}]"
    processes = launch(count, [*FIVE_STEPS, *overrides, memory], tmp_path / "logs", tmp_path / "runs")
    assert [process.status() for process in processes] == [0] * count
    passes = [(tmp_path / f"passes.{rank}").read_text() for rank in range(count)]
    assert passes == passes[:1] * count
    train(toy_recipe(*FIVE_STEPS, *overrides), tmp_path / "one")
    assert_same_numbers(tmp_path / "runs/toy", tmp_path / "one/toy")


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path):
    arguments, run = ["train.steps=60"], tmp_path / "runs/toy"
    first, second = launch(2, arguments, tmp_path / "logs", tmp_path / "runs")
    wait_until(lambda: lines_of(run) > 5)
    second.send(signal.SIGTERM)
    assert (first.status(), second.status()) == (130, 130)
    step = metrics(run)[-1]["step"]
    assert f"vader: stopped at step {step} of 60 and saved: the same command goes on\n" in first.errors
    assert Checkpoints(run / "checkpoints", 2).steps()[-1].name == f"step-{step:06d}"
    again = launch(2, arguments, tmp_path / "logs", tmp_path / "runs")
    assert [process.status() for process in again] == [0, 0]
    assert [line["step"] for line in metrics(run) if line["kind"] == "train"] == list(range(1, 61))


def test_a_batch_that_three_processes_cannot_share(tmp_path):
    processes = launch(3, [], tmp_path / "logs", tmp_path / "runs")
    assert [process.status() for process in processes] == [2, 2, 2]
    line = "vader: train.batch is 4, which 3 processes cannot share: make it a multiple of 3\n"
    assert [process.errors for process in processes] == [line, "", ""]
    assert not (tmp_path / "runs").exists()


def test_processes_that_would_each_train_alone_are_refused(tmp_path, monkeypatch):
    """On a device for which accelerate knows no way to work together, two processes would both write the run."""
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were started that cannot work together on cpu: start one"):
        train(toy_recipe(), tmp_path)


def test_accelerate_that_starts_one_process_of_several_is_refused(tmp_path, monkeypatch):
    """What `accelerate launch --num_processes 2 --cpu` sets, as its simple launcher does, which starts one."""
    for name, value in {"ACCELERATE_DYNAMO_BACKEND": "NO", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match=r"'accelerate launch --cpu' starts one: add --multi_gpu, .* or use torchrun"):
        train(toy_recipe(), tmp_path)
