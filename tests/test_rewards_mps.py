"""MPS in its released layout: the authors' steps written out, one prompt's mask from its own maximum."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from reward_factories import FEATURES, make_tiny_clip
from vader.errors import UserError
from vader.nouns import Prompt
from vader.planning.rewards import build
from vader.rewards import load_reward
from vader.rewards.mps import CONDITION
from vader.rewards.preprocess import CLIP_MEAN, CLIP_STD, crop, normalize

PROMPTS = [Prompt("red"), Prompt("a blue"), Prompt("red and blue")]
WIDTH, HEADS, INNER = 4, 3, 20


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mps")
    make_tiny_clip(folder / "clip")
    draw = torch.Generator().manual_seed(4)
    shapes = {
        "0.fn.norm.weight": (FEATURES,), "0.fn.norm.bias": (FEATURES,), "0.fn.to_q.weight": (HEADS * WIDTH, FEATURES),
        "0.fn.to_kv.weight": (2 * WIDTH, FEATURES), "0.fn.to_out.weight": (FEATURES, HEADS * WIDTH),
        "0.fn.ff.0.weight": (2 * INNER, FEATURES), "0.fn.ff.2.weight": (FEATURES, INNER),
        "1.fn.norm.weight": (FEATURES,), "1.fn.norm.bias": (FEATURES,), "1.fn.rotary_emb.inv_freq": (WIDTH // 2,),
        "1.fn.fused_attn_ff_proj.weight": (HEADS * WIDTH + 2 * WIDTH + 2 * INNER, FEATURES),
        "1.fn.attn_out.weight": (FEATURES, HEADS * WIDTH), "1.fn.ff_out.1.weight": (FEATURES, INNER),
    }  # fmt: skip
    tensors = {
        f"mps.model.{name}": tensor for name, tensor in CLIPModel.from_pretrained(folder / "clip").state_dict().items()
    }
    for layer in range(2):
        made = {
            f"mps.cross_model.layers.{layer}.{name}": 0.5 * torch.randn(*shape, generator=draw)
            for name, shape in shapes.items()
        }
        made |= {name: torch.zeros_like(tensor) for name, tensor in made.items() if name.endswith("norm.bias")}
        tensors |= made | {f"mps.cross_model.layers.{layer}.1.fn.rotary_emb.inv_freq": torch.tensor([1.0, 0.01])}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def load(place, **options):
    return load_reward("mps", checkpoint=str(place / "model.safetensors"), base=str(place / "clip"), **options)


def by_hand(place, image, prompt: str, tokenize, heeded: float) -> float:
    """One image's score by the authors' steps, with loops over heads."""
    weights = {name.removeprefix("mps."): tensor for name, tensor in load_file(place / "model.safetensors").items()}
    config = CLIPConfig.from_pretrained(place / "clip")
    config.text_config.eos_token_id = 2
    clip = CLIPModel.from_pretrained(place / "clip", config=config).eval()

    def encoded(text):
        ids = tokenize(text)
        ids = F.pad(ids, (0, 12 - ids.shape[1]), value=int(ids[0, -1]))
        found = clip.text_model(input_ids=ids)
        return clip.text_projection(found.last_hidden_state)[0], clip.text_projection(found.pooler_output)[0]

    (text, whole), (condition, _) = encoded(prompt), encoded(CONDITION)
    likeness = (text @ condition.T).max(dim=1).values
    mask = torch.where(likeness / likeness.max() > heeded, 0.0, -torch.inf)
    pixels = normalize(crop(image[None], 16), CLIP_MEAN, CLIP_STD)
    x = clip.visual_projection(clip.vision_model(pixel_values=pixels).last_hidden_state)[0]

    def swiglu(y):
        first, gate = y.chunk(2, dim=-1)
        return F.silu(gate) * first

    def turned(y):
        angles = torch.arange(len(y))[:, None] * torch.tensor([1.0, 0.01]).repeat(2)
        return y * angles.cos() + torch.cat([-y[:, 2:], y[:, :2]], dim=-1) * angles.sin()

    for layer in range(2):
        for kind in (0, 1):
            w = {
                n.partition(".fn.")[2]: t
                for n, t in weights.items()
                if n.startswith(f"cross_model.layers.{layer}.{kind}.")
            }
            y = F.layer_norm(x, (FEATURES,), w["norm.weight"])
            if kind == 0:
                query, (key, value) = y @ w["to_q.weight"].T, (text @ w["to_kv.weight"].T).chunk(2, dim=-1)
                beside, out = swiglu(y @ w["ff.0.weight"].T) @ w["ff.2.weight"].T, w["to_out.weight"]
            else:
                sizes = (HEADS * WIDTH, WIDTH, WIDTH, 2 * INNER)
                query, key, value, gated = (y @ w["fused_attn_ff_proj.weight"].T).split(sizes, dim=-1)
                beside, out = swiglu(gated) @ w["ff_out.1.weight"].T, w["attn_out.weight"]
            heads = []
            for head in query.split(WIDTH, dim=-1):
                like = (turned(head) @ turned(key).T if kind else head @ key.T) * WIDTH**-0.5
                heads.append((like + (0.0 if kind else mask)).softmax(dim=-1) @ value)
            x = x + torch.cat(heads, dim=-1) @ out.T + beside
    return (clip.logit_scale.exp() * F.cosine_similarity(x[0], whole, dim=0)).item()


@pytest.mark.parametrize("heeded", [0.01, 0.9])
def test_it_is_the_authors_steps(place, monkeypatch, heeded):
    """By the authors' threshold, below which nothing of a tiny CLIP is, and by one that masks tokens."""
    monkeypatch.setattr("vader.rewards.mps.HEEDED", heeded)
    reward, images = load(place), torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    found = reward.score_frames(images, PROMPTS)
    with torch.no_grad():
        expected = [
            by_hand(place, image, prompt.text, reward.tokenize, heeded)
            for image, prompt in zip(images, PROMPTS, strict=True)
        ]
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert all(reward.read(prompt.text).heeded.all() for prompt in PROMPTS) == (heeded < 0.5)


def test_an_image_alone_is_an_image_in_a_batch(place):
    """The released code divides by the maximum over the batch."""
    reward, images = load(place), torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    together = reward.score_frames(images, PROMPTS)
    alone = torch.cat([reward.score_frames(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert (reward.score_frames(images, PROMPTS[::-1]) - together)[[0, 2]].abs().min() > 1e-4


def test_its_gradient_is_the_slope(place):
    reward = load(place).double()
    images = torch.rand(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward.score_frames(leaf, PROMPTS[:1]).sum(), leaf)
    ahead, behind = (reward.score_frames(images + sign * 1e-6 * direction, PROMPTS[:1]).item() for sign in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx((ahead - behind) / 2e-6, rel=1e-5)


def test_half_precision_is_close(place):
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    half = load(place).to_precision(torch.bfloat16).score_frames(images, PROMPTS)
    assert half.dtype == torch.float32
    assert (half - load(place).score_frames(images, PROMPTS)).abs().max() < 1.0


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.pop("mps.cross_model.layers.1.0.fn.to_kv.weight"), r"lacks 1 weights \(1.0.to_kv.weight"),
    (lambda t: t.update({"mps.extra": torch.zeros(1)}), "is no MPS: it has an unknown weight extra"),
    (lambda t: [t.pop(name) for name in list(t) if "cross" in name], r"is no MPS: it has no cross_model.\*"),
    (lambda t: t.pop("mps.model.visual_projection.weight"), "is not whole: it lacks 1 weights"),
])  # fmt: skip
def test_another_file_is_told(place, change, message):
    tensors = load_file(place / "model.safetensors")
    change(tensors)
    save_file(tensors, place / "other.safetensors")
    with pytest.raises(UserError, match=message):
        load_reward("mps", checkpoint=str(place / "other.safetensors"), base=str(place / "clip"))


def test_the_full_size():
    reward = build("mps", torch.device("meta"), torch.bfloat16)
    clip, cross = (sum(weight.numel() for weight in part.parameters()) for part in (reward.clip, reward.cross))
    assert clip == 986_109_441
    assert cross == 4 * (2 * 1024 + 3 * 1024 * 4096 * 2 + 4 * 1024 * 1024 + 2 * 1024 * 128)
