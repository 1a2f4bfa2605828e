"""The data anchor: its loss by hand, its gradient beside the reward's, its videos, and runs that go on with it."""

from __future__ import annotations

import json

import pytest
import torch

from test_processes import equals_one
from test_resume import stop_after
from toy_runs import adapter, metrics, toy_recipe
from toy_walks import FLOW, TwoExperts, make_model, make_walk
from toys import DDIM
from vader.algorithms.data_anchor import diffusion_errors
from vader.errors import Stopped, UserError
from vader.files.video import write_mp4
from vader.nouns import Known
from vader.planning.step import forecast
from vader.runs.folder import RunFolder
from vader.solvers.prediction import PREDICTIONS, TARGETS
from vader.training.before import check_recipe
from vader.training.trainer import build_run, next_batch, train

ANCHOR = "algorithm.data_anchor={weight: 0.5, videos: 3}"


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_prediction_on_target_gives_back_clean_latents_and_noise(prediction):
    clean, noise = torch.randn(2, 3, 4, dtype=torch.float64)
    levels = [(0.7, 0.3)] if "velocity" in prediction else [(0.8, 0.6), (1.0, 5.0)]  # flow; DDIM, EDM
    for alpha, sigma in levels:
        target = TARGETS[prediction](clean, noise, alpha, sigma)
        found = PREDICTIONS[prediction](alpha * clean + sigma * noise, target, alpha, sigma)
        torch.testing.assert_close(found, (clean, noise))


@pytest.mark.parametrize("config", [DDIM, FLOW], ids=["noise", "velocity"])
def test_the_loss_is_the_error_of_the_prediction(config):
    walk = make_walk(config, steps=5)
    clean, noise = torch.randn(2, 2, 4, 4, 2, 2, dtype=torch.float64)
    level = walk.start_of(2)
    predicted = walk.predict(2, level.alpha * clean + level.sigma * noise)
    wanted = noise if config is DDIM else noise - clean
    expected = (predicted - wanted).square().mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(diffusion_errors(walk, 2, clean, noise), expected)


def test_known_latents_have_no_error():
    walk = make_walk(FLOW, steps=5)
    clean, noise = torch.randn(2, 2, 4, 4, 2, 2, dtype=torch.float64)
    everything = Known(clean, torch.ones(1, 1, 1, 1, 1))
    told = type(walk)(
        walk.sampler, type(walk.condition)(walk.condition.cond, walk.condition.uncond, everything), walk.noise
    )
    assert diffusion_errors(told, 2, clean, noise).abs().max() == 0


def built(tmp_path, *overrides: str):
    run = build_run(check_recipe(toy_recipe(*overrides)), RunFolder(tmp_path / "toy"))
    generator = torch.Generator().manual_seed(5)
    for parameter in run.engine.parameters:
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return run


def gradient_of(run, monkeypatch, step: int = 1):
    found: list[torch.Tensor] = []

    def keep(*_: object) -> tuple[float, bool]:
        found.extend(parameter.grad.flatten() for parameter in run.engine.parameters)
        return 1.0, True

    monkeypatch.setattr(run.engine, "optimise", keep, raising=False)
    extra = run.algorithm.step(run.engine, next_batch(run, step)).extra
    for parameter in run.engine.parameters:
        parameter.grad = None
    return torch.cat(found), extra


def test_its_gradient_adds_to_the_rewards_by_its_weight(tmp_path, monkeypatch):
    """And is that of the mean loss, as central differences find it; micro-batches change nothing."""
    plain, extra = gradient_of(built(tmp_path), monkeypatch)
    assert extra == {}
    run = built(tmp_path, ANCHOR)
    one, extra = gradient_of(run, monkeypatch)
    cut, told = gradient_of(built(tmp_path, ANCHOR, "train.micro_batch=1"), monkeypatch)
    torch.testing.assert_close(cut, one, rtol=1e-4, atol=1e-6)
    assert told["data_anchor"] == pytest.approx(extra["data_anchor"], rel=1e-5)
    direction = [torch.randn_like(parameter) for parameter in run.engine.parameters]
    anchor, batch, losses = run.algorithm.anchor, next_batch(run, 1), []
    for sign in (1, -1):
        for parameter, d in zip(run.engine.parameters, direction, strict=True):
            parameter.data += sign * 1e-2 * d
        losses.append(anchor.pull(run.engine, batch))
        for parameter, d in zip(run.engine.parameters, direction, strict=True):
            parameter.data -= sign * 1e-2 * d
    slope = torch.dot(one - plain, torch.cat([d.flatten() for d in direction])).item()
    assert slope == pytest.approx(0.5 * (losses[0] - losses[1]) / 2e-2, rel=2e-2)
    assert abs(slope) > 1e-3


def test_the_bases_videos_are_those_of_the_base(tmp_path, monkeypatch):
    """Sampled with the adapter off, whatever it is by now, and the same whenever the run goes on."""
    moved, fresh = built(tmp_path, ANCHOR), build_run(check_recipe(toy_recipe(ANCHOR)), RunFolder(tmp_path / "other"))
    pools = []
    for run in (moved, fresh):
        gradient_of(run, monkeypatch)
        pools.append(run.algorithm.anchor.pool)
    assert [one.prompt for one in pools[0]] == [one.prompt for one in pools[1]]
    assert len({one.prompt for one in pools[0]}) == len(pools[0]) == 3
    for one, other in zip(*pools, strict=True):
        torch.testing.assert_close(one.latents, other.latents)
    assert (pools[0][0].latents - pools[0][1].latents).abs().max() > 0.1


def test_a_level_is_drawn_where_an_adapter_is_trained(tmp_path):
    run = build_run(
        check_recipe(
            toy_recipe(
                ANCHOR, "model.family=toy_walks:TwoExperts", "adapter.denoisers=[transformer_2]", "sampling.steps=6"
            )
        ),
        RunFolder(tmp_path / "toy"),
    )
    anchor, starts = run.algorithm.anchor, run.engine.sampler.schedule.starts
    anchor._make(run.engine)
    drawn = {anchor._drawn(run.engine, next_batch(run, step))[1] for step in range(1, 30)}
    assert {TwoExperts.expert(make_model(TwoExperts), starts[i].time) for i in drawn} == {"transformer_2"}
    assert len(drawn) > 1


def test_given_videos_are_encoded_with_their_prompts(tmp_path, monkeypatch):
    folder, pixels = tmp_path / "videos", torch.rand(2, 4, 3, 8, 8)
    for number, frames in enumerate(pixels):
        write_mp4(folder / f"{number}.mp4", frames, 4)
    listed = [{"file": f"{number}.mp4", "prompt": text} for number, text in enumerate(("red", "blue"))]
    (folder / "prompts.json").write_text(json.dumps(listed))
    run = built(tmp_path, f"algorithm.data_anchor={{weight: 1.0, source: {folder}}}")
    _, extra = gradient_of(run, monkeypatch)
    assert extra["data_anchor"] > 0
    assert [str(one.prompt) for one in run.algorithm.anchor.pool] == ["red", "blue"]
    decoded = run.engine.model.decode(torch.stack([one.latents for one in run.algorithm.anchor.pool]))
    assert decoded.shape == pixels.shape


def test_what_cannot_be_anchored_on_is_told_before_the_run(tmp_path):
    for overrides, said in {
        "{weight: 1.0, source: nowhere}": "no video at nowhere: give video files",
        f"{{weight: 1.0, source: {tmp_path}}}": "has no frames",
        f"{{weight: 1.0, source: {tmp_path}, videos: 3}}": "is about the base's own",
        "{weight: 0}": "data_anchor",
        "{weight: 1.0, sources: base}": "sources",
    }.items():
        with pytest.raises(UserError, match=said):
            check_recipe(toy_recipe(f"algorithm.data_anchor={overrides}"))


def test_stopped_and_continued_equals_uninterrupted(tmp_path):
    recipe = toy_recipe(
        ANCHOR, "train.steps=4", "evaluation.videos=2", "rewards.0.robust=0.1", "algorithm.normalise=true"
    )
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            train(recipe, tmp_path / "stopped")
    train(recipe, tmp_path / "stopped")
    train(recipe, tmp_path / "whole")
    assert metrics(tmp_path / "stopped/toy") == metrics(tmp_path / "whole/toy")
    assert adapter(tmp_path / "stopped/toy") == adapter(tmp_path / "whole/toy")
    assert "data_anchor" in metrics(tmp_path / "whole/toy")[-2]


def test_a_plan_counts_a_step_and_not_the_videos_that_are_made_before(tmp_path):
    plain, few, many = (
        forecast(toy_recipe("model.precision=fp32", *overrides)).operations
        for overrides in ((), (ANCHOR,), ("algorithm.data_anchor={weight: 1.0, videos: 300}",))
    )
    assert plain < few == many
    options = ("rewards.0.robust=0.1", "rewards.1.hinge=0.1", "algorithm.normalise=true", "adapter.ema=0.9")
    assert forecast(toy_recipe("model.precision=fp32", *options)).operations > plain


@pytest.mark.rare
def test_two_processes_equal_one(tmp_path):
    equals_one(tmp_path, 2, [ANCHOR, "rewards.0.robust=0.1", "algorithm.normalise=true"], {})
