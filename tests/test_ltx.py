"""LTX-Video against diffusers' own pipelines: text and pictures in, latents and pixels out, and its adapters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LTXImageToVideoPipeline, LTXPipeline, LTXVideoTransformer3DModel
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_ltxv_lora_to_diffusers as to_diffusers
from diffusers.pipelines.ltx import pipeline_ltx_condition
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import T5EncoderModel

from factories import Fixed
from ltx_factories import PIPELINES, make_ltx_transformer, make_tiny_ltx
from vader.cli import main
from vader.errors import UserError
from vader.files.hub import tiny_weights
from vader.models import load_model
from vader.models.ltx import LTX
from vader.models.ltx_lora import NAMES
from vader.models.ltx_vae import DRAW
from vader.networks.adapter import adapter_parameters, add_adapter, matching_layers
from vader.networks.adapter_files import load_adapters, save_adapters
from vader.networks.measure import count_parameters
from vader.networks.original_names import to_original
from vader.networks.recompute import Recomputed
from vader.nouns import Prompt, VideoSize
from vader.planning.ltx import LARGE, RELEASES
from vader.planning.models import load_model_shape
from vader.planning.step import forecast
from vader.recipe import load_recipe
from vader.runs.reader import read_run
from vader.sampling.guidance import load_guidance
from vader.sampling.videos import make_sampler, solver_of
from vader.sampling.walk import Walk
from vader.tools.check import check_model
from vader.tools.export import export_adapter, loading_lines

SIZE = VideoSize(frames=9, height=32, width=64, fps=12)
PROMPTS = [Prompt("a red ball", negative="a b"), Prompt("a b c d")]
VERSIONS = ["0.9.0", "0.9.1", "0.9.5"]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("ltx")
    return {version: make_tiny_ltx(root / version, version) for version in VERSIONS}


def pipeline(cls, folder):
    pipe = cls.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def packed(latents):
    return latents.flatten(2).transpose(1, 2)


def start(model, count=2):
    return torch.randn(count, *model.noise_shape(SIZE), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def ours(model, condition, latents, steps, guidance=3.0, **solver):
    sampler = make_sampler(model, SIZE, steps, guidance, solver_of(model, **solver))
    return Walk(sampler, condition, Fixed(latents)).frozen(steps).latents


@torch.no_grad()
def theirs(pipe, prompts, steps, output, **more):
    """What the pipeline makes of these prompts; of a checkpoint whose decoder is told a time, as is advised."""
    told = {"decode_timestep": 0.05, "decode_noise_scale": 0.025} if pipe.vae.config.timestep_conditioning else {}
    settings = {"guidance_scale": 3.0, "generator": torch.Generator().manual_seed(DRAW)} | told | more
    torch.manual_seed(DRAW)
    return pipe(
        prompt=[one.text for one in prompts], negative_prompt=[one.negative for one in prompts], height=SIZE.height,
        width=SIZE.width, num_frames=SIZE.frames, frame_rate=SIZE.fps, num_inference_steps=steps, output_type=output,
        **settings,
    ).frames  # fmt: skip


def same(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# ---- sampled as diffusers samples ----


@pytest.mark.parametrize("version", ["0.9.0", "0.9.1"])
@pytest.mark.parametrize("steps", [2, 3, 8])
def test_sampling_equals_the_first_pipeline(folders, version, steps):
    """At one step its levels, of which the last is given, are no numbers. All videos have the same noise."""
    model, pipe = load_model("ltx", str(folders[version])), pipeline(LTXPipeline, folders[version])
    latents = start(model)
    found = ours(model, model.encode(PROMPTS, SIZE), latents, steps)
    same(packed(found), theirs(pipe, PROMPTS, steps, "latent", latents=packed(latents)))
    expected = [theirs(pipe, [one], steps, "pt", latents=packed(latents[i : i + 1])) for i, one in enumerate(PROMPTS)]
    same(model.decode(found), torch.cat(expected))
    assert torch.cat(expected).std() > 0.05


@pytest.fixture
def given(monkeypatch):
    """Has the later pipeline, which takes no latents, draw what it is given; noise of the decoder comes after them."""

    def give(latents):
        noise = torch.randn(1, *latents.shape[1:], generator=torch.Generator().manual_seed(DRAW))
        draws = iter([latents, noise.expand_as(latents)])
        monkeypatch.setattr(pipeline_ltx_condition, "randn_tensor", lambda *args, **settings: next(draws))

    return give


def test_the_shipped_model_samples_as_the_first_pipeline():
    """Its weights are half precision and float8 on disk; here and there they are loaded as float32."""
    folder = tiny_weights("ltx")
    pipe = LTXPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    model, size = load_model("ltx", "tiny"), VideoSize(frames=9, height=32, width=32, fps=8)
    latents = torch.randn(1, *model.noise_shape(size), generator=torch.Generator().manual_seed(1))
    walk = Walk(make_sampler(model, size, 3, 4.0), model.encode(PROMPTS[:1], size), Fixed(latents))
    found = walk.frozen(3).latents
    with torch.no_grad():
        expected = pipe(
            PROMPTS[0].text, PROMPTS[0].negative, 32, 32, 9, 8, 3, guidance_scale=4.0, latents=packed(latents),
            output_type="pt",
        ).frames  # fmt: skip
        same(model.decode(found), expected)


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_sampling_equals_the_later_pipeline(folders, given, steps):
    model = load_model("ltx", str(folders["0.9.5"]))
    pipe, latents = pipeline(PIPELINES["0.9.5"], folders["0.9.5"]), start(model)
    found = ours(model, model.encode(PROMPTS, SIZE), latents, steps)
    for output, mine in {"latent": found, "pt": model.decode(found)}.items():
        given(latents)
        same(mine, theirs(pipe, PROMPTS, steps, output))


@pytest.mark.parametrize(("version", "sigma"), [("0.9.0", 0.1), ("0.9.5", 0.124)])
def test_the_last_of_thirty_steps_starts_with_noise_left(folders, version, sigma):
    starts = solver_of(load_model("ltx", str(folders[version]))).schedule(30, SIZE).starts
    assert starts[-1].sigma == pytest.approx(sigma, abs=1e-3)


def test_distilled_sigmas_and_rescaled_guidance_are_the_pipeline_s(folders, given):
    model = load_model("ltx", str(folders["0.9.5"]))
    pipe, latents = pipeline(PIPELINES["0.9.5"], folders["0.9.5"]), start(model)
    condition, times = model.encode(PROMPTS, SIZE), [1000.0, 975.0, 725.0]
    given(latents)
    found = ours(model, condition, latents, 3, 1.0, sigmas=[time / 1000 for time in times])
    same(found, theirs(pipe, PROMPTS, 3, "latent", guidance_scale=1.0, timesteps=times))
    given(latents)
    rescaled = ours(model, condition, latents, 3, load_guidance("cfg", {"scale": 5.0, "rescale": 0.7}))
    same(rescaled, theirs(pipe, PROMPTS, 3, "latent", guidance_scale=5.0, guidance_rescale=0.7))
    assert (rescaled - ours(model, condition, latents, 3, 5.0)).abs().max() > 1e-2


# ---- from pictures ----


@pytest.fixture
def picture(tmp_path) -> Prompt:
    pixels = np.random.default_rng(3).integers(0, 256, (SIZE.height, SIZE.width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return Prompt("a red ball", negative="a b", image=tmp_path / "picture.png")


@pytest.mark.parametrize("version", ["0.9.0", "0.9.1"])
@pytest.mark.parametrize("steps", [2, 3, 8])
def test_a_video_from_a_picture_equals_the_first_pipeline(folders, picture, version, steps):
    model, pipe = load_model("ltx-i2v", str(folders[version])), pipeline(LTXImageToVideoPipeline, folders[version])
    condition, latents = model.encode([picture], SIZE), start(model, 1)
    found = ours(model, condition, latents, steps)
    begun = packed(condition.known.keep(latents))
    same(packed(found), theirs(pipe, [picture], steps, "latent", latents=begun))
    same(model.decode(found), theirs(pipe, [picture], steps, "pt", latents=begun))


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_a_video_from_a_picture_equals_the_later_pipeline(folders, picture, given, monkeypatch, steps):
    monkeypatch.setattr(pipeline_ltx_condition, "retrieve_latents", lambda encoded, **how: encoded.latent_dist.mode())
    model, pipe = load_model("ltx-i2v", str(folders["0.9.5"])), pipeline(PIPELINES["0.9.5"], folders["0.9.5"])
    latents, shown = start(model, 1), {"image": Image.open(picture.image), "image_cond_noise_scale": 0.0}
    found = ours(model, model.encode([picture], SIZE), latents, steps)
    for output, mine in {"latent": found, "pt": model.decode(found)}.items():
        given(latents)
        same(mine, theirs(pipe, [picture], steps, output, **shown))


def test_families_say_what_they_start_from(folders, picture):
    with pytest.raises(UserError, match="take no images"):
        load_model("ltx", str(folders["0.9.0"])).encode([picture], SIZE, torch.rand(1, 3, 32, 64))
    with pytest.raises(UserError, match="start from images"):
        load_model("ltx-i2v", str(folders["0.9.0"])).check_prompts(PROMPTS)


# ---- text ----


@pytest.mark.parametrize("version", ["0.9.0", "0.9.5"])
def test_text_is_what_the_pipeline_encodes_where_it_is_attended(folders, version):
    model, pipe = load_model("ltx", str(folders[version])), pipeline(PIPELINES[version], folders[version])
    condition = model.encode(PROMPTS, SIZE)
    texts = [[one.text for one in PROMPTS], [one.negative for one in PROMPTS]]
    cond, cond_mask, uncond, uncond_mask = pipe.encode_prompt(*texts)
    assert cond.shape[1] == (128 if version == "0.9.0" else 256)
    for found, text, mask in ((condition.cond, cond, cond_mask), (condition.uncond, uncond, uncond_mask)):
        length = found["mask"].shape[1]
        assert torch.equal(found["mask"], mask[:, :length].bool())
        assert not mask[:, length:].any()
        same(found["text"][found["mask"]], text[mask])


def test_prompts_that_were_prepared_need_no_encoder(folders, monkeypatch):
    model = load_model("ltx", str(folders["0.9.0"]))
    model.prepare(PROMPTS)
    monkeypatch.setattr(T5EncoderModel, "from_pretrained", lambda *a, **k: pytest.fail("the encoder was loaded"))
    model.encode(PROMPTS, SIZE)
    assert set(model.networks()) == {"transformer", "vae"}


# ---- the contract ----


@pytest.mark.parametrize(("family", "version"), [("ltx", "0.9.0"), ("ltx-i2v", "0.9.1"), ("ltx", "0.9.5")])
def test_it_keeps_the_contract_at_the_smallest_size(folders, family, version):
    model = load_model(family, str(folders[version]))
    assert [check for check in check_model(model) if not check.passed] == []
    assert model.check_size == VideoSize(5, 16, 16)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (VideoSize(8, 32, 64), "8 frames are not possible: they must be 4n . 1; the nearest are 5 and 9"),
        (VideoSize(9, 40, 64), "40x64 .* must be multiples of 16; the nearest is 32x64"),
    ],
)
def test_sizes_that_cannot_be_made_name_the_nearest(folders, size, message):
    with pytest.raises(UserError, match=message):
        load_model("ltx", str(folders["0.9.0"])).noise_shape(size)


def test_options_of_the_decoder_are_checked(folders):
    with pytest.raises(UserError, match=r"0\.9\.0\) is told no timestep: leave model\.options\.decode_timestep"):
        load_model("ltx", str(folders["0.9.0"]), options={"decode_timestep": 0.1})
    with pytest.raises(UserError, match=r"decode_noise_scale are shares in \[0, 1\]"):
        load_model("ltx", str(folders["0.9.5"]), options={"decode_noise_scale": 1.5})
    told = load_model("ltx", str(folders["0.9.5"]), options={"decode_noise_scale": 0.0}).decoder.told
    assert (told.timestep, told.noise) == (0.05, 0.0)


def test_windows_hold_the_frames_of_some_latents(folders):
    model = load_model("ltx", str(folders["0.9.0"]))
    windows = model.windows(VideoSize(41, 16, 16))
    assert windows == [range(17), range(17, 33), range(33, 41)]


def test_encoded_videos_are_the_posterior_s_mode(folders):
    model, pixels = load_model("ltx", str(folders["0.9.5"])), torch.rand(2, 9, 3, 32, 64)
    vae = model.vae
    mean, std = (values.view(-1, 1, 1, 1) for values in (vae.latents_mean, vae.latents_std))
    expected = (vae.encode(pixels.movedim(2, 1) * 2 - 1).latent_dist.mode() - mean) / std
    torch.testing.assert_close(model.encode_video(pixels), expected)


def test_the_vae_is_recomputed_layer_by_layer_and_the_pipeline_has_all_parts(folders, tmp_path):
    model = load_model("ltx", str(folders["0.9.5"]))
    model.exporter()(tmp_path / "out")
    assert (tmp_path / "out" / "model_index.json").read_text().count("LTXConditionPipeline")
    again = load_model("ltx", str(tmp_path / "out"))
    assert again.generation == model.generation
    model.recompute("vae", model.vae, "blocks")
    assert isinstance(model.vae.decoder.up_blocks[0].resnets[0].forward, Recomputed)
    assert not isinstance(model.vae.decoder.up_blocks[0].forward, Recomputed)


def test_bf16_samples_near_float32(folders):
    model, exact = (load_model("ltx", str(folders["0.9.0"]), dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    condition, latents = exact.encode(PROMPTS, SIZE), start(exact)
    found, expected = (ours(one, condition, latents, 2) for one in (model, exact))
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.1 * expected.norm()


# ---- adapters ----

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TARGETS = {"attention": ATTENTION, "blocks": (*ATTENTION, "ff.net.0.proj", "ff.net.2")}


@torch.no_grad()
def output(network):
    draw = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 12, 8, generator=draw), torch.randn(1, 5, 16, generator=draw)
    return network.eval()(
        latents, text, torch.tensor([500.0]), torch.ones(1, 5), num_frames=2, height=3, width=2, return_dict=False
    )[0]


@pytest.fixture(params=TARGETS)
def trained(request, tmp_path):
    """A network with an adapter, and the adapter's folder."""
    network = add_adapter(make_ltx_transformer(), TARGETS[request.param], rank=4, alpha=8)
    for parameter in adapter_parameters(network):
        parameter.data.normal_(std=0.3)
    save_adapters({"transformer": network}, tmp_path / "adapter", {"family": "ltx", "checkpoint": "tiny"})
    return network, tmp_path / "adapter"


@pytest.mark.parametrize("form", ["diffusers", "comfyui"])
def test_either_form_is_loaded_by_diffusers_and_here_with_the_same_output(trained, tmp_path, form):
    network, folder = trained
    (file,) = export_adapter(folder, tmp_path / "out", form)
    assert all(key.startswith("diffusion_model." if form == "comfyui" else "transformer.") for key in load_file(file))
    pipe = LTXPipeline(None, None, None, None, transformer=make_ltx_transformer())
    assert (output(pipe.transformer) - output(network)).abs().max() > 0.01
    (line,) = loading_lines([file])
    exec(line.removeprefix("into diffusers' LTXPipeline: "), {"pipe": pipe})
    assert torch.equal(output(pipe.transformer), output(network))
    again = {"transformer": make_ltx_transformer()}
    load_adapters(again, file, "ltx")
    assert torch.equal(output(again["transformer"]), output(network))


def test_the_names_are_those_that_diffusers_converter_finds():
    with torch.device("meta"):
        network = LTXVideoTransformer3DModel(num_layers=2)
    layers = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    known = [layer for layer in layers if NAMES.theirs(layer)]
    assert set(layers) - set(known) == {
        "proj_in", "time_embed.linear", "time_embed.emb.timestep_embedder.linear_1",
        "time_embed.emb.timestep_embedder.linear_2",
    }  # fmt: skip
    weights = {f"{layer}.lora_{factor}.weight": torch.zeros(1, 1) for layer in known for factor in "AB"}
    assert to_diffusers(to_original(weights, NAMES)).keys() == {f"transformer.{name}" for name in weights}
    assert NAMES.dotted("transformer_blocks_3_ff_net_0_proj") == "transformer_blocks.3.ff.net.0.proj"
    with pytest.raises(UserError, match="'proj_in' has no name that ComfyUI's loaders read"):
        to_original({"proj_in.lora_A.weight": torch.ones(1, 1)}, NAMES)


# ---- in the releases' sizes ----


@pytest.mark.parametrize("checkpoint", list(RELEASES)[:3])
def test_the_releases_have_their_sizes(checkpoint):
    model = load_model_shape("ltx", checkpoint, {}, torch.bfloat16, torch.device("meta"))
    large = "0.9.7" in checkpoint or "13B" in checkpoint
    assert count_parameters(model.denoiser) == (13_042_569_344 if large else 1_923_385_472)
    assert round(count_parameters(model.vae) / 1e6, 1) == (419.2 if checkpoint.endswith("Video") else 1246.9)
    blocks = LARGE["num_layers"] if large else 28
    assert len(matching_layers(model.denoiser, LTX.lora_targets)) == 8 * blocks
    assert len(matching_layers(model.denoiser, TARGETS["blocks"])) == 10 * blocks
    assert model.noise_shape(VideoSize(121, 480, 832)) == (128, 16, 15, 26)
    assert model.tokens(VideoSize(121, 480, 832)) == 6240


@pytest.mark.slow
def test_a_step_is_walked_through_without_data():
    changes = ["model.family=ltx-i2v", "video.frames=9", "video.height=64", "video.width=64", "train.batch=1"]
    found = forecast(load_recipe("ltx-2b-hps", [*changes, "sampling.steps=1", "rewards=[{name: compression}]"]))
    assert found.peak > sum(found.weights.values()) > 5 * 2**30


# ---- trained ----

RECIPE = """
name: ltx
model: {family: ltx, checkpoint: CHECKPOINT}
video: {frames: 9, height: 16, width: 16, fps: 12}
sampling: {steps: 3, sigmas: even, guidance: 3.0}
rewards: [{name: "toys:Warmth", sees: 2}]
prompts: {train: tiny-train, test: tiny-test}
algorithm: {policy: {name: last, k: 1}}
adapter: {rank: 2}
optimizer: {lr: 1.0e-2}
train: {steps: 1, batch: 2}
evaluation: {every: 1, videos: 2, shown: 1}
memory: [{name: recompute}]
"""


@pytest.mark.slow
def test_a_run_trains_and_another_starts_from_its_published_form(folders, tmp_path, capsys):
    (tmp_path / "ltx.yaml").write_text(RECIPE.replace("CHECKPOINT", str(folders["0.9.5"])))
    train = ["train", str(tmp_path / "ltx.yaml"), "--runs", str(tmp_path)]
    assert main([*train, "name=first"]) == 0
    out = tmp_path / "published"
    assert main(["export", str(tmp_path / "first"), "--adapter", "--format", "comfyui", "--out", str(out)]) == 0
    assert main([*train, "name=second", f"adapter.init={out / 'lora.safetensors'}"]) == 0
    before, after = (read_run(tmp_path / name).evaluations for name in ("first", "second"))
    assert after[0].reward == pytest.approx(before[-1].reward, abs=1e-6)
    assert before[0].reward != before[-1].reward
