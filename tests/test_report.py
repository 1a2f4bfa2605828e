"""The report shows a run's own numbers and videos, asks nothing of the network, and survives unfinished runs."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from run_factories import evaluation_line, train_line, write_metrics
from vader.cli import main
from vader.errors import UserError
from vader.evaluation.charts import Series, line_chart, reward_series, smoothed, ticks
from vader.evaluation.formats import MINUS, NONE, decimals, duration, fixed, signed
from vader.evaluation.plots import COLOURS, reward_curve
from vader.evaluation.report import OTHER, phase_seconds, write_report
from vader.files.video import write_mp4
from vader.recipe import dump_recipe, load_recipe
from vader.runs.folder import ADAPTER
from vader.runs.reader import read_run
from vader.tinyworld.scenes import render, sample_scenes

VOID = {"meta", "link", "input", "br", "wbr", "path"}
PROMPTS = ["a red circle", 'the "last" <script>alert(1)</script> & one']


JUDGED = (
    evaluation_line(0, 4.7, figures={"judge/vividness": 0.41, "judge/color": 0.9}),
    evaluation_line(4, 6.871, figures={"judge/vividness": 0.78, "judge/color": 0.86}),
)


def write_samples(run: Path, step: int, vividness: float) -> list[Path]:
    folder = run / "samples" / f"step-{step:06d}"
    scenes = sample_scenes(2, torch.Generator().manual_seed(0)).with_vividness(vividness)
    paths = [write_mp4(folder / f"{i:03d}.mp4", video, 8) for i, video in enumerate(render(scenes))]
    listed = [{"file": p.name, "prompt": t, "reward": 4.2 + step} for p, t in zip(paths, PROMPTS, strict=True)]
    (folder / "prompts.json").write_text(json.dumps(listed))
    return paths


@pytest.fixture
def bare_run(tmp_path) -> Path:
    """A run of which there is only the recipe."""
    run = tmp_path / "my-run"
    run.mkdir()
    dump_recipe(load_recipe("tiny", ["train.steps=40"]), run / "recipe.yaml", {"torch": "2.6.0", "vader": "0.1.0"})
    return run


@pytest.fixture
def run(bare_run) -> Path:
    """A finished run of four steps."""
    write_metrics(bare_run, JUDGED[0], *(train_line(step) for step in range(1, 5)), JUDGED[1])
    write_samples(bare_run, 0, 0.2)
    write_samples(bare_run, 2, 0.5)
    write_samples(bare_run, 4, 0.9)
    (bare_run / ADAPTER).parent.mkdir()
    (bare_run / ADAPTER).touch()
    return bare_run


def page_of(run: Path) -> str:
    path = write_report(run)
    assert path == run / "report.html"
    page = path.read_text(encoding="utf-8")
    Balanced().check(page)
    return page


class Balanced(HTMLParser):
    """Every element that opens closes, in order."""

    def check(self, page: str) -> None:
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def text_of(page: str) -> str:
    """What a reader sees, tags taken away."""
    body = re.sub(r"(?s)<(style|script)>.*?</\1>", "", page)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


# ---------------------------------------------------------------- the page


def test_headline_numbers(run):
    text = text_of(page_of(run))
    assert re.search(r"mean over 64 videos of unseen prompts 4\.70 → 6\.87 \+2\.17", text)
    assert "spread over videos 1.10" in text
    assert "standard error 0.14" in text
    assert re.search(r"judge/vividness 0\.41 0\.78 \+0\.37", text)
    assert re.search(rf"judge/color 0\.90 0\.86 {MINUS}0\.04", text)
    assert "steps 4 of 40 reward queries 16 training 7.20 s time per step 1.80 s peak memory 1.1 GB" in text
    assert "skipped steps" not in text
    assert "has not finished" not in text


def test_first_and_last_videos_stand_side_by_side(run):
    page = page_of(run)
    embedded = [base64.b64decode(data) for data in re.findall(r'src="data:video/mp4;base64,([^"]+)"', page)]
    samples = run / "samples"
    steps = ("step-000000", "step-000004")
    assert embedded == [(samples / step / name).read_bytes() for name in ("000.mp4", "001.mp4") for step in steps]
    assert page.count("<video autoplay loop muted playsinline controls") == 4
    assert 'class="pairs pixels"' in page
    assert "before 4.20 after 8.20 +4.00" in text_of(page)


def test_page_is_self_contained(run):
    page = page_of(run)
    assert not re.search(r"""(?:src|href|action|poster)\s*=\s*["']?(?!data:)[^"'\s>]""", page)
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


def test_prompts_are_escaped(run):
    page = page_of(run)
    assert "<script>alert" not in page
    assert (
        page.count("the &quot;last&quot; &lt;script&gt;alert(1)&lt;/script&gt; &amp; one") == 3
    )  # caption, two labels
    assert page.count("<script>") == 1


def test_settings_and_versions(run):
    text = text_of(page_of(run))
    assert "Made with torch 2.6.0, vader 0.1.0." in text
    assert "checkpoint: tiny" in text
    assert "prompts: train: tiny-train test: tiny-test" in text


def test_wide_large_videos_are_stacked_and_smooth(bare_run):
    recipe = load_recipe("tiny", ["video.width=512", "video.height=320"])
    dump_recipe(recipe, bare_run / "recipe.yaml", {})
    write_samples(bare_run, 0, 0.2)
    page = page_of(bare_run)
    assert 'class="card pair wide"' in page
    assert 'class="pairs pixels"' not in page


def test_parts_of_a_mix_are_compared(bare_run):
    parts = [{"aesthetic": 4.7, "hps": 0.25}, {"aesthetic": 6.2, "hps": 0.262}]
    write_metrics(bare_run, evaluation_line(0, 4.95, parts=parts[0]), evaluation_line(4, 6.462, parts=parts[1]))
    text = text_of(page_of(bare_run))
    assert "aesthetic 4.70 6.20 +1.50" in text
    assert "hps 0.250 0.262 +0.012" in text
    assert '<span class="change rise">+0.012</span>' in page_of(bare_run)


def test_figures_have_one_table_and_charts_of_their_own(bare_run):
    figures = [{"pickscore": 21.0, "hps": 0.27}, {"pickscore": 19.5, "hps": 0.25, "own/set": 3.0}]
    lines = [evaluation_line(step, 4.95, figures=found) for step, found in zip((0, 4), figures, strict=True)]
    write_metrics(bare_run, *lines)
    page = page_of(bare_run)
    text = text_of(page)
    assert f"pickscore 21.0 19.5 {MINUS}1.5" in text
    assert f"hps 0.270 0.250 {MINUS}0.020" in text
    assert f"own/set {NONE} 3.00 {NONE}" in text  # measured since
    assert f"<td>{MINUS}1.5</td>" in page  # no colour judges it: of a figure such as damage less is better
    assert page.count("Figures, on held-out prompts") == 1
    assert "pickscore over steps" in page
    assert "<h4>own/<wbr>set</h4>" in page  # a long name breaks there and stays in its card


def test_charts_of_parts_go_by_the_names_in_the_metrics(bare_run):
    parts = {"Warmth": 1.0, "Warmth_2": 2.0}
    write_metrics(bare_run, evaluation_line(0, 3.0, parts=parts), train_line(1, parts=parts))
    assert "Warmth_2 over steps" in page_of(bare_run)


# ---------------------------------------------------------------- unfinished and damaged runs


def test_recipe_only(bare_run):
    text = text_of(page_of(bare_run))
    assert "This run has not finished: 0 of 40 steps are done." in text
    assert "No held-out evaluation has been made yet." in text
    assert "No sample videos have been written yet." in text
    assert "No step has been logged yet." in text


def test_only_the_base_model_so_far(bare_run):
    write_metrics(bare_run, JUDGED[0])
    write_samples(bare_run, 0, 0.2)
    page = page_of(bare_run)
    assert "there is no “after”" in text_of(page)
    assert page.count("<video") == 2
    assert page.count("no “after” yet") == 2


def test_training_without_evaluation(bare_run):
    write_metrics(bare_run, train_line(1), train_line(2))
    text = text_of(page_of(bare_run))
    assert "2 of 40 steps are done" in text
    assert "sampling 1.20 s 67%" in text


def test_evaluations_over_different_numbers_of_videos_are_flagged(bare_run):
    write_metrics(bare_run, evaluation_line(0, 4.7), evaluation_line(10, 5.0, videos=16))
    assert "first evaluation is over 64 videos and the latest over 16" in text_of(page_of(bare_run))


def test_a_line_that_is_still_being_written_is_left_out(bare_run):
    write_metrics(bare_run, train_line(1), train_line(2))
    with (bare_run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(train_line(3))[:50])
    assert [step.step for step in read_run(bare_run).train] == [1, 2]


def test_skipped_steps(bare_run):
    lost = train_line(2, reward=math.nan, parts={"aesthetic": math.nan}, grad_norm=None, skipped=1)
    write_metrics(bare_run, train_line(1), lost, train_line(3, skipped=1))
    run = read_run(bare_run)
    assert math.isnan(run.train[1].grad_norm)
    assert "skipped steps 1" in text_of(page_of(bare_run))
    assert "nan" not in page_of(bare_run).lower().replace("nano", "")


def test_a_folder_of_samples_counts_once_its_prompts_are_listed(run):
    (run / "samples" / "step-000004" / "prompts.json").unlink()
    (run / "samples" / "step-000002" / "001.mp4").unlink()
    samples = read_run(run).samples
    assert {step: len(found) for step, found in samples.items()} == {0: 2, 2: 1}
    assert page_of(run).count("<video") == 3


def test_no_run_folder(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"is no run folder: it has no recipe\.yaml"):
            write_report(folder)
    assert list(tmp_path.iterdir()) == []


def test_lines_of_an_earlier_form_are_told(bare_run):
    write_metrics(bare_run, evaluation_line(0, 4.7, judge={"color": 1.0}))
    with pytest.raises(UserError, match=r"line 1 of .* has 'judge' where figures are expected"):
        read_run(bare_run)


DAMAGED = ["not json", "[]", '{"kind": "other", "step": 1}', '{"kind": "train", "step": 1}', "\0\0\0\0\0\0"]


@pytest.mark.parametrize("line", [*DAMAGED, json.dumps(train_line(2, reward="high"))])
def test_damaged_metrics_are_left_out_and_named(bare_run, capsys, line):
    (bare_run / "metrics.jsonl").write_text("\n".join([json.dumps(train_line(1)), line, json.dumps(train_line(3)), ""]))
    assert [step.step for step in read_run(bare_run).train] == [1, 3]
    assert "Left out: metrics.jsonl (damaged in line 2)." in text_of(page_of(bare_run))
    assert main(["report", str(bare_run)]) == 0
    assert capsys.readouterr().err == f"vader: left out of {bare_run}: metrics.jsonl (damaged in line 2)\n"


# ---------------------------------------------------------------- its own folder alone


SECRET = b"what lies elsewhere is nobody's business"


def listing(folder: Path, *files: str) -> None:
    items = [{"file": file, "prompt": "a prompt", "reward": 1.0} for file in files]
    (folder / "prompts.json").write_text(json.dumps(items))


def no_secret_in(run: Path) -> str:
    page = page_of(run)
    assert base64.b64encode(SECRET).decode()[:20] not in page
    assert SECRET.decode() not in page
    return text_of(page)


def test_videos_from_elsewhere_are_left_out_and_named(run, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    folder = run / "samples" / "step-000002"
    (folder / "link.mp4").symlink_to(secret)
    listing(folder, "000.mp4", str(secret), "../../../secret", "link.mp4")
    text = no_secret_in(run)
    for name in ("secret", "link.mp4"):
        assert f"samples/step-000002: {name} (it leads out of the run)" in text
    assert [sample.file.name for sample in read_run(run).samples[2]] == ["000.mp4"]


def test_a_folder_of_samples_from_elsewhere_is_left_out_and_named(run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (run / "samples" / "step-000004").rename(elsewhere)
    (elsewhere / "000.mp4").write_bytes(SECRET)
    (run / "samples" / "step-000004").symlink_to(elsewhere)
    assert "samples/step-000004 (it leads out of the run)" in no_secret_in(run)


@pytest.mark.parametrize("name", ["recipe.yaml", "metrics.jsonl"])
def test_a_run_has_its_own_recipe_and_metrics(run, tmp_path, name):
    (run / name).rename(tmp_path / name)
    (run / name).symlink_to(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} leads out of the folder of the run: put the file itself there"):
        write_report(run)


@pytest.mark.parametrize("content", ["", "{}", "[1]", "[" * 100_000, '[{"file": 1, "prompt": "", "reward": 1}]'])
def test_a_damaged_list_of_samples_is_left_out_and_named(run, content):
    (run / "samples" / "step-000002" / "prompts.json").write_text(content)
    found = read_run(run)
    assert found.samples[2] == []
    assert len(found.samples[0]) == 2
    assert found.left_out == ["samples/step-000002 (its prompts.json is damaged)"]


def test_copies_and_half_folders_are_left_out_and_named(run, capsys):
    shutil.copytree(run / "samples" / "step-000002", run / "samples" / "step-000002.bak")
    shutil.copytree(run / "samples" / "step-000002", run / "samples" / "step-000002 (copy)")
    (run / "samples" / "step-000006").mkdir()
    (run / "checkpoints" / "step-000006").mkdir(parents=True)
    (run / "checkpoints" / "step-000004.bak").mkdir()
    said = [
        "samples/step-000002 (copy) (it is not named after a step)",
        "samples/step-000002.bak (it is not named after a step)",
        "samples/step-000006 (it has no prompts.json)",
        "checkpoints/step-000006 (it is empty)",
        "checkpoints/step-000004.bak (it is not named after a step)",
    ]
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().err == f"vader: left out of {run}: {'; '.join(said)}\n"
    other = shutil.copytree(run, run.with_name("other"))
    assert main(["compare", str(run), str(other), "--out", str(run.with_name("comparison"))]) == 0
    assert capsys.readouterr().err == "".join(f"vader: left out of {one}: {'; '.join(said)}\n" for one in (run, other))


# ---------------------------------------------------------------- what the sections are made of


def test_phases_add_up_to_the_step(run):
    phases = phase_seconds(read_run(run).train)
    assert list(phases) == ["sampling", "gradient steps", "decode and reward", "optimiser", OTHER]
    assert sum(phases.values()) == pytest.approx(1.8)
    assert phases[OTHER] == pytest.approx(0.09)


def test_reward_series(run):
    train, average, held_out = reward_series(read_run(run), "queries")
    assert train.x == average.x == [4, 8, 12, 16]
    assert train.y == pytest.approx([5.2, 5.7, 6.2, 6.7])
    assert (held_out.x, held_out.y, held_out.error) == ([0, 16], [4.7, 6.871], [0.14, 0.14])


def test_smoothed_keeps_constants_and_lines_and_skips_gaps():
    assert smoothed([2.0] * 30) == pytest.approx([2.0] * 30)
    line = [0.5 * i for i in range(40)]
    assert smoothed(line)[2:-2] == pytest.approx(line[2:-2])
    assert smoothed([1.0, math.nan, 3.0], share=0.7) == pytest.approx([1.0, 2.0, 3.0])
    assert smoothed([]) == []


def test_smoothed_is_the_mean_of_each_window():
    values = [math.sin(i) if i % 7 else math.nan for i in range(200)]
    windows = [[v for v in values[max(0, i - 10) : i + 11] if math.isfinite(v)] for i in range(200)]
    assert smoothed(values) == pytest.approx([sum(window) / len(window) for window in windows])


def test_a_long_line_is_drawn_by_the_points_that_can_be_seen():
    values = [math.sin(i) for i in range(100_000)]
    values[31_415], values[62_830] = 9.0, -9.0
    chart = line_chart([Series("a", "b", range(100_000), values)], "title", "x", y_range=(-10.0, 10.0))
    assert chart.count("L") < 4 * 2001
    assert "314.2 50.0" in chart  # of 1000 both ways, from the top down
    assert "628.3 950.0" in chart


def test_compute_time_is_that_of_the_steps_so_far(run):
    found = read_run(run)
    for step in range(-1, 9):
        assert found.compute_seconds(step) == pytest.approx(sum(one.cost for one in found.train if one.step <= step))


@pytest.mark.parametrize(
    ("low", "high"), [(0, 40), (4.56, 7.66), (-0.31, 0.02), (0.2513, 0.2641), (3, 3), (0, 0), (1e3, 9e5)]
)
def test_ticks_are_round_and_cover_the_range(low, high):
    found = ticks(low, high)
    assert found[0] <= low + 1e-9
    assert found[-1] >= high - 1e-9
    assert 3 <= len(found) <= 8
    steps = np.diff(found)
    assert steps == pytest.approx(steps[0])
    assert f"{steps[0]:e}"[:4] in {"1.00", "2.00", "2.50", "5.00"}


def test_ticks_of_counts_are_whole():
    for high in range(1, 60):
        assert all(float(tick).is_integer() for tick in ticks(0, high, about=5, whole=True))


def test_chart_places_points_and_breaks_lines_at_gaps():
    chart = line_chart([Series("a", "train", [0, 1, 2, 3], [0.0, 10.0, math.nan, 5.0])], "title", "x")
    assert 'd="M0.0 1000.0L333.3 0.0"' in chart
    assert 'd="M1000.0 500.0"' in chart
    banded = line_chart([Series("b", "held-out", [0, 1], [2.0, 4.0], [1.0, 1.0], points=True)], "title", "x")
    assert 'class="band" d="M0.0 750.0L1000.0 250.0L1000.0 750.0L0.0 1250.0Z"' not in banded
    assert 'class="band" d="M0.0 500.0L1000.0 0.0L1000.0 500.0L0.0 1000.0Z"' in banded


def test_a_chart_makes_room_for_its_longest_label(run):
    chart = line_chart([Series("a", "train", [0, 1], [-0.1475, -0.1474])], "title", "x", y_range=(-0.1475, -0.1474))
    labels = re.findall(r'class="y-tick"[^>]*>([^<]+)<', chart)
    assert f'style="--longest:{max(map(len, labels))}"' in chart
    assert max(map(len, labels)) == len(f"{MINUS}0.14748")
    left = re.findall(r"\.chart[.a-z]* \{[^}]*padding(?:-left)?: ([^;}]*)", page_of(run))
    assert left == ["8px 4px 0 calc(var(--longest) * 1ch + 12px)"]  # and no rule for some charts has another


@pytest.mark.parametrize(("values", "deep"), [([0.02, 0.08], True), ([0.08, 0.02], True), ([0.3, 0.5], False)])
def test_a_value_below_a_low_point_moves_the_axis_away(values, deep):
    chart = line_chart([Series("a", "held-out", [0, 4], values, points=True)], "title", "", "small", (0.0, 1.0))
    assert ('class="chart small deep"' in chart) == deep
    first, last = re.findall(r'class="value held-out ([^"]+)" style="[^"]+">([\d.]+)<', chart)
    sides = ("left below", "right above") if values[0] < values[1] else ("left above", "right below")
    assert (first, last) == tuple(zip(sides, map("{:.2f}".format, values), strict=True))


def test_points_and_the_table_have_true_minus_signs(bare_run):
    write_metrics(bare_run, evaluation_line(0, -0.1475), evaluation_line(1, -0.25))
    page = page_of(bare_run)
    assert f"<title>1: {MINUS}0.25</title>" in page
    assert f"<td>{MINUS}0.1475</td>" in page
    assert not re.search(r">-\d", page)


def test_one_step_is_one_step(run):
    (run / "samples" / "step-000004").rename(run / "samples" / "step-000001")
    shutil.rmtree(run / "samples" / "step-000002")
    assert "the same noise, before training and after 1 step;" in text_of(page_of(run))


def test_formats():
    assert [fixed(-0.00004, 4), signed(-0.00004, 4), signed(0.00004, 4), signed(0.00006, 4)] == [
        "0.0000",
        "0.0000",
        "0.0000",
        "+0.0001",
    ]
    assert [decimals([v]) for v in (4.7, 12.3, 456.0, 0.28, 0.0031, math.nan)] == [2, 1, 1, 3, 4, 2]
    assert (fixed(-1.25, 1), fixed(math.nan, 2), signed(0.5, 2), signed(-0.5, 2)) == (
        f"{MINUS}1.2",
        NONE,
        "+0.50",
        f"{MINUS}0.50",
    )
    times = {0.0123: "12 ms", 1.8: "1.80 s", 30.1: "30.1 s", 59.97: "1 min 0 s", 125: "2 min 5 s", 7500: "2 h 5 min"}
    assert {seconds: duration(seconds) for seconds in times} == times


def test_reward_curve_is_drawn(run, tmp_path):
    picture = np.array(Image.open(reward_curve(run, tmp_path / "plots" / "curve.png")).convert("RGB"))
    assert picture.shape == (600, 1050, 3)
    held_out = [int(COLOURS["held-out"][i : i + 2], 16) for i in (1, 3, 5)]
    assert (np.abs(picture.astype(int) - held_out).max(axis=-1) < 8).sum() > 500


def test_reward_curve_needs_metrics(bare_run, tmp_path):
    with pytest.raises(UserError, match="has no metrics yet"):
        reward_curve(bare_run, tmp_path / "curve.png")
