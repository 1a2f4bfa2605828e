"""`vader recipe`: a recipe shown whole is the same recipe again, and one that is begun is one that can be trained."""

from __future__ import annotations

import re

import pytest
import yaml
from pydantic import BaseModel

from vader.algorithms import resolved
from vader.cli import main
from vader.errors import UserError
from vader.models.registry import model_names
from vader.recipe import Recipe, load_recipe, recipe_names
from vader.recipe.pages import commented, starting_recipe
from vader.recipe.schema import Recipe as Schema
from vader.recipe.sections import ModelSection, RewardSection


def fields_of(model: type[BaseModel], path: str = "") -> dict[str, str | None]:
    """What every key below a section says of itself, by dotted path."""
    found: dict[str, str | None] = {}
    for key, field in model.model_fields.items():
        is_section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        found[f"{path}{key}"] = field.annotation.__doc__ if is_section else field.description
        found |= fields_of(field.annotation, f"{path}{key}.") if is_section else {}
    return found


def test_every_key_says_what_it_means():
    told = fields_of(Schema) | fields_of(RewardSection, "rewards.")
    assert [key for key, meaning in told.items() if not meaning] == []
    assert told["optimizer.lr"] == "Learning rate, constant."
    assert told["rewards.weight"] == "Its factor in the sum that is maximised."


def shown(capsys, *arguments: str) -> str:
    assert main(["recipe", "show", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_that_is_shown_is_the_same_recipe(capsys, tmp_path, name):
    text = shown(capsys, name)
    (tmp_path / "shown.yaml").write_text(text)
    again = load_recipe(str(tmp_path / "shown.yaml"))
    assert again == resolved(load_recipe(name)) == resolved(again)
    assert shown(capsys, str(tmp_path / "shown.yaml")) == text


def test_overrides_are_shown_with_their_meaning(capsys):
    lines = shown(capsys, "tiny", "optimizer.lr=5e-4", "algorithm={name: ddpo, minibatches: 4}").splitlines()
    assert "  lr: 0.0005           # Learning rate, constant." in lines
    assert "  minibatches: 4" in lines
    assert "  clip_range: 0.0001" in lines


@pytest.mark.parametrize(
    "text", ["a: b # c", "1e-4", "null", "[x", 'it\'s "so"', "-", "ein Fuß\nund zwei", "{", "", "~"]
)
def test_any_text_survives_being_shown(tmp_path, text):
    recipe = load_recipe("tiny")
    recipe = recipe.model_copy(update={"sampling": recipe.sampling.model_copy(update={"negative": text})})
    (tmp_path / "x.yaml").write_text(commented(recipe, "a title"))
    assert load_recipe(str(tmp_path / "x.yaml")) == recipe


def begun(capsys, tmp_path, *options: str) -> Recipe:
    file = tmp_path / "my-own.yaml"
    assert main(["recipe", "new", str(file), *options]) == 0
    assert capsys.readouterr().out == f"{file}: change it as you like, then vader train {file}\n"
    return load_recipe(str(file))


def test_a_new_recipe_is_the_tiny_one_with_its_own_name(capsys, tmp_path):
    assert begun(capsys, tmp_path) == resolved(load_recipe("tiny", ["name=my-own"]))
    comments = re.findall(r"  # .+", (tmp_path / "my-own.yaml").read_text())
    assert len(comments) > 50


def test_a_new_recipe_has_the_model_and_the_rewards_that_were_asked_for(capsys, tmp_path):
    recipe = begun(capsys, tmp_path, "--model", "svd", "--reward", "pickscore", "--reward", "aesthetic:weight=0.5")
    expected = load_recipe("svd-aesthetic")
    assert (recipe.name, recipe.model, recipe.video) == ("my-own", expected.model, expected.video)
    assert [(reward.name, reward.weight) for reward in recipe.rewards] == [("pickscore", 1.0), ("aesthetic", 0.5)]


def test_a_new_recipe_takes_the_reward_as_the_nearest_one_has_it():
    tiny = ModelSection(family="modelscope", checkpoint="tiny")
    recipe = starting_recipe("x", tiny, [RewardSection(name="object_removal")])
    assert recipe == load_recipe("tiny-removal", ["name=x"])
    opensora = ModelSection(family="opensora", checkpoint="tiny")
    recipe = starting_recipe("x", opensora, [RewardSection(name="hps")])
    assert recipe.rewards == load_recipe("tiny-hps").rewards
    assert recipe.video == load_recipe("tiny-opensora").video


def test_a_new_recipe_of_ones_own_model_keeps_its_checkpoint():
    own = ModelSection(family="my_model:Mine", checkpoint="weights/mine", options={"depth": 3})
    recipe = starting_recipe("x", own, [RewardSection.model_validate({"name": "my_reward:Warmth", "gain": 2})])
    assert recipe.model == own
    assert recipe.rewards[0].options == {"gain": 2}


@pytest.mark.parametrize("family", model_names())
@pytest.mark.parametrize("checkpoint", ["", "tiny", "here"])
def test_every_family_has_something_to_start_from(family, checkpoint):
    model = starting_recipe("x", ModelSection(family=family, checkpoint=checkpoint), []).model
    assert model.family == family
    assert model.checkpoint == checkpoint if checkpoint else model.checkpoint not in ("", "tiny")


def test_a_new_recipe_says_that_a_reward_of_still_pictures_wants_company(tmp_path):
    def head(*rewards: str) -> str:
        """Its comments, and that it is the recipe all the same."""
        file = tmp_path / f"new-{len(list(tmp_path.iterdir()))}.yaml"
        assert main(["recipe", "new", str(file), *(word for name in rewards for word in ("--reward", name))]) == 0
        assert [reward.name for reward in load_recipe(str(file)).rewards] == list(rewards)
        return file.read_text().partition("\nname:")[0]

    assert head("consistency").splitlines()[1:] == [
        "# Reward 'consistency' alone leads to videos that stand still: put one of the picture beside it, as hps or "
        "aesthetic (docs/rewards/consistency.md)."
    ]
    assert "'vjepa' alone leads to videos that stand still, blurred or plain" in head("vjepa")
    both = head("consistency", "vjepa")
    assert "'consistency'" in both
    assert "'vjepa'" in both
    assert "alone" not in head("consistency", "hps") + head("my_reward:Warmth") + head("aesthetic")


def test_a_new_recipe_replaces_no_file(capsys, tmp_path):
    (tmp_path / "my.yaml").write_text("mine")
    assert main(["recipe", "new", str(tmp_path / "my.yaml")]) == 2
    assert capsys.readouterr().err == f"vader: '{tmp_path / 'my.yaml'}' is there already: name another file\n"
    assert (tmp_path / "my.yaml").read_text() == "mine"


def test_a_name_that_no_run_may_have_writes_nothing(capsys, tmp_path):
    assert main(["recipe", "new", str(tmp_path / "my recipe.yaml")]) == 2
    assert "use letters, digits" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_new_recipe_is_checked_as_a_whole():
    with pytest.raises(UserError, match=r"rewards\.0\.sees is 99 but videos have 8 frames"):
        starting_recipe("x", ModelSection(checkpoint="tiny"), [RewardSection(name="hps", sees=99)])


def test_a_page_is_plain_yaml(capsys):
    assert yaml.safe_load(shown(capsys, "tiny")).keys() == Schema.model_fields.keys()
