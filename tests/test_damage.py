"""Damage: what the renderer draws has none, and what models leave in their videos is found."""

from __future__ import annotations

import time

import pytest
import torch

from planted import KINDS, clean_clips, planted_clips
from vader.evaluation.metrics.gold import gold
from vader.models.registry import load_model
from vader.nouns import VideoSize
from vader.sampling.videos import sample_videos
from vader.tinyworld import split
from vader.tinyworld.damage import DAMAGED
from vader.tinyworld.judge import judge, judge_prompts
from vader.tinyworld.scenes import captions, render, render_grounds, sample_scenes


@pytest.fixture(scope="module")
def scenes():
    return sample_scenes(32, torch.Generator().manual_seed(11))


def test_planted_damage_is_found_and_clean_clips_have_none() -> None:
    found = {name: judge(clips).damage > DAMAGED for name, clips in planted_clips(25, seed=1).items()}
    assert list(found) == [kind.__name__ for kind in KINDS]
    assert {name: damaged.float().mean().item() >= 0.88 for name, damaged in found.items()} == dict.fromkeys(
        found, True
    )
    assert torch.cat(list(found.values())).float().mean() >= 0.95
    _, clean = clean_clips(100, seed=2)
    assert (judge(clean).damage > DAMAGED).float().mean() <= 0.02


@pytest.mark.parametrize(("frames", "size"), [(1, 32), (8, 24), (17, 32), (4, 48), (4, 64)])
def test_renderings_have_no_damage_at_any_size(scenes, frames, size) -> None:
    assert judge(render(scenes, frames, size)).damage.max() < 0.01


@pytest.mark.parametrize("vividness", [0.0, 0.5, 1.0, 1.1])
def test_vividness_is_no_damage(scenes, vividness) -> None:
    assert judge(render(scenes.with_vividness(vividness)).clamp(0, 1)).damage.max() < 0.02


def test_light_that_changes_evenly_is_no_damage_and_light_that_comes_and_goes_is(scenes) -> None:
    dull, vivid = (render(scenes.with_vividness(v)) for v in (0.3, 0.7))
    evenly = torch.linspace(0, 1, 8).view(1, 8, 1, 1, 1)
    assert judge(torch.lerp(dull, vivid, evenly)).damage.max() < 0.02
    assert judge(torch.lerp(dull, vivid, (evenly * 7) % 2)).damage.min() > DAMAGED


def test_an_empty_scene_can_be_rendered_and_noise_cannot(scenes) -> None:
    assert judge(render_grounds(scenes)).damage.max() == 0
    noise = torch.rand(4, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert judge(noise).damage.min() == 1


def test_decoding_is_no_damage(scenes) -> None:
    """The tiny VAE's softness: no clip is called damaged for it."""
    vae = load_model("modelscope", "tiny").vae
    clips = render(scenes)
    with torch.no_grad():
        soft = vae(clips.flatten(0, 1) * 2 - 1).sample.view_as(clips) / 2 + 0.5
    damage = judge(soft.clamp(0, 1)).damage
    assert damage.max() <= DAMAGED
    assert damage.mean() < 0.01


def test_a_damaged_video_is_not_gold(scenes) -> None:
    prompts, clips = captions(scenes), render(scenes.with_vividness(1.0))
    clips[0, 2:4, :, 8:24, 8:24] = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    judged = judge_prompts(clips, prompts)
    assert judged["damaged"].tolist() == [1.0] + [0.0] * 31
    assert (gold(judged, "looks") > 0.9).tolist() == [False] + [True] * 31
    assert gold(judged, "consistency")[0] == 0


@pytest.mark.rare  # of eight videos, test_tinyworld.py says the same
def test_the_base_model_s_videos_have_little() -> None:
    model, prompts = load_model("modelscope", "tiny"), split.test_prompts()[:24]
    damage = judge(sample_videos(model, prompts, VideoSize(8, 32, 32), 10, 4.0, batch=24)).damage
    assert damage.mean() < 0.05
    assert (damage > DAMAGED).float().mean() < 0.2


def test_the_judge_is_quick(scenes) -> None:
    clips = render(scenes).repeat(2, 1, 1, 1, 1)
    began = time.process_time()
    judge(clips)
    assert time.process_time() - began < 6  # about one second on an idle core
