"""The reward before the decoder: what the shipped weights tell at which noise, and files that are another network's."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from vader.errors import UserError
from vader.files.hub import tiny_weights
from vader.nouns import Condition
from vader.pretrain import latent_rating
from vader.pretrain.loop import Schedule
from vader.rewards import load_reward

NOTHING = Condition({}, {})


@pytest.fixture(scope="module")
def vae():
    loaded = AutoencoderKL.from_pretrained(tiny_weights("modelscope/vae"), torch_dtype=torch.float32).eval()
    return loaded.to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def held_out(vae):
    """Not the scenes that it was trained on."""
    return latent_rating.rated_clips(64, vae, torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def reward():
    return load_reward("latent_aesthetic")


def rated(reward, held_out, time: int, told: int) -> torch.Tensor:
    times = torch.full((len(held_out.latents),), time)
    noisy = latent_rating.noised(held_out.latents, times, torch.Generator().manual_seed(time))
    with torch.no_grad():
        return reward.score_latents(noisy, torch.full_like(times, told), NOTHING)


def correlation(ratings: torch.Tensor, true: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([ratings, true]))[0, 1].item()


# ---- what the shipped weights tell ----


@pytest.mark.parametrize(("time", "least"), [(0, 0.94), (500, 0.90), (750, 0.75)])
def test_ratings_go_with_the_true_ones_at_any_noise(reward, held_out, time, least):
    assert correlation(rated(reward, held_out, time, time), held_out.ratings) > least


@pytest.mark.parametrize(("time", "wrong"), [(0, 900), (750, 0)])
def test_the_time_does_matter(reward, held_out, time, wrong):
    """Told another noise level than there is, it is wrong by far more."""
    errors = [(rated(reward, held_out, time, told) - held_out.ratings).square().mean() for told in (time, wrong)]
    assert errors[1] > 2 * errors[0]


# ---- what it does with latents ----


def test_the_gradient_agrees_with_central_differences(reward):
    generator = torch.Generator().manual_seed(3)
    latents, direction = torch.randn(2, 2, 4, 8, 8, 8, generator=generator).unbind(0)
    direction = direction / direction.norm()
    time = torch.tensor([100.0, 700.0])
    leaf = latents.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward.score_latents(leaf, time, NOTHING).sum(), leaf)
    ends = [reward.score_latents(latents + sign * 1e-2 * direction, time, NOTHING).sum() for sign in (1, -1)]
    assert (gradient * direction).sum().item() == pytest.approx(((ends[0] - ends[1]) / 2e-2).item(), rel=2e-2)
    assert gradient.flatten(1).abs().amin(dim=1).max() < gradient.abs().max()


def test_a_video_has_its_own_rating_in_any_size_and_number_of_frames(reward):
    latents, time = torch.randn(3, 4, 5, 6, 10), torch.tensor([0.0, 400.0, 900.0])
    together = reward.score_latents(latents, time, NOTHING)
    alone = [reward.score_latents(latents[i : i + 1], time[i : i + 1], NOTHING) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("latents", [torch.zeros(1, 16, 3, 8, 8), torch.zeros(1, 4, 8, 8), {"video": torch.zeros(1)}])
def test_other_latents_are_refused(reward, latents):
    with pytest.raises(UserError, match=r"reads latents \[B, 4, F, h, w\], and these are others"):
        reward.score_latents(latents, torch.zeros(1), NOTHING)


# ---- files ----


def test_weights_are_exactly_the_network_s(tmp_path):
    weights = load_file(tiny_weights("latent_rating.safetensors"))
    path = tmp_path / "rater.safetensors"
    save_file({name: weight for name, weight in weights.items() if name != "leave.bias"}, path)
    with pytest.raises(UserError, match="is not whole: it lacks 1 weights"):
        load_reward("latent_aesthetic", checkpoint=str(path))
    save_file(weights | {"more": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="1 unknown weights"):
        load_reward("latent_aesthetic", checkpoint=str(path))
    with pytest.raises(UserError, match="is of another kind"):
        load_reward("latent_aesthetic", checkpoint=str(tiny_weights("aesthetic_head.safetensors")))


# ---- its training ----


def test_disturbances_share_what_their_kind_says():
    parts = latent_rating.disturbance(50, torch.Generator().manual_seed(4)).split(10)
    assert not parts[0].any()
    for part, shared in zip(parts[1:], ((), (2,), (3, 4), (2, 3, 4)), strict=True):
        for axis in (2, 3, 4):
            assert (part.std(dim=axis).max() < 1e-6) == (axis in shared)


def test_a_few_steps_write_weights_that_the_reward_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(latent_rating, "SCHEDULE", Schedule(steps=2, lr=1e-3, warmup=1, cooldown=1))
    for name in ("CHUNK", "POOL", "HELD_OUT", "BATCH"):
        monkeypatch.setattr(latent_rating, name, 8)
    found = latent_rating.build(tmp_path, tmp_path, tiny_weights("modelscope/vae"))
    assert found.keys() == {f"correlation_{time}" for time in (0, 250, 500, 750)}
    path = tmp_path / "latent_rating.safetensors"
    assert path.stat().st_size < 300_000
    reward = load_reward("latent_aesthetic", checkpoint=str(path), at="clean")
    assert reward.at == "clean"
    assert reward.score_latents(torch.zeros(2, 4, 8, 8, 8), torch.zeros(2), NOTHING).shape == (2,)
