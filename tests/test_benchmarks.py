"""The benchmarks' structure: bare passes are exactly what a step calls, results are whole. No timings."""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest
import torch

from factories import make_tiny_modelscope
from reward_factories import make_head, make_tiny_clip
from vader.errors import UserError
from vader.evaluation.run_folder import Evaluation, Run, TrainStep
from vader.policies import Plan
from vader.recipe import load_recipe
from vader.rewards.registry import BUILT_IN

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import components
import full_size
import measuring
import passes
import policies
import rewards

RECIPE = """
name: small
model: {checkpoint: PLACE/model}
video: {frames: 4, height: 16, width: 16}
sampling: {steps: 4, guidance: 3.0}
rewards:
  - {name: aesthetic, checkpoint: PLACE/clip, head: PLACE/head.safetensors}
prompts: {train: PLACE/prompts.txt, test: PLACE/prompts.txt}
adapter: {rank: 2}
train: {steps: 1, batch: 2}
memory: {checkpointing: false}
"""


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory):
    """A recipe on random checkpoints in their release formats."""
    place = tmp_path_factory.mktemp("benchmark")
    make_tiny_modelscope(place / "model")
    make_tiny_clip(place / "clip")
    make_head(place / "head.safetensors")
    (place / "prompts.txt").write_text("red\nblue\na red b\n")
    (place / "recipe.yaml").write_text(RECIPE.replace("PLACE", str(place)))
    return str(place / "recipe.yaml")


@contextmanager
def network_calls(step):
    """Counts calls of networks by name, grad mode, input shape, and whether there is gradient to the input."""
    model, calls, hooks = step.engine.model, Counter(), []
    networks = {
        "unet": model.denoiser,
        "decoder": model.vae.decoder,
        "text": model.text_encoder,
        "reward": step.engine.reward.rewards["aesthetic"].image.vision_model,
    }

    def watch(name):
        def note(module, args, kwargs):
            x = next(value for value in chain(args, kwargs.values()) if isinstance(value, torch.Tensor))
            grad = torch.is_grad_enabled()
            calls[name, grad, tuple(x.shape), grad and x.requires_grad] += 1

        return note

    for name, network in networks.items():
        hooks.append(network.register_forward_pre_hook(watch(name), with_kwargs=True))
    yield calls
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("algorithm.policy.k=3", "sampling.guidance_batched=false"),
        ("algorithm.policy.k=2", "sampling.guidance_detach_uncond=true"),
        ("algorithm.policy={name: full}", "sampling.guidance=1"),
        ("algorithm.policy={name: steps, steps: [0, 2]}", "train.micro_batch=1"),
        ("algorithm.policy={name: drtune, k: 2}", "algorithm.split_backward=false"),
        ("algorithm.policy={name: draft_lv, k: 2}", "algorithm.frames={sample: 2, chunk: 2}"),
        ("algorithm.policy={name: refl}", "algorithm.base_distance=0.1"),
    ],
    ids=lambda overrides: " ".join(overrides) or "default",
)
def test_bare_passes_are_what_a_step_calls(recipe_path, overrides):
    """Same networks, as often, on the same shapes, with gradient to the same tensors: the ratio leaves nothing out."""
    step = measuring.TrainingStep.of(load_recipe(recipe_path, overrides))
    with network_calls(step) as in_step:
        step.run()
    listed = passes.necessary_passes(step.engine, step.batch)
    with network_calls(step) as bare:
        for one in listed:
            one.run_all()
    assert bare == in_step
    assert all(parameter.grad is None for parameter in step.engine.parameters)


def test_necessary_calls_of_plans():
    last = Plan(frozenset({17, 18, 19}))
    assert passes.necessary_calls(last, 20) == passes.Calls(no_grad=17, adapter_only=1, through=2, scores=1)
    clean = Plan(frozenset({5}), sees="clean")
    assert passes.necessary_calls(clean, 20, base_distance=True) == passes.Calls(6, 1, 0, 1)
    views = Plan(frozenset({19}), views=3)
    assert passes.necessary_calls(views, 20) == passes.Calls(19, 3, 0, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="a process's peak memory can be reset on Linux only")
def test_a_result_is_whole(recipe_path, tmp_path):
    recipe = load_recipe(recipe_path)
    device, result = components.measure(recipe, rounds=1)
    assert set(result["seconds"]) == {*measuring.PHASES, "other", "total"}
    assert set(result["peak_memory"]) == {*measuring.PHASES, "total"}
    assert {name: one["count"] for name, one in result["passes"].items()} == {
        "text": 1, "denoiser, no gradient": 3, "denoiser, gradient to adapter": 1,
        "decoder": 1, "reward": 1, "optimiser": 1,
    }  # fmt: skip
    bare = sum(one["seconds"] for one in result["passes"].values())
    assert result["overhead_ratio"] == pytest.approx(result["seconds"]["total"] / bare)
    assert components.phase_table(result).row_count == 7 + 6

    measuring.write_result(tmp_path / "new" / "result.json", "components", device, recipe, result)
    written = json.loads((tmp_path / "new" / "result.json").read_text())
    assert {"benchmark", "date", "hardware", "versions", "settings"} < set(written)
    assert written["settings"]["train"]["batch"] == 2
    assert {"cpu", "cores", "threads"} <= set(written["hardware"])
    assert {"torch", "diffusers", "transformers", "peft", "accelerate", "vader"} <= set(written["versions"])


@pytest.mark.skipif(sys.platform != "linux", reason="a process's peak memory can be reset on Linux only")
def test_a_new_peak_forgets_the_old_one():
    cpu, size = torch.device("cpu"), 2**28
    torch.ones(size // 4)  # comes and goes
    measuring.reset_peak(cpu)
    present = measuring.present_bytes(cpu)
    assert measuring.peak_bytes(cpu) - present < size / 4
    torch.ones(size // 4)
    assert measuring.peak_bytes(cpu) - present > 0.9 * size


def test_frame_cases(recipe_path):
    assert components.frame_counts(load_recipe(recipe_path)) == [1, 4]
    assert components.frame_counts(load_recipe("modelscope-aesthetic")) == [1, 4, 16]
    algorithm = load_recipe("modelscope-aesthetic", components.case_overrides(16, split=False)).algorithm
    assert (algorithm.frames.sample, algorithm.split_backward) == (16, False)


# ---- full size ----


def test_full_size_networks_have_the_release_s_size():
    """Parameter counts of the released checkpoints (CLIP's image tower with its projection, and LAION's head)."""
    model = full_size.RandomModelScope.load("meta", dtype=torch.bfloat16)
    counts = {name: full_size.count_frozen(network) for name, network in model.networks().items()}
    assert counts == {"unet": 1_411_233_860, "vae": 83_653_863, "text_encoder": 340_387_840}
    assert full_size.count_frozen(full_size.RandomAesthetic("meta").freeze()) == 303_966_208 + 927_969


def test_full_size_cases_are_the_paper_s_setting():
    for size in full_size.SIZES:
        for overrides in full_size.CASES.values():
            recipe = full_size.full_size_recipe("modelscope", "cuda", size, overrides)
            assert (recipe.video.frames, recipe.video.height, recipe.video.width) == (16, size, size)
            assert (recipe.sampling.steps, recipe.sampling.guidance, recipe.adapter.rank) == (25, 9.0, 16)
            assert (recipe.algorithm.policy.name, recipe.algorithm.policy.k) == ("last", 1)


def test_a_full_size_step_runs(monkeypatch):
    """The GPU's path at a size for CPUs."""
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    small = {
        "UNET": {
            "block_out_channels": (32, 32, 32, 32),
            "layers_per_block": 1,
            "cross_attention_dim": 16,
            "attention_head_dim": 8,
        },
        "VAE": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
        "TEXT_TOWER": tower,
        "VISION_TOWER": tower | {"image_size": 28},
    }
    for name, settings in small.items():
        monkeypatch.setattr(full_size, name, getattr(full_size, name) | settings)
    monkeypatch.setitem(sys.modules, "full_size", full_size)
    overrides = ["video.frames=2", "sampling.steps=2", "memory.offload=true"]
    result = full_size.measure_case(full_size.full_size_recipe("modelscope", "cpu", 32, overrides))
    assert set(result) == {"seconds", "peak_memory"}
    assert full_size.case_table({"cases": [{"size": 32, "case": "small", **result}]}).row_count == 1


def test_counted_operations_add_up():
    path = measuring.RESULTS / "full_size_meta.json"
    for found in json.loads(path.read_text())["operations"]:
        assert found["total"] == sum(one["count"] * one["each"] for one in found["passes"].values())
        assert found["passes"]["denoiser, no gradient"]["count"] == 24


# ---- policies ----


@pytest.mark.parametrize("name", policies.POLICIES)
def test_policies_fit_the_tiny_recipe(name):
    base = load_recipe("tiny")
    assert load_recipe("tiny", policies.policy_overrides(base, name)).name == f"tiny-{name}"


def test_policy_table(tmp_path):
    def evaluation(step, reward):
        return Evaluation(step, 4 * step, reward, 1.0, 0.125, 64, {}, 10.0, {"vividness": reward / 10, "color": 0.9})

    def train_step(step, seconds):
        return TrainStep(step, 4 * step, 5.0, {}, 1.0, 0.0, {}, seconds, 2.0 * measuring.GIB, 0)

    run = Run(
        path=tmp_path,
        recipe=load_recipe("tiny"),
        recipe_text="",
        train=[train_step(1, 6.0), train_step(2, 3.0), train_step(3, 3.0)],
        evaluations=[evaluation(0, 4.5), evaluation(3, 7.0)],
        samples={},
        finished=True,
    )
    found = policies.record(run)
    assert (found["step_seconds"], found["train_seconds"], found["total_seconds"]) == (3.0, 12.0, 32.0)
    assert found["after"]["queries"] == 12
    assert policies.markdown({"last-1": found}).splitlines() == [
        "| policy | held-out reward | vividness | color | s/step | training, min | peak, GiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| before training | 4.500 ± 0.125 | 0.45 | 0.90 |  |  |  |",
        "| last-1 | 7.000 ± 0.125 | 0.70 | 0.90 | 3.00 | 0.20 | 2.00 |",
    ]


# ---------------------------------------------------------------- rewards

RELEASES = {  # parameters
    "aesthetic": 303_966_208 + 927_969,
    "weather": 303_966_208 + 927_969,
    "compression": 303_966_208 + 463_553,
    "hps": 986_109_441,
    "pickscore": 986_109_441,
}


@pytest.mark.parametrize("name", RELEASES)
def test_rewards_have_the_releases_sizes(name):
    reward = rewards.build(name, torch.device("meta"), torch.bfloat16)
    assert sum(parameter.numel() for parameter in reward.parameters()) == RELEASES[name]


def test_every_built_in_reward_is_measured():
    assert rewards.BUILDERS.keys() == BUILT_IN.keys()


def shrink(config: dict, **more) -> dict:
    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return config | small | more


@pytest.fixture
def small_rewards(monkeypatch):
    monkeypatch.setattr(rewards, "VISION_TOWER", shrink(rewards.VISION_TOWER, image_size=28))
    towers = {name: shrink(rewards.CLIP_H[name]) for name in ("text_config", "vision_config")}
    monkeypatch.setattr(rewards, "CLIP_H", rewards.CLIP_H | towers)
    for name in ("BLIP_VISION", "BLIP_TEXT", "YOLOS", "VIDEOMAE"):
        monkeypatch.setattr(rewards, name, shrink(getattr(rewards, name)))
    sizes = {name: rewards.VitSize(1, 64, 2) for name in rewards.VJEPA_L}
    monkeypatch.setattr(rewards, "VJEPA_L", sizes)
    monkeypatch.setattr(rewards, "HEIGHT", 32)
    monkeypatch.setattr(rewards, "WIDTH", 48)
    monkeypatch.setattr(rewards, "ROUNDS", 1)
    monkeypatch.setattr(rewards, "FRAMES", {"frame": (1,), "clip": (4,)})


def test_rewards_are_measured_forward_and_backward(small_rewards, monkeypatch, tmp_path):
    chosen = [name for name in rewards.BUILDERS if name != "object_removal"]  # 800 pixels: too much for a test
    monkeypatch.setattr(sys, "argv", ["rewards.py", *chosen, "--device", "cpu", "--out", str(tmp_path / "r.json")])
    rewards.main()
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["settings"] == {"height": 32, "width": 48, "precision": "torch.float32", "rounds": 1}
    assert [record["reward"] for record in result["rewards"]] == chosen
    for record in result["rewards"]:
        assert record["frames"] == (4 if record["reward"] in ("action", "vjepa") else 1)
        assert record["weights"] == 4 * record["parameters"]
        assert record["seconds"].keys() == record["peak_memory"].keys() == {"forward", "both"}
        assert min(record["seconds"].values()) > 0


def test_a_reward_that_is_not_measured(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rewards.py", "hpss"])
    with pytest.raises(UserError, match="no reward 'hpss' is measured here: did you mean 'hps'"):
        rewards.main()
