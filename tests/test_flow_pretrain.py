"""The scripts that pretrain the tiny world's Wan and LTX: what they share, and a few steps of each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vader.files.hub import tiny_weights
from vader.models import load_model
from vader.pretrain import flow, ltx, ltx_vae, wan, wan_vae
from vader.pretrain.loop import Schedule, generator_for
from vader.pretrain.video_vae import CHANNELS, FRAMES, LATENTS, Stage, draw_clips, set_normalisation
from vader.tinyworld.scenes import ALL_ATTRIBUTES, CAPTIONS, caption

SCRIPTS = {"wan": wan, "ltx": ltx}
LATENT = (CHANNELS, LATENTS, 8, 8)
CODECS = {"wan": wan_vae.new_codec, "ltx": ltx_vae.new_codec}
both = pytest.mark.parametrize("name", list(SCRIPTS))


# ---- the VAEs ----


@both
@torch.no_grad()
def test_clips_are_encoded_normalised_and_decoded_as_the_class_does_it(name):
    torch.manual_seed(0)
    codec, (pixels, _) = CODECS[name](), draw_clips(2, generator_for(0, 0))
    vae = codec.vae.eval()
    set_normalisation(codec, pixels)
    latents = codec.encode(vae, pixels)
    assert latents.shape == (2, *LATENT)
    channels = latents.movedim(1, 0).flatten(1)
    torch.testing.assert_close(channels.mean(dim=1), torch.zeros(CHANNELS), atol=1e-4, rtol=0)
    torch.testing.assert_close(channels.std(dim=1), torch.ones(CHANNELS), atol=1e-3, rtol=0)
    expected = vae.decode(vae.encode(pixels.movedim(2, 1) * 2 - 1).latent_dist.mode()).sample.movedim(1, 2)
    expected = (expected / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(codec.decode(vae, latents).clamp(0, 1), expected, atol=1e-5, rtol=1e-4)


def test_the_first_frames_of_clips_are_those_of_whole_ones():
    whole, _ = draw_clips(3, generator_for(0, 1))
    first, _ = draw_clips(3, generator_for(0, 1), frames=1)
    assert torch.equal(first, whole[:, :1])
    assert not torch.equal(whole[:, 0], whole[:, -1])


@both
def test_a_fresh_vae_lets_pictures_through(name):
    """Past what is the same in every picture; by PyTorch's own weights Wan's lets through a hundredth of this."""
    torch.manual_seed(0)
    codec, (pixels, _) = CODECS[name](), draw_clips(8, generator_for(0, 3), frames=1)
    with torch.no_grad():
        latents = codec.encode(codec.vae.eval(), pixels)
        shown = codec.decode(codec.vae, latents)
    assert latents.std(dim=0).mean() > 0.1
    assert shown.std(dim=0).mean() > 0.1


# ---- the denoisers ----


@pytest.mark.parametrize("given", [False, True])
def test_flow_loss_of_a_perfect_network_is_zero(given):
    clean = torch.randn(6, 4, 3, 4, 4, generator=generator_for(0, 2))

    def perfect(noisy, times):
        velocity = (noisy - clean) / (times[:, -1].view(-1, 1, 1, 1, 1) / 1000)
        assert (times[:, 1:] == times[:, -1:]).all()
        assert (times[:, 1:] > 0).all()
        if given:  # a latent at time 0 has no velocity, and none counts
            assert (times[:, 0] == 0).all()
            assert torch.equal(noisy[:, :, 0], clean[:, :, 0])
            velocity[:, :, 0] = 1e3
        else:
            assert (times[:, 0] == times[:, 1]).all()
        return velocity

    assert flow.flow_loss(perfect, clean, given, generator_for(0, 0)).item() < 1e-6


def test_batches_pair_clips_with_their_captions_or_with_none():
    picks = torch.arange(len(ALL_ATTRIBUTES))
    pool = flow.Pool(picks.view(-1, 1, 1, 1, 1).repeat(1, 1, LATENTS, 1, 1).float(), picks)
    clean, texts, given = pool.draw(Stage(1, 400, Schedule(steps=1, lr=1.0)), generator_for(0, 0))
    assert clean.shape == (400, 1, 1, 1, 1)
    assert not given
    said = [flow.CAPTIONS_AND_NONE[index] for index in texts]
    dropped = sum(text == "" for text in said) / len(said)
    assert 0.05 < dropped < 0.16
    true = [[caption(ALL_ATTRIBUTES[int(each)], t) for t in range(len(CAPTIONS))] for each in clean.flatten()]
    assert all(text in captions for text, captions in zip(said, true, strict=True) if text)
    stage = Stage(LATENTS, 2, Schedule(steps=1, lr=1.0))
    assert 0.15 < sum(pool.draw(stage, generator_for(1, step)).given for step in range(200)) / 200 < 0.35


# ---- the whole ----


@pytest.fixture(scope="module", params=["wan", pytest.param("ltx", marks=pytest.mark.rare)])
def built(request, tmp_path_factory) -> tuple[str, Path, dict[str, float]]:
    """A folder after a few steps, and what is said of it."""
    folder = tmp_path_factory.mktemp(request.param)
    short = Schedule(steps=2, lr=1e-3, warmup=1, cooldown=1)
    vae, denoiser = ((Stage(1, 2, short), Stage(most, 2, short)) for most in (FRAMES, LATENTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_CACHE", str(folder / "cache"))
        patch.setattr(flow, "SAMPLING_STEPS", 2)
        plan = flow.Plan(vae, denoiser, pool=64, judged=2)
        quality = SCRIPTS[request.param].build(folder / "out", folder, tiny_weights("opensora"), plan)
        yield request.param, folder / "out", quality


def test_a_few_steps_leave_a_folder_for_both_families(built):
    name, folder, quality = built
    assert {"psnr_db", "motion", "motion_pictures"} <= quality.keys()
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 7e6
    for family in (name, f"{name}-i2v"):
        assert load_model(family, str(folder)).noise_shape(flow.SIZE) == LATENT
