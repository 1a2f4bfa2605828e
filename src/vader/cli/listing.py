"""`vader list`."""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Mapping
from typing import Annotated, Any

import typer

from vader.cli.root import app
from vader.errors import UserError, nearest


@app.command("list", epilog="Example: vader list recipes")
def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="KIND", help="What: models, rewards, metrics, policies ...; none: the kinds."),
    ] = None,
) -> None:
    """List what is built in and can be named in a recipe: models, rewards, metrics, guards, prompts, recipes,
    algorithms, policies, guidance or memory techniques."""
    kind = SYNONYMS.get(kind or "", kind)
    if kind is not None and kind not in LISTINGS:
        raise UserError(f"cannot list {kind!r}: {nearest(kind, LISTINGS)}")
    names = _documented(LISTINGS) if kind is None else LISTINGS[kind]()
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
    """Families of base models, model.family of a recipe."""
    from vader.models.registry import ABOUT

    return dict(sorted(ABOUT.items()))


def _rewards() -> dict[str, str]:
    """What videos are aligned to, under rewards."""
    from vader.rewards.registry import reward_names

    return reward_names()


def _metrics() -> dict[str, str]:
    """What is measured beside the reward, under evaluation.metrics."""
    from vader.evaluation.metrics.registry import metric_names

    return metric_names()


def _guards() -> dict[str, str]:
    """What says when a gain is not to be trusted, guards.watch."""
    from vader.evaluation.guards.registry import guard_names

    return guard_names()


def _prompt_sets() -> dict[str, str]:
    """Sets of prompts, prompts.train and prompts.test."""
    from vader.evaluation.formats import counted
    from vader.prompts import load_prompts, prompt_set_names

    sets = {name: load_prompts(name) for name in prompt_set_names()}
    labelled = {name: " with labels" if prompts[0].label else "" for name, prompts in sets.items()}
    return {
        name: f'{counted(len(prompts), "prompt")}{labelled[name]}, as "{prompts[0]}"' for name, prompts in sets.items()
    }


def _recipes() -> dict[str, str]:
    """Whole runs, for 'vader train RECIPE'."""
    from vader.recipe import BUILT_IN, recipe_names

    return {name: _heading((BUILT_IN / f"{name}.yaml").read_text(encoding="utf-8")) for name in recipe_names()}


def _heading(recipe: str) -> str:
    """The comment that heads a recipe, with what it needs."""
    return " ".join(re.findall(r"^# (.*)", recipe.partition("\nname:")[0], re.MULTILINE))


def _algorithms() -> dict[str, str]:
    """How scores train the model, algorithm.name."""
    from vader.algorithms import algorithm_names

    return algorithm_names()


def _policies() -> dict[str, str]:
    """Where the reward's gradient enters the chain, algorithm.policy; with options and their defaults."""
    from vader.sampling.policies import GIVEN, POLICIES

    return _documented(POLICIES, GIVEN)


def _guidance() -> dict[str, str]:
    """How prompts and negative prompts lead, sampling.guidance; with options and their defaults."""
    from vader.sampling.guidance import STRATEGIES

    return _documented(STRATEGIES)


def _memory() -> dict[str, str]:
    """What trades time for memory, under memory; with options and their defaults."""
    from vader.networks.techniques import TECHNIQUES, Technique
    from vader.plugins import load_object

    return _documented({name: load_object(spec, "memory technique", Technique) for name, spec in TECHNIQUES.items()})


def _documented(parts: Mapping[str, Any], given: Collection[str] = ()) -> dict[str, str]:
    """On each its options, but for those that are `given`, and the first paragraph of what is written on it."""
    paragraphs = {name: (inspect.getdoc(part) or "").split("\n\n")[0].split() for name, part in parts.items()}
    return {name: " ".join([*_options(parts[name], given), *words]) for name, words in paragraphs.items()}


def _options(part: Any, given: Collection[str]) -> list[str]:
    """ "(k=4, bias=1.0)"; an option that has no default, and so must be given, is "scale=..."."""
    from vader.plugins import complete, option_names
    from vader.recipe.files import in_one_line

    names, defaults = option_names(part, given), complete(part, {})
    options = [f"{name}={in_one_line(defaults[name]) if name in defaults else '...'}" for name in names]
    return [f"({', '.join(options)})"] if options else []


LISTINGS = {
    "models": _models,
    "rewards": _rewards,
    "metrics": _metrics,
    "guards": _guards,
    "prompts": _prompt_sets,
    "recipes": _recipes,
    "algorithms": _algorithms,
    "policies": _policies,
    "guidance": _guidance,
    "memory": _memory,
}
SYNONYMS = {"families": "models"}  # a recipe says model.family
