"""Weight files of strangers: what they hold is read, code in them is never run, damage is one line."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file

from vader.errors import UserError
from vader.files.weights import read_weights

TENSORS = {"a": torch.arange(1000.0)}


class Touch:
    """Unpickled by the unrestricted reader, this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_torch_and_safetensors_files_are_read(tmp_path):
    torch.save({"state_dict": TENSORS, "step": 3}, tmp_path / "new.ckpt")
    torch.save({"state_dict": TENSORS, "step": 3}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    save_file(TENSORS, tmp_path / "a.safetensors")
    for name in ("new.ckpt", "old.ckpt"):
        content = read_weights(tmp_path / name)
        assert content["step"] == 3
        assert content["state_dict"]["a"].equal(TENSORS["a"])
    assert read_weights(tmp_path / "a.safetensors")["a"].equal(TENSORS["a"])


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path, zipped):
    path, touched = tmp_path / "evil.ckpt", tmp_path / "touched"
    torch.save({"a": Touch(touched)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"it holds code \((posix|nt)\.system\), which is never run$"):
        read_weights(path)
    assert not touched.exists()


def test_damaged_files_are_one_line(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save(TENSORS, path)
    whole = path.read_bytes()
    for content, reason in (
        (whole[: len(whole) // 2], "it is cut short"),
        (whole[:-10], "it is cut short"),
        (b"", "it is empty"),
        (b"<html>no such page", "it holds something else than tensors"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"no readable weight file: {reason}") as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)
