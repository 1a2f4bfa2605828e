"""How a reward's gradient is shaped: hinge, noise on the pixels, equal sizes at the latents, contrasting words."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reward_factories import make_tiny_clip
from test_scorer import LONG, Drift, Windows, by_graph, make_scorer
from toy_runs import toy_recipe
from toys import Stillness, ToyModel, Warmth
from vader.errors import UserError
from vader.nouns import Clip, Prompt
from vader.rewards import AllFrames, Frames, RewardMix
from vader.rewards.hps import HPS
from vader.rewards.pickscore import PickScore
from vader.rewards.registry import Named, build_mix
from vader.rewards.shaping import Shaping
from vader.scoring.choice import training_groups
from vader.scoring.scorer import Scorer
from vader.training.before import check_recipe

PROMPTS = [Prompt("red"), Prompt("blue"), Prompt("cat")]
SCALE = torch.linspace(0.5, 2.0, 3, dtype=torch.float64)


def videos(scale: float = 12.0) -> Tensor:
    return scale * torch.randn(3, 4, 5, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def pulled(scorer: Scorer, latents: Tensor, indices=range(3), step: int = 1):
    rows = slice(indices[0], indices[-1] + 1)
    groups = training_groups(scorer.mix, LONG, 0, step, indices)
    return scorer.pull(latents[rows], PROMPTS[rows], groups, SCALE[rows])


# ---- hinge ----


def test_a_hinge_is_the_gradient_of_the_smaller_of_score_and_hinge():
    """Of a clip reward by the whole, of a framewise one frame by frame; values and totals stay the reward's own."""
    latents, hinge, cold = videos(0.5), -0.0006, 0.1365
    plain = RewardMix({"still": Stillness(), "warm": Warmth()}, {"still": 0.7, "warm": -2.0}, {"warm": AllFrames()})
    shaping = {"still": Shaping(hinge=hinge), "warm": Shaping(hinge=cold, downwards=True)}
    shaped = RewardMix(dict(plain.items()), plain.weights, plain.shown, shaping)
    model = ToyModel(torch.float64)
    leaf = latents.clone().requires_grad_()
    clip = Clip.whole(model.decode_unclamped(leaf).clamp(0, 1), LONG.fps)
    still, warm = Stillness().score(clip, PROMPTS), Warmth().score_each(clip, PROMPTS)
    assert 0 < (still < hinge).sum() < 3
    assert 0 < (warm > cold).sum() < warm.numel()
    total = 0.7 * still.clamp(max=hinge) - 2.0 * warm.clamp(min=cold).mean(dim=1)
    (expected,) = torch.autograd.grad(-(SCALE * total).sum(), leaf)
    for chunk in (1, 4):
        found, scored = pulled(make_scorer(shaped, chunk), latents)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-15)
        torch.testing.assert_close(scored.total, pulled(make_scorer(plain, chunk), latents)[1].total)
        groups = training_groups(shaped, LONG, 0, 1, range(3))
        torch.testing.assert_close(by_graph(make_scorer(shaped, chunk), latents, PROMPTS, groups, SCALE)[0], expected)


def test_beyond_the_hinge_there_is_no_gradient_and_below_all_of_it():
    latents, warm = videos(0.5), {"warm": Warmth()}
    of = {hinge: RewardMix(warm, {"warm": 1.0}, None, {"warm": Shaping(hinge=hinge)}) for hinge in (-2.0, 2.0)}
    assert pulled(make_scorer(of[-2.0]), latents)[0].abs().max() == 0
    plain = pulled(make_scorer(RewardMix(warm, {"warm": 1.0})), latents)[0]
    torch.testing.assert_close(pulled(make_scorer(of[2.0]), latents)[0], plain, rtol=0, atol=0)


def test_a_recipe_says_hinge_and_robust_of_any_reward():
    mix = build_mix([Named("toys:Warmth", hinge=0.3), Named("toys:Stillness", -1.0, hinge=0.1, robust=0.02)])
    assert mix.shaping["Warmth"] == Shaping(0.3)
    assert mix.shaping["Stillness"] == Shaping(0.1, 0.02, downwards=True)
    with pytest.raises(UserError, match="reward 'hps_aesthetic' is a mix, whose parts have other scales"):
        check_recipe(toy_recipe("rewards=[{name: hps_aesthetic, hinge: 1.0}]"))
    with pytest.raises(UserError, match=r"^rewards\.0\.hinge is about the reward's gradient, and algorithm 'ddpo'"):
        check_recipe(
            toy_recipe("rewards=[{name: 'toys:Warmth', hinge: 1.0}]", "algorithm={name: ddpo}", "sampling.eta=1")
        )


# ---- noise on the pixels ----


class Mean(Warmth):
    """Linear in the pixels, so that noise shows as it is."""

    def score_frames(self, images: Tensor, prompts) -> Tensor:
        return (images * torch.linspace(0, 1, images[0].numel()).view_as(images[0])).sum(dim=(1, 2, 3))


@pytest.mark.parametrize("kind", [ToyModel, Windows], ids=["frame by frame", "windows"])
def test_noise_is_of_a_videos_frame_alone_however_the_batch_is_cut(kind):
    rewards = {"warm": Warmth(), "still": Stillness(), "drift": Drift()}
    shaping = {"warm": Shaping(robust=0.1), "still": Shaping(robust=0.05)}
    mix = RewardMix(rewards, {"warm": 1.0, "still": 0.5, "drift": 0.1}, {"warm": Frames(3)}, shaping)
    latents = videos()
    whole, scored = pulled(make_scorer(mix, 1, kind), latents)
    for chunk in (2, 5):
        torch.testing.assert_close(pulled(make_scorer(mix, chunk, kind), latents)[0], whole, rtol=1e-11, atol=1e-15)
    alone = torch.cat([pulled(make_scorer(mix, 2, kind), latents, range(i, i + 1))[0] for i in range(3)])
    torch.testing.assert_close(alone, whole, rtol=1e-11, atol=1e-15)
    groups = training_groups(mix, LONG, 0, 1, range(3))
    graph, _ = by_graph(make_scorer(mix, 1, kind), latents, PROMPTS, groups, SCALE)
    torch.testing.assert_close(graph, whole, rtol=1e-11, atol=1e-15)
    other, noisy = pulled(make_scorer(mix, 1, kind), latents, step=2)
    assert (other - whole).abs().max() > 1e-3 * whole.abs().max()
    torch.testing.assert_close(noisy.parts["drift"], scored.parts["drift"])  # which is not under noise


def test_noise_has_the_standard_deviation_that_was_asked_for():
    mix = RewardMix({"mean": Mean().double()}, {"mean": 1.0}, None, {"mean": Shaping(robust=0.02)})
    scorer, latents = make_scorer(mix), 0.0 * videos()
    scores = torch.stack([pulled(scorer, latents, step=step)[1].parts["mean"] for step in range(60)]).flatten()
    expected = 0.02 * torch.linspace(0, 1, 3 * 8 * 8).square().sum().sqrt()
    assert scores.std().item() == pytest.approx(expected.item(), rel=0.15)
    groups = training_groups(mix, LONG, 0, 1, range(3))
    assert scorer.score(latents, PROMPTS, groups).parts["mean"].std() < 1e-12  # numbers are of the pixels themselves


# ---- equal sizes at the latents ----


def test_normalised_gradients_have_size_one_before_weights():
    rewards = {"warm": Warmth(), "still": Stillness()}
    latents = videos(0.5)

    def of(weights: dict[str, float], names=("warm", "still"), shaping=None) -> Tensor:
        mix = RewardMix({name: rewards[name] for name in names}, weights, {"warm": Frames(2)}, shaping)
        groups = training_groups(mix, LONG, 0, 1, range(3))
        return make_scorer(mix, 2).pull_normalised(latents, PROMPTS, groups, SCALE)[0]

    warm, still = of({"warm": 1.0}, ("warm",)), of({"still": 300.0}, ("still",))
    torch.testing.assert_close(warm.square().flatten(1).mean(dim=1).sqrt(), SCALE)
    torch.testing.assert_close(still.square().flatten(1).mean(dim=1).sqrt(), 300 * SCALE)
    both = of({"warm": 3.0, "still": -0.5})
    torch.testing.assert_close(both, 3 * warm - 0.5 / 300 * still, rtol=1e-10, atol=1e-14)
    mix = RewardMix({"warm": Warmth()}, {"warm": 1.0})
    direction = pulled(make_scorer(mix), latents)[0]
    cosine = torch.nn.functional.cosine_similarity(of({"warm": 1.0}, ("warm",)).flatten(1), direction.flatten(1))
    assert (cosine > 0).all()
    silent = of({"warm": 3.0, "still": 1.0}, shaping={"warm": Shaping(hinge=-2.0)})
    torch.testing.assert_close(silent, still / 300)


def test_normalised_scores_are_those_of_pull():
    mix = RewardMix({"warm": Warmth(), "still": Stillness()}, {"warm": 1.0, "still": 0.5})
    groups, scorer = training_groups(mix, LONG, 0, 1, range(3)), make_scorer(mix)
    (_, plain), (_, found) = (
        f(videos(), PROMPTS, groups, SCALE) for f in (scorer.pull, scorer.pull_normalised)
    )  # fmt: skip
    assert list(found.parts) == list(plain.parts)
    torch.testing.assert_close((found.total, found.parts), (plain.total, plain.parts))
    assert 0 < found.clamped < 1


def test_normalise_needs_the_split_backward():
    with pytest.raises(UserError, match=r"^algorithm\.normalise takes each reward's gradient by itself"):
        check_recipe(toy_recipe("algorithm.normalise=true", "algorithm.split_backward=false"))


# ---- contrast ----


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return str(make_tiny_clip(tmp_path_factory.mktemp("contrast") / "clip"))


@pytest.mark.parametrize("kind", [HPS, PickScore])
def test_contrast_is_the_score_with_wanted_words_less_that_with_unwanted_ones(kind, clip_folder):
    images = torch.rand(3, 1, 3, 16, 16, requires_grad=True)
    plain, contrast = kind(checkpoint=clip_folder), kind(checkpoint=clip_folder, contrast=("red", "a blue"))
    wanted, unwanted = (plain(images, [f"{words}. {one}" for one in PROMPTS]) for words in ("red", "a blue"))
    scores = contrast(images, PROMPTS)
    torch.testing.assert_close(scores, wanted - unwanted, atol=1e-5, rtol=1e-4)
    assert scores.abs().min() > 1e-4
    low, high = plain.sensible_range
    assert contrast.sensible_range == (low - high, high - low)
    with pytest.raises(UserError, match="give \\[wanted words, unwanted words\\], other ones and none empty"):
        kind(checkpoint=clip_folder, contrast=("red", " "))
    with pytest.raises(UserError, match="other ones and none empty"):
        kind(checkpoint=clip_folder, contrast=("red", "red "))


def test_shaping_is_of_the_recipe_and_stays_in_a_mix_of_one():
    mix = RewardMix({"a": Warmth(), "b": Warmth()}, {"a": 2.0, "b": 1.0}, {"a": Frames(2)}, {"a": Shaping(0.1)})
    alone = mix.single("a")
    assert (alone.weights, alone.shown, alone.shaping) == ({"a": 1.0}, {"a": Frames(2)}, {"a": Shaping(0.1)})
