"""The benchmarks' structure: bare passes are exactly what a step calls, results are whole. No timings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, product
from pathlib import Path
from statistics import median

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from factories import make_tiny_modelscope
from reward_factories import make_head, make_tiny_clip
from vader.algorithms import load_algorithm
from vader.errors import UserError
from vader.models.opensora.vae import OpenSoraVAE
from vader.recipe import load_recipe
from vader.rewards.registry import BUILT_IN
from vader.runs.folder import RunFolder
from vader.runs.reader import Evaluation, Run, TrainStep
from vader.sampling.policies import POLICIES, load_policy

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import beside_paper
import components
import full_size
import measuring
import page
import passes
import planned
import plans
import policies
import rewards

from vader.planning import measured, qwen
from vader.planning import models as random_models
from vader.planning import rewards as random_rewards
from vader.planning import wan as random_wan
from vader.planning.models import load_model_shape
from vader.planning.step import META, Forecast

RECIPE = """
name: small
model: {checkpoint: PLACE/model}
video: {frames: 4, height: 16, width: 16}
sampling: {steps: 4, guidance: 3.0}
rewards:
  - {name: aesthetic, checkpoint: PLACE/clip, head: PLACE/head.safetensors}
prompts: {train: PLACE/prompts.txt, test: PLACE/prompts.txt}
algorithm: {policy: {name: last, k: 1}}
adapter: {rank: 2}
train: {steps: 1, batch: 2}
memory: []
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
def network_calls(networks):
    """Counts calls of networks by name, grad mode, input shape, and whether there is gradient to the input."""
    calls, hooks = Counter(), []

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


def watched(step, image_tower):
    """The networks that a step calls, decoders by themselves, and the reward's image tower."""
    model = step.engine.model
    networks = {"denoiser": model.denoiser, "reward": image_tower.vision_model}
    for part in ("text_encoder", "image_encoder"):
        if part in model.networks():
            networks[part] = model.networks()[part]
    if isinstance(model.vae, OpenSoraVAE):
        return networks | {"frames": model.vae.spatial_vae.module.decoder, "times": model.vae.temporal_vae.decoder}
    return networks | {"decoder": model.vae.decoder}


def assert_bare_passes_are_the_step(step, image_tower):
    """Same networks, as often, on the same shapes, with gradient to the same tensors."""
    networks = watched(step, image_tower)
    with network_calls(networks) as in_step:
        step.run()
    listed = passes.necessary_passes(step.engine, step.algorithm, step.batch)
    with network_calls(networks) as bare:
        for one in listed:
            one.run_all()
    assert bare == in_step
    assert {name for name, *_ in bare} == networks.keys()
    assert all(parameter.grad is None for parameter in step.engine.parameters)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("algorithm.policy.k=3", "sampling.guidance_batched=false"),
        ("algorithm.policy.k=2", "sampling.guidance_detach_uncond=true"),
        ("algorithm.policy={name: full}", "sampling.guidance=1"),
        ("algorithm.policy={name: steps, steps: [0, 2]}", "train.micro_batch=1"),
        ("algorithm.policy={name: drtune, k: 2}", "algorithm.split_backward=false"),
        ("algorithm.policy={name: draft_lv, k: 2}", "rewards.0.sees=2", "scoring.chunk=4"),
        ("algorithm.policy={name: draft_lv, k: 2}", "rewards.0.sees=all", "scoring.chunk=3"),
        ("algorithm.policy={name: refl}", "algorithm.base_distance=0.1"),
        ("algorithm.policy={name: leap}",),
        ("algorithm.policy={name: sparse, k: 2}", "sampling.negative=blurry"),
        ("algorithm.policy={name: bridge, k: 3}", "algorithm.base_distance=0.1"),
        ("algorithm.policy={name: direct_align}",),
        ("algorithm.policy={name: full}", "sampling.guidance={name: interval, scale: 3.0}"),
        ("sampling.prefix={every: 2}",),
        ("sampling.prefix={guidance: [0.0, 0.5]}", "algorithm.base_distance=0.1", "sampling.steps=4"),
    ],
    ids=lambda overrides: " ".join(overrides) or "default",
)
def test_bare_passes_are_what_a_step_calls(recipe_path, overrides):
    """The overhead ratio leaves nothing out."""
    step = measured.TrainingStep.of(load_recipe(recipe_path, overrides))
    assert_bare_passes_are_the_step(step, step.engine.reward.rewards["aesthetic"].image)


def counted(name, **options):
    """Predictions of a policy on a chain of 20 without gradient, with it to the adapter, through; and its views."""
    asked, views = passes.necessary_calls(load_policy(name, options), 20, torch.Generator().manual_seed(0))
    kinds = Counter((call.grad, call.through) for call in asked)
    return kinds[False, False], kinds[True, False], kinds[True, True], views


def test_necessary_calls_of_policies():
    assert counted("last", k=3) == (17, 1, 2, 1)
    assert counted("refl", window=[0.25, 0.3]) == (5, 1, 0, 1)
    assert counted("draft_lv", k=3) == (19, 3, 0, 3)
    assert counted("drtune", k=5, stop=0.0) == (15, 5, 0, 1)
    assert counted("sparse", k=4) == (16, 4, 0, 1)
    assert counted("leap") == (18, 1, 1, 1)
    assert counted("direct_align") == (20, 1, 0, 1)
    assert counted("steps", steps=[3, 19]) == (18, 1, 1, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="a process's peak memory can be reset on Linux only")
def test_a_result_is_whole(recipe_path, tmp_path):
    recipe = load_recipe(recipe_path)
    device, result = components.measure(recipe, rounds=1)
    assert set(result["seconds"]) == {*measured.PHASES, "other", "total"}
    assert set(result["peak_memory"]) == {*measured.PHASES, "other", "total"}
    assert {name: one["count"] for name, one in result["passes"].items()} == {
        "encoder": 1, "denoiser, no gradient": 3, "denoiser, gradient to adapter": 1,
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
    measured.reset_peak(cpu)
    present = measured.present_bytes(cpu)
    assert measured.peak_bytes(cpu) - present < size / 4
    torch.ones(size // 4)
    assert measured.peak_bytes(cpu) - present > 0.9 * size


def test_frame_cases(recipe_path):
    assert components.frame_counts(load_recipe(recipe_path)) == [1, 4]
    assert components.frame_counts(load_recipe("modelscope-aesthetic")) == [1, 4, 16]
    recipe = load_recipe("tiny", components.case_overrides(load_recipe("tiny"), 8, split=False))
    assert (recipe.rewards[0].sees, recipe.algorithm.options["split_backward"]) == (8, False)


# ---- full size ----

FAMILIES = list(full_size.SUBJECTS)


def short(family):
    """One step without gradient, and few frames."""
    return [f"video.frames={FRAMES[family]}", f"sampling.steps={K[family] + 1}"]


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="a process's peak memory can be reset on Linux only")
K = dict.fromkeys(full_size.SUBJECTS, 1) | {"wan": 2}  # steps with gradient, at the first size
FRAMES = {"modelscope": 2, "videocrafter": 2, "svd": 4, "opensora": 17, "wan": 9}
SIZES = {  # parameters of the released checkpoints
    "modelscope": {"unet": 1_411_233_860, "vae": 83_653_863, "text_encoder": 340_387_840},
    "videocrafter": {"unet": 1_413_284_420, "vae": 83_653_863, "text_encoder": 340_387_840},
    "svd": {"unet": 1_524_623_082, "vae": 97_742_847, "image_encoder": 632_076_800},
    "opensora": {"transformer": 1_207_643_972, "vae": 393_341_007},
    "wan": {"transformer": 1_418_996_800, "vae": 126_892_531},
}
ADAPTERS = {  # layers and parameters
    "modelscope": (264, 6_645_760),
    "videocrafter": (198, 5_015_552),
    "svd": (256, 6_639_616),
    "opensora": (168, 9_289_728),
    "wan": (240, 23_592_960),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_full_size_networks_have_the_release_s_size(family):
    section = full_size.full_size_recipe(family, full_size.SUBJECTS[family].sizes[0]).model
    model = load_model_shape(section.family, section.checkpoint, section.options, torch.bfloat16, META)
    assert {name: full_size.count_frozen(network) for name, network in model.networks().items()} == SIZES[family]


def test_full_size_cases_are_the_paper_s_setting_and_wan_s_recipe():
    steps_and_guidance = {
        "modelscope": (25, 9.0), "videocrafter": (25, 12.0), "svd": (25, 3.0), "opensora": (30, 7.0), "wan": (30, 6.0),
    }  # fmt: skip
    frames = {"modelscope": 16, "videocrafter": 12, "svd": 14, "opensora": 51, "wan": 81}
    for family, subject in full_size.SUBJECTS.items():
        for size, case in product(subject.sizes, full_size.CASES.values()):
            recipe = full_size.full_size_recipe(family, size, case)
            assert (recipe.video.frames, recipe.video.height, recipe.video.width) == (frames[family], *size)
            steps, guidance = steps_and_guidance[family]
            assert recipe.sampling.steps == (steps if case.whole else full_size.FEW_STEPS)
            assert recipe.sampling.guidance == guidance
            assert {reward.sees for reward in recipe.rewards} == {case.sees}
            k = 1 if size == (480, 832) else K[family]
            rank = 32 if family == "wan" else 16
            assert (recipe.adapter.rank, recipe.algorithm.options["policy"]) == (rank, {"name": "last", "k": k})
            assert (recipe.train.batch, recipe.model.precision) == (1, "bf16")


def test_full_size_rewards_are_the_release_s():
    step = measured.TrainingStep.drawn(full_size.full_size_recipe("videocrafter", (320, 512)), META)
    found = {name: sum(weight.numel() for weight in part.parameters()) for name, part in step.engine.reward.items()}
    assert found == {name: RELEASES[name] for name in ("hps", "aesthetic")}


def blocks(kind):
    """One level, with transformers: without data, every operation costs as much as at full size."""
    return {
        "block_out_channels": (32,),
        "down_block_types": (f"CrossAttnDownBlock{kind}",),
        "up_block_types": (f"CrossAttnUpBlock{kind}",),
    }


@pytest.fixture
def small_families(small_rewards, monkeypatch):
    """All of them at a size for CPUs: 32 x 32 pixels, few levels, a layer of everything."""
    narrow = {"block_out_channels": (32, 32), "layers_per_block": 1}
    vae = narrow | {"down_block_types": ("DownEncoderBlock2D",) * 2}
    unet = narrow | {"cross_attention_dim": 16, "attention_head_dim": 8, **blocks("3D")}
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    small = {
        "MODELSCOPE_UNET": unet,
        "VIDEOCRAFTER_UNET": unet,
        "SVD_UNET": narrow | {"cross_attention_dim": 16, "num_attention_heads": 2, **blocks("SpatioTemporal")},
        "IMAGE_VAE": vae | {"up_block_types": ("UpDecoderBlock2D",) * 2},
        "SVD_VAE": vae,
        "TEXT_TOWER": tower,
        "IMAGE_TOWER": tower | {"image_size": 28, "projection_dim": 16},
        "STDIT3": {"depth": 1, "hidden_size": 32, "num_heads": 4, "caption_channels": 16, "model_max_length": 40},
        "OPENSORA_VAE": narrow | {"filters": 32, "num_res_blocks": 1},
    }
    for name, settings in small.items():
        monkeypatch.setattr(random_models, name, getattr(random_models, name) | settings)
    transformer = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 1, "freq_dim": 16}
    monkeypatch.setattr(random_wan, "TEXT_WIDTH", 16)
    monkeypatch.setattr(random_wan.RandomWanSmall, "transformer", transformer)
    monkeypatch.setattr(random_wan.RandomWanSmall, "autoencoder", {"base_dim": 8, "num_res_blocks": 1})
    for name, subject in full_size.SUBJECTS.items():
        monkeypatch.setitem(full_size.SUBJECTS, name, replace(subject, sizes=((32, 32),)))
    monkeypatch.setattr(full_size, "ROUNDS", 1)


def run_full_size(monkeypatch, path, *arguments):
    monkeypatch.setattr(sys, "argv", ["full_size.py", *arguments, "--out", str(path)])
    full_size.main()
    return json.loads(path.read_text())


@LINUX
@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_size_step_runs(small_families, family, monkeypatch, tmp_path):
    """The GPU's path at a size for CPUs."""
    chosen = ["nested, two calls, offload", "plain backward, all frames"]
    cases = [word for name in chosen for word in ("--case", name)]
    arguments = [*short(family), "--model", family, "--device", "cpu", *cases]
    result = run_full_size(monkeypatch, tmp_path / "r.json", *arguments)
    assert [case["case"] for case in result["cases"]] == chosen
    for case in result["cases"]:
        assert case["size"] == f"{FRAMES[family]}x32x32"
        assert set(case["seconds"]) == {*measured.PHASES, "other", "total"}
        assert set(case["peak_memory"]) == {*measured.PHASES, "other", "total"}
    assert full_size.case_table(result).row_count == 2


@LINUX
def test_a_case_that_cannot_be_built_is_recorded_and_stops_nothing(small_families, monkeypatch, tmp_path):
    monkeypatch.setitem(full_size.CASES, "unheard of", full_size.Case(("memory=[{{name: unheard_of}}]",)))
    monkeypatch.setitem(full_size.CASES, "no such key", full_size.Case(("sampling.unheard={{every: 4}}",)))
    cases = [word for name in ("unheard of", "no such key", "two calls") for word in ("--case", name)]
    arguments = [*short("videocrafter"), "--model", "videocrafter", "--device", "cpu", *cases]
    result = run_full_size(monkeypatch, tmp_path / "r.json", *arguments)
    assert ["error" in case for case in result["cases"]] == [True, True, False]
    assert "unheard_of" in result["cases"][0]["error"]
    assert "sampling.unheard" in result["cases"][1]["error"]
    assert full_size.case_table(result).row_count == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_of_a_step_are_counted(small_families, family, monkeypatch, tmp_path):
    result = run_full_size(monkeypatch, tmp_path / "r.json", *short(family), "--model", family, "--meta")
    once, again = result["operations"]
    assert (once["recompute"], again["recompute"]) == (False, True)
    for name, one in once["passes"].items():
        assert one["count"] == 1
        assert (again["passes"][name]["each"] > one["each"]) == (
            name.startswith("denoiser, gradient") or name in ("decoder", "reward")
        )
    assert full_size.count_table(result).row_count > 10


@pytest.mark.parametrize("family", FAMILIES)
def test_bare_passes_of_every_family_are_what_a_step_calls(small_families, family):
    overrides = [*short(family), "memory=[]", "train.batch=2"]
    step = measured.TrainingStep.drawn(
        full_size.full_size_recipe(family, (32, 32), overrides=overrides), torch.device("cpu")
    )
    reward = next(iter(step.engine.reward.rewards.values()))
    assert_bare_passes_are_the_step(step, reward.image)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_counts_on_file(family):
    counts = json.loads((measuring.RESULTS / f"full_size_{family}_meta.json").read_text())
    assert counts["parameters"].items() >= SIZES[family].items()
    assert tuple(counts["adapter"].values()) == ADAPTERS[family]
    at_sizes = [full_size.full_size_recipe(family, size) for size in full_size.SUBJECTS[family].sizes]
    recipes = {full_size.label(recipe): recipe for recipe in at_sizes}
    assert {found["size"] for found in counts["operations"]} == recipes.keys()
    for found in counts["operations"]:
        recipe = recipes[found["size"]]
        assert found["total"] == sum(one["count"] * one["each"] for one in found["passes"].values())
        without = recipe.sampling.steps - recipe.algorithm.options["policy"]["k"]
        assert found["passes"]["denoiser, no gradient"]["count"] == without


# ---- policies ----


@pytest.mark.parametrize("name", policies.POLICIES)
def test_policies_fit_the_tiny_recipe(name):
    recipe = load_recipe("tiny", policies.policy_overrides(load_recipe("tiny"), name))
    load_algorithm(recipe)
    assert (recipe.name, recipe.rewards[0].sees) == (f"tiny-{name}", policies.POLICIES[name][1])


def test_every_built_in_policy_is_measured():
    assert {policy["name"] for policy, _ in policies.POLICIES.values()} == POLICIES.keys() - {"steps"}


def test_policy_table(tmp_path):
    def evaluation(step, reward):
        return Evaluation(step, 4 * step, reward, 1.0, 0.125, 64, {}, 10.0, {"gold": reward / 10, "hps": 0.9})

    def train_step(step, seconds):
        return TrainStep(step, 4 * step, 5.0, {}, 1.0, 0.0, {}, seconds, 2.0 * measuring.GIB, 0)

    run = Run(
        folder=RunFolder(tmp_path),
        recipe=load_recipe("tiny"),
        recipe_text="",
        train=[train_step(1, 6.0), train_step(2, 3.0), train_step(3, 3.0)],
        evaluations=[evaluation(0, 4.5), evaluation(3, 7.0)],
        samples={},
    )
    found = policies.record(run)
    assert (found["step_seconds"], found["train_seconds"], found["total_seconds"]) == (3.0, 12.0, 32.0)
    assert found["after"]["queries"] == 12
    assert policies.markdown({"last-1": found}).splitlines() == [
        "| policy | held-out reward | gold | hps | s/step | training, min | peak, GiB |",
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
    assert rewards.BUILDERS.keys() == BUILT_IN.keys() - {"latent_aesthetic"}  # which is tiny, and nothing else


def shrink(config: dict, **more) -> dict:
    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return config | small | more


@pytest.fixture
def small_rewards(monkeypatch):
    monkeypatch.setattr(random_rewards, "VISION_TOWER", shrink(random_rewards.VISION_TOWER, image_size=28))
    towers = {name: shrink(random_rewards.CLIP_H[name]) for name in ("text_config", "vision_config")}
    monkeypatch.setattr(random_rewards, "CLIP_H", random_rewards.CLIP_H | towers | {"projection_dim": 64})
    for name in ("BLIP_VISION", "BLIP_TEXT", "YOLOS", "VIDEOMAE", "DINO"):
        monkeypatch.setattr(random_rewards, name, shrink(getattr(random_rewards, name)))
    sizes = {name: random_rewards.VitSize(1, 64, 2) for name in random_rewards.VJEPA_L}
    monkeypatch.setattr(random_rewards, "VJEPA_L", sizes)
    text = shrink(qwen.QWEN2_2B, hidden_size=256, num_key_value_heads=1, vocab_size=64)
    for name in ("QWEN2_2B", "QWEN2_7B"):
        monkeypatch.setattr(random_rewards, name, text)
    monkeypatch.setattr(qwen, "QWEN2_VISION", qwen.QWEN2_VISION | {"depth": 1, "embed_dim": 32, "num_heads": 2})
    monkeypatch.setattr(qwen, "QWEN3_2B", shrink(qwen.QWEN3_2B, num_key_value_heads=1, vocab_size=64))
    vision = {"depth": 1, "num_heads": 2, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    monkeypatch.setattr(qwen, "QWEN3_VISION", shrink(qwen.QWEN3_VISION, **vision))
    vision = {"image_size": 36, "num_frames": 4, "num_spatial_layers": 1, "num_temporal_layers": 1}
    vision |= {"num_auxiliary_layers": 1}
    text = shrink({"vocab_size": 99})
    monkeypatch.setattr(random_rewards, "VIDEOPRISM", {"vision_config": shrink({}) | vision, "text_config": text})
    vision = {"image_size": 32, "num_frames": 4, "patch_size": 16}
    vision |= {f"mit_{name}": count for name, count in shrink({}).items()}
    small = {"vision_config": shrink({}) | vision, "text_config": text, "projection_dim": 64, "prompt_layers": 1}
    monkeypatch.setattr(random_rewards, "XCLIP", small | {"prompt_num_attention_heads": 2})
    monkeypatch.setattr(random_rewards, "SIGLIP", shrink(random_rewards.SIGLIP, image_size=28))
    monkeypatch.setattr(rewards, "HEIGHT", 32)
    monkeypatch.setattr(rewards, "WIDTH", 48)
    monkeypatch.setattr(rewards, "ROUNDS", {"cpu": 1})
    monkeypatch.setattr(rewards, "CLIP_FRAMES", {"cpu": (4,), "meta": (4, 8)})


@pytest.mark.rare
def test_rewards_are_measured_forward_and_backward(small_rewards, monkeypatch, tmp_path):
    chosen = [name for name in rewards.BUILDERS if name != "object_removal"]  # 800 pixels: too much for a test
    monkeypatch.setattr(sys, "argv", ["rewards.py", *chosen, "--device", "cpu", "--out", str(tmp_path / "r.json")])
    rewards.main()
    result = json.loads((tmp_path / "r.json").read_text())
    size = {"height": 32, "width": 48, "fps": 8}
    assert result["settings"] == size | {"precision": "torch.float32", "rounds": 1}
    assert [record["reward"] for record in result["rewards"]] == chosen
    for record in result["rewards"]:
        assert record["frames"] == (
            4
            if record["reward"] in ("action", "consistency", "vjepa", "videoreward", "vlm", "videoprism", "xclip")
            else 1
        )
        assert record["weights"] == 4 * record["parameters"]
        assert record["seconds"].keys() == record["peak_memory"].keys() == {"forward", "both"}
        assert min(record["seconds"].values()) > 0


def test_rewards_are_counted_without_data(small_rewards, monkeypatch, tmp_path, capsys):
    """Operations are torch's own, frames that are scored one by one add up, and recomputing costs work."""
    chosen = ["aesthetic", "consistency", "videoreward"]
    monkeypatch.setitem(rewards.FRAME_COUNTS, "meta", (1, 3))
    monkeypatch.setattr(sys, "argv", ["rewards.py", *chosen, "--device", "meta", "--out", str(tmp_path / "r.json")])
    rewards.main()
    result = json.loads((tmp_path / "r.json").read_text())
    found = {(one["reward"], one["frames"]): one for one in result["rewards"]}
    assert list(found) == [(name, count) for name in chosen for count in ((1, 3) if name == "aesthetic" else (4, 8))]
    assert [found["videoreward", count]["seen"] for count in (4, 8)] == [4, 4]
    for (name, count), one in found.items():
        work, memory = one["operations"], one["peak_memory"]
        assert 1.9 * work["forward"] < work["both"] < work["recomputed"] < 1.6 * work["both"], (name, count)
        assert memory["forward"] < memory["both"], (name, count)
        if name == "aesthetic":
            each = found[name, 1]["operations"]
            assert work == pytest.approx({key: count * operations for key, operations in each.items()}, rel=1e-3)
    reward = rewards.build("aesthetic", torch.device("cpu"), torch.float32)
    with FlopCounterMode(display=False) as torchs:
        rewards.forward_backward(reward, rewards.clip_of(reward, 1, torch.device("cpu")))
    assert found["aesthetic", 1]["operations"]["both"] == pytest.approx(torchs.get_total_flops(), rel=0.05)
    table = capsys.readouterr().out
    assert "| `videoreward` |" in table
    assert table.count("\n| ---") == 1


def test_a_reward_that_is_not_measured(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rewards.py", "hpss"])
    with pytest.raises(UserError, match="no reward 'hpss' is measured here: did you mean 'hps'"):
        rewards.main()


# ---- plans.py ----


def test_the_table_of_peaks_is_what_was_counted_and_keeps_what_the_recipes_promise():
    result = json.loads((measuring.RESULTS / "plans.json").read_text())
    assert plans.markdown(result) in (Path(__file__).parents[1] / "docs" / "memory.md").read_text()
    ships = {model: found["as the recipe ships"]["peak"] / 2**30 for model, found in result["models"].items()}
    assert ships.pop("SVD 14x576x1024") <= 14  # and 1 beside tensors: a card of 16
    assert max(ships.values()) <= 12
    assert result["models"]["VideoCrafter2 12x320x512"]["the same, park"]["peak"] <= 8 * 2**30


@pytest.mark.rare
@pytest.mark.parametrize("model", plans.MODELS)
@pytest.mark.parametrize("case", plans.CASES)
def test_peaks_are_counted_as_they_were(model, case):
    found = json.loads((measuring.RESULTS / "plans.json").read_text())["models"][model][case]
    counted = plans.forecast(plans.recipe_of(model, case))
    assert counted.peak == pytest.approx(found["peak"], rel=0.005)
    assert counted.operations == pytest.approx(found["operations"], rel=0.005)


# ---- gpu.sh ----


def test_every_piece_for_a_gpu_is_a_script_that_takes_its_arguments(tmp_path):
    """And what has no GPU to run on says so in one line; the list is what a GPU would run."""
    script = Path(full_size.__file__).with_name("gpu.sh")
    asked = {**os.environ, "GPU_SH_LIST": "1"}
    listed = subprocess.run(["bash", script, str(tmp_path)], env=asked, capture_output=True, text=True, check=True)
    pieces = [line.removeprefix("== ") for line in listed.stdout.splitlines()]
    cases = [case for piece in pieces for case in re.findall(r"--case (.*?)(?= --)", piece)]
    assert set(cases) <= full_size.CASES.keys()
    assert {full_size.SHIPPED, "compile", "nested, two calls, offload, park", "prefix every 4"} < set(cases)
    models = {name for piece in pieces for name in re.findall(r"--model (\w+)", piece)}
    assert models == full_size.SUBJECTS.keys()
    assert {piece.split()[0] for piece in pieces} == {"on_gpu.py", "full_size.py", "rewards.py"}
    assert pieces[0].startswith("on_gpu.py")
    files = [piece.split("--out ")[1] for piece in pieces]
    assert len(set(files)) == len(files)  # no piece writes over another's
    assert not list(tmp_path.iterdir())


# ---- planned.py ----


def gpu_folder(place, gpu="card"):
    """What a GPU's minutes leave of VideoCrafter2: its recipe as it shipped then, and a case of its own memory."""
    case = {"size": "12x320x512", "sees": 1, "seconds": {"total": 8.0}, "peak_memory": {"total": 12 * 2**30}}
    settings = {"memory": [{"name": "recompute"}], "sampling": {"guidance_batched": True}}
    cases = [
        case | {"case": "as shipped", "steps": 25, "overrides": [], "whole": True},
        case
        | {
            "case": "nested, prefix every 4",
            "steps": 4,
            "overrides": ["memory=[{{name: recompute, of: nested}}]", "sampling.prefix={{every: 4}}"],
            "whole": False,
        },
        {"size": "12x320x512", "case": "broken", "error": "no such key"},
    ]
    result = {"earlier": True, "model": "videocrafter", "hardware": {"gpu": gpu}, "settings": settings, "cases": cases}
    (place / "full_size_videocrafter.json").write_text(json.dumps(result))
    (place / "full_size_videocrafter_meta.json").write_text(json.dumps({"model": "videocrafter", "operations": []}))
    rates = {"hardware": {"gpu": "card"}, "operations_per_second": {"bf16": 100e12}}
    (place / "on_gpu.json").write_text(json.dumps(rates))
    return place


def test_plans_stand_beside_what_was_measured_then(tmp_path, monkeypatch):
    """The forecast is of the recipe that the file was measured with, changed by the case."""
    asked = []
    found = Forecast({}, 0, 9 * 2**30, {}, 0, 400 * 10**12)
    monkeypatch.setattr(planned, "forecast", lambda recipe: asked.append(recipe) or found)
    monkeypatch.setattr(sys, "argv", ["planned.py", str(gpu_folder(tmp_path))])
    planned.main()
    whole, few = json.loads((tmp_path / "plan_gpu.json").read_text())["cases"]
    assert [
        (recipe.memory[0].options, recipe.sampling.guidance_batched, recipe.sampling.steps) for recipe in asked
    ] == [
        ({}, True, 25),
        ({"of": "nested"}, True, 4),
    ]
    assert (whole["case"], whole["ratio"], whole["share"]) == ("as shipped", 0.75, 0.5)
    assert [row["way"] for row in (whole, few)] == [
        "`recompute`, guidance in one call",
        "`of: nested`, guidance in one call, `prefix.every: 4`",
    ]
    assert [row["earlier"] for row in (whole, few)] == [True, True]
    assert (few["counted"], few["measured"]) == (9 * 2**30, 12 * 2**30)


def test_another_card_s_rate_says_nothing_of_this_one(tmp_path, monkeypatch):
    monkeypatch.setattr(planned, "forecast", lambda recipe: Forecast({}, 0, 2**30, {}, 0, 10**12))
    chip = planned.Chip.of(gpu_folder(tmp_path, gpu="another"))
    rows = [planned.beside(chip, result, case) for result, case in planned.measured_cases(tmp_path)]
    assert [("ratio" in row, "share" in row) for row in rows] == [(True, False)] * 2
    with pytest.raises(UserError, match=r"has no on_gpu\.json: run benchmarks/gpu\.sh"):
        planned.Chip.of(tmp_path / "empty")


TABLE = [
    ("modelscope", "16x256x256"), ("modelscope", "16x384x384"), ("videocrafter", "12x320x512"), ("svd", "14x576x1024"),
    ("opensora", "51x276x368"), ("opensora", "51x416x554"),
]  # fmt: skip


def test_plans_on_file_are_near_what_was_measured():
    result = json.loads((measuring.RESULTS / "plan_gpu.json").read_text())
    ratios = [case["ratio"] for case in result["cases"]]
    assert len(ratios) >= 12
    assert 0.94 < min(ratios) <= max(ratios) < 1.05
    for case in result["cases"]:
        assert case["ratio"] == pytest.approx(case["counted"] / case["measured"])
        if "share" in case:
            rate = result["settings"]["bf16_operations_per_second"]
            assert case["share"] == pytest.approx(case["operations"] / case["seconds"] / rate)


def test_the_memory_page_s_tables_are_what_a_gpu_took():
    text = (Path(__file__).parents[1] / "docs" / "memory.md").read_text()
    found = {
        (result["model"], case["size"], case["case"]): case
        for result, case in planned.measured_cases(measuring.RESULTS)
        if not result.get("earlier")
    }

    def assert_row(name, cells):
        assert f"| {name} | {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |") in text

    def peaks(cases):
        return [f"{case['peak_memory']['total'] / measuring.GIB:.1f}" for case in cases]

    def seconds(cases, whole):
        return [f"{case['seconds']['total']:.1f}" if case["whole"] == whole else "" for case in cases]

    sizes = sorted((key for key in found if key[2] == "as shipped"), key=lambda key: TABLE.index(key[:2]))
    shipped = [found[key] for key in sizes]
    assert_row("peak, GiB", peaks(shipped))
    assert_row("seconds", seconds(shipped, True))
    ways = ["one call", "two calls", "as shipped", "two calls, whole", "nested, two calls"]
    ways += ["nested, two calls, offload", "nested, two calls, offload, park"]
    cases = [found["videocrafter", "12x320x512", way] for way in ways]
    assert_row("peak, GiB", peaks(cases))
    assert_row("seconds at 4 denoising steps", seconds(cases, False))
    assert_row("seconds at 25", seconds(cases, True))


# ---- beside_paper.py ----


@pytest.fixture
def small_both(small_families, monkeypatch):
    monkeypatch.setattr(beside_paper, "SIZE", (32, 32))


@pytest.mark.usefixtures("small_both")
@pytest.mark.rare
def test_a_chain_s_counts_follow_from_its_first_two_steps():
    for make in (partial(beside_paper.published, META), partial(beside_paper.ours, "as shipped", META)):
        whole = beside_paper.counted_whole(make(["sampling.steps=4"]))
        assert beside_paper.counted(make, 4) == whole
        assert whole.passes["denoiser"] == 2 * 3
        assert whole.passes["denoiser, gradient"] == 2


@pytest.mark.usefixtures("small_both")
def test_the_published_step_trains_the_adapter_and_hps():
    """Gradients at the last step alone, dropout on, and what is not frozen collects gradients."""
    step = beside_paper.published(torch.device("cpu"), ["sampling.steps=2", "model.precision=fp32", "video.frames=2"])
    before = [parameter.detach().clone() for parameter in step.engine.parameters]
    frozen = step.unet.conv_in.weight.clone()
    step.run()
    assert any(not torch.equal(old, new) for old, new in zip(before, step.engine.parameters, strict=True))
    assert torch.equal(frozen, step.unet.conv_in.weight)
    aesthetic, hps = (step.engine.reward.rewards[name] for name in ("aesthetic", "hps"))
    assert all(weight.grad is not None for weight in hps.text.text_model.encoder.parameters())
    assert all(weight.grad is None for weight in aesthetic.parameters())
    assert any(isinstance(part, torch.nn.Dropout) and part.training and part.p == 0.1 for part in step.unet.modules())


@pytest.mark.usefixtures("small_both")
def test_both_predict_the_same_before_any_step():
    """The published step's chain on the same weights, without dropout, is ours with guidance in two calls: one call's
    rounding, of 1e-6, is what random weights make much of."""
    more = ["sampling.steps=2", "model.precision=fp32", "video.frames=2", "sampling.guidance_batched=false"]
    torch.manual_seed(0)
    step = beside_paper.published(torch.device("cpu"), more)
    walk = step.engine.training_walk(step.batch)
    step.unet.eval()
    assert torch.allclose(step.sampled(walk), walk.frozen(2).latents, rtol=1e-4, atol=1e-5)


def test_the_counts_beside_the_paper_s_step_on_file():
    result = json.loads((measuring.RESULTS / "beside_paper.json").read_text())
    counted = result["counted"]
    same = {"denoiser": 48, "denoiser, gradient": 2, "decoder": 1, "image tower, HPS": 1, "image tower, aesthetic": 1}
    assert counted["published"]["passes"] == same | {"text tower, HPS": 1}
    for name in beside_paper.OURS:
        assert counted[name]["passes"] == same | {"text tower, HPS": 0}
        assert result["share"][name] == pytest.approx(median(result["shares"][name]))
    assert counted["published"]["operations"] == pytest.approx(514.2e12, rel=1e-3)
    assert counted["as shipped"]["operations"] == counted["guidance in two calls"]["operations"]
    assert counted["as shipped"]["operations"] == pytest.approx(516.2e12, rel=1e-3)
    assert counted["nothing recomputed"]["operations"] == pytest.approx(499.8e12, rel=1e-3)
    assert 55e6 < result["parameters"] < 70e6


# ---- page.py ----


def test_the_performance_page_is_what_its_numbers_say(tmp_path):
    copy = tmp_path / "performance.md"
    copy.write_text(page.PAGE.read_text())
    page.write(measuring.RESULTS, copy)
    assert copy.read_text() == page.PAGE.read_text()
    for name in page.SECTIONS:
        assert f"<!-- {name} -->" in copy.read_text()


def test_what_was_measured_on_earlier_code_is_marked():
    case = {"model": "svd", "gpu": "card", "size": "1x2x3", "way": "`recompute`", "steps": 25, "earlier": True}
    case |= {"counted": 3 * measuring.GIB, "measured": 4 * measuring.GIB, "ratio": 0.75}
    case |= {"operations": 5 * 10**12, "seconds": 2.0, "share": 0.25}
    written = page.plan_gpu({
        "cases": [case, case | {"earlier": False}], "settings": {"bf16_operations_per_second": 10**13}
    })  # fmt: skip
    for way in ("`recompute` (earlier)", "`recompute`"):
        assert f"| SVD 1x2x3 | {way} | 3.0 | 4.0 | 0.750 |" in written
        assert f"| SVD 1x2x3 | {way} | 5 | 2.0 | 25% |" in written


def test_a_section_without_its_file_stays_as_it_is(tmp_path):
    copy = tmp_path / "performance.md"
    copy.write_text("<!-- memory -->\nold\n<!-- /memory -->\nmine\n<!-- components -->\nkept\n<!-- /components -->\n")
    (tmp_path / "memory.json").write_text((measuring.RESULTS / "memory.json").read_text())
    page.write(tmp_path, copy)
    assert "old" not in copy.read_text()
    assert "| split backward, peak | 1.00 |" in copy.read_text()
    assert copy.read_text().endswith("mine\n<!-- components -->\nkept\n<!-- /components -->\n")
