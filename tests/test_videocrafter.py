"""The VideoCrafter family: its single file and bad ones, where it lies, prompts, sizes, the command line."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from factories import decoded_by_windows, predict
from vader.cli import main
from vader.errors import UserError
from vader.files.hub import TINY_WEIGHTS
from vader.files.video import read_video
from vader.models import load_model
from vader.models.image_vae import decode_frames
from vader.models.videocrafter.model import VideoCrafter
from vader.models.videocrafter.names import to_diffusers, to_release, unet_names, vae_names
from vader.models.videocrafter.networks import Settings, build_unet, text_to_release, unet_to_release, vae_to_release
from vader.models.videocrafter.release import (
    FILE_NAMES,
    PREFIXES,
    find_release,
    read_release,
    schedule_buffers,
    write_release,
)
from vader.nouns import Prompt, VideoSize, as_prompts
from vader.sampling.videos import solver_of
from vader.tools.check import check_model
from videocrafter_factories import LEVELS, make_networks, make_tiny_videocrafter

SIZE = VideoSize(frames=3, height=16, width=12, fps=24)
PROMPTS = as_prompts(["a red ball", "blue"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_videocrafter(tmp_path_factory.mktemp("videocrafter"))


@pytest.fixture(scope="module")
def model(folder):
    return load_model("videocrafter", str(folder / "model.ckpt"))


@pytest.fixture(scope="module")
def networks():
    """What the file was written from."""
    return make_networks()


def noise(model, size=SIZE, count=2):
    return torch.randn(count, *model.noise_shape(size), generator=torch.Generator().manual_seed(1))


# ---- the file ----


@torch.no_grad()
def test_a_written_file_gives_back_the_networks(model, networks):
    """The VAE's factor is the release's now; latents of unit variance and pixels are what they were."""
    unet, vae, text = networks
    latents, told = noise(model), torch.tensor([24, 8])
    features = torch.randn(2, 12, 16)
    ours, theirs = (one(latents, 501, features, timestep_cond=told).sample for one in (model.denoiser, unet))
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    torch.testing.assert_close(model.decode_unclamped(latents), decode_frames(vae, latents), atol=1e-5, rtol=0)
    images = torch.rand(1, 3, 16, 16)
    ours, theirs = (one.encode(images).latent_dist for one in (model.vae, vae))
    torch.testing.assert_close(0.18215 * ours.mean, 0.7 * theirs.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(0.18215 * ours.std, 0.7 * theirs.std, atol=1e-5, rtol=0)
    tokens = torch.tensor([[5, 3, 2, 0, 0]])
    torch.testing.assert_close(model.text_encoder(tokens)[0], text(tokens)[0], atol=0, rtol=0)


def test_fps_and_time_have_networks_of_their_own(model):
    latents, text = noise(model, count=1), torch.randn(1, 12, 16)

    def at(time, fps):
        return model.denoise(latents, torch.tensor(float(time)), {"text": text, "fps": torch.tensor([fps])})

    assert (at(20, 8) - at(20, 24)).abs().max() > 1e-3
    assert (at(8, 20) - at(20, 8)).abs().max() > 1e-3


RELEASE_NAMES = {
    "time_embed.2.bias": "time_embedding.linear_2.bias",
    "input_blocks.0.0.weight": "conv_in.weight",
    "init_attn.0.proj_in.weight": "transformer_in.proj_in.weight",
    "input_blocks.2.1.norm.bias": "down_blocks.0.attentions.1.norm.bias",
    "input_blocks.4.0.skip_connection.weight": "down_blocks.1.resnets.0.conv_shortcut.weight",
    "input_blocks.6.0.op.bias": "down_blocks.1.downsamplers.0.conv.bias",
    "input_blocks.11.0.temopral_conv.conv4.3.weight": "down_blocks.3.temp_convs.1.conv4.3.weight",
    "middle_block.2.transformer_blocks.0.attn2.to_k.weight":
        "mid_block.temp_attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "middle_block.3.emb_layers.1.weight": "mid_block.resnets.1.time_emb_proj.weight",
    "output_blocks.2.1.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
    "output_blocks.5.3.conv.weight": "up_blocks.1.upsamplers.0.conv.weight",
    "output_blocks.11.2.proj_out.bias": "up_blocks.3.temp_attentions.2.proj_out.bias",
}  # fmt: skip


def test_names_of_the_released_unet():
    pairs = unet_names(attention=(True, True, True, False), layers=2)
    assert {name: to_diffusers(name, pairs) for name in RELEASE_NAMES} == RELEASE_NAMES
    assert all(to_release(ours, pairs) == name for name, ours in RELEASE_NAMES.items())
    with pytest.raises(KeyError):
        to_diffusers("input_blocks.10.1.norm.weight", pairs)  # the deepest level has no transformer


def test_the_released_size_by_count():
    """As many tensors and numbers as the release lists."""
    with torch.device("meta"):
        unet = build_unet({"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1024})
    weights = unet_to_release(unet)
    assert (len(weights), sum(w.numel() for w in weights.values())) == (1484, 1_413_284_420)
    assert weights["init_attn.0.proj_in.weight"].shape == (512, 320, 1)
    assert len(vae_names(levels=4, layers=2)) == len({ours for _, ours in vae_names(4, 2)})


def test_schedule_buffers_are_consistent():
    """Each by a way that the code does not take."""
    buffers = {name: value.double() for name, value in schedule_buffers(LEVELS).items()}
    assert len(buffers) == 13
    levels, before = buffers["alphas_cumprod"], buffers["alphas_cumprod_prev"]
    torch.testing.assert_close((1 - buffers["betas"]).cumprod(0), levels, rtol=1e-5, atol=0)
    torch.testing.assert_close(buffers["sqrt_recipm1_alphas_cumprod"] ** 2 + 1, 1 / levels, rtol=1e-5, atol=0)
    mean = buffers["posterior_mean_coef1"] + buffers["posterior_mean_coef2"] * levels.sqrt()
    torch.testing.assert_close(mean, before.sqrt(), rtol=1e-4, atol=0)  # of x_t = sqrt(alpha_bar) and x_0 = 1
    assert buffers["scale_arr"].shape == (1400,)
    assert buffers["scale_arr"][[0, 399, 999]].tolist() == pytest.approx([1.0, 0.7, 0.7])


def test_layouts_of_the_file(folder, networks, tmp_path):
    """A bare state dict and deepspeed's, half precision, and extra entries that are no tensors."""
    whole = torch.load(folder / "model.ckpt", weights_only=True)
    weights, made = whole["state_dict"], whole["vader"]
    reference = VideoCrafter.load(str(folder))
    for name, content in {
        "wrapped": {"state_dict": weights, "vader": made, "global_step": 7},
        "deepspeed": {"module": {f"_forward_module.{key}": w for key, w in weights.items()}, "vader": made},
    }.items():
        torch.save(content, tmp_path / name)
        again = VideoCrafter.load(str(tmp_path / name), tokenizer=str(folder / "tokenizer"))
        for one, other in zip(again.denoiser.parameters(), reference.denoiser.parameters(), strict=True):
            assert one.equal(other)
    write_release(tmp_path / "half.ckpt", *networks, LEVELS, dtype=torch.float16)
    half = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    assert half[PREFIXES["vae"] + "quant_conv.bias"].dtype == torch.float16
    assert half["alphas_cumprod"].equal(LEVELS.float())
    assert VideoCrafter.load(str(tmp_path / "half.ckpt"), tokenizer=str(folder / "tokenizer")).denoiser.dtype


def same_networks(one, other) -> bool:
    pairs = [zip(n.parameters(), other.networks()[k].parameters(), strict=True) for k, n in one.networks().items()]
    return all(ours.equal(theirs) for pair in pairs for ours, theirs in pair)


WRAPPINGS = {
    "compiled": lambda name: name.replace("diffusion_model.", "diffusion_model._orig_mod."),
    "distributed": lambda name: f"module.{name}",
    "distributed within": lambda name: name.replace("model.diffusion_model.", "model.module.diffusion_model."),
    "compiled and distributed": lambda name: f"_orig_mod.module.{name}",
    "recomputed": lambda name: name.replace("middle_block.0.", "middle_block.0._checkpoint_wrapped_module."),
}


@pytest.mark.parametrize("wrapped", WRAPPINGS.values(), ids=WRAPPINGS)
def test_names_of_wrappers_and_averages_are_left_out(folder, model, tmp_path, wrapped):
    content = torch.load(folder / "model.ckpt", weights_only=True)
    content["state_dict"] = {wrapped(name): weight for name, weight in content["state_dict"].items()}
    content["state_dict"] |= {"model_ema.decay": torch.tensor(0.9), "model_ema.diffusion_modelout0bias": torch.ones(3)}
    torch.save(content, tmp_path / "model.ckpt")
    again = VideoCrafter.load(str(tmp_path), tokenizer=str(folder / "tokenizer"))
    assert same_networks(model, again)


def test_a_name_with_and_without_its_wrapper(folder, tmp_path):
    def twice(content):
        content["state_dict"]["module.model.diffusion_model.out.0.bias"] = torch.ones(16)

    with pytest.raises(UserError, match=r"holds the weight 'model\.diffusion_model\.out\.0\.bias' twice"):
        VideoCrafter.load(str(damaged(folder, tmp_path / "model.ckpt", twice)))


def test_a_safetensors_file_of_the_release(folder, model, tmp_path):
    """It has no place for the settings of a smaller twin, so the release's are taken."""
    content = torch.load(folder / "model.ckpt", weights_only=True)
    save_file({name: weight.clone() for name, weight in content["state_dict"].items()}, tmp_path / FILE_NAMES[1])
    assert find_release(str(tmp_path)) == tmp_path / "model.safetensors"
    release = read_release(tmp_path / "model.safetensors")
    assert release.settings == Settings()
    assert all(weight.equal(content["state_dict"][PREFIXES["unet"] + name]) for name, weight in release.unet.items())


def to_diffusers_folder(networks, folder, out, unet_at="unet"):
    """As public conversions have it: the frame rate's network stands beside the time's."""
    unet, vae, text = networks
    unet.save_pretrained(out / unet_at)
    path = out / unet_at / "diffusion_pytorch_model.safetensors"
    weights = {
        name.removeprefix("time_embedding.") if "fps" in name else name: w for name, w in load_file(path).items()
    }
    save_file(weights, path, {"format": "pt"})
    rest = out if unet_at else out / "rest"
    vae.save_pretrained(rest / "vae")
    text.save_pretrained(rest / "text_encoder")
    shutil.copytree(folder / "tokenizer", rest / "tokenizer")
    return out


@torch.no_grad()
def test_a_folder_in_diffusers_layout_gives_the_files_videos(folder, model, networks, tmp_path):
    again = VideoCrafter.load(str(to_diffusers_folder(networks, folder, tmp_path)))
    for one, other in zip(model.denoiser.parameters(), again.denoiser.parameters(), strict=True):
        assert one.equal(other)
    condition = again.encode(PROMPTS, SIZE)
    for name, value in model.encode(PROMPTS, SIZE).cond.items():
        torch.testing.assert_close(condition.cond[name], value, atol=0, rtol=0)
    torch.testing.assert_close(again.decode_unclamped(noise(again)), model.decode_unclamped(noise(model)))
    betas = torch.tensor(model.scheduler["trained_betas"]), torch.tensor(again.scheduler["trained_betas"])
    torch.testing.assert_close(*betas, atol=1e-6, rtol=0)
    assert again.scheduler.keys() == model.scheduler.keys()


@torch.no_grad()
def test_a_unet_alone_takes_the_rest_from_elsewhere(folder, model, networks, tmp_path):
    place = str(to_diffusers_folder(networks, folder, tmp_path, unet_at=""))
    again = VideoCrafter.load(place, parts=f"{place}/rest")
    latents, condition = noise(model), model.encode(PROMPTS, SIZE)
    ours, theirs = (one.denoise(latents, torch.tensor(9.0), condition.cond) for one in (again, model))
    assert ours.equal(theirs)
    with pytest.raises(UserError, match=r"^'cerspense/zeroscope_v2_576w' is not here and not to be had from the hub"):
        VideoCrafter.load(place)
    with pytest.raises(UserError, match=r"model\.options\.parts is for a UNet alone"):
        VideoCrafter.load(str(folder), parts=place)


def test_a_folder_of_modelscope_says_so():
    with pytest.raises(UserError, match=r"is told no frames per second .* it may be ModelScope's, family modelscope"):
        VideoCrafter.load(str(TINY_WEIGHTS / "modelscope"))


UNET = PREFIXES["unet"]
KIN = {
    "DynamiCrafter, which starts from pictures": {
        "image_proj_model.latents": (1, 2), f"{UNET}input_blocks.0.0.weight": (320, 8, 3, 3),
    },
    "VideoCrafter1's image-to-video model, which starts from pictures": {
        "embedder.model.visual.proj": (2, 2), f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
    },
    "VideoCrafter1 or older, by its relative positions: take VideoCrafter2": {
        f"{UNET}init_attn.0.transformer_blocks.0.attn1.relative_position_k.embeddings_table": (33, 64),
    },
    "Stable Video Diffusion as one file": {"conditioner.embedders.0.open_clip.model.logit_scale": ()},
    "an image model such as Stable Diffusion: it has no temporal layers": {f"{UNET}out.2.bias": (4,)},
    "an AnimateDiff motion module": {"down_blocks.0.motion_modules.0.temporal_transformer.norm.bias": (320,)},
    "a UNet alone, as ModelScope's own repository has it": {"input_blocks.0.0.weight": (320, 4, 3, 3)},
    "a LoRA adapter: give it as --adapter": {"base_model.model.model.diffusion_model.x.lora_A.weight": (4, 4)},
}  # fmt: skip


@pytest.mark.parametrize("name", KIN)
def test_files_of_relatives_are_called_by_their_names(tmp_path, name):
    torch.save({"state_dict": {key: torch.zeros(shape) for key, shape in KIN[name].items()}}, tmp_path / "model.ckpt")
    with pytest.raises(UserError) as caught:
        VideoCrafter.load(str(tmp_path / "model.ckpt"))
    assert f"model.ckpt' is {name}" in str(caught.value)


def test_networks_are_frozen_in_eval_mode_and_in_the_asked_precision(folder):
    model = VideoCrafter.load(str(folder), dtype=torch.bfloat16)
    for network in model.networks().values():
        assert not network.training
        assert all(not p.requires_grad and p.dtype == torch.bfloat16 for p in network.parameters())
    prediction = predict(model, noise(model), 9.0, model.encode(PROMPTS, SIZE), 2.0)
    assert prediction.dtype == model.decode(noise(model)).dtype == torch.float32


# ---- what is wrong with a file ----


class Touch:
    """Unpickled by the unrestricted reader, this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def damaged(folder, out, change):
    content = torch.load(folder / "model.ckpt", weights_only=True)
    change(content)
    torch.save(content, out)
    return out


DAMAGES = {
    "unet-lacks-one": (
        lambda content: content["state_dict"].pop("model.diffusion_model.out.0.bias"),
        r"UNet of checkpoint .* is not whole: it lacks 1 weights \(out.0.bias",
    ),
    "unet-lacks-what-tells-its-size": (
        lambda content: content["state_dict"].pop("model.diffusion_model.init_attn.0.proj_in.weight"),
        "UNet of checkpoint .* is not whole: it lacks init_attn.0.proj_in.weight",
    ),
    "unet-of-another-shape": (
        lambda content: content["state_dict"].update({"model.diffusion_model.out.0.bias": torch.zeros(5)}),
        r"UNet of checkpoint .* is of another architecture: out.0.bias is \[5\], should be \[16\]",
    ),
    "unet-with-more": (
        lambda content: content["state_dict"].update({"model.diffusion_model.lora.0": torch.zeros(5)}),
        r"UNet of checkpoint .* is of another kind: it has 1 unknown weights \(lora.0",
    ),
    "unet-of-odd-width": (
        lambda content: content["vader"].update(unet_groups=7),
        "UNet of checkpoint .* is of another architecture: num_channels",
    ),
    "vae-lacks-one": (
        lambda content: content["state_dict"].pop("first_stage_model.decoder.mid.attn_1.q.weight"),
        r"VAE of checkpoint .* lacks 1 weights \(decoder.mid.attn_1.q.weight",
    ),
    "text-lacks-one": (
        lambda content: content["state_dict"].pop("cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias"),
        r"text encoder of checkpoint .* lacks 1 weights \(transformer.resblocks.0.attn.in_proj_bias",
    ),
    "no-schedule": (lambda content: content["state_dict"].pop("alphas_cumprod"), "it lacks alphas_cumprod"),
    "other-scales": (
        lambda content: content["state_dict"].update(scale_arr=torch.ones(1400)),
        "no VideoCrafter2: its scale_arr does not fall",
    ),
    "no-unet": (
        lambda content: [
            content["state_dict"].pop(key) for key in [*content["state_dict"]] if key.startswith(PREFIXES["unet"])
        ],
        "no VideoCrafter2: it has no weights named model.diffusion_model",
    ),
    "of-the-future": (lambda content: content["vader"].update(depth=3), "written by another version"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_one_line(folder, tmp_path, name):
    change, message = DAMAGES[name]
    path = damaged(folder, tmp_path / "model.ckpt", change)
    with pytest.raises(UserError, match=message) as caught:
        VideoCrafter.load(str(path), tokenizer=str(folder / "tokenizer"))
    assert "\n" not in str(caught.value)


def sample_arguments(path, out):
    size = ["--frames", "2", "--height", "16", "--width", "16", "--steps", "4", "--guidance", "3"]
    return ["sample", "Red!", "--model", f"videocrafter:{path}", *size, "--out", str(out)]


def test_sampling_from_the_command_line(folder, tmp_path, capsys):
    for fps in ("8", "24"):
        arguments = [*sample_arguments(folder / "model.ckpt", tmp_path / fps), "--fps", fps]
        assert main(arguments) == 0, capsys.readouterr().err
    slow, fast = (read_video(tmp_path / fps / "000-red.mp4") for fps in ("8", "24"))
    assert slow.shape == (2, 3, 16, 16)
    assert (slow - fast).abs().max() > 0.02


@pytest.mark.parametrize("kind", ["cut", "code", "missing-keys", "wrong-shape", "html"])
def test_bad_files_end_the_command_with_one_line(folder, tmp_path, capsys, kind):
    path, touched = tmp_path / "model.ckpt", tmp_path / "touched"
    whole = (folder / "model.ckpt").read_bytes()
    if kind == "cut":
        path.write_bytes(whole[: len(whole) * 2 // 3])
    elif kind == "html":
        path.write_text("<html>404</html>")
    elif kind == "code":
        torch.save({"state_dict": {}, "callbacks": Touch(touched)}, path)
    else:
        damaged(folder, path, DAMAGES["vae-lacks-one" if kind == "missing-keys" else "unet-of-another-shape"][0])
    assert main(sample_arguments(path, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert error.startswith("vader: ")
    assert error.count("\n") == 1
    expected = {
        "cut": "it is cut short",
        "code": "it holds code (posix.system), which is never run",
        "missing-keys": "VAE of checkpoint",
        "wrong-shape": "should be [16]",
        "html": "no readable weight file",
    }
    assert expected[kind] in error
    assert not touched.exists()


# ---- where it lies ----


def test_a_file_its_folder_and_the_hub(folder, tmp_path, monkeypatch):
    assert find_release(str(folder)) == find_release(str(folder / "model.ckpt")) == folder / "model.ckpt"
    cache = tmp_path / "models--VideoCrafter--VideoCrafter2"
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    (cache / "snapshots" / "abc" / "model.ckpt").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_release("VideoCrafter/VideoCrafter2") == cache / "snapshots" / "abc" / "model.ckpt"


def test_what_is_nowhere_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"there is no file './model\.ckpt'"):
        find_release("./model.ckpt")
    with pytest.raises(UserError, match=r"is not whole: model\.ckpt is missing"):
        find_release(str(tmp_path))
    with pytest.raises(UserError, match="no folder here and no hub id"):
        find_release("nothing-here")


def test_the_tokenizer_is_beside_the_file_or_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "model.ckpt").write_bytes((folder / "model.ckpt").read_bytes())
    with pytest.raises(UserError, match="'openai/clip-vit-large-patch14' is not here and not to be had"):
        VideoCrafter.load(str(tmp_path))
    options = {"tokenizer": str(folder / "tokenizer")}
    assert load_model("videocrafter", str(tmp_path), options=options).tokenizer.vocab_size
    content = torch.load(folder / "model.ckpt", weights_only=True)
    table = PREFIXES["text"] + "token_embedding.weight"
    content["state_dict"][table] = content["state_dict"][table][:20].clone()
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match=r"has 59 words, the text encoder of .* 20"):
        load_model("videocrafter", str(tmp_path), options=options)


# ---- the contract ----


def test_it_keeps_the_contract(model):
    checks = check_model(model, VideoSize(3, 8, 12, 24))
    assert [check for check in checks if not check.passed] == []


def test_prompts_are_cut_and_padded_with_zeros(model):
    condition = model.encode(as_prompts(["a b c d e f g h i j k l m n o p", "red"]), SIZE)
    assert condition.cond["text"].shape == (2, 12, 16)
    assert condition.cond["fps"].tolist() == condition.uncond["fps"].tolist() == [24, 24]
    start, end = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    empty = model.text_encoder(torch.tensor([[start, end, *[0] * 10]]))[0]
    torch.testing.assert_close(condition.uncond["text"][1:], empty)
    (red,) = model.tokenizer("red", add_special_tokens=False).input_ids
    torch.testing.assert_close(
        condition.cond["text"][1:], model.text_encoder(torch.tensor([[start, red, end, *[0] * 9]]))[0]
    )


def test_words_are_cleaned_as_open_clip_cleans_them(model):
    one, other = (model.encode([Prompt(text)], SIZE).cond["text"] for text in ("  A &amp;  Red\u2019s ", "a & red's"))
    torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_images_are_refused(model):
    with pytest.raises(UserError, match="take no images"):
        model.encode([Prompt("red")], SIZE, torch.zeros(1, 3, 16, 16))


def test_each_unconditional_twin_is_its_own_negative_text(model):
    negatives = ["blue", "", "a b c", "blue"]
    condition = model.encode([Prompt("red", negative=text) for text in negatives], SIZE)
    alone = [model.encode([Prompt(text)], SIZE).cond["text"][0] for text in negatives]
    assert torch.equal(condition.uncond["text"], torch.stack(alone))
    assert not torch.equal(alone[0], alone[2])
    plain = model.encode([Prompt("red")], SIZE)
    torch.testing.assert_close(condition.cond["text"], plain.cond["text"].expand(4, -1, -1))


@torch.no_grad()
def test_windows_are_single_frames_that_make_the_whole(model):
    latents = noise(model)
    assert [len(window) for window in model.windows(SIZE)] == [1, 1, 1]
    whole = model.decode_unclamped(latents)
    torch.testing.assert_close(decoded_by_windows(model, latents, SIZE), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("height", "width", "nearest"), [(16, 18, "16x16"), (1, 31, "4x32"), (15, 16, "16x16")])
def test_impossible_sizes_name_the_nearest(model, height, width, nearest):
    with pytest.raises(UserError, match=f"both must be multiples of 4; the nearest is {nearest}"):
        model.noise_shape(VideoSize(3, height, width))


def test_the_released_model_makes_multiples_of_64():
    with torch.device("meta"):
        unet = build_unet({"block_out_channels": (32, 32, 32, 32), "cross_attention_dim": 8, "attention_head_dim": 8})
    vae = SimpleNamespace(config=SimpleNamespace(block_out_channels=(128, 256, 512, 512)))
    model = VideoCrafter(unet, vae, None, None, None)
    assert model.noise_shape(VideoSize(12, 320, 512)) == (4, 12, 40, 64)
    with pytest.raises(UserError, match="multiples of 64; the nearest is 384x512"):
        model.noise_shape(VideoSize(12, 368, 512))


def test_the_solver_is_the_files_own(model):
    schedule = solver_of(model).schedule(25)
    assert [level.time for level in schedule.starts] == list(range(961, 0, -40))
    assert schedule.starts[-2].alpha == pytest.approx(0.96917 * LEVELS[41].sqrt().item(), rel=1e-5)
    assert schedule.ends[-1].alpha == pytest.approx(LEVELS[0].sqrt().item(), rel=1e-6)
    with pytest.raises(UserError, match="divides 1000"):
        solver_of(model).schedule(30)


def test_text_that_the_release_never_uses_is_made_up(networks):
    weights = text_to_release(networks[2])
    assert weights["text_projection"].shape == (16, 16)
    assert sum(name.endswith(".ln_1.weight") for name in weights) == 3
    assert weights["transformer.resblocks.0.attn.in_proj_weight"].shape == (48, 16)
    assert vae_to_release(networks[1])["encoder.mid.attn_1.q.weight"].shape == (16, 16, 1, 1)
