"""The steps before those with gradient: fewer of them, guidance in some, and adapters that are in the weights there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from toy_runs import toy_recipe
from toy_walks import FLOW, SIZE, make_model, make_walk
from toys import DDIM, ToyModel
from vader.engine.build import check_prefix
from vader.errors import UserError
from vader.networks.adapter import (
    adapter_merged,
    adapters_disabled,
    add_adapter,
    add_adapters,
    lora_layers,
    parameters_of,
)
from vader.networks.quantize import quantize_blocks
from vader.recipe import changed
from vader.sampling import Noise, Walk, load_guidance, load_policy
from vader.sampling.walk import EXACT, Prefix
from vader.solvers import Schedule
from vader.training.before import check_recipe

MERGED = {"rtol": 1e-5, "atol": 1e-5}  # float32 with adapters in the weights or beside them: other roundings
SOLVERS = {"flow": (FLOW, {}), "ddim": (DDIM, {}), "dpm": (DDIM, {"solver": "dpm"})}


@pytest.fixture(params=SOLVERS.values(), ids=SOLVERS)
def walk(request) -> Walk:
    config, options = request.param
    return make_walk(config, steps=9, **options)


# ---- fewer steps ----


@pytest.mark.parametrize(("every", "end", "visited"), [(2, 8, [2, 4, 6, 8]), (3, 8, [3, 6, 8]), (20, 5, [5])])
def test_a_prefix_of_fewer_steps_is_the_chain_of_these_levels(walk, every, end, visited):
    places = list(Prefix(every=every).places(walk, walk.start(), end))
    assert [place.i for place in places] == visited
    starts, ends = walk.sampler.schedule.starts, walk.sampler.schedule.ends
    levels = Schedule(
        tuple(starts[i] for i in [0, *visited[:-1]]),
        tuple(ends[i - 1] for i in visited),
        walk.sampler.schedule.init_scale,
    )
    coarse = replace(walk, sampler=replace(walk.sampler, schedule=levels))
    for place, there in zip(places, coarse.path()[1:], strict=True):
        assert torch.equal(place.latents, there.latents)
    assert torch.equal(replace(walk, prefix=Prefix(every=every)).frozen(end).latents, there.latents)


def test_the_steps_with_gradient_start_at_their_own_level(walk):
    """Whatever led there: the last step is the chain's own, from the latents that the prefix gave."""
    short = replace(walk, prefix=Prefix(every=4, guidance=(0.0, 0.5)))
    found = next(load_policy("last", {"k": 2})(short, torch.Generator())).latents
    expected = walk.to(9, short.frozen(7), {7, 8}).latents
    assert torch.equal(found, expected)
    assert not torch.allclose(found, walk.frozen(9).latents)


def test_no_switch_is_the_whole_way(walk):
    places = list(EXACT.places(walk, walk.start(), 9))
    assert all(map(torch.equal, (at.latents for at in places), (at.latents for at in walk.path()[1:])))


# ---- guidance in some ----


def test_guidance_between_two_shares_of_the_chain(walk):
    """As the strategy of that name has it for the whole chain."""
    interval = load_guidance("interval", {"scale": 3.0, "start": 0.3, "end": 0.7})
    found = list(Prefix(guidance=(0.3, 0.7)).places(walk, walk.start(), 9))
    expected = replace(walk, sampler=replace(walk.sampler, guidance=interval)).path()
    assert all(map(torch.equal, (at.latents for at in found), (at.latents for at in expected[1:])))
    assert not torch.allclose(found[-1].latents, walk.path()[-1].latents)


# ---- adapters in the weights ----


def single_walk() -> Walk:
    """A walk of the toy model in float32, with the adapters of the one in float64."""
    model = ToyModel()
    add_adapters(model.denoisers, model.lora_targets, rank=2)
    for parameter, trained in zip(*(parameters_of(one.denoisers) for one in (model, make_model())), strict=True):
        parameter.data = trained.data.float()
    return make_walk(steps=9, model=model, noise=Noise(model.noise_shape(SIZE), 0, "train", 1, (0, 1)))


def test_a_prefix_with_the_adapter_in_the_weights():
    """The numbers of the adapter beside them, and weights that are back to the last bit."""
    walk = single_walk()
    network = walk.sampler.model.denoiser
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    merged, beside = walk.frozen(9).latents, walk.path()[-1].latents
    torch.testing.assert_close(merged, beside, **MERGED)
    assert not torch.equal(merged, beside)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert [name for name, parameter in network.named_parameters() if parameter.requires_grad] == trained
    assert torch.equal(walk.path()[-1].latents, beside)


def test_weights_are_back_after_a_failure():
    network = single_walk().sampler.model.denoiser
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def fail() -> None:
        with adapter_merged(network):
            assert not all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(layer.disable_adapters for layer in lora_layers(network).values())


def test_half_precision_keeps_its_adapters_beside():
    layer = torch.nn.Sequential(torch.nn.Linear(4, 4)).to(torch.bfloat16)
    add_adapter(layer, ["0"], rank=2)
    lora_layers(layer)["0"].lora_B["default"].weight.data.normal_()
    x = torch.randn(3, 4, dtype=torch.bfloat16)
    expected, weight = layer(x), layer[0].get_base_layer().weight.clone()
    with adapter_merged(layer):
        assert torch.equal(layer[0].get_base_layer().weight, weight)
        assert torch.equal(layer(x), expected)


def test_quantised_weights_keep_their_adapters_beside():
    walk = single_walk()
    network = walk.sampler.model.denoiser
    assert quantize_blocks(nn.Sequential(nn.ModuleList([network]))) > 0
    found = walk.frozen(9).latents
    assert torch.equal(found, walk.path()[-1].latents)
    with adapters_disabled(walk.sampler.model.denoisers):
        assert not torch.allclose(found, walk.frozen(9).latents)


def test_the_base_model_samples_without_adapters():
    walk = single_walk()
    model = walk.sampler.model
    with adapters_disabled(model.denoisers):
        base = walk.frozen(9).latents
        assert torch.equal(base, walk.path()[-1].latents)
    assert not torch.allclose(base, walk.frozen(9).latents)


# ---- in a recipe ----


def test_a_prefix_that_has_no_effect_is_refused():
    recipe = toy_recipe()
    check_prefix(changed(recipe, {"sampling.prefix": {"every": 3, "guidance": [0.0, 0.5]}}), True)
    check_prefix(recipe, False)
    with pytest.raises(UserError, match=r"algorithm 'ddpo' has none: leave it out"):
        check_recipe(toy_recipe("sampling.prefix={every: 2}", "algorithm={name: ddpo}", "sampling.eta=1.0"))
    with pytest.raises(UserError, match=r"prefix.guidance is \[0.6, 0.5\]: its start must not be above its end"):
        check_prefix(changed(recipe, {"sampling.prefix.guidance": [0.6, 0.5]}), True)
    with pytest.raises(UserError, match=r"where there is guidance, and here is none: leave it out"):
        check_prefix(changed(recipe, {"sampling.prefix.guidance": [0.0, 0.5], "sampling.guidance": 1.0}), True)
