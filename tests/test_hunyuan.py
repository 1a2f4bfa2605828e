"""The HunyuanVideo family against diffusers' own pipeline, its decoder by tiles, and its adapters in diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoPipeline
from transformers import LlamaModel

from factories import Fixed
from hunyuan_factories import TEMPLATE, make_tiny_hunyuan, make_transformer, make_vae
from vader.errors import UserError
from vader.models import hunyuan_text, load_model
from vader.models.hunyuan import HunyuanVideo
from vader.models.hunyuan_vae import LAYERS, TileDecoder, recompute_layers
from vader.networks.adapter import adapter_parameters, add_adapter, matching_layers
from vader.networks.adapter_files import save_adapters
from vader.networks.measure import count_parameters
from vader.networks.recompute import Recomputed
from vader.nouns import Prompt, VideoSize
from vader.planning.hunyuan import RELEASES
from vader.planning.models import load_model_shape
from vader.sampling.videos import make_sampler
from vader.sampling.walk import Walk
from vader.tools.check import check_model
from vader.tools.export import export_adapter, loading_lines

SIZE = VideoSize(frames=17, height=16, width=32)
TEXTS = ["a red ball", "abc"]
PROMPTS = [Prompt(text) for text in TEXTS]


@pytest.fixture(scope="module", autouse=True)
def _small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(hunyuan_text, "TEMPLATE", TEMPLATE["template"])
        patch.setattr(hunyuan_text.LlamaEmbedder, "skipped", TEMPLATE["crop_start"])
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny_hunyuan(tmp_path_factory.mktemp("hunyuan") / "model")


@pytest.fixture(scope="module")
def model(folder) -> HunyuanVideo:
    return load_model("hunyuan", str(folder))


@pytest.fixture(scope="module")
def pipe(folder) -> HunyuanVideoPipeline:
    pipe = HunyuanVideoPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def start(model):
    return torch.randn(2, *model.noise_shape(SIZE), generator=torch.Generator().manual_seed(1))


# ---- sampled as diffusers samples ----


@torch.no_grad()
def test_sampling_equals_the_diffusers_pipeline(model, pipe):
    """Latents and pixels, which are of two tiles, text included."""
    for steps in (1, 2, 3, 8):
        walk = Walk(make_sampler(model, SIZE, steps, 6.0), model.encode(PROMPTS, SIZE), Fixed(start(model)))
        latents = pipe(
            TEXTS, height=SIZE.height, width=SIZE.width, num_frames=SIZE.frames, num_inference_steps=steps,
            guidance_scale=6.0, latents=start(model), prompt_template=TEMPLATE, output_type="latent",
        ).frames  # fmt: skip
        found = walk.frozen(steps).latents
        torch.testing.assert_close(found, latents, atol=1e-4, rtol=1e-4)
        pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        expected = pipe.video_processor.postprocess_video(pixels, output_type="pt")
        torch.testing.assert_close(model.decode(found), expected, atol=1e-4, rtol=1e-4)


def test_text_is_what_the_pipeline_attends_to_and_llama_is_not_kept(model, pipe, monkeypatch):
    condition = model.encode(PROMPTS, SIZE).cond
    text, pooled, mask = pipe.encode_prompt(TEXTS, prompt_template=TEMPLATE)
    torch.testing.assert_close(condition["mask"], mask.float())
    torch.testing.assert_close(condition["text"], text * mask[..., None])
    torch.testing.assert_close(condition["pooled"], pooled)
    assert 0 < mask.sum() < mask.numel()
    assert set(model.networks()) == {"transformer", "vae", "text_encoder_2"}
    monkeypatch.setattr(LlamaModel, "from_pretrained", lambda *a, **k: pytest.fail("the encoder was loaded"))
    model.prepare(PROMPTS)


# ---- the contract ----


def test_it_keeps_the_contract_at_the_smallest_size(model):
    assert [check for check in check_model(model) if not check.passed] == []
    assert model.check_size == VideoSize(5, 16, 16)


def test_guidance_that_tells_no_scale_is_refused(model):
    with pytest.raises(UserError, match="has to be told a scale"):
        model.denoise(start(model), torch.tensor(500.0), model.encode(PROMPTS, SIZE).cond)


def test_the_release_has_its_size():
    (name,) = RELEASES
    shape = load_model_shape("hunyuan", name, {}, torch.bfloat16, torch.device("meta"))
    assert round(count_parameters(shape.denoiser) / 1e9, 3) == 12.821
    assert round(count_parameters(shape.vae) / 1e6, 1) == 246.5
    assert shape.noise_shape(VideoSize(129, 720, 1280)) == (16, 33, 90, 160)
    layers = matching_layers(shape.denoiser, shape.lora_targets)
    assert len(layers) == 4 * 20 + 3 * 40
    assert not any("refiner" in layer for layer in layers)


# ---- decoded by tiles ----


@pytest.fixture(scope="module")
def vae():
    return make_vae().double().eval().requires_grad_(False)


def whole(vae, latents):
    return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0].movedim(2, 1) / 2 + 0.5


def draw(count):
    return torch.randn(1, 4, count, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 4, 5, 7, 8, 9])
def test_every_frame_alone_is_that_of_the_whole_decode(vae, count):
    latents, decoder = draw(count), TileDecoder(vae)
    expected = whole(vae, latents)
    windows = decoder.windows(count)
    assert [frame for window in windows for frame in window] == list(range(expected.shape[1]))
    torch.testing.assert_close(decoder(latents), expected, atol=1e-12, rtol=0)
    for frame in {window.start for window in windows} | {window.stop - 1 for window in windows}:
        found = decoder(latents, torch.tensor([[frame, 0]]))
        torch.testing.assert_close(found, expected[:, [frame, 0]], atol=1e-12, rtol=0)


@pytest.mark.parametrize("frame", [5, 14, 20])
def test_gradient_is_the_whole_decode_s_and_the_same_recomputed(frame):
    vae = make_vae().double().eval().requires_grad_(False)

    def gradient(decode):
        leaf = draw(8).requires_grad_()
        pixels = decode(leaf)
        weights = torch.linspace(-1, 1, pixels.numel(), dtype=pixels.dtype).view(pixels.shape)
        return torch.autograd.grad((pixels * weights).sum(), leaf)[0]

    def alone(leaf):
        return TileDecoder(vae)(leaf, torch.tensor([[frame]]))[:, 0]

    expected, plain = gradient(lambda leaf: whole(vae, leaf)[:, frame]), gradient(alone)
    torch.testing.assert_close(plain, expected, atol=1e-12, rtol=0)
    recompute_layers(vae)
    assert all(isinstance(layer.forward, Recomputed) for layer in vae.decoder.modules() if isinstance(layer, LAYERS))
    assert torch.equal(gradient(alone), plain)


# ---- adapters ----


@torch.no_grad()
def output(network):
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 4, 2, 2, 4, generator=generator), torch.randn(1, 6, 16, generator=generator)
    pooled = torch.randn(1, 8, generator=generator)
    given = (latents, torch.tensor([500.0]), text, torch.ones(1, 6), pooled, torch.tensor([6000.0]))
    return network.eval()(*given, return_dict=False)[0]


def test_diffusers_loads_an_adapter_with_the_same_output(pipe, tmp_path):
    network = add_adapter(make_transformer(0), HunyuanVideo.lora_targets, 2)
    for parameter in adapter_parameters(network):
        parameter.data.normal_(std=0.3)
    save_adapters({"transformer": network}, tmp_path / "adapter", {"family": "hunyuan"})
    (file,) = export_adapter(tmp_path / "adapter", tmp_path / "out", "diffusers")
    (line,) = loading_lines([file])
    before = output(pipe.transformer)
    exec(line.removeprefix("into diffusers' HunyuanVideoPipeline: "), {"pipe": pipe})
    assert torch.equal(output(pipe.transformer), output(network))
    assert (output(network) - before).abs().max() > 0.01
