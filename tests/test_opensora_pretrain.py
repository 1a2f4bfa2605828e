"""The script that pretrains the tiny world's Open-Sora model: its parts, and a few steps of the whole."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL

from vader.files.hub import tiny_weights
from vader.pretrain import opensora
from vader.pretrain.loop import Schedule, generator_for
from vader.sampling.videos import solver_of


@pytest.fixture
def image_vae():
    return AutoencoderKL.from_pretrained(tiny_weights("modelscope") / "vae", torch_dtype=torch.float32)


@torch.no_grad()
def test_the_spatial_vae_is_the_image_vae_with_latents_of_unit_variance(image_vae):
    vae = opensora.new_vae(image_vae)
    pixels, _ = opensora.clips(4, generator_for(0, 0))
    images = vae.spatial_vae.moments(pixels)[0] * opensora.SPATIAL_FACTOR
    assert images.std().item() == pytest.approx(1.0, abs=0.15)
    frames = pixels.movedim(2, 1).flatten(0, 1)
    expected = image_vae.decode(image_vae.encode(frames).latent_dist.mean).sample
    torch.testing.assert_close(
        vae.spatial_vae.decode(images).movedim(2, 1).flatten(0, 1), expected, atol=1e-3, rtol=1e-3
    )
    opensora.set_normalisation(vae, pixels)
    latents = vae.encode(pixels, torch.zeros_like).movedim(1, 0).flatten(1)
    torch.testing.assert_close(latents.mean(dim=1), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(dim=1), torch.ones(4), atol=1e-3, rtol=0)


@torch.no_grad()
def test_flow_loss_of_a_perfect_network_is_zero():
    latents = torch.randn(6, 4, 5, 8, 8)

    def perfect(noisy, time, *told):
        level = (time / 1000).view(-1, 1, 1, 1, 1)
        return torch.cat([(latents - noisy) / level, torch.zeros_like(noisy)], dim=1)

    assert opensora.flow_loss(perfect, latents, None, None, generator_for(0, 0)).item() < 1e-6


def test_a_few_steps_leave_a_folder_that_loads_and_samples(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(opensora, "SAMPLING_STEPS", 2)
    short = Schedule(steps=2, lr=1e-3, warmup=1, cooldown=1)
    stages = opensora.Stage(1, 4, short), opensora.Stage(5, 4, short)
    plan = opensora.Plan(short, 2, short, *stages, pool=64, judged=2)
    image_vae = tiny_weights("modelscope") / "vae"
    quality = opensora.build(tmp_path / "opensora", tmp_path, image_vae, plan)
    assert {"psnr_db", "retrieval", "motion"} <= quality.keys()
    size = sum(file.stat().st_size for file in (tmp_path / "opensora").rglob("*"))
    assert size < 14e6
    solver = solver_of(opensora.OpenSora.load(str(tmp_path / "opensora")))
    times = [level.time for level in solver.schedule(4, opensora.SIZE).starts]
    assert times == [1000, 750, 500, 250]  # even, as it was trained
