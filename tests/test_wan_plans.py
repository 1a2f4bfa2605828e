"""Wan's releases as the planner draws them: of the released sizes, and walked through without data."""

from __future__ import annotations

import pytest
import torch

from vader.networks.measure import count_parameters
from vader.nouns import VideoSize
from vader.planning.models import load_model_shape
from vader.planning.step import forecast
from vader.planning.wan import FROM_PICTURES, RELEASES
from vader.recipe import load_recipe

META = torch.device("meta")
BILLIONS = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": 1.419,
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": 14.288,
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": 5.000,
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": 14.288,
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": 16.395,
    "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers": 16.395,
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": 14.289,
    "FastVideo/FastWan2.1-T2V-1.3B-Diffusers": 1.419,
    "Skywork/SkyReels-V2-T2V-14B-540P-Diffusers": 14.288,
    "Skywork/SkyReels-V2-T2V-14B-720P-Diffusers": 14.288,
}
SHAPES = [("wan", name) for name in RELEASES] + [("wan-i2v", name) for name in FROM_PICTURES]


@pytest.mark.parametrize(("family", "checkpoint"), SHAPES)
def test_the_releases_have_their_sizes(family, checkpoint):
    model = load_model_shape(family, checkpoint, {}, torch.bfloat16, META)
    assert [round(count_parameters(network) / 1e9, 3) for network in model.denoisers.values()] == [
        BILLIONS[checkpoint]
    ] * len(model.denoisers)
    millions = count_parameters(model.vae) / 1e6
    assert round(millions, 1) == (704.7 if "TI2V-5B" in checkpoint else 126.9)
    assert len(model.denoisers) == (2 if "A14B" in checkpoint else 1)
    assert {model.denoiser.scale_shift_table.dtype, model.denoiser.rope.freqs_cos.dtype} == {torch.float32}
    assert model.denoiser.patch_embedding.weight.dtype == torch.bfloat16
    expected = (48, 21, 30, 52) if "TI2V-5B" in checkpoint else (16, 21, 60, 104)
    assert model.noise_shape(VideoSize(81, 480, 832)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "checkpoint"),
    [
        pytest.param("wan", "Wan-AI/Wan2.2-T2V-A14B-Diffusers", marks=pytest.mark.rare),
        pytest.param("wan-i2v", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", marks=pytest.mark.rare),
        pytest.param("wan-i2v", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", marks=pytest.mark.rare),
    ],
)
def test_a_step_is_walked_through_without_data(family, checkpoint):
    more = ["adapter.denoisers=[transformer_2]"] if "A14B" in checkpoint else []
    size = ["video.frames=5", "video.height=64", "video.width=64", "train.batch=1", "algorithm.policy.k=1"]
    recipe = load_recipe(
        "wan-1.3b-hps", [f"model.family={family}", f"model.checkpoint={checkpoint}", *size, *more, "sampling.steps=2"]
    )
    found = forecast(recipe)
    assert found.peak > sum(found.weights.values()) - found.weights["hps"]
