"""A recipe as a page to read and to change: every key with its value and what it means, in YAML that is a recipe.

In goes a recipe, out comes text; or a model and a reward, and out comes a recipe to start from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vader.errors import UserError
from vader.files.hub import TINY
from vader.plugins import Part
from vader.recipe.files import checked_recipe, in_one_line, load_recipe, recipe_names
from vader.recipe.schema import Recipe
from vader.recipe.sections import ModelSection, RewardSection

WIDEST = 44  # characters of a key and its value beside which a column of comments is still set


class Line(NamedTuple):
    text: str
    comment: str = ""


# ---- written ----


def commented(recipe: Recipe, title: str, notes: Sequence[str] = ()) -> str:
    """The whole recipe as YAML, every key of the schema with a comment; `load_recipe` gives back an equal recipe.

    Args:
        title: the comment that heads it, one line.
        notes: comments below the title, a line each.
    """
    values, comments = recipe.model_dump(mode="json"), [f"# {line}" for line in (title, *notes)]
    groups = [_section(name, field, values[name]) for name, field in Recipe.model_fields.items()]
    return "".join(f"{line}\n" for line in [*comments, *(line for group in groups for line in _aligned(group))])


def _section(name: str, field: FieldInfo, value: Any) -> list[Line]:
    """A key of the top level, with what is below it."""
    meaning = field.description or _meaning_of(field.annotation)
    if isinstance(value, list) and value:
        items = [_item(list(_rows(RewardSection if name == "rewards" else Part, item))) for item in value]
        return [Line(f"{name}:", meaning), *(line for item in items for line in item)]
    if isinstance(value, dict):
        rows = _rows(field.annotation, value)
        return [Line(f"{name}:", meaning), *(Line(f"  {row.text}", row.comment) for row in rows)]
    return [Line(f"{name}: {in_one_line(value)}", meaning)]


def _rows(model: Any, values: Mapping[str, Any]) -> Iterator[Line]:
    """A line a key; options of a part, which the schema does not know, have no comment."""
    fields: Mapping[str, FieldInfo] = model.model_fields
    for key, value in values.items():
        meaning = fields[key].description if key in fields else None
        yield Line(f"{key}: {in_one_line(value)}", meaning or "")


def _item(rows: Sequence[Line]) -> list[Line]:
    """The rows of one item of a list."""
    return [Line(f"{'    ' if number else '  - '}{row.text}", row.comment) for number, row in enumerate(rows)]


def _meaning_of(annotation: Any) -> str:
    """What a section says of itself."""
    known = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return " ".join((annotation.__doc__ or "").split()) if known else ""


def _aligned(lines: Sequence[Line]) -> Iterator[str]:
    width = max((len(line.text) for line in lines if len(line.text) <= WIDEST), default=0)
    for line in lines:
        yield f"{line.text:{width}}  # {line.comment}" if line.comment else line.text


# ---- begun ----


def starting_recipe(name: str, model: ModelSection, rewards: Sequence[RewardSection]) -> Recipe:
    """A recipe to start from: the built-in one that is nearest to this model and these rewards, with both put in.

    A reward that is given by its name alone is written as the nearest built-in recipe has it. Of a family of one's own
    sizes and sampling are those of the tiny world: they are yours to change.

    Args:
        name: of the recipe.
        model: family and checkpoint; an empty checkpoint stands for that of the nearest recipe.

    Raises:
        UserError: an empty checkpoint of a family that no built-in recipe trains, or what `load_recipe` refuses.
    """
    tiny = model.checkpoint == TINY
    known = [recipe for recipe in map(load_recipe, recipe_names()) if (recipe.model.checkpoint == TINY) == tiny]
    family = [recipe for recipe in known if recipe.model.family == model.family]
    if not family and not model.checkpoint:
        raise UserError(f"no built-in recipe trains the family {model.family!r}: write family:checkpoint")
    wanted = {reward.name for reward in rewards}
    base = max(family or [load_recipe(TINY)], key=lambda recipe: _nearness(recipe, wanted))
    chosen = base.model.model_copy(update=model.model_dump(exclude_unset=True)) if family else model
    changed = base.model_copy(
        update={
            "name": name,
            "model": chosen if chosen.checkpoint else base.model,
            "rewards": tuple(_as_known(reward, [base, *known]) for reward in rewards) or base.rewards,
        }
    )
    return checked_recipe(changed.model_dump(mode="json"), f"recipe {name!r}")


def _nearness(recipe: Recipe, wanted: set[str]) -> tuple[bool, bool, int]:
    """Its rewards first, then its algorithm; of equals the first by name, as `max` has it."""
    names = {reward.name for reward in recipe.rewards}
    return names == wanted, recipe.algorithm.name == "reward_gradient", len(names & wanted)


def _as_known(reward: RewardSection, recipes: Sequence[Recipe]) -> RewardSection:
    """The reward as the first recipe that has it writes it, where no option of its own was given.

    Recipes that have it alone come first: the weight in a mix is that mix's.
    """
    if reward.options:
        return reward
    by_rewards = sorted(recipes, key=lambda recipe: len(recipe.rewards))
    found = [one for recipe in by_rewards for one in recipe.rewards if one.name == reward.name]
    return found[0].model_copy(update=reward.model_dump(exclude_unset=True)) if found else reward
