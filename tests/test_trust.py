"""Code of others runs only when asked: a run's recipe imports nothing of itself, and no run's folder holds modules."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vader
from vader import plugins
from vader.cli import main
from vader.errors import UserError
from vader.plugins import load_object, run_around
from vader.recipe import BUILT_IN, dump_recipe, load_recipe
from vader.rewards.base import Reward
from vader.runs.reader import read_run

TINY = BUILT_IN / "tiny.yaml"
EVIL = "from vader import FrameReward\nopen({mark!r}, 'w').close()\nclass Evil(FrameReward):\n    pass\n"


@pytest.fixture(autouse=True)
def _own_path(monkeypatch):
    """Modules of other tests and the path are as they were."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("vader.plugins._beside", [])
    for name in ("evil", "runs.stranger.evil", "runs.stranger", "runs", "helper", "colorsys"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """The folder of a stranger's run, which names code that lies in it; `tmp_path` is where one works."""
    folder = tmp_path / "runs" / "stranger"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter/pytorch_lora_weights.safetensors").touch()
    text = TINY.read_text().replace("rewards:", "rewards:\n  - {name: 'evil:Evil'}", 1)
    (folder / "recipe.yaml").write_text(text)
    (folder / "metrics.jsonl").touch()
    (folder / "evil.py").write_text(EVIL.format(mark=str(tmp_path / "done")))
    monkeypatch.chdir(tmp_path)
    return folder


def test_reading_runs_adds_no_place_to_look_for_modules(stranger):
    read_run(stranger)
    load_recipe(str(stranger / "recipe.yaml"), trust_code=True)
    assert plugins._beside == []
    own = stranger.parents[1] / "mine.yaml"
    own.write_text(TINY.read_text())
    load_recipe(str(own))
    assert plugins._beside == [own.parent]


def evil_was_done(folder: Path) -> bool:
    return (folder.parents[1] / "done").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "runs/stranger/recipe.yaml"],
        ["train", "runs/stranger/recipe.yaml", "name=mine"],
        ["sample", "a dog", "--recipe", "runs/stranger/recipe.yaml"],
        ["evaluate", "--recipe", "runs/stranger/recipe.yaml"],
        ["export", "runs/stranger", "--merged", "--out", "out"],
    ],
    ids=" ".join,
)
def test_a_runs_recipe_imports_nothing_unless_it_is_trusted(stranger, capsys, arguments):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "recipe.yaml' names code (rewards.0.name: evil:Evil) and may come with a stranger's run: add --trust" in line
    assert not evil_was_done(stranger)
    assert sorted(os.listdir()) == ["runs"]


@pytest.mark.parametrize("where", [".", "runs/stranger"])
@pytest.mark.parametrize("spec", ["evil:Evil", "runs.stranger.evil:Evil"])
def test_nothing_below_a_runs_folder_is_importable(stranger, monkeypatch, where, spec):
    text = (stranger / "recipe.yaml").read_text().replace("evil:Evil", spec)
    (stranger / "recipe.yaml").write_text(text)
    recipe = load_recipe(str(stranger / "recipe.yaml"), trust_code=True)
    monkeypatch.chdir(where)
    with pytest.raises(UserError, match=r"no module|from which nothing is imported"):
        load_object(recipe.rewards[0].name, "reward", Reward)
    assert not evil_was_done(stranger)
    assert sys.path.count(str(Path.cwd())) == 0


def test_a_run_is_read_without_its_code_and_with_ones_own_in_its_place(stranger):
    assert read_run(stranger).recipe.rewards[0].name == "evil:Evil"
    own = load_recipe(str(stranger / "recipe.yaml"), ["rewards.0.name=my:Own", "prompts.test=os:abort"])
    assert own.rewards[0].name == "my:Own"
    with pytest.raises(UserError, match=r"rewards\.0\.name: evil:Evil"):
        load_recipe(str(stranger / "recipe.yaml"), ["prompts.test=tiny-test"])
    assert run_around(stranger / "samples" / "x.mp4") == stranger
    assert run_around(stranger.parent) is None


def test_every_place_that_names_code_is_looked_at(stranger):
    for override, key in (
        ("algorithm={name: reward_gradient, policy: {name: 'evil:f'}}", "algorithm.policy.name"),
        ("evaluation.metrics=[{name: 'evil:M'}]", "evaluation.metrics.0.name"),
        ("memory=[{name: 'evil:T'}]", "memory.0.name"),
        ("sampling.guidance={name: 'evil:G'}", "sampling.guidance.name"),
        ("model.family='evil:M'", "model.family"),
        ("prompts.train='evil:p'", "prompts.train"),
    ):
        dump_recipe(load_recipe("tiny", [override]), stranger / "recipe.yaml", {"python": "3"})
        with pytest.raises(UserError, match=rf"names code \({re.escape(key)}: evil:\w\) and may come"):
            load_recipe(str(stranger / "recipe.yaml"))


def test_a_module_beside_the_recipe_is_found_with_what_it_imports(tmp_path, monkeypatch):
    project = tmp_path / "project"
    project.mkdir()
    (project / "mine.yaml").write_text(TINY.read_text())
    (project / "helper.py").write_text("SCALE = 3.0\n")
    (project / "beside.py").write_text(
        "from vader import FrameReward\nfrom helper import SCALE\n"
        "class Scaled(FrameReward):\n    def score_frames(self, images, prompts):\n        return SCALE\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no module 'beside' here"):
        load_object("beside:Scaled", "reward", Reward)
    load_recipe("project/mine.yaml")
    path = list(sys.path)
    assert issubclass(load_object("beside:Scaled", "reward", Reward), vader.FrameReward)
    assert sys.path == path


def test_a_stray_file_stands_for_no_library(tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("class Mine: pass\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_object("colorsys:Mine", "reward", Reward)
    assert str(caught.value).endswith(
        f"; an installed module has the name of '{tmp_path / 'colorsys.py'}', give it another"
    )


def test_the_working_folder_is_not_on_the_path_of_python_m(tmp_path):
    (tmp_path / "yaml.py").write_text("raise SystemExit('stray')\n")
    command = [sys.executable, "-m", "vader", "list", "recipes"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert sorted(os.listdir(tmp_path)) == ["yaml.py"]
