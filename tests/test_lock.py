"""One writer at a time, whatever becomes of it; and what a refused or failed one leaves: nothing."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from toy_runs import TOY, Command, lines_of, wait_until
from vader.cli import main
from vader.errors import UserError
from vader.files.atomic import WriteError, atomic_write
from vader.files.lock import held, held_beside, new_folder
from vader.runs.folder import RunFolder

HOLDER = """
import sys, time
from pathlib import Path
from vader.files.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path/out`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_refused_and_told_who_the_first_is(tmp_path, holder):
    with pytest.raises(UserError) as refused, held(tmp_path / "out", patience=0):
        pytest.fail("held twice")
    assert re.fullmatch(
        rf"{tmp_path}/out is being written by another command \(-c {tmp_path}/out, process {holder.pid}, "
        r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\): wait until it ends, or choose another folder",
        str(refused.value),
    )


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder where no file can be made, whoever asks")
def test_a_place_where_nothing_can_be_written_is_not_held_by_another():
    with (
        pytest.raises(WriteError, match=r"^cannot write /proc/vader-tests: [A-Z]"),
        new_folder(Path("/proc/vader-tests")),
    ):
        pytest.fail("held")


def test_a_killed_holder_holds_nothing(tmp_path, holder):
    (tmp_path / "out" / ".a.json.0123abcd.part").touch()
    holder.kill()
    with held(tmp_path / "out"):
        assert names(tmp_path / "out") == [".lock", ".lock.holder"]
    assert not (tmp_path / "out").exists() or names(tmp_path / "out") == []


def test_a_folder_that_was_held_has_nothing_of_it(tmp_path):
    with held(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "result").touch()
    assert names(tmp_path / "a" / "b") == ["result"]
    with pytest.raises(UserError, match="refused"), held(tmp_path / "c" / "d"):
        raise UserError("refused")
    assert names(tmp_path) == ["a"]


def test_what_appears_whole_is_held_beside_its_place(tmp_path):
    (tmp_path / ".other.part").mkdir()
    (tmp_path / ".out.part").mkdir()
    with held_beside(tmp_path / "out"):
        assert names(tmp_path) == [".other.part", ".out.lock", ".out.lock.holder"]
        with pytest.raises(UserError, match=r"out is being written by another command"), new_folder(tmp_path / "out"):
            pytest.fail("held twice")
    assert names(tmp_path) == [".other.part"]


def test_a_new_folder_is_there_when_it_is_whole(tmp_path):
    with new_folder(tmp_path / "far" / "out") as temporary:
        (temporary / "result").touch()
        assert not (tmp_path / "far" / "out").exists()
    assert names(tmp_path / "far") == ["out"]
    with (
        pytest.raises(UserError, match="is not empty: name a new one"),
        new_folder(tmp_path / "far/out"),
    ):
        pytest.fail("written twice")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file' is a file: name a new folder"), new_folder(tmp_path / "file"):
        pytest.fail("written over a file")
    with pytest.raises(UserError, match="midway"), new_folder(tmp_path / "no" / "out"):
        raise UserError("midway")
    assert names(tmp_path) == ["far", "file"]


def test_files_have_the_mode_of_new_files(tmp_path):
    (tmp_path / "usual").touch()
    with atomic_write(tmp_path / "a") as temporary:
        temporary.touch(mode=0o600)
    with new_folder(tmp_path / "b") as folder:
        (folder / "c").touch(mode=0o600)
    modes = {(tmp_path / name).stat().st_mode for name in ("usual", "a", "b/c")}
    assert len(modes) == 1


# ---- commands ----


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert Command(["train", str(TOY), "--runs", str(runs)], runs / "logs").status() == 0
    return runs / "toy"


OUT = {
    "evaluate": ["evaluate", "{run}", "--trust-code", "--videos", "1", "--seeds", "1", "--out", "{out}"],
    "compare": ["compare", "{run}", "{other}", "--out", "{out}"],
    "reproduce": ["reproduce", "figure7", "--seeds", "1", "--out", "{out}"],
}


@pytest.mark.parametrize("arguments", OUT.values(), ids=OUT)
def test_two_commands_never_write_one_folder(tmp_path, run, capsys, arguments):
    shutil.copytree(run, tmp_path / "other")
    filled = [part.format(run=run, other=tmp_path / "other", out=tmp_path / "out") for part in arguments]
    with held(tmp_path / "out"):
        assert main(filled) == 2
    assert capsys.readouterr().err.startswith(f"vader: {tmp_path}/out is being written by another command (")
    assert names(tmp_path) == ["other"]


NEW = {
    "export": ["export", "{run}", "--adapter", "--out", "{out}"],
    "sample": ["sample", "red", "--recipe", str(TOY), "--adapter", "{run}/adapter", "--out", "{out}"],
}


@pytest.mark.parametrize("arguments", NEW.values(), ids=NEW)
def test_two_commands_never_make_one_folder(tmp_path, run, capsys, arguments):
    filled = [part.format(run=run, out=tmp_path / "out") for part in arguments]
    with held_beside(tmp_path / "out"):
        assert main(filled) == 2
    assert capsys.readouterr().err.startswith(f"vader: {tmp_path}/out is being written by another command (")
    assert names(tmp_path) == []
    assert main(filled) == 0
    capsys.readouterr()
    assert main(filled) == 2
    assert capsys.readouterr().err == f"vader: folder '{tmp_path}/out' is not empty: name a new one\n"
    assert names(tmp_path) == ["out"]


def test_two_trainings_at_once_and_what_may_go_on_beside(tmp_path, run):
    """The second is refused before it loads a model; evaluate and report read what there is."""
    arguments = ["train", str(TOY), "train.steps=2000", "train.checkpoint_every=1", "--runs", str(tmp_path)]
    first = Command(arguments, tmp_path / "logs" / "first")
    folder = RunFolder(tmp_path / "toy")
    wait_until(lambda: lines_of(folder.path) > 5)
    second = Command(arguments, tmp_path / "logs" / "second")
    assert second.status() == 2
    assert "toy is being written by another command" in second.errors
    assert f"process {first.process.pid}, since" in second.errors
    assert second.errors.count("\n") == 1
    assert main(["report", str(folder.path)]) == 0
    assert main(["evaluate", str(folder.path), "--trust-code", "--videos", "1", "--seeds", "1"]) == 0
    assert first.running
    first.send(signal.SIGKILL)
    first.status()
    assert main(["report", str(folder.path)]) == 0
    with folder.held():  # at once: the system has let go of it
        assert ".lock" in names(folder.path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "red", "--recipe", str(TOY), "--adapter", "nowhere", "--out", "far/out"],
        ["evaluate", "--recipe", str(TOY), "--adapter", "nowhere", "--out", "far/out"],
        ["evaluate", "--recipe", str(TOY), "--prompts", "tiny-tset", "--out", "far/out"],
        ["export", "{run}", "--merged", "--out", "far/out"],
        ["compare", "{run}", "nowhere", "--out", "far/out"],
        ["reproduce", "figure7", "--only", "nothing", "--out", "far/out"],
        ["train", str(TOY), "model.checkpoint=none", "adapter.targets=[nothing]", "--runs", "far/out"],
    ],
    ids=lambda arguments: " ".join(arguments[:1]),
)
def test_what_is_refused_leaves_nothing(tmp_path, run, capsys, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert main([part.format(run=run) for part in arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert names(tmp_path) == []


def test_samples_take_the_next_free_name(tmp_path, monkeypatch, capsys):
    """Unless one is asked for: nothing old is mixed with new, and nothing is lost."""
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        assert main(["sample", "red", "--recipe", str(TOY)]) == 0
    assert names(tmp_path) == ["samples", "samples-2", "samples-3"]
    for folder in tmp_path.iterdir():
        assert names(folder) == ["000-red.mp4", "contact-sheet.png", "prompts.json"]
    assert capsys.readouterr().out.splitlines()[-1] == "samples-3/prompts.json"
