"""Files and folders appear whole or not at all, whatever interrupts the writing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from threading import Barrier, Thread

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from vader.errors import UserError
from vader.files.atomic import atomic_folder, atomic_write
from vader.files.video import write_mp4


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path, content: bytes, error: BaseException | None = None, **options) -> None:
    with atomic_write(path, **options) as temporary:
        temporary.write_bytes(content)
        if error:
            raise error


def fill(path, content: bytes, error: BaseException | None = None, **options) -> None:
    with atomic_folder(path, **options) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "a").write_bytes(content)
        if error:
            raise error


# ---- files ----


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_appears_when_it_is_whole(tmp_path, sync):
    path = tmp_path / "new" / "a.bin"
    with atomic_write(str(path), sync=sync) as temporary:
        temporary.write_bytes(b"first")
        assert not path.exists()
        assert temporary.parent == path.parent
    write(path, b"second", sync=sync)
    assert path.read_bytes() == b"second"
    assert names(path.parent) == ["a.bin"]


@pytest.mark.parametrize("error", [RuntimeError("midway"), KeyboardInterrupt("midway")])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = write_mp4(tmp_path / "video.mp4", torch.rand(2, 3, 32, 32), 8)
    before = path.read_bytes()
    with pytest.raises(type(error), match="midway"):
        write(path, b"half", error)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["video.mp4"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError(28, "No space left on device"), "No space left on device"), (SafetensorError("IoError"), "IoError")],
)
def test_a_full_disk_is_one_line(tmp_path, error, reason):
    with pytest.raises(UserError, match=rf"^cannot write .*a\.bin: {reason}$"), atomic_write(tmp_path / "a.bin"):
        raise error
    assert names(tmp_path) == []


def test_mistakes_of_the_user_pass_as_they_are(tmp_path):
    with pytest.raises(UserError, match=r"^of another kind$"), atomic_write(tmp_path / "a.bin"):
        raise UserError("of another kind")


def test_several_write_one_file_at_once(tmp_path):
    """All have begun before any has finished; each is whole."""
    path, barrier = tmp_path / "a.bin", Barrier(4)

    def begin(content: bytes) -> None:
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
            barrier.wait(timeout=20)

    threads = [Thread(target=begin, args=(bytes([i]) * 1000,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in [bytes([i]) * 1000 for i in range(4)]
    assert names(tmp_path) == ["a.bin"]


KILLED = """
import os, signal, sys
from vader.files.atomic import atomic_folder, atomic_write
with atomic_write(sys.argv[1]) as file, atomic_folder(sys.argv[2]) as folder:
    file.write_bytes(b"half")
    (folder / "half").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_leaves_is_no_result(tmp_path):
    write(tmp_path / "a.png", b"whole")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a.png"), str(tmp_path / "folder")]
    assert subprocess.run(command, env=os.environ).returncode == -signal.SIGKILL
    assert (tmp_path / "a.png").read_bytes() == b"whole"
    assert not list(tmp_path.glob("*.png"))[1:]
    assert not (tmp_path / "folder").exists()
    fill(tmp_path / "folder", b"whole")
    assert names(tmp_path / "folder") == ["deep"]
    assert ".folder.part" not in names(tmp_path)


# ---- folders ----


@pytest.mark.parametrize("sync", [False, True])
def test_a_folder_takes_the_old_ones_place(tmp_path, sync):
    folder = tmp_path / "new" / "folder"
    fill(folder, b"first", sync=sync)
    (folder / "old").touch()
    fill(folder, b"second", sync=sync)
    assert names(folder) == ["deep"]
    assert (folder / "deep" / "a").read_bytes() == b"second"
    assert names(folder.parent) == ["folder"]


def test_a_failure_leaves_the_old_folder(tmp_path):
    fill(tmp_path / "folder", b"first")
    with pytest.raises(RuntimeError, match="midway"):
        fill(tmp_path / "folder", b"half", RuntimeError("midway"))
    assert (tmp_path / "folder" / "deep" / "a").read_bytes() == b"first"
    with pytest.raises(UserError, match=r"^cannot write .*folder: No space left"):
        fill(tmp_path / "folder", b"half", OSError(28, "No space left on device"))
    assert names(tmp_path) == ["folder"]


def test_an_unwritable_place_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write"):
        fill(tmp_path / "file" / "folder", b"")
    with pytest.raises(UserError, match="is a disk of its own and cannot be replaced"):
        fill("/", b"")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_permissions_that_the_umask_leaves(tmp_path, umask, mode):
    """Whatever the library that wrote them thinks: safetensors makes files for their owner alone."""
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "a.safetensors") as temporary:
            save_file({"a": torch.ones(2)}, temporary)
        with atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "unet").mkdir()
            save_file({"a": torch.ones(2)}, temporary / "unet" / "b.safetensors")
    finally:
        os.umask(before)
    for file in (tmp_path / "a.safetensors", tmp_path / "folder" / "unet" / "b.safetensors"):
        assert file.stat().st_mode & 0o777 == mode
