"""Keys of the first form of recipes: each is an error that says what is written instead.

In goes a recipe as read, with its overrides, before anything of it is checked; out come sentences for the user.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

ALGORITHMS = {"ddpo": "ddpo", "dpo": "diffusion_dpo"}  # the key of an algorithm's settings, and the algorithm
TECHNIQUES = {"checkpointing": "recompute", "offload": "offload_activations"}
DEFAULTS = {"checkpointing": True, "offload": False}


def moved_keys(data: Mapping[str, Any]) -> Iterator[str]:
    """What is still written as it was, and how it is written now."""
    algorithm, evaluation = _section(data, "algorithm"), _section(data, "evaluation")
    if isinstance(name := data.get("algorithm"), str):
        yield f"algorithm is a part: write {_new('algorithm', {'name': ALGORITHMS.get(name, name)})}"
    yield from (_settings(key, _section(algorithm, key)) for key in ALGORITHMS if key in algorithm)
    yield from _frames(_section(algorithm, "frames"), data)
    yield from _metrics(evaluation)
    yield from _memory(_section(data, "memory"))


def _settings(key: str, settings: Mapping[str, Any]) -> str:
    new = _new("algorithm", {"name": ALGORITHMS[key], **settings})
    return f"algorithm.{key} is now part of the algorithm itself: write {new}"


def _frames(frames: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    if "sample" in frames:
        rewards = [{**reward, "sees": frames["sample"]} for reward in _parts(data, "rewards")]
        yield f"algorithm.frames.sample is now sees, a key of each reward: write {_new('rewards', rewards)}"
    if "chunk" in frames:
        yield (
            "algorithm.frames.chunk is now scoring.chunk, and counts images over all videos of a micro-batch: "
            f"write {_new('scoring', {'chunk': _images(frames['chunk'], data)})}"
        )


def _images(chunk: Any, data: Mapping[str, Any]) -> Any:
    """So many frames of each video of a micro-batch."""
    train = _section(data, "train")
    videos = train.get("micro_batch") or train.get("batch") or 1
    return chunk * videos if isinstance(chunk, int) and isinstance(videos, int) else chunk


def _metrics(evaluation: Mapping[str, Any]) -> Iterator[str]:
    if "judge" in evaluation:
        new = _new("evaluation", {"metrics": [{"name": "judge"}, {"name": "gold", "task": "looks"}]})
        yield f"evaluation.judge is now one of evaluation.metrics: to have it write {new}, else drop the key"
    if "monitors" in evaluation:
        monitors = [
            {key: value for key, value in monitor.items() if key != "weight"}
            for monitor in _parts(evaluation, "monitors")
        ]
        yield f"evaluation.monitors is now evaluation.metrics: write {_new('evaluation', {'metrics': monitors})}"


def _memory(memory: Mapping[str, Any]) -> Iterator[str]:
    old = [f"memory.{key}" for key in TECHNIQUES if key in memory]
    if old:
        wanted = DEFAULTS | dict(memory)
        new = _new("memory", [{"name": name} for key, name in TECHNIQUES.items() if wanted[key]])
        yield f"{' and '.join(old)} {'is' if len(old) == 1 else 'are'} now in a list of techniques: write {new}"


def _section(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section where it is one; what else stands there is for the recipe's own checks."""
    found = data.get(key)
    return found if isinstance(found, Mapping) else {}


def _parts(data: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = data.get(key)
    return [part for part in found if isinstance(part, Mapping)] if isinstance(found, list) else []


class _Plain(yaml.SafeDumper):
    """Writes a value again where it stands twice, as people do."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _new(key: str, value: Any) -> str:
    """`key: value` in YAML, in one line."""
    return f"{key}: {yaml.dump(value, Dumper=_Plain, default_flow_style=True, sort_keys=False, width=10**6).strip()}"
