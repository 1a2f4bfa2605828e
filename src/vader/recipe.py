"""A recipe describes one run wholly: typed models, read from YAML with dotted overrides.

In goes a built-in name or a YAML file, out comes a `Recipe` whose parts fit each other. Unknown keys,
wrong types and contradictions are `UserError`s of one line that name the key and what it should be.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from vader.errors import UserError, nearest

BUILT_IN = Path(__file__).parent / "recipes"

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A part of a recipe: immutable, and no key beyond the declared ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(Section):
    """Which base model: its family (or `module:Class`), and a folder, file or hub id."""

    family: str = "modelscope"
    checkpoint: str
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # of the frozen weights
    options: dict[str, Any] = {}  # the family's own, as svd's motion_bucket


class VideoSection(Section):
    frames: PositiveInt
    height: PositiveInt
    width: PositiveInt
    fps: PositiveInt = 8


class SamplingSection(Section):
    """How videos are sampled. `solver: auto` is the checkpoint's own."""

    solver: Literal["auto", "ddim", "dpm", "euler_edm", "euler_flow"] = "auto"
    steps: PositiveInt = 25
    eta: Share = 0.0
    spacing: Literal["auto", "leading", "trailing", "linspace"] = "auto"
    guidance: Annotated[float, Field(ge=1.0)] = 9.0
    guidance_batched: bool = True
    guidance_detach_uncond: bool = False


class RewardSection(BaseModel):
    """A reward by name (or `module:Class`) and weight; every other key goes to the reward's constructor."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str
    weight: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


# Mixes by name. A mix stands for its rewards, each with the mix's own options and its weight times the mix's.
# hps_aesthetic: the paper's code has the loss (1.5 * 0.1 |aesthetic - 10| + |1 - hps|) / 2, whose gradient below 10
# is that of 0.075 aesthetic + 0.5 hps.
MIXES: dict[str, tuple[dict[str, Any], ...]] = {
    "hps_aesthetic": (
        {"name": "hps", "weight": 0.5, "resize": "squash"},
        {"name": "aesthetic", "weight": 0.075, "resize": "squash"},
    ),
}


def expand_mixes(sections: Sequence[RewardSection]) -> tuple[RewardSection, ...]:
    """Every mix that is named becomes its rewards; all else stays."""
    return tuple(part for section in sections for part in _parts_of(section))


def _parts_of(section: RewardSection) -> Sequence[RewardSection]:
    if section.name not in MIXES:
        return (section,)
    weighted = [{**part, **section.options, "weight": section.weight * part["weight"]} for part in MIXES[section.name]]
    return [RewardSection.model_validate(part) for part in weighted]


def _monitors(sections: Sequence[RewardSection]) -> tuple[RewardSection, ...]:
    """Monitors are never summed, so that a weight would say nothing; those of a mix are dropped."""
    for section in sections:
        if section.weight != 1.0:
            raise UserError(f"evaluation.monitors: {section.name} has a weight, and monitors are not summed: drop it")
    return tuple(section.model_copy(update={"weight": 1.0}) for section in expand_mixes(sections))


class PromptsSection(Section):
    """Prompt sets by built-in name, file or `module:Name`: one to train on, one held out."""

    train: str
    test: str


class PolicySection(Section):
    """Where the reward gradient enters the sampling chain (`vader.policies` says what each name means)."""

    name: Literal["last", "random_tail", "steps", "full", "draft_lv", "drtune", "refl"] = "last"
    k: PositiveInt = 1  # last: how many steps; drtune: how many of the steps; draft_lv: how many fresh noises
    steps: tuple[NonNegativeInt, ...] = ()  # steps: which, counted from the start
    window: tuple[Share, Share] = (0.6, 1.0)  # refl: the share of the chain from which the step is drawn


class FramesSection(Section):
    """Which frames of a video the reward sees in training."""

    sample: PositiveInt | Literal["all", "first_middle_last", "every_second"] | tuple[NonNegativeInt, ...] = 1
    chunk: PositiveInt = 1  # frames decoded and scored at once under split backward


class DDPOSection(Section):
    """Settings of algorithm 'ddpo' (`vader.algorithms.ddpo`)."""

    videos_per_prompt: PositiveInt = 1
    minibatches: PositiveInt = 2  # optimiser steps in which a batch is gone through
    inner_epochs: PositiveInt = 1  # how often it is gone through
    clip_range: PositiveFloat = 1e-4  # of the ratio of probabilities, PPO's epsilon
    advantage_clip: PositiveFloat = 5.0
    prompt_buffer: PositiveInt = 32  # latest rewards of a prompt that make its mean and standard deviation
    prompt_min_count: PositiveInt = 16  # with fewer of them, those of the batch do


class DPOSection(Section):
    """Settings of algorithm 'diffusion_dpo' (`vader.algorithms.diffusion_dpo`)."""

    beta: PositiveFloat = 5000.0  # how strongly the frozen base holds the model
    videos_per_prompt: Annotated[int, Field(ge=2)] = 2  # online
    capacity: Annotated[int, Field(ge=2)] = 256  # online: latest videos of which pairs are made
    updates: PositiveInt = 4  # optimiser steps a batch
    pairs: PositiveInt = 8  # pairs an optimiser step
    preferences: str | None = None  # a file of pairs: nothing is sampled and ranked in training


class AlgorithmSection(Section):
    """How the reward trains the model. All but `name` and `frames` are settings of one algorithm alone."""

    name: str = "reward_gradient"
    frames: FramesSection = FramesSection()
    policy: PolicySection = PolicySection()
    split_backward: bool = True
    base_distance: NonNegativeFloat = 0.0  # weight of the squared distance to the frozen base's prediction
    ddpo: DDPOSection = DDPOSection()
    dpo: DPOSection = DPOSection()

    def foreign(self) -> set[str]:
        """The keys that mean nothing to this algorithm; a user's own may read them all."""
        own = OWN_KEYS.get(self.name)
        return set() if own is None else {key for keys in OWN_KEYS.values() for key in keys} - set(own)


OWN_KEYS = {
    "reward_gradient": ("policy", "split_backward", "base_distance"),
    "ddpo": ("ddpo",),
    "diffusion_dpo": ("dpo",),
}


class AdapterSection(Section):
    rank: PositiveInt = 16
    alpha: PositiveFloat | None = None  # None: equal to rank, so that the adapter's scale is 1
    targets: tuple[str, ...] | None = None  # None: the model family's own


class OptimizerSection(Section):
    lr: PositiveFloat = 2e-4
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0
    eps: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat = 1.0


class TrainSection(Section):
    """The loop. `batch` videos make one optimiser step, over all processes; `micro_batch` are on a device at once."""

    steps: PositiveInt
    batch: PositiveInt = 8
    micro_batch: PositiveInt | None = None  # None: each process's whole share
    seed: int = 0
    checkpoint_every: PositiveInt = 25
    keep_checkpoints: PositiveInt = 2
    max_skipped: PositiveInt = 5  # non-finite steps in a row that end the run
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()


class EvaluationSection(Section):
    """Held-out prompts under fixed noise, at step 0, every `every` steps and at the end."""

    every: PositiveInt = 25
    videos: PositiveInt = 16  # how many are sampled and scored each time
    final_videos: PositiveInt | None = None  # None: `videos`; at step 0 and at the end
    shown: PositiveInt = 4  # how many are written as mp4
    batch: PositiveInt = 8
    judge: bool = False  # the tiny world's ground truth, beside the reward
    monitors: Annotated[tuple[RewardSection, ...], AfterValidator(_monitors)] = ()  # scored, never trained on


class MemorySection(Section):
    checkpointing: bool = True
    offload: bool = False


class Recipe(Section):
    """One run, wholly. `name` is also the name of the run's folder."""

    name: str
    model: ModelSection
    video: VideoSection
    sampling: SamplingSection = SamplingSection()
    rewards: Annotated[tuple[RewardSection, ...], Field(min_length=1), AfterValidator(expand_mixes)]
    prompts: PromptsSection
    algorithm: AlgorithmSection = AlgorithmSection()
    adapter: AdapterSection = AdapterSection()
    optimizer: OptimizerSection = OptimizerSection()
    train: TrainSection
    evaluation: EvaluationSection = EvaluationSection()
    memory: MemorySection = MemorySection()

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        for contradiction in _contradictions(self):
            raise UserError(contradiction)
        return self


# ---------------------------------------------------------------- reading and writing


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(path.stem for path in BUILT_IN.glob("*.yaml"))


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        source: a built-in name (`recipe_names`) or the path of a YAML file.
        overrides: `dotted.path=value`, the value in YAML: `optimizer.lr=1e-4`, `rewards.0.weight=0.5`.

    Raises:
        UserError: no such recipe, not YAML, an unknown, missing or mistyped key, or keys that contradict each other.
    """
    data = _read(_find(source))
    for override in overrides:
        _override(data, override)
    try:
        # Strict JSON mode takes lists for tuples and integers for floats, and converts nothing else.
        return Recipe.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise UserError(f"recipe {source!r}: {_explain(error, data)}") from None


def dump_recipe(recipe: Recipe, path: Path, versions: Mapping[str, str]) -> None:
    """Writes every key of a recipe as YAML under a comment of versions; `load_recipe` gives back an equal recipe.

    Left out is what belongs to another algorithm than the recipe's.
    """
    header = "# Resolved recipe. Made with " + ", ".join(f"{name} {number}" for name, number in versions.items())
    keys = recipe.model_dump(mode="json", exclude={"algorithm": recipe.algorithm.foreign()})
    body = yaml.dump(keys, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    path.write_text(f"{header}\n{body}", encoding="utf-8")


def library_versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "diffusers", "peft", "vader")
    }


def first_difference(there: Recipe, here: Recipe) -> str | None:
    """The first key by dotted path in which two recipes differ, with both values; None where they are equal."""
    ours, theirs = (dict(_flat(recipe.model_dump(mode="json"))) for recipe in (here, there))
    for key in [*ours, *theirs]:
        if ours.get(key) != theirs.get(key):
            return f"{key} is {theirs.get(key)} there and {ours.get(key)} here"
    return None


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings and lists, by dotted path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _flat(item, f"{path}.{key}".lstrip("."))
    if not items:
        yield path, value


def parse_value(text: str) -> Any:
    """A YAML scalar, list or mapping as written on the command line.

    Raises:
        UserError: the text is not YAML.
    """
    return _parse(text, where=repr(text))


def _find(source: str) -> Path:
    path = BUILT_IN / f"{source}.yaml" if source in recipe_names() else Path(source)
    if not path.is_file():
        hint = nearest(Path(source).stem, recipe_names())
        raise UserError(f"no recipe {source!r}: give a built-in name or the path of a YAML file; {hint}")
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        data = _parse(path.read_text(encoding="utf-8"), where=f"recipe file {str(path)!r}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe file {str(path)!r} cannot be read as text: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"recipe file {str(path)!r} holds no keys: expected a mapping with {', '.join(_keys(_root()))}")
    return data


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise UserError(f"{where} is not valid YAML: {error.problem}{line}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


def _override(data: dict[str, Any], override: str) -> None:
    """Sets one dotted path in raw recipe data; sections on the way that are still at their defaults are opened."""
    dotted, equals, text = override.partition("=")
    if not (dotted and equals):
        raise UserError(f"override {override!r} has no value: write dotted.path=value, as in optimizer.lr=1e-4")
    *parents, last = dotted.split(".")
    here: Any = data
    for key in parents:
        here = here.setdefault(key, {}) if isinstance(here, dict) else here[_index(here, key, dotted)]
    here[last if isinstance(here, dict) else _index(here, last, dotted)] = parse_value(text)


def _index(here: Any, key: str, dotted: str) -> int:
    if not isinstance(here, list):
        raise UserError(f"override {dotted!r}: there is nothing below the value {_shown(here)}, so no {key!r} in it")
    if not (key.isdecimal() and int(key) < len(here)):
        raise UserError(f"override {dotted!r}: {key!r} is no index of a list of {len(here)}; the first is 0")
    return int(key)


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-4` is a number, and a key given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would read as numbers."""


# YAML 1.1 wants a dot in every float and a sign in every exponent; YAML 1.2 and everybody else do not.
_FLOAT = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$")
for _yaml_class in (_Loader, _Dumper):
    _yaml_class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


# ---------------------------------------------------------------- what fits together


def _contradictions(recipe: Recipe) -> Iterator[str]:
    """What is wrong between keys that are each right alone, as sentences for the user."""
    yield from _name_contradictions(recipe)
    yield from _sampling_contradictions(recipe.sampling)
    yield from _algorithm_contradictions(recipe.algorithm)
    yield from _policy_contradictions(recipe.algorithm.policy, recipe.sampling.steps)
    yield from _frame_contradictions(recipe.algorithm.frames, recipe.video.frames)
    yield from _batch_contradictions(recipe.train)
    if recipe.algorithm.name == "ddpo":
        yield from _ddpo_contradictions(recipe.algorithm.ddpo, recipe.sampling, recipe.train.batch)
    if recipe.algorithm.name == "diffusion_dpo":
        yield from _dpo_contradictions(recipe.algorithm.dpo, recipe.train.batch)


def _name_contradictions(recipe: Recipe) -> Iterator[str]:
    if not re.fullmatch(r"[\w-][\w.-]*", recipe.name):
        yield f"name {recipe.name!r} names the run's folder: use letters, digits, '-', '_' and '.'"


def _sampling_contradictions(sampling: SamplingSection) -> Iterator[str]:
    if sampling.solver == "dpm" and sampling.eta > 0:
        yield f"sampling.eta is {sampling.eta:g} but solver {sampling.solver!r} is deterministic: set it to 0"


def _algorithm_contradictions(algorithm: AlgorithmSection) -> Iterator[str]:
    for key in sorted(algorithm.foreign() & algorithm.model_fields_set):
        owner = next(name for name, keys in OWN_KEYS.items() if key in keys)
        yield (
            f"algorithm.{key} belongs to algorithm {owner!r}, but algorithm.name is {algorithm.name!r}: drop the key, "
            f"or replace the whole section by algorithm='{{name: {algorithm.name}}}'"
        )


def _ddpo_contradictions(ddpo: DDPOSection, sampling: SamplingSection, batch: int) -> Iterator[str]:
    if sampling.eta == 0:
        yield "algorithm 'ddpo' learns from the noise in sampling steps, but sampling.eta is 0: set it above 0, to 1"
    if ddpo.prompt_min_count > ddpo.prompt_buffer:
        yield (
            f"algorithm.ddpo.prompt_min_count is {ddpo.prompt_min_count} but algorithm.ddpo.prompt_buffer is "
            f"{ddpo.prompt_buffer}: no prompt will ever have so many rewards"
        )
    yield from _share_contradictions("algorithm.ddpo.minibatches", ddpo.minibatches, batch)
    yield from _share_contradictions("algorithm.ddpo.videos_per_prompt", ddpo.videos_per_prompt, batch)


def _dpo_contradictions(dpo: DPOSection, batch: int) -> Iterator[str]:
    if dpo.preferences is None:
        yield from _share_contradictions("algorithm.dpo.videos_per_prompt", dpo.videos_per_prompt, batch)
        if dpo.capacity < batch:
            yield f"algorithm.dpo.capacity is {dpo.capacity} but train.batch is {batch}: keep at least one batch"


def _share_contradictions(key: str, value: int, batch: int) -> Iterator[str]:
    if batch % value:
        yield f"train.batch {batch} is no multiple of {key} {value}: change one of them"


def _policy_contradictions(policy: PolicySection, steps: int) -> Iterator[str]:
    if policy.name in ("last", "drtune") and policy.k > steps:
        yield f"algorithm.policy.k is {policy.k} but sampling.steps is {steps}: k can be at most {steps}"
    if policy.name == "steps" and not policy.steps:
        yield "algorithm.policy.steps is empty: policy 'steps' needs a list of steps, as in [0, 10, 24]"
    if policy.name != "steps" and policy.steps:
        yield f"algorithm.policy.steps is for policy 'steps', but algorithm.policy.name is {policy.name!r}: drop one"
    yield from _index_contradictions("algorithm.policy.steps", policy.steps, steps, "sampling.steps")
    if policy.window[0] >= policy.window[1]:
        yield f"algorithm.policy.window is {list(policy.window)}: its first share must be below its second"


def _frame_contradictions(frames: FramesSection, count: int) -> Iterator[str]:
    key, sample = "algorithm.frames.sample", frames.sample
    if isinstance(sample, int) and sample > count:
        yield f"{key} is {sample} but video.frames is {count}: sample at most {count}, or set it to all"
    if sample == "first_middle_last" and count < 3:
        yield f"{key} is first_middle_last but video.frames is {count}: it needs at least 3"
    if isinstance(sample, tuple):
        if not sample:
            yield f"{key} is an empty list: name at least one frame, or set it to all"
        yield from _index_contradictions(key, sample, count, "video.frames")


def _index_contradictions(key: str, indices: Sequence[int], count: int, count_key: str) -> Iterator[str]:
    for index in indices:
        if index >= count:
            yield f"{key} holds {index} but {count_key} is {count}: indices run from 0 to {count - 1}"
    if len(set(indices)) < len(indices):
        yield f"{key} is {list(indices)}: name each index once"


def _batch_contradictions(train: TrainSection) -> Iterator[str]:
    if train.micro_batch is not None and train.batch % train.micro_batch:
        yield f"train.batch {train.batch} is no multiple of train.micro_batch {train.micro_batch}: change one of them"


# ---------------------------------------------------------------- errors that help


def _explain(error: ValidationError, data: dict[str, Any]) -> str:
    """One line on the most telling of pydantic's errors: a misspelt key before what is missing because of it."""
    order = ("extra_forbidden", "value_error")
    first = min(error.errors(), key=lambda e: order.index(e["type"]) if e["type"] in order else len(order))
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    path, node = _locate(first["loc"])
    dotted = ".".join(map(str, path))
    if first["type"] == "extra_forbidden":
        unknown = str(first["loc"][-1])
        return f"unknown key {'.'.join([*map(str, path), unknown])!r}: {nearest(unknown, _keys(node))}"
    if first["type"] == "missing" and len(path) == len(first["loc"]):
        return f"key {dotted!r} is missing: expected {_describe(node)}"
    return f"{dotted!r} is {_shown(_value_at(data, path))}: expected {_describe(node)}"


def _root() -> dict[str, Any]:
    return Recipe.model_json_schema()


def _keys(node: dict[str, Any]) -> list[str]:
    return list(node["properties"])


def _locate(loc: Sequence[int | str]) -> tuple[list[int | str], dict[str, Any]]:
    """Follows pydantic's location through the JSON schema as far as it names keys: (path, schema node there).

    A location goes on into the branches of a union, or ends at a key that does not exist.
    """
    root = node = _root()
    path: list[int | str] = []
    for key in loc:
        below = node.get("items") if isinstance(key, int) else node.get("properties", {}).get(key)
        if below is None:
            break
        node = root["$defs"][below["$ref"].rpartition("/")[2]] if "$ref" in below else below
        path.append(key)
    return path, node


def _value_at(data: Any, path: Sequence[int | str]) -> Any:
    for key in path:
        data = data[key]
    return data


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _describe(node: dict[str, Any]) -> str:
    """What a JSON schema node accepts, in words."""
    if "anyOf" in node:
        return " or ".join(map(_describe, node["anyOf"]))
    if "enum" in node:
        return f"one of {', '.join(node['enum'])}"
    match node.get("type"):
        case "integer" | "number" as kind:
            return _describe_number(node, "an integer" if kind == "integer" else "a number")
        case "array":
            return _describe_list(node)
        case "object":
            return f"a section with the keys {', '.join(_keys(node))}" if "properties" in node else "a section"
        case kind:
            return {"string": "a text", "boolean": "true or false", "null": "null"}[str(kind)]


def _describe_number(node: dict[str, Any], noun: str) -> str:
    bounds = {"exclusiveMinimum": "above", "minimum": "from", "maximum": "to", "exclusiveMaximum": "below"}
    return " ".join([noun, *(f"{word} {node[key]:g}" for key, word in bounds.items() if key in node)])


def _describe_list(node: dict[str, Any]) -> str:
    if "prefixItems" in node:
        return f"a list of {len(node['prefixItems'])}, each {_describe(node['prefixItems'][0])}"
    items = node["items"]
    return "a list of sections" if "$ref" in items else f"a list, each {_describe(items)}"
