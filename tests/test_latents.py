"""Latents that are known beforehand, and latents of several kinds: what the walk, the scorer and a run make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from toy_runs import metrics, toy_recipe
from toys import Stillness, ToyDenoiser, ToyModel, Warmth
from vader.algorithms.reward_gradient import RewardGradient, RewardGradientSettings
from vader.engine.batch import Batch
from vader.engine.build import build_engine
from vader.errors import UserError
from vader.networks.adapter import add_adapters, parameters_of
from vader.nouns import Audio, Clip, Condition, Known, Prompt, VideoSize, as_prompts, map_latents
from vader.plugins import Part
from vader.randomness import generator
from vader.rewards import AllFrames, FrameReward, Reward
from vader.rewards.base import RewardMix
from vader.sampling.noise import Noise
from vader.sampling.policies import POLICIES, load_policy
from vader.sampling.videos import make_sampler, sample_videos, solver_of
from vader.sampling.walk import Walk
from vader.scoring.choice import evaluation_groups
from vader.scoring.scorer import Scorer
from vader.tools.check import check_model, check_reward
from vader.training.trainer import train

STEPS, SIZE = 4, VideoSize(frames=4, height=8, width=8)
PROMPTS = as_prompts(["red", "blue"])


@dataclass(frozen=True)
class Float64Noise(Noise):
    def draw(self, use: str):
        return map_latents(Tensor.double, super().draw(use))


def walk_of(model: ToyModel, eta: float = 0.0, scale: float = 3.0) -> Walk:
    """In float64, the adapters away from zero."""
    add_adapters(model.denoisers, model.lora_targets, rank=2)
    draw = torch.Generator().manual_seed(3)
    for parameter in parameters_of(model.denoisers):
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    sampler = make_sampler(model, SIZE, STEPS, scale, solver_of(model, eta=eta))
    noise = Float64Noise(model.noise_shape(SIZE), 0, "train", 1, (0, 1))
    return Walk(sampler, model.encode(PROMPTS, SIZE), noise)


def by_hand(walk: Walk, reward, after=lambda latents: latents) -> Tensor:
    """The gradient of a reward of final latents: every step written out, one graph through all of it."""
    model, schedule, solver = walk.sampler.model, walk.sampler.schedule, walk.sampler.solver
    latents, condition = after(walk.noise.draw("start")), walk.condition
    for here, there in zip(schedule.starts, schedule.ends, strict=True):
        time = torch.tensor(here.time, dtype=torch.float64)
        cond, uncond = (model.denoise(latents, time, told) for told in (condition.cond, condition.uncond))
        guided = map_latents(lambda c, u: u + 3.0 * (c - u), cond, uncond)
        latents = after(map_latents(lambda x, e, at=(here, there): solver.step(x, e, *at).next, latents, guided))
    return flat_gradient(reward(latents).sum(), parameters_of(model.denoisers))


def flat_gradient(value: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(value, leaves)])


def pulled(walk: Walk, mix: RewardMix) -> Tensor:
    """The gradient of the mix in all adapters' weights, by the program's own way: split backward."""
    model = walk.sampler.model
    (view,) = load_policy("full", {})(walk, torch.Generator())
    scorer, scale = Scorer(model, mix, SIZE), torch.ones(2, dtype=torch.float64)
    gradient, _ = scorer.pull(view.latents, PROMPTS, evaluation_groups(mix, SIZE, 2), scale)
    parts = map_latents(lambda x, grad: (x * grad).sum(), view.latents, gradient)
    total = parts if isinstance(parts, Tensor) else sum(parts.values())
    return -flat_gradient(total, parameters_of(model.denoisers))


# ---- known latents ----


class Continued(ToyModel):
    """Goes on from a first frame that is given: its latents are known."""

    mask = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 4, 1, 1)

    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        condition = super().encode(prompts, size, images)
        given = [torch.randn(self.noise_shape(size), generator=generator(0, prompt.text)) for prompt in prompts]
        known = torch.stack(given).to(self.vae.weight)
        return Condition(condition.cond, condition.uncond, Known(known, self.mask))


class ContinuedByFlag(Continued):
    mask = torch.tensor([True, False, False, False]).view(1, 1, 4, 1, 1)


@pytest.mark.parametrize("model", [Continued, ContinuedByFlag])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@torch.no_grad()
def test_what_is_known_stands_at_every_place(model, eta):
    walk = walk_of(model(torch.float64), eta)
    known = walk.condition.known.latents[:, :, 0]
    places = walk.path()
    assert len(places) == STEPS + 1
    for place in places:
        assert torch.equal(place.latents[:, :, 0], known)
    for place in places[1:]:
        for found in (place.clean, place.mean):  # so that it counts nothing in the likelihood of a step
            assert torch.equal(found[:, :, 0], known)
    assert torch.equal(walk.renoised(places[-1].latents, 2, walk.noise.draw("again")).latents[:, :, 0], known)
    assert not torch.allclose(places[-1].latents[:, :, 1], walk.condition.known.latents[:, :, 1], atol=0.1)


def test_the_gradient_is_that_of_a_chain_in_which_it_is_put_into_place_by_hand():
    walk = walk_of(Continued(torch.float64))
    model, known = walk.sampler.model, walk.condition.known.latents
    mix = RewardMix({"warmth": Warmth(), "still": Stillness()}, {"warmth": 1.0, "still": 0.5})

    def put(latents: Tensor) -> Tensor:
        return torch.cat([known[:, :, :1], latents[:, :, 1:]], dim=2)

    def reward(latents: Tensor) -> Tensor:
        return mix(model.decode(latents), PROMPTS)

    torch.testing.assert_close(pulled(walk, mix), by_hand(walk, reward, put), rtol=1e-10, atol=1e-14)
    free = by_hand(walk, reward)
    assert not torch.allclose(pulled(walk, mix), free, rtol=1e-2)


def test_no_gradient_flows_into_what_is_known():
    known = Known(torch.randn(2, 4, 4, 2, 2).requires_grad_(), Continued.mask)
    latents = torch.randn(2, 4, 4, 2, 2, requires_grad=True)
    known.keep(latents).square().sum().backward()
    assert known.latents.grad is None
    assert not latents.grad[:, :, 0].any()
    torch.testing.assert_close(latents.grad[:, :, 1:], 2 * latents.detach()[:, :, 1:])


def test_some_of_the_videos_keep_what_is_their_own():
    condition = Continued().encode(as_prompts(["a", "b", "c"]), SIZE)
    latents = torch.zeros(2, 4, 4, 2, 2)
    for rows in (slice(1, 3), [1, 2]):
        assert torch.equal(condition[rows].known.keep(latents)[:, :, 0], condition.known.latents[1:, :, 0])
    each = Known(condition.known.latents, Continued.mask.expand(3, -1, -1, -1, -1))
    assert torch.equal(each[2:].keep(latents[:1])[:, :, 0], condition.known.latents[2:, :, 0])


class Watched(FrameReward):
    """Keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def score_frames(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        self.seen.append(images.detach().clone())
        return images.mean(dim=(1, 2, 3))


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_under_every_policy_the_reward_sees_what_is_known(policy, tmp_path):
    """Where it is shown a clean estimate, too."""
    options = {"steps": [1, 3]} if policy == "steps" else {"k": 2} if policy == "bridge" else {}
    recipe = toy_recipe(
        "model.family=test_latents:Continued", "rewards=[{name: test_latents:Watched, sees: [0]}]", "train.batch=2"
    )
    engine = build_engine(recipe, tmp_path)
    settings = RewardGradientSettings(policy=Part.model_validate({"name": policy, **options}))
    batch = Batch(1, tuple(PROMPTS), (0, 1), 2)
    RewardGradient(settings, recipe).step(engine, batch)
    (watched,) = engine.reward.rewards.values()
    given = engine.model.encode(PROMPTS, SIZE).known.latents
    shown = torch.cat(watched.seen[-2:] if len(watched.seen[-1]) == 1 else watched.seen[-1:])
    torch.testing.assert_close(shown, engine.model.decode(given)[:, 0], atol=1e-5, rtol=0)


# ---- latents by name ----


class TalkingDenoiser(nn.Module):
    """Denoises pictures and sound, each told something of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = ToyDenoiser()
        self.heard = nn.Linear(2, 6)
        self.sound = nn.Linear(2 + 4 + 6 + 1, 2)

    def forward(self, latents: dict[str, Tensor], time: Tensor, text: Tensor) -> dict[str, Tensor]:
        video, audio = latents["video"], latents["audio"].movedim(1, -1)  # [B, 4, F, h, w], [B, L, 2]
        shown = torch.cat([video.mean(dim=(2, 3, 4)), text, time.expand(len(text), 1) / 1000], dim=1)
        told = torch.cat([audio, shown[:, None].expand(-1, audio.shape[1], -1)], dim=2)
        picture = self.picture(video, time, text + self.heard(audio.mean(dim=1)))
        return {"video": picture, "audio": torch.tanh(self.sound(told)).movedim(-1, 1)}


class TalkingModel(ToyModel):
    """Latents `[B, 4, F, H / 4, W / 4]` of pictures and `[B, 2, 2 F]` of sound, of which each makes four samples."""

    family = "talking"
    lora_targets = ("picture.to_q", "picture.to_out", "heard", "sound")

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype)
        self.denoisers = {"transformer": TalkingDenoiser().to(dtype).requires_grad_(False).eval()}
        self.vocoder = nn.ConvTranspose1d(2, 1, 4, stride=4).to(dtype).requires_grad_(False).eval()

    def networks(self) -> dict[str, nn.Module]:
        return {**super().networks(), "vocoder": self.vocoder}

    def noise_shape(self, size: VideoSize) -> dict[str, tuple[int, ...]]:
        return {"video": super().noise_shape(size), "audio": (2, 2 * size.frames)}

    def decode_unclamped(self, latents: dict[str, Tensor], frames: Tensor | None = None) -> Tensor:
        return super().decode_unclamped(latents["video"], frames)

    def decode_audio(self, latents: dict[str, Tensor]) -> Audio:
        return Audio(torch.tanh(self.vocoder(latents["audio"])), rate=64)


class Softness(Reward):
    """Quiet sound, above all where the picture is bright: its gradient goes to both."""

    needs = AllFrames(audio=True)

    def score(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        assert clip.audio is not None
        bright = clip.frames.mean(dim=(1, 2, 3, 4))
        return -clip.audio.samples.square().mean(dim=(1, 2)) * (1 + bright)


def test_it_keeps_the_contract():
    checks = check_model(TalkingModel(), SIZE, PROMPTS)
    assert not [check for check in checks if not check.passed]
    assert "sound in [-1, 1], with gradient" in {check.name for check in checks}


def test_the_gradient_of_a_reward_that_listens_is_the_hand_built_one():
    walk = walk_of(TalkingModel(torch.float64))
    model = walk.sampler.model
    mix = RewardMix({"warmth": Warmth(), "soft": Softness()}, {"warmth": 1.0, "soft": 2.0})

    def reward(latents: dict[str, Tensor]) -> Tensor:
        pixels = model.decode(latents)
        samples = torch.tanh(model.vocoder(latents["audio"]))
        quiet = -samples.square().mean(dim=(1, 2)) * (1 + pixels.mean(dim=(1, 2, 3, 4)))
        return Warmth()(pixels, PROMPTS) + 2.0 * quiet

    found = pulled(walk, mix)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, by_hand(walk, reward), rtol=1e-10, atol=1e-14)
    deaf = by_hand(walk, lambda latents: Warmth()(model.decode(latents), PROMPTS))
    assert not torch.allclose(found, deaf, rtol=1e-2)


def test_one_graph_and_mere_numbers_give_the_same_scores():
    walk = walk_of(TalkingModel(torch.float64))
    latents = walk.frozen(len(walk)).latents
    mix = RewardMix({"soft": Softness()}, {"soft": 1.0})
    scorer, groups = Scorer(walk.sampler.model, mix, SIZE), evaluation_groups(mix, SIZE, 2)
    one_graph = scorer.graph(latents, PROMPTS, groups, torch.ones(2, dtype=torch.float64))[1]
    clip = scorer.decode(latents)
    assert clip.audio.samples.shape == (2, 1, 32)
    for scored in (scorer.score(latents, PROMPTS, groups), scorer.score_clip(clip, PROMPTS)):
        torch.testing.assert_close(scored.total, one_graph.total)


def test_both_kinds_are_sampled_and_do_not_share_their_noise():
    model = TalkingModel()
    assert sample_videos(model, PROMPTS, SIZE, STEPS, 2.0).shape == (2, 4, 3, 8, 8)
    noise = Noise(model.noise_shape(SIZE), 0, "train", 1, (0,)).draw("start")
    assert not torch.equal(noise["video"].flatten()[:16], noise["audio"].flatten())


def test_a_run_trains_the_layers_that_make_sound(tmp_path):
    """One step with a reward that only listens; what is heard differs afterwards."""
    recipe = toy_recipe(
        "model.family=test_latents:TalkingModel", "rewards=[{name: test_latents:Softness}]", "train.steps=1",
        "evaluation.every=1", "train.checkpoint_every=1", "optimizer.lr=0.05",
    )  # fmt: skip
    train(recipe, runs=tmp_path)
    before, step, after = metrics(Path(tmp_path) / "toy")
    assert step["grad_norm"] > 0
    assert step["skipped"] == 0
    assert after["reward"] != before["reward"]


def test_a_reward_that_listens_to_a_silent_model_is_one_line():
    mix = RewardMix({"soft": Softness()}, {"soft": 1.0})
    walk = walk_of(ToyModel(torch.float64))
    with pytest.raises(UserError, match="models of ToyModel make no sound, so no reward or metric can listen"):
        pulled(walk, mix)


@pytest.mark.parametrize(
    "override",
    ["rewards=[{name: test_latents:Softness}]", "evaluation.metrics=[{name: test_latents:Softness}]"],
)
def test_who_listens_to_a_silent_model_is_told_before_it_is_loaded(tmp_path, monkeypatch, override):
    def load(cls, checkpoint, *, dtype):
        raise AssertionError("loaded")

    monkeypatch.setattr(ToyModel, "load", classmethod(load))
    with pytest.raises(UserError, match="models of ToyModel make no sound, so no reward or metric can listen"):
        train(toy_recipe(override), runs=tmp_path)


def test_a_reward_that_listens_is_checked_with_sound():
    class Quiet(Softness):
        def score(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
            return -clip.audio.samples.square().mean(dim=(1, 2))

    for reward in (Softness(), Quiet()):
        assert not [check for check in check_reward(reward.freeze()) if not check.passed]


# ---- several denoisers ----


class TwoExperts(ToyModel):
    """One for high noise, one for low."""

    boundary = 500.0

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype)
        names = ("transformer", "transformer_2")
        self.denoisers = {name: ToyDenoiser().to(dtype).requires_grad_(False).eval() for name in names}

    def expert(self, time: float) -> str:
        return "transformer" if time >= self.boundary else "transformer_2"

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return self.denoisers[self.expert(float(time))](latents, time, inputs["text"])


class OneExpertIdle(TwoExperts):
    """Its boundary is a share of the times, but times count to 1000."""

    boundary = 0.5


class UnknownExpert(TwoExperts):
    def expert(self, time: float) -> str:
        return "transformer" if time >= self.boundary else "transformer_3"


class FirstAlone(TwoExperts):
    """Says that there are two, and uses one."""

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return self.denoisers["transformer"](latents, time, inputs["text"])


def failures(model: TwoExperts) -> dict[str, str]:
    return {check.name: check.detail for check in check_model(model, SIZE) if not check.passed}


def test_two_experts_keep_the_contract():
    assert failures(TwoExperts()) == {}


def test_experts_that_are_not_as_they_say_are_named():
    named = failures(OneExpertIdle())["every denoiser has its times"]
    assert named == "'transformer_2' works at no time of a chain of 40 steps: expert() never names it"
    unknown = failures(UnknownExpert())["every denoiser has its times"]
    assert unknown == "expert() names 'transformer_3', but the denoisers are transformer, transformer_2"
    assert failures(FirstAlone()) == {"gradient reaches the adapter": "4 of 8 tensors of to_q, to_out"}
