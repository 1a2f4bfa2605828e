"""The choices of section 4, each alone: truncation (K last steps), a random truncation, and frames that are scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vader.evaluation.formats import fixed, signed
from vader.evaluation.plots import RUN_COLOURS, draw_bars, new_figure, save
from vader.studies.formats import markdown, mean_and_spread
from vader.studies.study import Arm, Options, Scale, Study, Trained, changed, same_run, summary_of
from vader.studies.tasks import task_recipe

GB = 1e9
# The setting from which one thing at a time is changed: that of figure 7's VADER.
CENTRE: dict[Scale, dict[str, Any]] = {"tiny": {"k": 5, "frames": "all"}, "full": {"k": 1, "frames": 1}}


def arms(options: Options) -> list[Arm]:
    scale = options.scale
    steps = task_recipe("aesthetic", "VADER", scale).sampling.steps
    k, frames = CENTRE[scale]["k"], CENTRE[scale]["frames"]
    found = [_arm(scale, {"name": "last", "k": one}, frames) for one in dict.fromkeys((1, 2, 5, k, steps))]
    found.append(_arm(scale, {"name": "random_tail"}, frames))
    return found + [_arm(scale, {"name": "last", "k": k}, one) for one in (1, 4, "all") if one != frames]


def _arm(scale: Scale, policy: dict[str, Any], frames: int | str) -> Arm:
    recipe = task_recipe("aesthetic", "VADER", scale)
    name = f"last {policy['k']}" if policy["name"] == "last" else "random to end"
    labels = {"policy": name, "frames": str(frames)}
    seen = [{**reward.model_dump(mode="json"), "sees": frames} for reward in recipe.rewards]
    run_name = f"{name.replace(' ', '-')}-frames-{frames}"
    run = changed(recipe, run_name, algorithm={"policy": policy}, rewards=seen)
    if same_run(run, recipe):
        return Arm(labels, run)
    return Arm(labels, changed(run, evaluation={"every": run.train.steps}))  # its two ends are all that is shown


def summarise(trained: Sequence[Trained]) -> dict[str, Any]:
    return {"arms": [summary_of(one) for one in trained]}


def table(result: dict[str, Any]) -> str:
    head = ["gradient steps", "frames scored", "before", "after", "gain", "gold, before to after", "s/step", "peak, GB"]
    return markdown(head, [_row(found) for found in result["arms"]])


def _row(found: dict[str, Any]) -> list[str]:
    first, last = found["curve"][0], found["curve"][-1]
    true = [f"{point['figures']['gold']:.2f}" for point in (first, last) if "gold" in point["figures"]]
    return [
        found["labels"]["policy"],
        found["labels"]["frames"],
        mean_and_spread(first, 2),
        mean_and_spread(last, 2),
        signed(last["mean"] - first["mean"], 2),
        " to ".join(true),
        f"{found['step_seconds']:.1f}",
        fixed(found["peak_memory"] / GB, 2),
    ]


def draw(result: dict[str, Any], path: Path) -> Path:
    """Gain, seconds a step and peak memory side by side."""
    names = [f"{found['labels']['policy']}, frames: {found['labels']['frames']}" for found in result["arms"]]
    gains = [found["curve"][-1]["mean"] - found["curve"][0]["mean"] for found in result["arms"]]
    panels = {
        "gain of held-out reward": gains,
        "compute seconds a step": [found["step_seconds"] for found in result["arms"]],
        "peak memory, GB": [found["peak_memory"] / GB for found in result["arms"]],
    }
    figure = new_figure(13, 0.4 * len(names) + 1.5)
    for axes, (title, values) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        draw_bars(axes, dict(zip(names, values, strict=True)), RUN_COLOURS[:1], title, "")
    return save(figure, path)


STUDY = Study("ablation-truncation", "Truncation and frames", arms, summarise, table, draw)
