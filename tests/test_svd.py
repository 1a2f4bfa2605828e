"""The Stable Video Diffusion family against diffusers' own pipeline, and pictures on their way through a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, StableVideoDiffusionPipeline, UNetSpatioTemporalConditionModel
from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as reference
from PIL import Image

from factories import Fixed, decoded_by_windows, make_tiny_svd
from vader.cli import main
from vader.errors import UserError
from vader.models import load_model
from vader.models.svd import StableVideoDiffusion, own_noise, shrink
from vader.networks.adapter import matching_layers
from vader.networks.measure import count_parameters
from vader.nouns import Prompt, VideoSize
from vader.sampling.videos import make_sampler, sample_videos
from vader.sampling.walk import Place, Walk
from vader.tools.check import check_model

SIZE = VideoSize(frames=4, height=16, width=24, fps=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny_svd(tmp_path_factory.mktemp("svd") / "model")


@pytest.fixture(scope="module")
def model(folder) -> StableVideoDiffusion:
    return load_model("svd", str(folder))


def picture(path: Path, seed: int, height: int = 16, width: int = 24) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def prompts(tmp_path) -> list[Prompt]:
    return [Prompt(name, image=picture(tmp_path / f"{name}.png", seed)) for seed, name in enumerate(("sea", "sky"))]


def start(model, size=SIZE, count=2):
    return torch.randn(count, *model.noise_shape(size), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scale", [1.0, 3.0])
@torch.no_grad()
def test_sampling_equals_the_diffusers_pipeline(folder, prompts, monkeypatch, scale):
    """Pictures in files, the loop of ours, pixels out: everything but the augmentation's draws is each side's own."""
    pipe = StableVideoDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    model = load_model("svd", str(folder), options={"motion_bucket": 90, "noise_augmentation": 0.1})
    pictures = [Image.open(prompt.image) for prompt in prompts]
    monkeypatch.setattr(reference, "randn_tensor", lambda shape, **kw: own_noise(images))
    images = torch.stack([torch.from_numpy(np.array(p)).movedim(-1, 0) / 255 for p in pictures])
    settings = {"height": 16, "width": 24, "num_frames": 4, "num_inference_steps": 4, "fps": 5}
    settings |= {"motion_bucket_id": 90, "noise_aug_strength": 0.1, "max_guidance_scale": scale}
    latents = start(model)
    theirs = pipe(pictures, latents=latents, output_type="latent", **settings).frames
    pixels = pipe(pictures, latents=latents, output_type="pt", decode_chunk_size=4, **settings).frames
    walk = Walk(make_sampler(model, SIZE, 4, scale), model.encode(prompts, SIZE), Fixed(latents))
    # The pipeline, too, multiplies start latents by its scheduler's own factor.
    torch.testing.assert_close(walk.start().latents, latents * walk.sampler.schedule.init_scale)
    ours = walk.frozen(len(walk)).latents
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.decode(ours), pixels, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(16, 24), (230, 700), (600, 300)])
def test_the_image_encoder_sees_what_the_pipeline_shows_it(height, width):
    images = torch.rand(2, 3, height, width)
    expected = (reference._resize_with_antialiasing(images * 2 - 1, (224, 224)) + 1) / 2
    torch.testing.assert_close(shrink(images, 224), expected, atol=1e-5, rtol=0)


def test_augmentation_noise_is_each_picture_s_own():
    images = torch.rand(3, 3, 64, 64)
    noise = own_noise(images)
    assert torch.equal(own_noise(images[[2, 0]]), noise[[2, 0]])
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert torch.corrcoef(noise.flatten(1)).triu(1).abs().max() < 0.05


def test_conditions(model, prompts):
    condition = model.encode(prompts, SIZE)
    assert condition.cond["clip"].shape == (2, 1, 16)
    assert condition.cond["image"].shape == (2, 4, 8, 12)
    torch.testing.assert_close(condition.uncond["numbers"], torch.tensor([[4.0, 127.0, 0.02]] * 2))
    assert not condition.uncond["clip"].any()
    assert not condition.uncond["image"].any()


def test_it_keeps_the_contract(model):
    failed = [check for check in check_model(model, VideoSize(2, 8, 8)) if not check.passed]
    assert not failed


def test_the_full_size_networks_have_the_released_numbers_of_weights(shared):
    configs = json.loads(shared("parity/rewards/video_model_configs.json").read_text())
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel(**configs["svd-xt unet"]["config"])
        vae = AutoencoderKLTemporalDecoder(**configs["svd vae"]["config"])
    assert count_parameters(unet) == configs["svd-xt unet"]["params"]
    assert count_parameters(vae) == configs["svd vae"]["params"]
    assert len(matching_layers(unet, StableVideoDiffusion.lora_targets)) == 256  # 4 of 2 attentions in 32 blocks


# ---- windows of the decoder


@pytest.fixture(scope="module")
def windowed(folder) -> StableVideoDiffusion:
    """Windows of two frames: of five, 0-1, 2-3 and 4."""
    return load_model("svd", str(folder), options={"decode_chunk": 2})


FIVE = VideoSize(frames=5, height=16, width=16)


@torch.no_grad()
def test_windows_are_those_of_the_pipeline(windowed):
    latents = start(windowed, FIVE, count=1)
    theirs = windowed.diffusers_pipeline().decode_latents(latents, num_frames=5, decode_chunk_size=2)
    torch.testing.assert_close(windowed.decode_unclamped(latents)[0], theirs[0].movedim(1, 0) / 2 + 0.5)


@torch.no_grad()
def test_windows_one_by_one_make_the_whole(windowed, model):
    latents = start(windowed, FIVE)
    assert [len(window) for window in windowed.windows(FIVE)] == [2, 2, 1]
    assert [len(window) for window in model.windows(FIVE)] == [5]
    for one in (windowed, model):
        torch.testing.assert_close(decoded_by_windows(one, latents, FIVE), one.decode_unclamped(latents))


def test_chosen_frames_are_those_of_the_whole_and_so_are_their_gradients(windowed):
    latents, frames = start(windowed, FIVE).requires_grad_(), torch.tensor([[3, 0], [4, 4]])
    rows = torch.arange(2)[:, None]
    chosen, whole = windowed.decode_unclamped(latents, frames), windowed.decode_unclamped(latents)[rows, frames]
    torch.testing.assert_close(chosen, whole)
    weights = torch.randn_like(chosen)
    ours, theirs = (torch.autograd.grad((pixels * weights).sum(), latents)[0] for pixels in (chosen, whole))
    torch.testing.assert_close(ours, theirs)
    touched = (ours.abs().sum(dim=(2, 3, 4)) > 0).tolist()
    assert touched == [[True, True, True, True, False], [False, False, False, False, True]]


def test_the_gradient_of_a_chain_and_its_decoding_agrees_with_central_differences(folder, prompts):
    """Two last steps and one frame's window, in float64, along a random direction of the start latents."""
    model = load_model("svd", str(folder), options={"decode_chunk": 2})
    for network in model.networks().values():
        network.double()
    small = VideoSize(4, 16, 16)
    condition = model.encode(prompts, small, torch.rand(2, 3, 16, 16, dtype=torch.float64))
    walk = Walk(make_sampler(model, small, 4, 3.0), condition, Fixed(None))
    base, along = (torch.randn(2, *model.noise_shape(small), dtype=torch.float64) for _ in range(2))

    def objective(h):
        at = Place(2, base + h * along)
        for _ in (2, 3):
            at = walk.step(at)
        return model.decode_unclamped(at.latents, torch.tensor([[1], [3]])).sin().sum()

    h = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(objective(h), h)
    with torch.no_grad():
        difference = (objective(torch.tensor(1e-5)) - objective(torch.tensor(-1e-5))) / 2e-5
    assert gradient.item() == pytest.approx(difference.item(), rel=1e-5)


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"motion": 3}, "model 'svd' has no option 'motion': did you mean 'motion_bucket'"),
        ({"motion_bucket": "fast"}, "model 'svd': motion_bucket is 'fast'"),
        ({"motion_bucket": 0}, "motion_bucket is 0: the model knows 1 to 255"),
        ({"noise_augmentation": -0.1}, "noise_augmentation is -0.1: it must be 0 or more"),
        ({"decode_chunk": 0}, "decode_chunk is 0: it must be at least 1 frame"),
    ],
)
def test_wrong_options_are_one_line(options, said):
    with pytest.raises(UserError, match=said):
        load_model("svd", "never-read", options=options)


def test_texts_and_pictures_go_to_the_models_that_want_them(model, prompts):
    with pytest.raises(UserError, match="family 'svd' start from images, but prompt 'a text' has none"):
        sample_videos(model, [*prompts, "a text"], SIZE, 2)
    with pytest.raises(UserError, match="images are 16x24, but the videos 32x24"):
        model.encode(prompts, VideoSize(4, 32, 24), torch.rand(2, 3, 16, 24))
    with pytest.raises(UserError, match="'a text' has no image, and the model starts from one"):
        model.encode([Prompt("a text")], SIZE)
    with pytest.raises(UserError, match="the nearest is 16x24"):
        model.noise_shape(VideoSize(4, 17, 25))


def test_what_a_prompt_carries_and_the_model_does_not_read_is_refused(model, prompts):
    with pytest.raises(UserError, match="'svd' read no text, but prompt 'sky' has the negative 'dull': leave it out"):
        model.check_prompts([prompts[0], replace(prompts[1], negative="dull")])
    with pytest.raises(UserError, match="'svd' take no last image, but prompt 'sea' has one"):
        model.check_prompts([replace(prompts[0], last_image=prompts[1].image)])
    pictures = torch.rand(1, 3, 16, 24)
    with pytest.raises(UserError, match="read no text"):  # also where the pictures are given beside the prompts
        sample_videos(model, [Prompt("a text", negative="dull")], SIZE, 2, images=pictures)
    assert sample_videos(model, ["a text"], SIZE, 2, images=pictures).shape == (1, 4, 3, 16, 24)


def test_a_family_that_takes_a_last_image_is_asked_for_one_that_opens(prompts, tmp_path):
    class Between(StableVideoDiffusion):
        takes_last_image = True

    Between.check_prompts([prompts[0], replace(prompts[0], last_image=prompts[1].image)])
    (tmp_path / "broken.png").write_text("no picture")
    with pytest.raises(UserError, match=r"broken.png' cannot be read"):
        Between.check_prompts([replace(prompts[0], last_image=tmp_path / "broken.png")])


# ---- a run

RECIPE = """
name: pictures
model: {{family: svd, checkpoint: "{checkpoint}", options: {{decode_chunk: 2}}}}
video: {{frames: 4, height: 16, width: 16, fps: 7}}
sampling: {{steps: 3, guidance: 2.0}}
rewards:
  - {{name: "toys:Warmth"}}
prompts: {{train: "{pictures}", test: "{pictures}"}}
adapter: {{rank: 2}}
optimizer: {{lr: 0.01}}
train: {{steps: 1, batch: 2}}
evaluation: {{videos: 2, shown: 1, batch: 2}}
"""


@pytest.fixture
def recipe(folder, tmp_path) -> Path:
    (tmp_path / "pictures").mkdir()
    for seed in range(3):
        picture(tmp_path / "pictures" / f"{seed}.png", seed, height=40, width=20 + 10 * seed)
    path = tmp_path / "pictures.yaml"
    path.write_text(RECIPE.format(checkpoint=folder, pictures=tmp_path / "pictures"))
    return path


def test_a_recipe_trains_samples_and_exports(recipe, tmp_path, capsys):
    runs = str(tmp_path / "runs")
    assert main(["train", str(recipe), "--runs", runs]) == 0
    lines = [json.loads(line) for line in (tmp_path / "runs/pictures/metrics.jsonl").read_text().splitlines()]
    (step,) = (line for line in lines if line["kind"] == "train")
    assert step["grad_norm"] > 0
    assert not step["skipped"]
    before, after = (line for line in lines if line["kind"] == "evaluation")
    assert before["reward"] != after["reward"]

    sample = ["sample", "--recipe", str(recipe), "--adapter", f"{runs}/pictures/adapter", "--steps", "2"]
    assert main([*sample, "--image", str(tmp_path / "pictures"), "--out", str(tmp_path / "videos")]) == 0
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 3

    assert main(["export", f"{runs}/pictures", "--merged", "--trust-code", "--out", str(tmp_path / "merged")]) == 0
    merged = StableVideoDiffusionPipeline.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name for name in merged.unet.state_dict())


def test_a_run_with_the_wrong_kind_of_prompts_ends_before_anything_is_loaded(recipe, tmp_path, capsys):
    runs = ["--runs", str(tmp_path / "runs")]
    assert main(["train", str(recipe), "model.checkpoint=nowhere", "prompts.test=activities-test", *runs]) == 2
    assert "start from images" in capsys.readouterr().err
    assert main(["train", "tiny", f"prompts.test={tmp_path / 'pictures'}", *runs]) == 2
    assert "'modelscope' take no images, but prompt '0' has one" in capsys.readouterr().err
    sample = ["sample", "--recipe", str(recipe), "--out", str(tmp_path / "videos")]
    assert main([*sample, "a text"]) == 2
    assert "start from images" in capsys.readouterr().err
    assert main([*sample, "a text", "--image", str(tmp_path / "pictures")]) == 2
    assert "3 images and 1 prompts: give as many of both" in capsys.readouterr().err
