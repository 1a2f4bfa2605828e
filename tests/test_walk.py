"""The walk's moves, in float64, against steps written out by hand; all ways along the chain lead to the same places."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from toy_walks import FLOW, SIZE, ByHand, Float64Noise, cfg, gradient, make_model, make_walk, reward, scaled
from toys import DDIM, ToyModel
from vader.nouns import Condition, Known, map_latents
from vader.sampling import POLICIES, View, Walk, load_policy
from vader.sampling.walk import scale_gradient

SOLVERS = {"flow": (FLOW, {}), "ddim": (DDIM, {}), "ddim, eta": (DDIM, {"eta": 0.7}), "dpm": (DDIM, {"solver": "dpm"})}


@pytest.fixture(params=SOLVERS.values(), ids=SOLVERS)
def walk(request) -> Walk:
    config, options = request.param
    return make_walk(config, steps=6, **options)


# ---- one step ----


@pytest.mark.parametrize("config", [FLOW, DDIM], ids=["flow", "ddim"])
@pytest.mark.parametrize(("weight", "carry"), [(1.0, 1.0), (2.5, 1.0), (1.0, 0.0), (0.4, 0.3), (2.0, 0.5)])
def test_a_step_of_some_weight_and_carry(config, weight, carry):
    """It is G(v(G(x, carry)), weight): two of them in a row, so that the second's carry matters to the first."""
    walk = make_walk(config)
    by_hand = ByHand(walk)
    first = walk.step(walk.frozen(2), weight=weight)
    second = walk.step(first, weight=weight, carry=carry)
    x = walk.frozen(2).latents
    y = by_hand.moved(x, scaled(walk.predict(2, x), weight), 2, 3)
    z = by_hand.moved(y, scaled(walk.predict(3, scaled(y, carry)), weight), 3, 4)
    torch.testing.assert_close(second.latents, z, rtol=1e-12, atol=1e-14)
    found, expected = (gradient(walk, [View(latents)]) for latents in (second.latents, z))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-16)
    torch.testing.assert_close(second.clean, by_hand.clean(y, walk.predict(3, y), 3), rtol=1e-12, atol=1e-14)


def test_scaling_a_gradient_leaves_the_value():
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert scale_gradient(x, 1.0) is x
    assert not scale_gradient(x, 0.0).requires_grad
    (found,) = torch.autograd.grad(scale_gradient(x, 0.3).square().sum(), x)
    assert torch.equal(scale_gradient(x, 0.3), x)
    torch.testing.assert_close(found, 0.6 * x, rtol=1e-12, atol=0)


def test_a_step_without_gradient_has_no_graph_of_its_own(walk):
    at = walk.step(walk.frozen(2), grad=False)
    assert not at.latents.requires_grad
    after = walk.step(walk.step(walk.frozen(2)), grad=False)
    assert after.latents.requires_grad  # through the solver's linear part alone
    passed = walk.linear(3, walk.sampler.schedule.ends[3])[0]
    before = walk.step(walk.frozen(2)).latents.requires_grad_()
    moved = walk.step(replace(walk.step(walk.frozen(2)), latents=before, memory=None), grad=False)
    (slope,) = torch.autograd.grad(moved.latents.sum(), before)
    torch.testing.assert_close(slope, torch.full_like(slope, passed), rtol=1e-9, atol=1e-12)


def test_every_prediction_with_graph_is_told_and_surrounded():
    told, within = [], []

    class Around:
        def __enter__(self):
            within.append("in")

        def __exit__(self, *_):
            within.append("out")

    walk = replace(make_walk(steps=4), on_gradient=lambda _, i, x, v: told.append((i, v.shape)), gradient_step=Around)
    walk.to(4, walk.frozen(1), {1, 3})
    assert told == [(1, (2, 4, 4, 2, 2)), (3, (2, 4, 4, 2, 2))]
    assert within == ["in", "out"] * 2


# ---- several ----


def test_all_ways_along_the_chain_agree(walk):
    path = walk.path()
    assert [place.i for place in path] == list(range(7))
    assert torch.equal(path[0].latents, walk.start().latents)
    for end in range(7):
        assert torch.equal(walk.frozen(end).latents, path[end].latents)
    for start, end in ((0, 6), (2, 5), (3, 3)):
        at = walk.frozen(start)
        assert torch.equal(walk.to(end, at).latents, path[end].latents)
        assert torch.equal(walk.to(end, at, range(6)).latents, path[end].latents)  # a graph changes no number
        places = list(walk.places(at, end))
        assert [place.i for place in places] == list(range(start + 1, end + 1))
        for place in places:
            assert torch.equal(place.latents, path[place.i].latents)
            assert place.std == path[place.i].std
    at = walk.start()
    for i in range(6):
        at = walk.step(at)
        assert torch.equal(at.latents, path[i + 1].latents)
        assert torch.equal(at.clean, path[i + 1].clean)


def test_no_graph_before_the_first_active_step():
    walk, calls = make_walk(guidance=cfg(1.0)), []
    walk.sampler.model.denoiser.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    next(load_policy("last", {"k": 1})(walk, torch.Generator()))
    assert calls == [False] * 4 + [True]


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"steps", "refl", "drtune", "direct_align"}))
def test_sampling_is_the_same_with_and_without_gradient(walk, name):
    view = next(load_policy(name, {})(walk, torch.Generator().manual_seed(1)))
    assert torch.equal(view.latents, walk.frozen(6).latents)


# ---- levels and linear parts ----


def test_linear_parts_are_those_of_the_steps(walk):
    """The end as a function of one place, predictions held: its slope is the product of the steps' own."""
    for i in (0, 3, 5):
        x = walk.frozen(i).latents.requires_grad_()
        at = replace(walk.frozen(i), latents=x, memory=None)
        with torch.no_grad():
            predictions = [walk.predict(i, x)]
        after = walk.advance(at, predictions[0])
        (slope,) = torch.autograd.grad(after.mean.sum(), x)
        factor = walk.linear(i, walk.sampler.schedule.ends[i])[0]
        torch.testing.assert_close(slope, torch.full_like(slope, factor), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("config", [FLOW, DDIM], ids=["flow", "ddim"])
def test_reaches_are_slopes_of_the_end(config):
    walk = make_walk(config, steps=6)
    for i, expected in enumerate(walk.reaches()):
        at = walk.frozen(i)
        prediction = walk.predict(i, at.latents).detach().requires_grad_()
        end = walk.to(6, walk.advance(at, prediction))
        (slope,) = torch.autograd.grad(end.latents.sum(), prediction)
        torch.testing.assert_close(slope, torch.full_like(slope, expected), rtol=1e-9, atol=1e-12)


def test_renoised_latents_are_at_the_level(walk):
    clean, noise = torch.randn(2, 2, 4, 4, 2, 2, dtype=torch.float64)
    for i in range(6):
        level = walk.level(i)
        at = walk.renoised(clean, i, noise)
        assert at.i == i
        assert torch.equal(at.latents, level.alpha * clean + level.sigma * noise)
    assert walk.level(6) == walk.sampler.schedule.ends[-1]


# ---- latents that are known ----


def with_known(walk: Walk) -> tuple[Walk, Known]:
    """The first frame is given."""
    shape = walk.start().latents.shape
    mask = torch.zeros(shape, dtype=torch.float64)
    mask[:, :, 0] = 1
    known = Known(torch.randn(shape, dtype=torch.float64), mask)
    return replace(walk, condition=replace(walk.condition, known=known)), known


def test_what_is_known_is_in_place_wherever_a_policy_or_a_reward_looks(walk):
    walk, known = with_known(walk)
    for place in walk.path():
        assert torch.equal(place.latents[:, :, 0], known.latents[:, :, 0])
        if place.i:
            assert torch.equal(place.clean[:, :, 0], known.latents[:, :, 0])
            assert torch.equal(place.mean[:, :, 0], known.latents[:, :, 0])
    at = walk.renoised(walk.frozen(6).latents, 2, walk.noise.draw("start"))
    assert torch.equal(at.latents[:, :, 0], known.latents[:, :, 0])
    assert torch.equal(walk.leap(at, 4).latents[:, :, 0], known.latents[:, :, 0])


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"steps"}))
def test_every_policy_shows_what_is_known(walk, name):
    walk, known = with_known(walk)
    for view in load_policy(name, {})(walk, torch.Generator().manual_seed(2)):
        assert torch.equal(view.latents[:, :, 0], known.latents[:, :, 0])
        (slope,) = torch.autograd.grad(view.latents.sum(), view.latents, retain_graph=True)
        assert slope.shape == view.latents.shape
    found = gradient(walk, load_policy(name, {})(walk, torch.Generator().manual_seed(2)))
    assert found.abs().max() > 0


# ---- latents of several kinds ----


class Twins(ToyModel):
    """Video and sound: two latents under one denoiser, which do not see each other."""

    def noise_shape(self, size):
        return {"video": super().noise_shape(size), "audio": (4, 3, 1, 1)}

    def denoise(self, latents, time, inputs):
        return {name: self.denoiser(value, time, inputs["text"]) for name, value in latents.items()}


def test_a_walk_of_several_latents_is_that_of_each(walk):
    model = make_model(Twins)
    both = replace(
        walk,
        sampler=replace(walk.sampler, model=model),
        noise=Float64Noise(model.noise_shape(SIZE), 0, "train", 1, (0, 1)),
    )
    whole = both.frozen(6)
    assert {name: value.shape for name, value in whole.latents.items()} == {
        "video": (2, 4, 4, 2, 2),
        "audio": (2, 4, 3, 1, 1),
    }

    for name, shape in model.noise_shape(SIZE).items():
        alone = replace(both, sampler=replace(walk.sampler, model=make_model()), noise=OneOf(shape, 0, name, 1, (0, 1)))
        torch.testing.assert_close(whole.latents[name], alone.frozen(6).latents, rtol=1e-12, atol=1e-14)


class OneOf(Float64Noise):
    """The noise that one of several latents gets; its purpose is the latents' name."""

    def draw(self, use):
        return Float64Noise(self.shape, self.seed, "train", self.step, self.indices).draw(f"{use}/{self.purpose}")


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"steps"}))
def test_every_policy_walks_several_latents(walk, name):
    model = make_model(Twins)
    noise = Float64Noise(model.noise_shape(SIZE), 0, "train", 1, (0, 1))
    both = replace(walk, sampler=replace(walk.sampler, model=model), noise=noise)
    policy = partial(load_policy(name, {}), both)

    def of(latents: dict[str, Tensor]) -> Tensor:
        return reward(latents["video"]) + 0.5 * reward(latents["audio"])

    assert gradient(both, policy(torch.Generator().manual_seed(2)), of).abs().max() > 0


# ---- rows ----


def test_some_videos_of_a_condition():
    """Known latents go with their videos."""
    text = torch.arange(6.0).reshape(3, 2)
    known = Known({"a": torch.arange(3.0)[:, None]}, {"a": torch.ones(3, 1)})
    some = Condition({"text": text}, {"text": -text}, known)[1:]
    assert len(some) == 2
    assert torch.equal(some.cond["text"], text[1:])
    assert torch.equal(some.uncond["text"], -text[1:])
    assert some.known.latents["a"].tolist() == [[1.0], [2.0]]
    assert torch.equal(some.both()["text"], torch.cat([text[1:], -text[1:]]))
    kept = some.known.keep(map_latents(torch.zeros_like, some.known.latents))
    assert kept["a"].tolist() == [[1.0], [2.0]]
