"""Files of strangers: whatever a library raises on one is one line that names file and part; pipes are never opened."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vader.cli import main
from vader.errors import RunError, UserError
from vader.files.foreign import reading, reason, require_regular
from vader.files.hub import TINY_WEIGHTS, load_config, weight_variant
from vader.models import load_model
from vader.models.base import VideoModel
from vader.nouns import VideoSize, as_prompts
from vader.plugins import explained, own_line
from vader.rewards import load_reward
from vader.sampling.videos import sample_videos


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the tiny ModelScope."""
    return Path(shutil.copytree(TINY_WEIGHTS / "modelscope", tmp_path / "modelscope"))


@pytest.fixture
def clip(tmp_path):
    return Path(shutil.copytree(TINY_WEIGHTS / "clip", tmp_path / "clip"))


def refusal(load) -> str:
    with pytest.raises(UserError) as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- the boundary ----


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("a.b"), "it has no 'a.b'"),
        (RecursionError("maximum recursion depth exceeded"), "it is nested too deeply"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (ValueError("\n  first  \nsecond"), "first"),
        (ValueError(""), "ValueError"),
        (
            RuntimeError("Error(s) in loading state_dict:\n\tsize mismatch\n\tmore"),
            "Error(s) in loading state_dict: size mismatch",
        ),
        (ValueError("None of:\n(1) a file,\n (2) a folder.\nmore"), "None of: (1) a file, (2) a folder."),
        (RuntimeError("Weights only load failed ... set `weights_only=False`"), "it holds something else than tensors"),
        (RuntimeError("weights_only: GLOBAL os.system was not"), "it holds code (os.system), which is never run"),
    ],
)
def test_what_a_library_raises_is_one_line(error, said):
    assert reason(error) == said
    with pytest.raises(UserError) as caught, reading("unet of 'x'"):
        raise error
    assert str(caught.value) == f"unet of 'x': {said}"
    assert caught.value.__cause__ is error


def test_what_a_library_would_rather_have_is_not_said(recwarn):
    with reading("unet"):
        warnings.warn("an old format", stacklevel=1)
    assert not recwarn.list


@pytest.mark.parametrize("error", [UserError("known"), RunError("known"), KeyboardInterrupt()])
def test_what_is_said_already_passes(error):
    with pytest.raises(type(error)) as caught, reading("unet"):
        raise error
    assert caught.value is error


def test_pipes_and_devices_are_never_opened(tmp_path, checkpoint):
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    line = "adapter: 'pipe.safetensors' is a pipe or a device, which is never read: give a file"
    assert refusal(lambda: require_regular(pipe, "adapter")) == line
    require_regular(tmp_path / "absent", "adapter")
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert "is a pipe or a device" in refusal(lambda: require_regular(tmp_path / "zero", "x"))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "'loop' cannot be read" in refusal(lambda: require_regular(tmp_path / "loop", "x"))
    weights = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    os.mkfifo(weights)
    assert "vae of checkpoint" in refusal(lambda: load_model("modelscope", str(checkpoint)))


# ---- models and rewards ----


@pytest.mark.parametrize("content", ["[]", "null", "3", '"text"', "{", "", "[" * 100_000, "\x00"])
def test_settings_that_are_none(checkpoint, content):
    (checkpoint / "text_encoder" / "config.json").write_text(content)
    line = refusal(lambda: load_model("modelscope", str(checkpoint)))
    assert line.startswith(f"cannot load text_encoder/config.json of checkpoint {str(checkpoint)!r}: ")


def test_settings_that_are_no_utf8(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    assert refusal(lambda: load_config(str(tmp_path), "")).startswith("cannot load config.json of checkpoint ")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("text_encoder/config.json", {"initializer_factor": None, "hidden_act": None}),
        ("text_encoder/config.json", {"hidden_size": 0}),
        ("text_encoder/config.json", {"dtype": "text"}),
        ("text_encoder/config.json", {"architectures": 3}),
        ("unet/config.json", {"block_out_channels": None}),
        ("unet/config.json", {"norm_num_groups": "8"}),
        ("unet/config.json", {"attention_head_dim": 0}),
        ("vae/config.json", {"block_out_channels": {}}),
    ],
)
def test_settings_of_the_wrong_kind(checkpoint, part, change):
    path = checkpoint / part
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert part.partition("/")[0] in refusal(lambda: load_model("modelscope", str(checkpoint)))


@pytest.mark.parametrize(("part", "key"), [("unet", "layers_per_block"), ("text_encoder", "num_hidden_layers")])
def test_settings_that_ask_for_a_network_without_end(checkpoint, part, key):
    path = checkpoint / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: 2**31}))
    line = refusal(lambda: load_model("modelscope", str(checkpoint)))
    assert line.endswith(f"its {key} is 2147483648, and no network has more than 1000")


@pytest.mark.parametrize("settings", [{"depth": 2**31}, {"vae_2d": {"layers_per_block": 1001}}])
def test_settings_of_our_own_networks_that_ask_for_too_much(tmp_path, settings):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert "and no network has more than 1000" in refusal(lambda: load_config(str(tmp_path), ""))


def test_weights_that_are_a_folder(checkpoint, capfd):
    path = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    path.unlink()
    path.mkdir()
    assert refusal(lambda: load_model("modelscope", str(checkpoint))).endswith(
        f"{path.name!r} is a folder: give a file"
    )
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("change", [{"_class_name": None}, {"beta_end": None}, {"beta_schedule": ["linear"]}])
def test_scheduler_settings_of_the_wrong_kind(checkpoint, tmp_path, capsys, change):
    path = checkpoint / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    size = ["--frames", "2", "--height", "32", "--width", "32"]
    command = ["sample", "x", "--model", f"modelscope:{checkpoint}", *size, "--steps", "1", "--out", f"{tmp_path}/o"]
    assert main(command) == 2
    assert "scheduler" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"short", b"\xff" * 64])
def test_weights_that_are_none(clip, content):
    (clip / "model.safetensors").write_bytes(content)
    assert "CLIP of checkpoint" in refusal(lambda: load_reward("hps", checkpoint=str(clip)))


@pytest.mark.parametrize(("name", "content"), [("vocab.json", '{"a": "b"}'), ("merges.txt", "a"), ("vocab.json", "[]")])
def test_tokenizers_that_are_none(clip, name, content):
    (clip / name).write_text(content)
    assert "tokenizer of checkpoint" in refusal(lambda: load_reward("hps", checkpoint=str(clip)))


@pytest.mark.parametrize("length", [2**31, None])
def test_a_tokenizer_that_pads_without_end(checkpoint, length):
    """Padded to two billion tokens, a prompt would end the process; without a word, it is padded to 1e30."""
    path = checkpoint / "tokenizer" / "tokenizer_config.json"
    settings = {name: value for name, value in json.loads(path.read_text()).items() if name != "model_max_length"}
    path.write_text(json.dumps(settings | ({} if length is None else {"model_max_length": length})))
    model, size = load_model("modelscope", str(checkpoint)), VideoSize(2, 16, 16)
    text = model.encode(as_prompts(["a red ball"]), size).cond["text"]
    assert text.shape[1] == model.text_encoder.config.max_position_embeddings


def test_a_tokenizer_of_more_tokens_than_any_has(clip):
    """transformers would make two billion of them, one by one."""
    path = clip / "tokenizer_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(settings | {"extra_ids": 2**31, "model_max_length": 10**30}))
    line = refusal(lambda: load_reward("hps", checkpoint=str(clip)))
    assert line.endswith("its extra_ids is 2147483648, and no network has more than 100000")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none(checkpoint, value):
    path = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["encoder.conv_in.bias"][1] = value
    save_file(weights, path, {"format": "pt"})
    line = refusal(lambda: load_model("modelscope", str(checkpoint)))
    assert line == (
        f"vae of checkpoint {str(checkpoint)!r} cannot be used: encoder.conv_in.bias holds nan or inf in float32"
    )


HEADS = {
    "no bias": lambda head: {name: w for name, w in head.items() if "bias" not in name},
    "transposed": lambda head: {name: w.T.contiguous() if w.ndim == 2 else w for name, w in head.items()},
    "without shape": lambda head: {name: w.flatten()[0].clone() for name, w in head.items()},
    "no numbers": lambda head: {"layers.x.weight": torch.ones(1, 1)},
    "cut": lambda head: {name: w[:-1].contiguous() for name, w in head.items()},
}


@pytest.mark.parametrize("change", HEADS.values(), ids=HEADS)
def test_heads_that_are_none(tmp_path, change):
    path = tmp_path / "head.safetensors"
    save_file(change(load_file(TINY_WEIGHTS / "aesthetic_head.safetensors")), path)
    expected = f"{path} holds no predictor: expected layers.<n>.weight and .bias from features to one score"
    assert refusal(lambda: load_reward("aesthetic", checkpoint="tiny", head=str(path))).startswith(expected)


def test_a_network_that_loads_and_fails_in_its_work(checkpoint):
    model = load_model("modelscope", str(checkpoint))
    text = {"text": torch.zeros(1, 7, 3)}
    line = refusal(lambda: model.denoise(torch.zeros(1, 4, 2, 4, 4), torch.tensor(1.0), text))
    assert line.startswith("model 'modelscope' fails in denoise: RuntimeError: mat1 and mat2")


def test_a_model_of_ones_own_that_fails():
    class Mine(VideoModel):
        def encode(self, prompts, size, images=None):
            return prompts[5]

        load = noise_shape = denoise = decode_unclamped = networks = None

    line = refusal(lambda: Mine().encode([], None))
    assert line.startswith("model 'Mine' fails in encode: IndexError: list index out of range (test_foreign.py, line ")


def test_that_the_memory_is_full_is_no_mistake_of_a_file(monkeypatch, capsys):
    full = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    with pytest.raises(RuntimeError) as caught, explained("model 'x' does not load"):
        raise full
    assert caught.value is full
    monkeypatch.setattr("vader.recipe.load_recipe", lambda *arguments, **options: (_ for _ in ()).throw(full))
    assert main(["train", "tiny"]) == 1
    assert capsys.readouterr().err == f"vader: out of memory ({full}): take a smaller video, batch or model\n"


def test_a_video_that_is_not_of_numbers(checkpoint):
    """As a setting that is no number makes it, which no loader minds."""
    path = checkpoint / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"norm_eps": float("nan")}))
    model = load_model("modelscope", str(checkpoint))
    line = refusal(lambda: sample_videos(model, ["a red ball"], VideoSize(2, 16, 16), steps=1))
    assert line.startswith("the video of 'a red ball' holds nan: ")


def test_noise_levels_that_are_not_finite(checkpoint):
    path = checkpoint / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_start": 1e38}))
    model = load_model("modelscope", str(checkpoint))
    line = refusal(lambda: sample_videos(model, ["a red ball"], VideoSize(2, 16, 16), steps=1))
    assert line.startswith("the checkpoint's scheduler settings cannot be used: its noise levels are not finite (")


def test_weights_of_another_shape_are_named(clip):
    """transformers says "look at the above report" instead."""
    weights = load_file(clip / "model.safetensors")
    name = "visual_projection.weight"
    weights[name] = weights[name][:5].clone()
    save_file(weights, clip / "model.safetensors", {"format": "pt"})
    line = refusal(lambda: load_reward("hps", checkpoint=str(clip)))
    assert line == (
        f"CLIP of checkpoint {str(clip)!r} is of another architecture: {name} is [5, 64], should be [64, 64]"
    )


# ---- variants ----


@pytest.mark.parametrize(
    ("files", "variant"),
    [
        (["model.safetensors", "model.fp16.safetensors"], None),
        (["model.fp16.safetensors"], "fp16"),
        (["diffusion_pytorch_model.bf16.safetensors", "config.json"], "bf16"),
        (["pytorch_model.fp16.bin"], "fp16"),
        (["model.safetensors.index.fp16.json", "model.fp16-00001-of-00002.safetensors"], "fp16"),
        (["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model.fp16.safetensors"], None),
        (["config.json"], None),
        ([], None),
    ],
)
def test_the_variant_of_a_folder(tmp_path, files, variant):
    for file in files:
        (tmp_path / file).touch()
    assert weight_variant(tmp_path) == variant


def test_a_folder_with_variants_alone_loads(checkpoint):
    whole = load_model("modelscope", str(checkpoint))
    for path in checkpoint.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    again = load_model("modelscope", str(checkpoint))
    for name, network in whole.networks().items():
        for one, other in zip(network.parameters(), again.networks()[name].parameters(), strict=True):
            assert one.equal(other)


# ---- the command ----


def test_debug_shows_where_an_error_arose(monkeypatch, capsys):
    monkeypatch.setenv("VADER_DEBUG", "")
    command = ["sample", "x", "--recipe", "no-such-recipe"]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for before in (["--debug"], []):  # the first sets the variable, for the processes that a command starts
        assert main([*before, *command]) == 2
        shown = capsys.readouterr().err.splitlines()
        assert shown[0] == "Traceback (most recent call last):"
        assert shown[-1] == line


def test_an_error_that_nobody_has_foreseen_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("vader.recipe.files._find", None)
    assert main(["train", "tiny"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vader: TypeError: 'NoneType' object is not callable (files.py, line ")
    assert line.endswith("this is a fault of vader, please report it with what 'vader --debug ...' shows")


def test_an_error_in_code_of_ones_own_is_no_fault_of_the_package(monkeypatch, capsys):
    def broken(*arguments, **options):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("vader.recipe.load_recipe", broken)
    assert main(["train", "tiny"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"vader: your own code fails with ZeroDivisionError: division \(test_foreign\.py, line \d+\)", line
    )


@pytest.mark.parametrize("place", ["site-packages", "dist-packages"])
def test_what_is_installed_is_no_code_of_ones_own(tmp_path, place):
    (tmp_path / place).mkdir()
    file = tmp_path / place / "library.py"
    with pytest.raises(ZeroDivisionError) as caught:
        exec(compile("1 / 0", str(file), "exec"), {})
    assert own_line(caught.value) != "library.py, line 1"
