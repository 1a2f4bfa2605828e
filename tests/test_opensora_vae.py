"""Open-Sora's VAE against the official numbers, and chosen frames against whole videos."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from opensora_factories import VAE
from vader.errors import UserError
from vader.models.opensora.vae import OpenSoraVAE, VAEConfig, latent_frames, pixel_frames
from vader.networks.measure import count_parameters
from vader.networks.recompute import checkpoint_blocks

NEAR = {"atol": 5e-5, "rtol": 1e-4}


@pytest.fixture
def stored(shared):
    return load_file(shared("parity/opensora12/vae_tiny.safetensors"))


@pytest.fixture
def info(shared):
    return json.loads(shared("parity/opensora12/vae_tiny.json").read_text())


@pytest.fixture
def official(stored, info):
    config = VAEConfig.from_json({"vae_2d": info["spatial_config"], "vae_temporal": info["temporal_config"]})
    vae = OpenSoraVAE(config).requires_grad_(False)
    vae.load_state_dict({name[8:]: weight for name, weight in stored.items() if name.startswith("weights/")})
    return vae


@pytest.mark.parametrize("case", [f"dec{i}" for i in range(7)])
@torch.no_grad()
def test_decoding_is_the_official_one(official, stored, info, case):
    frames = info["decode_cases"][case]["num_frames"]
    torch.testing.assert_close(official.decode_time(stored[f"{case}/z"], frames), stored[f"{case}/x_z"], **NEAR)
    torch.testing.assert_close(official.decode(stored[f"{case}/z"], frames), stored[f"{case}/x"], **NEAR)


@pytest.mark.parametrize(("case", "frames"), [("dec0", 17), ("dec4", 1)])
def test_gradients_of_decoding_are_the_official_ones(official, stored, case, frames):
    z = stored[f"{case}/z"].requires_grad_()
    (official.decode(z, frames) * stored[f"{case}/grad/cotangent"]).sum().backward()
    torch.testing.assert_close(z.grad, stored[f"{case}/grad/z"], atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("case", [f"enc{i}" for i in range(4)])
@torch.no_grad()
def test_encoding_is_the_official_one(official, stored, case):
    draws = {name: stored[f"{case}/{name}_eps"] for name in ("spatial", "temporal")}
    means = []

    def noise(mean):
        means.append(mean)
        return draws["spatial" if len(means) == 1 else "temporal"]

    z = official.encode(stored[f"{case}/x"], noise)
    for mean, name in zip(means, draws, strict=True):
        torch.testing.assert_close(mean, stored[f"{case}/{name}_moments"].chunk(2, dim=1)[0], **NEAR)
    torch.testing.assert_close(z, stored[f"{case}/z"], **NEAR)


@pytest.mark.parametrize("case", ["temporal0", "temporal1"])
@torch.no_grad()
def test_the_temporal_vae_alone_is_the_official_one(official, stored, case):
    images, moments = stored[f"{case}/x_z"], stored[f"{case}/moments"]
    mean, logvar = official.temporal_vae.moments(images)
    torch.testing.assert_close(torch.cat([mean, logvar], dim=1), moments, **NEAR)
    again = official.temporal_vae.decode(mean, images.shape[2])
    torch.testing.assert_close(again, stored[f"{case}/decode_of_mean"], **NEAR)


def test_full_size_holds_exactly_the_released_tensors(shared):
    manifest = json.loads(shared("parity/opensora12/manifest.json").read_text())["vae"]
    with torch.device("meta"):
        vae = OpenSoraVAE(VAEConfig.from_json({}))
    ours = {name: list(tensor.shape) for name, tensor in vae.state_dict().items()}
    assert ours == {tensor["key"]: tensor["shape"] for tensor in manifest["tensors"]}
    assert count_parameters(vae) == manifest["param_count"]


def test_latent_frames_agree_with_the_official_table(shared):
    manifest = json.loads(shared("parity/opensora12/manifest.json").read_text())
    for row in manifest["latent_sizes"]["table"]:
        assert latent_frames(row["num_frames"]) == row["latent"][0]


# ---- without fixtures ----


@pytest.fixture
def vae():
    return OpenSoraVAE(VAE).requires_grad_(False).eval()


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def test_frames_and_latent_frames_are_each_other_s_inverse():
    assert [latent_frames(n) for n in (1, 16, 17, 21, 51, 102)] == [1, 4, 5, 6, 15, 30]
    assert [pixel_frames(n) for n in (1, 5, 6, 15, 30)] == [1, 17, 21, 51, 102]
    assert all(latent_frames(pixel_frames(n)) == n for n in range(1, 60))


@pytest.mark.parametrize("chosen", [[0], [16, 17], [20, 3, 3], [34, 37, 0]])
def test_chosen_frames_are_those_of_the_whole_with_their_gradients(vae, chosen):
    """38 frames: two whole chunks and one latent frame more."""
    z = draw(1, 4, 11, 3, 2)
    results = []
    for decode in (
        lambda z: vae.decode(z, 38)[:, :, chosen],
        lambda z: vae.decode_frames(z, chosen, 38),
    ):
        leaf = z.clone().requires_grad_()
        pixels = decode(leaf)
        weights = draw(*pixels.shape)
        (gradient,) = torch.autograd.grad((pixels * weights).sum(), leaf)
        results.append((pixels.detach(), gradient))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)
    touched = results[1][1].abs().amax(dim=(0, 1, 3, 4)) > 0
    windows = {min(frame // 17, 2) for frame in chosen}
    assert [bool(touched[5 * window : 5 * window + 5].any()) for window in range(3)] == [w in windows for w in range(3)]


def test_later_latents_do_not_change_a_chunk(vae):
    z = draw(1, 4, 10, 2, 2)
    other = torch.cat([z[:, :, :5], draw(1, 4, 5, 2, 2) + 1], dim=2)
    first, changed = (vae.decode(each, 34)[:, :, :17] for each in (z, other))
    torch.testing.assert_close(first, changed)


@torch.no_grad()
def test_time_is_causal_up_to_the_norms(vae):
    """With group norms taken away nothing looks ahead."""
    for module in vae.temporal_vae.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    z = draw(1, 4, 5, 2, 2)
    other = z.clone()
    other[:, :, 3:] += 1
    pair = [vae.temporal_vae.decode(each, 20) for each in (z, other)]
    same = (pair[0] == pair[1]).flatten(3).all(dim=3).all(dim=1)[0]
    assert same.tolist() == [True] * 12 + [False] * 8


@torch.no_grad()
def test_images_are_coded_one_by_one(vae):
    pixels = draw(2, 3, 6, 8, 8)
    mean, _ = vae.spatial_vae.moments(pixels)
    alone, _ = vae.spatial_vae.moments(pixels[1:, :, 4:5])
    torch.testing.assert_close(mean[1:, :, 4:5], alone, atol=1e-5, rtol=1e-5)
    assert vae.encode(pixels, torch.zeros_like).shape == (2, 4, 2, 4, 4)


def test_checkpointed_decoding_gives_the_same_gradient(vae):
    """Every block of both decoders is recomputed."""
    results = []
    for recomputed in (False, True):
        if recomputed:
            blocks = checkpoint_blocks(vae)
        leaf = draw(1, 4, 5, 2, 2).requires_grad_()
        vae.decode(leaf, 17).square().sum().backward()
        results.append(leaf.grad)
    torch.testing.assert_close(results[0], results[1])
    spatial = 2 * (2 + 1)  # two levels and the middle, encoder and decoder
    temporal = 2 * (4 + 3 + 1)  # four levels, three time steps, one residual block
    assert blocks == spatial + temporal


def test_other_chunks_are_refused():
    with pytest.raises(UserError, match="micro_frame_size 16"):
        VAEConfig.from_json({"micro_frame_size": 16})
    assert VAEConfig.from_json(json.loads(json.dumps(VAE.to_json()))) == VAE
