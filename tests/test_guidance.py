"""Each strategy of guidance against its prediction written out by hand, in float64; one pass where one is enough."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from toy_runs import toy_recipe
from toy_walks import FLOW, TwoExperts, make_model, make_walk
from toys import ToyModel
from vader.engine.build import load_recipe_guidance
from vader.errors import UserError
from vader.networks.adapter import parameters_of
from vader.nouns import Prompt
from vader.prompts import prompt_set
from vader.sampling import Walk, load_guidance
from vader.sampling.guidance import Guidance, Passes
from vader.training.trainer import train


def branches(walk: Walk, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The conditional and the unconditional prediction, each by a pass of its own."""
    level, model = walk.start_of(i), walk.sampler.model
    time, scaled = torch.tensor(level.time, dtype=torch.float64), x * level.input_scale
    return model.denoise(scaled, time, walk.condition.cond), model.denoise(scaled, time, walk.condition.uncond)


def passes_of(walk: Walk, i: int) -> list[int]:
    """The batch sizes of the denoisers' passes in one prediction."""
    sizes: list[int] = []
    hooks = [
        denoiser.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
        for denoiser in walk.sampler.model.denoisers.values()
    ]
    walk.predict(i, walk.start().latents)
    for hook in hooks:
        hook.remove()
    return sizes


def guided(name: str, **options) -> Walk:
    return make_walk(FLOW, steps=4, guidance=load_guidance(name, options))


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("scale", [1.0, 3.0, 7.5])
def test_cfg(scale, batched):
    walk = guided("cfg", scale=scale)
    walk = replace(walk, sampler=replace(walk.sampler, batched=batched))
    x = walk.start().latents
    cond, uncond = branches(walk, 1, x)
    torch.testing.assert_close(walk.predict(1, x), uncond + scale * (cond - uncond), rtol=1e-12, atol=1e-14)
    assert passes_of(walk, 1) == ([2] if scale == 1 else [4] if batched else [2, 2])


def test_none():
    walk = guided("none")
    x = walk.start().latents
    assert torch.equal(walk.predict(1, x), branches(walk, 1, x)[0])
    assert passes_of(walk, 1) == [2]


def test_ramp_goes_from_1_at_the_first_frame_to_its_scale_at_the_last():
    walk = guided("ramp", scale=4.0)
    x = walk.start().latents
    cond, uncond = branches(walk, 1, x)
    for frame, scale in enumerate((1.0, 2.0, 3.0, 4.0)):
        expected = (uncond + scale * (cond - uncond))[:, :, frame]
        torch.testing.assert_close(walk.predict(1, x)[:, :, frame], expected, rtol=1e-12, atol=1e-14)
    assert passes_of(guided("ramp", scale=1.0), 1) == [2]


@pytest.mark.parametrize(
    ("start", "end", "inside"), [(0.0, 0.5, {0, 1}), (0.25, 1.0, {1, 2, 3}), (0.3, 0.6, {2}), (0.0, 1.0, {0, 1, 2, 3})]
)
def test_interval_guides_in_a_part_of_the_chain(start, end, inside):
    walk = guided("interval", scale=3.0, start=start, end=end)
    for i in range(4):
        x = walk.frozen(i).latents
        cond, uncond = branches(walk, i, x)
        scale = 3.0 if i in inside else 1.0
        torch.testing.assert_close(walk.predict(i, x), uncond + scale * (cond - uncond), rtol=1e-12, atol=1e-14)
        assert passes_of(walk, i) == ([4] if i in inside else [2])


def test_experts_have_scales_of_their_own():
    guidance = load_guidance("experts", {"scales": {"transformer": 4.0, "transformer_2": 2.5}})
    walk = make_walk(FLOW, steps=4, guidance=guidance, model=make_model(TwoExperts))
    names = [walk.sampler.model.expert(walk.start_of(i).time) for i in range(4)]
    assert set(names) == {"transformer", "transformer_2"}
    for i, name in enumerate(names):
        x = walk.frozen(i).latents
        cond, uncond = branches(walk, i, x)
        scale = {"transformer": 4.0, "transformer_2": 2.5}[name]
        torch.testing.assert_close(walk.predict(i, x), uncond + scale * (cond - uncond), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("scales", "complaint"),
    [
        ({"transformer": 4.0}, "guidance 'experts' has no scale for 'transformer_2'"),
        ({"transformer": 4.0, "transformer_2": 2.0, "transformer_3": 2.0}, "no denoiser 'transformer_3'"),
    ],
)
def test_experts_need_a_scale_for_each_before_anything_is_sampled(scales, complaint):
    guidance = load_guidance("experts", {"scales": scales})
    with pytest.raises(UserError, match=complaint):
        make_walk(FLOW, guidance=guidance, model=make_model(TwoExperts))


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("embedded", {"scale": 3.0}, "ToyModel was made for 'cfg': use that"),
        ("interval", {"scale": 3.0, "start": 0.41, "end": 0.42}, "none of 5 steps starts between 0.41 and 0.42"),
    ],
)
def test_a_strategy_that_would_do_nothing_is_refused_before_anything_is_sampled(name, options, complaint):
    with pytest.raises(UserError, match=complaint):
        make_walk(FLOW, guidance=load_guidance(name, options))


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["sampling.negative=grey", "sampling.guidance=1"], "'.*' has the negative prompt 'grey', but under this guid"),
        (["sampling.negative=grey", "sampling.guidance={name: none}"], "nothing is led away from"),
        (["prompts.test=test_guidance:negatives", "sampling.guidance=1"], "'two' has the negative prompt 'dull'"),
        (["sampling.guidance_detach_uncond=true", "sampling.guidance=1"], "sampling.guidance_detach_uncond is about"),
        (["sampling.guidance_batched=false", "sampling.guidance={name: none}"], "sampling.guidance_batched is about"),
    ],
)
def test_what_no_unconditional_branch_would_see_is_refused_before_the_model_is_loaded(tmp_path, overrides, complaint):
    with pytest.raises(UserError, match=complaint):
        train(toy_recipe("model.checkpoint=nowhere", *overrides), tmp_path)
    assert not list(tmp_path.iterdir())


@prompt_set
def negatives() -> list[Prompt]:
    return [Prompt("one"), Prompt("two", negative="dull")]


class Distilled(ToyModel):
    """Is told the scale."""

    guidance = "embedded"

    def denoise(self, latents, time, inputs):
        told = inputs["guidance"].to(latents).view(-1, 1, 1, 1, 1)
        return told * super().denoise(latents, time, inputs)


def test_embedded_is_told_the_scale_in_one_pass():
    guidance = load_guidance("embedded", {"scale": 6.0})
    walk = make_walk(FLOW, guidance=guidance, model=make_model(Distilled))
    plain = make_walk(FLOW, guidance=load_guidance("none", {}))
    x = walk.start().latents
    torch.testing.assert_close(walk.predict(1, x), 6.0 * plain.predict(1, x), rtol=1e-12, atol=1e-14)
    assert passes_of(walk, 1) == [2]


# ---- the unconditional branch without gradient ----


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("name", ["cfg", "ramp"])
def test_detach_uncond_stops_exactly_the_unconditional_branch(name, batched):
    walk = guided(name, scale=4.0)
    walk = replace(walk, sampler=replace(walk.sampler, detach_uncond=True, batched=batched))
    parameters = parameters_of(walk.sampler.model.denoisers)
    x = walk.start().latents.requires_grad_()
    cond, uncond = branches(walk, 1, x)
    scale = torch.linspace(1, 4, 4, dtype=torch.float64).view(1, 1, 4, 1, 1) if name == "ramp" else 4.0
    weights = torch.randn_like(cond)
    by_hand = uncond.detach() + scale * (cond - uncond.detach())
    expected = torch.autograd.grad((weights * by_hand).sum(), [x, *parameters])
    prediction = walk.predict(1, x)
    torch.testing.assert_close(prediction, by_hand, rtol=1e-12, atol=1e-14)
    found = torch.autograd.grad((weights * prediction).sum(), [x, *parameters])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)
    whole = replace(walk, sampler=replace(walk.sampler, detach_uncond=False))
    (free,) = torch.autograd.grad((weights * whole.predict(1, x)).sum(), x)
    assert not torch.allclose(free, expected[0], rtol=1e-3)


def test_without_gradient_the_branches_stay_in_one_batch():
    walk = guided("cfg", scale=4.0)
    walk = replace(walk, sampler=replace(walk.sampler, detach_uncond=True))
    with torch.no_grad():
        assert passes_of(walk, 1) == [4]
    assert passes_of(walk, 1) == [2, 2]


# ---- by name ----


class Halfway(Guidance):
    """One's own: the mean of both branches."""

    def __call__(self, passes: Passes) -> Tensor:
        cond, uncond = passes.both()
        return (cond + uncond) / 2


def test_one_s_own():
    walk = guided("test_guidance:Halfway")
    x = walk.start().latents
    torch.testing.assert_close(walk.predict(1, x), sum(branches(walk, 1, x)) / 2, rtol=1e-12, atol=1e-14)


def test_a_number_is_the_scale_of_the_family_s_strategy():
    number, named = toy_recipe("sampling.guidance=5"), toy_recipe("sampling.guidance={name: interval, scale: 5.0}")
    assert load_recipe_guidance(number) == load_guidance("cfg", {"scale": 5.0})
    assert load_recipe_guidance(named) == load_guidance("interval", {"scale": 5.0})
    svd = toy_recipe("model.family=svd", "sampling.guidance=3")
    assert load_recipe_guidance(svd) == load_guidance("ramp", {"scale": 3.0})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cgf", {"scale": 1.0}, "unknown guidance 'cgf': did you mean 'cfg'?"),
        ("cfg", {}, "guidance 'cfg' needs the option 'scale'"),
        ("cfg", {"scale": "high"}, "guidance 'cfg': scale is 'high'"),
        ("cfg", {"scale": 0.5}, "guidance 'cfg': scale is 0.5: input should be greater than or equal to 1"),
        ("cfg", {"scale": math.nan}, "guidance 'cfg': scale is nan: numbers must be finite"),
        ("experts", {"scales": {"transformer": math.inf}}, "scales is {'transformer': inf}: numbers must be finite"),
        ("interval", {"scale": 2.0, "start": 0.5, "end": 0.5}, "start 0.5 must be below end 0.5"),
        ("interval", {"scale": 2.0, "end": 1.5}, "both in [0, 1]"),
        ("toys:Warmth", {}, "guidance 'toys:Warmth' is not a Guidance"),
    ],
)
def test_mistakes_are_one_line(name, options, message):
    with pytest.raises(UserError) as error:
        load_guidance(name, options)
    assert message in str(error.value)
