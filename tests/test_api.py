"""The public API: every name is there, and looking at the package costs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vader
from toys import ToyModel


@pytest.mark.parametrize("name", vader.__all__)
def test_every_public_name_is_importable(name: str) -> None:
    assert getattr(vader, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = vader.trian


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, vader, vader.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_empty_prompt_is_refused_before_anything_is_sampled() -> None:
    size = vader.VideoSize(frames=4, height=8, width=8)
    with pytest.raises(vader.UserError, match="a prompt is empty: write what its video is to show"):
        vader.sample(ToyModel(), ["a red ball", " "], size)
