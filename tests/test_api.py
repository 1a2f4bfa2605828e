"""The public API: every name is there, and looking at the package costs no torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vader
from toys import ToyModel, Warmth
from vader.networks.adapter import add_adapters
from vader.networks.adapter_files import save_adapters


@pytest.mark.parametrize("name", vader.__all__)
def test_every_public_name_is_importable(name: str) -> None:
    assert getattr(vader, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = vader.trian


def test_dir_is_what_is_public() -> None:
    own = {name for name in dir(vader) if not name.startswith("__")}
    assert own == set(vader.__all__)
    assert "__version__" in dir(vader)


# ---- forgiving in what it takes ----

SIZE = vader.VideoSize(frames=2, height=8, width=8)


def test_a_single_text_is_a_list_of_one() -> None:
    one = vader.sample(ToyModel(), "a red ball", SIZE, steps=2)
    assert one.shape == (1, 2, 3, 8, 8)
    assert one.equal(vader.sample(ToyModel(), vader.Prompt("a red ball"), SIZE, steps=2))
    assert one.equal(vader.sample(ToyModel(), ["a red ball"], SIZE, steps=2))
    with pytest.raises(vader.UserError, match="there is no prompt to sample a video of"):
        vader.sample(ToyModel(), [], SIZE)


def test_a_single_file_is_scored_by_a_single_reward(tmp_path: Path) -> None:
    path = vader.write_mp4(tmp_path / "grey.mp4", torch.full((2, 3, 64, 64), 0.5), fps=8)
    (score,) = vader.score(path, Warmth(), "a prompt of some letters")
    (mixed,) = vader.score([str(path)], vader.RewardMix({"w": Warmth()}, {"w": 2.0}), ["a prompt"])
    assert score.total == score.parts["Warmth"].mean == pytest.approx(mixed.total / 2)


@pytest.mark.parametrize("load", [vader.load_adapter, vader.load_into])
def test_adapters_go_to_whole_models(tmp_path: Path, load: Callable[..., Any]) -> None:
    trained = ToyModel()
    add_adapters(trained.denoisers, trained.lora_targets, 2, 2, 0)
    for name, weight in trained.denoiser.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    save_adapters(trained.denoisers, tmp_path, {"family": "toy"})
    model = ToyModel()
    assert load(model, tmp_path) is model
    expected = vader.sample(trained, "a", SIZE, steps=2)
    assert vader.sample(model, "a", SIZE, steps=2).equal(expected)
    assert not vader.sample(ToyModel(), "a", SIZE, steps=2).equal(expected)
    assert load(ToyModel().denoiser, tmp_path)
    with pytest.raises(vader.UserError, match="a str carries no adapter: give a model"):
        load("runs/tiny", tmp_path)
    save_adapters(trained.denoisers, tmp_path / "other", {"family": "svd"})
    with pytest.raises(vader.UserError, match="was trained on a model of the family 'svd', not 'toy'"):
        load(ToyModel(), tmp_path / "other")


def test_a_model_s_denoisers_are_not_chosen_by_component(tmp_path: Path) -> None:
    with pytest.raises(vader.UserError, match="leave the component out"):
        vader.load_adapter(ToyModel(), tmp_path, "unet")


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, vader, vader.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_empty_prompt_is_refused_before_anything_is_sampled() -> None:
    size = vader.VideoSize(frames=4, height=8, width=8)
    with pytest.raises(vader.UserError, match="a prompt is empty: write what its video is to show"):
        vader.sample(ToyModel(), ["a red ball", " "], size)
