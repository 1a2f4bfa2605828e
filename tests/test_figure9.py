"""Figure 9: segments are cut at their seams, and the gain over later segments is that of pairs."""

from __future__ import annotations

import json
import math
from statistics import stdev

import pytest
import torch

from test_chain import long_recipe
from vader.runs.reader import read_run
from vader.studies import STUDIES
from vader.studies.before_after import parts_of
from vader.studies.figure9 import gain, table, words
from vader.studies.study import Arm, Options, Trained
from vader.training.trainer import train


def test_a_video_is_cut_where_its_segments_meet():
    video = torch.arange(22.0).view(22, 1, 1, 1)
    parts = parts_of(video, [7, 14])
    assert [part.flatten().tolist() for part in parts] == [
        list(range(8)), list(range(8, 15)), list(range(15, 22)),
    ]  # fmt: skip
    assert len(parts_of(video, [])) == 1


@pytest.mark.parametrize(("scale", "rewards"), [("tiny", ["hps", "consistency"]), ("full", ["vjepa"])])
def test_its_recipes_are_of_long_videos(scale, rewards):
    for arm in STUDIES["figure9"].arms(Options(scale)):
        assert arm.recipe.video.segments == 3
        assert [part.name for part in arm.recipe.rewards] == rewards


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    """Two seeds of the toy model, judged by its brightness: videos of three segments."""
    folder = tmp_path_factory.mktemp("runs")
    metrics = "evaluation.metrics=[{name: segments, of: {name: 'toys:Warmth'}}]"
    recipes = [long_recipe(metrics, f"name=seed{seed}", f"train.seed={seed}", "evaluation.every=6") for seed in (3, 4)]
    for recipe in recipes:
        train(recipe, folder)
    arm = Arm({"base": "toy", "reward": "warmth"}, recipes[0])
    return Trained(arm, [read_run(folder / recipe.name) for recipe in recipes])


def test_the_gain_is_that_of_pairs_with_all_seeds_of_a_picture_as_one(trained):
    figures = ["segments/Warmth/2", "segments/Warmth/3"]
    found = gain(trained.runs, figures)
    rises = []
    for video in range(3):
        changes = []
        for run in trained.runs:
            before, after = (
                json.loads((run.path / f"evaluations/step-00000{step}.jsonl").read_text().splitlines()[video])[
                    "figures"
                ]
                for step in (0, 6)
            )
            changes += [after[name] - before[name] for name in figures]
        rises.append(sum(changes) / 4)
    mean, reach = sum(rises) / 3, 1.959964 * stdev(rises) / math.sqrt(3)
    assert found == pytest.approx({"mean": mean, "low": mean - reach, "high": mean + reach, "pictures": 3})


def test_numbers_become_words_and_a_table():
    ends = [{"mean": 0.25}, {"mean": 0.5}]
    arm = {
        "labels": {"base": "SVD", "reward": "V-JEPA"},
        "curve": [{"mean": -0.2, "spread": 0.0}, {"mean": -0.1, "spread": 0.0}],
        "segments": {"gold": [ends, ends], "shape": [ends, ends]},
        "later": {"mean": 0.05, "low": 0.01, "high": 0.09, "pictures": 64},
    }
    (said,) = words({"arms": [arm]})
    assert "gold over the segments after the first by +0.050 (95 % of 64 unseen pictures: +0.010 to +0.090)" in said
    assert said.endswith("more than chance.")
    assert "no more than chance" in next(words({"arms": [arm | {"later": arm["later"] | {"low": -0.01}}]}))
    assert table({"arms": [arm]}).splitlines()[2:] == [
        "| V-JEPA | 1 | 0.25 to 0.50 | 0.25 to 0.50 |",
        "| V-JEPA | 2 | 0.25 to 0.50 | 0.25 to 0.50 |",
    ]
