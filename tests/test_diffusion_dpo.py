"""Diffusion-DPO: its loss against the formula, the errors it compares, where pairs come from, its runs as a whole."""

from __future__ import annotations

import csv
import io
import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from factories import make_tiny_modelscope
from toy_runs import adapter, assert_close_metrics, metrics, toy_recipe
from toy_walks import FLOW, SIZE, make_walk
from toys import DDIM, GaussianModel, ToyModel
from vader.algorithms import load_algorithm
from vader.algorithms.diffusion_dpo import DiffusionDPO, dpo_loss, noise_errors
from vader.algorithms.preferences import Pair, ReplayBuffer, read_preferences
from vader.errors import Stopped, UserError
from vader.files.video import write_png_frames
from vader.models.base import VideoModel
from vader.models.modelscope import ModelScope
from vader.networks.adapter import adapter_disabled
from vader.nouns import Known, Prompt, VideoSize, as_prompts
from vader.runs.folder import RunFolder
from vader.training.before import check_recipe
from vader.training.trainer import Run, build_run, next_batch, train

DPO = "algorithm={name: diffusion_dpo, updates: 2, pairs: 3, capacity: 6}"

# ---- the loss ----


def test_the_loss_is_the_paper_s():
    errors, reference, beta = (0.5, 0.7), (0.6, 0.65), 40.0
    inner = -beta / 2 * ((errors[0] - reference[0]) - (errors[1] - reference[1]))
    loss, margin = dpo_loss(*(torch.tensor(pair, dtype=torch.float64) for pair in (errors, reference)), beta)
    assert loss.item() == pytest.approx(-math.log(1 / (1 + math.exp(-inner))), rel=1e-12)
    assert margin.item() == pytest.approx(0.15)


def test_the_loss_is_log_2_where_model_and_reference_agree():
    errors = torch.rand(2, dtype=torch.float64)
    assert dpo_loss(errors, errors, 5000.0)[0].item() == math.log(2)


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize(
    ("config", "kind", "prediction", "scale"),
    [
        # `scale` is the factor from the prediction's error to that of the noise
        (DDIM, "ddim", "epsilon", lambda at: 1.0),
        (DDIM, "ddim", "v_prediction", lambda at: at.alpha),
        (DDIM, "euler_edm", "v_prediction", lambda at: at.alpha / (1 + at.sigma**2) ** 0.5),
        (FLOW, "euler_flow", None, lambda at: 1 - at.sigma),
    ],
    ids=["epsilon", "v", "edm v", "flow"],
)
def test_errors_are_those_of_the_noise_whatever_is_predicted(config, kind, prediction, scale, step):
    config = config | ({"prediction_type": prediction} if prediction else {})
    walk = make_walk(config, steps=4, solver=kind)
    clean, noise = torch.randn(2, *walk.start().latents.shape, dtype=torch.float64)
    at = walk.start_of(step)
    predicted = walk.predict(step, at.alpha * clean + at.sigma * noise)
    norm = (at.alpha**2 + at.sigma**2) ** 0.5
    target = {
        "epsilon": noise,
        "v_prediction": (at.alpha * noise - at.sigma * clean) / norm,
        None: noise - clean,
    }[prediction]
    expected = scale(at) ** 2 * (predicted - target).square().mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(noise_errors(walk, step, clean, noise), expected, rtol=1e-9, atol=1e-12)


def test_latents_that_are_known_have_no_error():
    """They are not noised, so there is no noise of theirs to find; what is mean over all else stays."""
    walk = make_walk(FLOW, steps=4)
    clean, noise = torch.randn(2, *walk.start().latents.shape, dtype=torch.float64)
    mask = torch.zeros_like(clean)
    mask[:, :, 0] = 1
    kept = replace(walk, condition=replace(walk.condition, known=Known(clean, mask)))
    at = walk.start_of(1)
    noisy = torch.where(mask == 1, clean, at.alpha * clean + at.sigma * noise)
    found = noisy + at.alpha * walk.predict(1, noisy)
    expected = ((found - noise).square() * (1 - mask)).mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(noise_errors(kept, 1, clean, noise), expected, rtol=1e-9, atol=1e-12)


def dpo_run(folder: Path, *overrides: str) -> Run:
    return build_run(check_recipe(toy_recipe(DPO, *overrides)), RunFolder(folder / "toy"))


def test_a_fresh_adapter_s_loss_is_log_2_and_a_step_makes_the_winner_preferred(tmp_path):
    """The constructed pair: all of the winner's latents are warm of colour, all of the loser's cold."""
    run = dpo_run(tmp_path, "model.family=toys:GaussianModel")
    engine, algorithm = run.engine, run.algorithm
    latents = torch.ones(2, *engine.model.noise_shape(engine.size))
    pair = Pair(Prompt("red"), torch.stack([latents[0], -latents[1]]))
    for number in range(5):
        loss, margin = algorithm._loss(engine, pair, 1, number)
        assert (loss.item(), margin.item()) == (pytest.approx(math.log(2), abs=1e-7), 0.0)
    loss.backward()
    with torch.no_grad():
        for parameter in engine.parameters:
            parameter -= 1e-3 * parameter.grad / parameter.grad.norm().clamp(min=1e-12)
    assert algorithm._loss(engine, pair, 1, 4)[1] > 0
    swapped = replace(pair, latents=pair.latents.flip(0))
    assert algorithm._loss(engine, swapped, 1, 4)[1] < 0


def test_the_gradient_is_that_of_the_formula(tmp_path):
    """At a fresh adapter: beta / 4 times the gradient of (winner's error - loser's), on one time and one noise."""
    run = dpo_run(tmp_path, "algorithm.beta=12")
    engine = run.engine
    pair = Pair(Prompt("red"), torch.randn(2, *engine.model.noise_shape(engine.size)))
    seen = []
    hook = engine.model.denoiser.register_forward_hook(lambda _, inputs, __: seen.append(inputs))
    loss, _ = run.algorithm._loss(engine, pair, 2, 3)
    found = torch.autograd.grad(loss, engine.parameters)
    hook.remove()
    (noisy, time, _), again = seen[1], seen[0]
    assert torch.equal(noisy, again[0])  # the reference sees the same
    (level,) = (level for level in engine.sampler.schedule.starts if level.time == float(time))
    alpha, sigma = level.alpha, level.sigma
    noises = (noisy - alpha * pair.latents) / sigma
    torch.testing.assert_close(noises[0], noises[1], rtol=0, atol=1e-5)
    text = engine.model.encode(as_prompts(["red", "red"]), SIZE).cond["text"]
    errors = (noises - engine.model.denoiser(noisy, time, text)).square().flatten(1).mean(dim=1)
    wanted = torch.autograd.grad(12 / 4 * (errors[0] - errors[1]), engine.parameters)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)


def test_the_reference_is_the_frozen_base():
    plain, adapted = make_walk(model=ToyModel(torch.float64)), make_walk()
    clean, noise = torch.randn(2, *plain.start().latents.shape, dtype=torch.float64)
    base = noise_errors(plain, 1, clean, noise)
    assert not torch.allclose(noise_errors(adapted, 1, clean, noise), base, rtol=1e-2)
    with adapter_disabled(adapted.sampler.model.denoiser):
        assert torch.equal(noise_errors(adapted, 1, clean, noise), base)


# ---- pairs of the reward ----


def filled(capacity: int = 8) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity)
    prompts = [Prompt("cat"), Prompt("dog"), Prompt("cat"), Prompt("dog"), Prompt("cat")]
    buffer.add(prompts, torch.tensor([1.0, 5.0, 3.0, 5.0, 2.0]), torch.arange(5.0).reshape(5, 1).expand(5, 3))
    return buffer


def places(run_or_none, buffer: ReplayBuffer) -> set[tuple[float, float]]:
    engine = type("Device", (), {"model": type("Model", (), {"device": "cpu"})})
    picked = [buffer.pick(engine, number) for number in range(len(buffer))]
    assert all(pair.prompt == Prompt("cat") for pair in picked)
    return {tuple(pair.latents[:, 0].tolist()) for pair in picked}


def test_pairs_are_of_one_prompt_and_the_higher_reward_wins():
    assert places(None, filled()) == {(2, 0), (4, 0), (2, 4)}  # the two dogs have the same reward


def test_only_the_latest_videos_are_remembered():
    assert places(None, filled(capacity=3)) == {(2, 4)}


def test_prompts_with_other_pictures_make_no_pair():
    buffer = ReplayBuffer(4)
    prompts = [Prompt("a boat", image=Path("a.png")), Prompt("a boat", image=Path("b.png"))]
    buffer.add(prompts, torch.tensor([1.0, 2.0]), torch.zeros(2, 1))
    assert len(buffer) == 0


def test_a_buffer_is_saved_and_loaded_exactly():
    buffer, other = ReplayBuffer(4), ReplayBuffer(4)
    prompts = [Prompt("a boat", label="sail", image=Path("a.png"))] * 3
    buffer.add(prompts, torch.rand(3), torch.randn(3, 2, 2))
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.ranked, buffer.ranked)
    for one, same in zip(buffer.entries, other.entries, strict=True):
        assert same.prompt == prompts[0]
        assert same.reward == one.reward
        assert torch.equal(same.latents, one.latents)


def test_room_is_asked_for_as_a_full_buffer_takes(tmp_path):
    run = dpo_run(tmp_path)
    for step in range(4):
        run.algorithm.step(run.engine, next_batch(run, step))
    latents = run.algorithm.state_dict()["latents"]
    assert len(latents) == 6
    assert run.algorithm.state_bytes(run.engine) == sum(one.numel() * one.element_size() for one in latents)


# ---- pairs of a file ----


@pytest.fixture
def videos(tmp_path) -> Path:
    """A warm and a cold video as folders of frames, and one that is too short."""
    for name, colour in {"warm": (0.6, 0.5, 0.4), "cold": (0.4, 0.5, 0.6)}.items():
        write_png_frames(tmp_path / name, torch.tensor(colour)[:, None, None].expand(4, 3, 8, 8))
    write_png_frames(tmp_path / "short", torch.zeros(3, 3, 8, 8))
    return tmp_path


def write_pairs(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


GOOD = {"prompt": "a sunset, warm", "winner": "warm", "loser": "cold"}


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl"])
def test_a_run_on_a_preference_file_asks_no_reward_and_follows_it(videos, name):
    path = write_pairs(videos / name, [GOOD])
    file = f"algorithm={{name: diffusion_dpo, preferences: {path}, beta: 20, pairs: 4}}"
    few = ("train.steps=5", "evaluation.every=5", "optimizer.lr=0.03")
    result = train(toy_recipe("model.family=toys:GaussianModel", file, *few), videos / "runs")
    lines = [line for line in metrics(videos / "runs/toy") if line["kind"] == "train"]
    assert [line["queries"] for line in lines] == [0] * 5
    assert lines[0]["reward"] is None
    assert lines[-1]["accuracy"] > 0.8
    assert lines[-1]["loss"] < lines[0]["loss"] < math.log(2) + 0.1
    warmth = [line["parts"]["Warmth"] for line in metrics(videos / "runs/toy") if line["kind"] == "evaluation"]
    assert warmth[-1] > warmth[0]
    assert (videos / "runs/toy/report.html").exists()
    assert math.isfinite(result.after[0])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.capacity=300", "algorithm.capacity is about videos that are sampled"),
        ("algorithm.videos_per_prompt=4", "algorithm.videos_per_prompt is about videos that are sampled"),
        ("sampling.guidance_detach_uncond=true", "diffusion_dpo trains the conditional prediction alone"),
    ],
)
def test_keys_without_effect_on_a_preference_file_are_refused(videos, override, message):
    path = write_pairs(videos / "pairs.jsonl", [GOOD])
    recipe = toy_recipe(f"algorithm={{name: diffusion_dpo, preferences: {path}}}", override)
    with pytest.raises(UserError, match=message):
        build_run(check_recipe(recipe), RunFolder(videos / "toy"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD | {"looser": "cold"}], "has a key 'looser': did you mean 'loser'?"),
        ([GOOD | {"loser": ""}], "pair 1 of .* has no 'loser'"),
        ([GOOD, GOOD | {"loser": "short"}], "short' is 3 frames of 8x8, but the recipe's are 4 frames of 8x8"),
        ([GOOD | {"winner": "worm"}], "no video at .*worm"),
    ],
    ids=["unknown key", "empty", "short", "missing"],
)
def test_mistakes_in_a_preference_file_are_found_before_the_model_is_loaded(videos, monkeypatch, rows, message):
    monkeypatch.setattr(ToyModel, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    path = write_pairs(videos / "pairs.jsonl", rows)
    with pytest.raises(UserError, match=message):
        build_run(
            check_recipe(toy_recipe(f"algorithm={{name: diffusion_dpo, preferences: {path}}}")),
            RunFolder(videos / "toy"),
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no pairs"), ("{", "is not a JSON object a line"), ("[1]", "pair 1 of .* is no row of texts")],
)
def test_files_that_hold_no_pairs(tmp_path, text, message):
    (tmp_path / "pairs.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        read_preferences(tmp_path / "pairs.jsonl")
    with pytest.raises(UserError, match="does not exist"):
        read_preferences(tmp_path / "none.csv")


def test_a_model_that_encodes_no_videos_says_so():
    with pytest.raises(UserError, match="GaussianModel cannot encode videos"):
        VideoModel.encode_video(GaussianModel(), torch.zeros(1, 1, 3, 8, 8))


def test_modelscope_encodes_frame_by_frame_what_it_decodes(tmp_path):
    model = ModelScope.load(str(make_tiny_modelscope(tmp_path)))
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae")
    pixels = torch.rand(2, 3, 3, 16, 16)
    latents = model.encode_video(pixels)
    assert latents.shape == (2, *model.noise_shape(VideoSize(3, 16, 16)))
    expected = vae.encode(pixels[1, 2:3] * 2 - 1).latent_dist.mean * 0.7
    torch.testing.assert_close(latents[1:, :, 2], expected, rtol=1e-4, atol=1e-5)
    assert not latents.requires_grad


# ---- whole runs ----


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("plain")
    train(toy_recipe(DPO), runs)
    return runs / "toy"


def test_what_a_run_reports(plain_run):
    lines = [line for line in metrics(plain_run) if line["kind"] == "train"]
    assert [line["queries"] for line in lines] == [4, 8, 12, 16, 20, 24]
    assert [line["pairs"] for line in lines] == [2, 3, 3, 3, 3, 3]  # six videos remembered, two a prompt
    assert all(line["grad_norm"] > 0 and line["skipped"] == 0 for line in lines)


@pytest.mark.parametrize("step", [1, 4])
def test_stopped_and_continued_equals_uninterrupted(tmp_path, plain_run, step):
    whole_step = DiffusionDPO.step

    def interrupted(self, engine, batch):
        if batch.step == step:
            signal.raise_signal(signal.SIGTERM)
        return whole_step(self, engine, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionDPO, "step", interrupted)
        with pytest.raises(Stopped):
            train(toy_recipe(DPO), tmp_path)
    train(toy_recipe(DPO), tmp_path)
    assert metrics(tmp_path / "toy") == metrics(plain_run)
    assert adapter(tmp_path / "toy") == adapter(plain_run)


@pytest.mark.parametrize("override", ["train.micro_batch=1", "scoring.chunk=2", "memory=[{name: offload_activations}]"])
def test_what_must_not_change_the_numbers(tmp_path, plain_run, override):
    train(toy_recipe(DPO, override), tmp_path)
    # Pairs are videos sampled in batches of other sizes, and beta multiplies what rounding makes of them.
    assert_close_metrics(metrics(tmp_path / "toy"), metrics(plain_run), absolute=1e-5, relative=1e-3)


def test_without_a_difference_in_reward_there_is_nothing_to_learn(tmp_path, monkeypatch):
    run = dpo_run(tmp_path, "rewards=[{name: 'toys:Warmth'}]")
    monkeypatch.setattr("toys.Warmth.score_frames", lambda self, images, prompts: torch.ones(len(images)))
    found = run.algorithm.step(run.engine, next_batch(run, 1))
    assert (found.skipped, found.grad_norm, found.extra) == (True, 0.0, {"pairs": 0})


def test_a_reward_that_is_not_finite_skips_the_step_and_is_forgotten(tmp_path, monkeypatch):
    run = dpo_run(tmp_path, "rewards=[{name: 'toys:Warmth'}]")
    monkeypatch.setattr("toys.Warmth.score_frames", lambda self, images, prompts: torch.full((len(images),), math.inf))
    found = run.algorithm.step(run.engine, next_batch(run, 1))
    assert found.skipped
    assert math.isnan(found.grad_norm)
    assert len(run.algorithm.pairs.entries) == 0


def test_the_reward_rises(tmp_path):
    settings = ("model.family=toys:GaussianModel", "video={frames: 1, height: 4, width: 4}", "sampling.guidance=1")
    algorithm = "algorithm={name: diffusion_dpo, beta: 5, capacity: 64, pairs: 16, updates: 2}"
    loop = ("train.batch=32", "train.steps=15", "optimizer.lr=0.05", "train.checkpoint_every=100", "sampling.steps=5")
    many = ("evaluation={every: 100, videos: 64, batch: 64, shown: 1}", "rewards=[{name: 'toys:Warmth'}]")
    result = train(toy_recipe(*settings, algorithm, *loop, *many), tmp_path)
    assert result.after[0] > result.before[0] + 5 * (result.before[1] + result.after[1])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.videos_per_prompt=3"], "train.batch 4 is no multiple of algorithm.videos_per_prompt 3"),
        (["algorithm.videos_per_prompt=1"], "algorithm 'diffusion_dpo': videos_per_prompt is 1: "),
        (["algorithm.capacity=3"], "algorithm.capacity is 3 but train.batch is 4"),
        (["algorithm.policy={name: last}"], "algorithm 'diffusion_dpo' has no option 'policy'"),
        (["algorithm.bta=1"], "algorithm 'diffusion_dpo' has no option 'bta': did you mean 'beta'?"),
    ],
    ids=str,
)
def test_contradictions(overrides, message):
    with pytest.raises(UserError) as caught:
        load_algorithm(toy_recipe(DPO, *overrides))
    assert message in str(caught.value)
