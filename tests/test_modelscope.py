"""The ModelScope family against diffusers' own pipeline, and the registry that loads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, TextToVideoSDPipeline

from factories import Fixed, decoded_by_windows, make_tiny_modelscope, predict
from vader.engine.device import frozen_dtype
from vader.errors import UserError
from vader.models import load_model, model_names
from vader.models.modelscope import ModelScope
from vader.nouns import Prompt, VideoSize, as_prompts
from vader.sampling.videos import make_sampler, solver_of
from vader.sampling.walk import Walk

SIZE = VideoSize(frames=3, height=16, width=16)
TEXTS = ["a red ball", "blue"]
PROMPTS = as_prompts(TEXTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_modelscope(tmp_path_factory.mktemp("modelscope") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return load_model("modelscope", str(folder))


def noise(model, count=2, size=SIZE):
    return torch.randn(count, *model.noise_shape(size), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("solver", "scale"), [("auto", 1.0), ("auto", 7.5), ("dpm", 7.5)])
@torch.no_grad()
def test_sampling_equals_the_diffusers_pipeline(folder, model, solver, scale):
    pipe = TextToVideoSDPipeline.from_pretrained(folder)
    if solver == "dpm":
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    start = noise(model)
    settings = {"num_inference_steps": 5, "guidance_scale": scale, "height": 16, "width": 16}
    theirs = pipe(TEXTS, latents=start, output_type="latent", **settings).frames
    pixels = pipe(TEXTS, latents=start, output_type="pt", **settings).frames
    sampler = make_sampler(model, SIZE, 5, scale, solver_of(model, kind=solver))
    walk = Walk(sampler, model.encode(PROMPTS, SIZE), Fixed(start))
    ours = walk.frozen(len(walk)).latents
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.decode(ours), pixels, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_negative_prompts_are_those_of_the_diffusers_pipeline(folder, model):
    pipe, start = TextToVideoSDPipeline.from_pretrained(folder), noise(model)
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 3, "guidance_scale": 5.0, "height": 16, "width": 16, "output_type": "latent"}
    theirs = pipe(TEXTS, negative_prompt=["blue", "a b c"], latents=start, **settings).frames
    prompts = [Prompt("a red ball", negative="blue"), Prompt("blue", negative="a b c")]
    walk = Walk(make_sampler(model, SIZE, 3, 5.0), model.encode(prompts, SIZE), Fixed(start))
    torch.testing.assert_close(walk.frozen(len(walk)).latents, theirs, atol=1e-4, rtol=1e-4)


def test_batched_and_two_call_guidance_agree(model):
    latents, condition = noise(model), model.encode(PROMPTS, SIZE)
    batched, in_turn = (predict(model, latents, 501.0, condition, 5.0, batched) for batched in (True, False))
    torch.testing.assert_close(batched, in_turn, atol=1e-5, rtol=1e-5)


def test_long_prompts_are_cut_and_the_unconditional_twin_is_the_empty_prompt(model):
    condition = model.encode(as_prompts(["a b c d e f g h i j k l m n o p", "red"]), SIZE)
    assert condition.cond["text"].shape == (2, 12, 16)
    torch.testing.assert_close(condition.uncond["text"][1], model.encode([Prompt("")], SIZE).cond["text"][0])
    assert not condition.cond["text"].requires_grad


def test_each_unconditional_twin_is_its_own_negative_text(model):
    negatives = ["blue", "", "a b c", "blue"]
    condition = model.encode([Prompt("red", negative=text) for text in negatives], SIZE)
    alone = [model.encode([Prompt(text)], SIZE).cond["text"][0] for text in negatives]
    assert torch.equal(condition.uncond["text"], torch.stack(alone))
    plain = model.encode([Prompt("red")], SIZE)
    torch.testing.assert_close(condition.cond["text"], plain.cond["text"].expand(4, -1, -1))
    assert not torch.equal(alone[0], alone[2])


def test_chosen_frames_are_those_of_the_whole_video(model):
    latents = noise(model)
    frames = torch.tensor([[2, 0], [1, 1]])
    chosen, whole = model.decode(latents, frames), model.decode(latents)
    expected = torch.stack([whole[0, [2, 0]], whole[1, [1, 1]]])
    torch.testing.assert_close(chosen, expected, atol=1e-5, rtol=1e-5)
    assert whole.shape == (2, 3, 3, 16, 16)
    assert whole.min() >= 0
    assert whole.max() <= 1


def test_windows_are_single_frames_that_make_the_whole(model):
    latents = noise(model)
    assert [len(window) for window in model.windows(SIZE)] == [1, 1, 1]
    whole = model.decode_unclamped(latents)
    torch.testing.assert_close(decoded_by_windows(model, latents, SIZE), whole, atol=1e-5, rtol=1e-5)


def test_decoding_reaches_only_the_latents_of_chosen_frames(model):
    latents = noise(model).requires_grad_()
    model.decode_unclamped(latents, torch.tensor([[0], [2]])).sum().backward()
    touched = latents.grad.abs().sum(dim=(1, 3, 4)) > 0
    assert touched.tolist() == [[True, False, False], [False, False, True]]


def test_networks_are_frozen_in_eval_mode_and_in_the_asked_precision(folder):
    model = ModelScope.load(str(folder), dtype=torch.bfloat16)
    for network in model.networks().values():
        assert not network.training
        assert all(not p.requires_grad and p.dtype == torch.bfloat16 for p in network.parameters())
    latents = noise(model)
    prediction = predict(model, latents, 10.0, model.encode(PROMPTS, SIZE), 2.0)
    assert prediction.dtype == model.decode(latents).dtype == torch.float32


def test_a_float64_model_predicts_in_float64(folder):
    model = ModelScope.load(str(folder), dtype=torch.float64)
    latents = noise(model).double()
    assert predict(model, latents, 10.0, model.encode(PROMPTS, SIZE), 2.0).dtype == torch.float64


@pytest.mark.parametrize(("height", "width", "nearest"), [(16, 17, "16x16"), (1, 33, "2x32"), (15, 16, "16x16")])
def test_impossible_sizes_name_the_nearest(model, height, width, nearest):
    with pytest.raises(UserError, match=f"the nearest is {nearest}"):
        model.noise_shape(VideoSize(3, height, width))


def test_latents_that_the_unet_cannot_halve_evenly_work(model):
    odd = VideoSize(frames=2, height=18, width=22)
    prediction = predict(model, noise(model, 2, odd), 9.0, model.encode(PROMPTS, odd), 2.0)
    assert prediction.shape == (2, *model.noise_shape(odd)) == (2, 4, 2, 9, 11)


def test_images_are_refused(model):
    with pytest.raises(UserError, match="take no images"):
        model.encode([Prompt("red")], SIZE, torch.zeros(1, 3, 16, 16))


def damaged(folder: Path, out: Path, change) -> str:
    change(shutil.copytree(folder, out))
    return str(out)


def test_damaged_checkpoints_say_what_is_wrong(folder, tmp_path):
    def load(name, change):
        return ModelScope.load(damaged(folder, tmp_path / name, change))

    with pytest.raises(UserError, match=r"vae/config.json is missing"):
        load("no-vae", lambda copy: shutil.rmtree(copy / "vae"))
    with pytest.raises(UserError, match=r"^unet of checkpoint .*no-weights' is not whole: it has no weight file$"):
        load("no-weights", lambda copy: next((copy / "unet").glob("*.safetensors")).unlink())
    with pytest.raises(UserError, match="cannot load text_encoder"):
        load("cut", lambda copy: next((copy / "text_encoder").glob("*.safetensors")).write_bytes(b"cut short"))
    with pytest.raises(UserError, match="cannot load scheduler"):
        load("not-json", lambda copy: (copy / "scheduler" / "scheduler_config.json").write_text("{"))
    with pytest.raises(UserError, match="its unet is no UNet3DConditionModel"):
        load("2d", lambda copy: (copy / "unet/config.json").write_text(json.dumps({"_class_name": "UNet2DModel"})))


def test_a_checkpoint_that_lacks_weights_is_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    def drop_one(copy):
        path = copy / "unet" / "diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        del weights["conv_out.weight"]
        save_file(weights, path, metadata={"format": "pt"})

    with pytest.raises(UserError, match=r"^unet of checkpoint .* is not whole: it lacks 1 weights \(conv_out.weight"):
        ModelScope.load(damaged(folder, tmp_path / "model", drop_one))


@pytest.mark.parametrize("name", ["/nowhere/model", "nothing-here", "a/b/c", "./model", "user/name with space"])
def test_a_checkpoint_that_is_nothing_is_one_line(name):
    with pytest.raises(UserError, match="no folder here and no hub id"):
        load_model("modelscope", name)


def test_a_hub_id_that_cannot_be_had_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="'vader-tests/nothing' is not here and not to be had from the hub"):
        load_model("modelscope", "vader-tests/nothing")


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(UserError, match="is a file"):
        load_model("modelscope", str(tmp_path / "model.ckpt"))


def test_sampling_options_reach_the_solver(folder, model):
    leading, trailing = (
        [level.time for level in solver_of(model, spacing=spacing).schedule(5).starts]
        for spacing in ("auto", "trailing")
    )
    reference = DDIMScheduler.from_pretrained(folder / "scheduler", timestep_spacing="trailing")
    reference.set_timesteps(5)
    assert trailing == reference.timesteps.tolist() != leading
    ddim, dpm = (solver_of(model, kind=kind).schedule(25).ends[-1] for kind in ("auto", "dpm"))
    assert (ddim.alpha, ddim.sigma) == pytest.approx((0.99957, 0.02915), abs=1e-5)
    assert (dpm.alpha, dpm.sigma) == (1, 0)


def test_unknown_families_name_the_nearest():
    assert "modelscope" in model_names()
    with pytest.raises(UserError, match="did you mean 'modelscope'"):
        load_model("modelscop", "tiny")


def test_frozen_dtype():
    assert frozen_dtype("auto", torch.device("cpu")) == torch.float32
    assert frozen_dtype("bf16", torch.device("cpu")) == torch.bfloat16
