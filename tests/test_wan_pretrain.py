"""The script that pretrains the tiny world's Wan: its parts, and a few steps of the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import T5EncoderModel

from vader.files.hub import tiny_weights
from vader.models import load_model, wan_vae
from vader.models.wan import TOKENS
from vader.pretrain import wan
from vader.pretrain.loop import Schedule, generator_for
from vader.pretrain.wan_vae import decode_clips, draw_clips, new_vae, set_normalisation

OPENSORA = tiny_weights("opensora")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """A folder after a few steps, and what is said of it."""
    folder = tmp_path_factory.mktemp("wan")
    short = Schedule(steps=2, lr=1e-3, warmup=1, cooldown=1)
    vae, denoiser = ((wan.Stage(1, 2, short), wan.Stage(most, 2, short)) for most in (wan.FRAMES, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_CACHE", str(folder / "cache"))
        patch.setattr(wan, "SAMPLING_STEPS", 2)
        quality = wan.build(folder / "wan", folder, OPENSORA, wan.Plan(vae, denoiser, pool=64, judged=2))
        yield folder / "wan", quality


@torch.no_grad()
def test_umt5_s_class_makes_what_t5_s_makes():
    encoder = T5EncoderModel.from_pretrained(OPENSORA / "text_encoder", dtype=torch.float32).eval()
    tokens, mask = torch.randint(48, (2, 37), generator=generator_for(0, 0)), torch.ones(2, 37)
    mask[1, 20:] = 0
    expected = encoder(tokens, mask).last_hidden_state
    assert torch.equal(wan.as_umt5(encoder)(tokens, mask).last_hidden_state[mask > 0], expected[mask > 0])


@torch.no_grad()
def test_a_short_text_is_attended_as_one_filled_up_with_zeros():
    torch.manual_seed(0)
    network = wan.new_transformer().eval()
    torch.nn.init.normal_(network.proj_out.weight)
    latents, text = torch.randn(2, wan.CHANNELS, 3, 4, 4), torch.randn(2, 9, wan.TEXT)
    text[0, 5:], text[1, 8:] = 0, 0
    full = torch.nn.functional.pad(text, (0, 0, 0, TOKENS - 9))
    expected = network(latents, torch.tensor([300.0, 900.0]), full, return_dict=False)[0]
    wan.shorten_text(network)
    found = network(latents, torch.tensor([300.0, 900.0]), text, return_dict=False)[0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_clips_are_encoded_normalised_and_decoded_as_the_class_does_it():
    torch.manual_seed(0)
    vae, (pixels, _) = new_vae().eval(), draw_clips(2, generator_for(0, 0))
    set_normalisation(vae, pixels)
    latents = wan_vae.encode(vae, pixels)
    assert latents.shape == (2, wan.CHANNELS, 3, 4, 4)
    channels = latents.movedim(1, 0).flatten(1)
    torch.testing.assert_close(channels.mean(dim=1), torch.zeros(wan.CHANNELS), atol=1e-4, rtol=0)
    torch.testing.assert_close(channels.std(dim=1), torch.ones(wan.CHANNELS), atol=1e-3, rtol=0)
    expected = vae.decode(vae.encode(pixels.movedim(2, 1) * 2 - 1).latent_dist.mode()).sample.movedim(1, 2)
    torch.testing.assert_close(decode_clips(vae, latents).clamp(0, 1), expected / 2 + 0.5, atol=1e-5, rtol=1e-4)


def test_the_first_frames_of_clips_are_those_of_whole_ones():
    whole, _ = draw_clips(3, generator_for(0, 1))
    first, _ = draw_clips(3, generator_for(0, 1), frames=1)
    assert torch.equal(first, whole[:, :1])
    assert not torch.equal(whole[:, 0], whole[:, -1])


@pytest.mark.parametrize("given", [False, True])
def test_flow_loss_of_a_perfect_network_is_zero(given):
    clean = torch.randn(6, 4, 3, 4, 4, generator=generator_for(0, 2))

    def perfect(noisy, time, text, return_dict):
        level = time.view(6, -1)[:, -1].view(-1, 1, 1, 1, 1) / 1000
        velocity = (noisy - clean) / level
        if given:  # a latent at time 0 has no velocity, and none counts
            assert (time[:, :4] == 0).all()
            assert (time[:, 4:] > 0).all()
            assert torch.equal(noisy[:, :, 0], clean[:, :, 0])
            velocity[:, :, 0] = 1e3
        return (velocity,)

    assert wan.flow_loss(perfect, clean, None, given, generator_for(0, 0)).item() < 1e-6


def test_a_few_steps_leave_a_folder_for_both_families(built):
    folder, quality = built
    assert {"psnr_db", "motion", "motion_pictures"} <= quality.keys()
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 7e6
    assert [load_model(family, str(folder)).index.expand for family in ("wan", "wan-i2v")] == [True, True]


def test_a_fresh_vae_lets_pictures_through():
    """What differs between pictures; by PyTorch's own weights it is a tenth of this or less."""
    torch.manual_seed(0)
    vae, (pixels, _) = new_vae().eval(), draw_clips(8, generator_for(0, 3), frames=1)
    with torch.no_grad():
        latents = wan_vae.encode(vae, pixels)
        shown = decode_clips(vae, latents)
    assert latents.std(dim=0).mean() > 0.1
    assert shown.std(dim=0).mean() > 0.1
