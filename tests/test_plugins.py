"""`module:Class` finds the user's class beside the recipe; whatever is wrong with it is one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import Field, NonNegativeInt, PositiveInt

import vader
from toy_runs import TOY
from vader import Algorithm, Guidance, Metric, Technique, VideoModel
from vader.algorithms.reward_gradient import RewardGradient
from vader.cli import main
from vader.errors import UserError
from vader.plugins import Part, checked_options, complete, instantiate, load_function, load_object
from vader.recipe.sections import Scale
from vader.rewards import FrameReward, Reward

MODULE = """
from vader.rewards import FrameReward


class Whole(FrameReward):
    def score_frames(self, images, prompts):
        return images.mean(dim=(1, 2, 3))


class Unfinished(FrameReward):
    pass


WORD = "warm"


class Stranger:
    pass


def leap(walk, generator, *, discount=0.3):
    return walk
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
        ("mine:Stranger", "is not a Reward: derive it from vader.FrameReward or vader.Reward"),
        ("mine:leap", "is a function: write a class that is derived from vader.FrameReward or vader.Reward"),
        ("mine:WORD", "is a str: write a class that is derived from vader.FrameReward or vader.Reward"),
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


@pytest.mark.parametrize("base", [Algorithm, Guidance, Metric, Reward, Technique, VideoModel])
def test_every_contract_is_told_by_a_name_that_is_public(write, base):
    write("mine", MODULE)
    with pytest.raises(UserError) as caught:
        load_object("mine:Stranger", "part", base)
    public = re.findall(r"vader\.(\w+)", str(caught.value))
    assert public
    assert all(issubclass(getattr(vader, name), base) for name in public)


def test_a_function_is_found(write):
    write("mine", MODULE)
    assert load_function("mine:leap", "policy")(3, None) == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("leap", "policy 'leap': write it as module:function, for instance my_module:my_function"),
        ("mine:leep", "policy 'mine:leep': mine has no leep: did you mean 'leap'?"),
        ("mine:MODULE", "mine has no MODULE: known: leap"),
        ("mine:Stranger", "policy 'mine:Stranger' is no function: define it by def"),
        ("no_such_module:leap", "no module 'no_such_module' here"),
    ],
)
def test_what_is_no_function_is_one_line(write, spec, message):
    write("mine", MODULE)
    with pytest.raises(UserError, match=re.escape(message)):
        load_function(spec, "policy")


class Plain:
    def __init__(self, size: int, names: Sequence[str] = (), scale: float | None = None, anything=None) -> None:
        self.options = {"size": size, "names": names, "scale": scale, "anything": anything}


class Open:
    def __init__(self, **options: float) -> None:
        self.options = options


class Bare(Reward):
    pass


class Foreign:
    def __init__(self, reward: Reward, hidden: NotImportedHere = None, size: int = 1) -> None:  # noqa: F821
        self.reward = reward


def test_options_are_taken_by_their_types():
    built = instantiate(Plain, "thing", {"size": 3, "names": ["a"], "scale": 1, "anything": object})
    assert built.options == {"size": 3, "names": ["a"], "scale": 1.0, "anything": object}
    assert type(built.options["scale"]) is float
    assert instantiate(Open, "thing", {"any": 1}).options == {"any": 1}


def test_hints_that_only_a_type_checker_knows_are_not_checked():
    assert instantiate(Foreign, "thing", {"reward": 3, "hidden": 4}).reward == 3
    with pytest.raises(UserError, match="thing: size is '3'"):
        instantiate(Foreign, "thing", {"reward": 3, "size": "3"})


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (Plain, {}, "thing needs the option 'size'"),
        (Plain, {"size": 1, "nams": ()}, "thing has no option 'nams': did you mean 'names'"),
        (Plain, {"size": "3"}, "thing: size is '3': input should be a valid integer"),
        (Plain, {"size": 2.5}, "thing: size is 2.5: input should be a valid integer"),
        (Plain, {"size": True}, "thing: size is True: input should be a valid integer"),
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


# ---------------------------------------------------------------- settings


LAST = Part(name="last")


@dataclass(frozen=True)
class Settings:
    """As an algorithm's, beside its code."""

    policy: Part = LAST
    minibatches: PositiveInt = 2
    window: tuple[float, float] = (0.6, 1.0)
    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    extra: list[str] = field(default_factory=lambda: ["a"])
    file: Path | None = None
    segments: Literal["last", "all"] | tuple[NonNegativeInt, ...] = "last"
    scale: Scale | Part | None = None
    margin: float | None = None


@dataclass
class Needy:
    file: Path


def test_a_part_is_a_name_and_options():
    part = Part(name="last", k=5)
    assert (part.name, part.options) == ("last", {"k": 5})
    assert part == Part.model_validate({"name": "last", "k": 5})
    assert part != Part(name="last", k=6)
    assert part.model_dump() == {"name": "last", "k": 5}


def test_settings_are_a_dataclass_with_parts_in_it():
    given = {"policy": {"name": "last", "k": 5}, "window": [0, 1], "share": 1, "file": "a.csv"}
    settings = instantiate(Settings, "algorithm 'x'", given)
    assert settings == Settings(Part(name="last", k=5), 2, (0.0, 1.0), 1.0, ["a"], Path("a.csv"))
    assert instantiate(Settings, "algorithm 'x'", {"policy": Part(name="full")}).policy == Part(name="full")


def test_settings_of_a_base_in_another_module_are_checked_too(write):
    write(
        "further",
        "from dataclasses import dataclass\n"
        "from test_plugins import Settings\n"
        "@dataclass(frozen=True)\n"
        "class More(Settings):\n"
        "    times: int = 2\n",
    )
    more = load_object("further:More", "settings", Settings)
    assert instantiate(more, "algorithm 'x'", {"policy": {"name": "last"}, "times": 3}).policy == Part(name="last")
    with pytest.raises(UserError, match="share is 2: input should be less than or equal to 1"):
        instantiate(more, "algorithm 'x'", {"policy": {"name": "last"}, "share": 2})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minibatches": 0}, "algorithm 'x': minibatches is 0: input should be greater than 0"),
        ({"minibatches": 2.5}, "algorithm 'x': minibatches is 2.5: input should be a valid integer"),
        ({"share": 2}, "algorithm 'x': share is 2: input should be less than or equal to 1"),
        ({"polcy": {"name": "last"}}, "algorithm 'x' has no option 'polcy': did you mean 'policy'?"),
        ({"policy": "last"}, "algorithm 'x': policy is 'last': a part has a name, write it as {name: ...}"),
        ({"policy": {"k": 5}}, "algorithm 'x': policy is {'k': 5}: a part has a name, write it as {name: ...}"),
        ({"policy": {"name": 5}}, "algorithm 'x': policy is {'name': 5}: a part has a name"),
        ({"window": [0.5]}, "algorithm 'x': window is [0.5]: input should be a list of 2"),
        ({"segments": "first"}, "algorithm 'x': segments is 'first': input should be 'last' or 'all', or a list"),
        ({"segments": [0, -1]}, "input should be 'last' or 'all', or a list, each greater than or equal to 0"),
        ({"scale": "x"}, "scale is 'x': input should be a valid number, or a part {name: ...}, or null"),
        ({"scale": {"k": 1}}, "scale is {'k': 1}: input should be a valid number, or a part {name: ...}, or null"),
        ({"margin": "x"}, "margin is 'x': input should be a valid number, or null"),
    ],
)
def test_wrong_settings_are_one_line(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        instantiate(Settings, "algorithm 'x'", options)


def test_complete_fills_in_every_default_as_json():
    assert complete(Settings, {"policy": {"name": "last", "k": 5}, "share": 0.5}) == {
        "policy": {"name": "last", "k": 5},
        "minibatches": 2,
        "window": [0.6, 1.0],
        "share": 0.5,
        "extra": ["a"],
        "file": None,
        "segments": "last",
        "scale": None,
        "margin": None,
    }
    assert complete(Settings, {})["policy"] == {"name": "last"}
    assert complete(Needy, {"file": Path("a.csv")}) == {"file": "a.csv"}

    def policy(walk: Any, generator: Any, *, k: int = 1, steps: tuple[int, ...] = (3,)) -> None:
        """As a gradient policy."""

    assert complete(policy, {"k": 2}) == {"k": 2, "steps": [3]}
    assert complete(Bare, {}) == {}


# ---- parts that fail ----

BEFORE = {  # what a recipe has, and what is said before the run starts
    "evaluation.metrics=[{name: 'broken_parts:Divides'}]": "metric 'Divides' fails in per_video: ZeroDivisionError: "
    "division by zero (broken_parts.py, line 14)",
    "evaluation.metrics=[{name: 'broken_parts:DividesSets'}]": "metric 'DividesSets' fails in over_set: "
    "ZeroDivisionError: division by zero (broken_parts.py, line 19)",
    "evaluation.metrics=[{name: 'broken_parts:Text'}]": "metric 'Text' gave a str: let it return a tensor [2] from "
    "`per_video`, one number for each video",
    "evaluation.metrics=[{name: 'broken_parts:OneText'}]": "metric 'OneText/words' gave a str from `over_set`: let it "
    "return one number for all videos, or several by name",
    "evaluation.metrics=[{name: 'broken_parts:Unprepared'}]": "metric 'Unprepared' fails in prepare: AttributeError: "
    "'Unprepared' object has no attribute 'network' (broken_parts.py, line 41)",
    "evaluation.metrics=[{name: 'broken_parts:Unmade'}]": "metric 'broken_parts:Unmade' does not load: KeyError: 'a' "
    "(broken_parts.py, line 49)",
    "algorithm.policy={name: 'broken_parts:forgetful'}": "policy 'broken_parts:forgetful' fails: KeyError: 'steps' "
    "(broken_parts.py, line 56)",
    "algorithm.policy={name: 'broken_parts:no_generator'}": "policy 'broken_parts:no_generator' fails: IndexError: "
    "list index out of range (broken_parts.py, line 60)",
    "sampling.guidance={name: 'broken_parts:Refuses'}": "guidance 'Refuses' fails in check: ZeroDivisionError: "
    "division by zero (broken_parts.py, line 70)",
    "memory=[{name: 'broken_parts:Enters'}]": "memory technique 'Enters' fails in gradient_step: ZeroDivisionError: "
    "division by zero (broken_parts.py, line 79)",
    "memory=[{name: 'broken_parts:Packs'}]": "memory technique 'Packs' fails in gradient_step: AttributeError: "
    "'Tensor' object has no attribute 'nowhere' (broken_parts.py, line 84)",
    "memory=[{name: 'broken_parts:Prepares'}]": "memory technique 'Prepares' fails in prepare: KeyError: 'unet' "
    "(broken_parts.py, line 89)",
    "algorithm={name: 'broken_parts:Unready'}": "algorithm 'Unready' fails in __init__: AttributeError: 'NoSettings' "
    "object has no attribute 'rate' (broken_parts.py, line 100)",
    "prompts.train=broken_parts:prompts": "prompt set 'broken_parts:prompts' fails with IndexError: list index out of "
    "range (broken_parts.py, line 108)",
}


@pytest.mark.parametrize(("override", "said"), BEFORE.items())
def test_a_part_that_fails_is_named_before_the_run_starts(tmp_path, capsys, override, said):
    assert main(["train", str(TOY), override, "--runs", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err == f"vader: {said}\n"
    assert not (tmp_path / "runs").exists()


WITHIN = {  # what only the run itself can find, and what of it stays
    "evaluation.metrics=[{name: 'broken_parts:Late'}]": "metric 'Late' fails in per_video: KeyError: 3 "
    "(broken_parts.py, line 36); nothing was saved yet",
    "sampling.guidance={name: 'broken_parts:Leads'}": "guidance 'Leads' fails in __call__: AttributeError: 'Passes' "
    "object has no attribute 'strength' (broken_parts.py, line 65); nothing was saved yet",
    "algorithm={name: 'broken_parts:Steps'}": "algorithm 'Steps' fails in step: AttributeError: 'Batch' object has no "
    "attribute 'nothing' (broken_parts.py, line 94); the checkpoint of step 0 stays",
}


@pytest.mark.parametrize(("override", "said"), WITHIN.items())
def test_a_part_that_fails_later_is_named_and_the_run_has_failed(tmp_path, capsys, override, said):
    assert main(["train", str(TOY), override, "--runs", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"vader: {said}\n"


def test_evaluate_tries_a_metric_first(tmp_path, capsys):
    command = ["evaluate", "--recipe", str(TOY), "--videos", "1", "--seeds", "1", "--out", str(tmp_path / "out")]
    assert main([*command, "--metric", "broken_parts:Text"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("vader: metric 'Text' gave a str: let it return a tensor [2] from `per_video`")
    assert "base: reward" not in captured.out


def test_what_fails_in_a_hook_of_ones_own_is_no_fault_of_the_package(tmp_path, capsys, monkeypatch):
    def step(self, engine, batch):
        leaf = torch.ones(1, requires_grad=True)
        leaf.register_hook(lambda gradient: {}["of mine"])
        leaf.sum().backward()

    monkeypatch.setattr(RewardGradient, "step", step)
    assert main(["train", str(TOY), "--runs", str(tmp_path)]) == 1
    line = r"vader: your own code fails with KeyError: 'of mine' \(test_plugins\.py, line \d+\); the checkpoint of "
    assert re.fullmatch(line + "step 0 stays\n", capsys.readouterr().err)


def test_a_fault_of_the_package_is_told_as_one(tmp_path, capsys, monkeypatch):
    """A built-in metric that fails, in the place where one of the user's own would be named."""
    monkeypatch.setattr("vader.evaluation.metrics.judge.judge_prompts", None)
    assert main(["train", str(TOY), "evaluation.metrics=[{name: judge}]", "--runs", str(tmp_path)]) == 1
    said = "vader: TypeError: 'NoneType' object is not callable (judge.py, line 18): this is a fault of vader"
    assert capsys.readouterr().err.startswith(said)
