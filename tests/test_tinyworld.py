"""The tiny world's renderer and judge: what is drawn is what is said, and the judge reads it back."""

from __future__ import annotations

import pytest
import torch

from vader.files.hub import TINY_WEIGHTS
from vader.models.registry import load_model
from vader.nouns import Prompt, VideoSize
from vader.pretrain.spoiled import spoiled
from vader.pretrain.vjepa import shuffled
from vader.recipe import load_recipe, recipe_names
from vader.rewards.registry import load_reward
from vader.sampling.videos import sample_videos
from vader.tinyworld import split
from vader.tinyworld.judge import judge, judge_prompts
from vader.tinyworld.pictures import first_frames, test_pictures
from vader.tinyworld.scenes import (
    ALL_ATTRIBUTES,
    CAPTIONS,
    MOTIONS,
    SHAPES,
    backgrounds,
    boxes,
    caption,
    captions,
    look_caption,
    object_centers,
    object_masks,
    painted,
    parse_caption,
    render,
    render_grounds,
    sample_scenes,
)
from vader.training.trainer import train

ATTRIBUTES = ("color", "shape", "background", "motion")


@pytest.fixture(scope="module")
def scenes():
    return sample_scenes(64, torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def videos(scenes):
    return render(scenes)


def test_pixels_are_in_range_and_linear_in_vividness(scenes) -> None:
    dull, half, vivid = (render(scenes.with_vividness(v)) for v in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (dull + vivid) / 2)
    assert dull.min() >= 0
    assert vivid.max() <= 1


def test_rendering_is_resolution_free(scenes) -> None:
    """Twice the size, averaged down, is the same picture but for antialiasing at edges."""
    small, large = render(scenes, frames=2, size=32), render(scenes, frames=2, size=64)
    halved = torch.nn.functional.avg_pool2d(large.flatten(0, 1), 2).view_as(small)
    assert (small - halved).abs().mean() < 0.01


def test_every_object_stays_inside_and_fills_its_box(scenes) -> None:
    corners = boxes(scenes)
    assert corners.min() >= 0
    assert corners.max() <= 1
    mask = object_masks(scenes, 8, 64) > 0.5
    axis = (torch.arange(64) + 0.5) / 64
    for n in range(8):
        for f in (0, 7):
            where = mask[n, f].any(dim=0)
            assert axis[where].min() >= corners[n, f, 0] - 0.02
            assert axis[where].max() <= corners[n, f, 2] + 0.02


def test_objects_move_as_the_caption_says(scenes) -> None:
    path = object_centers(scenes, 8)
    moved = path[:, -1] - path[:, 0]
    signs = {0: (-1, 0), 1: (1, 0), 2: (0, -1), 3: (0, 1)}  # left, right, up, down; y grows downwards
    for n, motion in enumerate(scenes.motion.tolist()):
        expected = torch.tensor(signs[motion]) * scenes.travel[n]
        torch.testing.assert_close(moved[n], expected.float())


@pytest.mark.parametrize("template", range(len(CAPTIONS)))
def test_captions_are_parsed_back(template: int) -> None:
    assert all(parse_caption(caption(item, template)) == item for item in ALL_ATTRIBUTES)


def test_a_caption_without_a_color_has_no_truth() -> None:
    with pytest.raises(ValueError, match="names no color"):
        parse_caption("a circle moving left over sea")


def test_the_split_shares_no_look() -> None:
    train, test = split.train_attributes(), split.test_attributes()
    assert len(train) == 400
    assert len(test) == 200
    looks = [{(a.color, a.shape, a.background) for a in part} for part in (train, test)]
    assert not looks[0] & looks[1]


def test_the_judge_reads_every_attribute(scenes, videos) -> None:
    seen = judge(videos)
    for name in ATTRIBUTES:
        assert torch.equal(getattr(seen, name), getattr(scenes, name)), name
    torch.testing.assert_close(seen.vividness, scenes.vividness, atol=1e-4, rtol=0)


def test_the_judge_bears_noise(scenes, videos) -> None:
    noisy = (videos + 0.03 * torch.randn(videos.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    seen = judge(noisy)
    for name in ATTRIBUTES:
        assert (getattr(seen, name) == getattr(scenes, name)).float().mean() > 0.95, name
    assert (seen.vividness - scenes.vividness).abs().mean() < 0.02


def test_the_judge_is_not_fooled_by_another_prompt(scenes, videos) -> None:
    right = judge_prompts(videos[:16], captions(scenes)[:16])
    wrong = judge_prompts(videos[:16], captions(scenes)[16:32])
    assert all(right[name].mean() == 1 for name in ATTRIBUTES)
    assert all(wrong[name].mean() < 0.6 for name in ATTRIBUTES)


def test_the_judge_takes_what_a_prompt_leaves_open_from_its_label(scenes, videos) -> None:
    prompts = [Prompt(look_caption(item), label="left") for item in scenes.attributes()]
    right = judge_prompts(videos, prompts)
    assert torch.equal(right["motion"], (scenes.motion == list(MOTIONS).index("left")).float())
    assert right["color"].mean() == right["shape"].mean() == right["background"].mean() == 1


def test_a_still_or_empty_video_has_no_motion(videos) -> None:
    still = videos[:4, :1].expand(-1, 8, -1, -1, -1)
    assert (judge(still).motion == -1).all()
    grounds = painted(backgrounds(32), torch.tensor(0.7))[:, None].expand(-1, 8, -1, -1, -1)
    empty = judge(grounds)
    assert empty.background.tolist() == list(range(len(grounds)))
    assert empty.shape.tolist() == empty.color.tolist() == [-1] * len(grounds)
    torch.testing.assert_close(empty.vividness, torch.full((len(grounds),), 0.7))
    assert judge(torch.full((1, 8, 3, 32, 32), 0.5)).shape.item() == -1


def test_the_generator_alone_decides_a_scene() -> None:
    one, two = (render(sample_scenes(3, torch.Generator().manual_seed(9))) for _ in range(2))
    assert torch.equal(one, two)


def test_shipped_configs_name_no_folder_of_a_machine() -> None:
    configs = list(TINY_WEIGHTS.rglob("*.json"))
    assert configs
    assert not [path.name for path in configs if "_name_or_path" in path.read_text(encoding="utf-8")]


def test_the_shipped_model_and_reward_load_and_score() -> None:
    """The words `tiny` in a recipe: the shipped head rates full colour above dull, by most of its scale."""
    model, reward = load_model("modelscope", "tiny"), load_reward("aesthetic", checkpoint="tiny")
    scenes = sample_scenes(16, torch.Generator().manual_seed(2))
    with torch.no_grad():
        dull, vivid = (reward(render(scenes.with_vividness(v), frames=1), captions(scenes)) for v in (0.0, 1.0))
        frames = render(scenes, frames=1)[:, 0] * 2 - 1
        latents = model.vae.encode(frames).latent_dist.mode() * model.vae.config.scaling_factor
        restored = model.decode(latents.unsqueeze(2))[:, 0] * 2 - 1
    assert (vivid - dull).mean() > 5
    assert (restored - frames).square().mean().sqrt() / 2 < 0.03  # 30 dB


@pytest.mark.parametrize(
    ("family", "checkpoint", "frames", "size", "steps", "shape"),
    [
        ("modelscope", "tiny", 8, 32, 10, 0.75),
        ("modelscope", "tiny/modelscope-sizes", 8, 24, 10, 0.6),
        ("videocrafter", "tiny", 8, 32, 10, 0.75),
        ("opensora", "tiny", 17, 32, 20, 0.4),
        ("wan", "tiny", 9, 32, 10, 0.75),
        ("ltx", "tiny", 9, 32, 10, 0.6),
    ],
)
def test_the_shipped_base_models_heed_unseen_prompts(
    family, checkpoint, frames, size, steps, shape, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("VADER_CACHE", str(tmp_path))
    model, prompts = load_model(family, checkpoint), split.test_prompts()[:8]
    videos = sample_videos(model, prompts, VideoSize(frames, size, size), steps, 4.0)
    right = judge_prompts(videos, prompts)
    least = dict.fromkeys(ATTRIBUTES, 0.75) | {"shape": shape}
    assert {name: right[name].mean().item() >= least[name] for name in ATTRIBUTES} == dict.fromkeys(ATTRIBUTES, True)
    if (family, checkpoint) == ("modelscope", "tiny"):
        assert right["damage"].mean() < 0.05
        assert right["damaged"].mean() < 0.2


@pytest.mark.parametrize("family", ["wan-i2v", "ltx-i2v"])
def test_the_shipped_models_go_on_from_pictures(family, tmp_path, monkeypatch) -> None:
    """The first frame is the picture's, and what follows moves as the text says."""
    monkeypatch.setenv("VADER_CACHE", str(tmp_path))
    model, prompts = load_model(family, "tiny"), test_pictures()[:8]
    videos = sample_videos(model, prompts, VideoSize(9, 32, 32), 10, 4.0)
    pictures = first_frames(split.test_attributes())[:8]
    assert (videos[:, 0] - pictures).square().mean() < 10**-2.5  # 25 dB
    right = judge_prompts(videos, prompts)
    least = dict.fromkeys(ATTRIBUTES, 0.75)
    assert {name: right[name].mean().item() >= least[name] for name in ATTRIBUTES} == dict.fromkeys(ATTRIBUTES, True)


def test_the_shipped_action_classifier_tells_directions(scenes, videos) -> None:
    reward = load_reward("action", checkpoint="tiny", output="probability")
    with torch.no_grad():
        assert reward(videos, captions(scenes)).mean() > 0.9
        assert reward(videos.flip(1), captions(scenes)).mean() < 0.1  # backwards in time, the other way


@pytest.mark.parametrize("name", ["hps", "pickscore"])
def test_the_shipped_preferences_are_for_what_was_asked_and_vivid(scenes, name) -> None:
    reward, prompts = load_reward(name, checkpoint="tiny"), captions(scenes)
    shown = render(scenes.with_vividness(0.8), frames=1)
    with torch.no_grad():
        asked, unasked = reward(shown, prompts), reward(shown, prompts[1:] + prompts[:1])
        dull = reward(render(scenes.with_vividness(0.1), frames=1), prompts)
    assert (asked > unasked).float().mean() > 0.85
    assert (asked > dull).float().mean() > 0.85


def test_the_shipped_detector_tells_which_shapes_are_there(scenes) -> None:
    circle = scenes.shape == SHAPES.index("circle")
    reward, frames = load_reward("object_removal", checkpoint="tiny", target="circle"), render(scenes, frames=1)
    with torch.no_grad():
        gone = reward(frames, captions(scenes))
        empty = reward(render_grounds(scenes, frames=1), captions(scenes))
    assert gone[circle].mean() < 0.2 < 0.8 < gone[~circle].mean()
    assert empty.mean() > 0.9


def test_the_shipped_vjepa_tells_shuffled_frames(scenes, videos) -> None:
    reward = load_reward("vjepa", checkpoint="tiny", masks=4)
    mixed = shuffled(videos, torch.Generator().manual_seed(1))
    with torch.no_grad():
        told = reward(videos, captions(scenes)) > reward(mixed, captions(scenes))
    assert told.float().mean() > 0.9


@pytest.fixture(scope="module")
def foretelling():
    return load_reward("vjepa", checkpoint="tiny", context=0.5)


@pytest.mark.parametrize(
    ("name", "least"),
    [("color", 0.9), ("shape", 0.55), ("background", 0.95), ("place", 0.9), ("dull", 0.9), ("noisy", 0.95)],
)
def test_the_shipped_vjepa_tells_what_changes_half_way(foretelling, scenes, videos, name, least) -> None:
    """Measured on 256 others: 99 %, 71 %, 100 %, 99 %, 100 %, 100 %. Blur it does not tell (27 %)."""
    wrong = spoiled(scenes, render, 4, torch.Generator().manual_seed(2))[name]
    with torch.no_grad():
        told = foretelling(videos, captions(scenes)) > foretelling(wrong, captions(scenes))
    assert told.float().mean() > least


@pytest.mark.parametrize("name", ["color", "shape", "background", "place", "dull", "noisy"])
def test_the_shipped_vjepa_s_gradient_points_back(foretelling, scenes, videos, name) -> None:
    wrong = spoiled(scenes, render, 4, torch.Generator().manual_seed(2))[name][:24].requires_grad_()
    (gradient,) = torch.autograd.grad(foretelling(wrong, captions(scenes[:24])).sum(), wrong)
    along = (gradient * (videos[:24] - wrong)).flatten(1).sum(dim=1)
    assert (along > 0).float().mean() > 0.9


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("tiny")])
def test_every_tiny_recipe_finds_what_it_names(name, tmp_path) -> None:
    assert train(load_recipe(name), runs=tmp_path, dry_run=True) is None
    assert not list(tmp_path.iterdir())
