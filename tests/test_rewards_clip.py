"""CLIP towers: every published format gives the published features; prompts are encoded once and alone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from reward_factories import FEATURES, make_tiny_clip
from vader.errors import UserError
from vader.files.open_clip import clean, clip_config, rename_open_clip
from vader.rewards import clip
from vader.rewards.preprocess import CLIP_MEAN, CLIP_STD, normalize
from vader.tinyworld import split

HEADS = (16, 16)  # of the parity fixture's towers; shapes don't tell


@pytest.fixture
def open_clip(shared):
    tensors = load_file(shared("parity/rewards/hps_tiny_open_clip.safetensors"))
    return tensors | _token_embedding(shared, "token_embedding.weight")


def _token_embedding(shared, name):
    (table,) = load_file(shared("parity/rewards/hps_tiny_token_embedding_fp16.safetensors")).values()
    return {name: table.float()}


def test_open_clip_names_become_transformers_names(shared, open_clip):
    expected = load_file(shared("parity/rewards/hps_tiny_transformers.safetensors"))
    expected |= _token_embedding(shared, "text_model.embeddings.token_embedding.weight")
    renamed = rename_open_clip(open_clip)
    assert renamed.keys() == expected.keys()
    assert all(torch.equal(renamed[name], expected[name]) for name in expected)


def test_full_size_open_clip_fits_transformers_clip(shared):
    manifests = json.loads(shared("parity/rewards/clip_full_manifests.json").read_text())
    with torch.device("meta"):
        tensors = {name: torch.empty(_shape(value)) for name, value in manifests["open_clip_ViT_H_14"].items()}
    found = {name: list(tensor.shape) for name, tensor in rename_open_clip(tensors).items()}
    assert found == {name: _shape(value) for name, value in manifests["transformers_CLIPModel_H"].items()}
    config = clip_config(tensors)
    with torch.device("meta"):
        model = CLIPModel(config)
    model.load_state_dict(rename_open_clip(tensors), strict=True, assign=True)  # nothing missing, nothing over
    assert sum(parameter.numel() for parameter in model.parameters()) == manifests["params"]["H"]
    published = manifests["configs"]["H"]
    for tower, settings in (("vision_config", config.vision_config), ("text_config", config.text_config)):
        assert {name: getattr(settings, name) for name in published[tower]} == published[tower]


def test_full_size_image_tower_takes_its_share_of_clip_l(shared):
    manifests = json.loads(shared("parity/rewards/clip_full_manifests.json").read_text())
    whole = {name: _shape(value) for name, value in manifests["transformers_CLIPModel_L14"].items()}
    vision = CLIPConfig(**manifests["configs"]["L14"]).vision_config
    with torch.device("meta"):
        model = clip._ImageModel(vision)
    found = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == {name: whole[name] for name in found}
    left = whole.keys() - found
    assert all(any(re.search(rule, name) for rule in model._keys_to_ignore_on_load_unexpected) for name in left)
    assert clip.ImageTower(model).width == 768


def _shape(value) -> list[int]:
    return value["shape"] if isinstance(value, dict) else value


def test_features_are_the_published_ones(shared, open_clip):
    io = load_file(shared("parity/rewards/hps_tiny_io.safetensors"))
    model = clip.from_open_clip(open_clip, HEADS).requires_grad_(False)
    rows = {str(i): io["io.tokens"][i : i + 1] for i in range(3)}
    text = clip.TextTower(model, rows.__getitem__)(list(rows))
    torch.testing.assert_close(text, io["io.text_features"], atol=1e-6, rtol=0)
    pooled = model.vision_model(pixel_values=io["io.images"]).pooler_output
    image = F.normalize(model.visual_projection(pooled), dim=-1)
    torch.testing.assert_close(image, io["io.image_features"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "wrap", [lambda t: t, lambda t: {"state_dict": {f"module.{k}": v for k, v in t.items()}, "step": 3}]
)
def test_single_file_checkpoints(tmp_path, open_clip, wrap):
    torch.save(wrap({name: tensor.half() for name, tensor in open_clip.items()}), tmp_path / "clip.pt")
    found = clip.load_clip(str(tmp_path / "clip.pt")).state_dict()
    expected = rename_open_clip(open_clip)
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert all(torch.equal(found[name], expected[name].half().float()) for name in expected)


def test_image_tower_of_a_whole_clip(tmp_path):
    folder = str(make_tiny_clip(tmp_path / "clip"))
    images = torch.rand(3, 3, 16, 16)
    whole = CLIPModel.from_pretrained(folder)
    pooled = whole.vision_model(pixel_values=normalize(images, CLIP_MEAN, CLIP_STD)).pooler_output
    expected = F.normalize(whole.visual_projection(pooled), dim=-1)
    tower = clip.load_image_tower(folder)
    assert tower.width == FEATURES
    assert not hasattr(tower, "text_model")
    torch.testing.assert_close(tower(images), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(clip.ImageTower(clip.load_clip(folder))(images), expected, atol=1e-6, rtol=0)


def test_text_features_equal_transformers_own(tmp_path):
    folder = str(make_tiny_clip(tmp_path / "clip"))
    model = clip.load_clip(folder)
    tokenize = clip.load_tokenizer(folder, length=12)
    prompts = ["red", "a blue", "a very long prompt that is cut"]
    padded = torch.nn.utils.rnn.pad_sequence([tokenize(p)[0] for p in prompts], batch_first=True)
    batched = model.text_projection(model.text_model(input_ids=padded).pooler_output)
    features = clip.TextTower(model, tokenize)(prompts)
    torch.testing.assert_close(features, F.normalize(batched, dim=-1), atol=1e-6, rtol=0)


def test_a_prompt_is_encoded_once_and_again_after_a_move(tmp_path):
    folder = str(make_tiny_clip(tmp_path / "clip"))
    tokenize, seen = clip.load_tokenizer(folder, length=12), []
    tower = clip.TextTower(clip.load_clip(folder), lambda prompt: seen.append(prompt) or tokenize(prompt))
    first = tower(["red", "blue", "red"])
    assert torch.equal(tower(["blue"])[0], first[1])
    assert seen == ["red", "blue"]
    assert not first.requires_grad
    assert tower.double()(["red"]).dtype == torch.float64
    assert seen == ["red", "blue", "red"]


def test_prompts_are_cleaned_as_open_clip_does():
    assert clean("  a caf\u00e9 &amp;amp; bar,\n\t 2 &lt; 3 ") == "a caf\u00e9 & bar, 2 < 3"
    assert clean("\u201ca \ufb01sh\u201d on a dog\u2019s bowl") == '"a fish" on a dog\'s bowl'
    assert clean("a dog\u00e2\u20ac\u2122s bowl") == "a dog's bowl"  # UTF-8 that was read as Windows-1252


def test_the_tiny_worlds_prompts_are_clean_already():
    assert all(clean(text) == text for text in [*split.train_prompts(), *split.test_prompts()])


def byte_tokenizer(folder: Path, words: Sequence[str]) -> str:
    """CLIP's tokenizer of all bytes and some words, in the order and with the merges that CLIP's file would have."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        for left, right in zip(accumulate(parts), parts[1:], strict=False):
            merges.append(f"{left} {right}")
            vocabulary.append(left + right)
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *merges)) + "\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "bos_token": vocabulary[-2], "eos_token": vocabulary[-1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"unk_token": vocabulary[-1]}))
    return str(folder)


def test_a_typographic_apostrophe_gives_the_ids_of_a_plain_one(tmp_path):
    """Without repair it is two or three tokens of bytes, and the `s` behind it a word."""
    folder = byte_tokenizer(tmp_path / "clip", ["dog", "'s", "bowl"])
    tokenize = clip.load_tokenizer(folder)
    ids = tokenize("a dog\u2019s bowl")[0].tolist()
    assert len(ids) == 6
    assert ids == tokenize("a dog's bowl")[0].tolist()
    assert len(AutoTokenizer.from_pretrained(folder)("a dog\u2019s bowl").input_ids) >= 8


def test_old_files_with_position_ids_load(tmp_path):
    folder = make_tiny_clip(tmp_path / "clip")
    tensors = load_file(folder / "model.safetensors")
    for tower, length in (("text_model", 12), ("vision_model", 5)):
        tensors[f"{tower}.embeddings.position_ids"] = torch.arange(length)[None]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert clip.load_image_tower(str(folder)).width == FEATURES
    assert isinstance(clip.load_clip(str(folder)), CLIPModel)


def test_missing_weights_are_an_error(tmp_path):
    folder = make_tiny_clip(tmp_path / "clip")
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"CLIP of .* is not whole: it lacks 1 weights \(visual_projection\.weight"):
        clip.load_image_tower(str(folder))


@pytest.mark.parametrize("load", [clip.load_clip, clip.load_image_tower, clip.load_tokenizer])
def test_missing_folder_is_an_error(load, tmp_path):
    with pytest.raises(UserError, match="is no folder here"):
        load(str(tmp_path / "nothing"))


def test_files_that_are_no_clip_are_errors(tmp_path):
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(UserError, match="no readable weight file"):
        clip.load_clip(str(tmp_path / "text.pt"))
    torch.save({"layers.0.weight": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="not an open_clip checkpoint"):
        clip.load_clip(str(tmp_path / "other.pt"))
    with pytest.raises(UserError, match="no weight file at"):
        clip.load_clip(str(tmp_path / "missing.pt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no CLIP"):
        clip.load_clip(str(tmp_path / "empty"))
