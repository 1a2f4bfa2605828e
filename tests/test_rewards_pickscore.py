"""PickScore equals the published formula on the published model class, pair by pair."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel

from factories import write_tokenizer
from reward_factories import make_tiny_clip
from vader.errors import UserError
from vader.nouns import Prompt
from vader.rewards.clip import from_open_clip
from vader.rewards.pickscore import PickScore
from vader.rewards.preprocess import CLIP_MEAN, CLIP_STD, crop, normalize

PROMPTS = ["red", "a blue", "red and blue"]


@pytest.fixture
def folder(tmp_path):
    return str(make_tiny_clip(tmp_path / "clip"))


def test_scores_equal_the_reference_on_the_diagonal(shared, tmp_path):
    tensors = load_file(shared("parity/rewards/hps_tiny_open_clip.safetensors"))
    tensors |= load_file(shared("parity/rewards/hps_tiny_token_embedding_fp16.safetensors"))
    io = load_file(shared("parity/rewards/hps_tiny_io.safetensors"))
    write_tokenizer(tmp_path / "pick")
    model = from_open_clip({name: tensor.float() for name, tensor in tensors.items()}, head_widths=(16, 16))
    model.save_pretrained(tmp_path / "pick")  # the layout of yuvalkirstain/PickScore_v1
    reward = PickScore(str(tmp_path / "pick")).freeze()
    reward.text.tokenize = lambda prompt: io["io.tokens"][int(prompt)][None]
    std, mean = (torch.tensor(values)[:, None, None] for values in (CLIP_STD, CLIP_MEAN))
    score = reward((io["io.images"] * std + mean)[:, None], ["0", "1", "2"])
    torch.testing.assert_close(score, io["io.pick_score"], atol=5e-5, rtol=0)  # the cosine's 5e-7 times 100
    assert (score - io["io.pick_score_vader_row0"])[1:].abs().min() > 1


def test_scores_equal_transformers_own_logits(folder):
    reward, model = PickScore(folder).freeze(), CLIPModel.from_pretrained(folder)
    frames = torch.rand(3, 1, 3, 20, 28)
    pixels = normalize(crop(frames[:, 0], 16), CLIP_MEAN, CLIP_STD)
    logits = [
        model(input_ids=reward.text.tokenize(prompt), pixel_values=pixels).logits_per_text[0, i]
        for i, prompt in enumerate(PROMPTS)
    ]
    torch.testing.assert_close(reward(frames, PROMPTS), torch.stack(logits), atol=1e-4, rtol=1e-5)


def test_pixel_gradient_agrees_with_finite_differences(folder):
    reward = PickScore(folder).freeze().double()
    frames = torch.rand(3, 2, 3, 12, 20, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(reward(frames, PROMPTS).sum(), frames)
    direction = torch.randn_like(frames)
    with torch.no_grad():
        up, down = (reward(frames + sign * 1e-5 * direction, PROMPTS).sum() for sign in (1, -1))
    assert (up - down).item() / 2e-5 == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


def test_half_precision_keeps_the_temperature(folder):
    frames = torch.rand(3, 1, 3, 16, 16, requires_grad=True)
    exact = PickScore(folder).freeze()
    half = PickScore(folder).freeze().to_precision(torch.bfloat16)
    score = half(frames, PROMPTS)
    assert score.dtype == half.logit_scale.dtype == torch.float32
    assert (score - exact(frames, PROMPTS)).abs().max() < 0.05 * exact.logit_scale.exp()
    score.sum().backward()
    assert frames.grad.isfinite().all()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in half.parameters())


def test_an_empty_prompt_is_an_error(folder):
    with pytest.raises(UserError, match="PickScore compares a video with its prompt"):
        PickScore(folder).check_prompts([Prompt("red"), Prompt(" ")])


def test_the_full_size_release_is_transformers_clip(shared):
    manifests = json.loads(shared("parity/rewards/clip_full_manifests.json").read_text())
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**manifests["configs"]["H"]))
    found = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == manifests["transformers_CLIPModel_H"]
