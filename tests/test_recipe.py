"""Recipes: reading, overriding, writing back, and the one-line error for every mistake."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from vader.errors import UserError
from vader.plugins import Part, complete
from vader.recipe import (
    Recipe,
    RewardSection,
    dump_recipe,
    first_difference,
    library_versions,
    load_recipe,
    parse_value,
    recipe_names,
)
from vader.recipe.sections import Section
from vader.sampling.guidance import STRATEGIES
from vader.sampling.policies import POLICIES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "recipes.md"
LAUGHS = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))])
TINY = ROOT / "src" / "vader" / "recipe" / "recipes" / "tiny.yaml"
REWARD = "{name: ..., weight: ..., sees: ..., hinge: ..., robust: ...}"


def error_of(*overrides: str, source: str = "tiny") -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(source, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_built_in_recipes_load():
    assert {"modelscope-aesthetic", "tiny", "tiny-ddpo", "tiny-dpo"} <= set(recipe_names())
    for name in recipe_names():
        assert load_recipe(name).name == name


def test_a_file_loads_like_a_built_in_one(tmp_path):
    assert load_recipe(written(tmp_path / "mine.yaml", TINY.read_text())) == load_recipe("tiny")


def test_overrides_set_dotted_paths():
    recipe = load_recipe(
        "tiny",
        [
            "optimizer.lr=1e-4",  # a text in YAML 1.1
            "rewards.0.weight=0.5",
            "rewards.0.target=10",  # a reward's own option
            "adapter.alpha=8",  # an integer where a float is expected
            "adapter.targets=[to_q, to_v]",
            "optimizer.betas=[0.8, 9.9e-1]",
            "rewards.0.sees=[0, 7]",
            "algorithm.policy.k=3",  # an algorithm's own setting
            "memory=[{name: shard}, {name: recompute}]",
            "sampling.guidance={name: interval, scale: 4}",
        ],
    )
    assert recipe.optimizer.lr == 1e-4
    assert recipe.rewards[0].weight == 0.5
    assert recipe.rewards[0].options == {"checkpoint": "tiny", "target": 10}
    assert recipe.adapter.alpha == 8.0
    assert recipe.adapter.targets == ("to_q", "to_v")
    assert recipe.optimizer.betas == (0.8, 0.99)
    assert recipe.scoring.chunk == 4
    assert recipe.rewards[0].sees == (0, 7)
    assert recipe.algorithm.options["policy"] == {"name": "last", "k": 3}
    assert recipe.memory == (Part(name="shard"), Part(name="recompute"))
    assert recipe.sampling.guidance == Part(name="interval", scale=4)


def test_sections_that_are_left_out_have_their_defaults(tmp_path):
    text = "\n".join(line for line in TINY.read_text().splitlines() if not line.startswith(("memory", "algorithm")))
    recipe = load_recipe(written(tmp_path / "short.yaml", text))
    assert recipe.memory == (Part(name="recompute"),)
    assert (recipe.algorithm.name, recipe.algorithm.options) == ("reward_gradient", {})
    opened = load_recipe(str(tmp_path / "short.yaml"), ["algorithm.base_distance=0.1"])
    assert (opened.algorithm.name, opened.algorithm.options) == ("reward_gradient", {"base_distance": 0.1})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2E5", -2e5),
        (".5e3", 500.0),
        ("1.e+1", 10.0),
        ("3", 3),
        ("0.5", 0.5),
        ("true", True),
        ("null", None),
        ("", None),
        ("[1, 2e0]", [1, 2.0]),
        ("my.mod:Class", "my.mod:Class"),
        ("'1e-4'", "1e-4"),
        ("e4", "e4"),
    ],
)
def test_values_are_yaml_with_plain_floats(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_what_is_read_twice_is_not_shared():
    first = parse_value("{a: [1, {b: 2}]}")
    first["a"][1]["b"] = 3
    assert parse_value("{a: [1, {b: 2}]}") == {"a": [1, {"b": 2}]}


def test_a_dumped_recipe_loads_back_equal(tmp_path):
    overrides = ["optimizer.lr=1e-7", "rewards.0.sees=[1, 3]", "rewards.0.note='1e-4'", "rewards.0.scale=2e-9"]
    recipe = load_recipe("tiny", [*overrides, "sampling.guidance={name: interval, scale: 4, steps: [2, 8]}"])
    dump_recipe(recipe, tmp_path / "recipe.yaml", library_versions())
    first_line, *_ = (tmp_path / "recipe.yaml").read_text().splitlines()
    for library in ("python 3", "torch 2", "diffusers 0", "peft 0", "vader 0"):
        assert library in first_line
    again = load_recipe(str(tmp_path / "recipe.yaml"))
    assert again == recipe
    assert again.rewards[0].options["note"] == "1e-4"


def test_a_dumped_recipe_names_every_key(tmp_path):
    dump_recipe(load_recipe("tiny"), tmp_path / "recipe.yaml", {})
    data = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert set(data) == set(Recipe.model_fields)
    assert data["optimizer"]["eps"] == 1e-8


def test_the_first_difference_names_its_key():
    one, other = load_recipe("tiny"), load_recipe("tiny", ["rewards.0.weight=2", "train.steps=50"])
    assert first_difference(one, one) is None
    assert first_difference(one, other) == "rewards.0.weight is 1.0 there and 2.0 here"
    assert first_difference(one, load_recipe("tiny", ["algorithm.policy.k=3"])) == (
        "algorithm.policy.k is 1 there and 3 here"
    )


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimizer.lrr=1", ["unknown key 'optimizer.lrr'", "did you mean 'lr'?"]),
        ("optimiser.lr=1", ["unknown key 'optimiser'", "did you mean 'optimizer'?"]),
        ("scoring.size=1", ["unknown key 'scoring.size'", "known: chunk"]),
        ("optimizer.lr=fast", ["'optimizer.lr' is \"fast\"", "expected a number above 0"]),
        ("optimizer.lr=-1e-4", ["'optimizer.lr' is -0.0001", "expected a number above 0"]),
        ("optimizer.lr=.inf", ["'optimizer.lr' is Infinity", "expected a number above 0"]),
        ("video.frames=8.5", ["'video.frames' is 8.5", "expected an integer from 1 to 10000"]),
        ("video.frames='8'", ["'video.frames' is \"8\"", "expected an integer from 1 to 10000"]),
        ("video.frames=", ["'video.frames' is null", "expected an integer from 1"]),
        ("sampling.eta=2", ["'sampling.eta' is 2", "expected a number from 0 to 1"]),
        ("model.options=3", ["'model.options' is 3", "expected a section"]),
        ("sampling.guidance=0.5", ["'sampling.guidance' is 0.5", "a number from 1 or a part {name: ...} with options"]),
        ("sampling.guidance={scale: 4}", ["'sampling.guidance' is {\"scale\": 4}", "or a part {name: ...}"]),
        ("train.trackers=[x]", ["'train.trackers.0' is \"x\"", "expected one of tensorboard, wandb"]),
        ("algorithm=ddpo", ["algorithm is a part: write algorithm: {name: ddpo}"]),
        ("algorithm=dpo", ["algorithm is a part: write algorithm: {name: diffusion_dpo}"]),
        ("video.frames=10001", ["expected an integer from 1 to 10000 (no machine holds a longer video at once)"]),
        ("optimizer.lr=1e38", ["'optimizer.lr' is 1e+38: expected a number above 0 to 100 (Adam moves every weight"]),
        ("evaluation.final_videos=100001", ["an integer from 1 to 100000 or null (more than anyone looks at)"]),
        (f"name={'a' * 201}", ["has 201 bytes: a folder's name has at most 200"]),
        (f"train.seed={2**63}", ["expected an integer from -9.22337203685478e+18"]),
        ("train..steps=1", ["'train..steps' is no path of keys, as optimizer.lr is"]),
        ("a" + ".a" * 1000 + "=1", ["is no path of keys, as optimizer.lr is"]),
        ("train.steps=!!int abc", ["'abc' is not an integer"]),
        ("memory={name: recompute}", ['\'memory\' is {"name": "recompute"}', "a list, each a part {name: ...}"]),
        ("memory=[recompute]", ["'memory.0' is \"recompute\"", "expected a part {name: ...}"]),
        ("evaluation.metrics=[{nme: judge}]", ["key 'evaluation.metrics.0.name' is missing", "expected a text"]),
        ("prompts.train=3", ["'prompts.train' is 3", "expected a text"]),
        ("adapter.alpha=0", ["'adapter.alpha' is 0", "expected a number above 0 or null"]),
        ("adapter.targets=[1]", ["'adapter.targets' is [1]", "expected a list of at least one, each a text or null"]),
        ("adapter.targets=[]", ["'adapter.targets' is []: expected a list of at least one, each a text or null"]),
        ("optimizer.betas=[0.9]", ["'optimizer.betas' is [0.9]", "a list of 2, each a number from 0 below 1"]),
        ("optimizer.betas=[0.9, 1]", ["'optimizer.betas' is [0.9, 1]", "a list of 2, each a number from 0 below 1"]),
        ("rewards.0.sees=some", ["'rewards.0.sees' is \"some\"", "an integer above 0 or one of all"]),
        ("rewards.0.sees=[-1]", ["'rewards.0.sees' is [-1]", "each an integer from 0"]),
        (
            "rewards=[]",
            ["'rewards' is []", f"expected a list of at least one, each a part {REWARD}"],
        ),
        ("rewards.0.weight=big", ["'rewards.0.weight' is \"big\"", "expected a number"]),
        (
            "rewards.0=aesthetic",
            ["'rewards.0' is \"aesthetic\"", f"expected a part {REWARD}"],
        ),
        ("video=8", ["'video' is 8", "expected a section with the keys frames, height, width, fps"]),
        ("optimizer.lr", ["'optimizer.lr' has no value", "dotted.path=value"]),
        ("optimizer.lr.x=1", ["'optimizer.lr.x'", "nothing below the value 0.002"]),
        ("rewards.3.weight=1", ["'rewards.3.weight'", "'3' is no index of a list of 2"]),
        ("rewards.first.weight=1", ["'rewards.first.weight'", "'first' is no index"]),
        ("optimizer.betas=[0.9", ["'[0.9' is not valid YAML"]),
    ],
)
def test_a_wrong_override_is_one_helpful_line(override, parts):
    message = error_of(override)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rewards.0.sees=9"], "rewards.0.sees is 9 but videos have 8 frames: let it see at most 8, or set it to all"),
        (["rewards.0.sees=[0, 8]"], "rewards.0.sees holds 8 but videos have 8 frames: indices run from 0 to 7"),
        (["rewards.0.sees=[]"], "rewards.0.sees is an empty list"),
        (["rewards.0.sees=[2, 2]"], "is [2, 2]: name each index once"),
        (["rewards.0.sees=first_middle_last", "video.frames=2"], "it needs at least 3"),
        (["rewards.0.weight=0"], "rewards.0.weight is 0, so that nothing would be learned from it"),
        (["train.micro_batch=3"], "train.batch 4 is no multiple of train.micro_batch 3"),
        (["name=a/b"], "name 'a/b' names the run's folder"),
        (["name='..'"], "name '..' names the run's folder"),
    ],
)
def test_keys_that_contradict_each_other_are_one_line(overrides, message):
    assert message in error_of(*overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "algorithm.ddpo.clip_range=1.0e-4",
            "algorithm.ddpo is now part of the algorithm itself: write algorithm: {name: ddpo, clip_range: 0.0001}",
        ),
        (
            "algorithm={name: diffusion_dpo, dpo: {beta: 500, pairs: 16}}",
            "algorithm.dpo is now part of the algorithm itself: "
            "write algorithm: {name: diffusion_dpo, beta: 500, pairs: 16}",
        ),
        (
            "algorithm.frames.sample=[0, 7]",
            "algorithm.frames.sample is now sees, a key of each reward: "
            "write rewards: [{name: aesthetic, checkpoint: tiny, sees: [0, 7]}]",
        ),
        (
            "algorithm.frames.chunk=2",  # of each of four videos
            "algorithm.frames.chunk is now scoring.chunk, and counts images over all videos of a micro-batch: "
            "write scoring: {chunk: 8}",
        ),
        (
            "evaluation.judge=true",
            "evaluation.judge is now one of evaluation.metrics: to have it write "
            "evaluation: {metrics: [{name: judge}, {name: gold, task: looks}]}, else drop the key",
        ),
        (
            "evaluation.monitors=[{name: hps, weight: 1.0, checkpoint: tiny}]",
            "evaluation.monitors is now evaluation.metrics: "
            "write evaluation: {metrics: [{name: hps, checkpoint: tiny}]}",
        ),
        (
            "memory.offload=true",
            "memory.offload is now in a list of techniques: "
            "write memory: [{name: recompute}, {name: offload_activations}]",
        ),
        (
            "memory={checkpointing: false, offload: true}",
            "memory.checkpointing and memory.offload are now in a list of techniques: "
            "write memory: [{name: offload_activations}]",
        ),
    ],
)
def test_a_key_of_the_first_form_names_the_new_one(tmp_path, override, message):
    assert error_of(override, source="tiny-aesthetic") == f"recipe 'tiny-aesthetic': {message}"
    # The same in a file.
    data = yaml.safe_load(TINY.with_name("tiny-aesthetic.yaml").read_text())
    path, _, value = override.partition("=")
    for key in reversed(path.split(".")):
        value = {key: parse_value(value) if isinstance(value, str) else value}
    file = written(tmp_path / "old.yaml", yaml.safe_dump(data | value, sort_keys=False))
    assert error_of(source=file) == f"recipe {file!r}: {message}"


def test_the_new_form_writes_out_a_list_that_stands_twice():
    rewards = "rewards=[{name: aesthetic, checkpoint: tiny}, {name: hps, checkpoint: tiny}]"
    new = "rewards: [{name: aesthetic, checkpoint: tiny, sees: [0, 7]}, {name: hps, checkpoint: tiny, sees: [0, 7]}]"
    assert error_of(rewards, "algorithm.frames.sample=[0, 7]").endswith(f"write {new}")


def test_the_new_form_that_an_error_shows_is_a_recipe(tmp_path):
    for old in ("algorithm.ddpo.minibatches=4", "memory.offload=true", "algorithm.frames.sample=all"):
        new = error_of(old).rpartition("write ")[2]
        data = yaml.safe_load(TINY.read_text()) | parse_value(new)
        load_recipe(written(tmp_path / "new.yaml", yaml.safe_dump(data)))


def test_a_misspelt_key_comes_before_what_is_missing_because_of_it():
    assert "unknown key 'model.chekpoint': did you mean 'checkpoint'?" in error_of("model={chekpoint: tiny}")


def test_unknown_recipe_names_the_nearest():
    assert "no recipe 'tny'" in error_of(source="tny")
    assert error_of(source="recipes/tiny2.yaml") == (
        "recipe file 'recipes/tiny2.yaml' does not exist: did you mean the built-in 'tiny'?"
    )


@pytest.mark.parametrize("source", ["nope.yaml", "a/b", "./nope"])
def test_what_can_only_be_a_file_brings_no_list_of_names(source):
    assert error_of(source=source) == (
        f"recipe file {source!r} does not exist: give a file, or a name of 'vader list recipes'"
    )
    assert error_of(source="/") == "recipe file '/' is a folder: give a file"
    assert "known: cogvideox-hps" in error_of(source="zzz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no keys"),
        ("- 1\n- 2\n", "holds no keys"),
        ("name: x\nvideo: {frames: [}\n", "is not valid YAML"),
        ("name: x\nname: y\n", "key 'name' is given twice (line 2)"),
        ("name: \x01", "is not valid YAML"),
        ("name: x\n", "is missing: expected a section with the keys"),
        ("1: x\n", "key 1 is no text: put quotes round it (line 1)"),
        ("off: x\n", "key off, a truth value in YAML, is no text: put quotes round it (line 1)"),
        ("? [a]\n: x\n", "a key is no text: put quotes round it (line 1)"),
        ("name: !!int abc\n", "'abc' is not an integer (line 1)"),
        ("name: !!float {}\n", "is not valid YAML"),
        ("name: !!binary abc\n", "the tag '!!binary' is none of a recipe (line 1)"),
        ("name: !!python/name:os.abort\n", "the tag '!!python/name:os.abort' is none of a recipe"),
        (f"name: {'9' * 5_000}\n", "is not an integer (line 1)"),
        ("name: loop\nrewards: &a [*a]\n", "an anchor holds itself (line 2)"),
        (LAUGHS, "it stands for more than 10000 values"),
        ("name: " + "[" * 5_000, "it is nested too deeply"),
        ('name: "\\ud800"\n', "a text holds what is no character (line 1)"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, text, message):
    assert message in error_of(source=written(tmp_path / "broken.yaml", text))


def test_anchors_and_dates_are_what_they_look_like(tmp_path):
    text = (
        TINY.read_text()
        .replace("name: tiny\n", "name: &named 2024-13-45\n")
        .replace("checkpoint: tiny", "checkpoint: *named", 1)
    )
    recipe = load_recipe(written(tmp_path / "x.yaml", text))
    assert (recipe.name, recipe.model.checkpoint) == ("2024-13-45", "2024-13-45")


def test_a_missing_key_says_what_it_should_be(tmp_path):
    text = TINY.read_text().replace("train: {steps: 30, ", "train: {")
    message = error_of(source=written(tmp_path / "x.yaml", text))
    assert "key 'train.steps' is missing: expected an integer from 1 to 100000000" in message


def test_a_binary_file_is_one_line(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "x.yaml' is no UTF-8 text (line 1): save it as UTF-8" in error_of(source=str(tmp_path / "x.yaml"))
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "pipe.yaml' is a pipe or a device: give a file" in error_of(source=str(tmp_path / "pipe.yaml"))


# ---------------------------------------------------------------- docs/recipes.md


def documented_sections(path: str = "", model: type = Recipe) -> dict[str, type]:
    """Every section of a recipe by its dotted path."""
    found = {path: model}
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section | Part):
            found |= documented_sections(f"{path}.{key}".lstrip("."), field.annotation)
    return found | ({"rewards": RewardSection} if model is Recipe else {})


def page_tables(of: str) -> dict[str, dict[str, str]]:
    """The page's tables whose first column is called so: heading -> name -> the second column."""
    heading, head, tables = "", "", {}
    for line in DOCS.read_text().splitlines():
        if line.startswith("#"):
            heading = line.strip("#` ")
        elif table := re.match(r"\| (\w+) \|", line):
            head = table[1]
        elif head == of and (row := re.match(r"\| `(\w+)` \| (.*?) \|", line)):
            tables.setdefault(heading, {})[row[1]] = row[2]
    return tables


def as_documented(field: FieldInfo) -> object:
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return "optional"
    return to_jsonable_python(field.default)


def test_the_page_on_recipes_has_every_key_with_its_default():
    actual = {
        path: {key: as_documented(field) for key, field in model.model_fields.items()}
        for path, model in documented_sections().items()
    }
    written = values_of(page_tables("key"))
    written[""] = written.pop("The top level")
    assert written == actual


def values_of(tables: dict[str, dict[str, str]]) -> dict[str, dict[str, object]]:
    return {path: {key: parse_value(cell.strip("`")) for key, cell in rows.items()} for path, rows in tables.items()}


def test_the_page_has_every_option_of_every_algorithm():
    from vader.algorithms import ALGORITHMS

    assert values_of(page_tables("option")) == {
        name: complete(algorithm.Settings, {}) for name, algorithm in ALGORITHMS.items()
    }


def options_of(part: Callable[..., object], reserved: set[str]) -> dict[str, object]:
    """A part's options with their defaults."""
    names = [name for name in inspect.signature(part).parameters if name not in reserved]
    return {name: complete(part, {}).get(name, "required") for name in names}


@pytest.mark.parametrize(
    ("column", "heading", "parts"),
    [("policy", "reward_gradient", POLICIES), ("guidance", "sampling", STRATEGIES)],
)
def test_the_page_has_every_built_in_part_with_its_options(column, heading, parts):
    actual = {name: options_of(part, {"walk", "generator"}) for name, part in parts.items()}
    assert values_of(page_tables(column))[heading] == actual


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.S))
def test_the_examples_on_the_page_are_valid(tmp_path, example):
    tiny = yaml.safe_load(TINY.read_text()) | {"video": {"frames": 16, "height": 32, "width": 32}}
    merged = tiny | parse_value(example)
    load_recipe(written(tmp_path / "own.yaml", yaml.safe_dump(merged)))
