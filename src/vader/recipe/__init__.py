"""A recipe describes one run wholly: typed models, read from YAML with dotted overrides.

In goes a built-in name or a YAML file, out comes a `Recipe` whose parts fit each other. Unknown keys,
wrong types and contradictions are `UserError`s of one line that name the key and what it should be.
"""

from vader.recipe.files import (
    BUILT_IN,
    dump_recipe,
    first_difference,
    library_versions,
    load_recipe,
    parse_value,
    recipe_names,
)
from vader.recipe.schema import Recipe
from vader.recipe.sections import (
    MIXES,
    FramesSection,
    ModelSection,
    PolicySection,
    RewardSection,
    SamplingSection,
    VideoSection,
    expand_mixes,
)

__all__ = [
    "BUILT_IN",
    "MIXES",
    "FramesSection",
    "ModelSection",
    "PolicySection",
    "Recipe",
    "RewardSection",
    "SamplingSection",
    "VideoSection",
    "dump_recipe",
    "expand_mixes",
    "first_difference",
    "library_versions",
    "load_recipe",
    "parse_value",
    "recipe_names",
]
