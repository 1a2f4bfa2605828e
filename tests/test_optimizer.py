"""The optimiser is AdamW as the recipe sets it, in one kernel on CUDA, and its moments may have 8 bits."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from torch import nn

from toy_runs import adapter, metrics, toy_recipe
from vader.cli import main
from vader.engine.optimizer import build_optimizer
from vader.errors import UserError
from vader.planning.step import forecast
from vader.recipe import load_recipe
from vader.recipe.sections import OptimizerSection
from vader.training.trainer import train

CPU = torch.device("cpu")
EIGHT = OptimizerSection(lr=1e-2, eight_bit=True)
needs_library = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="8-bit moments need bitsandbytes"
)


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((64, 128), (16, 8))]


def stepped(optimizer: torch.optim.Optimizer, steps: range) -> list[torch.Tensor]:
    """The parameters after these steps, each under its own gradients."""
    weights = optimizer.param_groups[0]["params"]
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return [weight.detach().clone() for weight in weights]


def test_settings_reach_adamw():
    section = OptimizerSection(lr=0.3, betas=(0.5, 0.75), weight_decay=0.125, eps=1e-3, max_grad_norm=7.0)
    optimizer = build_optimizer(section, parameters(), CPU)
    assert type(optimizer) is torch.optim.AdamW
    told = {"lr": 0.3, "betas": (0.5, 0.75), "weight_decay": 0.125, "eps": 1e-3}
    assert {key: optimizer.defaults[key] for key in told} == told


@pytest.mark.parametrize(("device", "fused"), [("cpu", None), ("cuda", True), ("mps", None)])
def test_steps_are_one_kernel_on_cuda_alone(device, fused):
    assert build_optimizer(OptimizerSection(), parameters(), torch.device(device)).defaults["fused"] is fused


def test_a_state_goes_on_from_one_kernel_in_the_other():
    """A checkpoint written on CUDA by steps in one kernel, continued here, and the other way round."""
    section = OptimizerSection(lr=1e-2)
    for first, second in (("cuda", "cpu"), ("cpu", "cuda")):
        before = build_optimizer(section, parameters(), torch.device(first))
        middle = stepped(before, range(3))
        after = build_optimizer(section, [nn.Parameter(weight) for weight in middle], torch.device(second))
        after.load_state_dict(copy.deepcopy(before.state_dict()))
        for ours, reference in zip(stepped(after, range(3, 6)), stepped(before, range(3, 6)), strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-7)


# ---- 8 bits ----


def test_eight_bits_without_the_library_are_refused_at_once(monkeypatch, capsys):
    monkeypatch.setattr("vader.engine.optimizer.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="eight_bit needs bitsandbytes: pip install bitsandbytes"):
        build_optimizer(EIGHT, parameters(), CPU)
    assert main(["train", "tiny", "optimizer.eight_bit=true", "--dry-run"]) == 2
    assert "optimizer.eight_bit needs bitsandbytes" in capsys.readouterr().err


@needs_library
def test_moments_of_large_tensors_have_8_bits_and_steps_are_nearly_the_same():
    optimizer = build_optimizer(EIGHT, parameters(), CPU)
    ours = stepped(optimizer, range(6))
    exact = stepped(build_optimizer(OptimizerSection(lr=1e-2), parameters(), CPU), range(6))
    large, small = (optimizer.state[weight] for weight in optimizer.param_groups[0]["params"])
    assert large["state1"].dtype == large["state2"].dtype == torch.uint8
    assert small["state1"].dtype == small["state2"].dtype == torch.float32  # fewer than 4096 numbers
    moved = [after - before for after, before in zip(exact, parameters(), strict=True)]
    errors = [((mine - one).norm() / way.norm()).item() for mine, one, way in zip(ours, exact, moved, strict=True)]
    assert 1e-4 < errors[0] < 0.03
    assert errors[1] < 1e-5


@needs_library
def test_a_run_that_goes_on_with_8_bits_ends_as_one_that_never_stopped(tmp_path):
    wide = ("optimizer.eight_bit=true", "adapter.rank=1024")  # tensors that are large enough
    for name, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        train(toy_recipe(*wide, f"name={name}", f"train.steps={steps}"), tmp_path)
    whole, parts = (
        [line for line in metrics(tmp_path / name) if line["kind"] == "train"] for name in ("whole", "parts")
    )
    assert parts == whole
    weights, others = (adapter(tmp_path / name) for name in ("whole", "parts"))
    assert weights.pop("header") != others.pop("header")  # they have the run's name
    assert weights == others


@needs_library
def test_the_plan_counts_8_bits():
    step = ("sampling.steps=2", "video.frames=2", "train.batch=1", "adapter.rank=128")
    plain, eight = (forecast(load_recipe("tiny", [*step, f"optimizer.eight_bit={on}"])) for on in ("false", "true"))
    assert plain.adapter / 3 < eight.adapter < plain.adapter
