"""The scripts that pretrain the tiny world's Wan and LTX: what they share, and a few steps of each."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path

import pytest
import torch

from vader.errors import UserError
from vader.files.hub import tiny_weights
from vader.models import load_model
from vader.pretrain import flow, ltx, ltx_vae, wan, wan_vae
from vader.pretrain.loop import Schedule, fit, generator_for
from vader.pretrain.naming import NamingHead, silhouettes
from vader.pretrain.video_vae import CHANNELS, FRAMES, LATENTS, Stage, draw_clips, set_normalisation
from vader.tinyworld.scenes import ALL_ATTRIBUTES, CAPTIONS, caption, object_masks

SCRIPTS = {"wan": wan, "ltx": ltx}
LATENT = (CHANNELS, LATENTS, 8, 8)
CODECS = {"wan": wan_vae.new_codec, "ltx": ltx_vae.new_codec}
both = pytest.mark.parametrize("name", list(SCRIPTS))


# ---- the VAEs ----


@both
@pytest.mark.parametrize("frames", [1, FRAMES])
@torch.no_grad()
def test_clips_are_encoded_normalised_and_decoded_as_the_class_does_it(name, frames):
    torch.manual_seed(0)
    codec, (pixels, _) = CODECS[name](), draw_clips(2, generator_for(0, 0), frames)
    for parameter in codec.vae.parameters():  # biases and scales too are none that would hide
        parameter.add_(0.05 * torch.randn_like(parameter) * (parameter.dim() < 5))
    set_normalisation(codec, pixels)
    vae = type(codec.vae).from_config(codec.vae.config).eval()  # without the scripts' faster layers
    vae.load_state_dict(codec.vae.state_dict())
    latents = codec.encode(codec.vae.eval(), pixels)
    assert latents.shape == (2, CHANNELS, (frames + 3) // 4, 8, 8)
    channels = latents.movedim(1, 0).flatten(1)
    torch.testing.assert_close(channels.mean(dim=1), torch.zeros(CHANNELS), atol=1e-4, rtol=0)
    torch.testing.assert_close(channels.std(dim=1), torch.ones(CHANNELS), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents, codec.encode(vae, pixels), atol=1e-4, rtol=1e-4)
    expected = vae.decode(vae.encode(pixels.movedim(2, 1) * 2 - 1).latent_dist.mode()).sample.movedim(1, 2)
    expected = (expected / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(codec.decode(codec.vae, latents).clamp(0, 1), expected, atol=1e-5, rtol=1e-4)


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
    pool = flow.Pool(picks.view(-1, 1, 1, 1, 1).repeat(1, 1, LATENTS, 1, 1).float(), picks, picks[:, None])
    clean, texts, given, shapes, shown = pool.draw(Stage(1, 400, Schedule(steps=1, lr=1.0)), generator_for(0, 0))
    assert clean.shape == (400, 1, 1, 1, 1)
    assert not given
    assert torch.equal(shown, clean.flatten(1).long())
    assert shapes.tolist() == [ALL_ATTRIBUTES[int(each)].shape for each in shown]
    said = [flow.CAPTIONS_AND_NONE[index] for index in texts]
    dropped = sum(text == "" for text in said) / len(said)
    assert 0.05 < dropped < 0.16
    true = [[caption(ALL_ATTRIBUTES[int(each)], t) for t in range(len(CAPTIONS))] for each in clean.flatten()]
    assert all(text in captions for text, captions in zip(said, true, strict=True) if text)
    stage = Stage(LATENTS, 2, Schedule(steps=1, lr=1.0))
    assert 0.15 < sum(pool.draw(stage, generator_for(1, step)).given for step in range(200)) / 200 < 0.35


# ---- what hastens them ----


def test_a_token_s_pixels_are_those_of_its_place():
    seen = torch.zeros(1, 2, 32, 32, dtype=torch.bool)
    seen[0, 1, 9, 20] = True
    for side, token, cell in ((4, 16 + 1 * 4 + 2, 1 * 8 + 4), (8, 64 + 2 * 8 + 5, 1 * 4 + 0)):
        cells = NamingHead(torch.nn.Identity(), 3, side).by_token(seen)
        assert cells.nonzero().tolist() == [[0, token, cell]]


def test_naming_is_right_about_what_is_shown_alone():
    torch.manual_seed(0)
    layer = torch.nn.Identity()
    head = NamingHead(layer, 16 + 5, 8)
    head.read.weight.data.copy_(torch.eye(16 + 5))
    head.read.bias.data.zero_()
    scenes = draw_clips(6, generator_for(0, 5))[1]
    seen = silhouettes(scenes)
    assert torch.equal(seen[:, 0], object_masks(scenes, FRAMES, 32)[:, 0] > 0.5)
    assert torch.equal(seen[:, 2], object_masks(scenes, FRAMES, 32)[:, 8] > 0.5)
    there = head.by_token(seen)
    names = torch.nn.functional.one_hot(scenes.shape, 5)[:, None] * there.any(dim=-1, keepdim=True)
    right = 40 * torch.cat([2.0 * there - 1, names], dim=-1)
    layer(right)
    assert head.loss(seen, scenes.shape).item() < 1e-6
    layer(right)
    assert head.loss(seen, (scenes.shape + 1) % 5).item() == pytest.approx(0.1 * 40, rel=1e-3)
    layer(-right * (torch.arange(21) < 16))
    assert head.loss(seen, scenes.shape).item() == pytest.approx(0.5 * 40 + 0.1 * math.log(5), rel=1e-3)


def test_muon_moves_matrices_alike_in_all_directions(tmp_path):
    """Orthogonally, by about a fifth of the rate an entry, as AdamW would; a stopped training goes on with both."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(12, 24), torch.nn.Linear(24, 1))
    target, start = torch.randn(64, 12), copy.deepcopy(network)
    schedule = Schedule(steps=1, lr=1e-3, muon=1e-2, warmup=1, cooldown=1, weight_decay=0.0, autocast=False)

    def loss_of(model):
        return lambda generator: model(target + torch.randn(64, 12, generator=generator)).square().mean()

    fit(network, loss_of(network), schedule, 0, matrices=[network[0].weight])
    moved = (network[0].weight - start[0].weight) / (1e-2 * 0.2 * math.sqrt(24))
    gains = torch.linalg.svdvals(moved)
    assert 0.6 < gains[0].item() < 1.3  # of a gradient of rank one the other directions are noise
    assert (network[1].weight - start[1].weight).abs().max().item() == pytest.approx(1e-3, rel=1e-2)


@both
def test_without_muon_nothing_is_begun(name, tmp_path, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match=r"Muon, which torch has from 2\.9 on"):
        SCRIPTS[name].build(tmp_path / "out", tmp_path, tiny_weights("opensora"))
    assert not list(tmp_path.iterdir())


class Stopped(Exception):
    pass


def test_a_training_by_muon_that_was_stopped_goes_on(tmp_path):
    torch.manual_seed(0)
    start, seen = torch.nn.Linear(6, 6), torch.randn(32, 6)
    schedule = Schedule(steps=4, lr=1e-3, muon=1e-2, warmup=1, cooldown=2, autocast=False)

    def fitted(model, path, stop):
        calls = itertools.count()

        def loss(generator):
            if next(calls) == stop:
                raise Stopped
            return (model(seen) - torch.randn(32, 6, generator=generator)).square().mean()

        return fit(model, loss, schedule, 0, path, report_every=1, matrices=[model.weight])

    whole = fitted(copy.deepcopy(start), tmp_path / "whole.pt", None)
    with pytest.raises(Stopped):
        fitted(copy.deepcopy(start), tmp_path / "stopped.pt", 2)
    gone_on = fitted(copy.deepcopy(start), tmp_path / "stopped.pt", None)
    assert torch.equal(gone_on.weight, whole.weight)
    assert torch.equal(gone_on.bias, whole.bias)


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
