"""A recipe describes one run wholly: typed models, read from YAML with dotted overrides.

In goes a built-in name or a YAML file, out comes a `Recipe` whose keys fit each other. Unknown keys,
wrong types and contradictions are `UserError`s of one line that name the key and what it should be. What a part
(an algorithm, a reward, a metric) makes of its options is for the part to say: the recipe knows none of them.
"""

from vader.recipe.files import (
    BUILT_IN,
    changed,
    dump_recipe,
    first_difference,
    library_versions,
    load_recipe,
    parse_value,
    recipe_names,
)
from vader.recipe.pages import commented, starting_recipe
from vader.recipe.schema import Recipe
from vader.recipe.sections import (
    GuardsSection,
    ModelSection,
    PrefixSection,
    RewardSection,
    SamplingSection,
    VideoSection,
)

__all__ = [
    "BUILT_IN",
    "GuardsSection",
    "ModelSection",
    "PrefixSection",
    "Recipe",
    "RewardSection",
    "SamplingSection",
    "VideoSection",
    "changed",
    "commented",
    "dump_recipe",
    "first_difference",
    "library_versions",
    "load_recipe",
    "parse_value",
    "recipe_names",
    "starting_recipe",
]
