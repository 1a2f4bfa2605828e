"""What is compared: runs, the base model that they started from, and folders of videos that were made elsewhere.

In go names as people write them; out come systems and the scenes that all of them show: a prompt under the same noise,
or files of the same stem. Nothing is sampled or decoded before all of it is known to fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Protocol

from torch import Tensor

from vader.engine.build import build_solver, check_guidance, load_recipe_guidance, video_size
from vader.engine.device import best_device, frozen_dtype
from vader.errors import UserError
from vader.files.paths import user_path
from vader.files.video import frame_rate, read_video
from vader.models.registry import load_model, model_class
from vader.networks.adapter_files import load_adapters
from vader.nouns import Prompt
from vader.preference.captions import captions_of
from vader.prompts import load_prompts, with_negative
from vader.recipe import Recipe, load_recipe
from vader.runs.adapters import find_adapter, run_of
from vader.sampling.videos import sample_videos

BASE = "base"
VIDEO_SUFFIXES = (".mp4", ".webm")
BATCH = 4  # videos that are sampled at once


@dataclass(frozen=True)
class Scene:
    """What every system shows once: a prompt under the noise of a seed, or the files of one stem."""

    prompt: Prompt
    seed: int = 0
    stem: str = ""

    @property
    def source(self) -> str:
        """What tells it from others in the key; of a picture without a text, what its seeds share."""
        picture = self.prompt.image.name if self.prompt.image and not self.prompt.caption else ""
        return self.stem or picture or f"seed {self.seed}"


Advance = Callable[[int], object]
Shown = tuple[Tensor, float]  # pixels `[F, 3, H, W]` in [0, 1], and frames a second


class System(Protocol):
    """Something that makes videos, under the name that reports give it."""

    @property
    def name(self) -> str: ...

    def videos(self, scenes: Sequence[Scene], advance: Advance) -> Iterator[Shown]:
        """One a scene, in order; `advance` hears how many more are made."""
        ...


@dataclass(frozen=True)
class Folder:
    """Videos made elsewhere, by the stem of their files."""

    name: str
    files: dict[str, Path]
    captions: dict[str, str]  # of those files of which the folder says one

    def videos(self, scenes: Sequence[Scene], advance: Advance) -> Iterator[Shown]:
        for scene in scenes:
            path = self.files[scene.stem]
            advance(1)
            yield read_video(path), frame_rate(path) or 8


@dataclass(frozen=True)
class Sampled:
    """A recipe's model with an adapter, or without: the base model."""

    name: str
    recipe: Recipe
    adapter: Path | None

    def videos(self, scenes: Sequence[Scene], advance: Advance) -> Iterator[Shown]:
        recipe, device = self.recipe, best_device()
        section = recipe.model
        dtype = frozen_dtype(section.precision, device)
        model = load_model(section.family, section.checkpoint, dtype=dtype, device=device, options=section.options)
        if self.adapter is not None:
            load_adapters(model.denoisers, self.adapter, model.family)
        size, steps, guidance = video_size(recipe), recipe.sampling.steps, load_recipe_guidance(recipe)
        solver = build_solver(recipe, model)
        for seed in dict.fromkeys(scene.seed for scene in scenes):
            prompts = [scene.prompt for scene in scenes if scene.seed == seed]
            for video in sample_videos(model, prompts, size, steps, guidance, solver, seed, BATCH, advance=advance):
                yield video, size.fps


@dataclass(frozen=True)
class Seeded:
    """Runs that differ by their seed alone, as one system: each makes the videos under its own seed's noise."""

    name: str
    by_seed: Mapping[int, Sampled]

    def videos(self, scenes: Sequence[Scene], advance: Advance) -> Iterator[Shown]:
        for seed in dict.fromkeys(scene.seed for scene in scenes):
            yield from self.by_seed[seed].videos([scene for scene in scenes if scene.seed == seed], advance)


# ---- as they are named ----


def find_systems(names: Sequence[str], trust_code: bool = False) -> list[System]:
    """Runs (also `runs/x@10`), `base`, and folders of videos.

    Raises:
        UserError: there are fewer than two, one is named twice, or one is neither.
    """
    if len(names) < 2:
        raise UserError("a study compares two systems or more: give runs, base, or folders of videos")
    places = [BASE if name == BASE else str(user_path(name, "system").resolve()) for name in names]
    if twice := [name for name, place in zip(names, places, strict=True) if places.count(place) > 1]:
        raise UserError(f"{twice[0]!r} is named twice: a system is not compared with itself")
    found: dict[str, System] = {name: _system(name, trust_code) for name in names if name != BASE}
    sampled = [system for system in found.values() if isinstance(system, Sampled)]
    _check_comparable(sampled)
    if BASE in names:
        if not sampled:
            raise UserError("'base' is the model that a run started from: name a run beside it, or write ./base")
        found[BASE] = replace(sampled[0], name=BASE, adapter=None)
    return [found[name] for name in names]


def _system(name: str, trust_code: bool) -> System:
    if run := run_of(name):
        return Sampled(name, load_recipe(str(run.recipe), trust_code=trust_code), find_adapter(name))
    folder = user_path(name, "system")
    if not folder.is_dir():
        raise UserError(f"there is no run and no folder of videos {name!r}: give runs/x, runs/x@10, base or a folder")
    files = {path.stem: path for path in sorted(folder.iterdir()) if _is_video(path)}
    if not files:
        raise UserError(f"{name!r} is no run, and no folder of videos: there is no .mp4 or .webm in it")
    return Folder(name, files, captions_of(folder, list(files.values())))


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and not path.name.startswith(".")


def _check_comparable(systems: Sequence[Sampled]) -> None:
    """Raises `UserError` if size would tell the systems apart, or if they have not one base model."""
    for system in systems[1:]:
        first, other = systems[0], system
        if first.recipe.video != other.recipe.video:
            raise UserError(f"the videos of {first.name!r} and {other.name!r} differ in size, length or frame rate")
        if first.recipe.model != other.recipe.model:
            raise UserError(
                f"{first.name!r} and {other.name!r} started from different base models, which no noise makes "
                "comparable: sample each with 'vader sample', and give the folders"
            )


# ---- what they show ----


def find_scenes(systems: Sequence[System], prompts: str | None, seeds: int | None, videos: int) -> list[Scene]:
    """What all of them show.

    Args:
        prompts: a prompt set for runs; None: what the first run's recipe holds out.
        seeds: videos of each prompt, under noise that follows the recipe's `train.seed`; None is one.
        videos: how many prompts are taken, from the first; of folders, how many files.

    Raises:
        UserError: the folders have no file of one name, or say different prompts of one; prompts or seeds are given
            for files that have theirs.
    """
    sampled = [system for system in systems if isinstance(system, Sampled)]
    if folders := [system for system in systems if isinstance(system, Folder)]:
        if prompts is not None or seeds is not None:
            raise UserError("--prompts and --seeds are for runs alone: the files of a folder have prompts of their own")
        scenes = _of_files(folders)[:videos]
    else:
        recipe = sampled[0].recipe
        texts = load_prompts(prompts or recipe.prompts.test)[:videos]
        first = recipe.train.seed
        scenes = [Scene(text, seed) for seed, text in product(range(first, first + (seeds or 1)), texts)]
    for system in sampled:
        scenes = _as_sampled(system, scenes)
    return scenes


def _as_sampled(system: Sampled, scenes: Sequence[Scene]) -> list[Scene]:
    """The scenes with the recipe's negative prompt, once its model takes them."""
    texts = with_negative([scene.prompt for scene in scenes], system.recipe.sampling.negative)
    model_class(system.recipe.model.family).check_prompts(texts)
    check_guidance(system.recipe, texts)
    return [replace(scene, prompt=text) for scene, text in zip(scenes, texts, strict=True)]


def _of_files(folders: Sequence[Folder]) -> list[Scene]:
    common = [stem for stem in folders[0].files if all(stem in folder.files for folder in folders)]
    if not common:
        names = " and ".join(repr(folder.name) for folder in folders)
        raise UserError(f"{names} have no file of the same name: videos of one prompt and noise are named alike")
    return [Scene(Prompt(_agreed(stem, folders)), stem=stem) for stem in common]


def _agreed(stem: str, folders: Sequence[Folder]) -> str:
    """The prompt that folders say of a file; empty where none does: a file's name is not for raters."""
    said = {folder.captions[stem]: folder.name for folder in folders if stem in folder.captions}
    if len(said) > 1:
        (one, first), (other, second), *_ = said.items()
        raise UserError(f"the prompt of {stem!r} is {one!r} in {first} and {other!r} in {second}: make them the same")
    return next(iter(said), "")


def left_out(systems: Sequence[System], scenes: Sequence[Scene]) -> list[str]:
    """The files of folders that are no part of the study, as their stems."""
    shown = {scene.stem for scene in scenes}
    stems = (stem for system in systems if isinstance(system, Folder) for stem in system.files)
    return sorted(set(stems) - shown)
