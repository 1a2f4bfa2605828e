"""Wan's image-to-video checkpoints against diffusers' own pipeline: a known first latent, and pictures seen beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

from factories import Fixed
from vader.errors import UserError
from vader.models import load_model
from vader.models.wan_i2v import WanImage
from vader.networks.adapter import adapters_state, add_adapters, parameters_of
from vader.networks.adapter_files import load_adapters, save_adapters
from vader.nouns import Prompt, VideoSize
from vader.sampling.videos import make_sampler
from vader.sampling.walk import Walk
from vader.tools.check import check_model
from wan_factories import RESIDUAL_VAE, make_tiny_wan, make_tiny_wan_i2v, make_transformer


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("wan")
    return {
        "TI2V-5B": make_tiny_wan(root / "ti2v", vae=RESIDUAL_VAE, shift=5.0, expand_timesteps=True),
        "2.1": make_tiny_wan_i2v(root / "one"),
        "2.2": make_tiny_wan_i2v(root / "two", experts=True),
    }


@pytest.fixture(scope="module", params=["TI2V-5B", "2.1", "2.2"])
def folder(request, folders) -> Path:
    return folders[request.param]


def size_of(model: WanImage, frames: int = 9) -> VideoSize:
    return VideoSize(frames, 2 * model.check_size.height, 3 * model.check_size.width, fps=16)


def picture(path: Path, size: VideoSize) -> Prompt:
    pixels = np.random.default_rng(3).integers(0, 256, (size.height, size.width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return Prompt("a red ball", negative="dull", image=path)


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_sampling_equals_the_diffusers_pipeline(folder, tmp_path, steps):
    """Picture and text in, latents and pixels out: everything is each side's own."""
    pipe = WanImageToVideoPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    model = load_model("wan-i2v", str(folder))
    size = size_of(model)
    prompt = picture(tmp_path / "picture.png", size)
    latents = torch.randn(1, *model.noise_shape(size), generator=torch.Generator().manual_seed(1))

    def theirs(output):
        return pipe(
            Image.open(prompt.image), prompt.text, prompt.negative, size.height, size.width, size.frames, steps,
            guidance_scale=4.0, latents=latents, output_type=output,
        ).frames  # fmt: skip

    walk = Walk(make_sampler(model, size, steps, 4.0), model.encode([prompt], size), Fixed(latents))
    found = walk.frozen(steps).latents
    torch.testing.assert_close(found, theirs("latent"), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.decode(found), theirs("pt"), atol=1e-4, rtol=1e-4)


def test_it_keeps_the_contract(folder):
    assert [check for check in check_model(load_model("wan-i2v", str(folder))) if not check.passed] == []


def test_pictures_that_are_given_beside_the_prompts_are_those_that_they_carry(folder, tmp_path):
    model = load_model("wan-i2v", str(folder))
    size = size_of(model, frames=5)
    prompt = picture(tmp_path / "picture.png", size)
    pixels = torch.from_numpy(np.asarray(Image.open(prompt.image)).copy()).movedim(-1, 0)[None] / 255
    carried, given = model.encode([prompt], size), model.encode([prompt], size, images=pixels)
    for name, value in carried.both().items():
        assert torch.equal(given.both()[name], value)
    if carried.known is not None:
        assert torch.equal(given.known.latents, carried.known.latents)
    with pytest.raises(UserError, match=r"images are .* but the videos"):
        model.encode([prompt], size, images=pixels[..., :-8])


def test_the_known_latent_is_the_picture_s_and_none_other(folders, tmp_path):
    model = load_model("wan-i2v", str(folders["TI2V-5B"]))
    size = size_of(model)
    known = model.encode([picture(tmp_path / "picture.png", size)], size).known
    latents = torch.randn(1, *model.noise_shape(size))
    kept = known.keep(latents)
    assert torch.equal(kept[:, :, 1:], latents[:, :, 1:])
    assert torch.equal(kept[:, :, :1], known.latents)


@pytest.mark.parametrize(("trained", "used"), [("wan", "wan-i2v"), ("wan-i2v", "wan")])
def test_an_adapter_of_a_checkpoint_for_texts_and_pictures_serves_both(folders, tmp_path, trained, used):
    source, target = (load_model(family, str(folders["TI2V-5B"])) for family in (trained, used))
    add_adapters(source.denoisers, source.lora_targets, 2, 4.0, 0)
    for parameter in parameters_of(source.denoisers):
        parameter.data.normal_(generator=torch.Generator().manual_seed(len(parameter)))
    save_adapters(source.denoisers, tmp_path, {"family": trained, "checkpoint": str(folders["TI2V-5B"])})
    load_adapters(target.denoisers, tmp_path, used)
    states = [adapters_state(model.denoisers)["transformer"] for model in (source, target)]
    for name, weight in states[0].items():
        factor = 2.0 if "lora_B" in name else 1.0  # alpha 4 of rank 2 lies in B
        torch.testing.assert_close(states[1][name], factor * weight)
    with pytest.raises(UserError, match=rf"was trained on a model of the family '{trained}', not '{used}'"):
        load_adapters({"transformer": make_transformer(0, in_channels=12)}, tmp_path, used)


def test_checkpoints_of_the_other_kind_name_their_family(folders, tmp_path):
    with pytest.raises(UserError, match=r"starts from images: set model\.family to wan-i2v"):
        load_model("wan", str(folders["2.1"]))
    with pytest.raises(UserError, match=r"makes videos of text alone: set model\.family to wan"):
        load_model("wan-i2v", str(make_tiny_wan(tmp_path / "text")))


def test_the_pipeline_of_a_model_has_all_its_parts(folder, tmp_path):
    model = load_model("wan-i2v", str(folder))
    model.exporter()(tmp_path / "out")
    again = load_model("wan-i2v", str(tmp_path / "out"))
    assert again.networks().keys() == model.networks().keys()
    assert again.index == model.index
