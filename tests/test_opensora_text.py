"""Open-Sora's prompts: suffixes, cleaning, T5 embeddings, and the cache on disk."""

from __future__ import annotations

import json
import os
import time

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import T5Config, T5EncoderModel

from opensora_factories import write_text_encoder, write_tokenizer
from vader.engine.build import build_setup
from vader.errors import UserError
from vader.models.opensora.text import cleaned, prepared, with_scores
from vader.models.registry import load_model
from vader.models.text_cache import EmbeddingCache, Part, TextEmbedder, fingerprint
from vader.recipe import load_recipe

CPU = torch.device("cpu")


def test_suffixes_and_cleaning_are_the_official_ones(shared):
    prompts = json.loads(shared("parity/opensora12/text.json").read_text())["prompts"]
    assert len(prompts) > 30
    for prompt in prompts:
        scored = with_scores(prompt["raw"], prompt["aes"], prompt["flow"], prompt["camera_motion"])
        assert scored == prompt["with_scores"]
        assert cleaned(scored) == prompt["cleaned"]


def test_prepared_prompts():
    assert prepared("A <b>RED</b>  ball") == "a red ball aesthetic score: 6.5."
    assert prepared("a dog. aesthetic score: 5.0.") == "a dog. aesthetic score: 5.0."
    assert with_scores("x", 7, 4, "pan left") == "x aesthetic score: 7.0. motion score: 4.0. camera motion: pan left."


@torch.no_grad()
def test_transformers_t5_gives_the_official_embeddings(shared):
    stored = load_file(shared("parity/opensora12/text_tiny.safetensors"))
    config = json.loads(shared("parity/opensora12/text.json").read_text())["tiny_t5_config"]
    encoder = T5EncoderModel(T5Config(**config)).eval()
    weights = {name.removeprefix("t5_weights/"): w for name, w in stored.items() if name.startswith("t5_weights/")}
    report = encoder.load_state_dict(weights, strict=False)
    assert report.unexpected_keys == []
    assert set(report.missing_keys) <= {"encoder.embed_tokens.weight"}  # the same tensor as shared.weight
    out = encoder(stored["input_ids"], stored["attention_mask"]).last_hidden_state
    torch.testing.assert_close(out, stored["last_hidden_state"], atol=2e-5, rtol=1e-4)


# ---- the embedder and its cache ----


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_CACHE", str(tmp_path / "cache"))
    write_text_encoder(tmp_path / "t5", seed=0)
    write_tokenizer(tmp_path / "t5")
    return tmp_path / "t5"


def embedder(folder, dtype=torch.float32, max_length=40, template="plain", **options):
    part = Part(str(folder))
    return TextEmbedder(T5EncoderModel, part, part, dtype, max_length, template, **options)


def test_embeddings_are_those_of_padded_prompts_without_the_padding(folder):
    """As the release does it: padded to the full length, with a mask."""
    from transformers import AutoTokenizer

    text, mask = embedder(folder)(["a red ball", "abc"], CPU)
    tokens = AutoTokenizer.from_pretrained(folder)(
        ["a red ball", "abc"], padding="max_length", max_length=40, return_tensors="pt"
    )
    encoder = T5EncoderModel.from_pretrained(folder).eval()
    with torch.no_grad():
        padded = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    assert mask.sum(dim=1).tolist() == tokens.attention_mask.sum(dim=1).tolist()
    assert text.shape[1] == mask.sum(dim=1).max()
    length = text.shape[1]
    kept = mask[..., None]
    torch.testing.assert_close(text, torch.where(kept, padded[:, :length], 0.0), atol=1e-5, rtol=1e-4)


def test_an_encoder_in_8_bits_is_close_and_has_its_own_cache(folder):
    pytest.importorskip("bitsandbytes", reason="8-bit text encoders need bitsandbytes")
    exact, small = embedder(folder), embedder(folder, eight_bit=True)
    assert exact.cache.folder != small.cache.folder
    (wanted, _), (found, _) = exact(["a red ball"], CPU), small(["a red ball"], CPU)
    assert not torch.equal(found, wanted)
    assert (found - wanted).norm() < 0.05 * wanted.norm()


def test_8_bits_without_bitsandbytes_are_refused_at_once(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="text_8bit needs bitsandbytes: pip install bitsandbytes"):
        embedder(folder, eight_bit=True)


def test_long_prompts_are_cut_with_their_end_mark(folder):
    text, mask = embedder(folder, max_length=5)(["abcdefgh"], CPU)
    assert text.shape == (1, 5, 16)
    assert mask.all()


def test_each_prompt_is_encoded_once_and_the_encoder_is_dropped(folder, monkeypatch):
    loads = []
    load = T5EncoderModel.from_pretrained
    monkeypatch.setattr(T5EncoderModel, "from_pretrained", lambda *a, **k: loads.append(a) or load(*a, **k))
    one = embedder(folder)
    one.prepare(["a", "b", "a"], CPU)
    first, _ = one(["b", "a"], CPU)
    again, _ = embedder(folder)(["b", "a"], CPU)
    assert len(loads) == 1
    assert torch.equal(first, again)
    assert not [value for value in vars(one).values() if isinstance(value, torch.nn.Module)]
    one(["c"], CPU)
    assert len(loads) == 2


class There(torch.nn.Module):
    """A network that says where it is sent, and what happens meanwhile."""

    def __init__(self, heard, name, device="meta"):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(1, device=device))
        self.heard, self.name = heard, name

    def to(self, device):
        self.heard.append((self.name, str(device)))


def test_all_else_leaves_the_device_while_new_texts_are_encoded(folder, monkeypatch):
    heard: list = []
    one = embedder(folder)
    one.beside = (There(heard, "denoiser"), There(heard, "elsewhere", "cpu"), There(heard, "reward"))
    monkeypatch.setattr(TextEmbedder, "_encode", lambda self, texts, device: heard.append((texts, str(device))))
    one.prepare(["a", "b"], torch.device("meta"))
    away, back = ([("denoiser", place), ("reward", place)] for place in ("cpu", "meta"))
    assert heard == [*away, (["a", "b"], "meta"), *back]
    heard.clear()
    monkeypatch.setattr(EmbeddingCache, "__contains__", lambda self, text: True)
    one.prepare(["a", "b"], torch.device("meta"))
    assert heard == []
    monkeypatch.setattr(EmbeddingCache, "__contains__", lambda self, text: False)
    monkeypatch.setattr(TextEmbedder, "_encode", lambda self, texts, device: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        one.prepare(["c"], torch.device("meta"))
    assert heard == [*away, *back]


def test_what_is_beside_an_encoder_is_the_model_s_and_the_rewards(tmp_path):
    recipe = load_recipe("tiny-opensora")
    setup = build_setup(recipe, Accelerator(cpu=True))
    assert set(setup.model.text.beside) == {*setup.model.networks().values(), setup.reward}
    model = load_model("opensora", "tiny")
    assert set(model.text.beside) == set(model.networks().values())


def test_another_encoder_precision_length_or_template_has_its_own_embeddings(folder, tmp_path):
    folders = {embedder(folder).cache.folder, embedder(folder, torch.bfloat16).cache.folder}
    folders.add(embedder(folder, max_length=9).cache.folder)
    folders.add(embedder(folder, template="another").cache.folder)
    before, _ = embedder(folder)(["a"], CPU)
    write_text_encoder(folder, seed=1)
    os.utime(folder / "model.safetensors", (time.time() + 5, time.time() + 5))
    after, _ = embedder(folder)(["a"], CPU)
    folders.add(embedder(folder).cache.folder)
    assert len(folders) == 5
    assert (before - after).abs().max() > 0.01
    assert fingerprint(Part("user/model")) == "user/model"
    assert fingerprint(Part("user/model", "text_encoder")) == "user/model/text_encoder"


def test_float16_is_too_narrow_for_t5(folder):
    text, _ = embedder(folder, torch.float16)(["a"], CPU)
    assert text.dtype == torch.bfloat16


def test_a_damaged_or_forbidden_cache_is_named(folder, tmp_path, monkeypatch):
    cache = EmbeddingCache("x")
    cache["text"] = torch.ones(2, 3)
    assert torch.equal(cache["text"], torch.ones(2, 3))
    file = next(cache.folder.iterdir())
    file.write_bytes(b"cut")
    with pytest.raises(UserError, match=f"{file.name}' is damaged: delete it"):
        cache["text"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("VADER_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set VADER_CACHE"):
        EmbeddingCache("x")["text"] = torch.ones(1)


def test_a_folder_that_is_no_t5_says_so(folder):
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": ["CLIPTextModel"]}))
    with pytest.raises(UserError, match="its network is no T5EncoderModel"):
        embedder(folder)(["a"], CPU)
