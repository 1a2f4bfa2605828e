"""Every command that README and docs show is run here as it stands there, in a folder like its reader's.

What would take long is cut short, and each cut is named in `SHORT`; what needs weights that are not here has to end in
one line that names them. A command of a program that this file does not know fails: say here how it is tested.
"""

from __future__ import annotations

import csv
import glob
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ltx_factories import make_ltx_transformer
from run_factories import write_run
from study_factories import answered, attentive, by_system
from vader.cli import evaluation, main
from vader.errors import UserError
from vader.evaluation.evaluate import Source
from vader.files.hub import TINY_WEIGHTS
from vader.files.video import write_mp4
from vader.models import VideoModel
from vader.networks.adapter import add_adapter
from vader.networks.adapter_files import save_adapters
from vader.planning.step import Forecast
from vader.preference.study import Study, read_study
from vader.recipe import Recipe, dump_recipe, load_recipe, recipe_names
from vader.recipe.sections import TrainSection
from vader.runs.folder import step_name
from wan_factories import make_transformer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROJECT = (ROOT / "pyproject.toml").read_text()
EXTRAS = PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
LIBRARIES = set(re.findall(r'"([\w-]+)[^"]*"', EXTRAS))

# Of each command that would take long, what is run instead. Later options win over those that the page has.
SHORT = {
    "train": ["--dry-run", "--runs", "dry"],
    "evaluate": ["--videos", "1", "--seeds", "2"],
    "sample": ["--steps", "2"],
    "study new": ["--videos", "1"],
}
REPLACED = {  # of these, only what they would be called with is checked
    "reproduce": "vader.studies.reproduce",
    "tinyworld build": "vader.pretrain.build",
    "study serve": "vader.preference.server.serve",
}


QUICK = [
    "train.steps=1", "train.batch=1", "sampling.steps=2", "algorithm.policy.k=1", "sampling.guidance=1",
    "evaluation={every: 1, videos: 1, shown: 1, batch: 1, metrics: [{name: judge}]}",
]  # fmt: skip


# ---------------------------------------------------------------- the commands


def commands_of(page: Path) -> Iterator[str]:
    """Every command of a page: the lines of its bash blocks, and what its sentences quote."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        yield from (" ".join(re.sub(r"(^|\s)# .*", "", line).split()) for line in lines)
    sentences = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for quoted in re.findall(r"`((?:vader|make|pip|accelerate|torchrun|python) [^`]+)`", sentences):
        yield " ".join(quoted.split())


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands_of(page) if command))


def is_fragment(command: str) -> bool:
    """Whether it is only spoken of: it has a placeholder in capitals or dots, or no argument but options."""
    words = shlex.split(command)[1:]
    placeholders = [word for word in words if re.fullmatch(r"[A-Z]{3,}(\.\.\.)?", word) or word == "..."]
    group = 2 if words[0] in ("list", "check", "recipe", "tinyworld", "study") else 1
    return (
        bool(placeholders) or (words[:2] != ["tinyworld", "show"] and not words[group:]) or words[1].startswith("--f")
    )


WHOLE = [command for command in COMMANDS if shlex.split(command)[0] == "vader" and not is_fragment(command)]
FRAGMENTS = [command for command in COMMANDS if shlex.split(command)[0] == "vader" and is_fragment(command)]
OTHERS = [command for command in COMMANDS if shlex.split(command)[0] != "vader"]


# ---------------------------------------------------------------- the reader's folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What a reader has by the time they come to a command: runs, videos, pictures, files of their own."""
    root = tmp_path_factory.mktemp("reader")
    assert main(["train", "tiny", *QUICK, "--runs", str(root / "runs")]) == 0
    shutil.copytree(root / "runs" / "tiny", root / "elsewhere" / "renamed")
    checkpoints = root / "runs" / "tiny" / "checkpoints"
    for step in steps_left(load_recipe("tiny").train):
        shutil.copytree(checkpoints / step_name(1), checkpoints / step_name(step))
    for name in ("tiny-ddpo", "tiny-dpo"):
        write_run(root / "runs" / name, [4.0, 4.5], *(["sampling.eta=1.0"] if name == "tiny-ddpo" else []))
    adapter = root / "runs" / "tiny" / "adapter"
    shutil.rmtree(root / "runs" / "tiny" / "best", ignore_errors=True)
    for place in (
        "some/adapter",
        "runs/tiny/best",
        *(f"runs/{name}/adapter" for name in recipe_names() if "tiny" not in name),
    ):
        shutil.copytree(adapter, root / place)
    for recipe, network in {"wan-1.3b-hps": make_transformer(0), "ltx-2b-hps": make_ltx_transformer()}.items():
        adapted = {"transformer": add_adapter(network, VideoModel.lora_targets, rank=2)}
        save_adapters(adapted, root / "runs" / recipe / "adapter", {"family": recipe.split("-")[0]})
        dump_recipe(load_recipe(recipe), root / "runs" / recipe / "recipe.yaml", {})
    shutil.copytree(TINY_WEIGHTS / "modelscope", root / "path" / "to" / "fine-tune")
    (root / "vader_videocrafter_pickscore.pt").touch()
    for picture in ("photos/rex.jpg", "holiday/sea.jpg", "photos/labradors/a.jpg", "photos/malteses/b.jpg"):
        (root / picture).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (200, 120, 40)).save(root / picture)
    for name in ("ours", "theirs"):
        write_mp4(root / name / "a-dog.mp4", torch.rand(8, 3, 32, 32), fps=8)
    assert main(["study", "new", str(root / "ours"), str(root / "theirs"), "--out", str(root / "study")]) == 0
    (root / "answers").mkdir()
    (root / "my.yaml").write_text((ROOT / "src/vader/recipe/recipes/tiny.yaml").read_text())
    return root


def steps_left(train: TrainSection) -> list[int]:
    """Of which checkpoints are there after a run: the newest ones."""
    steps = sorted({*range(train.checkpoint_every, train.steps + 1, train.checkpoint_every), train.steps})
    return steps[-train.keep_checkpoints :]


@pytest.fixture
def reader(folder, monkeypatch) -> Iterator[Path]:
    """The reader's working folder, with some videos and without a network."""
    monkeypatch.chdir(folder)
    write_mp4("videos/a-dog.mp4", torch.rand(8, 3, 32, 32), fps=8)
    _answer(read_study(Path("study")))  # another one by each command that makes it
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    needs = Forecast({}, 0, 2**30, {}, 0, 1)  # test_planning.py has what is counted
    for room in ("search", "words"):
        monkeypatch.setattr(f"vader.planning.{room}.forecast", lambda recipe: needs)
    monkeypatch.setattr("vader.cli.evaluation._of_adapter", partial(_in_two_steps, evaluation._of_adapter))
    yield folder
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def _in_two_steps(found: Callable[..., tuple[Recipe, list[Source]]], *asked: Any) -> tuple[Recipe, list[Source]]:
    """What is evaluated without a run, as `SHORT` has it for samples: the command has no option for steps."""
    recipe, sources = found(*asked)
    return recipe.model_copy(update={"sampling": recipe.sampling.model_copy(update={"steps": 2})}), sources


def _answer(study: Study) -> None:
    """One rater's answers as the page leaves them, and as Mechanical Turk does; nobody's of Label Studio."""
    sheet = answered(study, "ann", attentive(by_system(study.systems[0])))
    Path("answers/ann.json").write_text(sheet.model_dump_json())
    given = json.dumps(sheet.model_dump(mode="json")["answers"])
    with open("results.csv", "w", newline="") as table:
        csv.writer(table).writerows([["WorkerId", "Input.study", "Answer.answers"], ["A1", study.id, given]])
    Path("export.json").write_text("[]")


@pytest.fixture
def replaced(monkeypatch) -> list[tuple]:
    """What would run for hours only notes what it is called with."""
    calls: list[tuple] = []
    for target in REPLACED.values():
        monkeypatch.setattr(target, lambda *arguments: calls.append(arguments) or [])
    return calls


def write_own_code(page: Path, folder: Path) -> None:
    """The page's own reward and model, as its reader copies them."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for module, kind in (("my_reward", "Reward)"), ("my_model", "(VideoModel)")):
        (folder / f"{module}.py").write_text("\n".join(block for block in blocks if kind in block))


# ---------------------------------------------------------------- run


def page_of(command: str) -> Path:
    return next(page for page in PAGES if command in set(commands_of(page)))


def arguments_of(command: str) -> list[str]:
    """The command's arguments, globs expanded, cut short by `SHORT`."""
    words = shlex.split(command)[1:]
    expanded = [one for word in words for one in (sorted(glob.glob(word)) if "*" in word else [word])]
    short = SHORT.get(" ".join(words[:2]), SHORT.get(words[0], []))
    return [*expanded, *(short[:1] if words[1].endswith("/recipe.yaml") else short)]  # a run goes on where it lies


def recipe_of(words: list[str]) -> str | None:
    named = words[1] if words[0] == "train" else words[words.index("--recipe") + 1] if "--recipe" in words else None
    return named if named in recipe_names() else None


def needs_weights(words: list[str]) -> bool:
    """Whether it cannot be done without a network: a recipe of a full-size model, or a reward at full size."""
    name = recipe_of(words)
    full_size = name is not None and load_recipe(name).model.checkpoint != "tiny"
    return full_size or (words[0] == "score" and "hps" in words)


@pytest.mark.parametrize("command", WHOLE)
def test_the_command_runs(command, reader, replaced, capsys):
    write_own_code(page_of(command), reader)
    words = arguments_of(command)
    if "--out" in words:
        shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
    capsys.readouterr()
    status = main(words)
    said = capsys.readouterr()
    if needs_weights(words):
        assert status == 2
        missed = r"vader: (.*'[\w.-]+/[\w./-]+' .*hub.*|https://\S+ could not be downloaded .*)\n"
        assert re.fullmatch(missed, said.err)
        return
    assert (status, said.err) == (0, "")
    long = [name for name in REPLACED if " ".join(words).startswith(name)]
    assert len(replaced) == len(long)


@pytest.mark.parametrize("command", FRAGMENTS)
def test_what_is_spoken_of_exists(command, capsys):
    """The command, and the options that are quoted with it."""
    words = shlex.split(command)[1:]
    group = 2 if words[0] in ("recipe", "check", "tinyworld", "study") else 1
    assert main([*words[:group], "--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in words if word.startswith("--"))


@pytest.mark.parametrize("command", OTHERS)
def test_commands_of_other_programs(command):
    program, *words = shlex.split(command)
    how = {
        "make": _is_target,
        "pip": _installs_this,
        "accelerate": _launches_vader,
        "torchrun": _launches_vader,
        "python": _is_script,
    }
    how[program](words)


def _is_target(words: list[str]) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(words) <= set(targets)


def _installs_this(words: list[str]) -> None:
    """`pip install .`, or libraries of the project's extras by their names: both work beside an install from source."""
    assert words[1:] == ["."] or set(words[1:]) <= LIBRARIES


def _launches_vader(words: list[str]) -> None:
    """What every process is told; that they work together is tested by `test_processes.py`."""
    command = words[words.index("vader") + 1 :]
    assert command[0] == "train"
    if "..." not in command:
        load_recipe(command[1], command[2:])


def _is_script(words: list[str]) -> None:
    """`test_benchmarks.py` runs the scripts; here, that there is one and that it knows the options."""
    text = (ROOT / words[0]).read_text()
    assert all(f'"{word}"' in text for word in words if word.startswith("--"))


# ---------------------------------------------------------------- the page on Python


def test_the_page_on_python_runs(reader, monkeypatch):
    """All its code in one go, the training cut short; the fields that it explains are those that the run has."""
    page = (ROOT / "docs" / "python.md").read_text()
    monkeypatch.setattr(
        "vader.recipe.load_recipe",
        lambda source, overrides=(): load_recipe(source, [*overrides, *(QUICK if source == "tiny" else [])]),
    )
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert (reader / "runs/mine/adapter").is_dir()
    assert names["videos"].shape == (2, 8, 3, 32, 32)
    assert names["score"].total is not None
    assert [step for step, _ in names["curve"]] == [0, 1]
    written = {field for line in names["lines"] for field in line}
    rows = re.findall(r"^\| (`.+?) \|", page, re.MULTILINE)
    assert {field for row in rows for field in re.findall(r"`(\w+)`", row)} == written


# ---------------------------------------------------------------- what pages promise


def test_what_is_to_be_installed_can_be_beside_an_install_from_source():
    """The distribution is on no index: pages and messages name libraries of its extras, or those that it needs."""
    needed = set(re.findall(r'^    "([\w-]+)[>=]', PROJECT, re.MULTILINE)) | LIBRARIES
    assert {"bitsandbytes", "fastapi", "transformers"} <= needed
    for page in [*PAGES, *(ROOT / "src").rglob("*.py")]:
        for line in re.findall(r"pip install ([^\n`]*)", page.read_text()):
            named = [word.strip("\"')") for word in line.split() if not word.startswith("-")]
            assert named[0] == "." or named[0] in needed or named[0] == "{tracker}", (page, line)


def test_pages_of_models_that_diffusers_cannot_load_adapters_into_say_what_can():
    from diffusers import StableVideoDiffusionPipeline, UNet3DConditionModel

    assert not hasattr(UNet3DConditionModel, "load_lora_adapter")
    assert not hasattr(StableVideoDiffusionPipeline, "load_lora_weights")
    for family in ("modelscope", "svd", "videocrafter", "opensora"):
        assert "vader.load_into(" in (ROOT / "docs" / "models" / f"{family}.md").read_text()


def test_a_command_that_is_wrong_would_be_found(reader):
    """The test itself: a misspelt option or recipe does not pass."""
    assert main(arguments_of("vader train tinny")) == 2
    assert main(arguments_of("vader list recipies")) == 2
    with pytest.raises(AssertionError):
        _installs_this(["install", "vader[int8]"])
    with pytest.raises(UserError):
        _launches_vader(["-m", "vader", "train", "tiny", "optimizer.lrr=1"])
