"""Frozen weights shared out over processes: same numbers as one process has, and each holds its part."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet3DConditionModel, WanTransformer3DModel
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from factories import make_tiny_modelscope
from toy_runs import CONTEXT, PATIENCE
from vader.errors import UserError
from vader.networks.adapter import (
    adapter_disabled,
    adapter_parameters,
    adapter_state,
    add_adapter,
    load_adapter_state,
    merge_adapter,
)
from vader.networks.measure import weight_bytes
from vader.networks.prepare import prepare
from vader.networks.shard import shard
from vader.networks.techniques import Role, Technique, Techniques, load_techniques
from vader.plugins import Part

CPU = torch.device("cpu")
Call = Callable[[nn.Module, Tensor, float], Tensor]


def tiny_unet(folder: Path) -> tuple[nn.Module, Call]:
    unet = UNet3DConditionModel.from_pretrained(folder / "unet").eval().requires_grad_(False)
    text = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(4))
    return add_adapter(
        unet, ("to_q", "to_v", "conv_in", "proj_out", "conv4.3"), rank=2
    ), lambda net, x, t: net(x, torch.tensor(t), text).sample


def tiny_transformer(folder: Path) -> tuple[nn.Module, Call]:
    torch.manual_seed(0)
    wan = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
        ffn_dim=32, num_layers=3,
    )  # fmt: skip
    add_adapter(wan.eval().requires_grad_(False), ("to_q", "ffn.net.2", "proj_out"), rank=2)
    text = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(4))
    return wan, lambda net, x, t: net(x, torch.tensor([t]), text, return_dict=False)[0]


NETWORKS = {"unet": tiny_unet, "transformer": tiny_transformer}


def as_if_trained(network: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(1)
    for parameter in adapter_parameters(network):
        parameter.data = torch.randn(parameter.shape, generator=g) * 0.1
    return network


def walk(network: nn.Module, call: Call, memory: Techniques) -> list[Tensor]:
    """A step without gradient and two with, the base in between; the last latents and the adapter's gradients."""
    x = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        x = x - 0.1 * call(network, x, 9.0)
    for time in (7.0, 5.0):
        with memory.gradient_step():
            x = x - 0.1 * call(network, x, time)
        with adapter_disabled(network):
            base = call(network, x, time)
    loss = x.square().mean() + (x - base).square().mean()
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in adapter_parameters(network)]
    for parameter in adapter_parameters(network):
        parameter.grad = None
    return [x.detach(), *gradients]


def compare_all(rank: int, folder: str, port: int) -> None:
    """In each process: every network under every list of techniques against a whole one."""
    join(rank, port)
    for name in NETWORKS:
        expected = numbers_of_one(folder, name)
        for techniques in COMBINATIONS:
            compare(folder, name, techniques, expected)
    compare_rewards()
    distributed.destroy_process_group()


def numbers_of_one(folder: str, name: str) -> tuple[list[Tensor], Tensor]:
    """A whole network's walk, and its prediction with its adapter twice as strong."""
    network, call = NETWORKS[name](Path(folder))
    walked = walk(as_if_trained(network), call, Techniques())
    load_adapter_state(network, {key: value * 2 for key, value in adapter_state(network).items()})
    return walked, predicted(network, call)


@torch.no_grad()
def predicted(network: nn.Module, call: Call) -> Tensor:
    return call(network, torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(3)), 3.0)


def compare(folder: str, name: str, techniques: tuple[str, ...], expected: tuple[list[Tensor], Tensor]) -> None:
    network, call = NETWORKS[name](Path(folder))
    as_if_trained(network)
    memory = load_techniques([Part(name=technique) for technique in techniques])
    bytes_before = weight_bytes(network)
    prepare([(network, Role("denoiser", name, CPU))], memory)
    trained = sum(parameter.nbytes for parameter in adapter_parameters(network))
    assert weight_bytes(network) - trained < 0.55 * (bytes_before - trained)
    assert network.device == CPU
    assert network.dtype == torch.float32
    for _ in range(2):
        for ours, reference in zip(walk(network, call, memory), expected[0], strict=True):
            torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)
    state = adapter_state(network)
    assert not any(isinstance(tensor, DTensor) for tensor in state.values())
    load_adapter_state(network, {key: value * 2 for key, value in state.items()})
    merge_adapter(network)
    torch.testing.assert_close(predicted(network, call), expected[1], atol=1e-5, rtol=1e-5)


def join(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=2)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_modelscope(tmp_path_factory.mktemp("modelscope") / "model")


COMBINATIONS = (("shard",), ("shard", "recompute"), ("offload_activations", "shard", "recompute"))


class Scorer(nn.Module):
    """Like a reward: called by a name of its own, most of its weights in blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(16, 16) for _ in range(3))})
        self.head = nn.Linear(16, 1)

    def score(self, x: Tensor) -> Tensor:
        for layer in self.inside["layers"]:
            x = layer(x).relu()
        return self.head(x)[:, 0]


def compare_rewards() -> None:
    """Their blocks are sharded where that is asked for."""
    torch.manual_seed(2)
    whole = Scorer().requires_grad_(False)
    twins = [Scorer().requires_grad_(False) for _ in range(2)]
    for twin, options in zip(twins, ({}, {"rewards": True}), strict=True):
        twin.load_state_dict(whole.state_dict())
        memory = load_techniques([Part(name="shard", **options)])
        prepare([(twin, Role("reward", "scorer", CPU))], memory)
    x = torch.randn(4, 16).requires_grad_()
    expected = torch.autograd.grad(whole.score(x).sum(), x)[0]
    for twin in twins:
        torch.testing.assert_close(torch.autograd.grad(twin.score(x).sum(), x)[0], expected)
    assert weight_bytes(twins[0]) == weight_bytes(whole)
    assert weight_bytes(twins[1]) < 0.6 * weight_bytes(whole)


def test_two_processes_with_shards_equal_one(folder):
    port = free_port()
    processes = [CONTEXT.Process(target=compare_all, args=(rank, str(folder), port)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.mark.parametrize(
    ("device", "launcher"),
    [("cpu", "torchrun --nproc-per-node 2"), ("cuda", "accelerate launch --num_processes 2")],
)
def test_one_process_cannot_share(device, launcher):
    with pytest.raises(UserError, match=rf"this is one alone: start more \({launcher} -m vader train \.\.\.\), or"):
        shard(nn.Linear(2, 2), torch.device(device))


def test_an_old_torch_is_named(monkeypatch):
    monkeypatch.setattr("vader.networks.shard.fully_shard", lambda module, *, mesh: module)
    with pytest.raises(UserError, match=r"needs torch 2\.7 or later"):
        shard(nn.Linear(2, 2), CPU)


# ---- techniques as parts of a recipe ----


class Noted(Technique):
    """A technique of one's own."""

    def __init__(self, word: str = "") -> None:
        self.word, self.seen = word, []

    def prepare(self, network: nn.Module, role: Role) -> None:
        self.seen.append((role.kind, role.name))


def test_techniques_act_in_the_written_order_whatever_the_list_says():
    parts = [Part(name="shard"), Part(name="test_shard:Noted", word="x"), Part(name="recompute")]
    techniques = load_techniques(parts)
    assert [type(technique).__name__ for technique in techniques] == ["Noted", "Recompute", "Shard"]
    assert techniques[0].word == "x"
    prepare([(nn.Linear(2, 2), Role("decoder", "vae", CPU))], techniques[:1])
    assert techniques[0].seen == [("decoder", "vae")]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([Part(name="recomput")], "did you mean 'recompute'"),
        ([Part(name="shard"), Part(name="shard", rewards=True)], "names 'shard' twice"),
        ([Part(name="shard", reward=True)], "no option 'reward'"),
        ([Part(name="recompute", every=2)], "no option 'every'"),
        ([Part(name="test_shard:Scorer")], "is not a Technique"),
    ],
)
def test_techniques_that_cannot_be(parts, message):
    with pytest.raises(UserError, match=message):
        load_techniques(parts)
