"""Rewards that do not keep their contract end a run before it starts, in one line; steps that train nothing end it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from toy_runs import TOY, metrics, toy_recipe
from toys import ToyModel, Warmth
from vader.algorithms.reward_gradient import RewardGradient
from vader.cli import main
from vader.errors import RunError, UserError
from vader.runs.folder import ADAPTER
from vader.training.failures import memory_advice
from vader.training.trainer import train

STAY = (
    "stay in torch from the pixels on, without detach, no_grad, numpy and PIL, or train with "
    "algorithm='{name: ddpo}', which needs no gradient"
)
MESSAGES = {
    "NoReturn": "gave None: let it return a tensor [2] from `score_frames`, one number for each image",
    "OneNumber": "gave shape [] from `score_frames`: it should be [2], one number for each image",
    "ANumber": "gave a float: let it return a tensor [2] from `score`, one number for each video",
    "TooWide": "gave shape [2, 4] from `score`: it should be [2], one number for each video",
    "Counts": "gave int64 scores from `score_frames`: they should be float32, with a gradient",
    "Half": "gave float16 scores: end with .float(), scores go out as float32",
    "Raises": r"fails with KeyError: 'a .*' (broken_rewards.py, line 47): 'vader check reward' tells more",
    "Detached": f"gives scores without a gradient to the pixels: {STAY}",
    "ThroughNumpy": f"cannot be differentiated (broken_rewards.py, line 57): {STAY}",
    "NotANumber": "gives nan for random pixels in [0, 1]: let scores be numbers; 'vader check reward' tells more",
    "OfTheBatch": "gives a video .* beside another and 0 alone: let nothing of the batch into a video's score, no mean "
    "over it and no batch normalisation; 'vader check reward' tells more",
    "Normalised": "gives a video .* beside another and .* alone: let nothing of the batch into a video's score, no "
    "mean over it and no batch normalisation; 'vader check reward' tells more",
}


def arguments(reward: str, *more: str) -> list[str]:
    return ["train", str(TOY), f"rewards=[{{name: 'broken_rewards:{reward}'}}]", *more]


@pytest.mark.parametrize("reward", MESSAGES)
def test_a_broken_reward_is_one_line_before_the_run_starts(tmp_path, capsys, reward):
    assert main([*arguments(reward), "--dry-run", "--runs", str(tmp_path / "runs")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    pattern = re.escape(MESSAGES[reward]).replace(r"\.\*", ".*")
    assert re.fullmatch(rf"vader: reward '{reward}' {pattern}\n", captured.err)
    assert not (tmp_path / "runs").exists()


def test_a_reward_without_a_number_for_the_base_s_videos_ends_the_run_there(tmp_path, capsys):
    for _ in range(2):  # the same command comes to the same
        assert main([*arguments("NoNumberForVideos", "evaluation.videos=3"), "--runs", str(tmp_path / "runs")]) == 1
        said = "the reward is no number on any of 3 videos of the base model: look at the reward with 'vader check"
        assert said in capsys.readouterr().err
    assert not (tmp_path / "runs/toy/metrics.jsonl").exists()


@pytest.mark.parametrize("reward", ["Good", "Random"])
def test_a_good_reward_passes(tmp_path, reward):
    train(toy_recipe(f"rewards=[{{name: 'broken_rewards:{reward}'}}]", "train.steps=1"), tmp_path)
    assert metrics(tmp_path / "toy")[1]["grad_norm"] > 0


@pytest.mark.parametrize("reward", ["Detached", "ThroughNumpy"])
@pytest.mark.parametrize("algorithm", ["algorithm={name: ddpo}", "algorithm={name: diffusion_dpo, pairs: 2}"])
def test_baselines_need_no_gradient(tmp_path, reward, algorithm):
    few = ("train.steps=1", "sampling.eta=1", algorithm)
    train(toy_recipe(f"rewards=[{{name: 'broken_rewards:{reward}'}}]", *few), tmp_path)
    assert metrics(tmp_path / "toy")[1]["grad_norm"] > 0


def test_every_reward_of_a_mix_is_tried(tmp_path):
    with pytest.raises(UserError, match="reward 'Detached' gives scores without a gradient"):
        train(toy_recipe("rewards=[{name: 'broken_rewards:Good'}, {name: 'broken_rewards:Detached'}]"), tmp_path)


def test_evaluate_tries_the_rewards_first_but_needs_no_gradient(tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    for reward, status in (("Half", 2), ("Detached", 0)):
        rewards = f"rewards:\n  - {{name: 'broken_rewards:{reward}'}}\n"
        recipe.write_text(re.sub(r"rewards:\n(  - .*\n)+", rewards, TOY.read_text()))
        out = ["--out", str(tmp_path / reward), "--videos", "1", "--seeds", "1"]
        assert main(["evaluate", "--recipe", str(recipe), *out]) == status
    assert "vader: reward 'Half' gave float16 scores" in capsys.readouterr().err


def test_a_reward_that_fails_in_mid_run_is_a_failed_run_whose_checkpoint_stays(tmp_path, capsys):
    few = ("scoring.chunk=2", "evaluation.videos=1", "evaluation.metrics=[]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vader.training.trainer._step", _failing_step)
        assert main([*arguments("FailsLate", *few), "--runs", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "vader: reward 'FailsLate' fails with OSError: the table of words is gone (broken_rewards.py, line 94): "
        "'vader check reward' tells more; the checkpoint of step 0 stays\n"
    )
    assert (tmp_path / "toy/checkpoints/step-000000/state.pt").is_file()


def _failing_step(run, display):
    from vader.nouns import Clip
    from vader.rewards.contract import scored

    ((name, reward),) = run.engine.reward.items()
    scored(name, reward, Clip.whole(torch.rand(1, 4, 3, 8, 8), 4.0), run.train_prompts[:1])


# ---- steps that train nothing ----

NOTHING = {
    "reward_gradient": (
        "algorithm={name: reward_gradient}",
        "the reward is constant there, cut off or on a plateau ('vader check reward' looks at it), or the model's "
        "prediction does not count in the steps that are trained ('vader check model')",
    ),
    "ddpo": (
        "algorithm={name: ddpo}",
        "all videos have the same reward, and it learns from differences: choose a reward that differs",
    ),
    "diffusion_dpo": (
        "algorithm={name: diffusion_dpo, pairs: 2}",
        "no two videos of a prompt differ in reward, so there are no pairs: choose a reward that does",
    ),
}


@pytest.mark.parametrize(("algorithm", "why"), NOTHING.values(), ids=NOTHING)
def test_a_constant_reward_is_told_at_the_first_step_and_ends_the_run(tmp_path, capsys, algorithm, why):
    more = (algorithm, "sampling.eta=1", "train.max_skipped=3")
    assert main([*arguments("Constant", *more), "--runs", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    said = [line for line in captured.out.splitlines() if line.startswith("step 1 trained nothing")]
    assert said == [f"step 1 trained nothing: no gradient reaches the adapter: {why}"]
    assert captured.err == (
        f"vader: no gradient reached the adapter in 3 steps in a row: {why}; the adapter is saved as it was before "
        "them (step 3)\n"
    )
    assert (tmp_path / "toy/checkpoints/step-000003").is_dir()
    assert not (tmp_path / "toy" / ADAPTER).exists()


def test_clamped_pixels_are_named(tmp_path, monkeypatch):
    decode = ToyModel.decode_unclamped
    monkeypatch.setattr(ToyModel, "decode_unclamped", lambda self, *given: decode(self, *given) + 9)
    why = r"100% of the pixels are clamped to \[0, 1\], where none flows: bring what the decoder gives into that range"
    with pytest.raises(RunError, match=f"no gradient reached the adapter in 5 steps in a row: {why}"):
        train(toy_recipe(), tmp_path)


@pytest.mark.parametrize("reward", ["Steep", "Constant"])
def test_a_run_of_skipped_steps_alone_is_no_finished_run(tmp_path, capsys, reward):
    asked = [*arguments(reward, "train.steps=2"), "--runs", str(tmp_path)]
    for _ in range(2):  # nor when the same command is given again
        assert main(asked) == 1
        assert capsys.readouterr().err == (
            "vader: none of the 2 steps trained anything, so there is no adapter: in each the reward or its gradient "
            "was not finite, or zero: look at the reward with 'vader check reward'\n"
        )
    assert not (tmp_path / "toy" / ADAPTER).exists()


# ---- no memory left ----

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:116] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError(),
]
ADVICE = (
    "try train.micro_batch=1, scoring.chunk=1, evaluation.batch=1, {name: recompute, of: layers} in memory, "
    "{name: park} in memory, {name: offload_activations} in memory, sampling.guidance_batched=false, "
    "a smaller video, under another name=...; 'vader plan' tells what fits a GPU"
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_out_of_memory_in_mid_run_says_what_to_switch_and_the_checkpoint_stays(tmp_path, capsys, monkeypatch, error):
    with monkeypatch.context() as patch:
        patch.setattr(RewardGradient, "step", _step_that_raises(patch, error))
        assert main(["train", str(TOY), "--runs", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"vader: out of memory: {ADVICE}; the checkpoint of step 0 stays\n"
    assert main(["train", str(TOY), "--runs", str(tmp_path)]) == 0


def _step_that_raises(patch: pytest.MonkeyPatch, error: Exception):
    """A step whose reward raises, so that the error passes through all that calls it."""
    whole_step = RewardGradient.step

    def score_frames(self, images, prompts):
        raise error

    def step(self, engine, batch):
        patch.setattr(Warmth, "score_frames", score_frames)
        return whole_step(self, engine, batch)

    return step


def test_out_of_memory_before_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ToyModel, "load", _raising_load)
    assert main(["train", str(TOY), "--runs", str(tmp_path / "runs")]) == 1
    assert capsys.readouterr().err == f"vader: out of memory: {ADVICE}\n"
    assert not (tmp_path / "runs").exists()


def _raising_load(checkpoint: str, *, dtype: torch.dtype = torch.float32):
    raise MemoryError


def test_what_is_switched_already_is_not_advised():
    thrifty = toy_recipe(
        "train.micro_batch=1", "scoring.chunk=1", "evaluation.batch=1", "sampling.guidance_batched=false",
        "memory=[{name: recompute, of: layers}, {name: park}, {name: offload_activations}]",
    )  # fmt: skip
    assert memory_advice(thrifty) == "try a smaller video, under another name=...; 'vader plan' tells what fits a GPU"
    by_layer = "{name: recompute, of: layers} in memory"
    for coarse in ("memory=[]", "memory=[{name: recompute}]"):
        assert by_layer in memory_advice(toy_recipe(coarse))


def test_another_error_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr("vader.training.trainer.write_samples", None)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        train(toy_recipe(), tmp_path)
    assert Path(tmp_path / "toy/recipe.yaml").is_file()
