"""Before/after sheets: that the pictures are of the right videos, and of the same prompts and noise."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from test_reproduce import InProcess
from toy_runs import toy_recipe
from vader.cli import main
from vader.errors import UserError
from vader.files.sheets import SEAM, Row, draw_sheet
from vader.files.video import frame_strip, read_video
from vader.prompts import load_prompts
from vader.runs.folder import RunFolder
from vader.studies import STUDIES, run_study, sheets
from vader.studies.before_after import Shown, sheet_study
from vader.studies.pages import WORDS
from vader.studies.study import Arm, Options, same_run
from vader.studies.tasks import arm as task_arm


def plain(*shades: float) -> list[torch.Tensor]:
    """The parts of a video, each of one shade."""
    return [torch.full((4, 3, 32, 32), shade) for shade in shades]


def grey(shade: float) -> list[int]:
    return [round(255 * shade)] * 3


# ---------------------------------------------------------------- the picture


def test_a_sheet_has_every_video_in_its_column(tmp_path):
    rows = [
        Row("title", "a caption", [plain(0.1), plain(0.3)], ["before", "after"]),
        Row("title", "another", [plain(0.5), plain(0.7)], ["before", "after"]),
    ]
    sheet = np.array(Image.open(draw_sheet(["base", "VADER"], rows, tmp_path / "sheet.png")))
    strip = 4 * 132 - 4
    assert sheet.shape[1] == 16 + strip + 28 + strip + 16
    left, right = (sheet[:, 16 + x + 64] for x in (0, strip + 28))
    for column, shades in ((left, (0.1, 0.5)), (right, (0.3, 0.7))):
        tall = [shade for shade in (0.1, 0.3, 0.5, 0.7) if (column == grey(shade)).all(axis=1).sum() == 128]
        assert tall == list(shades)
    first = int((left == grey(0.1)).all(axis=1).argmax())
    assert np.array_equal(sheet[first : first + 128, 16 : 16 + strip], np.array(frame_strip(plain(0.1)[0], 4)))


def test_parts_of_a_video_are_lines_with_a_mark_between(tmp_path):
    row = Row("", "long", [plain(0.2, 0.4, 0.6)], [""])
    sheet = np.array(Image.open(draw_sheet(["SVD"], [row], tmp_path / "sheet.png")))[:, 16 + 64]
    places = [(sheet == grey(shade)).all(axis=1).nonzero()[0] for shade in (0.2, 0.4, 0.6)]
    seams = (sheet == SEAM).all(axis=1).nonzero()[0]
    assert [len(place) for place in places] == [128, 128, 128]
    assert len(seams) == 8
    assert places[0].max() < seams[:4].min() < seams[:4].max() < places[1].min() < seams[4:].min() < places[2].min()


def test_words_are_broken_at_the_width_of_what_they_belong_to(tmp_path):
    def height(caption: str, note: str) -> tuple[int, int]:
        row = Row("title", caption, [plain(0.1), plain(0.2)], [note, ""])
        return Image.open(draw_sheet(["a", "b"], [row], tmp_path / "sheet.png")).size

    short, over_both, over_one = height("one line", "n"), height("word " * 20, "n"), height("one line", "word " * 20)
    assert short[0] == over_both[0] == over_one[0]
    assert short[1] == over_both[1] == over_one[1] - 24


# ---------------------------------------------------------------- what is shown


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A sheet study of a toy run: its folder and its numbers."""
    out = tmp_path_factory.mktemp("out")
    recipe = toy_recipe("name=toy-arm", "evaluation.shown=2", "optimizer.lr=0.1")
    arms = [Arm({"base": "Toy", "reward": "warmth"}, recipe)]
    study = sheet_study("toy-sheet", "A toy", lambda options: arms, Shown(unseen=2, seen=1))

    def start(job, log, threads):
        trusted = ["--trust-code"] if job.arguments[0] == "evaluate" else []
        return InProcess(main([*job.arguments, *trusted]))

    written = run_study(study, arms, Options(seeds=3), out, start=start)
    return out, json.loads(written[0].read_text())


def test_rows_are_the_first_prompts_trained_on_and_held_out(shown):
    out, result = shown
    assert result["seeds"] == 1  # one run is enough, however many seeds were asked for
    assert [path.name for path in (out / "runs").glob("[!.]*")] == ["toy-arm-seed3"]
    assert [row["seen"] for row in result["rows"]] == [True, False, False]
    prompts = [load_prompts("tiny-train")[0], *load_prompts("tiny-test")[:2]]
    assert [row["prompt"] for row in result["rows"]] == [prompt.text for prompt in prompts]


def test_pairs_are_a_run_s_own_videos_before_and_after(shown):
    out, result = shown
    run = RunFolder(out / "runs" / "toy-arm-seed3")
    for row, place in zip(result["rows"][1:], (0, 1), strict=True):
        for end, step in (("before", 0), ("after", 6)):
            assert out / row[end]["file"] == run.samples(step) / f"{place:03d}.mp4"
            record = json.loads(run.evaluation(step).read_text().splitlines()[place])
            assert row[end]["scores"] == record["parts"]
        assert row["before"]["scores"]["Warmth"] < row["after"]["scores"]["Warmth"]


def test_the_noise_of_a_pair_is_the_same(shown, tmp_path):
    """What is evaluated anew is what the run itself has evaluated: so is the pair of a prompt that it trained on."""
    out, result = shown
    run = RunFolder(out / "runs" / "toy-arm-seed3")
    arguments = ["--adapter", str(run.adapter), "--recipe", str(run.recipe), "--videos", "2", "--seeds", "1"]
    assert main(["evaluate", *arguments, "--shown", "2", "--out", str(tmp_path), "--trust-code"]) == 0
    for place, step in ((0, 0), (1, 6)):
        for name in ("000.mp4", "001.mp4"):
            again, own = (
                read_video(folder / name) for folder in (RunFolder(tmp_path).samples(place), run.samples(step))
            )
            assert (again - own).abs().max() < 0.01
    before, after = (read_video(out / result["rows"][0][end]["file"]) for end in ("before", "after"))
    assert (before - after).abs().max() > 0.01


def test_the_sheet_shows_these_files(shown):
    out, result = shown
    sheet = np.array(Image.open(out / "toy-sheet.png"))
    strips = [
        [np.array(frame_strip(read_video(out / row[end]["file"]), 4)) for end in ("before", "after")]
        for row in result["rows"]
    ]
    tops, top = [], 0
    for before, after in strips:
        top = next(
            y for y in range(top, len(sheet)) if np.array_equal(sheet[y : y + len(before), 16 : 16 + 524], before)
        )
        right = sheet[top : top + len(after), 16 + 524 + 28 : 16 + 2 * 524 + 28]
        assert np.array_equal(right, after)
        tops.append(top)
    assert tops == sorted(set(tops))


def test_words_and_table_say_the_scores(shown):
    _, result = shown
    study = sheet_study("toy-sheet", "A toy", lambda options: [], Shown(1))
    rows = study.table(result).splitlines()
    assert rows[0] == "| base | reward | prompt | trained on | before | after |"
    assert rows[2].startswith(f"| Toy | warmth | {result['rows'][0]['prompt']} | yes | Warmth ")
    (said,) = WORDS["figure3"](result)
    assert said.startswith("- Toy, warmth: over all held-out prompts the reward goes from ")


def test_samples_that_are_gone_are_named(shown, tmp_path):
    from vader.studies.before_after import _videos

    with pytest.raises(UserError, match=r"the samples of step 4 .* cannot be shown"):
        _videos(RunFolder(tmp_path), 4, tmp_path, None)


# ---------------------------------------------------------------- the paper's figures


@pytest.mark.parametrize("scale", ["tiny", "full"])
def test_figures_are_of_the_paper_s_bases_and_rewards(scale):
    def shown(name: str) -> list[tuple[str, str, list[str]]]:
        arms = STUDIES[name].arms(Options(scale))
        return [
            (arm.labels["base"], arm.recipe.model.family, [part.name for part in arm.recipe.rewards]) for arm in arms
        ]

    mix = ["aesthetic", "hps"] if scale == "tiny" else ["hps_aesthetic"]
    assert shown("figure3") == [
        ("VideoCrafter", "videocrafter", mix),
        ("VideoCrafter", "videocrafter", ["pickscore"]),
    ]
    assert shown("figure5") == [("VideoCrafter", "videocrafter", ["object_removal"])]
    assert shown("figure6") == [
        ("Open-Sora", "opensora", ["pickscore"]),
        ("Open-Sora", "opensora", ["hps"]),
        ("ModelScope", "modelscope", ["hps"]),
        ("ModelScope", "modelscope", ["aesthetic"]),
    ]
    assert shown("figure8") == [("ModelScope", "modelscope", ["action"])]


def test_every_run_keeps_as_many_videos_as_are_shown():
    for scale in ("tiny", "full"):
        for study in sheets.SHEETS:
            assert all(arm.recipe.evaluation.shown >= 3 for arm in study.arms(Options(scale)))


def test_figure6_shares_figure7_s_runs():
    text, aesthetic = sheets.figure6(Options())[2:]
    assert same_run(text.recipe, task_arm("text", "VADER", "tiny").recipe)
    assert same_run(aesthetic.recipe, task_arm("aesthetic", "VADER", "tiny").recipe)


def test_another_base_has_its_own_videos_and_pace():
    recipe = sheets.figure6(Options())[0].recipe
    assert (recipe.video.frames, recipe.sampling.solver, recipe.sampling.guidance) == (17, "auto", 1.0)
    assert recipe.optimizer.lr == pytest.approx(5e-4)
