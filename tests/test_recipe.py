"""Recipes: reading, overriding, writing back, and the one-line error for every mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic.fields import FieldInfo

from vader.errors import UserError
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

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "recipes.md"
TINY = ROOT / "src" / "vader" / "recipes" / "tiny.yaml"


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
            "memory.offload=true",  # a section whose other keys stay
            "algorithm.frames.sample=[0, 7]",
            "algorithm.policy.name=full",
        ],
    )
    assert recipe.optimizer.lr == 1e-4
    assert recipe.rewards[0].weight == 0.5
    assert recipe.rewards[0].options == {"checkpoint": "tiny", "target": 10}
    assert recipe.adapter.alpha == 8.0
    assert recipe.adapter.targets == ("to_q", "to_v")
    assert recipe.optimizer.betas == (0.8, 0.99)
    assert (recipe.memory.checkpointing, recipe.memory.offload) == (False, True)
    assert recipe.algorithm.frames.sample == (0, 7)
    assert recipe.algorithm.policy.name == "full"


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


def test_a_dumped_recipe_loads_back_equal(tmp_path):
    overrides = ["optimizer.lr=1e-7", "algorithm.frames.sample=[1, 3]", "rewards.0.note='1e-4'", "rewards.0.scale=2e-9"]
    recipe = load_recipe("tiny", overrides)
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


def test_a_mix_stands_for_its_rewards(tmp_path):
    mix = "[{name: hps_aesthetic, weight: 2, checkpoint: tiny}, {name: hps, version: v2.0}]"
    recipe = load_recipe("tiny", [f"rewards={mix}", "evaluation.monitors=[{name: hps_aesthetic, resize: crop}]"])
    shared = {"resize": "squash", "checkpoint": "tiny"}
    assert [(reward.name, reward.weight, reward.options) for reward in recipe.rewards] == [
        ("hps", 1.0, shared),
        ("aesthetic", 0.15, shared),
        ("hps", 1.0, {"version": "v2.0"}),
    ]
    monitors = recipe.evaluation.monitors
    assert [(one.name, one.weight, one.options["resize"]) for one in monitors] == [
        ("hps", 1.0, "crop"),
        ("aesthetic", 1.0, "crop"),
    ]
    dump_recipe(recipe, tmp_path / "recipe.yaml", {})
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


def test_the_first_difference_names_its_key():
    one, other = load_recipe("tiny"), load_recipe("tiny", ["rewards.0.weight=2", "train.steps=50"])
    assert first_difference(one, one) is None
    assert first_difference(one, other) == "rewards.0.weight is 1.0 there and 2.0 here"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimizer.lrr=1", ["unknown key 'optimizer.lrr'", "did you mean 'lr'?"]),
        ("optimiser.lr=1", ["unknown key 'optimiser'", "did you mean 'optimizer'?"]),
        ("algorithm.policy.last=1", ["unknown key 'algorithm.policy.last'", "known: k, name, steps, window"]),
        ("optimizer.lr=fast", ["'optimizer.lr' is \"fast\"", "expected a number above 0"]),
        ("optimizer.lr=-1e-4", ["'optimizer.lr' is -0.0001", "expected a number above 0"]),
        ("optimizer.lr=.inf", ["'optimizer.lr' is Infinity", "expected a number above 0"]),
        ("video.frames=8.5", ["'video.frames' is 8.5", "expected an integer above 0"]),
        ("video.frames='8'", ["'video.frames' is \"8\"", "expected an integer above 0"]),
        ("video.frames=", ["'video.frames' is null", "expected an integer above 0"]),
        ("sampling.eta=2", ["'sampling.eta' is 2", "expected a number from 0 to 1"]),
        ("model.options=3", ["'model.options' is 3", "expected a section"]),
        (
            "sampling.solver=dim",
            ["'sampling.solver' is \"dim\"", "expected one of auto, ddim, dpm, euler_edm, euler_flow"],
        ),
        ("memory.offload=1", ["'memory.offload' is 1", "expected true or false"]),
        ("prompts.train=3", ["'prompts.train' is 3", "expected a text"]),
        ("adapter.alpha=0", ["'adapter.alpha' is 0", "expected a number above 0 or null"]),
        ("adapter.targets=[1]", ["'adapter.targets' is [1]", "expected a list, each a text or null"]),
        ("optimizer.betas=[0.9]", ["'optimizer.betas' is [0.9]", "a list of 2, each a number from 0 below 1"]),
        ("optimizer.betas=[0.9, 1]", ["'optimizer.betas' is [0.9, 1]", "a list of 2, each a number from 0 below 1"]),
        ("algorithm.frames.sample=some", ["'algorithm.frames.sample' is \"some\"", "an integer above 0 or one of all"]),
        ("algorithm.frames.sample=[-1]", ["'algorithm.frames.sample' is [-1]", "each an integer from 0"]),
        ("rewards=[]", ["'rewards' is []", "expected a list of sections"]),
        ("rewards.0.weight=big", ["'rewards.0.weight' is \"big\"", "expected a number"]),
        ("rewards.0=aesthetic", ["'rewards.0' is \"aesthetic\"", "expected a section with the keys name, weight"]),
        ("video=8", ["'video' is 8", "expected a section with the keys frames, height, width, fps"]),
        ("optimizer.lr", ["'optimizer.lr' has no value", "dotted.path=value"]),
        ("optimizer.lr.x=1", ["'optimizer.lr.x'", "nothing below the value 0.001"]),
        ("rewards.3.weight=1", ["'rewards.3.weight'", "'3' is no index of a list of 1"]),
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
        (["algorithm.policy.k=21"], "algorithm.policy.k is 21 but sampling.steps is 10: k can be at most 10"),
        (["algorithm.policy.name=drtune", "algorithm.policy.k=21"], "algorithm.policy.k is 21"),
        (["algorithm.policy.name=steps"], "algorithm.policy.steps is empty"),
        (["algorithm.policy.steps=[1]"], "algorithm.policy.steps is for policy 'steps'"),
        (
            ["algorithm.policy.name=steps", "algorithm.policy.steps=[3, 20]"],
            "algorithm.policy.steps holds 20 but sampling.steps is 10: indices run from 0 to 9",
        ),
        (["algorithm.policy.name=steps", "algorithm.policy.steps=[3, 3]"], "is [3, 3]: name each index once"),
        (["algorithm.policy.window=[0.5, 0.5]"], "algorithm.policy.window is [0.5, 0.5]"),
        (["algorithm.frames.sample=9"], "algorithm.frames.sample is 9 but video.frames is 8"),
        (["algorithm.frames.sample=[0, 8]"], "holds 8 but video.frames is 8: indices run from 0 to 7"),
        (["algorithm.frames.sample=[]"], "algorithm.frames.sample is an empty list"),
        (["algorithm.frames.sample=[2, 2]"], "is [2, 2]: name each index once"),
        (["algorithm.frames.sample=first_middle_last", "video.frames=2"], "it needs at least 3"),
        (["train.micro_batch=3"], "train.batch 4 is no multiple of train.micro_batch 3"),
        (["sampling.solver=dpm", "sampling.eta=1"], "sampling.eta is 1 but solver 'dpm' is deterministic"),
        (["evaluation.monitors=[{name: hps, weight: 2}]"], "hps has a weight, and monitors are not summed: drop it"),
        (["name=a/b"], "name 'a/b' names the run's folder"),
        (["name='..'"], "name '..' names the run's folder"),
    ],
)
def test_keys_that_contradict_each_other_are_one_line(overrides, message):
    assert message in error_of(*overrides)


def test_draft_lv_may_draw_more_noises_than_there_are_steps():
    recipe = load_recipe("tiny", ["algorithm.policy.name=draft_lv", "algorithm.policy.k=30"])
    assert recipe.algorithm.policy.k == 30


def test_a_misspelt_key_comes_before_what_is_missing_because_of_it():
    assert "unknown key 'model.chekpoint': did you mean 'checkpoint'?" in error_of("model={chekpoint: tiny}")


def test_unknown_recipe_names_the_nearest():
    assert "no recipe 'tny'" in error_of(source="tny")
    assert "did you mean 'tiny'?" in error_of(source="recipes/tiny2.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no keys"),
        ("- 1\n- 2\n", "holds no keys"),
        ("name: x\nvideo: {frames: [}\n", "is not valid YAML"),
        ("name: x\nname: y\n", "key 'name' is given twice (line 2)"),
        ("name: \x01", "is not valid YAML"),
        ("name: x\n", "is missing: expected a section with the keys"),
        ("1: x\n", "unknown key '1'"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, text, message):
    assert message in error_of(source=written(tmp_path / "broken.yaml", text))


def test_a_missing_key_says_what_it_should_be(tmp_path):
    text = TINY.read_text().replace("train: {steps: 20, ", "train: {")
    message = error_of(source=written(tmp_path / "x.yaml", text))
    assert "key 'train.steps' is missing: expected an integer above 0" in message


def test_a_binary_file_is_one_line(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "cannot be read as text" in error_of(source=str(tmp_path / "x.yaml"))


# ---------------------------------------------------------------- docs/recipes.md


def documented_sections(path: str = "", model: type = Recipe) -> dict[str, type]:
    """Every section of a recipe by its dotted path."""
    found = {path: model}
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= documented_sections(f"{path}.{key}".lstrip("."), field.annotation)
    return found | ({"rewards": RewardSection} if model is Recipe else {})


def page_tables() -> dict[str, dict[str, str]]:
    """The page's tables: heading -> key -> default."""
    heading, tables = "", {}
    for line in DOCS.read_text().splitlines():
        if line.startswith("#"):
            heading = line.strip("#` ")
        elif row := re.match(r"\| `(\w+)` \| (.*?) \|", line):
            tables.setdefault(heading, {})[row[1]] = row[2]
    tables[""] = tables.pop("The top level")
    return tables


def as_documented(field: FieldInfo) -> object:
    if field.is_required():
        return "required"
    if isinstance(field.default, Section):
        return "optional"
    return list(field.default) if isinstance(field.default, tuple) else field.default


def test_the_page_on_recipes_has_every_key_with_its_default():
    actual = {
        path: {key: as_documented(field) for key, field in model.model_fields.items()}
        for path, model in documented_sections().items()
    }
    written = {
        path: {key: parse_value(cell.strip("`")) for key, cell in rows.items()} for path, rows in page_tables().items()
    }
    assert written == actual


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.S))
def test_the_examples_on_the_page_are_valid(tmp_path, example):
    tiny = yaml.safe_load(TINY.read_text()) | {"video": {"frames": 16, "height": 32, "width": 32}}
    merged = tiny | parse_value(example)
    load_recipe(written(tmp_path / "recipe.yaml", yaml.safe_dump(merged)))
