"""CogVideoX's causal VAE by windows: frames as in the whole decode, gradient where it belongs, the same recomputed."""

from __future__ import annotations

import pytest
import torch

from cogvideox_factories import make_vae
from vader.models.cogvideox_vae import LAYERS, WindowDecoder, recompute_layers
from vader.networks.recompute import Recomputed

LATENTS = 7
FRAMES = 4 * (LATENTS - 1) + 1


@pytest.fixture(scope="module")
def vae():
    return make_vae(scaling_factor=0.7).double().eval().requires_grad_(False)


@pytest.fixture
def latents():
    return torch.randn(2, LATENTS, 4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def whole(vae, latents):
    """diffusers' own decode, in [0, 1]."""
    return vae.decode(latents.movedim(1, 2) / 0.7, return_dict=False)[0].movedim(2, 1) / 2 + 0.5


def chosen(*frames):
    return torch.tensor([frames])


def test_windows_are_nine_frames_and_then_eight(vae):
    decoder = WindowDecoder(vae)
    assert decoder.windows(LATENTS) == [range(9), range(9, 17), range(17, 25)]
    assert decoder.windows(3) == [range(9)]
    assert decoder.windows(1) == [range(1)]
    assert decoder.windows(13)[-1].stop == 49


@torch.no_grad()
def test_every_frame_alone_is_that_of_the_whole_decode(vae, latents):
    expected, decoder = whole(vae, latents), WindowDecoder(vae)
    assert expected.shape[1] == FRAMES
    torch.testing.assert_close(decoder(latents), expected, atol=1e-12, rtol=0)
    for frame in (24, 3, 9, 16, 17, 8):  # forth and back
        found = decoder(latents, torch.tensor([[frame, 0], [5, frame]]))
        torch.testing.assert_close(found[0], expected[0, [frame, 0]], atol=1e-12, rtol=0)
        torch.testing.assert_close(found[1], expected[1, [5, frame]], atol=1e-12, rtol=0)
    alone = decoder(latents[:, :1])
    torch.testing.assert_close(alone, whole(vae, latents[:, :1]), atol=1e-12, rtol=0)


def gradient(pixels, latents, frames):
    weights = torch.linspace(-1, 1, pixels[0, 0].numel(), dtype=pixels.dtype).view(pixels[0, 0].shape)
    return torch.autograd.grad((pixels[:, frames] * weights).sum(), latents)[0]


@pytest.mark.parametrize("back", [0, 1, 2])
def test_gradient_is_the_whole_decode_s_at_a_window_s_latents_and_none_before(vae, latents, back):
    leaf, frame = latents[:1].clone().requires_grad_(), 18
    expected = gradient(whole(vae, leaf), leaf, [frame])
    found = gradient(WindowDecoder(vae, back)(leaf, chosen(frame)), leaf, [0])
    first = (5, 3, 0)[back]
    torch.testing.assert_close(found[:, first:], expected[:, first:], atol=1e-12, rtol=0)
    assert not found[:, :first].any()
    assert found[:, first:].abs().amax((0, 2, 3, 4)).min() > 0


def test_recomputed_gradients_are_those_of_the_plain_decode_to_the_last_bit(latents):
    vae = make_vae(scaling_factor=0.7).double().eval().requires_grad_(False)

    def found():
        leaf = latents[:1].clone().requires_grad_()
        pixels = WindowDecoder(vae, back=1)(leaf, chosen(6, 0, 20))
        return pixels.detach(), gradient(pixels, leaf, [0, 1, 2])

    plain = found()
    recompute_layers(vae)
    assert all(isinstance(layer.forward, Recomputed) for layer in vae.decoder.modules() if isinstance(layer, LAYERS))
    for ours, theirs in zip(found(), plain, strict=True):
        assert torch.equal(ours, theirs)


def saved_bytes(decoder, latents, frame) -> int:
    """What autograd keeps of scoring one frame."""
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        pixels = decoder(latents, chosen(frame))  # alive, so that no storage's place is taken again
    assert pixels.requires_grad
    return sum(kept.values())


def test_one_frame_costs_the_same_graph_in_a_long_clip(vae, latents):
    short, long = (latents[:1, :count].clone().requires_grad_() for count in (5, LATENTS))
    assert saved_bytes(WindowDecoder(vae), short, 16) == saved_bytes(WindowDecoder(vae), long, 24)
