"""Wan's causal VAE by windows: frames as in the whole decode, gradient where it belongs, recomputation to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vader.models.wan_vae import LAYERS, WindowDecoder, frame_window, recompute_layers, scaled
from vader.networks.recompute import Recomputed
from wan_factories import RESIDUAL_VAE, VAE, make_vae

VAES = {"2.1": VAE, "2.2": RESIDUAL_VAE}
LATENTS = 5
FRAMES = 4 * (LATENTS - 1) + 1


@pytest.fixture(params=VAES)
def vae(request):
    return make_vae(**VAES[request.param]).double().eval().requires_grad_(False)


@pytest.fixture
def latents():
    return torch.randn(2, 4, LATENTS, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def whole(vae, latents):
    """diffusers' own decode, in [0, 1] and clamped."""
    return vae.decode(scaled(vae, latents), return_dict=False)[0].movedim(2, 1) / 2 + 0.5


def chosen(*frames):
    return torch.tensor([frames])


def test_every_frame_is_in_the_window_of_its_latent():
    windows = [frame_window(latent, 4) for latent in range(LATENTS)]
    assert [len(window) for window in windows] == [1, 4, 4, 4, 4]
    assert [frame for window in windows for frame in window] == list(range(FRAMES))


@torch.no_grad()
def test_every_frame_alone_is_that_of_the_whole_decode(vae, latents):
    expected, decoder = whole(vae, latents), WindowDecoder(vae)
    torch.testing.assert_close(decoder(latents).clamp(0, 1), expected, atol=1e-12, rtol=0)
    for frame in torch.randperm(FRAMES, generator=torch.Generator().manual_seed(0)).tolist():  # forth and back
        found = decoder(latents, chosen(frame, 0).expand(2, -1)).clamp(0, 1)
        torch.testing.assert_close(found, expected[:, [frame, 0]], atol=1e-12, rtol=0)


@torch.no_grad()
def test_videos_have_frames_of_their_own(vae, latents):
    expected = whole(vae, latents)
    found = WindowDecoder(vae)(latents, torch.tensor([[3, 16], [9, 1]])).clamp(0, 1)
    torch.testing.assert_close(found[0], expected[0, [3, 16]], atol=1e-12, rtol=0)
    torch.testing.assert_close(found[1], expected[1, [9, 1]], atol=1e-12, rtol=0)


def gradient(pixels, latents, frames):
    """Of a loss in these frames: for each a weighted sum, so that no pixel is like another."""
    weights = torch.linspace(-1, 1, pixels[0, 0].numel(), dtype=pixels.dtype).view(pixels[0, 0].shape)
    return torch.autograd.grad((pixels[:, frames] * weights).sum(), latents)[0]


@pytest.mark.parametrize("back", [0, 2, LATENTS])
def test_gradient_is_the_whole_decode_s_at_a_window_s_latents_and_none_before(vae, latents, back):
    vae.decoder.conv_out.weight.data.mul_(0.05)  # grey enough that nothing is clamped
    leaf, frame, own = latents[:1].clone().requires_grad_(), 14, 4
    assert 0 < whole(vae, leaf).min() < whole(vae, leaf).max() < 1
    expected = gradient(whole(vae, leaf), leaf, [frame])
    found = gradient(WindowDecoder(vae, back)(leaf, chosen(frame)), leaf, [0])
    first = max(own - back, 0)
    torch.testing.assert_close(found[:, :, first:], expected[:, :, first:], atol=1e-12, rtol=0)
    assert not found[:, :, :first].any()
    assert found[:, :, own].any()


def test_a_frame_s_gradient_does_not_hang_on_the_others(vae, latents):
    leaf, decoder = latents[:1].clone().requires_grad_(), WindowDecoder(vae, back=1)
    alone = sum(gradient(decoder(leaf, chosen(frame)), leaf, [0]) for frame in (3, 6, 8))
    torch.testing.assert_close(gradient(decoder(leaf, chosen(3, 6, 8)), leaf, [0, 1, 2]), alone)


def test_saturated_pixels_have_gradient(latents):
    vae = make_vae(**VAE).double().eval().requires_grad_(False)
    vae.decoder.conv_out.bias.data.fill_(5.0)  # every pixel is white
    leaf = latents[:1].clone().requires_grad_()
    assert not gradient(whole(vae, leaf), leaf, [5]).any()
    assert gradient(WindowDecoder(vae)(leaf, chosen(5)), leaf, [0]).any()


@pytest.mark.parametrize("back", [0, 1])
def test_recomputed_gradients_are_those_of_the_plain_decode_to_the_last_bit(vae, latents, back):
    def found():
        leaf = latents[:1].clone().requires_grad_()
        pixels = WindowDecoder(vae, back)(leaf, chosen(6, 0, 13))
        return pixels.detach(), gradient(pixels, leaf, [0, 1, 2])

    plain = found()
    recompute_layers(vae)
    parts = [layer for layer in vae.decoder.modules() if isinstance(layer, LAYERS)]
    assert parts
    assert all(isinstance(layer.forward, Recomputed) for layer in parts)
    for ours, theirs in zip(found(), plain, strict=True):
        assert torch.equal(ours, theirs)


# ---- what is kept between windows ----


class Counted(nn.Module):
    """Counts how often the decoder runs."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder, self.runs = decoder, 0

    def forward(self, *args, **kwargs):
        self.runs += 1
        return self.decoder(*args, **kwargs)


@pytest.fixture
def counted(vae):
    vae.decoder = Counted(vae.decoder)
    return WindowDecoder(vae)


def test_windows_one_after_the_other_cost_each_latent_once(counted, latents):
    with torch.no_grad():
        for latent in range(LATENTS):
            counted(latents[1:], chosen(4 * latent))
    assert counted.vae.decoder.runs == LATENTS


def test_with_gradient_each_latent_before_runs_once_more(counted, latents):
    leaf = latents.clone().requires_grad_()
    for latent in range(LATENTS):
        counted(leaf[:1], chosen(4 * latent)).sum().backward()
    assert counted.vae.decoder.runs == 2 * LATENTS - 1


@torch.no_grad()
def test_latents_that_were_changed_or_are_others_are_decoded_anew(vae, latents):
    decoder, mine = WindowDecoder(vae), latents[:1].clone()
    decoder(mine, chosen(5))
    mine[:, :, 0] += 1
    torch.testing.assert_close(decoder(mine, chosen(9)), WindowDecoder(vae)(mine, chosen(9)))
    other = mine + 1
    torch.testing.assert_close(decoder(other, chosen(13)), WindowDecoder(vae)(other, chosen(13)))


@torch.no_grad()
def test_nothing_is_kept_longer_than_the_latents(vae, latents):
    decoder, mine = WindowDecoder(vae), latents.clone()
    decoder(mine[:1], chosen(5))
    assert decoder.prefix.caches
    del mine
    assert decoder.prefix.caches is None
