"""The scorer in float64: split backward is the gradient of one large graph, whatever a mix sees and however it is cut.

Two decoders: the toy's, frame by frame, and one that decodes windows of several frames with their past.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from toy_walks import SIZE, gradient, make_walk
from toys import Stillness, ToyModel, Warmth
from vader.nouns import Audio, Clip, Prompt, VideoSize, map_latents
from vader.rewards import AllFrames, FixedFrames, FrameReward, Frames, PerSecond, Reward, RewardMix
from vader.rewards.needs import Needs
from vader.sampling import View, load_policy
from vader.scoring.choice import Group, evaluation_groups, training_groups
from vader.scoring.scorer import Scorer

# ---- what is decoded and scored ----


class Windows(ToyModel):
    """Frames in windows of 1, 3, 3, ..., each blended with the latents before it, as a causal VAE has it."""

    def windows(self, size: VideoSize) -> Sequence[range]:
        return [range(1), *(range(start, min(start + 3, size.frames)) for start in range(1, size.frames, 3))]

    def decode_unclamped(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        past = torch.cat([latents[:, :, :1], latents[:, :, :-1]], dim=2)
        return super().decode_unclamped((latents + 0.5 * past.tanh()) / 1.5, frames)


class Loud(FrameReward):
    """Another mean over frames: how far the prompt's first letter is from the picture's contrast."""

    def score_frames(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        wanted = torch.tensor([ord(prompt.text[0]) % 5 / 5 for prompt in prompts]).to(images)
        return -(images.std(dim=(1, 2, 3)) - wanted).square()


class Drift(Reward):
    """A clip reward that depends on when its frames are shown."""

    def score(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        colour = clip.frames.mean(dim=(3, 4))[:, :, 1]
        return ((clip.times - clip.times.mean(dim=1, keepdim=True)) * colour.sin()).sum(dim=1)


MIXES: dict[str, tuple[dict[str, Reward], dict[str, Needs]]] = {
    "frames": ({"warmth": Warmth()}, {}),
    "two of frames": ({"warmth": Warmth(), "loud": Loud()}, {"loud": Frames(3)}),
    "clips": ({"still": Stillness(), "drift": Drift()}, {"drift": FixedFrames((0, 2, 4))}),
    "frames and clips": ({"warmth": Warmth(), "still": Stillness()}, {}),
    "the same frames": ({"warmth": Warmth(), "drift": Drift()}, {"warmth": Frames(2), "drift": Frames(2)}),
    "each its own": (
        {"warmth": Warmth(), "loud": Loud(), "still": Stillness(), "drift": Drift()},
        {"warmth": Frames(2), "loud": AllFrames(), "still": PerSecond(2.0, least=2), "drift": AllFrames()},
    ),
}
LONG = VideoSize(frames=5, height=8, width=8, fps=4)


def make_mix(name: str) -> RewardMix:
    rewards, needs = MIXES[name]
    return RewardMix(rewards, {one: 1.0 - 0.4 * i for i, one in enumerate(rewards)}, needs)


def make_scorer(mix: RewardMix, chunk: int = 1, kind: type[ToyModel] = ToyModel) -> Scorer:
    return Scorer(kind(torch.float64), mix, LONG, chunk)


def batch(count: int) -> tuple[Tensor, list[Prompt], Tensor]:
    """Latents whose pixels are partly clamped, their prompts, and a weight a video."""
    latents = 12 * torch.randn(count, 4, 5, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    scale = torch.linspace(0.5, 2.0, count, dtype=torch.float64)
    return latents, [Prompt(text) for text in ("red", "blue", "cat")[:count]], scale


def by_graph(scorer: Scorer, latents: Any, prompts: list[Prompt], groups: list[Group], scale: Tensor) -> Any:
    leaf = map_latents(lambda x: x.clone().requires_grad_(), latents)
    loss, scored = scorer.graph(leaf, prompts, groups, scale)
    loss.backward()
    return map_latents(lambda x: x.grad, leaf), scored


# ---- split backward is exact ----


@pytest.mark.parametrize("kind", [ToyModel, Windows], ids=["frame by frame", "windows"])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("name", MIXES)
def test_pull_equals_graph(name, chunk, count, kind):
    scorer, (latents, prompts, scale) = make_scorer(make_mix(name), chunk, kind), batch(count)
    groups = training_groups(scorer.mix, LONG, 0, 1, range(count))
    expected, scored = by_graph(scorer, latents, prompts, groups, scale)
    found, split = scorer.pull(latents, prompts, groups, scale)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    assert found.abs().max() > 0
    plain = scorer.score(latents, prompts, groups)
    for other in (split, plain):
        assert list(other.parts) == list(scorer.mix.rewards)
        torch.testing.assert_close(other.total, scored.total, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(other.parts, scored.parts, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(other.clamped, scored.clamped)
    assert 0 < scored.clamped < 1


@pytest.mark.parametrize("kind", [ToyModel, Windows], ids=["frame by frame", "windows"])
def test_gradient_agrees_with_central_differences(kind):
    scorer, (latents, prompts, scale) = make_scorer(make_mix("each its own"), 2, kind), batch(2)
    latents = latents / 24  # inside [0, 1], where clamping has no edge
    groups = training_groups(scorer.mix, LONG, 0, 1, range(2))
    found, _ = scorer.pull(latents, prompts, groups, scale)
    direction = torch.randn_like(latents)
    up, down = (scorer.graph(latents + sign * 1e-5 * direction, prompts, groups, scale)[0] for sign in (1, -1))
    assert (found * direction).sum().item() == pytest.approx(((up - down) / 2e-5).item(), rel=1e-6)


@pytest.mark.parametrize("kind", [ToyModel, Windows], ids=["frame by frame", "windows"])
def test_the_gradient_of_a_mix_is_the_sum_of_each_reward_alone(kind):
    """HPS's case: one random frame of each video, beside a clip reward on all frames, which keeps its own path."""
    rewards: dict[str, Reward] = {"warmth": Warmth(), "drift": Drift()}
    weights = {"warmth": 0.7, "drift": -1.5}
    latents, prompts, scale = batch(3)

    def pulled(names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor], list[Group]]:
        mix = RewardMix({name: rewards[name] for name in names}, {name: weights[name] for name in names})
        scorer = make_scorer(mix, 2, kind)
        groups = training_groups(mix, LONG, 5, 2, range(3))
        gradient, scored = scorer.pull(latents, prompts, groups, scale)
        return gradient, scored.parts, groups

    both, parts, groups = pulled(["warmth", "drift"])
    (warmth, of_warmth, (alone,)), (drift, of_drift, _) = pulled(["warmth"]), pulled(["drift"])
    torch.testing.assert_close(both, warmth + drift, rtol=1e-12, atol=1e-15)
    assert torch.equal(parts["warmth"], of_warmth["warmth"])
    assert torch.equal(parts["drift"], of_drift["drift"])
    assert [group.frames.shape for group in groups] == [(3, 1), (3, 5)]
    assert torch.equal(groups[0].frames, alone.frames)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_random_frames_average_to_all_frames(count):
    """Over all equally likely choices of frames the gradient's mean is exactly the all-frames gradient."""
    scorer, (latents, prompts, scale) = make_scorer(make_mix("frames")), batch(2)

    def of(frames: Sequence[int]) -> Tensor:
        chosen = torch.tensor([list(frames)] * 2)
        group = Group(chosen, chosen / LONG.fps, framewise=dict(scorer.mix.items()), whole={})
        return scorer.pull(latents, prompts, [group], scale)[0]

    mean = torch.stack([of(frames) for frames in combinations(range(5), count)]).mean(dim=0)
    torch.testing.assert_close(mean, of(range(5)), rtol=1e-12, atol=1e-16)


def test_a_reward_without_gradient_pulls_nothing():
    class Constant(Warmth):
        def score_frames(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
            return images.mean(dim=(1, 2, 3)) * 0

    mix = RewardMix({"constant": Constant()}, {"constant": 1.0})
    latents, prompts, scale = batch(2)
    found, _ = make_scorer(mix).pull(latents, prompts, training_groups(mix, LONG, 0, 1, range(2)), scale)
    assert torch.equal(found, torch.zeros_like(latents))


@pytest.mark.parametrize("split", [True, False])
def test_split_and_plain_backward_give_the_adapter_the_same_gradient(split):
    """Through three denoising steps: detach, pull, and one backward from the latents."""
    walk = make_walk(eta=1.0)
    mix = make_mix("frames and clips")
    scorer = Scorer(walk.sampler.model, mix, SIZE, 2)
    groups, prompts = training_groups(mix, SIZE, 0, 1, range(2)), [Prompt("a"), Prompt("b")]
    scale = torch.ones(2, dtype=torch.float64)

    def of(latents: Tensor) -> Tensor:
        if not split:
            return scorer.graph(latents, prompts, groups, scale)[0]
        return (latents * scorer.pull(latents, prompts, groups, scale)[0]).sum()

    (view,) = load_policy("last", {"k": 3})(walk, torch.Generator())
    leaf = view.latents.detach().requires_grad_()
    scorer.graph(leaf, prompts, groups, scale)[0].backward()
    found = gradient(walk, [view], of)
    (again,) = load_policy("last", {"k": 3})(walk, torch.Generator())
    expected = gradient(walk, [View(again.latents)], lambda latents: (latents * leaf.grad).sum())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-16)


# ---- several latents, and sound ----


class Talkie(ToyModel):
    """Video and audio latents."""

    def noise_shape(self, size: VideoSize) -> dict[str, tuple[int, ...]]:
        return {"video": super().noise_shape(size), "audio": (6,)}

    def decode_unclamped(self, latents: dict[str, Tensor], frames: Tensor | None = None) -> Tensor:
        return super().decode_unclamped(latents["video"], frames)

    def decode_audio(self, latents: dict[str, Tensor]) -> Audio:
        return Audio(torch.stack([latents["audio"].tanh(), latents["audio"].sin()], dim=1), rate=6)


class InTime(Reward):
    """Sound and picture together."""

    needs = AllFrames(audio=True)

    def score(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        loudness = clip.audio.samples.square().mean(dim=(1, 2))
        return (loudness * clip.frames.mean(dim=(1, 2, 3, 4))).sin()


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_reward_that_listens(chunk):
    rewards: dict[str, Reward] = {"warmth": Warmth(), "in_time": InTime()}
    mix = RewardMix(rewards, {"warmth": 1.0, "in_time": 2.0})
    scorer = Scorer(Talkie(torch.float64), mix, LONG, chunk)
    video, prompts, scale = batch(2)
    latents = {"video": video, "audio": torch.randn(2, 6, dtype=torch.float64)}
    groups = training_groups(mix, LONG, 0, 1, range(2))
    expected, scored = by_graph(scorer, latents, prompts, groups, scale)
    found, split = scorer.pull(latents, prompts, groups, scale)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-15)
        assert value.abs().max() > 0
    torch.testing.assert_close(split.total, scored.total)
    whole = scorer.score_clip(scorer.decode(latents), prompts)
    torch.testing.assert_close(whole.parts["in_time"], scored.parts["in_time"])


# ---- what rewards are handed ----


class Recording(Reward):
    """A clip reward that keeps the times it was given."""

    def __init__(self, needs: Needs) -> None:
        super().__init__()
        self.needs = needs
        self.seen: list[Tensor] = []

    def score(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        assert clip.frames.shape[:2] == clip.times.shape
        self.seen.append(clip.times.detach().clone())
        return clip.frames.mean(dim=(1, 2, 3, 4))


NEEDS = {
    "all": (AllFrames(), [0, 1, 2, 3, 4]),
    "named": (FixedFrames((1, 4)), [1, 4]),
    "by the second": (PerSecond(2.4), [0, 2, 4]),
}


@pytest.mark.parametrize(("needs", "expected"), NEEDS.values(), ids=NEEDS)
@pytest.mark.parametrize("kind", [ToyModel, Windows], ids=["frame by frame", "windows"])
def test_a_clip_reward_is_told_when_its_frames_are_shown(needs, expected, kind):
    """By every way to a score, and beside a reward that sees others."""
    reward = Recording(needs)
    scorer = make_scorer(RewardMix({"warmth": Warmth(), "own": reward}, {"warmth": 1.0, "own": 1.0}), 2, kind)
    latents, prompts, scale = batch(2)
    groups = training_groups(scorer.mix, LONG, 0, 1, range(2))
    scorer.pull(latents, prompts, groups, scale)
    scorer.graph(latents, prompts, groups, scale)
    scorer.score(latents, prompts, groups)
    scorer.score_clip(scorer.decode(latents), prompts)
    assert len(reward.seen) == 4
    for times in reward.seen:
        assert times.tolist() == [[frame / 4 for frame in expected]] * 2


def test_random_frames_are_told_when_each_video_shows_its_own():
    reward = Recording(Frames(2))
    scorer = make_scorer(RewardMix({"own": reward}, {"own": 1.0}), 2)
    latents, prompts, scale = batch(3)
    (group,) = training_groups(scorer.mix, LONG, 0, 1, range(3))
    scorer.pull(latents, prompts, [group], scale)
    assert torch.equal(reward.seen[0], group.frames / 4)
    assert len({tuple(row) for row in group.frames.tolist()}) > 1


@pytest.mark.parametrize("kind", [ToyModel, Windows], ids=["frame by frame", "windows"])
def test_a_decoded_video_scores_as_its_latents_do(kind):
    scorer, (latents, prompts, _) = make_scorer(make_mix("each its own"), 2, kind), batch(3)
    clip = scorer.decode(latents)
    assert clip.frames.shape == (3, 5, 3, 8, 8)
    assert torch.equal(clip.frames, scorer.model.decode(latents).cpu())
    assert clip.times.tolist() == [[0.0, 0.25, 0.5, 0.75, 1.0]] * 3
    found = scorer.score_clip(clip, prompts)
    expected = scorer.score(latents, prompts, evaluation_groups(scorer.mix, LONG, 3))
    for name, part in expected.parts.items():
        torch.testing.assert_close(found.parts[name], part)


# ---- memory ----


class Counting(Warmth):
    """Keeps how many images it was handed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def score_frames(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        assert len(images) == len(prompts)
        self.sizes.append(len(images))
        return super().score_frames(images, prompts)


@pytest.mark.parametrize("kind", [ToyModel, Windows], ids=["frame by frame", "windows"])
@pytest.mark.parametrize("others", [{}, {"drift": Drift()}], ids=["alone", "beside a clip reward"])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_frame_reward_is_handed_no_more_than_a_chunk(chunk, others, kind):
    counting = Counting()
    needs: dict[str, Needs] = {"counting": AllFrames()}
    mix = RewardMix({"counting": counting, **others}, dict.fromkeys(["counting", *others], 1.0), needs)
    scorer, (latents, prompts, scale) = make_scorer(mix, chunk, kind), batch(3)
    groups = training_groups(mix, LONG, 0, 1, range(3))
    for ways in (
        lambda: scorer.pull(latents, prompts, groups, scale),
        lambda: scorer.score(latents, prompts, groups),
        lambda: scorer.score_clip(scorer.decode(latents), prompts),
    ):
        counting.sizes = []
        ways()
        assert max(counting.sizes) <= chunk
        assert sum(counting.sizes) == 15


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_no_more_than_a_chunk_is_decoded_at_once(chunk, monkeypatch):
    decoded: list[int] = []
    decode = ToyModel.decode_unclamped

    def watched(self: ToyModel, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        decoded.append(frames.numel())
        return decode(self, latents, frames)

    monkeypatch.setattr(ToyModel, "decode_unclamped", watched)
    scorer, (latents, prompts, scale) = make_scorer(make_mix("frames and clips"), chunk), batch(3)
    groups = training_groups(scorer.mix, LONG, 0, 1, range(3))
    scorer.pull(latents, prompts, groups, scale)
    scorer.score(latents, prompts, groups)
    scorer.decode(latents)
    assert max(decoded) <= chunk
    assert sum(decoded) == (3 + 2 * 15) + (3 + 15) + 15  # a clip reward's frames are decoded once more for the graph
