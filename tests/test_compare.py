"""Runs compared: their own numbers on one page, and a clear line where there is nothing to compare."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

from run_factories import evaluation_line, train_line, write_metrics, write_run
from test_report import Balanced, text_of
from vader.cli import main
from vader.errors import UserError
from vader.evaluation.charts import held_out_series
from vader.evaluation.compare import by_rewards, compare_runs, comparison_page, curves_over, read_entries, table_of
from vader.evaluation.formats import MINUS, TIMES, counted, with_error
from vader.files.video import write_mp4
from vader.runs.reader import read_run


@pytest.fixture
def runs(tmp_path):
    slow = write_run(tmp_path / "slow", [4.0, 4.1, 4.25], "algorithm={name: ddpo}", "sampling.eta=1.0", seconds=9.0)
    return [write_run(tmp_path / "fast", [4.0, 5.0, 6.5]), slow]


def test_curves_over_each_axis(runs):
    fast, slow = read_entries(runs)
    over = {axis: curves_over([fast, slow], axis) for axis in ("step", "queries", "seconds")}
    assert [list(one.x) for one in over["step"]] == [[0, 2, 4], [0, 2, 4]]
    assert [list(one.x) for one in over["queries"]] == [[0, 8, 16], [0, 8, 16]]
    assert [list(one.x) for one in over["seconds"]] == [[0, 3, 6], [0, 18, 36]]
    assert [list(one.y) for one in over["step"]] == [[4.0, 5.0, 6.5], [4.0, 4.1, 4.25]]
    assert [one.style for one in over["step"]] == ["run-1", "run-2"]


def test_time_is_the_wall_where_a_run_noted_no_other(tmp_path):
    run = write_run(tmp_path / "old", [4.0, 5.0])
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if "evaluation" in line]
    write_metrics(run, train_line(1), train_line(2), *map(json.loads, lines))
    assert held_out_series(read_run(run), "seconds", "").x == [0, 3.6]


def test_table(runs):
    head, rows = table_of(read_entries(runs))
    assert head[:2] == ["run", "algorithm"]
    assert rows == [
        [
            "fast",
            "reward_gradient",
            "4.00 ± 0.14",
            "6.50 ± 0.14",
            "+2.50",
            "4 of 30",
            "16",
            "7.20 s",
            "6.00 s",
            "1.10 GB",
        ],
        ["slow", "ddpo", "4.00 ± 0.14", "4.25 ± 0.14", "+0.25", "4 of 30", "16", "7.20 s", "36.0 s", "1.10 GB"],
    ]


def test_figures_are_compared(runs):
    figures = [{"judge/color": 0.5, "hps": 0.27}, {"judge/color": 0.75, "hps": 0.25}]
    write_metrics(runs[0], *(evaluation_line(2 * i, 4.0 + i, figures=found) for i, found in enumerate(figures)))
    entries = read_entries(runs)
    head, rows = table_of(entries)
    assert head[-2:] == ["judge/color", "hps"]
    assert [row[-2:] for row in rows] == [["0.50 → 0.75", "0.270 → 0.250"], ["", ""]]
    assert "judge/color over steps" in comparison_page(entries)


def test_command_writes_a_page_and_two_plots(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compare", *map(str, runs), "--out", str(out)]) == 0
    page = (out / "compare.html").read_text()
    Balanced().check(page)
    text = text_of(page)
    assert (
        "fast slow algorithm reward_gradient ddpo before 4.00 ± 0.14 4.00 ± 0.14 after 6.50 ± 0.14 4.25 ± 0.14" in text
    )
    assert page.count('<td data-run="fast">') == page.count('<td data-run="slow">') == 9
    assert page.count('<path class="line"') == 6  # two runs over three axes
    assert "http" not in page.replace("http-equiv", "")
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "compare.svg").read_text()
    assert str(out / "compare.html") in capsys.readouterr().out


def printed_table(out: str) -> list[list[list[str]]]:
    """The cells of each block of a table in a console, with the heads."""
    lines = [line for line in out.splitlines() if line[:1] in tuple("┃│┏")]
    blocks = "\n".join(lines).split("┏")[1:]
    return [[[c.strip() for c in re.split("[┃│]", line)[1:-1]] for line in one.splitlines()[1:]] for one in blocks]


def test_a_terminal_has_room_for_a_figure_a_line(tmp_path, capsys, monkeypatch):
    """Eight runs on 80 columns: those that do not fit beside the others come below, and no number is broken."""
    runs = [write_run(tmp_path / f"run-{i}", [0.5, -0.0655 - i / 100]) for i in range(8)]
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    out = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    blocks = printed_table(out)
    assert max(len(line) for line in out.splitlines() if not line.startswith("/")) <= 80
    head, rows = table_of(read_entries(runs))
    assert [[line[0] for line in block] for block in blocks] == [head] * len(blocks)
    told = [list(column) for block in blocks for column in list(zip(*block, strict=True))[1:]]
    assert told == [[cell.replace(MINUS, "-") for cell in row] for row in rows]
    assert told[1][3:5] == ["-0.075 ± 0.140", "-0.576"]


def test_a_pipe_gets_the_same_table(runs, tmp_path, capsys):
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    (block,) = printed_table(capsys.readouterr().out)
    assert block[:2] == [["run", "fast", "slow"], ["algorithm", "reward_gradient", "ddpo"]]
    assert block[3] == ["after", "6.50 ± 0.14", "4.25 ± 0.14"]


def test_what_does_not_compare_is_said(runs, tmp_path):
    other = write_run(tmp_path / "other", [0.2, 0.3], "rewards.0.name=hps", "rewards.0.weight=0.5")
    page = comparison_page(read_entries([*runs, other]))
    text = text_of(page)
    assert "different rewards, whose heights do not compare: each has charts of its own" in text
    assert "Reward: aesthetic" in text
    assert f"Reward: 0.5 {TIMES} hps" in text
    assert "different prompts" not in text
    assert [len(group) for group in by_rewards(read_entries([runs[0], other, runs[1]]))] == [2, 1]
    charts = page.split('<div class="chart large')[1:]
    assert [chart.split("</svg>")[0].count('<path class="line"') for chart in charts] == [2, 2, 2, 1, 1, 1]


def shown(run, *prompts: str) -> None:
    """Leaves a video of each prompt, as a run does after its last step."""
    folder = run / "samples" / "step-000004"
    folder.mkdir(parents=True)
    for i in range(len(prompts)):
        write_mp4(folder / f"{i:03d}.mp4", torch.full((2, 3, 16, 16), 0.5), fps=8)
    listed = [{"file": f"{i:03d}.mp4", "prompt": prompt, "reward": 4.0 + i} for i, prompt in enumerate(prompts)]
    (folder / "prompts.json").write_text(json.dumps(listed))


def test_videos_of_the_same_prompts_are_side_by_side(runs):
    shown(runs[0], "a red ring", "a <blue> ring", "only here")
    shown(runs[1], "a <blue> ring", "a red ring")
    page = comparison_page(read_entries(runs))
    Balanced().check(page)
    assert page.count("data:video/mp4;base64,") == 4
    assert "a red ring fast 4.00 slow 5.00" in text_of(page)
    assert "a &lt;blue&gt; ring" in page
    assert "only here" not in page
    assert 'class="controls"' in page


def test_without_a_common_video_the_page_says_so(runs):
    assert "There is no prompt of which every run has left a video." in text_of(comparison_page(read_entries(runs)))
    shown(runs[0], "a red ring")
    shown(runs[1], "a blue ring")
    assert "There is no prompt of which" in text_of(comparison_page(read_entries(runs)))


def test_one_video_tells_no_error(runs):
    write_metrics(runs[0], *(evaluation_line(2 * i, 4.0 + i, videos=1, std=0.0, stderr=0.0) for i in range(2)))
    _, rows = table_of(read_entries(runs))
    assert rows[0][2:5] == ["4.00", "5.00", "+1.00"]
    assert with_error(4.0, math.nan, 1) == "4.0"
    assert [counted(count, "video") for count in (0, 1, 1200)] == ["0 videos", "1 video", "1,200 videos"]


def test_runs_of_one_name_are_told_apart_by_folder(tmp_path):
    folders = [write_run(tmp_path / place / "same", [4.0, 5.0]) for place in ("a", "b")]
    assert [entry.label for entry in read_entries(folders)] == list(map(str, folders))


def test_nothing_to_compare(runs, tmp_path):
    unevaluated = write_run(tmp_path / "new", [4.0])
    (unevaluated / "metrics.jsonl").unlink()
    for folders, message in {
        (runs[0],): "nothing to compare: give two or more",
        (runs[0], runs[0]): "two or more different run folders",
        (runs[0], tmp_path): "is no run folder",
        (runs[0], unevaluated): "has nothing to compare: no held-out evaluation",
        tuple(tmp_path / str(i) for i in range(9)): "9 runs are more than can be told apart",
    }.items():
        with pytest.raises(UserError, match=message):
            compare_runs(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()
