"""Checkpoints appear whole or not at all, the newest few stay, and metrics follow them line by line."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vader.errors import RunError, UserError
from vader.runs.checkpoints import Checkpoints, Progress, check_space
from vader.runs.folder import step_of
from vader.runs.log import MetricsLog
from vader.runs.manifest import fault_of

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


def test_further_files_lie_beside_the_state(tmp_path):
    checkpoint = Checkpoints(tmp_path, keep=2).save(Progress(1), {}, lambda folder: (folder / "a.txt").write_text("a"))
    assert sorted(path.name for path in checkpoint.iterdir()) == ["a.txt", "manifest.json", "state.pt"]
    assert fault_of(checkpoint) is None
    (checkpoint / "a.txt").write_text("b")
    assert fault_of(checkpoint) == "its a.txt is damaged"


def test_what_was_saved_between_goes_with_the_next(tmp_path):
    """A run that was asked to stop leaves the folders of one that was not."""
    checkpoints = Checkpoints(tmp_path, keep=2, every=4)
    left = []
    for step in (0, 3, 4, 7, 8, 11):
        checkpoints.save(Progress(step), {})
        left.append([step_of(path) for path in checkpoints.steps()])
    assert left == [[0], [0, 3], [0, 4], [4, 7], [4, 8], [8, 11]]


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


# ---- what cannot be used ----


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def change(name: str, changed: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(changed((folder / name).read_bytes())) and None


def flip(content: bytes) -> bytes:
    """Eight bytes in the middle of the weights, in a file that can still be read."""
    place = content.index(torch.full((1000,), 0.125).numpy().tobytes())
    return content[:place] + bytes(b ^ 0xFF for b in content[place : place + 8]) + content[place + 8 :]


FAULTS = {
    "cut": (change("state.pt", lambda content: content[:500]), "its state.pt is damaged"),
    "zeros": (change("state.pt", lambda content: bytes(len(content))), "its state.pt is damaged"),
    "nothing": (change("state.pt", lambda content: b""), "its state.pt is damaged"),
    "eight flipped bytes": (change("state.pt", flip), "its state.pt is damaged"),
    "half": (lambda folder: (folder / "state.pt").unlink(), "it has no state.pt"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "it has no manifest.json"),
    "half a manifest": (change("manifest.json", lambda content: content[:30]), "its manifest.json is damaged"),
    "another manifest": (change("manifest.json", lambda content: b"[]"), "its manifest.json is damaged"),
    "another version": (
        change("manifest.json", lambda content: content.replace(b'"version": 1', b'"version": 2')),
        "it is of version 2, and this vader reads version 1",
    ),
    "empty": (empty, "it is empty"),
}


@pytest.mark.parametrize(("damage", "fault"), FAULTS.values(), ids=FAULTS)
def test_the_one_before_stands_in_for_what_cannot_be_used(tmp_path, damage, fault):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(Progress(1), {})
    damage(checkpoints.save(Progress(2), {"adapter": {"a": torch.full((1000,), 0.125)}}))
    assert checkpoints.load_latest()[0].step == 1
    assert checkpoints.left_out == [f"{tmp_path.name}/step-000002 ({fault})"]
    assert [path.name for path in checkpoints.steps()] == ["step-000001"]
    checkpoints.save(Progress(2), {})
    assert checkpoints.load_latest()[0].step == 2


@pytest.mark.parametrize("name", ["step-000002.bak", "step-000002 (copy)", "step-2", "step-", "step-000002~"])
def test_copies_that_people_put_beside_are_left_alone(tmp_path, name):
    checkpoints = Checkpoints(tmp_path, keep=1)
    shutil.copytree(checkpoints.save(Progress(1), {}), tmp_path / name)
    checkpoints.save(Progress(3), {})
    assert [path.name for path in checkpoints.steps()] == ["step-000003"]
    assert checkpoints.left_out == [f"{tmp_path.name}/{name} (it is not named after a step)"]
    assert (tmp_path / name / "state.pt").is_file()


def test_a_damaged_one_ahead_never_displaces_a_whole_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    (tmp_path / "step-000009").mkdir()
    (tmp_path / "step-000009" / "state.pt").touch()
    for step in (1, 2):
        checkpoints.save(Progress(step), {})
        assert checkpoints.load_latest()[0].step == step


def test_a_run_never_starts_anew_in_silence(tmp_path):
    """With no checkpoint that can be used, only empty ones let it begin at the base model."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    whole = checkpoints.save(Progress(1), {})
    (whole / "manifest.json").unlink()
    with pytest.raises(
        UserError, match=r"no checkpoint in .* can be used \(step-000001: it has no manifest.json\): res"
    ):
        checkpoints.load_latest()
    (whole / "state.pt").unlink()
    assert checkpoints.load_latest() is None


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
        (
            '{"step": 0}\n{"st\n\0\0\0\0\n[]\n{"reward": 1}\n' + "[" * 100_000 + '\n{"step": 2}\n',
            2,
            '{"step": 0}\n{"step": 2}\n',
        ),
    ],
)
def test_lines_beyond_the_checkpoint_and_half_lines_go(tmp_path, text, step, kept):
    log = log_of(tmp_path, text)
    log.keep(lambda line: line["step"] <= step)
    assert log.path.read_text() == kept
    log.append({"step": 9})
    assert log.path.read_text() == kept + '{"step": 9}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_there_may_be_no_metrics_yet(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.keep(lambda line: True)
    log.sync()
    assert not list(tmp_path.iterdir())
