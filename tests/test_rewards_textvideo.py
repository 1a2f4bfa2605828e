"""Similarity of text and video by VideoPrism and X-CLIP, and SigLIP's aesthetic predictor, as tiny twins."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    VideoPrismClipModel,
    VideoPrismConfig,
    XCLIPConfig,
    XCLIPModel,
)

from vader.errors import UserError
from vader.nouns import Clip, Prompt, VideoSize
from vader.planning.rewards import build
from vader.rewards import load_reward
from vader.rewards.needs import Evenly
from vader.rewards.preprocess import CLIP_MEAN, CLIP_STD, crop, normalize, squash

SMALL = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = SMALL | {"vocab_size": 20, "max_position_embeddings": 16, "projection_dim": 32, "eos_token_id": 1}
PRISM = {
    "text_config": TEXT,
    "vision_config": {
        "hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 2, "image_size": 36, "num_frames": 4,
        "tubelet_size": [1, 18, 18], "num_spatial_layers": 2, "num_temporal_layers": 1, "num_auxiliary_layers": 1,
    },
}  # fmt: skip
XCLIP = {
    "text_config": TEXT,
    "vision_config": SMALL | {"image_size": 32, "patch_size": 16, "num_frames": 4}
    | {f"mit_{name}": value for name, value in SMALL.items()},
    "projection_dim": 32, "prompt_layers": 1, "prompt_num_attention_heads": 2,
}  # fmt: skip
MAKERS = {
    "videoprism": lambda: VideoPrismClipModel(VideoPrismConfig(**PRISM)),
    "xclip": lambda: XCLIPModel(XCLIPConfig(**XCLIP)),
}
PROMPTS = [Prompt("a red cat"), Prompt("two dogs run")]
WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "cat", "two", "dogs", "run")
WIDTHS = (32, 8, 6, 5, 4, 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("textvideo")
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(0)
    for name, maker in MAKERS.items():
        network = maker().eval()
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        network.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    vision = SMALL | {"image_size": 28, "patch_size": 14}
    siglip = SiglipConfig(text_config=SMALL | {"vocab_size": 20}, vision_config=vision)
    SiglipModel(siglip).save_pretrained(folder / "siglip")
    head = {}
    for number, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
        head[f"scoring_head.{2 * number}.weight"] = torch.randn(outputs, inputs)  # a dropout lies between
        head[f"scoring_head.{2 * number}.bias"] = torch.randn(outputs)
    torch.save(head, folder / "head.pth")
    return folder


@pytest.fixture(scope="module")
def clip():
    return Clip.whole(torch.rand(2, 4, 3, 40, 50, generator=torch.Generator().manual_seed(0)), 2.0)


@pytest.mark.parametrize("name", MAKERS)
def test_the_cosine_of_the_network_s_own_features(place, clip, name):
    reward, network = (
        load_reward(name, checkpoint=str(place / name)),
        MAKERS[name]().from_pretrained(place / name).eval(),
    )
    frames, ids = clip.frames[0], torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        if name == "xclip":
            pixels = normalize(crop(frames, 32), CLIP_MEAN, CLIP_STD)[None]
            logits = network(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)).logits_per_video
            expected = logits[0, 0] / network.logit_scale.exp()
        else:
            padded = F.pad(ids, (0, 13)), F.pad(torch.ones_like(ids), (0, 13))
            video = network.get_video_features(squash(frames, 36)[None]).pooler_output.flatten()
            text = network.get_text_features(input_ids=padded[0], attention_mask=padded[1]).pooler_output.flatten()
            expected = F.cosine_similarity(video, text, dim=0)
        torch.testing.assert_close(reward.score(clip, PROMPTS)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_a_video_s_score_is_its_own(place, clip, name):
    """transformers' logits of VideoPrism are a softmax over the batch, constant for one video."""
    reward = load_reward(name, checkpoint=str(place / name))
    together = reward.score(clip, PROMPTS)
    alone = torch.cat([reward.score(clip[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    assert (reward.score(clip, PROMPTS[::-1]) - together).abs().min() > 1e-4
    assert together.abs().max() <= 1


@pytest.mark.parametrize("name", MAKERS)
def test_its_gradient_is_the_slope(place, clip, name):
    reward = load_reward(name, checkpoint=str(place / name)).double()
    frames = clip.frames[:1].double()
    direction = torch.randn(frames.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    leaf = frames.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward.score(Clip(leaf, clip.times[:1]), PROMPTS[:1]).sum(), leaf)
    assert all(gradient[0, i].abs().sum() > 0 for i in range(4))
    ahead, behind = (
        reward.score(Clip(frames + sign * 1e-3 * direction, clip.times[:1]), PROMPTS[:1]).item() for sign in (1, -1)
    )
    assert (gradient * direction).sum().item() == pytest.approx((ahead - behind) / 2e-3, rel=2e-3)  # in part float32


def test_frames_are_spread_evenly(place):
    reward = load_reward("xclip", checkpoint=str(place / "xclip"))
    assert reward.needs == Evenly(4, least=4)
    assert reward.needs.choose(VideoSize(16, 8, 8)).tolist() == [0, 5, 10, 15]
    with pytest.raises(UserError, match="reward 'xclip' needs at least 4 frames together, got 3"):
        reward.needs.check("xclip", VideoSize(3, 8, 8))
    with pytest.raises(UserError, match="it sees 4 frames, got 6: leave out the reward's key sees"):
        reward.score(Clip.whole(torch.rand(1, 6, 3, 8, 8), 8.0), PROMPTS[:1])
    with pytest.raises(UserError, match="XClip compares a video with its prompt, and a prompt is empty"):
        reward.check_prompts([Prompt("")])


def test_aesthetic_v25_is_its_layers_on_siglip(place, clip):
    reward = load_reward("aesthetic_v25", head=str(place / "head.pth"), checkpoint=str(place / "siglip"))
    images, head = clip.frames[0], torch.load(place / "head.pth")
    siglip = SiglipModel.from_pretrained(place / "siglip").eval()
    pixels = F.interpolate(images, (28, 28), mode="bicubic", antialias=True) * 2 - 1
    feature = F.normalize(siglip.vision_model(pixel_values=pixels).pooler_output, dim=-1)
    for number in range(0, 10, 2):
        feature = feature @ head[f"scoring_head.{number}.weight"].T + head[f"scoring_head.{number}.bias"]
    torch.testing.assert_close(reward.score_frames(images, PROMPTS * 2), feature[:, 0], atol=1e-5, rtol=1e-5)


def test_a_head_of_another_siglip(place):
    other = {"scoring_head.0.weight": torch.zeros(1, 16), "scoring_head.0.bias": torch.zeros(1)}
    torch.save(other, place / "other.pth")
    with pytest.raises(UserError, match=r"takes 16 features and SigLIP .* gives 32: use the SigLIP"):
        load_reward("aesthetic_v25", head=str(place / "other.pth"), checkpoint=str(place / "siglip"))


@pytest.mark.parametrize(("name", "count"), [
    ("videoprism", 247_623_424), ("xclip", 196_585_729), ("aesthetic_v25", 429_546_785),
])  # fmt: skip
def test_full_size_rewards_have_the_releases_weights(name, count):
    reward = build(name, torch.device("meta"), torch.bfloat16)
    assert sum(weight.numel() for weight in reward.parameters()) == count
