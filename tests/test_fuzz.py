"""Some of the malformed inputs that `python -m fuzz` makes by the thousands: each is one line, and nothing else."""

from __future__ import annotations

import importlib

import pytest

from fuzz.__main__ import kinds
from fuzz.checkpoints import checkpoints
from fuzz.harness import Case, answers

COUNTS = {"configs": 12, "tokenizers": 10, "weights": 12, "adapters": 8, "pictures": 15, "videos": 15}
COUNT = 20  # of other kinds, which load no model
MORE = 3  # times as many, of another seed, in the rare run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "seeds").mkdir()
    return folder


def test_what_is_not_spoiled_passes(place):
    """Or else every case would be refused for another reason than its own."""
    whole = [Case(one.name, one.argv(str(one.source)), statuses=(0,), lines=0) for one in checkpoints(place / "seeds")]
    assert [(one.case.name, one.stderr) for one in answers(whole, place / "whole") if one.faults] == []


@pytest.mark.parametrize(("seed", "times"), [(0, 1), pytest.param(1, MORE, marks=pytest.mark.rare)])
@pytest.mark.parametrize("kind", kinds())
def test_malformed_inputs_are_one_line(place, kind, seed, times):
    cases = importlib.import_module(f"fuzz.{kind}").cases(seed, times * COUNTS.get(kind, COUNT), place / "seeds")
    wrong = [
        (one.case.name, one.faults, one.stderr[-500:]) for one in answers(cases, place / str(seed) / kind) if one.faults
    ]
    assert wrong == []


def test_the_harness_sees_what_is_wrong(tmp_path):
    """A hang, a wrong status, more than one line, a traceback, and a file outside the case's folder."""
    score = ["score", "a.mp4", "b.mp4", "--reward", "aesthetic:checkpoint=tiny"]

    def make(folder):
        for name in ("a.mp4", "b.mp4"):
            (folder / name).write_bytes(b"no video")

    def faults(argv, limit=30.0, **options):
        (one,) = answers([Case("x", argv, make, **options)], tmp_path / "cases", limit)
        return one.faults

    assert faults(score, statuses=(1,), lines=3) == []
    assert faults(score) == ["exit status 1", "3 lines on stderr"]
    assert faults(score, statuses=(1,), lines=3, limit=0.01) == ["hang"]
    assert faults(["export", "no-run", "--adapter", "--out", "x"]) == []
    sample = ["sample", "a red circle", "--frames", "2", "--height", "32", "--width", "32", "--steps", "1", "--out"]
    assert faults([*sample, "inside"]) == []
    assert faults([*sample, "../../outside"]) == ["files outside its folder"]
    assert faults([3]) == ["traceback"]
