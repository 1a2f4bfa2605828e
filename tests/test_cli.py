"""The command line: help with an example everywhere, exit statuses, one-line errors, commands that need no training."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vader
from factories import make_tiny_modelscope
from vader.cli import main
from vader.cli.listing import LISTINGS
from vader.errors import RunError, Stopped, UserError
from vader.files.video import read_video, write_mp4
from vader.models.registry import model_names
from vader.recipe import Recipe, load_recipe, recipe_names
from vader.sampling.policies import POLICIES
from vader.scoring.files import find_videos, prompts_beside

COMMANDS = [
    ["train"],
    ["recipe", "show"],
    ["recipe", "new"],
    ["evaluate"],
    ["compare"],
    ["reproduce"],
    ["sample"],
    ["score"],
    ["list"],
    ["check", "reward"],
    ["check", "model"],
    ["report"],
    ["export"],
    ["tinyworld", "build"],
    ["tinyworld", "show"],
    ["study", "new"],
    ["study", "serve"],
    ["study", "export"],
    ["study", "report"],
]

MY_REWARDS = """
from vader.rewards.base import FrameReward

class Brightness(FrameReward):
    \"\"\"The mean of all pixels, times a gain.\"\"\"

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def score_frames(self, images, prompts):
        return self.gain * images.mean(dim=(1, 2, 3))

class Broken(Brightness):
    def score_frames(self, images, prompts):
        return self.gain * images.mean()
"""

OWN_REWARD = "rewards=[{name: my_rewards:Brightness}]"


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """The working folder of a user who has written a reward."""
    (tmp_path / "my_rewards.py").write_text(MY_REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_tiny_modelscope(tmp_path_factory.mktemp("modelscope"))


def error_of(capsys, arguments: list[str], status: int = 2) -> str:
    """The one line on stderr with which a command ends."""
    assert main(arguments) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("vader: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(capsys, command):
    assert main([*command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Example: vader {' '.join(command)}" in text


def test_bare_vader_and_its_help_name_every_command(capsys):
    for arguments in ([], ["--help"]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        assert all(command[0] in text for command in COMMANDS)


def test_the_version_is_said(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vader {vader.__version__}\n"


def test_help_imports_nothing_heavy():
    script = "import sys; from vader.cli import main; main(['train', '--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_python_m_vader_is_the_command():
    ran = subprocess.run([sys.executable, "-m", "vader", "train"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "vader: Missing argument 'recipe'. See 'vader train --help'.\n"


# ---------------------------------------------------------------- exit statuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'"),
        (["check"], "Missing command"),
        (["train"], "Missing argument 'recipe'"),
        (
            ["train", "tiny", "--stepz", "3"],
            "--stepz. A recipe's keys are written KEY=VALUE, as in train.steps=80. See",
        ),
        (["train", "tiny", "--runz", "x"], "No such option: --runz. Did you mean --runs? See 'vader train"),
        (["sample", "a dog", "--zzz"], "No such option: --zzz. See 'vader sample"),
        (["sample", "a dog", "--guidance", "0.5"], ". See 'vader sample"),
        (["list", "recipes", "rewards"], "(rewards). See 'vader list"),
        (["score", "x.mp4"], "Missing option '--reward'"),
        (["sample", "a dog", "--steps", "0"], "'--steps'"),
        (["sample", "a dog", "--steps", "many"], "'--steps'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(capsys, arguments, message):
    line = error_of(capsys, arguments)
    assert message in line
    assert "--help'." in line


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("no such thing"), 2, "no such thing"),
        (RunError("rewards were not finite\nfor 5 steps"), 1, "rewards were not finite for 5 steps"),
        (Stopped("stopped after step 3"), 130, "stopped after step 3"),
        (KeyboardInterrupt(), 130, "stopped by the keyboard"),
    ],
)
def test_each_end_has_its_line_and_status(capsys, monkeypatch, error, status, line):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("vader.training.trainer.train", fail)
    assert error_of(capsys, ["train", "tiny"], status) == f"vader: {line}\n"


def test_train_hands_over_the_recipe_and_prints_the_closing_lines(capsys, monkeypatch, tmp_path):
    calls = []

    class Result:
        def lines(self) -> list[str]:
            return ["before: 1", "after: 2"]

    def run(recipe: Recipe, runs: Path, dry_run: bool, folder: Path | None) -> Result | None:
        assert folder is None
        calls.append((recipe, runs, dry_run))
        return None if dry_run else Result()

    monkeypatch.setattr("vader.training.trainer.train", run)
    assert main(["train", "tiny", "optimizer.lr=1e-4", "--runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "before: 1\nafter: 2\n"
    assert main(["train", "--dry-run", "tiny", "optimizer.lr=1e-4"]) == 0
    assert "nothing was trained" in capsys.readouterr().out
    recipe = load_recipe("tiny", ["optimizer.lr=1e-4"])
    assert calls == [(recipe, tmp_path, False), (recipe, Path("runs"), True)]


def test_only_the_first_process_speaks(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "tny"]) == 2
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------- mistakes of the user


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "tny"], "no recipe 'tny'"),
        (["train", "tiny", "optimizer.lrr=1"], "unknown key 'optimizer.lrr': did you mean 'lr'?"),
        (["train", "tiny", "optimizer.lr=fast"], "expected a number above 0"),
        (["train", "tiny", "algorithm.policy.k=21"], "k is 21 but sampling.steps is 10"),
        (["train", "tiny", "rewards.0.sees=9"], "videos have 8 frames"),
        (["train", "tiny", "prompts.test=tiny-tset"], "did you mean 'tiny-test'?"),
        (["train", "tiny", "prompts.train=empty.txt"], "prompt file 'empty.txt' holds no prompts"),
        (["train", "tiny", "model.family=modelscop"], "did you mean 'modelscope'?"),
        (["train", "tiny", "model.checkpoint=no folder", OWN_REWARD], "checkpoint 'no folder' is no folder here"),
        (["list", "recipe"], "did you mean 'recipes'?"),
        (["sample"], "nothing to sample"),
        (["sample", "--file", "missing.txt"], "prompt file 'missing.txt' does not exist"),
        (["sample", "--file", "empty.txt"], "prompt file 'empty.txt' holds no prompts"),
        (["sample", "--file", "tiny-tset"], "did you mean 'tiny-test'?"),
        (["sample", "a dog", "--recipe", "tny"], "no recipe 'tny'"),
        (
            ["sample", "a dog", "--image", "s/0.mp4"],
            "image 's/0.mp4' does not exist: give a picture, or a folder of pict",
        ),
        (["sample", "a dog", "--image", "x.mp4"], "image 'x.mp4' is no picture: its name must end in .png, .jpg"),
        (["sample", "a dog", "--image", "tiny-pictures-test"], "image 'tiny-pictures-test' does not exist"),
        (["sample", ""], "'modelscope' make a video of a text, but a prompt is empty: write what its video is to show"),
        (["sample", "a dog", " \t"], "but a prompt is empty"),
        (["sample", "a dog", "--model", "modelscop:x"], "did you mean 'modelscope'?"),
        (["sample", "a dog", "--model", "modelscope"], "write family:checkpoint"),
        (["sample", "a dog", "--model", "modelscope:x", "--frames", "2"], "give --height, --width"),
        (["sample", "a dog", "--recipe", "tiny", "--model", "modelscope:no folder"], "no folder"),
        (["sample", "a dog", "--recipe", "tiny", "--model", "my_rewards:Broken:x"], "VideoModel"),
        (
            ["sample", "a dog", "--out", "empty.txt/below"],
            "cannot write the folder 'empty.txt/below': choose another --out",
        ),
        (["score", "x.mp4", "--reward", "aesthetics"], "did you mean 'aesthetic'?"),
        (["score", "x.mp4", "--reward", "aesthetic=1"], "write name or name:key=value"),
        (["score", "x.mp4", "--reward", "my_rewards:Brightness:gain"], "gain"),
        (["score", "gone.mp4", "--reward", "my_rewards:Brightness"], "no video at gone.mp4"),
        (["score", "x.mp4", "--reward", "my_rewards:Brightness:weight=big"], "its weight must be a number"),
        (
            ["score", "x.mp4", "--reward", "hps:contrast=[a,b,c],checkpoint=tiny"],
            "input should be a list of 2, or null",
        ),
        (["score", "x.mp4", "--reward", "hps:checkpoint=tiny,contrast=[a]"], "input should be a list of 2, or null"),
        (["score", "x.mp4", "--reward", "my_rewards:Brightness:gains=1"], "did you mean 'gain'?"),
        (["score", "x.mp4", "--reward", "my_rewards:Brightnes"], "did you mean 'Brightness'?"),
        (["score", "x.mp4", "--reward", "hps", "--prompt", "a", "--prompts", "b.txt"], "give one of the two"),
        (["check", "reward", "nope"], "unknown reward 'nope'"),
        (["check", "model", "nope:tiny"], "write family:checkpoint"),
        (["report", "empty"], "no run's folder"),
        (["export", "empty", "--out", "x"], "give one of --merged and --adapter"),
        (["export", "empty", "--out", "x", "--merged", "--adapter"], "give one of --merged and --adapter"),
        (["export", "empty", "--out", "x", "--adapter"], "no run's folder"),
    ],
    ids=" ".join,
)
def test_mistakes_are_one_line_and_status_2(capsys, user_folder, arguments, message):
    for name in ("empty.txt", "x.mp4"):
        (user_folder / name).touch()
    (user_folder / "empty").mkdir()
    assert message in error_of(capsys, arguments)


def test_as_many_prompts_as_videos(capsys, user_folder):
    (user_folder / "one.txt").write_text("a dog\n")
    (user_folder / "a.mp4").touch()
    arguments = ["score", "a.mp4", "b.mp4", "--reward", "my_rewards:Brightness", "--prompts", "one.txt"]
    assert "2 videos need as many prompts, got 1" in error_of(capsys, arguments)


# ---------------------------------------------------------------- list, check


def test_lists_start_with_the_names(capsys):
    assert main(["list", "recipes"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == recipe_names()
    expected = {
        "models": "modelscope",
        "rewards": "aesthetic",
        "metrics": "gold",
        "prompts": "tiny-test",
        "algorithms": "reward_gradient",
        "policies": "last",
        "guidance": "cfg",
        "memory": "recompute",
        "guards": "retention",
    }
    for kind, name in expected.items():
        assert main(["list", kind]) == 0
        assert name in {line.split()[0] for line in capsys.readouterr().out.splitlines()}


def test_families_are_models(capsys):
    listed = []
    for kind in ("families", "models"):
        assert main(["list", kind]) == 0
        listed.append(capsys.readouterr().out)
    assert listed[0] == listed[1] != ""


@pytest.mark.parametrize("command", ["export", "evaluate", "sample"])
def test_help_names_the_best_of_a_run(capsys, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([command, "--help"]) == 0
    assert "runs/tiny@best" in capsys.readouterr().out


def test_a_bare_list_tells_what_can_be_listed(capsys):
    assert main(["list"]) == 0
    kinds = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(kinds) == list(LISTINGS)
    assert kinds["policies"].startswith("Where the reward's gradient enters the chain, algorithm.policy")


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("policies", "last", "(k=1) The last K steps; "),
        ("policies", "direct_align", "(window=[0.1, 1.0], gap=0.1) The finished video"),
        ("policies", "steps", "(steps=...) The steps that"),
        ("policies", "full", "Every step"),
        ("guidance", "interval", "(scale=..., start=0.0, end=0.5) Classifier-free"),
        ("guidance", "none", "The conditional prediction alone"),
        ("memory", "shard", "(rewards=false) Denoisers'"),
        ("memory", "offload_activations", "Steps with a graph"),
    ],
)
def test_parts_are_listed_with_their_options(capsys, kind, name, said):
    assert main(["list", kind]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert listed[name].startswith(said)


def test_recipes_are_listed_with_all_that_they_say_of_themselves(capsys):
    assert main(["list", "recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.endswith(".") for line in lines)
    (line,) = (line for line in lines if line.split()[0] == "modelscope-aesthetic")
    assert line.endswith("Needs a GPU. With less memory: video.height=256 video.width=256, and {name: "
                         "offload_activations} in memory.")  # fmt: skip


def test_models_are_listed_with_what_their_recipes_load(capsys):
    assert main(["list", "models"]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(said) == model_names()
    for recipe in map(load_recipe, recipe_names()):
        assert recipe.model.checkpoint in said[recipe.model.family], recipe.name


def test_a_terminal_sees_descriptions_that_fit(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "70")
    assert main(["list", "policies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 70
    starts = [line for line in lines if not line.startswith(" ")]
    assert [line.split()[0] for line in starts] == list(POLICIES)
    assert {len(line) - len(line.lstrip()) for line in lines if line.startswith(" ")} == {len("direct_align") + 2}


def test_a_negative_prompt_without_guidance_is_refused(capsys):
    arguments = ["sample", "a dog", "--guidance", "1", "--negative", "grey"]
    assert "under this guidance nothing is led away from: raise sampling.guidance" in error_of(capsys, arguments)


def test_check_passes_a_good_reward(capsys, user_folder):
    assert main(["check", "reward", "my_rewards:Brightness:gain=2.5"]) == 0
    out = capsys.readouterr().out
    assert "pass" in out
    assert "FAIL" not in out


def test_check_fails_a_bad_reward(capsys, user_folder):
    assert main(["check", "reward", "my_rewards:Broken"]) == 1
    captured = capsys.readouterr()
    assert "FAIL" in captured.out
    assert "checks failed" in captured.err


def test_check_takes_a_size_for_a_model(capsys, checkpoint):
    assert main(["check", "model", f"modelscope:{checkpoint}", "--size", "2x16x16"]) == 0
    assert "FAIL" not in capsys.readouterr().out
    assert "as in 16x256x256" in error_of(capsys, ["check", "model", f"modelscope:{checkpoint}", "--size", "2x16"])


# ---------------------------------------------------------------- score


def write_grey(path, level: float) -> str:
    return str(write_mp4(path, torch.full((4, 3, 32, 32), level), fps=8, upscale=1))


def test_scores_as_json(capsys, user_folder):
    videos = [write_grey(user_folder / f"{level}.mp4", level) for level in (0.25, 0.75)]
    rewards = ["--reward", "my_rewards:Brightness", "--reward", "my_rewards:Brightness:gain=2,weight=0.5"]
    assert main(["score", *videos, *rewards, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert [file["path"] for file in scores["files"]] == videos
    assert scores["mean"] == pytest.approx({"Brightness": 0.5, "Brightness_2": 1.0, "total": 1.0}, abs=0.01)
    assert scores["std"] == pytest.approx({"Brightness": 0.25, "Brightness_2": 0.5, "total": 0.5}, abs=0.01)
    assert scores["files"][1]["parts"]["Brightness_2"]["mean"] == pytest.approx(1.5, abs=0.02)


def test_scores_as_a_table_with_means(capsys, user_folder):
    videos = [write_grey(user_folder / f"{level}.mp4", level) for level in (0.25, 0.75)]
    assert main(["score", *videos, "--reward", "my_rewards:Brightness", "--max-frames", "2"]) == 0
    out = capsys.readouterr().out
    assert all(path in out for path in videos)
    means = [float(mean) for mean in re.findall(r"(0\.\d{4}) ± 0\.\d{4}", out)]
    assert means == pytest.approx([0.25, 0.75, 0.5, 0.5], abs=0.01)  # two videos, and both together
    assert [row.split("│")[1].strip() for row in out.splitlines() if "│" in row][-1] == "mean"


def test_a_folder_of_videos_is_scored_video_by_video(capsys, user_folder):
    (user_folder / "videos").mkdir()
    videos = [write_grey(user_folder / "videos" / f"{level}.mp4", level) for level in (0.25, 0.75)]
    (user_folder / "videos" / "contact-sheet.png").touch()
    (user_folder / "prompts.txt").write_text("one\ntwo\n")
    arguments = ["score", str(user_folder / "videos"), "--reward", "my_rewards:Brightness", "--prompts", "prompts.txt"]
    assert main([*arguments, "--json"]) == 0
    assert [file["path"] for file in json.loads(capsys.readouterr().out)["files"]] == videos


def test_a_terminal_sees_how_far_scoring_is(capsys, user_folder, monkeypatch):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    videos = [write_grey(user_folder / f"{level}.mp4", level) for level in (0.25, 0.75)]
    assert main(["score", *videos, "--reward", "my_rewards:Brightness", "--json"]) == 0
    captured = capsys.readouterr()
    assert "2/2" in captured.err
    assert json.loads(captured.out)["mean"]["total"] == pytest.approx(0.5, abs=0.01)


def test_names_are_never_cut_to_the_same_text(capsys, user_folder, monkeypatch):
    """On the narrowest terminal a long name is folded, and numbers stay whole or break at the sign."""
    names = [f"{'a long prompt that two videos have ' * 2}{i}.mp4" for i in (1, 2)]
    for name in names:
        write_grey(user_folder / name, 0.5)
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    for columns in (50, 80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        rewards = [word for _ in range(3) for word in ("--reward", "my_rewards:Brightness")]
        assert main(["score", *names, *rewards]) == 0
        out = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
        cells = [row.split("│")[1].strip(" ") for row in out.splitlines() if "│" in row]
        text = "".join(cells).replace(" ", "")
        assert "…" not in out
        assert all(name.replace(" ", "") in text for name in names), columns


def test_the_sign_of_spread_is_explained(capsys, user_folder):
    video = write_grey(user_folder / "a.mp4", 0.5)
    assert main(["score", video, "--reward", "my_rewards:Brightness"]) == 0
    assert "±: how far a video's frames are apart (standard deviation)" in capsys.readouterr().out


def test_videos_are_scored_against_the_prompts_beside_them(capsys, user_folder, monkeypatch):
    write_grey(user_folder / "a.mp4", 0.5)
    (user_folder / "prompts.json").write_text('[{"file": "a.mp4", "prompt": "a grey day"}]')
    told: list[str] = []
    monkeypatch.setattr("my_rewards.Brightness.check_prompts", lambda self, prompts: told.extend(map(str, prompts)))
    for further in ([], ["--prompt", "another"]):
        assert main(["score", str(user_folder), "--reward", "my_rewards:Brightness", *further]) == 0
    assert list(dict.fromkeys(told)) == ["a grey day", "another"]


def test_without_a_single_score_there_is_no_table(capsys, user_folder):
    (user_folder / "broken.mp4").write_bytes(b"no video")
    assert main(["score", "broken.mp4", "--reward", "my_rewards:Brightness"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "vader: 1 of 1 videos could not be scored: broken.mp4 is no video that can be read: "
        "give an mp4, webm or gif, or a folder of frames\n"
    )


def test_unreadable_files_are_reported_and_the_others_scored(capsys, user_folder):
    (user_folder / "broken.mp4").write_bytes(b"no video")
    good = write_grey(user_folder / "good.mp4", 0.5)
    assert main(["score", good, "broken.mp4", "missing.mp4", "--reward", "my_rewards:Brightness", "--json"]) == 1
    captured = capsys.readouterr()
    scores = json.loads(captured.out)
    assert scores["mean"]["Brightness"] == pytest.approx(0.5, abs=0.01)
    assert [file["error"] is None for file in scores["files"]] == [True, False, False]
    first, second, last = captured.err.splitlines()
    assert "broken.mp4" in first
    assert "missing.mp4" in second
    assert last == "vader: 2 of 3 videos could not be scored"


# ---------------------------------------------------------------- sample


def test_sample_writes_videos_and_a_sheet(capsys, tmp_path, checkpoint):
    size = ["--frames", "2", "--height", "16", "--width", "16", "--steps", "2", "--guidance", "2"]
    arguments = ["sample", "Red!", "blue red", "--model", f"modelscope:{checkpoint}", *size]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 0
    names = [os.path.basename(line) for line in capsys.readouterr().out.splitlines()]
    assert names == ["000-red.mp4", "001-blue-red.mp4", "contact-sheet.png", "prompts.json"]
    assert sorted(os.listdir(tmp_path / "a")) == names
    assert read_video(tmp_path / "a" / "000-red.mp4").shape == (2, 3, 16, 16)

    assert [prompt.text for prompt in prompts_beside(find_videos([tmp_path / "a"]))] == ["Red!", "blue red"]

    assert main([*arguments, "--batch", "1", "--out", str(tmp_path / "again")]) == 0
    assert main([*arguments, "--seed", "1", "--out", str(tmp_path / "other")]) == 0
    first, again, other = (read_video(tmp_path / folder / "000-red.mp4") for folder in ("a", "again", "other"))
    assert (first - again).abs().max() < 0.02
    assert (first - other).abs().max() > 0.05


def test_sample_refuses_a_missing_adapter(capsys, tmp_path, checkpoint):
    arguments = ["sample", "red", "--recipe", "tiny", "--model", f"modelscope:{checkpoint}"]
    assert "nowhere" in error_of(capsys, [*arguments, "--out", str(tmp_path), "--adapter", "nowhere"])


def test_a_console_without_the_letters_is_no_reason_to_fail(monkeypatch):
    """As a pipe on Windows is, in code page 1252: it has neither Chinese nor a minus sign of its own."""
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", errors="strict", write_through=True)
    monkeypatch.setattr(sys, "stdout", console)
    monkeypatch.setattr(sys, "stderr", console)
    assert main(["train", "\u732b\u2212.yaml"]) == 2
    assert b"\\u732b\\u2212.yaml" in console.buffer.getvalue()
