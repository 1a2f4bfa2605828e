"""`vader list`."""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from vader.cli.root import app
from vader.errors import UserError, nearest


@app.command("list", epilog="Example: vader list recipes")
def list_names(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="What: models, rewards, metrics, policies ...")],
) -> None:
    """List what is built in and can be named in a recipe: models, rewards, metrics, prompts, recipes, algorithms,
    policies, guidance or memory techniques."""
    if kind not in LISTINGS:
        raise UserError(f"cannot list {kind!r}: {nearest(kind, LISTINGS)}")
    names = LISTINGS[kind]()
    width = max(map(len, names))
    for name, about in names.items():
        print(_hanging(f"{name:{width}}  ", about))


def _hanging(name: str, about: str) -> str:
    """On a terminal, lines that fit with the names standing out; one line elsewhere."""
    if not sys.stdout.isatty():
        return name + about
    columns = max(shutil.get_terminal_size().columns, len(name) + 20)
    return textwrap.fill(about, columns, initial_indent=name, subsequent_indent=" " * len(name))


def _models() -> dict[str, str]:
    from vader.models.registry import ABOUT

    return dict(sorted(ABOUT.items()))


def _rewards() -> dict[str, str]:
    from vader.rewards.registry import reward_names

    return reward_names()


def _metrics() -> dict[str, str]:
    from vader.evaluation.metrics.registry import metric_names

    return metric_names()


def _prompt_sets() -> dict[str, str]:
    from vader.evaluation.formats import counted
    from vader.prompts import load_prompts, prompt_set_names

    sets = {name: load_prompts(name) for name in prompt_set_names()}
    labelled = {name: " with labels" if prompts[0].label else "" for name, prompts in sets.items()}
    return {
        name: f'{counted(len(prompts), "prompt")}{labelled[name]}, as "{prompts[0]}"' for name, prompts in sets.items()
    }


def _recipes() -> dict[str, str]:
    from vader.recipe import BUILT_IN, recipe_names

    return {name: _heading((BUILT_IN / f"{name}.yaml").read_text(encoding="utf-8")) for name in recipe_names()}


def _heading(recipe: str) -> str:
    """The comment that heads a recipe, with what it needs."""
    return " ".join(re.findall(r"^# (.*)", recipe.partition("\nname:")[0], re.MULTILINE))


def _algorithms() -> dict[str, str]:
    from vader.algorithms import algorithm_names

    return algorithm_names()


def _policies() -> dict[str, str]:
    from vader.sampling.policies import POLICIES

    return _documented(POLICIES)


def _guidance() -> dict[str, str]:
    from vader.sampling.guidance import STRATEGIES

    return _documented(STRATEGIES)


def _memory() -> dict[str, str]:
    from vader.networks.techniques import TECHNIQUES, Technique
    from vader.plugins import load_object

    return _documented({name: load_object(spec, "memory technique", Technique) for name, spec in TECHNIQUES.items()})


def _documented(parts: Mapping[str, Any]) -> dict[str, str]:
    """The first paragraph on each."""
    return {name: " ".join((inspect.getdoc(part) or "").split("\n\n")[0].split()) for name, part in parts.items()}


LISTINGS = {
    "models": _models,
    "rewards": _rewards,
    "metrics": _metrics,
    "prompts": _prompt_sets,
    "recipes": _recipes,
    "algorithms": _algorithms,
    "policies": _policies,
    "guidance": _guidance,
    "memory": _memory,
}
