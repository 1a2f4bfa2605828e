"""Shared by all tests: determinism, and the parity fixtures that lie beside a development checkout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vader import plugins

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _places_of_its_own():
    """Where a test's recipes lie is forgotten after it, or the next ones look for modules there too."""
    places = plugins._beside
    before = len(places)
    yield
    del places[before:]


@pytest.fixture
def shared():
    """`shared("parity/rewards/labels.json")` is the path of a parity fixture; the test skips where there is none."""

    def path(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"parity fixture {name} is not beside this checkout")
        return SHARED / name

    return path
