"""The Kandinsky 5 family against diffusers' own pipeline, and its adapters in diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky5T2VPipeline, Kandinsky5Transformer3DModel
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from factories import Fixed
from kandinsky5_factories import SKIPPED, TEMPLATE, make_tiny_kandinsky5, make_transformer
from vader.errors import UserError
from vader.models import kandinsky5_text, load_model
from vader.models.kandinsky5 import Kandinsky5
from vader.models.kandinsky5_attention import attend_in_float
from vader.networks.adapter import adapter_parameters, add_adapter, matching_layers
from vader.networks.adapter_files import save_adapters
from vader.networks.measure import count_parameters
from vader.nouns import Prompt, VideoSize
from vader.planning.kandinsky5 import RELEASES
from vader.planning.models import load_model_shape
from vader.sampling.videos import make_sampler
from vader.sampling.walk import Walk
from vader.tools.check import check_model
from vader.tools.export import export_adapter, loading_lines

SIZE = VideoSize(frames=9, height=16, width=32)
PROMPTS = [Prompt("a red ball", negative="dull"), Prompt("abc")]


@pytest.fixture(scope="module", autouse=True)
def _small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(kandinsky5_text, "template", lambda: TEMPLATE)
        patch.setattr(kandinsky5_text.QwenEmbedder, "skipped", SKIPPED)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny_kandinsky5(tmp_path_factory.mktemp("kandinsky5") / "model")


@pytest.fixture(scope="module")
def model(folder) -> Kandinsky5:
    return load_model("kandinsky5", str(folder))


def start(model):
    return torch.randn(2, *model.noise_shape(SIZE), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def embedded(folder, model):
    """What the pipeline is told of a text, by the encoders themselves."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    qwen = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder")

    @torch.no_grad()
    def embed(text: str, prefix: str = "") -> dict[str, torch.Tensor]:
        ids = tokenizer(TEMPLATE.format(text), return_tensors="pt").input_ids
        features = qwen(input_ids=ids, output_hidden_states=True).hidden_states[-1][:, SKIPPED:]
        return {
            f"{prefix}prompt_embeds_qwen": features,
            f"{prefix}prompt_embeds_clip": model._pooled([text]),
            f"{prefix}prompt_cu_seqlens": torch.tensor([0, features.shape[1]], dtype=torch.int32),
        }

    return embed


@torch.no_grad()
def test_sampling_equals_the_diffusers_pipeline(model, embedded):
    """Latents and pixels of two prompts of different lengths, text included."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    pipe = Kandinsky5T2VPipeline(model.denoiser, model.vae, None, None, None, None, scheduler)
    pipe.set_progress_bar_config(disable=True)
    for steps in (1, 2, 3, 8):
        walk = Walk(make_sampler(model, SIZE, steps, 5.0), model.encode(PROMPTS, SIZE), Fixed(start(model)))
        found = walk.frozen(steps).latents
        for row, prompt in enumerate(PROMPTS):
            seen = torch.cat([start(model)[row : row + 1].movedim(1, -1), torch.zeros(1, 3, 2, 4, 5)], dim=-1)
            told = {**embedded(prompt.text), **embedded(prompt.negative, "negative_")}
            latents = pipe(
                height=SIZE.height, width=SIZE.width, num_frames=SIZE.frames, num_inference_steps=steps,
                guidance_scale=5.0, latents=seen.clone(), output_type="latent", **told,
            ).frames.movedim(-1, 1)  # fmt: skip
            torch.testing.assert_close(found[row : row + 1], latents, atol=1e-4, rtol=1e-4)
            pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
            expected = pipe.video_processor.postprocess_video(pixels, output_type="pt")
            torch.testing.assert_close(model.decode(found[row : row + 1]), expected, atol=1e-4, rtol=1e-4)


def test_in_bfloat16_the_attention_is_diffusers_own_to_the_last_bit(folder):
    model, outputs = load_model("kandinsky5", str(folder), dtype=torch.bfloat16), []
    inputs = model.encode(PROMPTS[:1], SIZE).cond
    theirs = Kandinsky5Transformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16)
    for network in (model.denoiser, theirs):
        model.denoisers = {"transformer": network}
        with torch.no_grad():
            outputs.append(model.denoise(start(model)[:1], torch.tensor(500.0), inputs))
    assert torch.equal(*outputs)
    assert outputs[0].dtype == torch.float32


def test_places_are_scaled_as_the_pipeline_scales_them(model):
    theirs = Kandinsky5T2VPipeline(*[None] * 7)._get_scale_factor
    for height, width in ((512, 768), (480, 854), (480, 864), (256, 384), (768, 512), (1024, 1024)):
        assert model._scale(height // 8, width // 8) == theirs(height // 8 * 8, width // 8 * 8)


def test_the_template_is_diffusers_own():
    assert kandinsky5_text.template() == TEMPLATE
    assert Kandinsky5T2VPipeline(*[None] * 7).prompt_template_encode_start_idx == 128


def test_it_keeps_the_contract_at_the_smallest_size(model):
    assert [check for check in check_model(model) if not check.passed] == []
    assert model.check_size == VideoSize(5, 16, 16)


def test_the_release_has_its_size():
    for name in RELEASES:
        shape = load_model_shape("kandinsky5", name, {}, torch.bfloat16, torch.device("meta"))
        assert round(count_parameters(shape.denoiser) / 1e9, 3) == 2.008
        assert shape.noise_shape(VideoSize(121, 512, 768)) == (16, 31, 64, 96)
        assert len(matching_layers(shape.denoiser, shape.lora_targets)) == 4 * (2 + 32 + 32)
        assert shape.denoiser.time_embeddings.in_layer.weight.dtype == torch.float32
        assert shape.denoiser.visual_embeddings.in_layer.weight.dtype == torch.bfloat16


def test_sparse_attention_is_refused(folder, tmp_path):
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "transformer").unlink()
    (tmp_path / "transformer").mkdir()
    said = json.loads((folder / "transformer" / "config.json").read_text())
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(said | {"attention_type": "nabla"}))
    with pytest.raises(UserError, match=r"has sparse attention \(NABLA\): use one of 5 seconds"):
        load_model("kandinsky5", str(tmp_path))
    with pytest.raises(UserError, match="a merged Kandinsky 5 is not written: export the adapter"):
        load_model("kandinsky5", str(folder)).exporter()


def test_an_exported_adapter_loads_in_diffusers_with_no_difference(folder, model, tmp_path):
    trained = load_model("kandinsky5", str(folder))
    add_adapter(trained.denoiser, trained.lora_targets, 4, alpha=2.0)
    draw = torch.Generator().manual_seed(3)
    for parameter in adapter_parameters(trained.denoiser):
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    save_adapters(trained.denoisers, tmp_path / "adapter", {"family": "kandinsky5"})
    (file,) = export_adapter(tmp_path / "adapter", tmp_path / "out")
    assert loading_lines([file])[0].startswith("into diffusers' Kandinsky5T2VPipeline: pipe.load_lora_weights(")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    pipe = Kandinsky5T2VPipeline(make_transformer(0), model.vae, None, None, None, None, scheduler)
    attend_in_float(pipe.transformer)  # as here: diffusers' own rounds
    pipe.load_lora_weights(tmp_path / "out", weight_name=file.name)
    inputs = model.encode(PROMPTS, SIZE).cond
    time, plain = torch.tensor(500.0), model.denoise(start(model), torch.tensor(500.0), inputs)
    with torch.no_grad():
        ours = trained.denoise(start(model), time, inputs)
        trained.denoisers["transformer"] = pipe.transformer
        theirs = trained.denoise(start(model), time, inputs)
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-5)
    assert (ours - plain).abs().max() > 1e-3
