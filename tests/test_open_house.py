"""What comes next is a file of its user's: experts, rewards by the second, policies, memory, metrics, and more.

The files under `open_house/` use the public names of `vader` alone, and nothing of the package knows of them.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

import vader
from opensora_factories import write_tokenizer
from vader.cli import main
from vader.files.video import write_mp4
from vader.nouns import VideoSize, as_prompts
from vader.runs.reader import Run, read_run
from vader.sampling.videos import make_sampler
from vader.sampling.walk import Walk

HOUSE = Path(__file__).parent / "open_house"
SIZE = VideoSize(frames=9, height=32, width=32, fps=4)
PROMPT = "a red ball"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A Wan 2.2 of random weights, saved in the release's layout; 8 x 8 pixels and four frames become one latent."""
    folder = tmp_path_factory.mktemp("wan")
    write_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = WanPipeline(
            tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
            text_encoder=UMT5EncoderModel(
                UMT5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
            ),
            vae=AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2
            ),
            transformer=_transformer(),
            transformer_2=_transformer(),
            boundary_ratio=0.875,
        )
    pipe.save_pretrained(folder)
    return folder


def _transformer() -> WanTransformer3DModel:
    """Louder than fresh weights are, so that text and adapters are heard."""
    network = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=1
    )
    for parameter in network.parameters():
        parameter.data.mul_(2)
    return network


@pytest.fixture(autouse=True)
def _inside(monkeypatch):
    """The user works in a folder of their own."""
    monkeypatch.chdir(HOUSE)
    monkeypatch.syspath_prepend(str(HOUSE))
    _forget()
    yield
    _forget()


def _forget():
    """Other tests have modules of the same names."""
    for file in HOUSE.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.fixture
def trained(checkpoint, tmp_path):
    """`trained("name", "key=value", ...)` is a finished run of the user's recipe with these changes."""

    def run(name: str, *changes: str) -> Run:
        overrides = [f"name={name}", f"model.checkpoint={checkpoint}", *changes]
        assert main(["train", "wan.yaml", *overrides, "--runs", str(tmp_path)]) == 0
        return read_run(tmp_path / name)

    return run


@pytest.fixture
def refused(checkpoint, tmp_path, capsys):
    """The one line that a run with these changes is refused by, before it has left anything."""

    def run(*changes: str) -> str:
        arguments = ["train", "wan.yaml", "name=refused", f"model.checkpoint={checkpoint}", *changes]
        capsys.readouterr()
        assert main([*arguments, "--runs", str(tmp_path)]) == 2
        assert not (tmp_path / "refused").exists()
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return run


@pytest.mark.parametrize("file", sorted(HOUSE.glob("*.py")), ids=lambda file: file.name)
def test_users_files_know_public_names_alone(file):
    tree = ast.parse(file.read_text())
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    assert [module for module in modules if module.startswith("vader.")] == []
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "vader"
        for alias in node.names
    ]
    assert names
    assert set(names) <= set(vader.__all__)


# ---- a model of two experts ----


def test_two_experts_keep_the_contract(checkpoint, capsys):
    assert main(["check", "model", f"my_wan:Wan:{checkpoint}", "--size", "5x16x16"]) == 0
    assert "FAIL" not in capsys.readouterr().out


def test_a_policy_that_misses_an_expert_is_refused(refused):
    line = refused("algorithm.policy={name: last, k: 1}")
    assert line == (
        "vader: the policy 'last' never reaches 'transformer', which denoises other steps than [3]: choose a "
        "policy that goes further back, or set adapter.denoisers to [transformer_2]"
    )


def test_one_expert_alone_is_trained_where_the_recipe_says_so(trained):
    run = trained("low", "algorithm.policy={name: last, k: 1}", "adapter.denoisers=[transformer_2]")
    assert [path.name for path in run.folder.adapter.iterdir()] == ["pytorch_lora_weights.transformer_2.safetensors"]
    assert run.finished


def test_both_experts_learn_and_load_in_diffusers(trained, checkpoint):
    run = trained("both")
    files = ["pytorch_lora_weights.safetensors", "pytorch_lora_weights.transformer_2.safetensors"]
    assert sorted(path.name for path in run.folder.adapter.iterdir()) == files
    for name in files:
        weights = load_file(run.folder.adapter / name)
        assert all(key.startswith("transformer.") for key in weights)
        assert all(weight.any() for weight in weights.values())  # B starts at zero

    pipe = WanPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    model = vader.load_model("my_wan:Wan", str(checkpoint))
    condition = model.encode(as_prompts([PROMPT]), SIZE)
    start = torch.randn(1, *model.noise_shape(SIZE))
    before = _theirs(pipe, start)
    _same(_ours(model, condition, start), before)

    pipe.load_lora_weights(run.folder.adapter, weight_name=files[0])
    pipe.load_lora_weights(run.folder.adapter, weight_name=files[1], load_into_transformer_2=True)
    for name, denoiser in model.denoisers.items():
        vader.load_adapter(denoiser, run.folder.adapter, name)
        _predicts_the_same(model, getattr(pipe, name), condition, start, 950.0 if name == "transformer" else 300.0)
    after = _theirs(pipe, start)
    _same(_ours(model, condition, start), after)
    assert (after - before).abs().max() > 1e-2


def _same(ours, theirs):
    """After a whole chain in float32: to 1e-5 of the largest number."""
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@torch.no_grad()
def _predicts_the_same(model, network, condition, start, time):
    ours = model.denoise(start, torch.tensor(time), condition.cond)
    theirs = network(start, torch.tensor([time]), condition.cond["text"], return_dict=False)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def _theirs(pipe, start):
    """The latents of diffusers' whole pipeline."""
    return pipe(
        PROMPT, negative_prompt="", latents=start.clone(), num_frames=SIZE.frames, height=SIZE.height, width=SIZE.width,
        num_inference_steps=4, guidance_scale=3.0, output_type="latent",
    ).frames  # fmt: skip


@torch.no_grad()
def _ours(model, condition, start):
    walk = Walk(make_sampler(model, SIZE, 4, 3.0), condition, _Fixed(start))
    return walk.frozen(len(walk)).latents


class _Fixed:
    def __init__(self, latents):
        self.latents = latents

    def draw(self, use):
        return self.latents


# ---- a reward that sees two frames a second ----


def test_a_reward_is_told_when_its_frames_are_shown(trained, tmp_path, capsys):
    import my_rewards

    my_rewards.SEEN.clear()
    run = trained("speed")
    times = torch.tensor([0, 3, 5, 8]) / 4  # of nine frames, four a second: 2.25 seconds
    assert {len(clip) for clip in my_rewards.SEEN} == {1, 2, 3}  # the trial, training batches, held-out videos
    assert all(torch.equal(clip, times.expand_as(clip)) for clip in my_rewards.SEEN)

    my_rewards.SEEN.clear()
    video = run.samples[2][0].file
    capsys.readouterr()
    assert main(["score", str(video), "--reward", "my_rewards:Speed", "--json"]) == 0
    (score,) = json.loads(capsys.readouterr().out)["files"]
    assert len(my_rewards.SEEN) == 1
    torch.testing.assert_close(my_rewards.SEEN[0], times[None])
    assert score["total"] == pytest.approx(run.samples[2][0].reward, rel=0.1)  # mp4 is lossy


# ---- a policy ----


def test_a_policy_with_an_option(trained, refused):
    run = trained("pair", "algorithm.policy={name: 'my_policies:pair', apart: 3}")
    assert run.recipe.algorithm.options["policy"]["apart"] == 3
    files = run.folder.adapter.glob("*.safetensors")
    assert all(weight.any() for file in files for weight in load_file(file).values())
    assert "policy 'my_policies:pair' has no option 'apartt': did you mean 'apart'?" in refused(
        "algorithm.policy={name: 'my_policies:pair', apartt: 3}"
    )
    assert "apart is 'far': input should be a valid integer" in refused(
        "algorithm.policy={name: 'my_policies:pair', apart: far}"
    )
    assert "policy 'pair' has steps 9 apart, of 4: choose 1 to 3" in refused(
        "algorithm.policy={name: 'my_policies:pair', apart: 9}"
    )


# ---- a memory technique ----


def test_a_memory_technique_changes_no_number(trained):
    import my_memory

    plain = trained("plain", "memory=[]")
    spilled = trained("spilled", "memory=[{name: 'my_memory:Spill', least: 256}]")
    assert my_memory.SPILLED
    assert set(my_memory.PREPARED) == {
        ("denoiser", "transformer"),
        ("denoiser", "transformer_2"),
        ("decoder", "vae"),
        ("text", "text_encoder"),
        ("reward", "Speed"),
    }
    assert _numbers(spilled) == _numbers(plain)
    for file in plain.folder.adapter.glob("*.safetensors"):
        other = load_file(spilled.folder.adapter / file.name)
        assert all(torch.equal(weight, other[name]) for name, weight in load_file(file).items())


def _numbers(run: Run) -> list[tuple[float, ...]]:
    steps = [(step.reward, step.grad_norm, step.clamped) for step in run.train]
    return steps + [(one.reward, one.std) for one in run.evaluations]


# ---- a metric of a set of videos ----


def test_a_metric_of_a_set_stands_everywhere(trained, tmp_path, capsys):
    for number, level in enumerate((0.2, 0.5, 0.8)):
        video = (level + 0.1 * torch.rand(9, 3, 32, 32)).clamp(0, 1)
        write_mp4(tmp_path / f"real/{number}.mp4", video, 4)
    metric = (
        f"evaluation.metrics=[{{name: 'my_metrics:Frechet', real: '{tmp_path / 'real'}'}}, {{name: my_rewards:Speed}}]"
    )
    runs = [trained("one", metric), trained("two", metric, "train.seed=1")]
    for run in runs:
        lines = [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]
        found = [line["figures"]["Frechet"] for line in lines if line["kind"] == "evaluation"]
        assert len(found) == 2
        assert min(found) > 0
        assert ">Frechet</th>" in run.folder.report.read_text()
        for step in (0, 2):
            records = [json.loads(line) for line in run.folder.evaluation(step).read_text().splitlines()]
            assert [record["index"] for record in records] == [0, 1, 2]
            assert all(set(record["figures"]) == {"Speed"} for record in records)

    page = tmp_path / "comparison"
    assert main(["compare", str(runs[0].path), str(runs[1].path), "--out", str(page)]) == 0
    assert "Frechet" in capsys.readouterr().out
    assert "Frechet" in (page / "compare.html").read_text()

    assert (
        main(["evaluate", str(runs[0].path), "--trust-code", "--seeds", "1", "--out", str(tmp_path / "evaluated")]) == 0
    )
    assert "Frechet" in capsys.readouterr().out
    points = json.loads((tmp_path / "evaluated/evaluation.json").read_text())["points"]
    kept = [one.figures["Frechet"] for one in runs[0].evaluations]
    assert [point["figures"]["Frechet"] for point in points] == pytest.approx(kept, rel=1e-4)


# ---- an algorithm, and guidance ----


def test_an_algorithm_with_a_setting(trained, refused):
    one = "adapter.denoisers=[transformer_2]"
    run = trained("target", "algorithm={name: 'my_algorithm:Target', target: 0.25}", one)
    assert yaml.safe_load(run.folder.recipe.read_text())["algorithm"]["target"] == 0.25
    line = json.loads(run.folder.metrics.read_text().splitlines()[1])
    assert line["missed_by"] == pytest.approx(0.25 - line["reward"], abs=1e-6)
    assert "algorithm 'my_algorithm:Target' has no option 'aim': known: target" in refused(
        "algorithm={name: 'my_algorithm:Target', aim: 0.25}"
    )


def test_guidance_with_an_option(trained, refused):
    plain = trained("scaled", "train.steps=1")
    same = trained("same", "train.steps=1", "sampling.guidance={name: 'my_guidance:Rescaled', scale: 3.0, rescale: 0}")
    own = trained("own", "train.steps=1", "sampling.guidance={name: 'my_guidance:Rescaled', scale: 3.0}")
    assert same.train[0].reward == pytest.approx(plain.train[0].reward, rel=1e-4)
    assert own.train[0].reward != pytest.approx(plain.train[0].reward, rel=1e-4)
    assert "guidance 'my_guidance:Rescaled' needs the option 'scale'" in refused(
        "sampling.guidance={name: 'my_guidance:Rescaled'}"
    )
