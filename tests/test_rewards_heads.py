"""Heads on CLIP's image feature: the released layouts are read for what they are; weather and compression."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from reward_factories import FEATURES, make_tiny_clip, parity_vision_folder, unit_range
from vader.errors import UserError
from vader.rewards.compression import Compression
from vader.rewards.heads import linear_stack
from vader.rewards.weather import Weather

AFFINE, RELU = (0, 2, 4, 6, 7), (0, 3, 6, 9)  # where linear layers stand in the released stacks
WIDTHS = {AFFINE: (1024, 128, 64, 16, 1), RELU: (512, 128, 32, 1)}


def head_tensors(numbers, features=FEATURES, shrink=4, gain=1.0):
    """Random tensors under the released names, `shrink` times narrower than the release."""
    generator = torch.Generator().manual_seed(3)
    widths = (features, *(max(1, width // shrink) for width in WIDTHS[numbers]))
    tensors = {}
    for number, (inputs, outputs) in zip(numbers, pairwise(widths), strict=True):
        tensors[f"layers.{number}.weight"] = gain * torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        tensors[f"layers.{number}.bias"] = gain * torch.randn(outputs, generator=generator)
    return tensors


def released_class(numbers, widths, features, last=()):
    """The stack as its authors' code has it, dropouts and all."""
    between = (nn.Dropout(0.2),) if numbers is AFFINE else (nn.ReLU(), nn.Dropout(0.2))
    stack = []
    for i, (inputs, outputs) in enumerate(pairwise((features, *widths))):
        stack += [nn.Linear(inputs, outputs), *(between if len(stack) < numbers[-2] or numbers is RELU else ())]
        assert not i or isinstance(stack[numbers[i]], nn.Linear)
    model = nn.Module()
    model.layers = nn.Sequential(*stack[: numbers[-1] + 1], *last)
    return model.eval()


@pytest.fixture
def clip_folder(tmp_path):
    return str(make_tiny_clip(tmp_path / "clip"))


@pytest.fixture
def weather(clip_folder, tmp_path):
    torch.save(head_tensors(AFFINE), tmp_path / "rainy_reward.pt")
    return lambda **more: Weather(str(tmp_path / "rainy_reward.pt"), clip_folder, **more).freeze()


@pytest.fixture
def compression(clip_folder, tmp_path):
    torch.save(head_tensors(RELU), tmp_path / "compression_reward.pt")
    return lambda **more: Compression(str(tmp_path / "compression_reward.pt"), clip_folder, **more).freeze()


# ---- files ----


@pytest.mark.parametrize(("numbers", "activation"), [(AFFINE, None), (RELU, nn.ReLU)], ids=["affine", "relu"])
def test_a_full_size_head_is_its_authors_stack(numbers, activation):
    tensors = head_tensors(numbers, features=768, shrink=1)
    expected = released_class(numbers, WIDTHS[numbers], 768, last=(nn.Sigmoid(),) if activation is None else ())
    expected.load_state_dict(tensors)  # strict: the file's names are the class's
    head = linear_stack(tensors, activation=activation)
    features = nn.functional.normalize(torch.randn(5, 768), dim=-1)
    found = head(features)
    torch.testing.assert_close(found.sigmoid() if activation is None else found, expected.layers(features))


@pytest.mark.parametrize(
    ("numbers", "activation", "message"),
    [(AFFINE, nn.ReLU, "has no activations .* has them"), (RELU, None, "has activations .* has none")],
)
def test_a_head_of_the_other_kind_is_an_error(numbers, activation, message):
    with pytest.raises(UserError, match=message):
        linear_stack(head_tensors(numbers), "head.pt", activation)


def test_a_head_of_another_clip_is_an_error(clip_folder, tmp_path):
    torch.save(head_tensors(RELU, features=32), tmp_path / "head.pt")
    with pytest.raises(UserError, match=r"takes 32 features and CLIP .* gives 24"):
        Compression(str(tmp_path / "head.pt"), clip_folder)


def test_the_head_must_be_given(clip_folder):
    with pytest.raises(UserError, match="no weight file at 'rainy'"):
        Weather("rainy", clip_folder)


# ---- numbers ----


def test_compression_is_minus_the_guessed_size(shared, tmp_path):
    folder = parity_vision_folder(shared("parity/rewards/clip_heads_e2e_vision_weights.safetensors"), tmp_path / "clip")
    io = load_file(shared("parity/rewards/clip_heads_e2e_io.safetensors"))
    tensors = head_tensors(RELU, features=768)
    torch.save(tensors, tmp_path / "head.pt")
    expected = released_class(RELU, (128, 32, 8, 1), 768)
    expected.load_state_dict(tensors)
    reward = Compression(str(tmp_path / "head.pt"), str(folder)).freeze()
    score = reward(unit_range(io["io.frames_m1_1"])[:, None], ["", ""])
    torch.testing.assert_close(-score, expected.layers(io["io.image_embeds"])[:, 0], atol=1e-5, rtol=0)


def test_weather_orders_images_alike_as_logit_and_as_amount(weather):
    frames = torch.rand(4, 1, 3, 20, 28)
    logit, amount = weather()(frames, [""] * 4), weather(output="amount")(frames, [""] * 4)
    assert logit.std() > 1e-3
    torch.testing.assert_close(amount, logit.sigmoid())
    assert weather(output="amount").sensible_range == (0.0, 1.0)


def test_the_amount_s_gradient_dies_where_the_logit_s_lives(weather):
    def gradient(reward, offset):
        reward.head[-1].bias.data += offset
        frames = torch.rand(1, 1, 3, 16, 16, requires_grad=True)
        return torch.autograd.grad(reward(frames, [""]).sum(), frames)[0].norm()

    assert gradient(weather(output="amount"), 40.0) == 0  # float32's sigmoid is 1 there
    assert gradient(weather(), 40.0) > 1e-4


@pytest.mark.parametrize("name", ["weather", "weather-amount", "compression"])
def test_pixel_gradient_agrees_with_finite_differences(request, name):
    build = request.getfixturevalue(name.partition("-")[0])
    reward = (build(output="amount") if name.endswith("amount") else build()).double()
    frames = torch.rand(2, 2, 3, 20, 28, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(reward(frames, ["", ""]).sum(), frames)
    assert (gradient != 0).all()
    direction = torch.randn_like(frames)
    with torch.no_grad():
        up, down = (reward(frames + sign * 1e-6 * direction, ["", ""]).sum() for sign in (1, -1))
    assert (up - down).item() / 2e-6 == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


@pytest.mark.parametrize("name", ["weather", "compression"])
def test_nothing_but_pixels_takes_a_gradient(request, name):
    reward = request.getfixturevalue(name)().to_precision(torch.bfloat16)
    frames = torch.rand(2, 1, 3, 16, 16, requires_grad=True)
    score = reward(frames, ["", ""])
    score.sum().backward()
    assert score.dtype == torch.float32
    assert frames.grad.isfinite().all()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in reward.parameters())
    assert not any(module.training for module in reward.modules())
