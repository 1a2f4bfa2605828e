"""What is shown of a run: time left by what is left of each kind, and how far a long step or evaluation is."""

from __future__ import annotations

import shutil
import time

import pytest

from run_factories import evaluation_line, train_line
from toy_runs import TOY, toy_recipe
from vader.cli import main
from vader.cli.progress import progress as cli_progress
from vader.cli.progress import told
from vader.runs.folder import step_name
from vader.training import progress
from vader.training.progress import Display, TimeLeft
from vader.training.trainer import TrainResult

RECIPE = toy_recipe("train.steps=20", "evaluation.every=5", "evaluation.videos=8", "evaluation.final_videos=40")


def test_the_first_evaluation_does_not_count_as_steps():
    """Twenty steps of 2 s, videos of 0.5 s: three evaluations of 8 and one of 40 are to come."""
    left = TimeLeft(RECIPE)
    left.evaluation(20.0, 40)  # of the base model
    assert left.after(0) == "?"
    left.step(2.0)
    assert left.after(1) == "1:10"  # 19 * 2 + (3 * 8 + 40) * 0.5
    assert left.after(5) == "1:02"  # its own evaluation is still to come
    assert left.after(6) == "0:56"
    assert left.after(20) == "0:20"


def test_hours_are_hours():
    left = TimeLeft(RECIPE)
    left.step(300.0)
    assert left.after(1) == "1:35:00"


def test_a_log_hears_of_a_long_evaluation_but_not_of_a_short_one(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Display(RECIPE, 0, shown=True) as display:
        display.stage("scoring 40 held-out videos")
        for seconds in (10, 29, 31, 40, 62):
            now[0] = seconds
            display.inside(f"after {seconds} s")
    assert capsys.readouterr().out.splitlines() == ["scoring 40 held-out videos", "after 31 s", "after 62 s"]


def test_a_console_has_one_minus_sign(capsys, tmp_path):
    with Display(RECIPE, 0, shown=True) as display:
        display.train(train_line(1, reward=-0.0551, parts={}))
        display.evaluation(evaluation_line(1, -0.0651, figures={"gold": -0.25}))
    assert capsys.readouterr().out.splitlines() == [
        "step 1/20  reward -0.055  1.80 s/step  left 0:34",
        "step 1/20  held-out reward -0.065 ± 0.140 (64 videos)  gold -0.25",
    ]
    (tmp_path / "samples" / step_name(0)).mkdir(parents=True)
    (tmp_path / "samples" / step_name(0) / "prompts.json").touch()
    before, after, *_ = TrainResult(tmp_path, before=(-0.0651, 0.14), after=(-1.0, 0.14)).lines()
    assert (before, after) == ("held-out reward before: -0.065 ± 0.140", "held-out reward after:  -1.000 ± 0.140")


STEPS = {
    "algorithm={name: ddpo}": ["step 1: sampling, part 1 of 1 of a minibatch", "step 1: update 2 of 2"],
    "algorithm={name: diffusion_dpo, pairs: 2}": ["step 1: sampling 4 videos", "step 1: update 4 of 4"],
}


@pytest.mark.parametrize("algorithm", STEPS)
def test_baselines_and_evaluations_tell_how_far_they_are(tmp_path, monkeypatch, capsys, algorithm):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    few = ["train.steps=1", "sampling.eta=1", "evaluation.batch=2", "--runs", str(tmp_path)]
    assert main(["train", str(TOY), algorithm, *few]) == 0
    said = capsys.readouterr().out.splitlines()
    assert {*STEPS[algorithm], "scored 2 of 3 held-out videos", "scored 3 of 3 held-out videos"} <= set(said)


def test_a_log_hears_how_far_sampling_is_where_it_takes_long(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with cli_progress("sampled", 20) as advance:
        for seconds in (10, 29, 31, 40, 62):
            now[0] = seconds
            advance(2)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "sampled 6/20 videos  left 1 min 12 s",  # 31 s for 6
        "sampled 10/20 videos  left 1 min 2 s",
    ]
    assert captured.out == ""


def test_a_log_hears_that_the_first_videos_take_long(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.02)
    with cli_progress("sampled", 20):
        time.sleep(0.3)
    assert capsys.readouterr().err == "sampled 0/20 videos\n"


def test_a_log_hears_which_step_a_plan_has_counted_where_it_takes_long(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with told("counting") as tell:
        for seconds, words in ((29, "as it is"), (31, "with [park]"), (60, "with tiles"), (62, "with both")):
            now[0] = seconds
            tell(words)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["counting: with [park]", "counting: with both"]
    assert captured.out == ""


def test_sampling_and_studies_tell_each_batch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    assert main(["sample", "a", "b", "c", "--recipe", str(TOY), "--batch", "2", "--out", str(tmp_path / "a")]) == 0
    said = [line.partition("  left")[0] for line in capsys.readouterr().err.splitlines()]
    assert [line for line in said if "0/3" not in line] == ["sampled 2/3 videos", "sampled 3/3 videos"]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert main(["study", "new", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "study")]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "made 6/6 videos"
