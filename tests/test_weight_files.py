"""Weights: found by one word, files of strangers read without running code, networks filled to the last name."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import nn
from transformers import AutoTokenizer, ByT5Tokenizer, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from vader.errors import UserError
from vader.files import hub
from vader.files.weights import fill, load_tensors, read_weights

TENSORS = {"a": torch.arange(1000.0)}


class Touch:
    """Unpickled by the unrestricted reader, this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_torch_and_safetensors_files_are_read(tmp_path):
    torch.save({"state_dict": TENSORS, "step": 3}, tmp_path / "new.ckpt")
    torch.save({"state_dict": TENSORS, "step": 3}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    save_file(TENSORS, tmp_path / "a.safetensors")
    for name in ("new.ckpt", "old.ckpt"):
        content = read_weights(tmp_path / name)
        assert content["step"] == 3
        assert content["state_dict"]["a"].equal(TENSORS["a"])
    assert read_weights(tmp_path / "a.safetensors")["a"].equal(TENSORS["a"])


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path, zipped):
    path, touched = tmp_path / "evil.ckpt", tmp_path / "touched"
    torch.save({"a": Touch(touched)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"it holds code \((posix|nt)\.system\), which is never run$"):
        read_weights(path)
    assert not touched.exists()


def test_damaged_files_are_one_line(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save(TENSORS, path)
    whole = path.read_bytes()
    for content, reason in (
        (whole[: len(whole) // 2], "it is cut short"),
        (whole[:-10], "it is cut short"),
        (b"", "it is empty"),
        (b"<html>no such page", "it holds something else than tensors"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"no readable weight file: {reason}") as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)


def test_tensors_are_found_under_the_names_that_trainings_give(tmp_path):
    wrapped = {"module.a": TENSORS["a"], "epoch": 3}
    for content in (wrapped, {"state_dict": wrapped, "step": 3}):
        torch.save(content, tmp_path / "a.ckpt")
        assert list(load_tensors(tmp_path / "a.ckpt")) == ["a"]


# ---- filling ----


def test_networks_are_filled_to_the_last_name():
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    weights = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict()
    found = fill(network, weights, torch.bfloat16, "it", keep=("1.running_mean",))
    assert found[1].num_batches_tracked.dtype == torch.int64
    assert found[0].weight.equal(weights["0.weight"].bfloat16())
    assert found[1].running_mean.dtype == torch.float32
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("bias"), r"^the head is not whole: it lacks 1 weights \(bias \.\.\.\)$"),
        (
            lambda w: w.update(more=torch.ones(1)),
            r"^the head is of another kind: it has 1 unknown weights \(more \.\.\.",
        ),
        (
            lambda w: w.update(bias=torch.ones(4)),
            r"^the head is of another architecture: bias is \[4\], should be \[3\]$",
        ),
    ],
)
def test_weights_that_do_not_fit_are_one_line(change, said):
    weights = nn.Linear(2, 3).state_dict()
    change(weights)
    with pytest.raises(UserError, match=said):
        fill(nn.Linear(2, 3), weights, torch.float32, "the head")


# ---- the libraries' networks ----


def tiny_wan(folder):
    network = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=8,
        ffn_dim=16, num_layers=1,
    )  # fmt: skip
    network.save_pretrained(folder / "transformer")
    return str(folder)


def test_what_a_class_keeps_in_float32_stays_so(tmp_path):
    """Wan's time embedding and modulation in bfloat16, T5's output layers in float16: as the libraries load them."""
    wan = hub.load_network(WanTransformer3DModel, tiny_wan(tmp_path), "transformer", torch.bfloat16)
    kept = {name for name, weight in wan.named_parameters() if weight.dtype == torch.float32}
    assert {"scale_shift_table", "condition_embedder.time_embedder.linear_1.weight"} <= kept
    assert {weight.dtype for name, weight in wan.named_parameters() if name not in kept} == {torch.bfloat16}
    assert kept == {
        name
        for name, _ in wan.named_parameters()
        if any(part in name.split(".") for part in WanTransformer3DModel._keep_in_fp32_modules)
    }
    assert not wan.training
    assert not any(parameter.requires_grad for parameter in wan.parameters())
    T5EncoderModel(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    t5 = hub.load_pretrained(T5EncoderModel, str(tmp_path / "t5"), "T5", dtype=torch.float16)
    assert {name for name, weight in t5.named_parameters() if weight.dtype == torch.float32} == {
        "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    }


LOADING = """
import sys, torch
from transformers import CLIPModel, CLIPVisionModelWithProjection, CLIPTokenizer
from diffusers import AutoencoderKL
from vader.files import hub
clip, twin = hub.resolve("tiny", "clip"), hub.resolve("tiny", "modelscope")
hub.load_pretrained(CLIPModel, clip, "CLIP")
hub.load_pretrained(CLIPVisionModelWithProjection, clip, "CLIP")  # leaves the other tower: worth a warning, to them
hub.load_tokenizer(CLIPTokenizer, clip)
hub.load_network(AutoencoderKL, twin, "vae", torch.float32)
"""


def test_the_libraries_say_nothing_on_the_console():
    found = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("", "")


@pytest.mark.parametrize("tokenizer", [AutoTokenizer, CLIPTokenizer, T5TokenizerFast])
def test_a_tokenizer_that_is_not_there_is_named(tmp_path, tokenizer):
    """Some of transformers' classes fail without a vocabulary, others would take every word for unknown."""
    (tmp_path / "tokenizer").mkdir()
    for subfolder, where in (("absent", " (folder 'absent')"), ("tokenizer", " (folder 'tokenizer')"), ("", "")):
        with pytest.raises(UserError) as caught:
            hub.load_tokenizer(tokenizer, str(tmp_path), subfolder)
        assert str(caught.value) == f"checkpoint {str(tmp_path)!r} has no tokenizer{where}"


def test_a_tokenizer_of_bytes_needs_no_vocabulary(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path)
    assert len(hub.load_tokenizer(ByT5Tokenizer, str(tmp_path))) > 256


# ---- where ----


def test_one_word_names_where_weights_lie(tmp_path):
    (tmp_path / "a.pt").touch()
    assert hub.resolve("tiny", "clip") == hub.resolve("tiny/clip", "clip") == str(hub.TINY_WEIGHTS / "clip")
    assert hub.resolve("tiny/modelscope-sizes", "modelscope") == str(hub.TINY_WEIGHTS / "modelscope-sizes")
    assert hub.resolve(str(tmp_path), "clip") == str(tmp_path)
    assert hub.find_file(str(tmp_path / "a.pt"), "clip") == tmp_path / "a.pt"
    assert hub.find_file("tiny", "vjepa.safetensors").is_file()


@pytest.mark.parametrize(
    ("find", "source", "said"),
    [
        (hub.resolve, "./nowhere", "is no folder here and no hub id: use 'tiny', a folder or 'owner/name'"),
        (hub.resolve, __file__, "is a file: name the folder that it is in, or a hub id"),
        (hub.resolve, "tiny/modelscope", "is not here and not to be had from the hub"),
        (hub.find_file, "owner/name", "no weight file at 'owner/name'"),
        (hub.find_file, "./a/b/c.pt", "no weight file at './a/b/c.pt'"),
        (hub.find_file, "/a/b/c.pt", "no weight file at '/a/b/c.pt'"),
        (hub.find_file, "owner/name/file.pt", "is not here and not to be had from the hub"),
    ],
)
def test_what_is_nowhere_is_one_line(monkeypatch, tmp_path, find, source, said):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=said) as caught:
        find(source, "clip")
    assert "\n" not in str(caught.value)
