"""Rewards before the decoder: closed forms whose gradient central differences confirm, mixed with rewards of pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from test_data_anchor import gradient_of
from toy_runs import metrics, toy_recipe
from toy_walks import FLOW, SIZE, make_walk
from toys import ToyModel, Warmth
from vader.errors import UserError
from vader.evaluation.metrics.reward import RewardMetric
from vader.networks.adapter import parameters_of
from vader.nouns import Clip, Condition, Prompt
from vader.rewards import LatentReward, RewardMix
from vader.rewards.shaping import Shaping
from vader.runs.folder import RunFolder
from vader.sampling import Noise, Walk, load_policy
from vader.sampling.chain import Chain
from vader.scoring.before_decoder import pull_latents, seen_in
from vader.scoring.choice import training_groups
from vader.scoring.scorer import Scorer
from vader.training.before import check_recipe
from vader.training.trainer import build_run, train

PROMPTS = (Prompt("red"), Prompt("blue"))
SCALE = torch.tensor([0.5, 2.0], dtype=torch.float64)


class Wave(LatentReward):
    """A closed form of all that it is given."""

    def score_latents(self, latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
        phase = (time / 1000 + condition.cond["text"].sum(dim=1)).view(-1, 1, 1, 1, 1)
        return (latents + phase.to(latents)).sin().mean(dim=(1, 2, 3, 4))


class Noisy(Wave):
    at = "noisy"


class Blind(Wave):
    """Without a gradient."""

    def score_latents(self, latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return super().score_latents(latents.detach(), time, condition)


class Crowd(Wave):
    """A mean over the batch is in every video's score."""

    def score_latents(self, latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return super().score_latents(latents - latents.mean(dim=0), time, condition)


class Undecodable(ToyModel):
    def decode_unclamped(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        raise AssertionError("a latent reward needs no pixels")


def view_of(policy: str, walk: Walk, **options: object):
    (view,) = load_policy(policy, options)(walk, torch.Generator().manual_seed(2))
    return type(view)(walk.kept(view.latents), view.weight, view.at, walk)


# ---- what they see ----


def test_they_see_the_clean_estimate_or_where_the_trained_step_arrived():
    walk = make_walk(FLOW, steps=6)
    view = view_of("refl", walk, window=(0.3, 0.9))
    seen, level = seen_in(view), walk.level(view.at.i)
    assert 0 < level.time < 1000
    assert seen["noisy"].time == level.time
    assert seen["clean"].time == walk.level(6).time == 0
    assert seen["noisy"].condition is walk.condition
    torch.testing.assert_close(seen["clean"].latents, view.latents)
    before = walk.frozen(view.at.i - 1)
    expected = walk.step(before, grad=False)
    torch.testing.assert_close(seen["noisy"].latents.detach(), expected.latents)
    torch.testing.assert_close(seen["clean"].latents.detach(), expected.clean)
    assert seen["noisy"].latents.requires_grad
    last = seen_in(view_of("last", walk))
    assert last["noisy"] is last["clean"]


def test_a_chain_tells_each_view_its_walk():
    walk = make_walk(steps=4)
    noise = Noise(walk.sampler.model.noise_shape(SIZE), 0, "train", 1, (0, 1))
    sampler = type(walk.sampler)(ToyModel(), walk.sampler.solver, walk.sampler.schedule, walk.sampler.guidance)
    (view,) = Chain(sampler, PROMPTS, SIZE, noise).views(load_policy("refl", {}), torch.Generator().manual_seed(1))
    assert len(view.walk) == 4
    assert 0 < view.at.i <= 4


# ---- their gradient ----


@pytest.mark.parametrize("kind", [Wave, Noisy])
def test_the_gradient_at_the_adapter_agrees_with_central_differences(kind):
    """Of a step in the midst of the chain, without a decoder."""
    walk = make_walk(FLOW, steps=6)
    parameters = parameters_of(walk.sampler.model.denoisers)
    mix = RewardMix({"wave": kind()}, {"wave": -1.5})
    view = view_of("refl", walk, window=(0.3, 0.9))
    loss, parts = pull_latents(mix, seen_in(view), SCALE, normalise=False)
    found = torch.autograd.grad(loss, parameters)
    before = walk.frozen(view.at.i - 1)  # frozen: of the weights as they are

    def value() -> Tensor:
        with torch.no_grad():
            at = walk.step(before, grad=False)
            latents, time = (at.clean, 0.0) if kind is Wave else (at.latents, walk.level(at.i).time)
            scores = kind().score_latents(latents, torch.full((2,), time), walk.condition)
        torch.testing.assert_close(scores, parts["wave"], rtol=0, atol=1e-2)
        return 1.5 * (SCALE * scores).sum()

    direction = [torch.randn_like(parameter) for parameter in parameters]
    values = []
    for sign in (1, -1):
        for parameter, d in zip(parameters, direction, strict=True):
            parameter.data += sign * 1e-5 * d
        values.append(value())
        for parameter, d in zip(parameters, direction, strict=True):
            parameter.data -= sign * 1e-5 * d
    slope = sum((g * d).sum() for g, d in zip(found, direction, strict=True))
    assert slope.item() == pytest.approx(((values[0] - values[1]) / 2e-5).item(), rel=1e-6)


def test_normalise_and_hinge_are_as_for_other_rewards():
    walk = make_walk(FLOW, steps=6)
    view = view_of("refl", walk, window=(0.3, 0.9))
    sizes = []
    for weight in (1.0, 50.0):
        mix = RewardMix({"wave": Noisy()}, {"wave": weight})
        loss, parts = pull_latents(mix, seen_in(view), SCALE, normalise=True)
        (gradient,) = torch.autograd.grad(loss, view.at.latents, retain_graph=True)
        sizes.append(gradient.square().flatten(1).mean(dim=1).sqrt())
    torch.testing.assert_close(sizes[0], SCALE)
    torch.testing.assert_close(sizes[1], 50 * SCALE)
    between = parts["wave"].mean().item()
    mix = RewardMix({"wave": Noisy()}, {"wave": 1.0}, None, {"wave": Shaping(hinge=between)})
    (held,) = torch.autograd.grad(pull_latents(mix, seen_in(view), SCALE, False)[0], view.at.latents)
    assert ((held.flatten(1).abs().amax(dim=1) > 0) == (parts["wave"] < between)).all()


def test_no_pixel_is_decoded_for_them():
    mix = RewardMix({"wave": Wave()}, {"wave": 2.0})
    scorer = Scorer(Undecodable(torch.float64), mix, SIZE, 1)
    groups, latents = training_groups(mix, SIZE, 0, 1, range(2)), torch.randn(2, 4, 4, 2, 2, dtype=torch.float64)
    assert groups == []
    scored = scorer.score(latents, PROMPTS, groups)
    condition = scorer.model.encode(PROMPTS, SIZE)
    torch.testing.assert_close(scored.total, 2 * Wave().score_latents(latents, torch.zeros(2), condition))
    gradient, found = scorer.pull(latents, PROMPTS, groups, SCALE, scored.parts)
    assert gradient.abs().max() == 0
    torch.testing.assert_close(found.total, scored.total)
    assert found.clamped == 0


# ---- in runs ----


WAVE, NOISY = "{name: 'test_latent_rewards:Wave', weight: 2.0}", "{name: 'test_latent_rewards:Noisy', weight: -3.0}"
WARM = "{name: 'toys:Warmth', sees: 2}"
REFL = "algorithm.policy={name: refl, window: [0.2, 0.9]}"


@pytest.mark.parametrize("split", ["true", "false"])
def test_a_mixs_gradient_is_the_sum_of_its_parts(tmp_path, monkeypatch, split):
    def of(*rewards: str) -> Tensor:
        recipe = toy_recipe(f"rewards=[{', '.join(rewards)}]", REFL, f"algorithm.split_backward={split}")
        run = build_run(check_recipe(recipe), RunFolder(tmp_path / "toy"))
        generator = torch.Generator().manual_seed(5)
        for parameter in run.engine.parameters:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        return gradient_of(run, monkeypatch)[0]

    alone = [of(reward) for reward in (WARM, WAVE, NOISY)]
    torch.testing.assert_close(of(WARM, WAVE, NOISY), sum(alone), rtol=1e-3, atol=1e-6)
    assert all(one.abs().max() > 1e-5 for one in alone)


@pytest.mark.parametrize(
    ("rewards", "algorithm"),
    [
        (f"[{WARM}, {NOISY}]", "{name: reward_gradient, policy: {name: refl}, normalise: true}"),
        (f"[{WAVE}]", "{name: reward_gradient, policy: {name: last, k: 2}}"),
        (f"[{WAVE}, {WARM}]", "{name: ddpo}"),
    ],
    ids=["mixed", "alone", "ddpo"],
)
def test_runs_log_and_evaluate_them_as_any_reward(tmp_path, rewards, algorithm):
    short = ("train.steps=2", "evaluation.videos=2", "sampling.eta=1", "train.micro_batch=2")
    train(toy_recipe(f"rewards={rewards}", f"algorithm={algorithm}", *short), tmp_path)
    lines = metrics(tmp_path / "toy")
    weights = {"Wave": 2.0, "Noisy": -3.0, "Warmth": 1.0}
    for line in lines:
        total = sum(weights[name] * value for name, value in line["parts"].items())
        assert line["reward"] == pytest.approx(total, rel=1e-5)
        assert set(line["parts"]) <= set(weights)
        assert len(line["parts"]) == rewards.count("name")
    assert lines[1]["grad_norm"] > 0


def test_what_breaks_the_contract_is_told_before_the_run(tmp_path):
    def built(*overrides: str) -> str:
        with pytest.raises(UserError) as error:
            build_run(check_recipe(toy_recipe(*overrides)), RunFolder(tmp_path / "toy"))
        return str(error.value)

    def of(name: str, more: str = "") -> str:
        return f"rewards=[{{name: 'test_latent_rewards:{name}'{more}}}]"

    assert built(of("Blind")).startswith("reward 'Blind' gives scores without a gradient to the latents: stay in torch")
    assert built(of("Crowd")).startswith("reward 'Crowd' gives a video")
    assert "sees latents: its keys sees and robust are about pixels" in built(of("Wave", ", sees: 2"))
    assert "sees latents: its keys sees and robust are about pixels" in built(of("Wave", ", robust: 0.1"))
    assert "Wave sees latents" in built("evaluation.metrics=[{name: 'test_latent_rewards:Wave'}]")


def test_where_there_are_pixels_alone_they_say_so():
    frames = torch.rand(1, 4, 3, 8, 8)
    with pytest.raises(UserError, match=r"^Wave sees latents, and here are pixels"):
        Wave().score(Clip.whole(frames, 4), PROMPTS[:1])
    with pytest.raises(UserError, match=r"^Wave sees latents, and here are pixels"):
        RewardMetric("wave", Wave()).check(PROMPTS, SIZE)
    assert RewardMix({"a": Wave(), "b": Warmth()}, {"a": 1.0, "b": 1.0}).latent.keys() == {"a"}
