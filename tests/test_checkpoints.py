"""Checkpoints appear whole or not at all, the newest few stay, and metrics follow them line by line."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

from vader.errors import RunError, UserError
from vader.runs.checkpoints import Checkpoints, Progress, check_space
from vader.runs.log import MetricsLog

# ---- progress ----


def test_progress_counts_steps_queries_and_what_was_skipped():
    progress = Progress()
    for skipped in (False, True, True, False, True):
        progress.advance(4, skipped)
    assert progress == Progress(step=5, queries=20, skipped=3, skipped_in_row=1)


# ---- checkpoints ----


def test_what_is_saved_comes_back_exactly(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    weights = torch.randn(100)
    state = {"adapter": {"a": weights}, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "groups": [{"lr": 1}]}}
    checkpoints.save(Progress(7, 28, 2, 1), state)
    progress, loaded = checkpoints.load_latest()
    assert progress == Progress(7, 28, 2, 1)
    assert torch.equal(loaded["adapter"]["a"], weights)
    assert loaded["optimizer"] == state["optimizer"]


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path):
    assert Checkpoints(tmp_path / "none", keep=2).load_latest() is None


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_stay(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, keep)
    for step in (0, 25, 100, 1000, 1_000_000):
        checkpoints.save(Progress(step), {})
    names = ["step-000000", "step-000025", "step-000100", "step-001000", "step-1000000"]
    assert [path.name for path in checkpoints.steps()] == names[-keep:]
    assert checkpoints.load_latest()[0].step == 1_000_000


def test_an_unfinished_one_does_not_count_and_is_written_anew(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(Progress(1), {})
    (tmp_path / ".step-000002.part").mkdir()
    (tmp_path / ".step-000002.part" / "state.pt").write_bytes(b"half")
    assert checkpoints.load_latest()[0].step == 1
    checkpoints.save(Progress(2), {})
    assert checkpoints.load_latest()[0].step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000002"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_full_disk_ends_the_run_and_leaves_the_older_ones(tmp_path, monkeypatch, error):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(Progress(1), {})

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RunError, match=r"no checkpoint could be written to .*; older ones are kept"):
        checkpoints.save(Progress(2), {})
    assert checkpoints.load_latest()[0].step == 1


@pytest.mark.parametrize("damage", [lambda content: content[:500], lambda content: bytes(500), lambda content: b""])
def test_a_damaged_one_is_named(tmp_path, damage):
    """As a power failure leaves files: cut, full of zeros, empty."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(Progress(1), {})
    path = checkpoints.save(Progress(2), {"adapter": {"a": torch.randn(1000)}}) / "state.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"step-000002/state.pt is damaged: remove .*step-000002 to go on from the one"):
        checkpoints.load_latest()


# ---- space ----


def disk_with(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))


def test_space_is_asked_for_where_the_folder_will_be(tmp_path, monkeypatch):
    disk_with(monkeypatch, free=2**20)
    check_space(tmp_path / "runs" / "toy", 2**20)
    with pytest.raises(UserError, match=r"not enough disk .* 3 MiB are needed and 1 MiB are free: make room"):
        check_space(tmp_path / "runs" / "toy", 3 * 2**20)


# ---- metrics ----


def log_of(tmp_path, text: str) -> MetricsLog:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.path.write_text(text)
    return log


def test_numbers_that_are_not_finite_become_null(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1, "reward": math.nan, "parts": {"a": math.inf, "b": 0.5}, "name": "x"})
    assert json.loads(log.path.read_text()) == {"step": 1, "reward": None, "parts": {"a": None, "b": 0.5}, "name": "x"}


LINES = '{"step": 0}\n{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize(
    ("text", "step", "kept"),
    [
        (LINES, 2, LINES),
        (LINES, 1, '{"step": 0}\n{"step": 1}\n'),
        (LINES, -1, ""),
        (LINES + '{"step": 3, "rew', 2, LINES),
        (LINES + '{"step": 3}', 3, LINES),  # whole by luck, but its end was never written
        ("", 2, ""),
    ],
)
def test_lines_beyond_the_checkpoint_and_half_lines_go(tmp_path, text, step, kept):
    log = log_of(tmp_path, text)
    log.keep_until(step)
    assert log.path.read_text() == kept
    log.append({"step": 9})
    assert log.path.read_text() == kept + '{"step": 9}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_there_may_be_no_metrics_yet(tmp_path):
    MetricsLog(tmp_path / "metrics.jsonl").keep_until(3)
    assert not list(tmp_path.iterdir())
