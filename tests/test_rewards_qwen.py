"""Rewards on Qwen-VL: pixels as transformers' processors give them, releases read to the last tensor, times heeded."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLModel,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from qwen_factories import LINEAR, make_base, make_hpsv3, make_videoreward, make_vlm, old_names
from vader.errors import UserError
from vader.networks.recompute import checkpoint_blocks
from vader.nouns import Clip, Prompt, VideoSize
from vader.planning.counter import Counter, fused_attention
from vader.planning.rewards import build
from vader.rewards import hpsv3, load_reward, videoreward
from vader.rewards.base import RewardMix
from vader.rewards.needs import PerSecond, check_rate
from vader.rewards.preprocess import CLIP_MEAN, CLIP_STD
from vader.rewards.qwen_vl.network import FAMILIES, HALF, qwen_config
from vader.rewards.qwen_vl.pixels import Limits, PatchLayout, fit, patches
from vader.rewards.qwen_vl.release import build as build_network
from vader.rewards.qwen_vl.release import split
from vader.rewards.vlm import softly_clipped
from vader.scoring.clips import score_clip

QWEN2 = PatchLayout(14, 2, 2, CLIP_MEAN, CLIP_STD)
QWEN3 = PatchLayout(16, 2, 2, HALF, HALF)
SMALL = Limits(16 * 16, 24 * 32)
META = torch.device("meta")
PROMPTS = [Prompt("a red cat"), Prompt("two dogs run over the grass")]
KINDS = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
}


def smooth(*shape: int) -> torch.Tensor:
    """Pictures without detail, in which a resize overshoots little."""
    coarse = torch.rand((math.prod(shape[:-3]), 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, shape[-2:], mode="bilinear").reshape(shape)


@pytest.fixture(scope="module")
def clip():
    frames = torch.rand(2, 4, 3, 18, 30, generator=torch.Generator().manual_seed(0))
    return Clip(frames, torch.tensor([0.0, 0.5, 1.0, 1.5]).expand(2, -1))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `base`, `model.pth` and `HPSv3.safetensors`, and what the latter two are to be read as."""
    folder = tmp_path_factory.mktemp("qwen")
    make_base(folder / "base")
    return folder, make_videoreward(folder / "model.pth", folder / "base"), make_hpsv3(
        folder / "HPSv3.safetensors", folder / "base"
    )  # fmt: skip


def load(place, name: str, **options):
    file = {"videoreward": "model.pth", "hpsv3": "HPSv3.safetensors"}[name]
    reward = load_reward(name, checkpoint=str(place[0] / file), base=str(place[0] / "base"), **options)
    reward.limits = SMALL
    return reward


@pytest.fixture(scope="module")
def video_reward(place):
    return load(place, "videoreward")


@pytest.fixture(scope="module")
def vlms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    return {kind: str(make_vlm(folder / kind, kind)) for kind in KINDS}


def slope(score, frames: torch.Tensor, step: float) -> tuple[float, float]:
    """Along a random direction: by the gradient, and by finite differences."""
    direction = torch.randn(frames.shape, dtype=frames.dtype, generator=torch.Generator().manual_seed(5))
    leaf = frames.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(leaf), leaf)
    assert (gradient != 0).all()  # every pixel is seen
    with torch.no_grad():
        ahead, behind = (score(frames + sign * step * direction).item() for sign in (1, -1))
    return (gradient * direction).sum().item(), (ahead - behind) / (2 * step)


@pytest.fixture
def doubly_exact(monkeypatch):
    """The two places in Qwen2-VL that compute in float32, whatever the network is in."""
    monkeypatch.setattr(
        modeling_qwen2_vl.Qwen2VLRMSNorm, "forward",
        lambda self, x: self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon),
    )  # fmt: skip
    turn = modeling_qwen2_vl.rotate_half
    monkeypatch.setattr(
        modeling_qwen2_vl, "apply_rotary_pos_emb_vision",
        lambda q, k, cos, sin: tuple(x * cos.unsqueeze(-2) + turn(x) * sin.unsqueeze(-2) for x in (q, k)),
    )  # fmt: skip


# ---- pixels ----


def test_sizes_are_the_processor_s():
    sides, limits = range(30, 1300, 97), ((3136, 12845056), (100352, 200704), (200704, 200704))
    for height, width, (low, high) in product(sides, sides, limits):
        assert fit(height, width, 28, Limits(low, high)) == smart_resize(height, width, 28, low, high)
    assert fit(512, 512, 28, hpsv3.LIMITS) == (448, 448)
    assert fit(720, 1280, 28, hpsv3.LIMITS) == (336, 588)
    assert fit(320, 512, 28, hpsv3.LIMITS) == (364, 588)  # rounded up past the limit, as released


@pytest.mark.parametrize(("layout", "unit"), [(QWEN2, 28), (QWEN3, 32)])
@pytest.mark.parametrize(("height", "width", "exact"), [(4, 6, True), (3.4, 7.7, False)])
def test_images_are_the_processor_s(layout, unit, height, width, exact):
    picture = (smooth(1, 3, round(height * unit), round(width * unit)) * 255).round().to(torch.uint8)
    limits = Limits(4 * unit**2, 64 * unit**2)
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": limits.low, "longest_edge": limits.high}, patch_size=layout.patch,
        image_mean=list(layout.mean), image_std=list(layout.std),
    )  # fmt: skip
    theirs = processor(images=[Image.fromarray(picture[0].permute(1, 2, 0).numpy())], return_tensors="pt")
    ours, grid = patches(picture.float() / 255, layout, limits)
    assert [grid.tolist()] == np.asarray(theirs["image_grid_thw"]).tolist()
    assert layout.tokens(grid) == len(ours) // 4
    difference = (ours - torch.as_tensor(theirs["pixel_values"])).abs().max().item()
    assert difference < (1e-5 if exact else 0.03)  # PIL rounds to bytes after resizing, which is 1/255 / std


@pytest.mark.parametrize("frames", [4, 5])
def test_videos_are_cut_by_the_formula(frames):
    layout = PatchLayout(2, 2, 2, CLIP_MEAN, CLIP_STD)
    video = torch.rand(frames, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    ours, grid = patches(video, layout, Limits(96, 96))
    even = (frames + 1) // 2 * 2
    pixels = np.stack([video[min(f, frames - 1)].numpy() for f in range(even)])
    pixels = (pixels - np.array(CLIP_MEAN, dtype="f4")[:, None, None]) / np.array(CLIP_STD, dtype="f4")[:, None, None]
    rows = [
        [
            pixels[2 * t + f, c, 4 * block_row + 2 * row + y, 4 * block_column + 2 * column + x]
            for c, f, y, x in product(range(3), range(2), range(2), range(2))
        ]
        for t, block_row, block_column, row, column in product(range(even // 2), range(2), range(3), range(2), range(2))
    ]
    assert grid.tolist() == [even // 2, 4, 6]
    np.testing.assert_allclose(ours.numpy(), np.array(rows), atol=1e-6)


def test_the_gradient_reaches_every_pixel_of_a_resized_video():
    video = torch.rand(3, 3, 50, 70, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    limits = Limits(24 * 196, 24 * 196)
    weight = torch.randn(len(patches(video, QWEN2, limits)[0]), 1176, generator=torch.Generator().manual_seed(3))
    exact, found = slope(lambda x: (patches(x, QWEN2, limits)[0] * weight).sum(), video, 1e-4)
    assert exact == pytest.approx(found, rel=1e-9)


# ---- VideoReward ----


def by_hand(place, clip: Clip, prompts) -> torch.Tensor:
    """`[B, 3]`: features put in their places, and a language model that is told no positions, as it was trained."""
    tensors, head = place[1]
    config = Qwen2VLConfig.from_pretrained(place[0] / "base")
    config.text_config.vocab_size = len(tensors["model.embed_tokens.weight"])
    network = Qwen2VLModel(config).eval()
    named = {name.replace("model.", "language_model.", 1) if name.startswith("model.") else name: tensor
             for name, tensor in tensors.items() if name != "lm_head.weight"}  # fmt: skip
    network.load_state_dict(named)
    tokenizer = load(place, "videoreward").network.tokenizer
    scores = []
    for frames, prompt in zip(clip.frames, prompts, strict=True):
        rows, grid = patches(frames, PatchLayout(4, 2, 2, CLIP_MEAN, CLIP_STD), SMALL)
        count = math.prod(grid.tolist()) // 4
        message = videoreward.TEMPLATE.format(text_prompt=prompt.text)
        ids = tokenizer(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
            + "<|video_pad|>" * count + f"<|vision_end|>{message}<|im_end|>\n<|im_start|>assistant\n"
        ).input_ids  # fmt: skip
        words = network.language_model.embed_tokens(torch.tensor([ids])).clone()
        first = ids.index(tokenizer.convert_tokens_to_ids("<|video_pad|>"))
        words[0, first : first + count] = network.visual(rows, grid_thw=grid[None]).pooler_output
        states = network.language_model(inputs_embeds=words, use_cache=False).last_hidden_state[0]
        at = [ids.index(len(tokenizer) - 3 + number) for number in range(3)]
        scores.append((states[at] @ head[0]).detach())
    mean, std = torch.tensor([[3.6757, 1.1646, 2.8105], [2.2476, 1.3811, 2.5121]])
    return (torch.stack(scores) - mean) / std


def test_videoreward_is_its_release(place, video_reward, clip):
    heads = video_reward.score_heads(clip, PROMPTS)
    torch.testing.assert_close(
        torch.stack(list(heads.values()), 1), by_hand(place, clip, PROMPTS), atol=1e-5, rtol=1e-5
    )
    raw = load(place, "videoreward", normalise=False, weights={"mq": 2.0})
    torch.testing.assert_close(raw.score(clip, PROMPTS), 2.0 * (heads["mq"] * 1.3811 + 1.1646), atol=1e-5, rtol=1e-5)


def test_the_prompt_changes_text_alignment_alone(video_reward, clip):
    one, other = (video_reward.score_heads(clip, [prompt] * 2) for prompt in PROMPTS)
    for head in ("vq", "mq"):
        torch.testing.assert_close(one[head], other[head], atol=1e-5, rtol=1e-5)
    assert (one["ta"] - other["ta"]).abs().min() > 1e-3


def test_a_video_alone_is_a_video_in_a_batch(video_reward, clip):
    together = video_reward.score(clip, PROMPTS)
    alone = torch.cat([video_reward.score(clip[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    later = Clip(clip.frames.roll(1, dims=1), clip.times)
    assert (video_reward.score(later, PROMPTS) - together).abs().min() > 1e-3  # order is seen


def test_heads_are_reported_and_weighted(place, clip):
    reward = load(place, "videoreward", weights={"vq": 1.0, "ta": 0.5})
    size = VideoSize(16, 18, 30, fps=8)
    frames = clip.frames.repeat_interleave(4, dim=1)  # what is seen of 16 frames are the first, the last, two between
    mix = RewardMix({"videoreward": reward}, {"videoreward": 2.0})
    found = score_clip(mix, Clip.whole(frames, 8), PROMPTS, size, 16, torch.device("cpu"))
    assert list(found.parts) == ["videoreward", *(f"videoreward/{head}" for head in ("vq", "mq", "ta"))]
    heads = {name.partition("/")[2]: part for name, part in found.parts.items()}
    torch.testing.assert_close(found.parts["videoreward"], heads["vq"] + 0.5 * heads["ta"])
    torch.testing.assert_close(found.total, 2.0 * found.parts["videoreward"])
    assert heads["mq"].abs().min() > 0  # watched all the same
    assert reward.sensible_range == (-3.0, 3.0)


def test_recomputed_is_plain(place, video_reward, clip):
    again = load(place, "videoreward")
    assert checkpoint_blocks(again) == 4  # two of what sees, two of what reads
    scores = []
    for reward in (video_reward, again):
        leaf = clip.frames.clone().requires_grad_()
        score = reward.score(Clip(leaf, clip.times), PROMPTS)
        scores.append((score.detach(), *torch.autograd.grad(score.sum(), leaf)))
    for plain, recomputed in zip(*scores, strict=True):
        assert torch.equal(plain, recomputed)


def test_videoreward_s_gradient_is_its_slope(place, clip, doubly_exact):
    reward = load(place, "videoreward").double()
    exact, found = slope(
        lambda x: reward.score(Clip(x, clip.times[:1]), PROMPTS[:1]).sum(), clip.frames[:1].double(), 1e-5
    )
    assert exact == pytest.approx(found, rel=1e-5)


def test_half_precision_is_close_and_scores_float32(place, video_reward, clip):
    half = load(place, "videoreward").to_precision(torch.bfloat16)
    found = half.score(clip, PROMPTS)
    assert found.dtype == torch.float32
    assert half.head.weight.dtype == torch.float32
    assert (found - video_reward.score(clip, PROMPTS)).abs().max() < 0.5


@pytest.mark.parametrize(("frames", "fps", "right"), [
    (16, 8.0, True), (81, 16.0, True), (121, 24.0, True), (12, 24.0, True), (5, 1.0, False),
])  # fmt: skip
def test_two_frames_a_second_are_chosen(frames, fps, right):
    places = videoreward.NEEDS.choose(VideoSize(frames, 8, 8, fps=int(fps)))
    if right:
        assert len(places) == max(4, 2 * round(frames / fps))
        check_rate("videoreward", (places / fps)[None], videoreward.NEEDS)
    else:
        with pytest.raises(UserError, match="sees 2 frames a second, got 4 frames of 4 seconds"):
            check_rate("videoreward", (places / fps)[None], videoreward.NEEDS)


@pytest.mark.parametrize(("times", "message"), [
    (torch.arange(16.0) / 16, r"sees 2 frames a second, got 16 frames of 0.938 seconds: leave out the key sees"),
    (torch.arange(4.0), r"got 4 frames of 3 seconds"),
    (torch.zeros(4), r"needs to know when each frame is shown"),
    (torch.tensor([0.0, 1.0, float("nan"), 2.0]), r"needs to know when each frame is shown"),
])  # fmt: skip
def test_wrong_and_unknown_rates_are_refused(video_reward, times, message):
    with pytest.raises(UserError, match=message):
        video_reward.score(Clip(torch.rand(1, len(times), 3, 18, 30), times[None]), PROMPTS[:1])


def damaged(place, change) -> str:
    tensors = torch.load(place[0] / "model.pth")
    change(tensors)
    torch.save(tensors, place[0] / "damaged.pth")
    return str(place[0] / "damaged.pth")


Q_PROJ = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.pop("base_model.model.visual.merger.mlp.0.bias"), r"lacks 1 weights \(visual.merger.mlp.0.bias"),
    (lambda t: t.pop(f"{Q_PROJ}.base_layer.weight"), r"is not whole: model.layers.1.self_attn.q_proj.lora_\w"),
    (lambda t: t.pop(f"{Q_PROJ}.lora_A.default.weight"), r"lora_B.default.weight has no .*lora_A"),
    (lambda t: t.pop(f"{Q_PROJ}.lora_B.default.weight"), r"lora_A.default.weight has no .*lora_B"),
    (lambda t: t.pop("base_model.model.rm_head.weight"), r"the head in .* lacks 1 weights \(weight"),
    (lambda t: t.update({"base_model.model.extra": torch.zeros(1)}), r"has an unknown weight extra"),
    (lambda t: t.update({"base_model.model.visual.extra": torch.zeros(1)}), r"1 unknown weights \(visual.extra"),
    (lambda t: t.pop("base_model.model.model.embed_tokens.weight"), r"it has no words"),
    (lambda t: t.update({"base_model.model.model.embed_tokens.weight": torch.zeros(7, 32)}), r"knows 7 words, and the"),
])  # fmt: skip
def test_every_tensor_is_used_exactly_once(place, change, message):
    with pytest.raises(UserError, match=message) as error:
        load_reward("videoreward", checkpoint=damaged(place, change), base=str(place[0] / "base"))
    assert "\n" not in str(error.value)


def test_prompts_that_cannot_be_judged(place, video_reward):
    with pytest.raises(UserError, match=r"holds '<\|VQ_reward\|>', which means something else here"):
        video_reward.check_prompts([Prompt("a <|VQ_reward|> cat")])
    with pytest.raises(UserError, match="a prompt is empty"):
        video_reward.check_prompts([Prompt(" ")])
    load(place, "videoreward", weights={"vq": 1.0}).check_prompts([Prompt("")])


def test_templates_are_the_releases():
    """Trailing blanks and all: other text would give other scores."""
    video, image = videoreward.TEMPLATE, hpsv3.TEMPLATE
    rate = "Please provide the ratings of"
    assert video.startswith("\nYou are tasked with evaluating a generated video")
    assert video.count(":**  \n") == 3
    assert f"possible. \n\n{rate} Visual Quality: <|VQ_reward|>\nEND\n\n**Motion" in video
    assert video.endswith(f"prompt.\n\nTextual prompt - {{text_prompt}}\n{rate} Text Alignment: <|TA_reward|>\nEND\n")
    assert image.startswith("\nYou are tasked with evaluating a generated image")
    assert image.endswith("{text_prompt}\n\n\n\nPlease provide the overall ratings of this image: <|Reward|>\n\nEND\n")


# ---- HPSv3 ----


def test_hpsv3_is_a_frame_reward_of_its_release(place, clip):
    reward = load(place, "hpsv3")
    images = clip.frames[:, 0]
    found = reward.score_frames(images, PROMPTS)
    read = reward.network(images[:1], hpsv3.TEMPLATE.format(text_prompt=PROMPTS[0].text), SMALL, flat=True)
    assert read.tokens.tolist().count(reward.network.tokenizer.convert_tokens_to_ids("<|image_pad|>")) == 8
    state = read.at(reward.network.word("<|Reward|>"))
    for number in (0, 3, 5):  # the released numbers of the layers
        state = place[2][f"rm_head.{number}.weight"] @ state.relu() if number else place[2]["rm_head.0.weight"] @ state
        state = state + place[2][f"rm_head.{number}.bias"]
    torch.testing.assert_close(found[0], state[0])
    assert (reward.score_frames(images, PROMPTS[::-1]) - found).abs().min() > 1e-5
    torch.testing.assert_close(
        reward(clip.frames[:, :2], PROMPTS)[0], reward.score_frames(clip.frames[0, :2], [PROMPTS[0]] * 2).mean()
    )


def test_hpsv3_s_gradient_is_its_slope(place, clip, doubly_exact):
    reward = load(place, "hpsv3").double()
    exact, found = slope(lambda x: reward.score_frames(x, PROMPTS[:1])[0], clip.frames[0, :1].double(), 1e-5)
    assert exact == pytest.approx(found, rel=1e-4)


def test_hpsv3_of_another_base(place):
    tensors = load_file(place[0] / "HPSv3.safetensors")
    tensors["rm_head.5.weight"] = torch.zeros(3, 16)
    save_file(tensors, place[0] / "wide.safetensors")
    with pytest.raises(UserError, match=r"of another architecture: 5.weight is \[3, 16\], should be \[2, 16\]"):
        load_reward("hpsv3", checkpoint=str(place[0] / "wide.safetensors"), base=str(place[0] / "base"))


# ---- yes or no ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"questions": ("Is it {promt}?",)}, r"asks for \{promt\}: \{prompt\} alone stands for something"),
        ({"questions": ()}, "needs questions"),
        ({"fps": 0.0}, "fps is 0.0, which shows it nothing"),
    ],
)
def test_questions_are_looked_at_before_weights(options, message):
    with pytest.raises(UserError, match=message):
        load_reward("vlm", checkpoint="nowhere/at-all", **options)


@pytest.mark.parametrize("kind", KINDS)
def test_log_odds_are_the_model_s_own(vlms, clip, kind):
    """By transformers' own forward, which computes positions itself; and a second question beside."""
    reward = load_reward("vlm", checkpoint=vlms[kind], questions=("Is it {prompt}?", "Good?"))
    reward.limits = SMALL
    whole = KINDS[kind].from_pretrained(vlms[kind]).eval()
    rows, grid = patches(clip.frames[0], reward.network.layout, SMALL)
    seen = reward.network.seen("video", grid, clip.times[0])
    ids = reward.network.tokens(f"{seen}Is it a red cat?")[None]
    pads = ids == whole.config.video_token_id
    more = {"second_per_grid_ts": [1.0]} if kind == "qwen2_5_vl" else {}
    logits = whole(
        input_ids=ids, mm_token_type_ids=2 * pads.int(), pixel_values_videos=rows, video_grid_thw=grid[None], **more
    ).logits[0, -1]
    yes, no = (logits[reward.network.word(answer)] for answer in ("Yes", "No"))
    heads = reward.score_heads(clip, PROMPTS)
    assert pads.sum() == reward.network.layout.tokens(grid) == math.prod(grid.tolist()) // 4
    torch.testing.assert_close(heads["1"][0], 6 * torch.tanh((yes - no) / 6), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reward.score(clip, PROMPTS), (heads["1"] + heads["2"]) / 2)
    slower = Clip(clip.frames, clip.times * 1.2)
    told = FAMILIES[kind].stamped  # as text; 2.5's positions are whole numbers, the same for both
    assert torch.equal(reward.score(slower, PROMPTS), reward.score(clip, PROMPTS)) != told


def test_seconds_stand_before_groups_of_frames(vlms):
    network = load_reward("vlm", checkpoint=vlms["qwen3_vl"]).network
    text = network.seen("video", torch.tensor([2, 2, 4]), torch.tensor([0.0, 0.5, 1.0]))
    pads = "<|vision_start|>" + "<|video_pad|>" * 2 + "<|vision_end|>"
    assert text == f"<0.2 seconds>{pads}<1.0 seconds>{pads}"
    assert (
        network.seen("image", torch.tensor([1, 2, 4]), None)
        == "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
    )


def test_odds_are_bent_and_never_flat():
    odds = torch.tensor([-40.0, -12.0, 0.1, 12.0], requires_grad=True)
    found = softly_clipped(odds, 6.0)
    assert found.tolist() == pytest.approx([-6.0, -5.784, 0.1, 5.784], abs=1e-3)
    (gradient,) = torch.autograd.grad(found.sum(), odds)
    assert (gradient > 0).all()


def test_questions_are_checked(vlms, clip):
    with pytest.raises(UserError, match="needs questions"):
        load_reward("vlm", checkpoint=vlms["qwen2_vl"], questions=())
    reward = load_reward("vlm", checkpoint=vlms["qwen2_vl"])
    with pytest.raises(UserError, match="asks for the prompt, and a prompt is empty"):
        reward.check_prompts([Prompt("")])
    assert reward.needs == PerSecond(2.0, least=2, multiple=2)
    with pytest.raises(UserError, match="reward 'vlm' sees 2 frames a second"):
        reward.score(Clip(clip.frames, clip.times / 8), PROMPTS)


# ---- full size ----

RELEASES = {  # parameters of what sees, of what reads and of the head
    "videoreward": (665_271_296, 1_543_290_368, 1536),
    "hpsv3": (675_759_104, 7_069_164_032, 3_687_474),
    "vlm": (406_957_056, 1_720_574_976, 0),
}


@pytest.fixture(scope="module", params=RELEASES)
def full_size(request):
    """A reward of the release's size without values."""
    return request.param, build(request.param, META, torch.bfloat16)


def test_full_size_rewards_have_the_releases_weights(full_size):
    name, reward = full_size
    network = reward.network.model
    parts = (network.visual, network.language_model, getattr(reward, "head", nn.Identity()))
    assert tuple(sum(weight.numel() for weight in part.parameters()) for part in parts) == RELEASES[name]


def test_a_plan_counts_them(full_size):
    """Forward, of what is seen of 16 frames, or of a single one; no tensor has values."""
    name, reward = full_size
    counter, frames = Counter(META), torch.empty(1, 1 if name == "hpsv3" else 16, 3, 320, 512, device=META)
    with torch.no_grad(), fused_attention(counter), counter:
        found = reward(frames, ["a prompt"])
    layers = reward.network.model.language_model.layers
    weights = sum(weight.numel() for layer in layers for weight in layer.parameters())
    assert found.shape == (1,)
    assert 2 * weights * 500 < counter.operations < 2 * weights * 5000  # so many tokens, each a multiply and an add


def test_the_release_s_settings_of_old_are_understood(tmp_path):
    """Qwen2-VL's own config.json is flat, from before there were text settings."""
    flat = {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "hidden_act": "silu",
        "hidden_size": 1536, "intermediate_size": 8960, "max_position_embeddings": 32768, "num_attention_heads": 12,
        "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 151936,
        "tie_word_embeddings": True, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
        "image_token_id": 151655, "video_token_id": 151656, "sliding_window": 32768, "use_sliding_window": False,
        "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3,
                          "hidden_size": 1536, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(flat))
    config = qwen_config(str(tmp_path))
    words = {"model.embed_tokens.weight": torch.empty(151_660, 1536, device="meta")}
    network = build_network(config, split(words, "it")["network"], "it")
    assert sum(weight.numel() for weight in network.parameters()) == sum(RELEASES["videoreward"][:2])
    assert network.config.text_config.rope_parameters["mrope_section"] == [16, 24, 24]
    assert not any(buffer.is_meta for buffer in network.buffers())  # no file has them


def test_the_release_has_1123_tensors():
    names = old_names(build("videoreward", META, torch.bfloat16).network.model)
    linear = [name for name in names if (found := LINEAR.search(name)) and found[2] == "weight"]
    assert (len(linear), len(names) + 2 * len(linear) + 1) == (7 * 28, 1123)
