"""Resizing is that of torchvision and of the reference code, to the last bits, and differentiable."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from reward_factories import unit_range
from vader.errors import UserError
from vader.rewards.preprocess import CLIP_MEAN, CLIP_STD, RESIZERS, crop, normalize, pad, resizer, squash


@pytest.mark.parametrize("tail", ["", "_big"])
@pytest.mark.parametrize(
    ("resize", "expected"),
    [(squash, "clip_squash{}_every2"), (crop, "pickscore{}_every2"), (pad, "hps_official_aa1_every2{}")],
)
def test_parity(shared, resize, expected, tail):
    data = load_file(shared("parity/rewards/preprocess.safetensors"))
    images = unit_range(data[f"frames{tail}_m1_1"])
    target = data[expected.format(tail)]
    found = normalize(resize(images, 224), CLIP_MEAN, CLIP_STD)[: len(target), :, ::2, ::2]
    torch.testing.assert_close(found, target, atol=5e-6, rtol=0)


@pytest.mark.parametrize("resize", RESIZERS.values())
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (8, 8), (9, 31), (224, 13), (16, 9)])
def test_output_is_square_at_any_input(resize, shape):
    assert resize(torch.rand(2, 3, *shape), 8).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("resize", RESIZERS.values())
def test_images_of_the_right_size_are_untouched(resize):
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(resize(images, 8), images)


def test_crop_keeps_the_middle_and_pad_the_whole():
    images = torch.zeros(1, 3, 8, 16)
    images[..., :4], images[..., -4:] = 1, 1  # white ends, black middle
    assert crop(images, 8).abs().max() == 0
    padded = pad(images, 8)
    assert padded[..., :2, :].abs().max() == 0
    assert padded[..., 6:, :].abs().max() == 0
    assert padded[..., 2:6, 0].min() > 0.9


@pytest.mark.parametrize("resize", RESIZERS.values())
def test_gradient_is_exact(resize):
    images = torch.rand(1, 3, 6, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: normalize(resize(x, 4), CLIP_MEAN, CLIP_STD), images)


def test_normalize_centres_the_mean_colour():
    mean = torch.tensor(CLIP_MEAN)[None, :, None, None].expand(1, 3, 2, 2)
    assert normalize(mean, CLIP_MEAN, CLIP_STD).abs().max() == 0


def test_unknown_resizing():
    with pytest.raises(UserError, match="did you mean 'squash'"):
        resizer("squish")
