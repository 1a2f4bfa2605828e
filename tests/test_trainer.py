"""The run as a whole: golden curves, what must not change its numbers, steps that are skipped, mistakes, the end."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from factories import make_tiny_modelscope
from regenerate_golden import GOLDEN, RUNS, curve
from toy_runs import TOY, adapter, assert_close_metrics, metrics, toy_recipe
from toys import ToyModel, Warmth
from vader.algorithms import load_algorithm
from vader.algorithms.reward_gradient import RewardGradient
from vader.cli import main
from vader.errors import RunError, UserError
from vader.runs.folder import ADAPTER, RunFolder
from vader.runs.reader import read_run
from vader.sampling import POLICIES
from vader.solvers import Level
from vader.solvers.scheduler_config import solver_from_config
from vader.training.trainer import train

# ---- numbers ----


@pytest.mark.parametrize("name", RUNS)
def test_golden_curve(tmp_path, name):
    """A change that is meant to change numbers: `python tests/regenerate_golden.py`, and say so in the commit."""
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    assert_close_metrics(curve(name, tmp_path), expected)


def assert_close_runs(run: Path, other: Path, tolerance: float) -> None:
    assert_close_metrics(metrics(run), metrics(other), tolerance)
    weights, others = load_file(run / ADAPTER), load_file(other / ADAPTER)
    for name in weights:
        np.testing.assert_allclose(weights[name], others[name], rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("plain")
    train(toy_recipe(), runs)
    return runs / "toy"


@pytest.mark.parametrize(
    "override",
    [
        "train.micro_batch=1",
        "train.micro_batch=2",
        "algorithm.split_backward=false",
        "scoring.chunk=2",
        "sampling.guidance_batched=false",
        "evaluation.batch=1",
        "train.checkpoint_every=1",
    ],
)
def test_what_must_not_change_the_numbers(tmp_path, plain_run, override):
    train(toy_recipe(override), tmp_path)
    assert_close_runs(tmp_path / "toy", plain_run, tolerance=1e-6)


GREEDY = """
import torch
from vader.rewards.base import FrameReward

class Greedy(FrameReward):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)  # draws from the global generator, as careless rewards do

    def score_frames(self, images, prompts):
        return self.layer(images.mean(dim=(2, 3)))[:, 0] + torch.rand(len(images))
"""


def test_rewards_as_metrics_are_scored_and_change_no_other_number(tmp_path, monkeypatch, plain_run):
    (tmp_path / "greedy.py").write_text(GREEDY)
    monkeypatch.syspath_prepend(tmp_path)
    watched = "[{name: 'greedy:Greedy'}, {name: 'toys:Stillness'}, {name: 'toys:Warmth'}]"
    train(toy_recipe(f"evaluation.metrics={watched}"), tmp_path)
    lines, figures = metrics(tmp_path / "toy"), []
    for line in lines:
        if line["kind"] == "evaluation":
            figures.append(line.pop("figures"))
            assert {name: figures[-1][name] for name in line["parts"]} == pytest.approx(line["parts"], abs=1e-6)
    assert [list(found) for found in figures] == [["Greedy", "Stillness", "Warmth"]] * 3
    assert lines == metrics(plain_run)
    assert adapter(tmp_path / "toy") == adapter(plain_run)
    assert read_run(tmp_path / "toy").evaluations[-1].figures == figures[-1]


def test_a_metric_that_cannot_be_had_ends_the_run_before_it_starts(tmp_path, capsys):
    asked = ["train", str(TOY), "--runs", str(tmp_path)]
    assert main([*asked, "evaluation.metrics=[{name: pikscore}]"]) == 2
    assert "unknown metric 'pikscore': did you mean 'pickscore'?" in capsys.readouterr().err
    few = ["video.frames=1", "rewards=[{name: 'toys:Warmth'}]"]
    assert main([*asked, *few, "evaluation.metrics=[{name: 'toys:Stillness'}]"]) == 2
    assert "reward 'Stillness' needs at least 2 frames" in capsys.readouterr().err
    assert not (tmp_path / "toy").exists()


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_split_and_plain_backward_of_frame_rewards_agree(tmp_path, chunk):
    warmth = ("rewards=[{name: 'toys:Warmth', sees: 3}]", f"scoring.chunk={chunk}")
    train(toy_recipe(*warmth), tmp_path / "split")
    train(toy_recipe(*warmth, "algorithm.split_backward=false"), tmp_path / "plain")
    assert_close_runs(tmp_path / "split/toy", tmp_path / "plain/toy", tolerance=1e-6)


@pytest.mark.parametrize(
    "override", ["train.seed=4", "optimizer.lr=0.02", "algorithm.policy.k=1", "sampling.eta=1", "adapter.rank=1"]
)
def test_what_must_change_the_numbers(tmp_path, plain_run, override):
    train(toy_recipe(override, "evaluation.every=100"), tmp_path)
    assert metrics(tmp_path / "toy")[-1]["reward"] != pytest.approx(metrics(plain_run)[-1]["reward"], rel=1e-4)


SEEN = [2, "all", "first_middle_last", "every_second", [1, 3]]
WITH_K = ("bridge", "draft_lv", "drtune", "sparse")


@pytest.mark.parametrize(
    ("policy", "sees"), [(p, SEEN[i % len(SEEN)]) for i, p in enumerate(sorted(set(POLICIES) - {"last", "steps"}))]
)
@pytest.mark.parametrize("split", ["true", "false"])
def test_every_policy_trains_on_its_choice_of_frames(tmp_path, policy, sees, split):
    choice = f"algorithm.policy={{name: {policy}{', k: 2' if policy in WITH_K else ''}}}"
    frames = [f"rewards.{number}.sees={sees}" for number in (0, 1)]
    few = ("train.steps=2", "evaluation.videos=1", f"algorithm.split_backward={split}")
    train(toy_recipe(choice, *frames, *few), tmp_path)
    steps = read_run(tmp_path / "toy").train
    assert all(step.grad_norm > 0 and step.skipped == 0 for step in steps)
    assert [step.queries for step in steps] == ([8, 16] if policy == "draft_lv" else [4, 8])


ALGORITHMS = {
    "reward_gradient": ["algorithm={name: reward_gradient}"],
    "without split backward": ["algorithm={name: reward_gradient}", "algorithm.split_backward=false"],
    "ddpo": ["algorithm={name: ddpo}", "sampling.eta=1"],
    "diffusion_dpo": ["algorithm={name: diffusion_dpo, pairs: 2}"],
}


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_no_more_than_a_chunk_of_images_is_scored_at_once(tmp_path, monkeypatch, algorithm):
    """In training and in evaluation alike; without split backward the user has asked for one large graph."""
    sizes: dict[bool, list[int]] = {False: [], True: []}
    score = Warmth.score_frames

    def watched(self: Warmth, images: Tensor, prompts: Collection[str]) -> Tensor:
        sizes[torch.is_grad_enabled()].append(len(images))
        return score(self, images, prompts)

    monkeypatch.setattr(Warmth, "score_frames", watched)
    monkeypatch.setattr("vader.training.trainer.try_rewards", lambda *_: None)
    few = ("scoring.chunk=2", "rewards.0.sees=all", "train.steps=2", "train.batch=4", "evaluation.videos=3")
    train(toy_recipe(*few, *algorithm), tmp_path)
    evaluated, trained = 2 * 3 * 4, 2 * 4 * 4  # twice three held-out videos, two steps of four, of four frames each
    assert max(sizes[False]) == 2
    if algorithm[0] == "algorithm={name: reward_gradient}":
        assert sum(sizes[False]) == evaluated
        assert sum(sizes[True]) == trained
        assert max(sizes[True]) == (16 if len(algorithm) == 2 else 2)
    else:
        assert sum(sizes[False]) == evaluated + trained


def test_the_reward_rises(tmp_path):
    result = train(toy_recipe("rewards=[{name: 'toys:Warmth'}]", "train.steps=40", "evaluation.every=40"), tmp_path)
    assert result.after[0] > result.before[0] + 0.1


# ---- steps that are skipped ----


def not_a_number(self: Warmth, images: Tensor, prompts: Collection[str]) -> Tensor:
    return images.mean(dim=(1, 2, 3)) * math.nan


def without_gradient(self: Warmth, images: Tensor, prompts: Collection[str]) -> Tensor:
    """Zero, but its gradient is not a number."""
    return (images.mean(dim=(1, 2, 3)) * 0).sqrt()


def failing_in(monkeypatch: pytest.MonkeyPatch, steps: Collection[int], score) -> None:
    """The reward is not finite in these training steps."""
    whole_step = RewardGradient.step

    def step(self, engine, batch):
        with pytest.MonkeyPatch.context() as patch:
            if batch.step in steps:
                patch.setattr(Warmth, "score_frames", score)
            return whole_step(self, engine, batch)

    monkeypatch.setattr(RewardGradient, "step", step)


def saved(run: Path, step: int) -> dict:
    return torch.load(run / f"checkpoints/step-{step:06d}/state.pt", weights_only=True)


def assert_same_state(one: dict, other: dict) -> None:
    torch.testing.assert_close(one["adapter"], other["adapter"], rtol=0, atol=0)
    torch.testing.assert_close(one["optimizer"], other["optimizer"], rtol=0, atol=0)


KEEP_ALL = ("train.checkpoint_every=1", "train.keep_checkpoints=100")


@pytest.mark.parametrize("score", [not_a_number, without_gradient])
@pytest.mark.parametrize("backward", ["train.micro_batch=2", "algorithm.split_backward=false"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, monkeypatch, score, backward):
    failing_in(monkeypatch, {1, 4, 5}, score)
    train(toy_recipe(*KEEP_ALL, backward), tmp_path)
    run = tmp_path / "toy"
    lines = [line for line in metrics(run) if line["kind"] == "train"]
    assert [line["skipped"] for line in lines] == [1, 1, 1, 2, 3, 3]
    assert [line["grad_norm"] is None for line in lines] == [True, False, False, True, True, False]
    for before, after in ((0, 1), (3, 4), (3, 5)):
        assert_same_state(saved(run, before), saved(run, after))
    before, after = (saved(run, step)["adapter"]["unet"] for step in (5, 6))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert "skipped steps" in (run / "report.html").read_text()
    assert [step.step for step in read_run(run).train] == [1, 2, 3, 4, 5, 6]


def test_too_many_in_a_row_end_the_run_with_its_last_checkpoint(tmp_path, monkeypatch, capsys):
    arguments = ["train", str(TOY), "train.max_skipped=2", "train.keep_checkpoints=100", "--runs", str(tmp_path)]
    run = tmp_path / "toy"
    with monkeypatch.context() as patch:
        failing_in(patch, {2, 4, 5, 6}, not_a_number)
        assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error == (
        "vader: the reward or its gradient was not finite in 2 steps in a row; the adapter is saved as it was before "
        "them (step 5): try a lower optimizer.lr or model.precision=fp32\n"
    )
    assert saved(run, 5)["progress"] == {"step": 5, "queries": 20, "skipped": 3, "skipped_in_row": 2}
    first, last = (saved(run, step)["adapter"]["unet"] for step in (0, 5))
    assert last.keys() == first.keys()
    assert all(weight.isfinite().all() for weight in last.values())
    assert not (run / ADAPTER).exists()
    assert main(arguments) == 0
    assert [line["step"] for line in metrics(run) if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_a_held_out_reward_that_is_not_finite_is_written_as_such(tmp_path, monkeypatch):
    score = Warmth.score_frames

    def mostly(self, images, prompts):
        return torch.cat([score(self, images[:1], prompts[:1]) * torch.nan, score(self, images[1:], prompts[1:])])

    monkeypatch.setattr(Warmth, "score_frames", mostly)
    with pytest.raises(RunError):
        train(toy_recipe(), tmp_path)
    assert metrics(tmp_path / "toy")[0]["reward"] is None
    assert main(["report", str(tmp_path / "toy")]) == 0


# ---- mistakes, before any long work ----


@pytest.fixture
def no_model(monkeypatch):
    """Nothing large may be read before the mistake is found."""

    def fail(*_: object, **__: object) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr(ToyModel, "load", fail)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr with which `vader train` ends at a user's mistake."""
    assert main(["train", str(TOY), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vader: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rewards.0.name=aestetic"], "unknown reward 'aestetic': did you mean 'aesthetic'?"),
        (["rewards.0.name=toys:Warmht"], "did you mean 'Warmth'?"),
        (["rewards.0.gain=2"], "reward 'toys:Warmth' has no option 'gain'"),
        (["rewards.1.sees=1"], "reward 'Stillness' needs at least 2 frames together, got 1"),
        (["model.family=modelscop"], "unknown model 'modelscop': did you mean 'modelscope'?"),
        (["model.family=toys:Warmth"], "is not a VideoModel"),
        (["algorithm.name=reward_gradiant"], "unknown algorithm 'reward_gradiant': did you mean 'reward_gradient'?"),
        (["prompts.train=no.txt"], "prompt file 'no.txt' does not exist"),
        (["prompts.test=tiny-tset"], "did you mean 'tiny-test'?"),
        (["algorithm.policy.k=5"], "the policy's k is 5 but sampling.steps is 4: it can be at most that"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_in_the_recipe(tmp_path, capsys, overrides, message):
    assert message in error_of(capsys, *overrides, "--runs", str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("no_model")
def test_a_tracker_that_is_not_installed(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else find(name, *a))
    line = error_of(capsys, "train.trackers=[wandb]", "--runs", str(tmp_path))
    assert line == "vader: train.trackers names wandb, which is not installed: pip install wandb\n"


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("runs", ["file", "file/below", "file/far/below"])
def test_a_file_in_the_way_of_the_run(tmp_path, capsys, runs):
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / runs
    line = error_of(capsys, "--runs", str(folder))
    assert line == f"vader: cannot write the run's folder {folder / 'toy'}: choose another one with --runs\n"
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_only_seems_writable(tmp_path, capsys, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert "cannot write the run's folder" in error_of(capsys, "--runs", str(tmp_path / "runs"))


@pytest.mark.usefixtures("no_model")
def test_a_folder_of_something_else(tmp_path, capsys):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/thesis.tex").touch()
    assert "holds files and no run: choose another name=... or --runs" in error_of(capsys, "--runs", str(tmp_path))


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("optimizer.lr=0.02", "optimizer.lr is 0.01 there and 0.02 here"),
        ("train.steps=5", "train.steps is 6 there and 5 here"),
        ("rewards.1.weight=0.25", "rewards.1.weight is 0.5 there and 0.25 here"),
        ("train.batch=8", "train.batch is 4 there and 8 here"),
        ("memory=[{name: quantize}]", "memory.0.name is recompute there and quantize here"),
        ("evaluation.metrics=[{name: judge}]", "evaluation.metrics.0.name is left out there and judge here"),
    ],
)
def test_the_folder_of_another_recipe(plain_run, capsys, no_model, override, difference):
    line = error_of(capsys, override, "--runs", str(plain_run.parent))
    assert line == (
        f"vader: {plain_run} is the run of another recipe ({difference}): to go on with it: vader train "
        f"{plain_run}/recipe.yaml; for a new run choose another name=... or --runs\n"
    )


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.policy={name: lastt}", "unknown policy 'lastt': did you mean 'last'?"),
        ("algorithm.policy.k=99", "the policy's k is 99 but sampling.steps is 4: it can be at most that"),
        ("model.family=modelscop", "unknown model 'modelscop': did you mean 'modelscope'?"),
        ("model={family: modelscope, checkpoint: nope}", "checkpoint 'nope' is no folder here and no hub id"),
        ("model={family: svd, checkpoint: tiny, options: {motion: 3}}", "model 'svd' has no option 'motion'"),
        ("rewards=[{name: aesthetic, chekpoint: tiny}]", "reward 'aesthetic' has no option 'chekpoint'"),
        ("rewards=[{name: hps_aesthetic, resise: squash}]", "reward 'hps' has no option 'resise'"),
        ("evaluation.metrics=[{name: jugde}]", "unknown metric 'jugde': did you mean 'judge'?"),
        ("evaluation.metrics=[{name: gold, tsak: looks}]", "metric 'gold' has no option 'tsak'"),
        ("evaluation.metrics=[{name: hps, chekpoint: tiny}]", "reward 'hps' has no option 'chekpoint'"),
        ("memory=[{name: recompte}]", "unknown memory technique 'recompte': did you mean 'recompute'?"),
        ("sampling.guidance={name: cgf, scale: 2}", "unknown guidance 'cgf'"),
        ("prompts.train=none.txt", "prompt file 'none.txt' does not exist"),
        ("sampling={steps: 4, solver: dpm, eta: 1}", "dpm"),
    ],
)
def test_a_mistake_is_told_before_the_folder_of_another_recipe(plain_run, capsys, override, message):
    line = error_of(capsys, override, "--runs", str(plain_run.parent))
    assert message in line
    assert "another recipe" not in line


def test_a_dry_run_tells_of_the_folder_of_another_recipe_and_goes_on(plain_run, capsys):
    assert main(["train", str(TOY), "optimizer.lr=0.02", "--dry-run", "--runs", str(plain_run.parent)]) == 0
    *_, word, _, end = capsys.readouterr().out.splitlines()
    assert word.startswith(f"{plain_run} is the run of another recipe (optimizer.lr is 0.01 there and 0.02 here): ")
    assert end == "dry run: everything is in place, nothing was trained"


def test_not_enough_disk(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    assert "not enough disk for checkpoints" in error_of(capsys, "--runs", str(tmp_path))
    assert not (tmp_path / "toy").exists()


def test_sampling_with_the_adapter_of_another_model(tmp_path, capsys, plain_run):
    model = f"modelscope:{make_tiny_modelscope(tmp_path / 'checkpoint')}"
    size = ["--frames", "2", "--height", "16", "--width", "16", "--steps", "2"]
    status = main(
        [
            "sample",
            "red",
            "--model",
            model,
            *size,
            "--adapter",
            str(plain_run / "adapter"),
            "--out",
            str(tmp_path / "o"),
        ]
    )
    error = capsys.readouterr().err.splitlines()[-1]
    assert status == 2
    assert error.startswith(f"vader: adapter '{plain_run / ADAPTER}' (trained on 'none') does not fit: it is of")


# ---- dry, finished, tracked ----


def test_a_dry_run_loads_everything_and_writes_nothing(tmp_path, capsys):
    assert main(["train", str(TOY), "model.precision=fp32", "--dry-run", "--runs", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out == (
        "toy: toys:ToyModel on cpu in float32, 1 process; 48 of 391 weights are trained; each step 4 videos of "
        "4 frames of 8x8 in 4 denoising steps\n"
        "gradient enters from step 3 of 4 on, at sigma 0.411 (0 clean, 1 noise)\n"
        "a training step takes 0.0 GiB at its peak on a GPU, and about 1 beside tensors: "
        "'vader plan' says where, and what lowers it\n"
        "dry run: everything is in place, nothing was trained\n"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("shift", "little"), [(0.1, True), (5.0, False)])
def test_steps_that_start_with_little_noise_are_told_of(shift, little):
    """The last of 4 even steps of a flow starts at 1 / 4, shifted."""
    solver = solver_from_config({"_class_name": "FlowMatchEulerDiscreteScheduler"}, shift=shift, sigmas="even")
    algorithm = load_algorithm(toy_recipe("algorithm.policy.k=1"))
    (line,) = algorithm.words(SimpleNamespace(sampler=SimpleNamespace(schedule=solver.schedule(4))))
    start = shift / 4 / (1 + (shift - 1) / 4)
    assert line.startswith(f"gradient enters from step 4 of 4 on, at sigma {start:.3f} (0 clean, 1 noise)")
    assert ("hardly what is where" in line) == little


def test_paths_of_all_kinds_have_one_measure_of_noise():
    """Variance-preserving, of a flow, and exploding, at one signal-to-noise ratio."""
    levels = [Level(0.8, 0.6, 0.0), Level(4 / 7, 3 / 7, 0.0), Level(1.0, 0.75, 0.0)]
    assert [level.noise_share for level in levels] == pytest.approx([3 / 7] * 3)


def test_a_finished_run_is_left_alone(plain_run, capsys, no_model):
    def files() -> dict[Path, tuple[int, bytes]]:
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in plain_run.rglob("*") if path.is_file()}

    before = files()
    assert main(["train", str(TOY), "--runs", str(plain_run.parent)]) == 0
    first, *closing = capsys.readouterr().out.splitlines()
    assert first == f"{plain_run} is finished already, nothing was trained: for a new run choose another name=..."
    assert len(closing) == 6
    assert files() == before


def test_a_run_ends_with_six_lines(tmp_path, capsys):
    assert main(["train", str(TOY), "train.steps=1", "--runs", str(tmp_path)]) == 0
    closing = capsys.readouterr().out.splitlines()[-6:]
    run, (first, last) = tmp_path / "toy", read_run(tmp_path / "toy").evaluations
    assert closing == [
        f"held-out reward before: {first.reward:.3f} ± {first.stderr:.3f}",
        f"held-out reward after:  {last.reward:.3f} ± {last.stderr:.3f}",
        f"videos:  {run / 'samples/step-000000'} (before), {run / 'samples/step-000001'} (after)",
        f"adapter: {run / ADAPTER}",
        "guards:  no guard objects",
        f"report:  {run / 'report.html'}",
    ]


def test_a_tracker_gets_every_step_and_the_run_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metric = "evaluation.metrics=[{name: 'toys:Stillness'}]"
    recipe = toy_recipe("train.trackers=[tensorboard]", "train.max_skipped=1", metric)
    with monkeypatch.context() as patch:
        failing_in(patch, {4}, not_a_number)
        with pytest.raises(RunError):
            train(recipe, tmp_path)
    train(recipe, tmp_path)
    run = tmp_path / "toy"
    found, figures = {}, {}
    for folder in {path.parent for path in run.rglob("events.out*")}:
        events = EventAccumulator(str(folder)).Reload()
        if events.Tags()["scalars"]:
            found |= {event.step: event.value for event in events.Scalars("train/reward")}
            figures |= {event.step: event.value for event in events.Scalars("figures/Stillness")}
    rewards = {line["step"]: line["reward"] for line in metrics(run) if line["kind"] == "train"}
    assert figures == pytest.approx({e.step: e.figures["Stillness"] for e in read_run(run).evaluations})
    assert {s: r for s, r in found.items() if s != 4} == pytest.approx({s: r for s, r in rewards.items() if s != 4})


def test_trackers_change_no_number(tmp_path, plain_run):
    pytest.importorskip("tensorboard")
    train(toy_recipe("train.trackers=[tensorboard]"), tmp_path)
    assert metrics(tmp_path / "toy") == metrics(plain_run)
    assert adapter(tmp_path / "toy") == adapter(plain_run)


def test_another_process_count_than_the_batch_allows(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 3)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"train.batch is 4, which 3 processes cannot share: make it a multiple of 3"):
        train(toy_recipe(), tmp_path)


def test_two_runs_never_train_one_folder(tmp_path):
    recipe = toy_recipe("train.steps=1")
    folder = RunFolder(tmp_path / recipe.name)
    with folder.held(), pytest.raises(UserError, match=r"toy is being written by another command"):
        train(recipe, runs=tmp_path)
    assert not folder.recipe.exists()
    train(recipe, runs=tmp_path)  # what was held is free again, and a folder with nothing but its lock is fresh
    assert folder.finished
