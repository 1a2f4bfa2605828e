"""The Wan family against diffusers' own pipelines, its decoder by windows, and its adapters in others' programs."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

from factories import Fixed
from vader.cli import main
from vader.errors import UserError
from vader.files.hub import tiny_weights
from vader.models import load_adapter, load_model
from vader.models.wan import Wan
from vader.networks.adapter import matching_layers
from vader.networks.measure import count_parameters
from vader.networks.recompute import Recomputed
from vader.nouns import Prompt, VideoSize
from vader.runs.folder import ADAPTER
from vader.runs.reader import read_run
from vader.sampling.guidance import load_guidance
from vader.sampling.videos import make_sampler
from vader.sampling.walk import Walk
from vader.tools.check import check_model
from wan_factories import RESIDUAL_VAE, make_tiny_wan

SIZE = VideoSize(frames=9, height=32, width=48, fps=16)
PROMPTS = [Prompt("a red   ball &amp; a  cube", negative="dull"), Prompt("abc")]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny_wan(tmp_path_factory.mktemp("wan") / "model")


def test_a_dry_run_refuses_what_the_run_would(tmp_path, capsys):
    """The text encoder is loaded last, when the run has begun."""
    damaged = shutil.copytree(tiny_weights("wan"), tmp_path / "damaged")
    (damaged / "tokenizer" / "spiece.model").write_bytes(b"no vocabulary")
    asked = ["train", "tiny-wan", f"model.checkpoint={damaged}", "sampling.steps=2", "--runs", str(tmp_path / "runs")]
    assert [main([*asked, *more]) for more in (["--dry-run"], [])] == [2, 2]
    said = capsys.readouterr()
    assert "everything is in place" not in said.out
    line = f"vader: cannot load tokenizer of checkpoint '{damaged}': its vocabulary cannot be read\n"
    assert said.err == 2 * line


@pytest.fixture(scope="module")
def model(folder) -> Wan:
    return load_model("wan", str(folder))


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> Path:
    return make_tiny_wan(tmp_path_factory.mktemp("wan") / "experts", experts=True)


@pytest.fixture(scope="module")
def ti2v(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wan") / "ti2v"
    return make_tiny_wan(folder, vae=RESIDUAL_VAE, shift=5.0, expand_timesteps=True)


def start(model, size=SIZE, count=2):
    return torch.randn(count, *model.noise_shape(size), generator=torch.Generator().manual_seed(1))


# ---- sampled as diffusers samples ----


def pipeline(folder) -> WanPipeline:
    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def theirs(pipe, latents, size, steps, output, **scales):
    """Latents or pixels of PROMPTS by diffusers' pipeline, text included."""
    return pipe(
        [one.text for one in PROMPTS], [one.negative for one in PROMPTS], size.height, size.width, size.frames, steps,
        latents=latents, output_type=output, **scales,
    ).frames  # fmt: skip


@torch.no_grad()
def ours(model, latents, size, steps, guidance):
    sampler = make_sampler(model, size, steps, guidance)
    walk = Walk(sampler, model.encode(PROMPTS, size), Fixed(latents))
    return walk.frozen(steps).latents


def same(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_sampling_equals_the_diffusers_pipeline(folder, model, steps):
    pipe, latents = pipeline(folder), start(model)
    found = ours(model, latents, SIZE, steps, 5.0)
    same(found, theirs(pipe, latents, SIZE, steps, "latent", guidance_scale=5.0))
    same(model.decode(found), theirs(pipe, latents, SIZE, steps, "pt", guidance_scale=5.0))


def test_the_shipped_model_samples_as_the_diffusers_pipeline():
    """Its weights are half precision and float8 on disk; here and there they are loaded as float32."""
    folder, size = tiny_weights("wan"), VideoSize(frames=9, height=32, width=32, fps=8)
    pipe = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    model = load_model("wan", "tiny")
    latents = start(model, size)
    found = ours(model, latents, size, 3, 4.0)
    same(found, theirs(pipe, latents, size, 3, "latent", guidance_scale=4.0))
    same(model.decode(found), theirs(pipe, latents, size, 3, "pt", guidance_scale=4.0))


def test_two_experts_have_a_scale_each(experts):
    model = load_model("wan", str(experts))
    latents, scales = start(model), {"transformer": 4.0, "transformer_2": 3.0}
    found = ours(model, latents, SIZE, 8, load_guidance("experts", {"scales": scales}))
    same(found, theirs(pipeline(experts), latents, SIZE, 8, "latent", guidance_scale=4.0, guidance_scale_2=3.0))
    assert (found - ours(model, latents, SIZE, 8, 4.0)).abs().max() > 1e-3


def test_one_time_for_all_tokens_is_what_the_pipeline_tells_each(ti2v):
    size = VideoSize(5, 64, 96, 24)
    model = load_model("wan", str(ti2v))
    latents = start(model, size)
    found = ours(model, latents, size, 3, 5.0)
    same(found, theirs(pipeline(ti2v), latents, size, 3, "latent", guidance_scale=5.0))
    same(model.decode(found), theirs(pipeline(ti2v), latents, size, 3, "pt", guidance_scale=5.0))


def test_text_is_zero_beyond_its_tokens_and_the_encoder_is_not_kept(folder, model):
    condition = model.encode(PROMPTS, SIZE)
    cond, uncond = pipeline(folder).encode_prompt(
        [one.text for one in PROMPTS], [one.negative for one in PROMPTS], max_sequence_length=512
    )
    same(condition.cond["text"], cond)
    same(condition.uncond["text"], uncond)
    assert condition.cond["text"].shape == (2, 512, 16)
    assert not condition.cond["text"][:, 40:].any()
    assert set(model.networks()) == {"transformer", "vae"}


def test_prompts_that_were_prepared_need_no_encoder(model, monkeypatch):
    model.prepare(PROMPTS)
    monkeypatch.setattr(UMT5EncoderModel, "from_pretrained", lambda *a, **k: pytest.fail("the encoder was loaded"))
    model.encode(PROMPTS, SIZE)


# ---- the contract ----


@pytest.mark.parametrize("which", ["folder", "experts", "ti2v"])
def test_it_keeps_the_contract_at_the_smallest_size(which, request):
    model = load_model("wan", str(request.getfixturevalue(which)))
    assert [check for check in check_model(model) if not check.passed] == []
    side = 32 if which == "ti2v" else 16
    assert model.check_size == VideoSize(5, side, side)


def test_the_command_takes_the_smallest_size_by_itself(folder, capsys):
    assert main(["check", "model", f"wan:{folder}"]) == 0
    assert "FAIL" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (VideoSize(16, 32, 32), "16 frames are not possible: they must be 4n . 1; the nearest are 13 and 17"),
        (VideoSize(9, 40, 50), "40x50 .* must be multiples of 16; the nearest is 32x48"),
    ],
)
def test_sizes_that_cannot_be_made_name_the_nearest(model, size, message):
    with pytest.raises(UserError, match=message):
        model.noise_shape(size)


def test_tokens_and_windows(model):
    size = VideoSize(81, 480, 832)
    assert model.noise_shape(size) == (4, 21, 60, 104)
    assert model.tokens(size) == 32_760
    assert [list(window) for window in model.windows(SIZE)] == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]


def test_a_latent_too_far_back_is_refused(folder):
    with pytest.raises(UserError, match=r"model\.options\.back is -1: it counts what is decoded before"):
        load_model("wan", str(folder), options={"back": -1})


def test_encoded_videos_decode_to_themselves_as_far_as_random_weights_do(model):
    pixels = torch.rand(2, 9, 3, 32, 48)
    latents = model.encode_video(pixels)
    assert latents.shape == (2, *model.noise_shape(SIZE))
    vae = model.vae
    expected = vae.encode(pixels.movedim(2, 1) * 2 - 1).latent_dist.mode()
    mean, std = (torch.tensor(one).view(-1, 1, 1, 1) for one in (vae.config.latents_mean, vae.config.latents_std))
    torch.testing.assert_close(latents, (expected - mean) / std)


def test_float32_stays_where_its_class_keeps_it_and_bf16_samples(folder):
    model = load_model("wan", str(folder), dtype=torch.bfloat16)
    kept = WanTransformer3DModel._keep_in_fp32_modules
    for name, tensor in [*model.denoiser.named_parameters(), *model.denoiser.named_buffers()]:
        in_float32 = any(part in name.split(".") for part in kept)
        assert tensor.dtype == (torch.float32 if in_float32 else torch.bfloat16), name
    found = ours(model, start(model), SIZE, 2, 5.0)
    assert found.dtype == torch.float32
    exact = ours(load_model("wan", str(folder)), start(model), SIZE, 2, 5.0)
    assert (found - exact).norm() < 0.1 * exact.norm()


# ---- in the releases' sizes ----

RELEASES = {  # settings of the transformer, parameters, layers of the attention and with the feed-forward, tokens
    "1.3B": ({"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}, 1_418_996_800, 240, 300),
    "14B": ({}, 14_288_491_584, 320, 400),
    "TI2V-5B": (
        {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
        4_999_787_712, 240, 300,
    ),
}  # fmt: skip
FEED_FORWARD = ("ffn.net.0.proj", "ffn.net.2")


@pytest.mark.parametrize("name", RELEASES)
def test_the_full_size_networks_have_the_released_numbers_of_weights(name):
    settings, weights, attention, more = RELEASES[name]
    with torch.device("meta"):
        network = WanTransformer3DModel(text_dim=4096, **settings)
    assert count_parameters(network) == weights
    assert len(matching_layers(network, Wan.lora_targets)) == attention
    assert len(matching_layers(network, (*Wan.lora_targets, *FEED_FORWARD))) == more


def test_the_full_size_decoders_have_the_released_numbers_of_weights():
    with torch.device("meta"):
        vae = AutoencoderKLWan()
    assert round(count_parameters(vae) / 1e6, 1) == 126.9


# ---- trained ----

RECIPE = """
name: wan
model: {family: wan, checkpoint: CHECKPOINT}
video: {frames: 9, height: 16, width: 16, fps: 16}
sampling: {steps: 4, guidance: 3.0}
rewards: [{name: "toys:Warmth", sees: 2}]
prompts: {train: tiny-train, test: tiny-test}
algorithm: {policy: {name: last, k: 1}}
adapter: {rank: 2}
optimizer: {lr: 1.0e-2}
train: {steps: 2, batch: 2}
evaluation: {every: 2, videos: 2, shown: 1}
memory: [{name: recompute}]
"""


@pytest.fixture
def run(tmp_path, capsys):
    """`run(checkpoint, "name", "key=value")` is a finished run's folder, or the line by which it is refused."""

    def train(checkpoint: Path, name: str, *changes: str) -> Path | str:
        (tmp_path / "wan.yaml").write_text(RECIPE.replace("CHECKPOINT", str(checkpoint)))
        arguments = [str(tmp_path / "wan.yaml"), f"name={name}", *changes, "--runs", str(tmp_path / "runs")]
        capsys.readouterr()
        status = main(["train", *arguments])
        return tmp_path / "runs" / name if status == 0 else capsys.readouterr().err.strip()

    return train


@pytest.mark.slow
def test_a_run_trains_and_another_starts_from_its_published_form(run, folder, tmp_path, capsys):
    first = run(folder, "first")
    published = tmp_path / "published"
    assert main(["export", str(first), "--adapter", "--format", "comfyui", "--out", str(published)]) == 0
    assert "into diffusers' WanPipeline: pipe.load_lora_weights(" in capsys.readouterr().out
    second = run(folder, "second", f"adapter.init={published / 'lora.safetensors'}", "train.steps=1")
    before, after = (read_run(path).evaluations for path in (first, second))
    assert after[0].reward == pytest.approx(before[-1].reward, abs=1e-6)


@pytest.mark.slow
def test_window_by_window_trains_as_one_graph_does(run, folder):
    """A frame's gradient is the same whatever else is decoded beside it."""
    changes = ["rewards.0.sees=4", "train.steps=1", "model.options={back: 1}"]
    split = run(folder, "split", *changes)
    whole = run(folder, "whole", *changes, "algorithm.split_backward=false")
    ours, theirs = (load_file(path / ADAPTER) for path in (split, whole))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_expert_that_a_policy_never_reaches_is_told_and_the_other_starts_from_a_file_that_does_not_say(
    run, experts, tmp_path
):
    line = run(experts, "both")
    assert "never reaches 'transformer'" in line
    assert line.endswith("or set adapter.denoisers to [transformer_2]")
    low = run(experts, "low", "adapter.denoisers=[transformer_2]")
    (file,) = (low / "adapter").iterdir()
    assert file.name == "pytorch_lora_weights.transformer_2.safetensors"
    save_file(load_file(file), tmp_path / "bare.safetensors")  # without what it says of itself
    again = run(experts, "again", "adapter.denoisers=[transformer_2]", f"adapter.init={tmp_path / 'bare.safetensors'}")
    assert read_run(again).evaluations[0].reward == pytest.approx(read_run(low).evaluations[-1].reward, abs=1e-6)


def test_the_vae_is_recomputed_layer_by_layer(model):
    vae = copy.deepcopy(model.vae)
    model.recompute("vae", vae, "blocks")
    assert sum(isinstance(part.forward, Recomputed) for part in vae.decoder.modules()) > len(vae.decoder.up_blocks) + 1
    transformer = copy.deepcopy(model.denoiser)
    model.recompute("transformer", transformer, "blocks")
    assert all(isinstance(block.forward, Recomputed) for block in transformer.blocks)


@pytest.mark.slow
def test_a_merged_model_is_a_pipeline_that_samples_the_same(run, folder, tmp_path):
    trained = run(folder, "merged")
    assert main(["export", str(trained), "--merged", "--trust-code", "--out", str(tmp_path / "out")]) == 0
    model = load_adapter(load_model("wan", str(folder)), trained / "adapter")
    latents = start(model)
    found = ours(model, latents, SIZE, 2, 5.0)
    same(found, theirs(pipeline(tmp_path / "out"), latents, SIZE, 2, "latent", guidance_scale=5.0))
    assert (found - ours(load_model("wan", str(folder)), latents, SIZE, 2, 5.0)).abs().max() > 1e-4
