"""What a run is worth: the same prompts and noise for every checkpoint, and the figures of every metric."""

from __future__ import annotations

import json
import shutil
from statistics import fmean

import pytest

from run_factories import write_run
from toy_runs import TOY, toy_recipe
from vader.cli import main
from vader.errors import UserError
from vader.evaluation.evaluate import build_bench, evaluate_sources, sources_of_run
from vader.files.video import read_video
from vader.runs.folder import RunFolder
from vader.runs.reader import read_run
from vader.training.trainer import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained toy run of six steps that keeps all its checkpoints."""
    runs = tmp_path_factory.mktemp("runs")
    return train(toy_recipe("train.keep_checkpoints=10", "evaluation.videos=4"), runs).folder


def test_sources_are_the_base_and_every_checkpoint(run):
    assert [(source.name, source.step) for source in sources_of_run(read_run(run))] == [
        ("base", 0),
        ("step 2", 2),
        ("step 4", 4),
        ("step 6", 6),
    ]


def test_points_have_the_figures_of_the_run_itself(run):
    found = read_run(run)
    scored: list[int] = []
    bench = build_bench(found.recipe, videos=4, seeds=1)
    points = evaluate_sources(bench, sources_of_run(found), on_scored=scored.append)
    assert sum(scored) == 4 * 4
    own = {evaluation.step: evaluation for evaluation in found.evaluations}
    for point in points:
        if point.step in own:
            assert point.reward == pytest.approx(own[point.step].reward, abs=1e-6)
            assert point.stderr == pytest.approx(own[point.step].stderr, abs=1e-6)
            assert point.parts == pytest.approx(own[point.step].parts, abs=1e-6)
    assert points[-1].reward > points[0].reward
    assert points[0].figures == {}


def test_final_adapter_stands_for_checkpoints_that_are_gone(run, tmp_path):
    found = read_run(run)
    (whole,) = [s for s in sources_of_run(found) if s.step == 6]
    copied = tmp_path / "copied"
    shutil.copytree(run, copied)
    shutil.rmtree(copied / "checkpoints")
    base, final = sources_of_run(read_run(copied))
    assert (base.name, final.name, final.step) == ("base", "final", 6)
    by_checkpoint, by_file = (
        evaluate_sources(build_bench(found.recipe, 2, 1), [source])[0].reward for source in (whole, final)
    )
    assert by_file == pytest.approx(by_checkpoint, abs=1e-6)


def test_a_checkpoint_that_goes_meanwhile_is_left_out(run, tmp_path):
    found = read_run(shutil.copytree(run, tmp_path / "copied"))
    sources = sources_of_run(found)
    shutil.rmtree(found.folder.checkpoints / "step-000004")
    points = evaluate_sources(build_bench(found.recipe, 1, 1), sources)
    assert [point.name for point in points] == ["base", "step 2", "step 6"]
    (found.folder.checkpoints / "step-000006/state.pt").write_bytes(b"half")
    with pytest.raises(UserError, match="is damaged"):
        evaluate_sources(build_bench(found.recipe, 1, 1), sources)


def test_seeds_are_averaged_and_prompts_give_the_error(run):
    found = read_run(run)
    (base,) = evaluate_sources(build_bench(found.recipe, 3, 2), sources_of_run(found)[:1])
    alone = []
    for seed in (3, 4):
        recipe = found.recipe.model_copy(update={"train": found.recipe.train.model_copy(update={"seed": seed})})
        alone += evaluate_sources(build_bench(recipe, 3, 1), sources_of_run(found)[:1])
    assert base.by_seed == pytest.approx([point.reward for point in alone])
    assert base.reward == pytest.approx(fmean(base.by_seed))
    assert base.figures["diversity/pixels"] > 0
    (moved,) = evaluate_sources(build_bench(found.recipe, 3, 2, first_seed=4), sources_of_run(found)[:1])
    assert moved.by_seed[0] == pytest.approx(alone[1].reward)
    assert moved.by_seed[1] not in (pytest.approx(alone[0].reward), pytest.approx(alone[1].reward))


def test_videos_are_kept_if_asked_for(run, tmp_path):
    """Of the first prompts under the first seed, by the step of their checkpoint: those of the run itself."""
    arguments = ["--videos", "2", "--seeds", "2", "--shown", "1", "--out", str(tmp_path), "--trust-code"]
    assert main(["evaluate", str(run), *arguments]) == 0
    kept, own = RunFolder(tmp_path), RunFolder(run)
    assert list(kept.sampled) == [0, 2, 4, 6]
    for step, folder in kept.sampled.items():
        assert [path.name for path in folder.glob("*.mp4")] == ["000.mp4"]
        assert len(kept.evaluation(step).read_text().splitlines()) == 2
        if step in own.sampled:
            again, before = (read_video(place / "000.mp4") for place in (folder, own.samples(step)))
            assert (again - before).abs().max() < 0.01


def test_every_evaluation_keeps_the_scores_of_each_video(tmp_path):
    metrics = "[{name: judge}, {name: 'toys:Stillness'}, {name: 'test_metrics:Set'}, {name: diversity}]"
    recipe = toy_recipe(f"evaluation.metrics={metrics}", "evaluation.videos=5", "evaluation.batch=2", "train.steps=3")
    run = read_run(train(recipe, tmp_path).folder)
    evaluation, folder = run.evaluations[-1], RunFolder(run.path)
    videos = [json.loads(line) for line in folder.evaluation(evaluation.step).read_text().splitlines()]
    assert [video["index"] for video in videos] == [0, 1, 2, 3, 4]
    assert all(set(video) == {"index", "prompt", "reward", "parts", "figures", "guards"} for video in videos)
    for name in ("Stillness", "judge/color"):
        mean = sum(video["figures"][name] for video in videos) / 5
        assert evaluation.figures[name] == pytest.approx(mean)
    assert (evaluation.figures["Set/count"], evaluation.figures["Set/prompts"]) == (5, 5)
    assert "Set/count" not in videos[0]["figures"]
    assert "diversity/pixels" not in evaluation.figures  # no prompt has two videos
    assert len(run.samples[evaluation.step]) == recipe.evaluation.shown
    assert sorted(path.name for path in (run.path / "evaluations").iterdir()) == [
        "step-000000.jsonl",
        "step-000003.jsonl",
    ]


def test_command_writes_json_plot_and_table(run, capsys):
    assert main(["evaluate", str(run), "--videos", "3", "--seeds", "2", "--trust-code"]) == 0
    out = capsys.readouterr().out
    content = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert (content["videos"], content["seeds"], content["prompts"]) == (3, [3, 4], "tiny-test")
    assert [point["name"] for point in content["points"]] == ["base", "step 2", "step 4", "step 6"]
    assert all(set(point["figures"]) == {"diversity/pixels"} for point in content["points"])
    assert (run / "evaluation" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert [len(line) for line in table] == [5, 5, 5, 5]  # a column a checkpoint
    assert [line[0] for line in table] == ["reward", "Warmth", "Stillness", "diversity/pixels"]
    by_figure = [point["figures"]["diversity/pixels"] for point in content["points"]]
    assert list(map(float, table[-1][1:])) == pytest.approx(by_figure, abs=6e-4)


def test_command_takes_the_seeds_that_are_asked_for(run, tmp_path, capsys):
    seeds = ["--seeds", "2", "--first-seed", "100"]
    assert main(["evaluate", str(run), "--videos", "1", *seeds, "--trust-code", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["seeds"] == [100, 101]


def test_command_measures_by_further_metrics(run, tmp_path, capsys):
    asked = ["--metric", "gold:task=motion", "--metric", "toys:Stillness", "--metric", "diversity:checkpoint=tiny"]
    assert (
        main(["evaluate", str(run), "--videos", "2", "--seeds", "2", *asked, "--trust-code", "--out", str(tmp_path)])
        == 0
    )
    points = json.loads((tmp_path / "evaluation.json").read_text())["points"]
    for point in points:
        assert list(point["figures"]) == ["gold", "Stillness", "diversity/pixels", "diversity/features"]
        assert point["figures"]["Stillness"] == pytest.approx(point["parts"]["Stillness"], abs=1e-5)
    assert (tmp_path / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_command_takes_an_adapter_without_its_run(run, tmp_path, capsys):
    arguments = ["evaluate", "--adapter", str(run / "adapter"), "--recipe", str(TOY), "--videos", "2", "--seeds", "1"]
    assert main([*arguments, "--prompts", "tiny-train", "--out", str(tmp_path)]) == 0
    points = json.loads((tmp_path / "evaluation.json").read_text())["points"]
    assert [point["name"] for point in points] == ["base", str(run / "adapter")]
    assert points[1]["reward"] != points[0]["reward"]


def test_mistakes(tmp_path, capsys):
    bare = write_run(tmp_path / "bare", [4.0])
    (bare / "adapter" / "pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(UserError, match="nothing to evaluate: no checkpoint"):
        sources_of_run(read_run(bare))
    for arguments, message in (
        ([], "nothing to evaluate"),
        ([str(bare), "--recipe", "tiny"], "a run has its own recipe"),
        (["runs/x@best"], "runs/x@best is one adapter of a run: write --adapter runs/x@best"),
        (["--adapter", "nowhere"], "no adapter at 'nowhere'"),
        (["--recipe", "tiny", "--prompts", "tiny-tset"], "did you mean 'tiny-test'"),
        (["--recipe", "tiny", "--metric", "hps=1"], "metric 'hps=1': write name or name:key=value"),
    ):
        assert main(["evaluate", *arguments]) == 2
        assert message in capsys.readouterr().err
