"""Checkpointing and offloading change memory and no number."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, UNet3DConditionModel
from torch import nn

from factories import make_tiny_modelscope
from vader.algorithms import load_algorithm
from vader.engine import device
from vader.engine.batch import Batch
from vader.engine.build import build_engine
from vader.engine.device import peak_memory_bytes
from vader.networks.adapter import adapter_parameters, add_adapter
from vader.networks.offload import offload_activations
from vader.networks.park import Park
from vader.networks.recompute import block_layers, checkpoint_blocks, network_blocks
from vader.networks.techniques import Role
from vader.nouns import as_prompts
from vader.recipe import load_recipe

TARGETS = ("to_q", "to_v", "conv_in", "proj_out", "conv4.3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_modelscope(tmp_path_factory.mktemp("modelscope") / "model")


@pytest.fixture
def unet(folder):
    unet = UNet3DConditionModel.from_pretrained(folder / "unet").eval().requires_grad_(False)
    for parameter in adapter_parameters(add_adapter(unet, TARGETS, rank=2)):
        parameter.data.normal_(std=0.1)
    return unet


def gradients(unet, latents=None):
    """The gradient of a loss in the adapter's weights and the input."""
    g = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 4, 2, 8, 8, generator=g).requires_grad_()
    text = torch.randn(1, 5, 16, generator=g)
    loss = unet(latents, torch.tensor(7), text).sample.square().mean()
    return torch.autograd.grad(loss, [latents, *adapter_parameters(unet)])


def saved_bytes(call):
    """How much the graph keeps alive."""
    total = 0

    def pack(tensor):
        nonlocal total
        total += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return total


@pytest.mark.parametrize(("of", "parts"), [("blocks", 5), ("layers", 26), ("nested", 31)])
def test_checkpointed_gradients_are_identical(unet, of, parts):
    plain = gradients(unet)
    assert checkpoint_blocks(unet, of) == parts
    for ours, reference in zip(gradients(unet), plain, strict=True):
        torch.testing.assert_close(ours, reference, atol=0, rtol=0)


def test_an_adapter_attached_after_checkpointing_trains_as_well(folder, unet):
    other = UNet3DConditionModel.from_pretrained(folder / "unet").eval().requires_grad_(False)
    checkpoint_blocks(other)
    add_adapter(other, TARGETS, rank=2)
    for mine, theirs in zip(adapter_parameters(other), adapter_parameters(unet), strict=True):
        mine.data.copy_(theirs.data)
    for ours, reference in zip(gradients(other), gradients(unet), strict=True):
        torch.testing.assert_close(ours, reference, atol=0, rtol=0)


def test_checkpointing_keeps_less_and_recomputes_once(unet):
    latents, text = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 5, 16)
    plain = saved_bytes(lambda: unet(latents, torch.tensor(7), text))
    checkpoint_blocks(unet)
    checkpoint_blocks(unet)  # twice is once
    assert saved_bytes(lambda: unet(latents, torch.tensor(7), text)) < plain / 3
    calls = []
    unet.mid_block.resnets[0].register_forward_hook(lambda *_: calls.append(1))
    gradients(unet)
    assert len(calls) == 2
    with torch.no_grad():
        unet(latents, torch.tensor(7), text)
    assert len(calls) == 3


def test_a_vae_is_checkpointed_in_its_decoder(folder):
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval().requires_grad_(False)
    latents = torch.randn(2, 4, 8, 8).requires_grad_()
    plain = torch.autograd.grad(vae.decode(latents).sample.square().mean(), latents)[0]
    assert checkpoint_blocks(vae) == 6
    assert set(vae.decoder.up_blocks) < set(network_blocks(vae))
    recomputed = torch.autograd.grad(vae.decode(latents).sample.square().mean(), latents)[0]
    torch.testing.assert_close(recomputed, plain, atol=0, rtol=0)


def test_a_checkpointed_network_copies_and_saves_as_before(unet):
    names = list(unet.state_dict())
    checkpoint_blocks(unet)
    twin = copy.deepcopy(unet)
    assert list(twin.state_dict()) == names
    twin.mid_block.resnets[0].conv1.weight.data.zero_()
    assert not torch.equal(gradients(twin)[0], gradients(unet)[0])


def test_a_network_without_blocks_is_left_alone():
    assert checkpoint_blocks(nn.Sequential(nn.Linear(2, 2), nn.SiLU())) == 0


def parked_step(recipe):
    """The gradient of a training step, and where rewards and encoders were when the denoiser's passes began."""
    asked = load_recipe("tiny-aesthetic", ["sampling.steps=2", "algorithm.policy.k=1", "train.batch=2", *recipe])
    engine, kept, there = build_engine(asked, Path("runs")), [], []
    engine.optimizer.register_step_pre_hook(
        lambda *_: kept.extend(parameter.grad.clone() for parameter in engine.parameters)
    )
    parks = [technique for technique in engine.memory if isinstance(technique, Park)]
    block = block_layers(network_blocks(engine.model.denoiser)[0])[0]
    block.register_forward_pre_hook(
        lambda *_: there.extend(place.waiting is None for park in parks for place in park.places.values())
    )
    load_algorithm(asked).step(engine, Batch(1, tuple(as_prompts(["a red circle", "a dog"])), (0, 1), 2))
    return kept, there


@pytest.mark.parametrize("memory", ["", "{name: recompute}, "])
@pytest.mark.parametrize("split", ["true", "false"])
def test_parking_changes_no_gradient_and_leaves_the_denoiser_alone(memory, split):
    same = [f"algorithm.split_backward={split}", "rewards.0.sees=2"]
    parked, there = parked_step([*same, f"memory=[{memory}{{name: park}}]"])
    plain, _ = parked_step([*same, f"memory=[{memory.rstrip(', ')}]"])
    assert len(there) == 2 * (2 + bool(memory))  # two passes, and where one runs again
    assert not any(there)
    for ours, reference in zip(parked, plain, strict=True):
        assert torch.equal(ours, reference)


def test_what_is_parked_comes_as_a_copy_and_leaves_for_nothing():
    network, park = nn.Linear(4, 4), Park()
    park.prepare(network, Role("text", "text_encoder"))
    before = network.weight.data_ptr()
    park.leave()
    network(torch.ones(1, 4))
    there = network.weight.data_ptr()
    assert there != before
    park.leave()
    assert network.weight.data_ptr() == before


@pytest.mark.parametrize("checkpointed", [False, True])
def test_offloading_changes_no_gradient(unet, checkpointed):
    plain = gradients(unet)
    if checkpointed:
        checkpoint_blocks(unet)
    with offload_activations():
        offloaded = gradients(unet)
    for ours, reference in zip(offloaded, plain, strict=True):
        torch.testing.assert_close(ours, reference, atol=0, rtol=0)


def test_peak_memory_is_in_bytes_and_never_falls():
    before = peak_memory_bytes("cpu")
    block = torch.ones(50_000_000)
    assert peak_memory_bytes("cpu") >= before > 50e6
    del block


def test_blocks_that_write_into_their_lists_are_recomputed_from_what_was_there():
    """A causal VAE's blocks keep the frames before in a list that they are given."""
    vae = AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).double().eval()
    latents = torch.randn(1, 16, 3, 4, 4, dtype=torch.float64, requires_grad=True)

    def gradient():
        return torch.autograd.grad(vae.decode(latents, return_dict=False)[0].square().sum(), latents)[0]

    plain = gradient()
    assert checkpoint_blocks(vae) > 0
    assert torch.equal(gradient(), plain)


def test_windows_tells_its_peak_in_another_way(monkeypatch):
    """It has no module `resource`."""
    told = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=1, peak_wset=2_000_000))
    monkeypatch.setattr(device.sys, "platform", "win32")
    monkeypatch.setattr(device.psutil, "Process", lambda: told)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory_bytes("cpu") == 2_000_000
