"""The public API: every name is there, and looking at the package costs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vader


@pytest.mark.parametrize("name", vader.__all__)
def test_every_public_name_is_importable(name: str) -> None:
    assert getattr(vader, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = vader.trian


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, vader, vader.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
