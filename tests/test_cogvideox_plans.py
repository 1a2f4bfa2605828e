"""CogVideoX's releases as the planner draws them: of the released sizes, and walked through without data."""

from __future__ import annotations

import pytest
import torch

from vader.networks.adapter import matching_layers
from vader.networks.measure import count_parameters
from vader.nouns import VideoSize
from vader.planning.cogvideox import FROM_PICTURES, RELEASES
from vader.planning.models import load_model_shape
from vader.planning.step import forecast
from vader.recipe import load_recipe

META = torch.device("meta")
BILLIONS = {
    "CogVideoX-2b": 1.694,
    "CogVideoX-5b": 5.570,
    "CogVideoX1.5-5B": 5.571,
    "CogVideoX-5b-I2V": 5.570,
    "CogVideoX1.5-5B-I2V": 5.571,
}
SHAPES = [
    (family, name)
    for family, releases in (("cogvideox", RELEASES), ("cogvideox-i2v", FROM_PICTURES))
    for name in releases
    if name.startswith("zai-org")
]
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")


@pytest.mark.parametrize(("family", "checkpoint"), SHAPES)
def test_the_releases_have_their_sizes(family, checkpoint):
    model, name = load_model_shape(family, checkpoint, {}, torch.bfloat16, META), checkpoint.split("/")[1]
    assert round(count_parameters(model.denoiser) / 1e9, 3) == pytest.approx(BILLIONS[name], abs=2e-3)
    assert round(count_parameters(model.vae) / 1e6, 1) == 215.6
    blocks = 30 if "2b" in name else 42
    assert len(matching_layers(model.denoiser, model.lora_targets)) == 4 * blocks
    assert len(matching_layers(model.denoiser, (*model.lora_targets, *FEED_FORWARD))) == 6 * blocks
    size = VideoSize(81, 768, 1360) if "1.5" in name else VideoSize(49, 480, 720)
    expected = (22, 16, 96, 170) if "1.5" in name else (13, 16, 60, 90)
    assert model.noise_shape(size) == expected


@pytest.mark.slow
def test_a_step_is_walked_through_without_data():
    """Of the release that has most of its own: pictures, the offset, tokens of two latents."""
    size = ["video.frames=9", "video.height=64", "video.width=64", "train.batch=1", "sampling.steps=2"]
    model = ["model.family=cogvideox-i2v", "model.checkpoint=zai-org/CogVideoX1.5-5B-I2V"]
    found = forecast(load_recipe("cogvideox-hps", [*model, *size]))
    assert found.peak > sum(found.weights.values()) - found.weights["hps"]
