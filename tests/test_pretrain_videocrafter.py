"""The script that trains the tiny VideoCrafter2: where it starts, what it minimises, what it writes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet3DConditionModel

from vader.files.hub import tiny_weights
from vader.models import load_model
from vader.pretrain import modelscope, videocrafter
from vader.pretrain.loop import Schedule
from vader.solvers import videocrafter_scale

LEVELS = modelscope.new_scheduler().alphas_cumprod


@pytest.fixture(scope="module")
def twin():
    return UNet3DConditionModel.from_pretrained(tiny_weights("modelscope") / "unet", torch_dtype=torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("time", [901, 101])
def test_the_open_path_gives_the_input_back(twin, monkeypatch, time) -> None:
    """Whatever text, time, frames per second and frames; a normalisation would be off by 3 to 20 %."""
    monkeypatch.setattr(videocrafter, "KEPT", 0.0)
    unet = videocrafter.new_unet(twin).eval()
    noise = torch.randn(2, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = noise * torch.tensor([1.0, 0.7]).view(2, 1, 1, 1, 1)
    out = unet(noise, time, torch.randn(2, 16, 64), timestep_cond=torch.tensor([4, 24])).sample
    assert (out - noise).square().mean().sqrt() < 0.01


@torch.no_grad()
def test_the_share_that_is_kept_is_the_twins(twin) -> None:
    """Of what is not the input, a tenth of the twin's prediction: but for the four groups that were freed."""
    unet = videocrafter.new_unet(twin).eval()
    latents, text = torch.randn(2, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0)), torch.randn(2, 16, 64)
    kept = unet(latents, 501, text, timestep_cond=torch.tensor([4, 24])).sample - latents
    theirs = twin.eval()(latents, 501, text).sample
    correlation = torch.corrcoef(torch.stack([kept.flatten(), theirs.flatten()]))[0, 1]
    assert correlation > 0.8
    assert (kept.std() / theirs.std()).item() == pytest.approx(videocrafter.KEPT, rel=0.3)


def test_the_loss_is_that_of_a_v_prediction() -> None:
    """x' = x / |(a, sigma)| is a variance-preserving process: its v is (a e - sigma x0) / |(a, sigma)|."""
    seen = {}

    def network(noisy, times, features, timestep_cond):
        seen.update(noisy=noisy, times=times, fps=timestep_cond)
        return SimpleNamespace(sample=0.3 * noisy)

    latents = torch.randn(16, 4, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    levels = LEVELS[:800]  # no weight is clamped there
    loss = videocrafter.noise_loss(network, levels, latents, torch.zeros(16, 1), torch.Generator().manual_seed(1))

    scale = videocrafter_scale(1000)[seen["times"]].float()
    a, sigma = (part.view(-1, 1, 1, 1, 1) for part in (scale * levels[seen["times"]].sqrt(), 1 - levels[seen["times"]]))
    sigma = sigma.sqrt()
    size = (a**2 + sigma**2).sqrt()
    noise = (seen["noisy"] - a * latents) / sigma
    wanted = (a * noise - sigma * latents) / size
    clean = (seen["noisy"] - sigma * 0.3 * seen["noisy"]) / a
    predicted = (a * 0.3 * seen["noisy"] - sigma * clean) / size
    torch.testing.assert_close(loss, (predicted - wanted).square().mean(), rtol=1e-3, atol=0)
    assert set(seen["fps"].tolist()) <= set(range(4, 29))


def test_the_script_writes_what_the_family_loads(tmp_path, monkeypatch) -> None:
    stage = modelscope.Stage("videocrafter", (0, 4, 7), 4, Schedule(steps=2, lr=1e-4, warmup=1, cooldown=1))
    monkeypatch.setattr(videocrafter, "STAGES", (stage,))
    monkeypatch.setattr(modelscope, "POOL", 64)
    monkeypatch.setattr(videocrafter, "judged", lambda model: {"family": model.family})
    (tmp_path / "work").mkdir()
    (tmp_path / "out").mkdir()
    judged = videocrafter.build(tmp_path / "out", tmp_path / "work", tiny_weights("modelscope"))
    assert judged == {"family": "videocrafter"}
    assert (tmp_path / "out" / "model.ckpt").stat().st_size < 9e6
    model, twin = load_model("videocrafter", str(tmp_path / "out")), load_model("modelscope", "tiny")
    latents = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.decode(latents), twin.decode(latents), atol=2e-3, rtol=0)
