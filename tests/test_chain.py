"""Videos of several segments: each starts where the last one arrived, and gradient enters just those that train."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain as joined_lists

import pytest
import torch
from torch import Tensor

from test_scorer import Drift, Windows
from toy_runs import adapter, assert_close_metrics, metrics, toy_recipe
from toy_walks import PROMPTS, Float64Noise, cfg, make_model
from toys import DDIM, Continuing, ToyModel, Warmth
from vader.algorithms.reward_gradient import chosen_segments
from vader.cli import main
from vader.errors import UserError
from vader.files.video import read_video
from vader.models.joined import Joined, decoder_of
from vader.networks.adapter import parameters_of
from vader.nouns import VideoSize
from vader.prompts import load_prompts
from vader.rewards import RewardMix
from vader.sampling import load_policy, make_sampler, sample_videos
from vader.sampling.chain import Chain
from vader.scoring.choice import training_groups
from vader.scoring.scorer import Scorer
from vader.solvers.scheduler_config import solver_from_config
from vader.training.before import check_recipe
from vader.training.trainer import train

LONG = VideoSize(frames=10, height=8, width=8, fps=4, segments=3)  # 4 + 3 + 3: the pictures between are there once
PICTURES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
MIX = RewardMix({"warmth": Warmth(), "drift": Drift()}, {"warmth": 1.0, "drift": -0.7})


def make_chain(trained: Sequence[int] = (), size: VideoSize = LONG, model: ToyModel | None = None) -> Chain:
    """Two long videos in float64."""
    model = model or make_model(Continuing)
    sampler = make_sampler(model, size.segment, 4, cfg(), solver_from_config(DDIM, eta=1.0))
    noise = Float64Noise(model.noise_shape(size.segment), 0, "train", 1, (0, 1))
    return Chain(sampler, PROMPTS, size, noise, PICTURES, trained)


def adapter_gradient(trained: Sequence[int], policy: str = "last", split: bool = True, **options: object) -> Tensor:
    """The gradient of the joined videos' reward in all adapter weights."""
    chain = make_chain(trained)
    model = chain.sampler.model
    scorer, groups = Scorer(Joined(model, LONG), MIX, LONG, 2), training_groups(MIX, LONG, 0, 1, range(2))
    parameters, scale = parameters_of(model.denoisers), torch.tensor([1.0, 0.5], dtype=torch.float64)
    for view in chain.views(load_policy(policy, options), torch.Generator().manual_seed(1)):
        if split:
            pulled, _ = scorer.pull(view.latents, PROMPTS, groups, scale * view.weight)
            loss = sum((view.latents[name] * gradient).sum() for name, gradient in pulled.items())
        else:
            loss, _ = scorer.graph(view.latents, PROMPTS, groups, scale * view.weight)
        loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


# ---- sizes ----


def test_a_size_knows_its_segments():
    assert LONG.segment == VideoSize(frames=4, height=8, width=8, fps=4)
    assert LONG.seams == [3, 6]
    assert [list(LONG.frames_of(number)) for number in range(3)] == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    segments, places = LONG.located(torch.arange(10))
    assert segments.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert places.tolist() == [0, 1, 2, 3, 1, 2, 3, 1, 2, 3]
    alone = VideoSize(3, 8, 8)
    assert (alone.segment, alone.seams) == (alone, [])
    assert [found.tolist() for found in alone.located(torch.arange(3))] == [[0, 0, 0], [0, 1, 2]]


# ---- sampling ----


def test_each_segment_starts_from_the_last_picture_of_the_one_before():
    chain = make_chain()
    found, model, images = chain.final(), chain.sampler.model, PICTURES
    noises = []
    for number in range(3):
        walk = chain.walk(number, images)
        expected = walk.frozen(len(walk)).latents
        assert torch.equal(found[str(number)], expected)
        assert torch.equal(walk.condition.cond["text"], model.encode(PROMPTS, LONG.segment, images).cond["text"])
        images = model.decode(expected)[:, -1]
        noises.append(walk.noise.draw("start"))
    assert not torch.allclose(noises[1], noises[2])
    short = make_chain(size=LONG.segment)
    assert torch.equal(short.final(), found["0"])


def test_a_long_video_shows_its_segments_one_after_the_other():
    model = Continuing()
    size = VideoSize(frames=10, height=8, width=8, fps=4, segments=3)
    videos = sample_videos(model, ["a", "b", "c"], size, 3, 2.0, batch=2, images=PICTURES[[0, 1, 0]].float())
    assert videos.shape == (3, 10, 3, 8, 8)
    short = sample_videos(model, ["a", "b", "c"], size.segment, 3, 2.0, batch=2, images=PICTURES[[0, 1, 0]].float())
    torch.testing.assert_close(videos[:, :4], short)
    again = sample_videos(model, ["a", "b", "c"], size, 3, 2.0, batch=3, images=PICTURES[[0, 1, 0]].float())
    torch.testing.assert_close(videos, again)


# ---- decoding ----


class Windowed(Windows, Continuing):
    """Decodes windows of frames together."""


@pytest.mark.parametrize("kind", [Continuing, Windowed])
def test_chosen_frames_are_those_of_the_whole_video(kind):
    model = kind(torch.float64)
    size = VideoSize(frames=13, height=8, width=8, segments=3)  # of 5 frames
    latents = {str(n): torch.randn(2, 4, 5, 2, 2, dtype=torch.float64) for n in range(3)}
    whole = Joined(model, size).decode(latents)
    assert whole.shape == (2, 13, 3, 8, 8)
    parts = [model.decode(latents[str(number)])[:, min(number, 1) :] for number in range(3)]
    torch.testing.assert_close(whole, torch.cat(parts, dim=1), rtol=0, atol=0)
    chosen = torch.tensor([[12, 0, 4, 5], [8, 9, 8, 1]])
    found = Joined(model, size).decode(latents, chosen)
    torch.testing.assert_close(found, torch.stack([whole[0, chosen[0]], whole[1, chosen[1]]]), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [Continuing, Windowed])
def test_windows_hold_each_frame_once(kind):
    size = VideoSize(frames=13, height=8, width=8, segments=3)
    windows = Joined(kind(), size).windows(size)
    assert list(joined_lists.from_iterable(windows)) == list(range(13))
    assert max(map(len, windows)) == max(map(len, kind().windows(size.segment)))


def test_a_single_segment_is_decoded_by_the_model_itself():
    model = Continuing()
    assert decoder_of(model, LONG.segment) is model


# ---- gradient ----


@pytest.mark.parametrize("policy", ["last", "full", "draft_lv", "refl", "leap"])
def test_segments_add_their_gradients(policy):
    """The pictures between are constants, so the gradient of several segments is the sum of each one's alone."""
    every = [adapter_gradient([number], policy) for number in range(3)]
    assert all(found.abs().max() > 0 for found in every)
    if policy in ("last", "full"):  # which draw nothing, so that each is alone what it is among others
        torch.testing.assert_close(adapter_gradient(range(3), policy), sum(every), rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(adapter_gradient([0, 2], policy), every[0] + every[2], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("trained", [[2], [0, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("policy", ["last", "draft_lv", "leap"])
def test_split_and_plain_backward_agree_over_segments(trained, policy):
    split, plain = (adapter_gradient(trained, policy, one) for one in (True, False))
    torch.testing.assert_close(split, plain, rtol=1e-9, atol=1e-14)


def test_the_last_segments_gradient_is_that_of_its_own_finite_difference():
    """What changes the reward is the last segment alone: the pictures that it starts from stay what they were."""
    found = adapter_gradient([2], "full")
    chain = make_chain()
    model, parameters = chain.sampler.model, parameters_of(chain.sampler.model.denoisers)
    scorer, groups = Scorer(Joined(model, LONG), MIX, LONG, 2), training_groups(MIX, LONG, 0, 1, range(2))
    scale, before = torch.tensor([1.0, 0.5], dtype=torch.float64), chain.final()
    walk = chain.walk(2, model.decode(before["1"])[:, -1])
    generator = torch.Generator().manual_seed(7)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]

    def loss(step: float) -> float:
        for parameter, one in zip(parameters, direction, strict=True):
            parameter.data += step * one
        latents = walk.frozen(len(walk)).latents
        for parameter, one in zip(parameters, direction, strict=True):
            parameter.data -= step * one
        return scorer.graph({**before, "2": latents}, PROMPTS, groups, scale)[0].item()

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    along = (found * torch.cat([one.flatten() for one in direction])).sum().item()
    assert along == pytest.approx(slope, rel=1e-6)


def test_what_is_not_trained_costs_no_backward_pass():
    """Constant segments are decoded without a graph, and have no gradient."""
    chain = make_chain([2])
    (view,) = chain.views(load_policy("last", {}), torch.Generator())
    assert [view.latents[name].requires_grad for name in "012"] == [False, False, True]
    mix = RewardMix({"warmth": Warmth()}, {"warmth": 1.0})
    scorer = Scorer(Joined(chain.sampler.model, LONG), mix, LONG, 1)
    groups = training_groups(mix, LONG, 0, 1, range(2))
    pulled, _ = scorer.pull(view.latents, PROMPTS, groups, torch.ones(2))
    assert not pulled["0"].any()
    assert not pulled["1"].any()


def test_segments_are_named_by_number():
    assert list(chosen_segments("last", 3)) == [2]
    assert list(chosen_segments("all", 3)) == [0, 1, 2]
    assert chosen_segments((0, 2), 3) == (0, 2)
    for asked, there, said in (
        ((0, 3), 3, "names 3, but video.segments is 3: they are 0 to 2"),
        ((1, 1), 3, "name at least one, and each once"),
        ((), 3, "name at least one"),
    ):
        with pytest.raises(UserError, match=said):
            chosen_segments(asked, there)


# ---- runs ----

CONTINUING = (
    "model.family=toys:Continuing",
    "prompts={train: tiny-pictures-train, test: tiny-pictures-test}",
    "video.segments=3",
    "rewards.1.sees=all",
)


def long_recipe(*more: str):
    return toy_recipe(*CONTINUING, *more)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train(long_recipe("algorithm.segments=all"), folder)
    return folder / "toy"


def test_a_run_over_segments_raises_its_reward(whole_run):
    evaluations = [line for line in metrics(whole_run) if line["kind"] == "evaluation"]
    assert evaluations[-1]["reward"] > evaluations[0]["reward"]
    video = read_video(sorted((whole_run / "samples").rglob("*.mp4"))[0])
    assert video.shape == (10, 3, 8, 8)


@pytest.mark.parametrize("override", ["train.micro_batch=1", "memory=[{name: offload_activations}]", "scoring.chunk=1"])
def test_micro_batches_and_memory_change_nothing(tmp_path, whole_run, override):
    train(long_recipe("algorithm.segments=all", override), tmp_path)
    assert_close_metrics(metrics(tmp_path / "toy"), metrics(whole_run))


def test_a_stopped_run_goes_on_as_if_nothing_had_been(tmp_path, whole_run):
    train(long_recipe("algorithm.segments=all", "train.steps=2"), tmp_path)
    train(long_recipe("algorithm.segments=all"), tmp_path)
    assert adapter(tmp_path / "toy") == adapter(whole_run)


def test_what_is_trained_matters(tmp_path, whole_run):
    train(long_recipe(), tmp_path)
    last = metrics(tmp_path / "toy")[-1]["reward"]
    assert last != pytest.approx(metrics(whole_run)[-1]["reward"], rel=1e-4)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["model.family=toys:ToyModel", "prompts={train: tiny-train, test: tiny-test}"], "take no pictures"),
        (["video.frames=1", "rewards=[{name: 'toys:Warmth'}]"], "a segment of one frame gets nowhere"),
        (["algorithm={name: ddpo}", "sampling.eta=1"], "algorithm 'ddpo' trains videos of one segment"),
        (["algorithm.segments=[5]"], "algorithm.segments names 5, but video.segments is 3"),
        (["rewards.0.sees=[10]"], "indices run from 0 to 9"),
    ],
)
def test_what_knows_no_segments_is_refused(asked, said):
    with pytest.raises(UserError, match=said):
        check_recipe(long_recipe(*asked))


def test_segments_without_a_long_video_have_no_effect():
    with pytest.raises(UserError, match=r"but video\.segments is 1"):
        check_recipe(toy_recipe("algorithm.segments=[1]"))


# ---- the command ----


def test_sampling_goes_on_from_the_last_frame(tmp_path, capsys):
    out = tmp_path / "out"
    one = tmp_path / "one.png"
    one.write_bytes(load_prompts("tiny-pictures-test")[0].image.read_bytes())
    asked = ["sample", "--recipe", "tiny-svd", "--image", str(one), "--steps", "2", "--segments", "2"]
    assert main([*asked, "--out", str(out)]) == 0
    (file,) = out.glob("*.mp4")
    assert read_video(file).shape == (15, 3, 32, 32)
    (listed,) = json.loads((out / "prompts.json").read_text())
    assert listed["seams"] == [7]
    assert main([*asked[:-1], "0"]) == 2
    assert main(["sample", "a red circle moving left over sea", "--segments", "2", "--out", str(tmp_path / "x")]) == 2
    assert "take no pictures" in capsys.readouterr().err
