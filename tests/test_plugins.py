"""`module:Class` finds the user's class beside the recipe; whatever is wrong with it is one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

import pytest

from vader.errors import UserError
from vader.plugins import checked_options, instantiate, load_object
from vader.rewards import FrameReward, Reward

MODULE = """
from vader.rewards import ClipReward, FrameReward


class Whole(FrameReward):
    def score_frames(self, images, prompts):
        return images.mean(dim=(1, 2, 3))


class Unfinished(FrameReward):
    pass


class Stranger:
    pass
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def module(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return module


def test_a_module_in_the_working_directory_is_found(write):
    write("mine", MODULE)
    assert issubclass(load_object("mine:Whole", "reward", Reward), FrameReward)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine", "write it as module:Class"),
        ("mine:", "write it as module:Class"),
        ("mine:Whale", "mine has no Whale: did you mean 'Whole'"),
        ("mine:Stranger", "is not a Reward: derive it from vader.rewards.base.Reward"),
        ("mine:Unfinished", "lacks score_frames"),
        ("no_such_module:X", "no module 'no_such_module' here"),
        ("mine.sub:X", "no module 'mine.sub'"),
        ("broken:X", "importing broken fails with ZeroDivisionError"),
        ("needy:X", "no module 'not_installed'"),
        ("typo:X", "importing typo fails with SyntaxError"),
    ],
)
def test_mistakes_are_one_line(write, spec, message):
    write("mine", MODULE)
    write("broken", "1 / 0")
    write("needy", "import not_installed.deep")
    write("typo", "def f(:\n    pass")
    with pytest.raises(UserError) as error:
        load_object(spec, "reward", Reward)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


class Plain:
    def __init__(self, size: int, names: Sequence[str] = (), scale: float | None = None, anything=None) -> None:
        self.options = {"size": size, "names": names, "scale": scale, "anything": anything}


class Open:
    def __init__(self, **options: float) -> None:
        self.options = options


class Bare(Reward):
    pass


class Foreign:
    def __init__(self, reward: Reward, hidden: NotImportedHere = None) -> None:  # noqa: F821
        self.reward = reward


def test_options_are_taken_by_their_types():
    built = instantiate(Plain, "thing", {"size": "3", "names": ["a"], "scale": 1, "anything": object})
    assert built.options == {"size": 3, "names": ["a"], "scale": 1.0, "anything": object}
    assert instantiate(Open, "thing", {"any": 1}).options == {"any": 1}


def test_hints_that_only_a_type_checker_knows_are_not_checked():
    assert instantiate(Foreign, "thing", {"reward": 3}).reward == 3


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (Plain, {}, "thing needs the option 'size'"),
        (Plain, {"size": 1, "nams": ()}, "thing has no option 'nams': did you mean 'names'"),
        (Plain, {"size": "x"}, "thing: size is 'x': input should be a valid integer"),
        (Plain, {"size": 1, "scale": "big"}, "thing: scale is 'big': input should be a valid number"),
        (Bare, {"size": 1}, "thing has no option 'size': it takes none"),
    ],
)
def test_wrong_options_are_one_line(cls, options, message):
    with pytest.raises(UserError) as error:
        instantiate(cls, "thing", options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_options_of_a_function_leave_out_what_is_reserved():
    def load(path: str, *, dtype: int = 0, motion: int = 127, chunk: int | None = None) -> None:
        """As a model family's `load`."""

    reserved = ("path", "dtype")
    assert checked_options(load, "model 'x'", {"motion": 3, "chunk": None}, reserved) == {"motion": 3, "chunk": None}
    for options, said in (
        ({"motoin": 3}, "model 'x' has no option 'motoin': did you mean 'motion'"),
        ({"dtype": 3}, "model 'x' has no option 'dtype'"),
        ({"motion": "fast"}, "model 'x': motion is 'fast'"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            checked_options(load, "model 'x'", options, reserved)
