"""The pages on parts of one's own: their code keeps the contracts, and their commands run as they stand there."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from vader import VideoModel
from vader.cli import main
from vader.models import load_model
from vader.nouns import VideoSize
from vader.sampling.videos import sample_videos

ROOT = Path(__file__).parents[1]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function that puts a page's code into a module in the working folder."""

    def write(module: str, code: str) -> None:
        (tmp_path / f"{module}.py").write_text(code)
        monkeypatch.delitem(sys.modules, module, raising=False)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield write
    for name in ("my_model", "my_reward"):
        sys.modules.pop(name, None)


def commands(page: str) -> list[list[str]]:
    """What the page runs of `vader check`."""
    lines = "".join(blocks(page, "bash")).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("vader check")]


def test_the_page_on_models(written, capsys):
    page = "docs/models/own.md"
    code = blocks(page, "python")[0]
    written("my_model", code)
    assert len(code.splitlines()) < 70
    (command,) = commands(page)
    assert main(command) == 0
    assert "FAIL" not in capsys.readouterr().out
    model, size = load_model("my_model:MyModel", "none"), VideoSize(frames=4, height=16, width=16)
    assert sample_videos(model, ["a", "b"], size, steps=3, guidance=3.0).shape == (2, 4, 3, 16, 16)
    latents = torch.randn(2, *model.noise_shape(size))
    assert model.decode(latents, torch.tensor([[0], [3]])).shape == (2, 1, 3, 16, 16)


@pytest.mark.parametrize("page", ["docs/rewards/own.md", "README.md"])
def test_the_pages_on_rewards(written, capsys, page):
    written("my_reward", "\n".join(block for block in blocks(page, "python") if "Reward)" in block))
    (command,) = commands(page)
    assert main(command) == 0
    assert "FAIL" not in capsys.readouterr().out


def test_the_reward_that_sees_clips(written):
    written("my_reward", "\n".join(blocks("docs/rewards/own.md", "python")))
    assert main(["check", "reward", "my_reward:Stillness"]) == 0


def test_readmes_sketch_of_a_model_names_the_contract():
    """Every method there is one of `VideoModel`, with its parameters."""
    (sketch,) = (block for block in blocks("README.md", "python") if "VideoModel" in block)
    found = re.findall(r"def (\w+)\((.*?)\):", sketch)
    assert {name for name, _ in found} == VideoModel.__abstractmethods__
    for name, parameters in found:
        given = [part.split("=")[0].strip() for part in parameters.split(",")]
        expected = inspect.signature(getattr(VideoModel, name)).parameters
        assert set(given) - {"*", "self", "cls"} == expected.keys() - {"self", "cls"}, name
