"""Table 2: the tiny world's judge as a rater, and the study that people may rate after it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from run_factories import write_run
from study_factories import answered, attentive, by_system
from vader.cli import main
from vader.files.video import write_mp4
from vader.preference.judge import can_judge, judge_sheet
from vader.preference.results import results_of
from vader.preference.statistics import wilson
from vader.preference.study import read_study
from vader.preference.systems import Sampled
from vader.recipe import load_recipe
from vader.runs.reader import read_run
from vader.studies import table2
from vader.studies.study import Options, Trained, same_run
from vader.studies.tasks import arm
from vader.tinyworld.scenes import Scenes, captions, render, sample_scenes

SCENES = sample_scenes(6, torch.Generator().manual_seed(5))


def recoloured(scenes: Scenes) -> Scenes:
    return Scenes(**{**vars(scenes), "color": (scenes.color + 1) % 5})


def patched(video: torch.Tensor) -> torch.Tensor:
    """With a flickering patch over the object's way, which nobody renders."""
    video = video.clone()
    video[::2, :, 10:22, 10:22] = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    return video


def write_system(folder: Path, videos: torch.Tensor, prompts: list[str]) -> None:
    for i, video in enumerate(videos):
        write_mp4(folder / f"{i}.mp4", video, fps=8)
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Six pairs of the same scenes: `vivid` is the more vivid in three, damaged in one, the same in one, and of the
    wrong colour in one."""
    folder = tmp_path_factory.mktemp("made")
    dull, vivid, wrong = (
        render(scenes)
        for scenes in (SCENES.with_vividness(0.4), SCENES.with_vividness(0.9), recoloured(SCENES).with_vividness(0.4))
    )
    mixed = torch.stack([*vivid[:3], patched(vivid[3]), dull[4], wrong[5]])
    for name, videos in (("dull", dull), ("vivid", mixed)):
        write_system(folder / name, videos, captions(SCENES))
    systems = [str(folder / name) for name in ("dull", "vivid")]
    assert main(["study", "new", *systems, "--out", str(folder / "study")]) == 0
    return folder / "study"


# ---------------------------------------------------------------- the judge as a rater


def test_the_judge_prefers_what_is_whole_then_what_is_vivid(made):
    study = read_study(made)
    answers = {(answer.item, answer.question): answer for answer in judge_sheet(study, made).answers}
    winners = {}
    for item in study.items():
        if item.right is None:
            answer = answers[item.id, "fidelity"]
            place = int(study.videos[item.videos[0]].source)
            right = next(video for video in item.videos if video != answer.left)
            winner = {"left": answer.left, "right": right, "tie": None}[answer.choice]
            winners[place] = winner and Path(study.system_of(winner)).name
    assert winners == {0: "vivid", 1: "vivid", 2: "vivid", 3: "dull", 4: None, 5: None}


def test_its_shares_are_counted_as_anybody_s(made):
    study = read_study(made)
    results = results_of(study, [judge_sheet(study, made)])
    (rater,) = results.raters
    assert (rater.fault, rater.right, rater.checks) == (None, 3, 3)
    found = {one.question: one for one in results.comparisons}
    assert set(found) == {"fidelity", "alignment"}  # it is not asked about motion
    fidelity, alignment = found["fidelity"], found["alignment"]
    assert Path(fidelity.first).name == "vivid"
    assert (fidelity.wins, fidelity.losses, fidelity.ties) == (3, 1, 2)
    assert fidelity.share == pytest.approx((3 + 2 / 2) / 6)
    assert fidelity.wilson == pytest.approx(wilson(4 / 6, 6))
    assert alignment.losses >= 1  # of the wrong colour
    assert alignment.wins == 0


def test_it_knows_the_tiny_world_alone(made, tmp_path):
    assert can_judge(read_study(made))
    for name, shade in (("a", 0.2), ("b", 0.8)):
        write_system(tmp_path / name, torch.full((3, 4, 3, 32, 32), shade), ["a dog", "a cat", "a red circle"])
    assert main(["study", "new", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "study")]) == 0
    assert not can_judge(read_study(tmp_path / "study"))


# ---------------------------------------------------------------- the study of the paper's table


@pytest.fixture
def trained(tmp_path, monkeypatch) -> Trained:
    """Two seeds of a run that makes everything vivid, where its base makes it dull."""
    runs = []
    for seed in (0, 1):
        overrides = ["evaluation.videos=5", f"train.seed={seed}", f"optimizer.lr={1 + seed}e-3"]
        runs.append(read_run(write_run(tmp_path / "runs" / f"text-vader-seed{seed}", [0.7, 0.8], *overrides)))
    monkeypatch.setattr(Sampled, "videos", rendered)
    return Trained(arm("text", "VADER", "tiny"), runs)


asked: list[tuple[str, float, int, int]] = []


def rendered(system: Sampled, scenes, advance):
    """Instead of sampling: the scenes of the prompts, dull without an adapter."""
    for seed in dict.fromkeys(scene.seed for scene in scenes):
        some = sample_scenes(5, torch.Generator().manual_seed(seed)).with_vividness(0.9 if system.adapter else 0.3)
        asked.append((system.name, system.recipe.optimizer.lr, seed, len(scenes)))
        yield from ((video, 8.0) for video in render(some))


def test_each_seed_s_run_is_shown_beside_the_base_under_its_own_noise(trained, tmp_path):
    asked.clear()
    result = table2.summarise([trained])
    assert asked == [
        ("ModelScope", 1e-3, 0, 10),
        ("ModelScope", 1e-3, 1, 10),
        ("VADER", 1e-3, 0, 5),
        ("VADER", 2e-3, 1, 5),
    ]
    study = read_study(tmp_path / result["folder"])
    assert (result["folder"], result["pairs"], study.systems) == ("table2-study-2-seeds", 10, ("ModelScope", "VADER"))
    for item in study.items():
        if item.right is None:
            assert len({study.videos[video].source for video in item.videos}) == 1
    fidelity = result["raters"]["judge"][0]
    assert (fidelity["question"], fidelity["first"], fidelity["share"]) == ("fidelity", "VADER", 1.0)
    assert fidelity["prompts"] == 5  # two seeds of a prompt are no two prompts
    json.dumps(result, allow_nan=False)


def test_people_are_counted_beside_the_judge_and_the_study_stays(trained, tmp_path):
    first = table2.summarise([trained])
    folder = tmp_path / first["folder"]
    key = (folder / "study.json").read_bytes()
    study = read_study(folder)
    sheet = answered(study, "ann", attentive(by_system("ModelScope")))
    (folder / "answers" / "ann.json").write_text(sheet.model_dump_json())
    result = table2.summarise([trained])
    assert (folder / "study.json").read_bytes() == key
    assert result["raters"]["judge"] == first["raters"]["judge"]
    assert {one["question"]: one["share"] for one in result["raters"]["people"]} == {
        "fidelity": 0.0,
        "alignment": 0.0,
        "motion": 0.0,
    }
    lines = table2.table(result).splitlines()
    assert lines[2] == "| people, in the paper | ModelScope | 21.0% | 39.0% |"
    assert lines[3] == "| people, in the paper | VADER | 79.0% (70 to 86) | 61.0% (51 to 70) |"
    assert lines[5].startswith("| the tiny world's judge | VADER | 100.0% (")
    assert lines[6].startswith("| people, here | ModelScope | 100.0% | 100.0% |")
    said, ready = table2.words(result)
    assert "- fidelity, by the tiny world's judge: VADER's video is preferred 10 times, ModelScope's 0 times" in said
    assert "in the paper 79%." in said
    assert "`table2-study-2-seeds` in that of the results, has 10 pairs" in ready
    assert table2.draw(result, tmp_path / "table2.png").stat().st_size > 5_000


def test_people_alone_where_the_judge_knows_nothing(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("vader.studies.table2.can_judge", lambda study: False)
    result = table2.summarise([trained])
    assert result["raters"] == {}
    assert table2.table(result).count("\n") == 3  # the paper's alone
    assert table2.draw(result, tmp_path / "table2.png").exists()


def test_table2_is_of_figure7_s_runs_and_the_paper_s_recipe():
    (tiny,), (full,) = (table2.arms(Options(scale)) for scale in ("tiny", "full"))
    assert same_run(tiny.recipe, arm("text", "VADER", "tiny").recipe)
    assert full.recipe.rewards == load_recipe("modelscope-hps").rewards
