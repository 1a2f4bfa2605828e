"""LTX-2 against diffusers' own pipelines: text and pictures in, latents, pixels and sound out, and its adapters."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2ImageToVideoPipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_ltx2_lora_to_diffusers as to_diffusers
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import Gemma3ForConditionalGeneration

from factories import Fixed
from ltx2_factories import make_ltx2_transformer, make_ltx2_vae, make_tiny_ltx2
from vader.cli import main
from vader.errors import UserError
from vader.models import load_model, ltx2_text
from vader.models.ltx2 import LTX2
from vader.models.ltx2_lora import NAMES
from vader.models.ltx_vae import LTX2FrameDecoder, scaled
from vader.networks.adapter import adapter_parameters, add_adapter, matching_layers
from vader.networks.adapter_files import load_adapters, save_adapters
from vader.networks.measure import count_parameters
from vader.networks.original_names import to_original
from vader.networks.recompute import Recomputed, checkpoint_blocks
from vader.nouns import Prompt, VideoSize
from vader.planning.ltx import FLOW
from vader.planning.ltx2 import RandomLTX2, RandomLTX23
from vader.planning.models import load_model_shape
from vader.runs.reader import read_run
from vader.sampling.guidance import load_guidance
from vader.sampling.videos import make_sampler, solver_of
from vader.sampling.walk import Walk
from vader.tools.check import check_model
from vader.tools.export import export_adapter, loading_lines

SIZE = VideoSize(frames=9, height=32, width=64, fps=12)
PROMPTS = [Prompt("a red ball", negative="a b"), Prompt("a b c d")]
TOKENS = 16  # of every text; of the releases 1024
BOTH = load_guidance("modalities", {"scales": {"video": 3.0, "audio": 7.0}})


@pytest.fixture(scope="module", autouse=True)
def _short_texts(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(ltx2_text, "TOKENS", TOKENS)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("ltx2")
    return {version: make_tiny_ltx2(root / version, version) for version in ("2.0", "2.3")}


@pytest.fixture(scope="module")
def loaded(folders):
    """Models by family, version and options; nobody changes them."""

    @functools.cache
    def load(family, version, **options):
        return load_model(family, str(folders[version]), options=options)

    return load


@pytest.fixture(scope="module")
def pipelines(folders):
    @functools.cache
    def load(cls, version):
        pipe = cls.from_pretrained(folders[version])
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


def start(model, count=2):
    draw = torch.Generator().manual_seed(1)
    return {name: torch.randn(count, *shape, generator=draw) for name, shape in model.noise_shape(SIZE).items()}


def packed(latents):
    return latents.flatten(2).transpose(1, 2)


@torch.no_grad()
def ours(model, condition, latents, steps, guidance=BOTH, **solver):
    sampler = make_sampler(model, SIZE, steps, guidance, solver_of(model, **solver))
    return Walk(sampler, condition, Fixed(latents)).frozen(steps).latents


@torch.no_grad()
def theirs(pipe, prompts, steps, latents, **more):
    """Pixels and sound that the pipeline makes of these prompts, and the last latents of the video."""
    found, draw = {}, type(pipe).prepare_latents
    pipe.prepare_audio_latents = lambda *args, **settings: latents["audio"]  # given ones it would normalise once more

    def prepare(*args, **settings):
        """The given latents, but for a picture's, which the pipeline makes itself."""
        made, start = draw(pipe, *args, **settings), packed(latents["video"])
        return (torch.where(made[1][..., None] == 1, made[0], start), made[1]) if isinstance(made, tuple) else start

    pipe.prepare_latents = prepare

    def last(pipe, step, time, kept):
        found["video"] = kept["latents"]
        return kept

    settings = {"guidance_scale": 3.0, "audio_guidance_scale": 7.0} | more
    made = pipe(
        prompt=[one.text for one in prompts], negative_prompt=[one.negative for one in prompts], height=SIZE.height,
        width=SIZE.width, num_frames=SIZE.frames, frame_rate=SIZE.fps, num_inference_steps=steps, stg_scale=0.0,
        audio_stg_scale=0.0, modality_scale=1.0, audio_modality_scale=1.0, guidance_rescale=0.0,
        audio_guidance_rescale=0.0, use_cross_timestep=pipe.transformer.config.cross_attn_mod, output_type="pt",
        max_sequence_length=TOKENS, callback_on_step_end=last, **settings,
    )  # fmt: skip
    return made.frames, made.audio, found["video"]


def same(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def same_videos(model, found, expected):
    pixels, sound, latents = expected
    same(packed(found["video"]), latents)
    same(model.decode(found), pixels)
    same(model.decode_audio(found).samples, sound)
    assert pixels.std() > 0.05
    assert sound.std() > 1e-3


# ---- sampled as diffusers samples ----


@pytest.mark.parametrize("version", ["2.0", "2.3"])
@pytest.mark.parametrize("steps", [2, 3, 8])
def test_sampling_equals_the_pipeline(loaded, pipelines, version, steps):
    """At one step its levels, of which the last is given, are no numbers."""
    model, pipe = loaded("ltx2", version), pipelines(LTX2Pipeline, version)
    latents = start(model)
    found = ours(model, model.encode(PROMPTS, SIZE), latents, steps)
    same_videos(model, found, theirs(pipe, PROMPTS, steps, latents))
    if steps == 3:  # each has a scale of its own
        one = ours(model, model.encode(PROMPTS, SIZE), latents, steps, 3.0)
        assert (one["audio"] - found["audio"]).abs().max() > 1e-2


@pytest.mark.parametrize("sigmas", [[0.725], [1.0, 0.975, 0.421875]])
def test_distilled_sigmas_without_guidance_are_the_pipeline_s(folders, pipelines, sigmas, monkeypatch):
    model, pipe = load_model("ltx2", str(folders["2.3"])), pipelines(LTX2Pipeline, "2.3")
    model.scheduler = FLOW
    monkeypatch.setattr(pipe, "scheduler", FlowMatchEulerDiscreteScheduler())
    latents, steps = start(model), len(sigmas)
    found = ours(model, model.encode(PROMPTS, SIZE), latents, steps, 1.0, sigmas=sigmas)
    alone = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0, "sigmas": sigmas}
    same_videos(model, found, theirs(pipe, PROMPTS, steps, latents, **alone))


def test_the_last_of_thirty_steps_starts_with_noise_left(loaded):
    model = loaded("ltx2", "2.3")
    assert solver_of(model).schedule(30, SIZE).starts[-1].sigma == pytest.approx(0.1, abs=1e-6)
    assert model.tokens(SIZE) == 3 * 2 * 4
    assert model.noise_shape(SIZE)["audio"] == (round(9 / 12 * 25), 8)


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_a_video_from_a_picture_equals_the_pipeline(loaded, pipelines, version, tmp_path):
    pixels = np.random.default_rng(3).integers(0, 256, (SIZE.height, SIZE.width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    shown = [Prompt("a red ball", negative="a b", image=tmp_path / "picture.png")]
    model, pipe = loaded("ltx2-i2v", version), pipelines(LTX2ImageToVideoPipeline, version)
    condition, latents = model.encode(shown, SIZE), start(model, 1)
    expected = theirs(pipe, shown, 3, latents, image=Image.open(tmp_path / "picture.png"), image_crf=0)
    found = ours(model, condition, latents, 3)
    same_videos(model, found, expected)
    assert torch.equal(found["video"][:, :, 0], condition.known.latents["video"][:, :, 0])


# ---- the video alone ----


def test_an_isolated_video_is_the_joint_network_s_without_its_sound(loaded):
    model, joint = loaded("ltx2", "2.3", isolate=True), loaded("ltx2", "2.3")
    latents, full = start(model), joint.encode(PROMPTS, SIZE).cond
    assert latents.keys() == {"video"}
    condition = model.encode(PROMPTS, SIZE)
    found = model.denoise(latents, torch.tensor(500.0), condition.cond)
    network, time = joint.denoiser, torch.full((2,), 500.0)
    video, _ = network(
        packed(latents["video"]), torch.randn(2, 5, 8), full["text"], full["audio_text"], time, sigma=time,
        num_frames=3, height=2, width=4, fps=12.0, audio_num_frames=5, isolate_modalities=True,
        use_cross_timestep=True, return_dict=False,
    )  # fmt: skip
    same(packed(found["video"]), video)
    together = joint.denoise(start(joint), torch.tensor(500.0), full)
    assert (together["video"] - found["video"]).abs().max() > 1e-3
    with pytest.raises(UserError, match="an isolated video has no sound"):
        model.decode_audio(latents)
    with pytest.raises(UserError, match=r"set model\.options\.isolate to true"):
        joint.encode_video(torch.rand(1, 9, 3, 32, 64))
    assert model.encode_video(torch.rand(1, 9, 3, 32, 64))["video"].shape == (1, 8, 3, 2, 4)


def test_scales_are_of_the_latents_that_there_are(loaded):
    with pytest.raises(UserError, match="has scales of video, audio: the latents are video"):
        make_sampler(loaded("ltx2", "2.3", isolate=True), SIZE, 2, BOTH)
    alone = load_guidance("modalities", {"scales": {"video": 1.0, "audio": 1.0}})
    assert not alone.two_branches
    model, latents = loaded("ltx2", "2.3"), start(loaded("ltx2", "2.3"))
    condition = model.encode(PROMPTS, SIZE)
    for name, value in ours(model, condition, latents, 2, alone).items():
        assert torch.equal(value, ours(model, condition, latents, 2, 1.0)[name])


# ---- text ----


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_contexts_are_what_the_pipeline_s_connectors_make(loaded, pipelines, version):
    model, pipe = loaded("ltx2", version), pipelines(LTX2Pipeline, version)
    condition = model.encode(PROMPTS, SIZE)
    texts = [one.text for one in PROMPTS], [one.negative for one in PROMPTS]
    with torch.no_grad():
        features, mask, others, other_mask = pipe.encode_prompt(*texts, max_sequence_length=TOKENS)
        for found, of, where in ((condition.cond, features, mask), (condition.uncond, others, other_mask)):
            video, audio, attended = pipe.connectors(of, where)
            same(found["text"], video)
            same(found["audio_text"], audio)
            assert attended.all()
    assert mask.sum() < mask.numel()


def test_prompts_that_were_prepared_need_no_encoder_and_connectors_must_have_registers(folders, loaded, monkeypatch):
    loaded("ltx2", "2.0").prepare(PROMPTS)
    model = load_model("ltx2", str(folders["2.0"]))
    none = lambda *args, **settings: pytest.fail("the encoder was loaded")  # noqa: E731
    monkeypatch.setattr(Gemma3ForConditionalGeneration, "from_pretrained", none)
    model.encode(PROMPTS, SIZE)
    assert set(model.networks()) == {"transformer", "vae", "audio_vae", "vocoder"}
    monkeypatch.setattr(ltx2_text.files, "load_config", lambda *args: {"video_connector_num_learnable_registers": 8})
    with pytest.raises(UserError, match="connectors without registers"):
        ltx2_text.GemmaEmbedder("folder", torch.float32)


# ---- the contract ----


@pytest.mark.parametrize(
    ("family", "version", "options"), [("ltx2", "2.3", {}), ("ltx2-i2v", "2.0", {"isolate": True})]
)
def test_it_keeps_the_contract_at_the_smallest_size(loaded, family, version, options):
    model = loaded(family, version, **options)
    kept = {"sound in [-1, 1], with gradient"} if options else set()  # an isolated video has none
    assert {check.name for check in check_model(model) if not check.passed} == kept
    least = 16 if version == "2.3" else 32  # 2.0's decoder pads by reflection, for which there must be two latents
    assert model.check_size == VideoSize(5, least, least)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (VideoSize(8, 32, 64), "8 frames are not possible: they must be 4n . 1; the nearest are 5 and 9"),
        (VideoSize(9, 40, 64), "40x64 .* must be multiples of 16; the nearest is 32x64"),
        (VideoSize(9, 64, 16), "64x16 is too small for this VAE: sides from 32 on"),
    ],
)
def test_sizes_that_cannot_be_made_are_told(loaded, size, message):
    with pytest.raises(UserError, match=message):
        loaded("ltx2", "2.0").noise_shape(size)


def test_recomputation_changes_no_bit(folders):
    plain, again = (load_model("ltx2", str(folders["2.3"])) for _ in range(2))
    for name, network in again.networks().items():
        again.recompute(name, network, "blocks")
    assert isinstance(again.vae.decoder.up_blocks[0].resnets[0].forward, Recomputed)
    assert not isinstance(again.vae.decoder.up_blocks[0].forward, Recomputed)
    condition, latents = plain.encode(PROMPTS, SIZE), start(plain)
    found = []
    for model in (plain, again):
        leaves = {name: value.clone().requires_grad_() for name, value in latents.items()}
        made = model.denoise(leaves, torch.tensor(500.0), condition.cond)
        total = model.decode_unclamped(made).square().sum() + model.decode_audio(made).samples.square().sum()
        found.append(torch.autograd.grad(total, list(leaves.values())))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert all(one.abs().max() > 0 for one in found[0])


def test_the_pipeline_has_all_parts_and_bf16_samples_near_float32(folders, loaded, tmp_path):
    exact = loaded("ltx2", "2.3")
    exact.exporter()(tmp_path / "out")
    model = load_model("ltx2", str(tmp_path / "out"), dtype=torch.bfloat16)
    condition, latents = exact.encode(PROMPTS, SIZE), start(exact)
    found, expected = (ours(one, condition, latents, 2) for one in (model, exact))
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert (value - expected[name]).norm() < 0.1 * expected[name].norm()


# ---- the video's VAE ----

LATENTS = 7
FRAMES = 4 * (LATENTS - 1) + 1


@pytest.fixture(params=["2.0", "2.3", "causal"])
def decoder(request):
    settings = {"decoder_causal": True} if request.param == "causal" else {}
    vae = make_ltx2_vae("2.0" if request.param == "causal" else request.param, **settings)
    return LTX2FrameDecoder(vae.double().eval().requires_grad_(False))


def test_every_frame_alone_and_its_gradient_are_those_of_the_whole_decode(decoder):
    def gradient(pixels):
        weights = torch.linspace(-1, 1, pixels.numel(), dtype=pixels.dtype).view(pixels.shape)
        return torch.autograd.grad((pixels * weights).sum(), latents)[0]

    draw = torch.Generator().manual_seed(2)
    latents = torch.randn(1, 8, LATENTS, 2, 2, dtype=torch.float64, generator=draw).requires_grad_()
    whole = decoder.vae.decode(scaled(decoder.vae, latents), return_dict=False)[0].movedim(2, 1) / 2 + 0.5
    torch.testing.assert_close(decoder(latents), whole, atol=1e-10, rtol=0)
    with torch.no_grad():
        for frame in range(FRAMES):
            found = decoder(latents, torch.tensor([[frame]]))
            torch.testing.assert_close(found, whole[:, [frame]], atol=1e-10, rtol=0)
    frames = [13, 10]
    plain = gradient(decoder(latents, torch.tensor([frames])))
    torch.testing.assert_close(plain, gradient(whole[:, frames]), atol=1e-10, rtol=1e-8)
    checkpoint_blocks(decoder.vae, "layers")
    assert torch.equal(gradient(decoder(latents, torch.tensor([frames]))), plain)


# ---- adapters ----

BLOCKS = (*LTX2.lora_targets, "transformer_blocks.0.ff.net.2", "audio_to_video_attn.to_q", "audio_proj_in")


@torch.no_grad()
def output(network):
    draw = torch.Generator().manual_seed(0)
    video, audio, text, sounds = (
        torch.randn(1, *shape, generator=draw) for shape in ((12, 8), (5, 8), (6, 16), (6, 8))
    )
    time = torch.tensor([500.0])
    return torch.cat([
        part.flatten() for part in network.eval()(
            video, audio, text, sounds, time, sigma=time, num_frames=2, height=3, width=2, audio_num_frames=5,
            use_cross_timestep=True, return_dict=False,
        )
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("targets", "form"), [(LTX2.lora_targets, "diffusers"), (LTX2.lora_targets, "comfyui"), (BLOCKS, "comfyui")]
)
def test_either_form_is_loaded_by_diffusers_and_here_with_the_same_output(targets, form, tmp_path):
    network = add_adapter(make_ltx2_transformer(), targets, rank=4, alpha=8)
    for parameter in adapter_parameters(network):
        parameter.data.normal_(std=0.3)
    save_adapters({"transformer": network}, tmp_path / "adapter", {"family": "ltx2", "checkpoint": "tiny"})
    (file,) = export_adapter(tmp_path / "adapter", tmp_path / "out", form)
    assert all(key.startswith("diffusion_model." if form == "comfyui" else "transformer.") for key in load_file(file))
    others = dict.fromkeys(("scheduler", "vae", "audio_vae", "text_encoder", "tokenizer", "connectors", "vocoder"))
    pipe = LTX2Pipeline(**others, transformer=make_ltx2_transformer())
    assert (output(pipe.transformer) - output(network)).abs().max() > 0.01
    (line,) = loading_lines([file])
    exec(line.removeprefix("into diffusers' LTX2Pipeline: "), {"pipe": pipe})
    assert torch.equal(output(pipe.transformer), output(network))
    again = {"transformer": make_ltx2_transformer()}
    load_adapters(again, file, "ltx2")
    assert torch.equal(output(again["transformer"]), output(network))


@pytest.mark.parametrize("settings", [{}, {"gated_attn": True, "cross_attn_mod": True, "audio_gated_attn": True}])
def test_the_names_are_those_that_diffusers_converter_finds(settings):
    with torch.device("meta"):
        network = LTX2VideoTransformer3DModel(num_layers=2, **settings)
    layers = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    weights = {f"{layer}.lora_{factor}.weight": torch.zeros(1, 1) for layer in layers for factor in "AB"}
    assert to_diffusers(to_original(weights, NAMES)).keys() == {f"transformer.{name}" for name in weights}
    theirs = [NAMES.theirs(layer) for layer in layers]
    assert [NAMES.ours(name) for name in theirs] == layers
    assert NAMES.dotted("transformer_blocks_3_audio_attn1_to_out_0") == "transformer_blocks.3.audio_attn1.to_out.0"


# ---- in the releases' sizes ----


@pytest.mark.parametrize(
    ("shape", "parameters", "vae"), [(RandomLTX2, 18_876_174_592, 1222.5), (RandomLTX23, 18_988_838_144, 726.1)]
)
def test_the_releases_have_their_sizes(shape, parameters, vae):
    """Blocks are alike: one and two of them tell how large 48 are."""
    with torch.device("meta"):
        one, two = (LTX2VideoTransformer3DModel(**shape.transformer, num_layers=count) for count in (1, 2))
        assert round(count_parameters(AutoencoderKLLTX2Video(**shape.autoencoder)) / 1e6, 1) == vae
    assert count_parameters(one) + 47 * (count_parameters(two) - count_parameters(one)) == parameters
    assert len(matching_layers(two, LTX2.lora_targets)) == 8 * 2
    assert len(matching_layers(two, ("to_q", "to_k", "to_v", "to_out.0"))) == 24 * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "checkpoint"), [("ltx2", "Lightricks/LTX-2"), ("ltx2-i2v", "diffusers/LTX-2.3-Diffusers")]
)
def test_the_releases_run_without_data(family, checkpoint):
    model = load_model_shape(family, checkpoint, {}, torch.bfloat16, torch.device("meta"))
    assert len(matching_layers(model.denoiser, LTX2.lora_targets)) == 8 * 48
    size = VideoSize(121, 512, 768, fps=24)
    assert model.noise_shape(size) == {"video": (128, 16, 16, 24), "audio": (126, 128)}
    assert model.tokens(size) == 6144
    latents = {name: torch.empty(1, *shape, device="meta") for name, shape in model.noise_shape(size).items()}
    with torch.no_grad():
        made = model.denoise(latents, torch.empty((), device="meta"), model.encode([Prompt("a prompt")], size).cond)
    assert [value.shape for value in made.values()] == [value.shape for value in latents.values()]


# ---- trained ----

RECIPE = """
name: ltx2
model: {family: ltx2, checkpoint: CHECKPOINT}
video: {frames: 5, height: 16, width: 16, fps: 12}
sampling: {steps: 3, guidance: {name: modalities, scales: {video: 3.0, audio: 7.0}}}
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
    (tmp_path / "ltx2.yaml").write_text(RECIPE.replace("CHECKPOINT", str(folders["2.3"])))
    train = ["train", str(tmp_path / "ltx2.yaml"), "--runs", str(tmp_path)]
    assert main([*train, "name=first"]) == 0
    out = tmp_path / "published"
    assert main(["export", str(tmp_path / "first"), "--adapter", "--format", "comfyui", "--out", str(out)]) == 0
    assert main([*train, "name=second", f"adapter.init={out / 'lora.safetensors'}"]) == 0
    before, after = (read_run(tmp_path / name).evaluations for name in ("first", "second"))
    assert after[0].reward == pytest.approx(before[-1].reward, abs=1e-6)
    assert before[0].reward != before[-1].reward
