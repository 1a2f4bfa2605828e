"""The tiny world's Stable Video Diffusion: its pictures, its training script's parts, a few steps of the whole."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from transformers import CLIPVisionModelWithProjection

from vader.errors import UserError
from vader.files.hub import tiny_weights
from vader.files.images import prompt_images
from vader.models import load_model
from vader.models.svd import StableVideoDiffusion
from vader.pretrain import svd
from vader.pretrain.loop import Schedule, generator_for
from vader.prompts import load_prompts
from vader.sampling.videos import sample_videos
from vader.tinyworld import pictures
from vader.tinyworld.judge import judge, judge_prompts
from vader.tinyworld.scenes import object_centers, parse_caption, render, sample_scenes


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---- pictures


def test_pictures_are_what_their_captions_say_and_none_is_on_both_sides(cache) -> None:
    looks = []
    for half in ("train", "test"):
        prompts = load_prompts(f"tiny-pictures-{half}")
        assert list(map(str, prompts)) == list(map(str, load_prompts(f"tiny-{half}")))
        seen = judge(prompt_images(prompts, 32, 32)[:, None])
        truth = torch.tensor([parse_caption(prompt.text) for prompt in prompts])
        found = torch.stack([seen.color, seen.shape, seen.background], dim=1)
        assert (found == truth[:, :3]).float().mean() > 0.99
        looks.append({tuple(look) for look in truth[:, :3].tolist()})
    assert not looks[0] & looks[1]


def test_pictures_are_drawn_once_and_again_where_one_is_missing(cache) -> None:
    first = pictures.test_pictures()[0].image
    drawn, stamp = first.read_bytes(), first.stat().st_mtime_ns
    assert pictures.test_pictures()[0].image.stat().st_mtime_ns == stamp
    first.unlink()
    assert pictures.test_pictures()[0].image.read_bytes() == drawn
    assert {path.suffix for path in first.parent.iterdir()} == {".png"}


def test_pictures_that_cannot_be_kept_are_one_line(cache) -> None:
    cache.write_text("a file")
    with pytest.raises(UserError, match=r"cannot keep pictures in .*: set VADER_CACHE"):
        pictures.train_pictures()


# ---- the script's parts


def test_slower_scenes_start_alike_and_go_less_far() -> None:
    scenes, speed = sample_scenes(32, generator_for(0, 0)), torch.linspace(0.25, 1, 32)
    slow = svd.slowed(scenes, speed)
    torch.testing.assert_close(render(slow)[:, 0], render(scenes)[:, 0], atol=1e-4, rtol=0)
    fast_path, slow_path = (object_centers(some, 8) for some in (scenes, slow))
    torch.testing.assert_close(slow_path - slow_path[:, :1], speed[:, None, None] * (fast_path - fast_path[:, :1]))


def test_clips_keep_their_attributes_when_the_light_changes() -> None:
    clips, buckets = svd.draw_clips(64, generator_for(1, 0))
    scenes = sample_scenes(64, generator_for(1, 0))
    seen = judge(clips)
    for name in ("color", "shape", "background"):
        assert torch.equal(getattr(seen, name), getattr(scenes, name)), name
    torch.testing.assert_close(clips[:, 0], render(scenes)[:, 0], atol=1e-4, rtol=0)
    assert buckets.min() >= 255 * svd.SLOWEST
    assert buckets.max() <= 255
    last = judge(clips[:, -1:]).vividness
    changed = ((last - scenes.vividness).abs() > 0.02).float().mean().item()
    assert changed == pytest.approx(svd.CHANGING_LIGHT, abs=0.15)


@torch.no_grad()
def test_a_fresh_vae_decodes_every_frame_by_itself() -> None:
    vae = svd.new_vae(1.0)
    latents = torch.randn(4, 4, 8, 8)
    alone = torch.cat([vae.decode(one[None], num_frames=1).sample for one in latents])
    torch.testing.assert_close(vae.decode(latents, num_frames=4).sample, alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_large_image_encoder_sees_enlarged_pictures_as_the_small_one_sees_them() -> None:
    clip = tiny_weights("clip")
    small = CLIPVisionModelWithProjection.from_pretrained(clip, dtype=torch.float32).eval()
    images = torch.randn(4, 3, 32, 32)
    enlarged = images.repeat_interleave(7, 2).repeat_interleave(7, 3)
    ours = svd.image_encoder(clip)(enlarged).image_embeds
    torch.testing.assert_close(ours, small(images).image_embeds, atol=1e-4, rtol=1e-4)


class Perfect(StableVideoDiffusion):
    """Knows the clean latents, and so the v-prediction of any noisy ones."""

    def __init__(self, clean):
        self.clean = clean

    def denoise(self, latents, time, inputs):
        sigma = (4 * time).exp().view(-1, 1, 1, 1, 1)
        scale = (sigma.square() + 1).sqrt()
        noise = (latents * scale - self.clean) / sigma
        return (noise - sigma * self.clean) / scale


def test_the_loss_of_a_perfect_network_is_zero() -> None:
    clean = torch.randn(16, 8, 4, 8, 8)
    assert svd.denoising_loss(Perfect(clean), clean, {}, generator_for(0, 0)).item() < 1e-6
    assert svd.denoising_loss(Perfect(clean + 1), clean, {}, generator_for(0, 0)).item() > 0.1


def test_a_share_of_clips_is_not_shown_its_picture() -> None:
    told = {"clip": torch.ones(9, 1, 64), "image": torch.ones(9, 4, 8, 8), "numbers": torch.ones(9, 3)}
    _, batch = svd.LatentPool(torch.zeros(9, 8, 4, 8, 8), told).batch(4000, generator_for(0, 0))
    shown = batch["clip"].flatten(1).amax(dim=1)
    assert shown.mean().item() == pytest.approx(1 - svd.DROPOUT, abs=0.02)
    assert torch.equal(batch["image"].flatten(1).amin(dim=1), shown)
    assert batch["numbers"].min() == 1


def test_a_few_steps_leave_a_folder_that_diffusers_loads_too(cache, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(svd, "SAMPLING_STEPS", 2)
    short = Schedule(steps=2, lr=1e-3, warmup=1, cooldown=1)
    plan = svd.Plan(short, short, short, batch=2, pool=64, judged=2)
    paths = tiny_weights("modelscope") / "vae", tiny_weights("clip")
    quality = svd.build(tmp_path / "svd", tmp_path, *paths, plan)
    assert {"psnr_db", "color", "motion", "vividness"} <= quality.keys()
    assert sum(file.stat().st_size for file in (tmp_path / "svd").rglob("*")) < 9e6
    pipe = StableVideoDiffusionPipeline.from_pretrained(tmp_path / "svd")
    assert pipe.scheduler.config.sigma_max == 700
    index = json.loads((tmp_path / "svd" / "model_index.json").read_text())
    assert index["feature_extractor"] == ["transformers", "CLIPImageProcessor"]


# ---- the shipped weights


def test_the_shipped_model_keeps_what_unseen_pictures_show_and_moves_it() -> None:
    model, prompts = load_model("svd", "tiny"), load_prompts("tiny-pictures-test")[:16]
    videos = sample_videos(model, prompts, svd.SIZE, svd.SAMPLING_STEPS, svd.GUIDANCE)
    right = judge_prompts(videos, prompts)
    least = {"color": 0.85, "shape": 0.4, "background": 0.85}
    assert {name: right[name].mean().item() >= share for name, share in least.items()} == dict.fromkeys(least, True)
    assert (judge(videos).motion >= 0).float().mean() > 0.85
    first = prompt_images(prompts, 32, 32)
    assert (videos[:, 0] - first).square().mean().sqrt() < 0.06


@pytest.mark.rare
def test_the_shipped_model_moves_farther_under_a_larger_motion_bucket() -> None:
    prompts, changes = load_prompts("tiny-pictures-test")[:8], []
    for bucket in (64, 255):
        model = load_model("svd", "tiny", options={"motion_bucket": bucket})
        videos = sample_videos(model, prompts, svd.SIZE, svd.SAMPLING_STEPS, svd.GUIDANCE)
        changes.append(_path(videos))
    slow, fast = changes
    assert fast.mean() > 1.5 * slow.mean()


def _path(videos: torch.Tensor) -> torch.Tensor:
    """How far the object gets, in frame sides: `[N]`; its pixels are those farthest from each frame's median colour."""
    ground = videos.flatten(3).median(dim=3).values[..., None, None]
    weight = (videos - ground).abs().sum(dim=2)
    weight = weight * (weight > 0.5 * weight.flatten(2).amax(dim=2)[..., None, None])
    axis = (torch.arange(32) + 0.5) / 32
    x, y = (weight.sum(dim=dim) @ axis / weight.sum(dim=(2, 3)) for dim in (2, 3))
    return torch.hypot(x[:, -1] - x[:, 0], y[:, -1] - y[:, 0])
