"""The aesthetic reward equals the reference implementation, value and gradient, and reads the released files."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from reward_factories import make_head, make_tiny_clip, parity_vision_folder, unit_range
from vader.errors import UserError
from vader.rewards.aesthetic import Aesthetic
from vader.rewards.heads import linear_stack

HEAD = "parity/rewards/aesthetic_head.safetensors"


@pytest.fixture
def tiny(tmp_path):
    options = {"checkpoint": str(make_tiny_clip(tmp_path / "clip")), "head": str(make_head(tmp_path / "h.safetensors"))}
    return lambda **more: Aesthetic(**options, **more).freeze()


@pytest.fixture
def parity(shared, tmp_path):
    folder = parity_vision_folder(shared("parity/rewards/clip_heads_e2e_vision_weights.safetensors"), tmp_path / "clip")
    io = load_file(shared("parity/rewards/clip_heads_e2e_io.safetensors"))
    return lambda **more: Aesthetic(str(folder), str(shared(HEAD)), resize="squash", **more).freeze(), io


def test_head_equals_the_released_one(shared):
    tensors = load_file(shared(HEAD))
    head = linear_stack(tensors)
    torch.testing.assert_close(head(tensors["io.input"])[:, 0], tensors["io.output"], atol=1e-5, rtol=0)
    exact = head.double()(tensors["io.input"].double())[:, 0]
    torch.testing.assert_close(exact, tensors["io.output_f64"], atol=1e-9, rtol=0)
    affine = tensors["io.input"].double() @ tensors["collapsed.weight_f64"][0] + tensors["collapsed.bias_f64"]
    torch.testing.assert_close(exact, affine, atol=1e-9, rtol=0)


def test_scores_equal_the_reference(parity):
    build, io = parity
    images = unit_range(io["io.frames_m1_1"])
    torch.testing.assert_close(build()(images[:, None], ["", ""]), io["io.aesthetic_score"], atol=1e-5, rtol=0)
    loss = -build(target=10.0)(images[:, None], ["", ""]).mean()
    torch.testing.assert_close(loss[None], io["io.loss.aesthetic_target10_scale0.1"], atol=1e-6, rtol=0)


def test_pixel_gradient_equals_the_reference(parity):
    build, io = parity
    frames = io["io.frames_m1_1"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(-build(target=10.0)(unit_range(frames)[:, None], ["", ""]).mean(), frames)
    expected = io["io.grad.aesthetic_target10_scale0.1"]
    assert (gradient - expected).norm() < 1e-4 * expected.norm()


def test_frames_are_averaged_within_each_video(tiny):
    reward, frames = tiny(), torch.rand(2, 3, 3, 20, 28)
    each = reward.score_frames(frames.flatten(0, 1), [""] * 6).unflatten(0, (2, 3))
    assert each.std() > 0.01
    torch.testing.assert_close(reward(frames, ["", ""]), each.mean(dim=1))


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_pixel_gradient_agrees_with_finite_differences(tiny, resize):
    reward = tiny(resize=resize).double()
    frames = torch.rand(2, 2, 3, 20, 28, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(reward(frames, ["", ""]).sum(), frames)
    direction = torch.randn_like(frames)
    with torch.no_grad():
        up, down = (reward(frames + sign * 1e-5 * direction, ["", ""]).sum() for sign in (1, -1))
    assert (up - down).item() / 2e-5 == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


def test_target_rewards_closeness(tiny):
    frames = torch.rand(2, 1, 3, 16, 16)
    score = tiny()(frames, ["", ""])
    reward = tiny(target=10.0)
    torch.testing.assert_close(reward(frames, ["", ""]), -0.1 * (score - 10).abs())
    assert reward.sensible_range == pytest.approx((-0.9, 0.0))
    assert tiny().sensible_range == (1.0, 10.0)


def test_half_precision_is_close_and_keeps_float32_outside(tiny):
    frames = torch.rand(2, 1, 3, 16, 16, requires_grad=True)
    exact = tiny()(frames, ["", ""])
    reward = tiny().to_precision(torch.bfloat16)
    score = reward(frames, ["", ""])
    assert score.dtype == torch.float32
    assert reward.head[0].weight.dtype == torch.float32
    assert 0 < (score - exact).abs().max() < 0.1 * exact.abs().max()
    (gradient,) = torch.autograd.grad(score.sum(), frames)
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()


def test_released_pth_and_safetensors_heads_are_the_same(tiny, tmp_path):
    tensors = load_file(tmp_path / "h.safetensors")
    torch.save(tensors, tmp_path / "head.pth")
    frames = torch.rand(1, 1, 3, 16, 16)
    other = Aesthetic(str(tmp_path / "clip"), str(tmp_path / "head.pth")).freeze()
    assert torch.equal(other(frames, [""]), tiny()(frames, [""]))


def test_everything_is_frozen_and_in_eval_mode(tiny):
    reward = tiny()
    assert not any(parameter.requires_grad for parameter in reward.parameters())
    assert not any(module.training for module in reward.modules())
    assert not any("text" in name for name, _ in reward.named_parameters())


def test_a_head_of_another_clip_is_an_error(tmp_path):
    clip, head = make_tiny_clip(tmp_path / "clip"), make_head(tmp_path / "h.safetensors", features=32)
    with pytest.raises(UserError, match=r"takes 32 features and CLIP .* gives 24"):
        Aesthetic(str(clip), str(head))


@pytest.mark.parametrize(
    "tensors",
    [{}, {"layers.0.weight": torch.ones(2, 3), "layers.0.bias": torch.ones(2)}, {"weights.0": torch.ones(1)}],
)
def test_a_file_without_a_head_is_an_error(tensors):
    with pytest.raises(UserError, match="holds no predictor"):
        linear_stack(tensors)


def test_tiny_means_the_tiny_worlds_tower_and_head(monkeypatch, tmp_path):
    make_tiny_clip(tmp_path / "clip")
    make_head(tmp_path / "aesthetic_head.safetensors")
    monkeypatch.setattr("vader.files.hub.TINY_WEIGHTS", tmp_path)
    assert Aesthetic(checkpoint="tiny")(torch.rand(2, 1, 3, 16, 16), ["", ""]).shape == (2,)
