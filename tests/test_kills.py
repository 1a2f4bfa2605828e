"""Killed with -9 at any of its file-system events, a command is given again and ends as if nothing was: some of them.

`python tests/kills.py` does all.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

import pytest

from kills import kill_everywhere

FEW = {"train": 4, "extend": 3, "report": 2, "compare": 2, "export": 3}


@pytest.mark.parametrize("event", [r"os.rename .*step-000002$", r"os.remove .*\.lock$", r"os.rename .*adapter"])
def test_killed_while_it_tidies_up(tmp_path, event):
    def chosen(events: Sequence[str]) -> Iterator[int]:
        return iter([max(place for place, what in enumerate(events, start=1) if re.search(event, what))])

    assert kill_everywhere("train", tmp_path, chosen) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kills"), FEW.items(), ids=FEW)
def test_killed_anywhere_the_same_command_goes_on(tmp_path, name, kills):
    def chosen(events: Sequence[str]) -> Iterator[int]:
        return iter(sorted(random.Random(name).sample(range(1, len(events) + 1), kills)))

    assert kill_everywhere(name, tmp_path, chosen) == []
