"""The CogVideoX families against diffusers' own pipelines, and their adapters in them."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline, CogVideoXTransformer3DModel
from diffusers.pipelines.cogvideo import pipeline_cogvideox_image2video as image_to_video
from diffusers.schedulers import scheduling_dpm_cogvideox
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel

from cogvideox_factories import TEXT_TOKENS, VARIANTS, make_tiny_cogvideox, make_transformer
from vader.cli import main
from vader.errors import UserError
from vader.models import load_adapter, load_model
from vader.models.cogvideox import CogVideoX
from vader.networks.adapter import adapter_parameters, add_adapter
from vader.networks.adapter_files import save_adapters
from vader.networks.recompute import Recomputed
from vader.nouns import Prompt, VideoSize
from vader.runs.folder import ADAPTER
from vader.runs.reader import read_run
from vader.sampling.guidance import load_guidance
from vader.sampling.noise import Noise
from vader.sampling.videos import make_sampler
from vader.sampling.walk import Walk
from vader.tools.check import check_model
from vader.tools.export import export_adapter, loading_lines

SIZE = VideoSize(frames=17, height=32, width=48)
TEXTS, NEGATIVES = ["a red ball", "abc"], ["dull", ""]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("cogvideox")
    return {name: make_tiny_cogvideox(root / name, name) for name in VARIANTS}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> list[Prompt]:
    """Each with a picture, which only some families look at."""
    path, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(3)
    for text in TEXTS:
        pixels = draw.integers(0, 256, (SIZE.height, SIZE.width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{text}.png")
    return [Prompt(*pair, image=path / f"{pair[0]}.png") for pair in zip(TEXTS, NEGATIVES, strict=True)]


def load(folders, name: str) -> CogVideoX:
    return load_model("cogvideox-i2v" if "i2v" in name else "cogvideox", str(folders[name]))


def pipeline(folder: Path):
    pictured = "i2v" in folder.name
    pipe = (CogVideoXImageToVideoPipeline if pictured else CogVideoXPipeline).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# ---- sampled as diffusers samples ----


@torch.no_grad()
def theirs(pipe, prompts, noise: Noise, steps: int, monkeypatch, **more):
    """Latents and pixels by diffusers' pipeline, text and pictures included, from the same noise."""
    draw = partial(scheduling_dpm_cogvideox.CogVideoXDPMScheduler.step, pipe.scheduler)

    def step(output, before, time, *rest, **options):  # the DPM solver draws twice a step, and throws the first away
        fresh = noise.draw(f"step{pipe.scheduler.timesteps.tolist().index(int(time))}")
        monkeypatch.setattr(scheduling_dpm_cogvideox, "randn_tensor", lambda *_, **__: fresh)
        return draw(output, before, time, *rest, **options)

    if isinstance(pipe.scheduler, scheduling_dpm_cogvideox.CogVideoXDPMScheduler):
        monkeypatch.setattr(pipe.scheduler, "step", step)
    if isinstance(pipe, CogVideoXImageToVideoPipeline):  # it draws from the VAE's posterior, we take its mode
        mode = partial(image_to_video.retrieve_latents, sample_mode="argmax")
        monkeypatch.setattr(image_to_video, "retrieve_latents", mode)
        more["image"] = [Image.open(prompt.image) for prompt in prompts]
    latents = pipe(
        prompt=TEXTS, negative_prompt=NEGATIVES, height=SIZE.height, width=SIZE.width, num_frames=SIZE.frames,
        num_inference_steps=steps, latents=noise.draw("start"), max_sequence_length=TEXT_TOKENS, output_type="latent",
        **more,
    ).frames  # fmt: skip
    pixels = pipe.video_processor.postprocess_video(pipe.decode_latents(_shown(pipe, latents)), output_type="pt")
    return latents, pixels


def _shown(pipe, latents):
    return latents if pipe.transformer.config.patch_size_t is None else latents[:, 1:]


@torch.no_grad()
def ours(model, prompts, noise: Noise, steps: int, guidance):
    bare = [Prompt(one.text, one.negative, image=one.image if model.takes_images else None) for one in prompts]
    walk = Walk(make_sampler(model, SIZE, steps, guidance), model.encode(bare, SIZE), noise)
    latents = walk.frozen(steps).latents
    return latents, model.decode(latents)


def noise_of(model) -> Noise:
    return Noise(model.noise_shape(SIZE), 0, "test", 0, range(2))


@pytest.mark.parametrize("name", VARIANTS)
def test_sampling_equals_the_diffusers_pipeline(folders, prompts, name, monkeypatch):
    model, pipe = load(folders, name), pipeline(folders[name])
    for steps in (1, 2, 3, 8):
        expected = theirs(pipe, prompts, noise_of(model), steps, monkeypatch, guidance_scale=3.0)
        for found, one in zip(ours(model, prompts, noise_of(model), steps, 3.0), expected, strict=True):
            torch.testing.assert_close(found, one, atol=1e-4, rtol=1e-4)


def test_dynamic_guidance_is_the_pipeline_s(folders, prompts, monkeypatch):
    model, pipe, steps = load(folders, "2b"), pipeline(folders["2b"]), 12
    dynamic = load_guidance("dynamic", {"scale": 6.0})
    expected, _ = theirs(pipe, prompts, noise_of(model), steps, monkeypatch, guidance_scale=6.0, use_dynamic_cfg=True)
    found, _ = ours(model, prompts, noise_of(model), steps, dynamic)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - ours(model, prompts, noise_of(model), steps, 6.0)[0]).abs().max() > 1e-2


def test_sizes_of_other_proportions_have_the_pipeline_s_positions(folders):
    for name in ("5b", "1.5-5b"):
        model, pipe = load(folders, name), pipeline(folders[name])
        latents = torch.zeros(1, *model.noise_shape(VideoSize(9, 48, 32)))
        seen = {}
        model.denoiser.register_forward_hook(lambda *call, seen=seen: seen.update(call[2]), with_kwargs=True)
        model.denoise(latents, torch.tensor(5.0), {"text": torch.zeros(1, TEXT_TOKENS, 16)})
        expected = pipe._prepare_rotary_positional_embeddings(48, 32, latents.shape[1], "cpu")
        torch.testing.assert_close(seen["image_rotary_emb"], expected, rtol=0, atol=0)


def test_text_is_filled_up_with_what_the_encoder_makes_of_filling(folders, monkeypatch):
    model, pipe = load(folders, "2b"), pipeline(folders["2b"])
    plain = [Prompt(*pair) for pair in zip(TEXTS, NEGATIVES, strict=True)]
    condition = model.encode(plain, SIZE)
    cond, uncond = pipe.encode_prompt(TEXTS, NEGATIVES, max_sequence_length=TEXT_TOKENS)
    torch.testing.assert_close(condition.cond["text"], cond)
    torch.testing.assert_close(condition.uncond["text"], uncond)
    assert condition.cond["text"].shape == (2, TEXT_TOKENS, 16)
    assert set(model.networks()) == {"transformer", "vae"}
    monkeypatch.setattr(T5EncoderModel, "from_pretrained", lambda *a, **k: pytest.fail("the encoder was loaded"))
    model.encode(plain, SIZE)


# ---- the contract ----


@pytest.mark.parametrize("name", ["2b", "1.5-5b", "1.5-5b-i2v"])
def test_it_keeps_the_contract_at_the_smallest_size(folders, name):
    model = load(folders, name)
    assert [check for check in check_model(model) if not check.passed] == []
    assert model.check_size == VideoSize(9, 16, 16)


def test_learned_positions_are_for_their_own_sides(folders):
    model = load(folders, "5b-i2v")
    assert model.check_size == VideoSize(9, 32, 48)
    with pytest.raises(UserError, match="positions were learned at 32x48 alone: use that, not 48x32"):
        model.noise_shape(VideoSize(9, 48, 32))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("2b", VideoSize(16, 32, 32), "16 frames are not possible: they must be 8n . 1; the nearest are 9 and 17"),
        ("5b", VideoSize(9, 40, 50), "40x50 .* must be multiples of 16; the nearest is 32x48"),
        ("1.5-5b", VideoSize(9, 80, 32), "has positions up to 64x64, and 80x32 is beyond"),
    ],
)
def test_sizes_that_cannot_be_made_say_which_can(folders, name, size, message):
    with pytest.raises(UserError, match=message):
        load(folders, name).noise_shape(size)


def test_checkpoints_of_the_other_kind_name_their_family(folders):
    with pytest.raises(UserError, match=r"starts from images: set model\.family to cogvideox-i2v"):
        load_model("cogvideox", str(folders["5b-i2v"]))
    with pytest.raises(UserError, match=r"makes videos of text alone: set model\.family to cogvideox"):
        load_model("cogvideox-i2v", str(folders["5b"]))
    with pytest.raises(UserError, match=r"model\.options\.back is -1"):
        load_model("cogvideox", str(folders["5b"]), options={"back": -1})


@pytest.mark.parametrize("name", ["2b", "1.5-5b"])
def test_videos_are_encoded_as_what_decode_takes(folders, name):
    model, pixels = load(folders, name), torch.rand(1, 17, 3, 32, 48)
    latents = model.encode_video(pixels)
    assert latents.shape == (1, *model.noise_shape(SIZE))
    mode = model.vae.encode(pixels.movedim(2, 1) * 2 - 1).latent_dist.mode()
    shown = latents[:, -mode.shape[2] :].movedim(1, 2)
    torch.testing.assert_close(shown, mode * model.vae.config.scaling_factor)
    assert torch.equal(latents[:, 0], latents[:, -mode.shape[2]])


def test_the_vae_is_recomputed_layer_by_layer(folders):
    model = load(folders, "2b")
    vae = copy.deepcopy(model.vae)
    model.recompute("vae", vae, "blocks")
    assert all(isinstance(layer.forward, Recomputed) for block in vae.decoder.up_blocks for layer in block.resnets)
    assert not isinstance(vae.decoder.up_blocks[0].forward, Recomputed)
    model.recompute("transformer", model.denoiser, "blocks")
    assert all(isinstance(block.forward, Recomputed) for block in model.denoiser.transformer_blocks)


def test_the_pipeline_of_a_model_has_all_its_parts(folders, tmp_path):
    for name in ("5b", "1.5-5b-i2v"):
        model = load(folders, name)
        model.exporter()(tmp_path / name)
        again = load({name: tmp_path / name}, name)
        assert again.networks().keys() == model.networks().keys()
        assert again.scheduler["_class_name"] == model.scheduler["_class_name"]


# ---- adapters ----


def trained(name: str) -> CogVideoXTransformer3DModel:
    images = {"in_channels": 8} if "i2v" in name else {}
    network = make_transformer(0, **VARIANTS[name].get("transformer", {}), **images)
    add_adapter(network, ("to_q", "to_out.0"), 2)
    for parameter in adapter_parameters(network):
        parameter.data.normal_(std=0.3)
    return network


@torch.no_grad()
def output(network):
    draw = torch.Generator().manual_seed(0)
    seen = torch.randn(1, 4, network.config.in_channels, 4, 6, generator=draw)
    text = torch.randn(1, TEXT_TOKENS, 16, generator=draw)
    return network.eval()(seen, text, torch.tensor([500]), ofs=torch.tensor([2.0]), return_dict=False)[0]


@pytest.mark.parametrize("name", ["2b", "1.5-5b-i2v"])
def test_diffusers_loads_an_adapter_with_the_same_output_and_we_load_what_diffusers_saves(folders, name, tmp_path):
    network, pipe = trained(name), pipeline(folders[name])
    family = "cogvideox-i2v" if "i2v" in name else "cogvideox"
    save_adapters({"transformer": network}, tmp_path / "adapter", {"family": family})
    (file,) = export_adapter(tmp_path / "adapter", tmp_path / "out", "diffusers")
    (line,) = loading_lines([file])
    before = output(pipe.transformer)
    exec(line.removeprefix(f"into diffusers' {type(pipe).__name__}: "), {"pipe": pipe})
    assert torch.equal(output(pipe.transformer), output(network))
    assert (output(network) - before).abs().max() > 0.01
    published = tmp_path / "published.safetensors"  # as diffusers' own trainer leaves it, which says nothing of itself
    names = {key: value for key, value in pipe.transformer.state_dict().items() if "lora_" in key}
    save_file({f"transformer.{key.replace('.default_0', '')}": value for key, value in names.items()}, published)
    model = load_adapter(load(folders, name), published)
    torch.testing.assert_close(output(model.denoiser), output(network), atol=0, rtol=0)


RECIPE = """
name: cogvideox
model: {family: cogvideox, checkpoint: CHECKPOINT}
video: {frames: 17, height: 16, width: 16}
sampling: {steps: 3, solver: ddim, guidance: 3.0}
rewards: [{name: "toys:Warmth", sees: 2}]
prompts: {train: tiny-train, test: tiny-test}
algorithm: {policy: {name: last, k: 1}}
adapter: {rank: 2}
optimizer: {lr: 1.0e-2}
train: {steps: 1, batch: 2}
evaluation: {every: 1, videos: 1, shown: 1}
memory: [{name: recompute}]
"""


@pytest.fixture(scope="module")
def train(folders, tmp_path_factory):
    """`train("name", "key=value")` is a finished run's folder."""
    root = tmp_path_factory.mktemp("runs")
    (root / "cogvideox.yaml").write_text(RECIPE.replace("CHECKPOINT", str(folders["1.5-5b"])))

    def run(name: str, *changes: str) -> Path:
        arguments = [str(root / "cogvideox.yaml"), f"name={name}", *changes, "--runs", str(root)]
        assert main(["train", *arguments]) == 0
        return root / name

    return run


@pytest.mark.slow
def test_a_run_trains_and_another_starts_from_its_published_form(train, tmp_path):
    first, published = train("first"), tmp_path / "published"
    assert main(["export", str(first), "--adapter", "--format", "diffusers", "--out", str(published)]) == 0
    (file,) = published.glob("*.safetensors")
    second = train("second", f"adapter.init={file}")
    before, after = (read_run(path).evaluations for path in (first, second))
    assert before[0].reward != before[-1].reward
    assert after[0].reward == pytest.approx(before[-1].reward, abs=1e-6)


@pytest.mark.slow
def test_window_by_window_trains_as_one_graph_does(train):
    changes = ["rewards.0.sees=4", "model.options={back: 1}"]
    split, whole = train("split", *changes), train("whole", *changes, "algorithm.split_backward=false")
    ours, expected = (load_file(path / ADAPTER) for path in (split, whole))
    assert ours.keys() == expected.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-4)
