"""Shared by all tests: determinism, and the parity fixtures that lie beside a development checkout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def shared():
    """`shared("parity/rewards/labels.json")` is the path of a parity fixture; the test skips where there is none."""

    def path(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"parity fixture {name} is not beside this checkout")
        return SHARED / name

    return path
