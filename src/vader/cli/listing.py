"""`vader list`."""

from __future__ import annotations

from typing import Annotated

import typer

from vader.cli.root import app
from vader.errors import UserError, nearest


@app.command("list", epilog="Example: vader list recipes")
def list_names(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="models, rewards, metrics, prompts, recipes or algorithms.")
    ],
) -> None:
    """List what is built in and can be named in a recipe."""
    if kind not in LISTINGS:
        raise UserError(f"cannot list {kind!r}: {nearest(kind, LISTINGS)}")
    names = LISTINGS[kind]()
    width = max(map(len, names))
    for name, about in names.items():
        print(f"{name:{width}}  {about}".rstrip())


def _models() -> dict[str, str]:
    from vader.models.registry import model_names

    return dict.fromkeys(model_names(), "")


def _rewards() -> dict[str, str]:
    from vader.rewards.registry import reward_names

    return reward_names()


def _metrics() -> dict[str, str]:
    from vader.evaluation.metrics.registry import metric_names

    return metric_names()


def _prompt_sets() -> dict[str, str]:
    from vader.prompts import load_prompts, prompt_set_names

    sets = {name: load_prompts(name) for name in prompt_set_names()}
    labelled = {name: " with labels" if prompts[0].label else "" for name, prompts in sets.items()}
    return {name: f'{len(prompts)} prompts{labelled[name]}, as "{prompts[0]}"' for name, prompts in sets.items()}


def _recipes() -> dict[str, str]:
    from vader.recipe import BUILT_IN, recipe_names

    return {name: (BUILT_IN / f"{name}.yaml").read_text().splitlines()[0].lstrip("# ") for name in recipe_names()}


def _algorithms() -> dict[str, str]:
    from vader.algorithms import algorithm_names

    return algorithm_names()


LISTINGS = {
    "models": _models,
    "rewards": _rewards,
    "metrics": _metrics,
    "prompts": _prompt_sets,
    "recipes": _recipes,
    "algorithms": _algorithms,
}
