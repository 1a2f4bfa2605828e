"""ImageReward equals its authors' own code on the released names, and pairs every image with its own prompt."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertTokenizer

from vader.errors import UserError
from vader.nouns import Prompt
from vader.rewards import imagereward
from vader.rewards.imagereward import ImageReward

PROMPTS = ["red", "a blue", "red and blue"]
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "and", "red", "blue")

# What the authors' classes (image-reward 1.5) score `images()` with `released()` at, in float32.
AUTHORS_SCORES = (-0.3819827, -0.3326295, -0.0425197)


def sizes(width, depth, image, patch, text, layers, words, head) -> dict[str, tuple[int, ...]]:
    """The released names and shapes, for networks of these sizes."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, (image // patch) ** 2 + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        **_norm("norm", width),
    }
    for i in range(depth):
        block = f"blocks.{i}"
        shapes |= _norm(f"{block}.norm1", width) | _norm(f"{block}.norm2", width)
        shapes |= _linear(f"{block}.attn.qkv", width, 3 * width) | _linear(f"{block}.attn.proj", width, width)
        shapes |= _linear(f"{block}.mlp.fc1", width, 4 * width) | _linear(f"{block}.mlp.fc2", 4 * width, width)
    bert = {"embeddings.word_embeddings.weight": (words, text), "embeddings.position_embeddings.weight": (512, text)}
    bert |= _norm("embeddings.LayerNorm", text)
    for i in range(layers):
        bert |= {f"encoder.layer.{i}.{name}": shape for name, shape in _bert_layer(text, width).items()}
    found = {f"blip.visual_encoder.{name}": shape for name, shape in shapes.items()}
    found |= {f"blip.text_encoder.{name}": shape for name, shape in bert.items()}
    for number, (inputs, outputs) in zip((0, 2, 4, 6, 7), pairwise((text, *head)), strict=True):
        found |= _linear(f"mlp.layers.{number}", inputs, outputs)
    return found | _linear("blip.vision_proj", width, 256) | _linear("blip.text_proj", text, 256)


def _bert_layer(text: int, width: int) -> dict:
    shapes = {}
    for kind, seen in (("attention", text), ("crossattention", width)):
        for name, inputs in (("query", text), ("key", seen), ("value", seen)):
            shapes |= _linear(f"{kind}.self.{name}", inputs, text)
        shapes |= _linear(f"{kind}.output.dense", text, text) | _norm(f"{kind}.output.LayerNorm", text)
    shapes |= _linear("intermediate.dense", text, 4 * text) | _linear("output.dense", 4 * text, text)
    return shapes | _norm("output.LayerNorm", text)


def _linear(name: str, inputs: int, outputs: int) -> dict:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


TINY = sizes(128, 2, 32, 16, 64, 2, len(WORDS), (16, 8, 8, 4, 1))
RELEASE = sizes(1024, 24, 224, 16, 768, 12, 30524, (1024, 128, 64, 16, 1))


def released() -> dict[str, torch.Tensor]:
    """Random weights under the released names; norms are near 1, so that signals pass."""
    generator = torch.Generator().manual_seed(7)
    tensors = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in TINY.items()}
    norms = [name for name in tensors if name.endswith("weight") and "norm" in name.lower()]
    return tensors | {name: 1 + tensors[name] for name in norms}


def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(8))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagereward")
    (folder / "bert").mkdir()
    (folder / "bert" / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer.from_pretrained(folder / "bert").save_pretrained(folder / "bert")
    torch.save(released(), folder / "ImageReward.pt")
    return folder


@pytest.fixture
def reward(place):
    return ImageReward(str(place / "ImageReward.pt"), str(place / "bert")).freeze()


def test_scores_equal_the_authors_own(reward):
    found = reward.score_frames(images(), PROMPTS)
    torch.testing.assert_close(found, torch.tensor(AUTHORS_SCORES), atol=1e-5, rtol=0)


def test_every_image_meets_its_own_prompt(reward):
    frames = torch.rand(3, 2, 3, 32, 32)
    together = reward(frames, PROMPTS)
    alone = torch.cat([reward(frames[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)
    assert (reward(frames, PROMPTS[::-1]) - together)[[0, 2]].abs().min() > 1e-4


def test_pixel_gradient_agrees_with_finite_differences(reward):
    reward.double()
    frames = torch.rand(3, 2, 3, 24, 40, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(reward(frames, PROMPTS).sum(), frames)
    direction = torch.randn_like(frames)
    with torch.no_grad():
        up, down = (reward(frames + sign * 1e-6 * direction, PROMPTS).sum() for sign in (1, -1))
    assert (up - down).item() / 2e-6 == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


def test_half_precision_is_close_and_keeps_no_gradients(reward):
    frames = torch.rand(3, 1, 3, 32, 32, requires_grad=True)
    exact = reward(frames, PROMPTS)
    score = reward.to_precision(torch.bfloat16)(frames, PROMPTS)
    assert score.dtype == torch.float32
    assert (score - exact).abs().max() < 0.1
    score.sum().backward()
    assert frames.grad.isfinite().all()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in reward.parameters())


def test_the_full_size_file_fits_transformers_classes():
    with torch.device("meta"):
        parts = imagereward.split_release({name: torch.empty(shape) for name, shape in RELEASE.items()}, "the release")
        vision = imagereward.rename_vision(parts["blip.visual_encoder."])
        text = parts["blip.text_encoder."]
        image_network = imagereward.BlipVisionModel(imagereward.vision_config(vision))
        text_network = imagereward.BlipTextModel(imagereward.text_config(text, 1024), add_pooling_layer=False)
    image_network.load_state_dict(vision, strict=True, assign=True)
    text_network.load_state_dict(text, strict=True, assign=True)
    assert image_network.config.num_attention_heads == 16
    assert text_network.config.num_attention_heads == 12


def test_mistakes_are_one_line(place, tmp_path, reward):
    tensors = released()
    for absent, message in (
        ("mlp.", r"is not an ImageReward checkpoint: it has no mlp\.\*"),
        ("blip.visual_encoder.pos_embed", "has no 'embeddings.position_embedding'"),
        ("blip.text_encoder.encoder.layer.1.crossattention.self.key", "lacks 2 weights"),
    ):
        save_file({name: t for name, t in tensors.items() if not name.startswith(absent)}, tmp_path / "cut.safetensors")
        with pytest.raises(UserError, match=message):
            ImageReward(str(tmp_path / "cut.safetensors"), str(place / "bert"))
    with pytest.raises(UserError, match="a prompt is empty"):
        reward.check_prompts([Prompt("red"), Prompt("")])
