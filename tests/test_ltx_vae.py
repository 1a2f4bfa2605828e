"""LTX-Video's VAE: chosen frames and their gradient as in the whole decode, recomputed to the bit, and their cost."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo

from ltx_factories import VAES, make_ltx_vae
from vader.models.ltx_vae import DRAW, FrameDecoder, Told, scaled
from vader.networks.recompute import Recomputed, checkpoint_blocks
from vader.planning.ltx import TOLD_VAE

LATENTS = 12
# Norms of diffusers' decoder are taken in float32, so that 1e-6 is what all there is to see.
FRAMES = 4 * (LATENTS - 1) + 1


@pytest.fixture(params=[*VAES, "causal"])
def decoder(request):
    version = "0.9.0" if request.param == "causal" else request.param
    vae = make_ltx_vae(version).double().eval().requires_grad_(False)
    if request.param == "causal":  # no release is
        vae = AutoencoderKLLTXVideo(**VAES[version], decoder_causal=True).double().eval().requires_grad_(False)
    return FrameDecoder(vae, Told() if vae.config.timestep_conditioning else None)


@pytest.fixture
def latents():
    return torch.randn(2, 8, LATENTS, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def whole(decoder, latents):
    """diffusers' own decode of each video, noise mixed in as its pipelines do, in [0, 1]."""
    pixels = []
    for video in scaled(decoder.vae, latents).split(1):
        time = None
        if decoder.told is not None:
            noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(DRAW)).double()
            video = (1 - 0.025) * video + 0.025 * noise
            time = torch.tensor([0.05], dtype=torch.float64)
        with torch.random.fork_rng():
            torch.manual_seed(DRAW)
            pixels.append(decoder.vae.decode(video, time, return_dict=False)[0])
    return torch.cat(pixels).movedim(2, 1) / 2 + 0.5


def chosen(*frames):
    return torch.tensor([frames])


@torch.no_grad()
def test_every_frame_alone_is_that_of_the_whole_decode(decoder, latents):
    expected = whole(decoder, latents)
    torch.testing.assert_close(decoder(latents), expected, atol=1e-6, rtol=0)
    for frame in range(FRAMES):
        found = decoder(latents[:1], chosen(frame))
        torch.testing.assert_close(found, expected[:1, [frame]], atol=1e-6, rtol=0)
    found = decoder(latents, torch.tensor([[3, 16], [40, 1]]))
    torch.testing.assert_close(found[0], expected[0, [3, 16]], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1], expected[1, [40, 1]], atol=1e-6, rtol=0)


def gradient(pixels, latents):
    """Of a weighted sum of the frames, so that no pixel is like another."""
    weights = torch.linspace(-1, 1, pixels.numel(), dtype=pixels.dtype).view(pixels.shape)
    return torch.autograd.grad((pixels * weights).sum(), latents)[0]


def test_gradient_and_recomputed_gradient_are_the_whole_decode_s(decoder, latents):
    leaf, frames = latents[:1].clone().requires_grad_(), [21, 18]
    expected = gradient(whole(decoder, leaf)[:, frames], leaf)
    plain = gradient(decoder(leaf, chosen(*frames)), leaf)
    torch.testing.assert_close(plain, expected, atol=1e-6, rtol=1e-6)
    assert plain[:, :, 3:7].abs().amax((0, 1, 3, 4)).gt(0).all()
    checkpoint_blocks(decoder.vae, "layers")
    assert all(isinstance(layer.forward, Recomputed) for layer in decoder.vae.decoder.mid_block.resnets)
    assert torch.equal(gradient(decoder(leaf, chosen(*frames)), leaf), plain)


def test_saturated_pixels_have_gradient_and_nobody_else_s_noise_is_drawn(decoder, latents):
    decoder.vae.decoder.conv_out.conv.bias.data.fill_(5.0)  # every pixel is white
    leaf, state = latents[:1].clone().requires_grad_(), torch.get_rng_state()
    assert gradient(decoder(leaf, chosen(5)), leaf).any()
    assert torch.equal(torch.get_rng_state(), state)


def kept_bytes(decoder, latents, frames):
    """What a decode keeps for its backward pass."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor  # alive, so that no address is used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        decoder._run(latents, frames)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(("settings", "one", "all_frames"), [({}, 13.8, 28.7), (TOLD_VAE, 17.4, 36.1)])
def test_one_frame_of_the_releases_keeps_half_of_the_whole_decode(settings, one, all_frames):
    """GiB of 81 frames of 480 x 832 in bf16, the decoders' own graph."""
    with torch.device("meta"):
        vae = AutoencoderKLLTXVideo(**settings).bfloat16().eval().requires_grad_(False)
    decoder = FrameDecoder(vae, Told() if settings else None)
    z = torch.randn(1, 128, 11, 15, 26, device="meta", dtype=torch.bfloat16, requires_grad=True)
    assert kept_bytes(decoder, z, range(41, 42)) / 2**30 == pytest.approx(one, rel=0.02)
    assert kept_bytes(decoder, z, range(81)) / 2**30 == pytest.approx(all_frames, rel=0.02)
