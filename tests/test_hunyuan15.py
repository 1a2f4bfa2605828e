"""The HunyuanVideo 1.5 families against diffusers' own pipelines, their decoder by windows, and their adapters."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15AttnProcessor2_0
from PIL import Image
from transformers import Qwen2_5_VLTextModel, T5EncoderModel

from factories import Fixed
from hunyuan15_factories import GLYPH_TOKENS, SKIPPED, TOKENS, make_tiny_hunyuan15, make_transformer, make_vae
from vader.errors import UserError
from vader.models import hunyuan15_text, load_model
from vader.models.hunyuan15 import HunyuanVideo15
from vader.models.hunyuan15_attention import all_of, drop_masks
from vader.models.hunyuan15_vae import LAYERS, WindowDecoder, recompute_layers
from vader.networks.adapter import adapter_parameters, add_adapter, matching_layers
from vader.networks.adapter_files import save_adapters
from vader.networks.measure import count_parameters
from vader.networks.recompute import Recomputed
from vader.nouns import Prompt, VideoSize
from vader.planning.models import RELEASES as KNOWN
from vader.planning.step import forecast
from vader.recipe import load_recipe
from vader.sampling.videos import make_sampler
from vader.sampling.walk import Walk
from vader.tools.check import check_model
from vader.tools.export import export_adapter, loading_lines

PIPELINES = {"t2v": HunyuanVideo15Pipeline, "i2v": HunyuanVideo15ImageToVideoPipeline}
FAMILIES = {"t2v": "hunyuan15", "i2v": "hunyuan15-i2v"}
SIZES = {"t2v": VideoSize(frames=9, height=16, width=32), "i2v": VideoSize(frames=5, height=32, width=32)}
TEXTS, NEGATIVES = ["a red ball", 'the word "ab"'], ["dull", ""]


@pytest.fixture(scope="module", autouse=True)
def _small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(hunyuan15_text.QwenEmbedder, "skipped", SKIPPED)
        patch.setattr("vader.models.hunyuan15.TOKENS", TOKENS)
        patch.setattr("vader.models.hunyuan15.GLYPH_TOKENS", GLYPH_TOKENS)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hunyuan15")
    return {task: make_tiny_hunyuan15(root / task, task) for task in PIPELINES}


@pytest.fixture(scope="module")
def models(folders) -> dict[str, HunyuanVideo15]:
    return {task: load_model(FAMILIES[task], str(folder)) for task, folder in folders.items()}


@pytest.fixture(scope="module")
def pipes(folders):
    pipes = {task: cls.from_pretrained(folders[task]) for task, cls in PIPELINES.items()}
    for pipe in pipes.values():
        assert pipe.system_message == hunyuan15_text.SYSTEM
        assert (pipe.tokenizer_max_length, pipe.tokenizer_2_max_length) == (1000, 256)
        assert pipe.prompt_template_encode_start_idx == 108
        pipe.set_progress_bar_config(disable=True)
        pipe.prompt_template_encode_start_idx, pipe.tokenizer_max_length = SKIPPED, TOKENS
        pipe.tokenizer_2_max_length, pipe.vision_num_semantic_tokens = GLYPH_TOKENS, 5
    return pipes


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path, draw = tmp_path_factory.mktemp("pictures") / "one.png", np.random.default_rng(3)
    Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return path


def prompts(task: str, picture: Path) -> list[Prompt]:
    image = picture if task == "i2v" else None
    return [Prompt(*pair, image=image) for pair in zip(TEXTS, NEGATIVES, strict=True)]


def start(model, size):
    return torch.randn(2, *model.noise_shape(size), generator=torch.Generator().manual_seed(1))


# ---- sampled as diffusers samples ----


@torch.no_grad()
@pytest.mark.parametrize("task", PIPELINES)
def test_sampling_equals_the_diffusers_pipeline(models, pipes, picture, task):
    """Latents and pixels, which are of several windows, texts of different lengths and quotes included."""
    model, pipe, size = models[task], pipes[task], SIZES[task]
    condition, latents = model.encode(prompts(task, picture), size), start(model, size)
    shape = {"height": size.height, "width": size.width} if task == "t2v" else {"image": Image.open(picture)}
    for steps in (1, 2, 3, 8):
        walk = Walk(make_sampler(model, size, steps, 6.0), condition, Fixed(latents))
        expected = pipe(
            prompt=TEXTS, negative_prompt=NEGATIVES, num_frames=size.frames, num_inference_steps=steps,
            latents=latents, output_type="latent", **shape,
        ).frames  # fmt: skip
        found = walk.frozen(steps).latents
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    scaled = (expected / pipe.vae.config.scaling_factor).split(1)  # the class cannot decode several at once
    pixels = torch.cat([pipe.vae.decode(video).sample for video in scaled])
    pixels = pipe.video_processor.postprocess_video(pixels, output_type="pt")
    torch.testing.assert_close(model.decode(found), pixels, atol=1e-4, rtol=1e-4)


def test_text_is_what_the_pipeline_attends_to_and_encoders_are_not_kept(models, pipes, monkeypatch):
    model, texts = models["t2v"], [*TEXTS, *NEGATIVES]
    embeds, mask, glyphs, glyph_mask = pipes["t2v"].encode_prompt(texts, batch_size=4)
    found = model.encode([Prompt(*pair) for pair in zip(TEXTS, NEGATIVES, strict=True)], SIZES["t2v"]).both()
    for name, tokens, shown in (("text", embeds, mask), ("glyphs", glyphs, glyph_mask)):
        length = found[name].shape[1]
        torch.testing.assert_close(found[f"{name}_mask"], shown[:, :length].bool())
        torch.testing.assert_close(found[name], (tokens * shown[..., None])[:, :length])
        assert not shown[:, length:].any()
    assert len(set(mask.sum(1).tolist())) > 1
    assert glyph_mask.any(1).tolist() == [False, True, False, False]
    assert set(model.networks()) == {"transformer", "vae"}
    for encoder in (Qwen2_5_VLTextModel, T5EncoderModel):
        monkeypatch.setattr(encoder, "from_pretrained", lambda *a, **k: pytest.fail("an encoder was loaded"))
    model.prepare([Prompt(text) for text in texts])


# ---- the contract ----


def test_it_keeps_the_contract_at_the_smallest_size(models):
    assert [check for check in check_model(models["t2v"]) if not check.passed] == []
    assert models["t2v"].check_size == VideoSize(5, 16, 16)


def test_checkpoints_of_the_other_kind_are_refused(folders, models):
    with pytest.raises(UserError, match=r"starts from images: set model\.family to hunyuan15-i2v"):
        load_model("hunyuan15", str(folders["i2v"]))
    with pytest.raises(UserError, match=r"makes videos of text alone: set model\.family to hunyuan15$"):
        load_model("hunyuan15-i2v", str(folders["t2v"]))
    with pytest.raises(UserError, match="take no images"):
        models["t2v"].encode([Prompt("a")], SIZES["t2v"], torch.zeros(1, 3, 16, 32))


def test_what_is_told_two_times_is_refused(folders, tmp_path):
    folder = shutil.copytree(folders["i2v"], tmp_path / "few", ignore=shutil.ignore_patterns("*.safetensors"))
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_meanflow": True}))
    with pytest.raises(UserError, match="distilled to few steps, which need a second time: not supported"):
        load_model("hunyuan15-i2v", str(folder))


@pytest.mark.parametrize("family", FAMILIES.values())
def test_the_releases_have_their_size(family):
    names = KNOWN[family]
    assert f"hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_{'i2v' if 'i2v' in family else 't2v'}" in names
    (cls,) = set(names.values())
    shape = cls.load("meta", dtype=torch.bfloat16)
    assert shape.family == family
    assert round(count_parameters(shape.denoiser) / 1e9, 3) == 8.327
    assert round(count_parameters(shape.vae) / 1e6, 1) == 1260.6
    assert shape.noise_shape(VideoSize(121, 480, 848)) == (32, 31, 30, 53)
    assert len(matching_layers(shape.denoiser, shape.lora_targets)) == 4 * 54 + 4 * 2


@pytest.mark.slow
def test_a_step_is_walked_through_without_data(monkeypatch):
    """Of two layers."""
    monkeypatch.setattr("vader.planning.hunyuan15.TRANSFORMER", {"num_layers": 2, "num_refiner_layers": 1})
    size = ["video.frames=5", "video.height=64", "video.width=64", "train.batch=1", "sampling.steps=2"]
    found = forecast(load_recipe("hunyuan15-hps", size))
    assert found.peak > found.weights["transformer"] + found.weights["vae"]


# ---- attention without masks ----


@torch.no_grad()
def test_masks_that_hide_nothing_are_dropped_and_others_kept(monkeypatch):
    plain, fitted = make_transformer(0), make_transformer(0)
    drop_masks(fitted)
    draw = torch.Generator().manual_seed(0)
    latents, text, glyphs = (torch.randn(1, *shape, generator=draw) for shape in ((9, 2, 2, 2), (6, 16), (4, 8)))

    def run(network, mask):
        more = {"encoder_hidden_states_2": glyphs, "encoder_attention_mask_2": all_of(glyphs)}
        more["image_embeds"] = torch.zeros(1, 0, 8)
        return network(latents, torch.tensor([500.0]), text, mask, **more, return_dict=False)[0]

    some = all_of(text)
    some[:, 4:] = False
    torch.testing.assert_close(run(fitted, some), run(plain, some), atol=0, rtol=0)
    expected = run(plain, all_of(text))
    assert (expected - run(plain, some)).abs().max() > 1e-3
    monkeypatch.setattr(HunyuanVideo15AttnProcessor2_0, "__call__", lambda *a, **k: pytest.fail("a mask was used"))
    torch.testing.assert_close(run(fitted, all_of(text)), expected, atol=1e-5, rtol=1e-5)


# ---- decoded latent by latent ----


LATENTS = 4


@pytest.fixture(scope="module")
def vae():
    return make_vae().double().eval().requires_grad_(False)


def whole(vae, latents):
    return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0].movedim(2, 1) / 2 + 0.5


def draw(count=LATENTS):
    return torch.randn(1, 4, count, 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
def test_every_frame_alone_is_that_of_the_whole_decode(vae):
    latents, decoder = draw(), WindowDecoder(vae)
    expected = whole(vae, latents)
    assert [frame for window in decoder.windows(LATENTS) for frame in window] == list(range(expected.shape[1]))
    torch.testing.assert_close(decoder(latents), expected, atol=1e-12, rtol=0)
    for frame in (12, 0, 1, 7):
        found = decoder(latents.clone(), torch.tensor([[frame, 0]]))
        torch.testing.assert_close(found, expected[:, [frame, 0]], atol=1e-12, rtol=0)


def gradient(decode):
    leaf = draw().requires_grad_()
    pixels = decode(leaf)
    weights = torch.linspace(-1, 1, pixels.numel(), dtype=pixels.dtype).view(pixels.shape)
    return torch.autograd.grad((pixels * weights).sum(), leaf)[0]


@pytest.mark.parametrize(("frame", "latent", "back"), [(0, 0, 0), (3, 1, 0), (10, 3, 0), (10, 3, 1), (10, 3, 9)])
def test_gradient_is_the_whole_decode_s_and_the_same_recomputed(frame, latent, back):
    vae = make_vae().double().eval().requires_grad_(False)
    decoder = WindowDecoder(vae, back)
    alone = partial(gradient, lambda leaf: decoder(leaf, torch.tensor([[frame]]))[:, 0])
    expected, plain = gradient(lambda leaf: whole(vae, leaf)[:, frame]), alone()
    first = max(latent - back, 0)
    torch.testing.assert_close(plain[:, :, first:], expected[:, :, first:], atol=1e-12, rtol=0)
    assert not plain[:, :, :first].any()
    recompute_layers(vae)
    assert all(isinstance(layer.forward, Recomputed) for layer in vae.decoder.modules() if isinstance(layer, LAYERS))
    assert torch.equal(alone(), plain)


def test_recomputed_layers_keep_less(vae):
    def kept(network):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
            WindowDecoder(network)(draw().requires_grad_(), torch.tensor([[9]]))
        return sum(sizes)

    again = make_vae().double().eval().requires_grad_(False)
    recompute_layers(again)
    assert kept(again) < kept(vae) / 2


# ---- adapters ----


@torch.no_grad()
def output(network):
    draw = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 9, 2, 2, 2, generator=draw), torch.randn(1, 6, 16, generator=draw)
    more = {"encoder_hidden_states_2": torch.zeros(1, 0, 8), "encoder_attention_mask_2": torch.ones(1, 0)}
    given = (latents, torch.tensor([500.0]), text, all_of(text))
    return network.eval()(*given, **more, image_embeds=torch.zeros(1, 0, 8), return_dict=False)[0]


@pytest.mark.parametrize("task", PIPELINES)
def test_diffusers_loads_an_adapter_with_the_same_output(tmp_path, task):
    """Its pipelines have no loader; the network has."""
    assert not any(hasattr(pipeline, "load_lora_weights") for pipeline in PIPELINES.values())
    network, fresh = add_adapter(make_transformer(0), HunyuanVideo15.lora_targets, 2), make_transformer(0)
    for parameter in adapter_parameters(network):
        parameter.data.normal_(std=0.3)
    save_adapters({"transformer": network}, tmp_path / "adapter", {"family": FAMILIES[task]})
    (file,) = export_adapter(tmp_path / "adapter", tmp_path / "out", "diffusers")
    line, _ = loading_lines([file])
    before = output(fresh)
    exec(line.removeprefix("into diffusers' HunyuanVideo15Transformer3DModel: "), {"transformer": fresh})
    assert torch.equal(output(fresh), output(network))
    assert (output(network) - before).abs().max() > 0.01
