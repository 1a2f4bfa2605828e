"""Checks pass on what keeps its contract, and each fault fails the check that is about it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from factories import make_tiny_modelscope
from reward_factories import make_head, make_tiny_clip
from vader.models import load_model
from vader.models.modelscope import ModelScope
from vader.networks.adapter import has_adapter
from vader.nouns import VideoSize
from vader.rewards import FrameReward, Reward, load_reward
from vader.tools import check
from vader.tools.check import check_model, check_reward


def failed(checks) -> set[str]:
    assert all("\n" not in one.detail for one in checks)
    return {one.name for one in checks if not one.passed}


def detail(checks, name: str) -> str:
    return next(one.detail for one in checks if one.name == name)


class Good(FrameReward):
    def __init__(self):
        super().__init__()
        self.filter = nn.Conv2d(3, 4, 3)
        self.freeze()

    def score_frames(self, images, prompts):
        return self.filter(images).sin().mean(dim=(1, 2, 3)) + 0.1 * images.mean(dim=(1, 2, 3))


class Whole(Reward):
    def score(self, clip, prompts):
        return -clip.frames.diff(dim=1).square().mean(dim=(1, 2, 3, 4))


def test_good_rewards_pass():
    assert failed(check_reward(Good())) == set()
    checks = check_reward(Whole().freeze())
    assert failed(checks) == set()
    assert "float64" in detail(checks, "gradient agrees with finite differences")


@pytest.mark.parametrize("name", ["aesthetic", "hps"])
def test_built_in_rewards_pass(name, tmp_path):
    options = {"checkpoint": str(make_tiny_clip(tmp_path / "clip"))}
    if name == "aesthetic":
        options["head"] = str(make_head(tmp_path / "head.safetensors"))
    assert failed(check_reward(load_reward(name, **options), prompts=["red", "blue", "a"])) == set()


class Wide(Good):
    def score(self, clip, prompts):
        return super().score(clip, prompts)[:, None]


class Endless(Good):
    def score_frames(self, images, prompts):
        return super().score_frames(images, prompts) / 0


class Random(Good):
    def score_frames(self, images, prompts):
        return super().score_frames(images, prompts) + 0.01 * torch.rand(len(images))


class Relative(Good):
    """Scores each video against the others of its batch."""

    def score(self, clip, prompts):
        score = super().score(clip, prompts)
        return score - 0.9 * score.mean()


class Jumpy(Good):
    """Calls itself a frame reward, but compares frames."""

    def score(self, clip, prompts):
        return super().score(clip, prompts) + (clip.frames - clip.frames.mean(dim=1, keepdim=True)).abs().mean(
            dim=(1, 2, 3, 4)
        )


class Cut(Good):
    def score_frames(self, images, prompts):
        return super().score_frames(images.detach(), prompts) + 0 * images.sum(dim=(1, 2, 3))


class HalfCut(Good):
    """A part of the gradient is lost on the way."""

    def score_frames(self, images, prompts):
        return super().score_frames(images.detach(), prompts) + super().score_frames(images, prompts)


class Failing(Good):
    def score_frames(self, images, prompts):
        raise RuntimeError("no labels here\nsecond line")


RAISED = Failing.score_frames.__code__.co_firstlineno + 1


class InFloat32(Good):
    def score_frames(self, images, prompts):
        return super().score_frames(images.float(), prompts)


GRADIENT = "gradient agrees with finite differences"


@pytest.mark.parametrize(
    ("reward", "name"),
    [
        (Wide(), "one finite number a video"),
        (Endless(), "one finite number a video"),
        (Random(), "the same again"),
        (Relative(), "videos don't mix"),
        (Jumpy(), "frames don't mix"),
        (Cut(), "gradient reaches the pixels"),
        (HalfCut(), GRADIENT),
        (Good().train(), "weights are frozen, in eval mode"),
        (Good().requires_grad_(True), "weights are frozen, in eval mode"),
    ],
)
def test_each_fault_of_a_reward_is_found(reward, name):
    assert name in failed(check_reward(reward))


def test_a_half_lost_gradient_fails_that_check_alone():
    assert failed(check_reward(HalfCut())) == {GRADIENT}


def test_an_error_is_a_failed_check_with_its_first_line():
    checks = check_reward(Failing())
    assert failed(checks) == {one.name for one in checks} - {"weights are frozen, in eval mode"}
    assert detail(checks, "the same again") == f"RuntimeError: no labels here (test_check.py, line {RAISED})"


class Float32Within(Good):
    """Gives back what it was given, but drops to float32 on the way, as many an RMS norm does."""

    def score_frames(self, images, prompts):
        return self.filter(images).float().sin().mean(dim=(1, 2, 3)).to(images.dtype) + images.mean(dim=(1, 2, 3))


def test_float32_on_the_way_is_not_taken_for_a_wrong_gradient():
    checks = check_reward(Float32Within())
    assert failed(checks) == set()
    assert "in float32" in detail(checks, "gradient agrees with finite differences")


def test_float32_will_do_where_a_reward_computes_in_nothing_else():
    checks = check_reward(InFloat32())
    assert failed(checks) == set()
    assert "float32" in detail(checks, GRADIENT)


class OneNumber(Good):
    def score_frames(self, images, prompts):
        return images.mean()


class Nothing(Good):
    def score(self, clip, prompts):
        super().score(clip, prompts)


@pytest.mark.parametrize(
    ("reward", "found"),
    [
        (OneNumber(), "gave shape [] from `score_frames`: it should be [8], one number for each image"),
        (Nothing(), "gave None: let it return a tensor [2] from `score`, one number for each video"),
        (Wide(), "gave shape [2, 1] from `score`: it should be [2], one number for each video"),
    ],
)
def test_a_wrong_shape_is_said_in_words(reward, found):
    assert detail(check_reward(reward), "one finite number a video") == found


class InHalf(FrameReward):
    """Its weights are in half precision for good, and it casts to them by itself."""

    def __init__(self, dtype=torch.bfloat16):
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(8 * 30 * 30, 1)).to(dtype)
        self.dtype = dtype
        self.freeze()

    def score_frames(self, images, prompts):
        return self.network(images.to(self.dtype)).float()[:, 0]


class InAutocast(InHalf):
    def __init__(self):
        super().__init__(torch.float32)

    def score_frames(self, images, prompts):
        with torch.autocast("cpu", torch.bfloat16):
            return super().score_frames(images, prompts)


class HalfCutInHalf(InHalf):
    def score_frames(self, images, prompts):
        return super().score_frames(images.detach(), prompts) + super().score_frames(images, prompts)


@pytest.mark.parametrize("make", [InHalf, lambda: InHalf(torch.float16), InAutocast])
def test_a_reward_in_half_precision_passes(make):
    checks = check_reward(make())
    assert failed(checks) == set()
    assert detail(checks, GRADIENT).endswith("along the gradient, in half precision")


def test_a_half_lost_gradient_is_found_in_half_precision_too():
    assert failed(check_reward(HalfCutInHalf())) == {GRADIENT}


SIZE, PROMPTS = VideoSize(frames=3, height=16, width=16), ("red", "blue")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(make_tiny_modelscope(tmp_path_factory.mktemp("tiny") / "model"))


def test_good_model_passes_and_is_left_as_it_was(checkpoint):
    model = load_model("modelscope", checkpoint)
    checks = check_model(model, SIZE, PROMPTS)
    assert failed(checks) == set()
    assert "float64" in detail(checks, GRADIENT)
    assert not has_adapter(model.denoiser)


def test_half_precision_model_passes(checkpoint):
    assert failed(check_model(load_model("modelscope", checkpoint, dtype=torch.bfloat16), SIZE, PROMPTS)) == set()


class Mixing(ModelScope):
    def denoise(self, latents, time, inputs):
        prediction = super().denoise(latents, time, inputs)
        return prediction + 0.01 * prediction.mean(dim=0)


class Detached(ModelScope):
    def denoise(self, latents, time, inputs):
        return super().denoise(latents, time, inputs).detach()


class PartlyDetached(ModelScope):
    def denoise(self, latents, time, inputs):
        prediction = super().denoise(latents, time, inputs)
        return prediction + prediction.detach()


class Unbounded(ModelScope):
    def decode(self, latents, frames=None):
        return 2 * super().decode(latents, frames)


class OtherFrames(ModelScope):
    def decode_unclamped(self, latents, frames=None):
        return super().decode_unclamped(latents, None if frames is None else torch.zeros_like(frames))


class Flat(ModelScope):
    def denoise(self, latents, time, inputs):
        return super().denoise(latents, time, inputs).flatten(1)


class NoPrediction(ModelScope):
    """What it predicts does not count in the last step of a chain, at time 1."""

    def denoise(self, latents, time, inputs):
        return super().denoise(latents, time, inputs) * (time > 1)


class TooBright(ModelScope):
    def decode_unclamped(self, latents, frames=None):
        return super().decode_unclamped(latents, frames) + 9


class BlindDecoder(ModelScope):
    def decode_unclamped(self, latents, frames=None):
        return super().decode_unclamped(latents.detach(), frames) + 0 * latents.sum()


class OnePrompt(ModelScope):
    def encode(self, prompts, size, images=None):
        return super().encode(prompts[:1], size, images)


class GapInWindows(ModelScope):
    def windows(self, size):
        return [range(1), range(2, size.frames)]


@pytest.mark.parametrize(
    ("model_class", "name"),
    [
        (Mixing, "videos don't mix"),
        (Detached, "gradient reaches the adapter"),
        (PartlyDetached, GRADIENT),
        (Unbounded, "pixels in [0, 1]"),
        (OtherFrames, "chosen frames are those of the whole"),
        (Flat, "prediction is like the latents"),
        (NoPrediction, "the last step trains"),
        (TooBright, "the last step trains"),
        (BlindDecoder, "gradient reaches the latents"),
        (OnePrompt, "one condition a prompt"),
        (GapInWindows, "windows are parts of the whole"),
    ],
)
def test_each_fault_of_a_model_is_found(checkpoint, monkeypatch, model_class, name):
    """By the check that is about it, which is run alone: others may see it too."""
    run = check._run
    monkeypatch.setattr(check, "_run", lambda tests: run({name: tests[name]}))
    assert failed(check_model(model_class.load(checkpoint), SIZE, PROMPTS)) == {name}


def test_a_trainable_network_is_found(checkpoint):
    model = load_model("modelscope", checkpoint)
    model.vae.requires_grad_(True)
    assert failed(check_model(model, SIZE, PROMPTS)) == {"weights are frozen, in eval mode"}


def test_an_impossible_size_is_said_in_the_detail(checkpoint):
    checks = check_model(load_model("modelscope", checkpoint), VideoSize(3, 15, 16), PROMPTS)
    assert "multiples of 2" in detail(checks, "latents have a shape")
