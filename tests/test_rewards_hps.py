"""HPS equals the reference implementation and pairs every image with its own prompt."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from reward_factories import make_tiny_clip, unit_range
from vader.rewards.clip import ClipSimilarity, ImageTower, TextTower, from_open_clip
from vader.rewards.hps import HPS

PROMPTS = ["red", "a blue", "red and blue"]


@pytest.fixture
def folder(tmp_path):
    return str(make_tiny_clip(tmp_path / "clip"))


@pytest.fixture
def parity(shared):
    tensors = load_file(shared("parity/rewards/hps_tiny_open_clip.safetensors"))
    tensors |= load_file(shared("parity/rewards/hps_tiny_token_embedding_fp16.safetensors"))
    io = load_file(shared("parity/rewards/hps_tiny_io.safetensors"))
    model = from_open_clip({name: tensor.float() for name, tensor in tensors.items()}, head_widths=(16, 16))
    rows = {str(i): io["io.tokens"][i : i + 1] for i in range(3)}
    return ClipSimilarity(ImageTower(model, "squash"), TextTower(model, rows.__getitem__)).freeze(), list(rows), io


def test_scores_equal_the_reference(parity):
    reward, prompts, io = parity
    frames = unit_range(io["io.frames_m1_1"])[:, None]
    torch.testing.assert_close(reward(frames, prompts), io["io.frames_hps_score"], atol=1e-6, rtol=0)


def test_pixel_gradient_equals_the_reference(parity):
    reward, prompts, io = parity
    frames = io["io.frames_m1_1"].clone().requires_grad_()
    loss = (1 - reward(unit_range(frames)[:, None], prompts)).mean()
    (gradient,) = torch.autograd.grad(loss, frames)
    expected = io["io.frames_grad_loss_mean"]
    assert (gradient - expected).norm() < 1e-4 * expected.norm()


def test_every_image_meets_its_own_prompt(folder):
    reward = HPS(checkpoint=folder).freeze()
    frames = torch.rand(3, 2, 3, 16, 16)
    together = reward(frames, PROMPTS)
    alone = torch.cat([reward(frames[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)
    assert (reward(frames, PROMPTS[::-1]) - together)[[0, 2]].abs().min() > 1e-4


def test_pixel_gradient_agrees_with_finite_differences(folder):
    reward = HPS(checkpoint=folder).freeze().double()
    frames = torch.rand(3, 2, 3, 12, 20, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(reward(frames, PROMPTS).sum(), frames)
    direction = torch.randn_like(frames)
    with torch.no_grad():
        up, down = (reward(frames + sign * 1e-5 * direction, PROMPTS).sum() for sign in (1, -1))
    assert (up - down).item() / 2e-5 == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


def test_released_file_loads_with_a_tokenizer_beside_it(shared, folder, tmp_path):
    tensors = load_file(shared("parity/rewards/hps_tiny_open_clip.safetensors"))
    tensors |= load_file(shared("parity/rewards/hps_tiny_token_embedding_fp16.safetensors"))
    torch.save({"state_dict": tensors}, tmp_path / "HPS.pt")
    model = from_open_clip(tensors)  # heads of 64, as open_clip's usual towers have
    reward = HPS(checkpoint=str(tmp_path / "HPS.pt"), tokenizer=folder, resize="squash").freeze()
    expected = ClipSimilarity(ImageTower(model, "squash"), TextTower(model, reward.text.tokenize))
    frames = torch.rand(3, 1, 3, 28, 28)
    assert torch.equal(reward(frames, PROMPTS), expected(frames, PROMPTS))


def test_half_precision_is_close(folder):
    frames = torch.rand(3, 1, 3, 16, 16)
    exact = HPS(checkpoint=folder).freeze()(frames, PROMPTS)
    score = HPS(checkpoint=folder).freeze().to_precision(torch.bfloat16)(frames, PROMPTS)
    assert score.dtype == torch.float32
    assert (score - exact).abs().max() < 0.05


def test_everything_is_frozen_and_no_gradient_is_kept(folder):
    reward = HPS(checkpoint=folder).freeze()
    reward(torch.rand(3, 1, 3, 16, 16, requires_grad=True), PROMPTS).sum().backward()
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in reward.parameters())
    assert not any(module.training for module in reward.modules())
