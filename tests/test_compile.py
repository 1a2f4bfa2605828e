"""Compiled layers compute what plain ones do, with the adapter on and off, and within recomputation."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from vader.errors import UserError
from vader.networks.adapter import adapter_parameters, adapters_disabled, add_adapter
from vader.networks.compile import Compile, compile_layers
from vader.networks.offload import offload_activations
from vader.networks.prepare import prepare
from vader.networks.recompute import Recomputed, checkpoint_blocks
from vader.networks.techniques import Role, load_techniques
from vader.plugins import Part

DENOISER = Role("denoiser", "transformer")


@pytest.fixture(scope="module", autouse=True)
def compiler():
    """Whatever torch needs to compile for a CPU."""
    try:
        Compile().prepare(nn.Module(), DENOISER)
    except UserError as error:
        pytest.skip(str(error))


class Block(nn.Module):
    """A residual layer with attention, as transformers have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.to_qkv, self.to_out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        query, key, value = self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        return x + self.to_out(nn.functional.scaled_dot_product_attention(query, key, value))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(16) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def network(*techniques: str) -> nn.Module:
    """A transformer with an adapter that has been trained, prepared by these."""
    torch.manual_seed(0)
    made = add_adapter(Transformer(), ("to_qkv", "to_out"), rank=2)
    for parameter in adapter_parameters(made):
        parameter.data.normal_(std=0.3)
    prepare([(made, DENOISER)], load_techniques([Part(name=name) for name in techniques]))
    return made


def numbers(made: nn.Module, step=nullcontext) -> list[torch.Tensor]:
    """The result, its gradient in input and adapter, the result without graph, and the base's."""
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with step():
        result = made(x)
    gradients = torch.autograd.grad(result.square().mean(), [x, *adapter_parameters(made)])
    with adapters_disabled({"transformer": made}):
        base = made(x)
    with torch.no_grad():
        return [result, *gradients, made(x), base]


def assert_close(ours, reference):
    for one, other in zip(ours, reference, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()


@pytest.mark.parametrize(
    "beside",
    [
        pytest.param(("quantize", "recompute"), marks=pytest.mark.slow),
        pytest.param(("recompute",), marks=pytest.mark.rare),
        pytest.param((), marks=pytest.mark.rare),
    ],
)
def test_numbers_are_the_same(beside):
    torch._dynamo.reset()
    reference = numbers(network(*beside))
    assert (reference[0] - reference[-1]).norm() > 0.1 * reference[0].norm()  # the adapter counts
    counters.clear()
    made = network(*beside, "compile")
    assert_close(numbers(made), reference)
    graphs = counters["stats"]["unique_graphs"]
    assert 3 <= graphs < 9  # of three kinds of calls of three layers, which share them
    assert not counters["graph_break"]
    assert_close(numbers(made), reference)  # on, off and on again
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.rare
def test_activations_may_wait_elsewhere():
    torch._dynamo.reset()
    assert_close(numbers(network("compile"), offload_activations), numbers(network()))


def test_layers_are_compiled_within_their_recomputation():
    made = Transformer()
    checkpoint_blocks(made)
    plain = made.blocks[0].forward.forward
    assert compile_layers(made) == 3
    assert isinstance(made.blocks[0].forward, Recomputed)
    assert made.blocks[0].forward.forward._torchdynamo_orig_callable == plain


@pytest.mark.parametrize("kind", ["text", "decoder", "reward"])
def test_denoisers_alone_are_compiled(kind):
    made = Transformer()
    Compile().prepare(made, Role(kind, "it"))
    assert "forward" not in vars(made.blocks[0])


def test_what_torch_says_of_it_is_not_shown():
    for name in ("torch._dynamo.convert_frame", "torch._inductor.utils", "torch._functorch.config"):
        assert not logging.getLogger(name).isEnabledFor(logging.WARNING)


def test_without_a_compiler_it_is_one_line(monkeypatch):
    def missing(function):
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setattr(torch, "compile", missing)
    with pytest.raises(UserError, match=r"'compile' cannot compile here, so leave it out: no compiler$"):
        Compile().prepare(Transformer(), DENOISER)
