"""The Open-Sora family: its checkpoint's parts, sizes, guidance, decoding, and the commands that use it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from factories import decoded_by_windows, predict
from opensora_factories import make_release, make_tiny_opensora
from vader.cli import main
from vader.errors import UserError
from vader.models import load_model
from vader.models.opensora import parts
from vader.models.opensora.model import OpenSora
from vader.models.opensora.parts import RELEASE_SCHEDULER
from vader.models.opensora.sizes import RESOLUTIONS, latent_size, trained_sizes
from vader.models.opensora.stdit3 import STDiT3, STDiT3Config
from vader.nouns import Condition, Prompt, VideoSize, as_prompts
from vader.pretrain.opensora import velocity_errors
from vader.recipe import load_recipe, recipe_names
from vader.sampling.videos import solver_of
from vader.solvers.scheduler_config import solver_from_config
from vader.tools.check import check_model

SIZE = VideoSize(frames=21, height=16, width=20, fps=24)
PROMPTS = as_prompts(["a red ball", "blue"])


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VADER_CACHE", str(tmp_path_factory.getbasetemp() / "opensora-cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_opensora(tmp_path_factory.mktemp("opensora") / "model")


@pytest.fixture
def model(folder):
    return load_model("opensora", str(folder))


def noise(model, size=SIZE, count=2):
    return torch.randn(count, *model.noise_shape(size), generator=torch.Generator().manual_seed(1))


# ---- against the official sampler ----


def official_network(shared) -> STDiT3:
    stored = load_file(shared("parity/opensora12/stdit3_tiny.safetensors"))
    info = json.loads(shared("parity/opensora12/stdit3_tiny.json").read_text())
    network = STDiT3(STDiT3Config.from_json(info["config"])).requires_grad_(False)
    network.load_state_dict({name[8:]: weight for name, weight in stored.items() if name.startswith("weights/")})
    return network


@torch.no_grad()
def test_sampling_with_guidance_is_the_official_trajectory(shared):
    """Thirty steps of the tiny STDiT3 with the null embedding, cut as the prompt is."""
    stored = load_file(shared("parity/opensora12/rflow.safetensors"))
    model = OpenSora(official_network(shared), None, None, RELEASE_SCHEDULER)
    size = VideoSize(51, 240, 426, 24)
    text, mask = stored["stdit/y"][:, 0], stored["stdit/mask"].bool()
    told = {"text_mask": mask, **model._size_inputs(size, 1)}
    null = model.denoiser.y_embedder.y_embedding[None]
    condition = Condition({"text": text, **told}, {"text": null, **told})
    solver, z = solver_of(model), stored["traj_stdit/z_init"]
    schedule = solver.schedule(30, size)
    steps = zip(schedule.starts, schedule.ends, stored["traj_stdit/z_model_input"], strict=True)
    for here, there, expected in steps:
        torch.testing.assert_close(z, expected, atol=5e-4, rtol=5e-4)
        z = solver.step(z, predict(model, z, here.time, condition, 7.0), here, there).next
    torch.testing.assert_close(z, stored["traj_stdit/z_final"], atol=5e-4, rtol=5e-4)


def stand_in(z: Tensor, time: Tensor, text: Tensor, frame_mask: Tensor | None = None) -> Tensor:
    """The stored trajectories' closed-form model."""
    channels = torch.arange(4.0).view(4, 1, 1, 1)
    wave = 0.5 * torch.sin(3 * time / 1000 + channels)
    tilt = 2 * text.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1) * (1 + 0.25 * z.roll(1, dims=-1))
    shown = 0.0 if frame_mask is None else 0.1 * frame_mask[:, None, :, None, None].float()
    return 0.8 * z.tanh() - 0.6 * z + wave + tilt + shown


SCHEDULERS = {
    "no_transform": {"use_timestep_transform": False},
    "discrete": {"use_timestep_transform": False, "use_discrete_timesteps": True},
}


@pytest.mark.parametrize("name", ["plain", "ones", "edit", "no_transform", "discrete"])
def test_closed_loops_are_the_official_trajectories(shared, name):
    """With masks, frames join the chain at their level: solver steps and `renoise` are all that it takes."""
    stored = load_file(shared("parity/opensora12/rflow.safetensors"))
    solver = solver_from_config(RELEASE_SCHEDULER | SCHEDULERS.get(name, {}))
    schedule = solver.schedule(len(stored[f"traj_{name}/timesteps"]), VideoSize(51, 240, 426, 24))
    text, null = stored["text/y"][:, 0], stored["text/y_null_embedding"][None].expand(2, -1, -1)
    z, mask = stored[f"traj_{name}/z_init"], stored.get(f"traj_{name}/mask")
    joined = None if mask is None else mask == 1
    for i, (here, there) in enumerate(zip(schedule.starts, schedule.ends, strict=True)):
        time = torch.tensor(here.time)
        up = None if mask is None else mask * 1000 >= time
        kept = z
        if up is not None:
            fresh = (up & ~joined)[:, None, :, None, None]
            z = torch.where(fresh, solver.renoise(z, stored[f"traj_{name}/noise"][i], here), z)
            joined = up
        torch.testing.assert_close(z, stored[f"traj_{name}/z_model_input"][i], atol=1e-4, rtol=1e-4)
        cond, uncond = (stand_in(z, time, y, up) for y in (text, null))
        z = solver.step(z, uncond + 7 * (cond - uncond), here, there).next
        if up is not None:
            z = torch.where(up[:, None, :, None, None], z, kept)
    torch.testing.assert_close(z, stored[f"traj_{name}/z_final"], atol=1e-4, rtol=1e-4)


def test_the_tiny_twins_training_loss_is_the_official_one(shared):
    stored = load_file(shared("parity/opensora12/rflow.safetensors"))
    clean, noise, time = (stored[f"train/{name}"] for name in ("x_start", "noise", "t"))
    seen = []

    def network(z, times):
        seen.append(z)
        each = [
            stand_in(one, t, y) for one, t, y in zip(z.split(1), times, stored["train/y"][:, 0].split(1), strict=True)
        ]
        return torch.cat(each)

    errors = velocity_errors(network, clean, noise, time / 1000)
    torch.testing.assert_close(seen[0], stored["train/x_t"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(errors, stored["train/loss"], atol=1e-5, rtol=1e-5)


# ---- the contract ----


def test_the_family_keeps_the_contract(model):
    failed = [check for check in check_model(model, SIZE, PROMPTS) if not check.passed]
    assert not failed


def test_batched_and_two_call_guidance_agree(model):
    latents, condition = noise(model), model.encode(PROMPTS, SIZE)
    batched, in_turn = (predict(model, latents, 501.0, condition, 5.0, batched) for batched in (True, False))
    torch.testing.assert_close(batched, in_turn, atol=1e-5, rtol=1e-5)


def test_the_unconditional_twin_has_as_many_null_tokens_as_the_prompt(model):
    condition = model.encode(PROMPTS, SIZE)
    length = condition.cond["text"].shape[1]
    assert torch.equal(condition.uncond["text"][1], model.denoiser.y_embedder.y_embedding[:length])
    assert torch.equal(condition.uncond["text_mask"], condition.cond["text_mask"])
    assert condition.cond["text_mask"].sum(dim=1).tolist()[0] == length > condition.cond["text_mask"].sum(dim=1)[1]


@pytest.mark.parametrize("negative", ["grey", "a long list of what is not wanted: grey, dull, blurred"])
def test_each_unconditional_twin_is_its_own_negative_text(model, negative):
    """Beside prompts that have none, and so the null embedding; longer or shorter than the prompts."""
    prompts = [PROMPTS[0], Prompt("blue", negative=negative)]
    condition, alone = model.encode(prompts, SIZE), model.encode([Prompt(negative)], SIZE).cond
    tokens = int(alone["text_mask"].sum())
    shown = condition.uncond["text_mask"][1].bool()
    assert shown.sum() == tokens
    assert torch.equal(condition.uncond["text"][1][shown], alone["text"][0][:tokens])
    plain = model.encode(PROMPTS, SIZE)
    length = plain.cond["text"].shape[1]
    for name in ("text", "text_mask"):
        assert torch.equal(condition.cond[name][:, :length], plain.cond[name])
        assert torch.equal(condition.uncond[name][0, :length], plain.uncond[name][0])
    assert not condition.uncond["text_mask"][0, length:].any()


@torch.no_grad()
def test_windows_are_chunks_of_17_frames_that_make_the_whole(model):
    latents = noise(model)
    assert [len(window) for window in model.windows(SIZE)] == [17, 4]
    whole = model.decode_unclamped(latents)
    torch.testing.assert_close(decoded_by_windows(model, latents, SIZE), whole, atol=1e-5, rtol=1e-5)


def test_the_denoiser_is_told_size_and_frame_rate(model):
    told = model.encode([Prompt("x")], SIZE).cond
    assert [told[name].item() for name in ("fps", "height", "width")] == [24, 16, 20]
    assert model.encode([Prompt("x")], VideoSize(1, 16, 16, 24)).cond["fps"].item() == 120


def test_images_are_refused(model):
    with pytest.raises(UserError, match="take no images"):
        model.encode([Prompt("x")], SIZE, torch.zeros(1, 3, 16, 16))


def test_chosen_frames_are_those_of_the_whole_video(model):
    latents, frames = noise(model), torch.tensor([[20, 0], [3, 17]])
    results = []
    for decode in (lambda z: model.decode_unclamped(z)[torch.arange(2)[:, None], frames],
                   lambda z: model.decode_unclamped(z, frames)):  # fmt: skip
        leaf = latents.clone().requires_grad_()
        pixels = decode(leaf)
        (gradient,) = torch.autograd.grad(pixels.square().sum(), leaf)
        results.append((pixels.detach(), gradient))
    assert results[0][0].shape == (2, 2, 3, 16, 20)
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


def test_a_still_image_is_one_frame(model):
    assert model.decode(noise(model, VideoSize(1, 16, 16))).shape == (2, 1, 3, 16, 16)


def test_networks_are_frozen_and_in_the_asked_precision(folder):
    model = OpenSora.load(str(folder), dtype=torch.bfloat16)
    for network in model.networks().values():
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
    kept = {name for name, p in model.denoiser.named_parameters() if p.dtype != torch.bfloat16}
    assert kept == {"rope.freqs"}
    assert model.vae.dtype == model.denoiser.y_embedder.y_embedding.dtype == torch.bfloat16
    prediction = predict(model, noise(model), 10.0, model.encode(PROMPTS, SIZE), 2.0)
    assert prediction.dtype == model.decode(noise(model)).dtype == torch.float32


# ---- sizes ----


def test_the_table_of_sizes_is_the_official_one(shared):
    manifest = json.loads(shared("parity/opensora12/manifest.json").read_text())
    table = manifest["image_sizes_height_width"]
    ours = {name: [tuple(map(int, size.split("x"))) for size in row.split()] for name, row in RESOLUTIONS.items()}
    assert ours == {name: [tuple(size) for size in row.values()] for name, row in table.items()}
    for row in manifest["latent_sizes"]["table"]:
        size = VideoSize(row["num_frames"], row["height"], row["width"])
        if (row["num_frames"] % 17 % 4 == 0 and row["num_frames"] > 16) or row["num_frames"] == 1:
            assert list(latent_size(size, 8)) == row["latent"]


def test_sizes_of_the_table_and_multiples_of_the_factor_are_possible():
    assert (240, 426) in trained_sizes()
    assert latent_size(VideoSize(51, 240, 426), 8) == (15, 30, 53)
    assert latent_size(VideoSize(17, 64, 96), 8) == (5, 8, 12)
    with pytest.raises(UserError, match="the nearest is 240x424"):
        latent_size(VideoSize(51, 240, 427), 8)


@pytest.mark.parametrize(("frames", "near"), [(2, "1 and 17"), (16, "1 and 17"), (18, "17 and 21"), (52, "51 and 55")])
def test_impossible_numbers_of_frames_name_the_nearest(frames, near):
    with pytest.raises(UserError, match=f"cannot make {frames} frames.*nearest are {near} "):
        latent_size(VideoSize(frames, 64, 64), 8)


# ---- the checkpoint ----


def test_the_release_s_three_folders_are_the_one_folder(folder, model, tmp_path):
    release = make_release(tmp_path)
    split = load_model("opensora", release.pop("checkpoint"), options=release)
    latents = noise(model)
    predictions = [predict(m, latents, 301.0, m.encode(PROMPTS, SIZE), 3.0) for m in (model, split)]
    assert torch.equal(*predictions)
    assert torch.equal(model.decode(latents), split.decode(latents))


def test_parts_left_out_are_the_release_s_own(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(parts.files, "resolve", lambda name, family: asked.append(name) or name)
    found = parts.find_parts("me/stdit")
    assert [part.source for part in found] == ["me/stdit", parts.RELEASE_VAE, *[parts.RELEASE_TEXT] * 2]
    found = parts.find_parts(str(folder), text_encoder="me/t5")
    assert found.vae == parts.Part(str(folder), "vae")
    assert found.tokenizer == found.text_encoder == parts.Part("me/t5")
    assert parts.RELEASE_VAE not in asked[5:]


def test_a_file_without_rotary_frequencies_is_the_same(folder, model, tmp_path):
    def drop(weights):
        del weights["rope.freqs"]

    other = OpenSora.load(damaged(folder, tmp_path, "transformer", drop))
    assert torch.equal(other.denoiser.rope.freqs, model.denoiser.rope.freqs)


def damaged(folder: Path, tmp_path: Path, part: str, change) -> str:
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / part / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    return str(copy)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("transformer", lambda w: w.pop("y_embedder.y_embedding"), "lacks 1 weights .y_embedder.y_embedding"),
        ("vae", lambda w: w.pop("scale"), "vae of checkpoint .* is not whole: it lacks 1 weights .scale"),
        ("vae", lambda w: w.update(extra=torch.ones(1)), "1 unknown weights .extra"),
        ("transformer", lambda w: w.update({"t_block.1.bias": torch.ones(3)}), r"t_block.1.bias is \[3\], should be"),
    ],
)
def test_damaged_weights_are_named(folder, tmp_path, part, change, said):
    with pytest.raises(UserError, match=said):
        OpenSora.load(damaged(folder, tmp_path, part, change))


def test_a_folder_without_a_part_is_named(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(UserError, match=r"tokenizer/tokenizer_config.json is missing"):
        OpenSora.load(str(copy))


# ---- the commands ----


def test_vader_sample_writes_videos(folder, tmp_path, capsys):
    size = ["--frames", "17", "--height", "16", "--width", "16", "--steps", "2"]
    assert main(["sample", "a red ball", "--model", f"opensora:{folder}", *size, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "000-a-red-ball.mp4").exists()


def test_frames_that_break_the_release_are_refused_on_the_command_line(folder, tmp_path, capsys):
    size = ["--frames", "16", "--height", "16", "--width", "16", "--out", str(tmp_path)]
    assert main(["sample", "x", "--model", f"opensora:{folder}", *size]) == 2
    assert "16" in capsys.readouterr().err


REWARD = """
from vader import FrameReward


class Redness(FrameReward):
    def score_frames(self, images, prompts):
        return images[:, 0].mean(dim=(1, 2))
"""


def test_a_recipe_trains_and_the_adapter_loads(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "redness_of_opensora.py").write_text(REWARD)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = tmp_path / "redness.yaml"
    recipe.write_text(
        f"""
name: run
model: {{family: opensora, checkpoint: {folder}}}
video: {{frames: 21, height: 16, width: 16, fps: 24}}
sampling: {{steps: 2, guidance: 7.0}}
rewards: [{{name: "redness_of_opensora:Redness", sees: all}}]
prompts: {{train: tiny-train, test: tiny-test}}
scoring: {{chunk: 17}}
adapter: {{rank: 2}}
train: {{steps: 1, batch: 2}}
evaluation: {{videos: 1, shown: 1, batch: 1}}
"""
    )
    assert main(["train", str(recipe), "--runs", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    step = next(line for line in lines if line["kind"] == "train")
    assert step["grad_norm"] > 0
    assert not step["skipped"]
    weights = load_file(tmp_path / "run" / "adapter" / "pytorch_lora_weights.safetensors")
    assert len(weights) == 24
    assert "transformer.spatial_blocks.0.cross_attn.kv_linear.lora_A.weight" in weights
    sys.modules.pop("redness_of_opensora", None)


@pytest.mark.parametrize("name", ["hps", "pickscore", "aesthetic", "hps-aesthetic"])
def test_shipped_recipes_are_possible(name):
    assert f"opensora-{name}" in recipe_names()
    recipe = load_recipe(f"opensora-{name}")
    size = VideoSize(**recipe.video.model_dump())
    assert latent_size(size, 8)[0] == 15
    assert solver_from_config(RELEASE_SCHEDULER, kind=recipe.sampling.solver).schedule(recipe.sampling.steps, size)
