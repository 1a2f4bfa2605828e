"""The pages on parts of one's own: their code keeps the contracts, and their commands run as they stand there."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from toy_runs import TOY
from vader import VideoModel
from vader.algorithms import resolved
from vader.cli import main
from vader.engine.build import load_recipe_guidance
from vader.evaluation.evaluate import BASE, build_bench, evaluate_sources
from vader.models import load_model
from vader.networks.techniques import load_techniques
from vader.nouns import VideoSize
from vader.plugins import checked_options
from vader.recipe import BUILT_IN, Recipe, load_recipe, recipe_names
from vader.rewards.registry import BUILT_IN as REWARDS
from vader.rewards.registry import load_reward, reward_class
from vader.runs.reader import Run, read_run
from vader.sampling.policies import load_policy
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
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def commands(page: str) -> list[list[str]]:
    """What the page runs of `vader check`."""
    lines = "".join(blocks(page, "bash")).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("vader check")]


def test_the_page_on_models(written, capsys):
    page = "docs/models/own.md"
    code = blocks(page, "python")[0]
    written("my_model", code)
    assert len(code.splitlines()) < 75
    (command,) = commands(page)
    assert main(command) == 0
    assert "FAIL" not in capsys.readouterr().out
    model, size = load_model("my_model:MyModel", "none"), VideoSize(frames=4, height=16, width=16)
    assert sample_videos(model, ["a", "b"], size, steps=3, guidance=3.0).shape == (2, 4, 3, 16, 16)
    latents = torch.randn(2, *model.noise_shape(size))
    assert model.decode(latents, torch.tensor([[0], [3]])).shape == (2, 1, 3, 16, 16)
    twin = load_model("my_model:MyModel", "none")
    for one, other in zip(model.denoiser.parameters(), twin.denoiser.parameters(), strict=True):
        assert torch.equal(one, other)
    step = trained(own_recipe(page), "algorithm={name: reward_gradient}").train[0]
    assert step.skipped == 0
    assert step.grad_norm > 1e-3
    assert step.clamped < 0.3


def own_recipe(page: str) -> dict[str, Any]:
    """A toy run of two steps of the page's model, which it names in its first recipe."""
    recipe = yaml.safe_load(TOY.read_text()) | {"train": {"steps": 2, "batch": 2}, "evaluation": {"videos": 2}}
    return recipe | yaml.safe_load(blocks(page, "yaml")[0])


def test_a_prediction_that_counts_nothing_at_the_last_time_is_found(written, capsys):
    """The page's model as it was once: multiplied by the time, which is 0 in the step that is trained."""
    written("my_model", blocks("docs/models/own.md", "python")[0].replace("(1 + time / 1000)", "(time / 1000)"))
    assert main(["check", "model", "my_model:MyModel"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "vader: 1 of 14 checks failed: the last step trains\n"
    assert "norm 0; " in captured.out


@pytest.mark.parametrize("page", ["docs/rewards/own.md", "README.md"])
def test_the_pages_on_rewards(written, capsys, page):
    written("my_reward", "\n".join(block for block in blocks(page, "python") if "Reward)" in block))
    (command,) = commands(page)
    assert main(command) == 0
    assert "FAIL" not in capsys.readouterr().out


def test_the_reward_that_sees_clips(written):
    written("my_reward", "\n".join(blocks("docs/rewards/own.md", "python")))
    assert main(["check", "reward", "my_reward:Stillness"]) == 0


def test_the_reward_that_sees_latents(written):
    written("my_reward", "\n".join(blocks("docs/rewards/own.md", "python")))
    latents = torch.randn(2, 4, 3, 2, 2)
    latents[1] = latents[1, :, :1]
    scores = load_reward("my_reward:Calm").score_latents(latents, torch.zeros(2), None)
    assert scores[0] < scores[1] == 0


def test_readmes_sketch_of_a_model_names_the_contract():
    """Every method there is one of `VideoModel`, with its parameters."""
    (sketch,) = (block for block in blocks("README.md", "python") if "VideoModel" in block)
    found = re.findall(r"def (\w+)\((.*?)\):", sketch)
    assert {name for name, _ in found} == VideoModel.__abstractmethods__
    for name, parameters in found:
        given = [part.split("=")[0].strip() for part in parameters.split(",")]
        expected = inspect.signature(getattr(VideoModel, name)).parameters
        assert set(given) - {"*", "self", "cls"} == expected.keys() - {"self", "cls"}, name


# ---- parts of one's own, all in one run of the toy model ----

PARTS = {  # of each page, the module that its code is, and the section of a recipe that names its part
    "docs/policies.md": ("my_policies", "algorithm"),
    "docs/guidance.md": ("my_guidance", "sampling"),
    "docs/memory.md": ("my_memory", "memory"),
    "docs/evaluation.md": ("my_metrics", "evaluation"),
}


def section_of(page: str, key: str, module: str) -> dict[str, Any]:
    """The page's recipe snippet that names a part of this module."""
    (snippet,) = (block for block in blocks(page, "yaml") if f"{module}:" in block)
    found = yaml.safe_load(snippet)
    assert found.keys() == {key}
    return found


@pytest.fixture
def own_parts(written) -> dict[str, Any]:
    """The recipe of a toy run with the parts of all pages, their code written to the working folder."""
    recipe = yaml.safe_load(TOY.read_text()) | {"train": {"steps": 1, "batch": 2}, "evaluation": {"videos": 3}}
    for page, (module, key) in PARTS.items():
        written(module, "".join(block for block in blocks(page, "python") if f"# {module}.py" in block))
        section = section_of(page, key, module)[key]
        recipe[key] = {**recipe[key], **section} if isinstance(recipe.get(key), dict) else section
    return recipe


def trained(recipe: dict[str, Any], *overrides: str) -> Run:
    Path("own.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "own.yaml", *overrides]) == 0
    return read_run(Path("runs/toy"))


def test_the_pages_on_parts_of_ones_own(own_parts):
    run = trained(own_parts)
    assert run.finished
    assert set(run.evaluations[-1].figures) == {"Brightness", "Variety"}
    assert run.train[0].grad_norm > 0


def test_options_of_the_pages_parts_are_checked(own_parts, capsys):
    Path("own.yaml").write_text(yaml.safe_dump(own_parts))
    assert main(["train", "own.yaml", "algorithm.policy.k=9"]) == 2
    assert "policy 'stretch' has k = 9: with 4 sampling steps choose 1 to 4" in capsys.readouterr().err
    assert main(["train", "own.yaml", "memory.1.most=2"]) == 2
    assert "has no option 'most'" in capsys.readouterr().err


def test_the_page_on_algorithms(own_parts, written):
    page = "docs/algorithms.md"
    written("my_algorithm", blocks(page, "python")[0])
    run = trained(own_parts | section_of(page, "algorithm", "my_algorithm"))
    assert run.train[0].queries == 3 * 2


# ---- what pages write of recipes ----

PAGES = ["README.md", "benchmarks/README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def commands_with_recipes(page: str) -> list[list[str]]:
    """Recipe and overrides of every command of the page that trains one, or measures its training."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    found = [re.search(r"(?:vader train|components\.py|policies\.py) (.*)", line) for line in lines]
    words = [shlex.split(match[1], comments=True) for match in found if match]
    return [[word for word in line if not word.startswith("-")] for line in words if "..." not in line]


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_pages_name_recipes_and_keys(page):
    for source, *overrides in commands_with_recipes(page):
        if source in recipe_names():
            checked(load_recipe(source, overrides))


@pytest.mark.parametrize("page", PAGES)
def test_snippets_of_pages_are_parts_of_recipes(page, tmp_path):
    for snippet in blocks(page, "yaml"):
        recipe = yaml.safe_load((BUILT_IN / "tiny.yaml").read_text())
        for key, section in yaml.safe_load(snippet).items():
            joined = isinstance(section, dict) and key != "algorithm"
            recipe[key] = {**recipe.get(key, {}), **section} if joined else section
        (tmp_path / "snippet.yaml").write_text(yaml.safe_dump(recipe))
        checked(load_recipe(str(tmp_path / "snippet.yaml")))


def test_the_whole_recipe_of_its_page_samples_videos_as_good_as_its_model(tmp_path):
    """Under sampling that the model was not made for, its videos' reward is near 0 in place of near 4."""
    whole = next(block for block in blocks("docs/recipes.md", "yaml") if "name: my-first" in block)
    (tmp_path / "whole.yaml").write_text(whole)
    recipe = load_recipe(str(tmp_path / "whole.yaml"))
    checked(recipe)
    bench = build_bench(recipe, videos=6, seeds=1)
    (point,) = evaluate_sources(bench, [BASE])
    assert point.reward == pytest.approx(3.9, abs=0.5)


def checked(recipe: Recipe) -> None:
    """Raises `UserError` if a part that is built in is none, or does not take its options; nothing is loaded."""
    for reward in recipe.rewards:
        if reward.name in REWARDS:
            checked_options(reward_class(reward.name), reward.name, reward.options)
    if ":" not in recipe.algorithm.name:
        policy = resolved(recipe).algorithm.options.get("policy")
        if policy and ":" not in policy["name"]:
            load_policy(policy["name"], {key: value for key, value in policy.items() if key != "name"})
    if ":" not in recipe.model.family and ":" not in str(recipe.sampling.guidance):
        load_recipe_guidance(recipe)
    load_techniques([part for part in recipe.memory if ":" not in part.name])
