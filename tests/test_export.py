"""What leaves the package loads without it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from factories import make_tiny_modelscope
from opensora_factories import make_release, make_tiny_opensora
from vader.cli import main
from vader.errors import UserError
from vader.models import load_model
from vader.models.videocrafter.release import schedule_buffers
from vader.networks.adapter import adapter_parameters, adapters_state, add_adapter, add_adapters, parameters_of
from vader.networks.adapter_files import FILE_NAME, load_adapter, read_metadata, save_adapter, save_adapters
from vader.nouns import VideoSize, as_prompts
from vader.sampling import make_sampler
from vader.sampling.guidance import Passes
from vader.tools import export
from videocrafter_factories import LEVELS, make_tiny_videocrafter

PLAIN_DIFFUSERS = """
import sys, torch
from diffusers import TextToVideoSDPipeline
from safetensors.torch import load_file, save_file
folder, latents, out = sys.argv[1:]
pipe = TextToVideoSDPipeline.from_pretrained(folder)
video = pipe(["a red ball"], latents=load_file(latents)["latents"], num_inference_steps=4, guidance_scale=5.0,
             height=16, width=16, output_type="pt").frames
save_file({"video": video.contiguous()}, out)
"""
ALONE = "assert not [name for name in sys.modules if name.split('.')[0] == 'vader']"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_modelscope(tmp_path_factory.mktemp("modelscope") / "model")


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    unet = add_adapter(load_model("modelscope", str(folder)).denoiser, ("to_q", "to_v"), rank=4, alpha=8)
    for parameter in adapter_parameters(unet):
        parameter.data.normal_(std=0.2)
    out = tmp_path_factory.mktemp("adapter")
    save_adapter(unet, out, "unet", {"checkpoint": "tiny", "family": "modelscope"})
    return out


@torch.no_grad()
def sample(model, latents):
    size = VideoSize(3, 16, 16)
    sampler, condition = make_sampler(model, size, 4, 5.0), model.encode(as_prompts(["a red ball"]), size)
    for here, there in zip(sampler.schedule.starts, sampler.schedule.ends, strict=True):
        prediction = sampler.guidance(Passes(model, latents, torch.tensor(here.time), condition))
        latents = sampler.solver.step(latents, prediction, here, there).next
    return model.decode(latents)


def here(words):
    """In this process, in which diffusers' classes are its own too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["plain.py", *words])
        names = {}
        exec(PLAIN_DIFFUSERS, names)
    parts = [part for network in names["pipe"].components.values() if isinstance(network, nn.Module)
             for part in network.modules()]  # fmt: skip
    assert not [part for part in parts if type(part).__module__.startswith("vader")]


def alone(words):
    """In a process that has nothing of the package; most of its time is that of importing diffusers."""
    subprocess.run([sys.executable, "-c", PLAIN_DIFFUSERS + ALONE, *words], check=True, capture_output=True)


@pytest.mark.parametrize("run_plain", [here, pytest.param(alone, marks=pytest.mark.rare)])
def test_the_merged_export_gives_the_same_video_in_plain_diffusers(folder, adapter, tmp_path, run_plain):
    model = load_model("modelscope", str(folder))
    latents = torch.randn(1, *model.noise_shape(VideoSize(3, 16, 16)))
    base = sample(model, latents)
    load_adapter(model.denoiser, adapter)
    expected = sample(model, latents)
    assert (expected - base).abs().max() > 0.01

    out = export.export_merged(load_model("modelscope", str(folder)), adapter, tmp_path / "merged")
    save_file({"latents": latents}, tmp_path / "latents.safetensors")
    run_plain([str(out), str(tmp_path / "latents.safetensors"), str(tmp_path / "video")])
    torch.testing.assert_close(load_file(tmp_path / "video")["video"], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(sample(load_model("modelscope", str(out)), latents), expected, atol=1e-4, rtol=0)


def test_the_merged_export_has_the_files_of_a_release(folder, adapter, tmp_path):
    out = export.export_merged(load_model("modelscope", str(folder)), adapter, tmp_path / "merged")
    for original in folder.rglob("*"):
        if original.is_file() and original.name != "special_tokens_map.json":
            assert (out / original.relative_to(folder)).is_file(), original.name
    vocabularies = [json.loads((root / "tokenizer/vocab.json").read_text()) for root in (out, folder)]
    merges = [(root / "tokenizer/merges.txt").read_text().splitlines()[1:] for root in (out, folder)]
    assert vocabularies[0] == vocabularies[1]
    assert merges[0] == merges[1]


VIDEOCRAFTER_RUN = """
name: crafted
model: {{family: videocrafter, checkpoint: {checkpoint}}}
video: {{frames: 2, height: 16, width: 16, fps: 24}}
sampling: {{steps: 2, guidance: 3.0}}
rewards: [{{name: "toys:Warmth"}}]
prompts: {{train: {prompts}, test: {prompts}}}
algorithm: {{name: reward_gradient, policy: {{name: last, k: 1}}}}
adapter: {{rank: 4, alpha: 8}}
optimizer: {{lr: 0.05}}
train: {{steps: 1, batch: 2}}
evaluation: {{videos: 2, shown: 1}}
"""


@pytest.fixture(scope="module")
def crafted(tmp_path_factory):
    """A base VideoCrafter2 and a run that trained an adapter of it, from the command line."""
    root = tmp_path_factory.mktemp("videocrafter")
    base = make_tiny_videocrafter(root / "base")
    (root / "prompts.txt").write_text("a red ball\nblue\n")
    (root / "crafted.yaml").write_text(VIDEOCRAFTER_RUN.format(checkpoint=base, prompts=root / "prompts.txt"))
    assert main(["train", str(root / "crafted.yaml"), "--runs", str(root)]) == 0
    return base, root / "crafted"


def test_a_merged_videocrafter_is_a_released_file_with_the_same_videos(crafted, tmp_path):
    base, run = crafted
    assert main(["export", str(run), "--merged", "--trust-code", "--out", str(tmp_path / "merged")]) == 0
    adapted, plain = (load_model("videocrafter", str(base)) for _ in range(2))
    load_adapter(adapted.denoiser, run / "adapter")
    latents = torch.randn(1, *adapted.noise_shape(VideoSize(3, 16, 16)))
    expected, merged = sample(adapted, latents), load_model("videocrafter", str(tmp_path / "merged" / "model.ckpt"))
    assert (expected - sample(plain, latents)).abs().max() > 0.01
    torch.testing.assert_close(sample(merged, latents), expected, atol=1e-4, rtol=0)


def test_a_merged_videocrafter_differs_from_its_base_where_the_adapter_is(crafted, tmp_path):
    """What no LoRA layer changes is the base's, bit by bit; tables that the levels give, to float32's rounding."""
    base, run = crafted
    out = export.export_merged(load_model("videocrafter", str(base)), run / "adapter", tmp_path / "merged")
    files = [torch.load(folder / "model.ckpt", weights_only=True) for folder in (base, out)]
    before, after = (file["state_dict"] for file in files)
    assert files[0]["vader"] == files[1]["vader"]
    assert {name: (w.shape, w.dtype) for name, w in before.items()} == {n: (w.shape, w.dtype) for n, w in after.items()}
    tables = schedule_buffers(LEVELS).keys()
    for name in tables:
        torch.testing.assert_close(after[name], before[name], rtol=1e-3, atol=1e-6)
    changed = [name for name in before.keys() - tables if not before[name].equal(after[name])]
    assert after["alphas_cumprod"].equal(before["alphas_cumprod"])
    assert len(changed) == len(load_file(run / "adapter" / FILE_NAME)) / 2
    assert all(name.endswith(("to_q.weight", "to_k.weight", "to_v.weight")) for name in changed)


def test_a_trained_adapter_says_what_it_is(crafted):
    base, run = crafted
    said = read_metadata(run / "adapter")
    assert said["checkpoint"] == str(base)
    assert (said["family"], said["recipe"], said["rank"], said["alpha"]) == ("videocrafter", "crafted", 4, 8)


@torch.no_grad()
def velocity(model, latents):
    condition = model.encode(as_prompts(["a red ball"]), VideoSize(17, 32, 32))
    return model.denoise(latents, torch.tensor(500.0), condition.cond)


@pytest.fixture
def opensora(tmp_path):
    """A folder of all parts and, for it, a trained adapter."""
    base = make_tiny_opensora(tmp_path / "base")
    transformer = add_adapter(load_model("opensora", str(base)).denoiser, ("qkv",), rank=4)
    for parameter in adapter_parameters(transformer):
        parameter.data.normal_(std=0.2)
    return base, save_adapter(transformer, tmp_path / "adapter", "transformer", {})


def exported_opensora(model, adapter, out):
    """The merged export, and what the adapted model predicts, and the base."""
    latents = torch.randn(1, *model.noise_shape(VideoSize(17, 32, 32)))
    before = velocity(model, latents)
    load_adapter(model.denoiser, adapter)
    expected = velocity(model, latents)
    assert (expected - before).abs().max() > 0.01
    return export.export_merged(model, adapter, out), latents, expected


def test_a_merged_opensora_is_a_checkpoint_of_all_its_parts(opensora, tmp_path):
    base, adapter = opensora
    out, latents, expected = exported_opensora(load_model("opensora", str(base)), adapter, tmp_path / "merged")
    again = load_model("opensora", str(out))
    torch.testing.assert_close(velocity(again, latents), expected, atol=1e-4, rtol=1e-4)
    files = {path.relative_to(base) for path in base.rglob("*") if path.is_file()}
    assert {path.relative_to(out) for path in out.rglob("*") if path.is_file()} == files | {
        Path("scheduler/scheduler_config.json")
    }
    assert dict(again.scheduler) == dict(load_model("opensora", str(base)).scheduler)
    for name in ("vae/model.safetensors", "text_encoder/model.safetensors"):
        weights, before = load_file(out / name), load_file(base / name)
        assert all(weights[key].equal(before[key]) for key in before)


def test_of_a_release_the_merged_transformer_takes_the_releases_place(opensora, tmp_path):
    release = make_release(tmp_path / "release")
    checkpoint, others = release.pop("checkpoint"), release
    model = load_model("opensora", checkpoint, options=others)
    out, latents, expected = exported_opensora(model, opensora[1], tmp_path / "merged")
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    weights, before = load_file(out / "model.safetensors"), load_file(f"{checkpoint}/model.safetensors")
    assert {name: w.shape for name, w in weights.items()} == {name: w.shape for name, w in before.items()}
    merged = load_model("opensora", str(out), options=others)
    torch.testing.assert_close(velocity(merged, latents), expected, atol=1e-4, rtol=1e-4)


def test_the_adapter_export_is_the_file(folder, adapter, tmp_path):
    (copy,) = export.export_adapter(adapter, tmp_path / "out")
    assert copy.read_bytes() == (adapter / FILE_NAME).read_bytes()


class Experts:
    """What an export asks of a model, of two experts that are one layer each."""

    family = ""

    def __init__(self) -> None:
        torch.manual_seed(0)
        names = ("transformer", "transformer_2")
        self.denoisers = {name: nn.Sequential(nn.Linear(4, 4)).requires_grad_(False) for name in names}

    def networks(self):
        return self.denoisers

    def exporter(self):
        return lambda out: save_file(self.weights(), out / "model.safetensors")

    def weights(self):
        return {name: denoiser[0].weight.data for name, denoiser in self.denoisers.items()}


def test_two_experts_are_exported_with_an_adapter_each(tmp_path):
    model, base = Experts(), Experts().weights()
    add_adapters(model.denoisers, ("0",), rank=2)
    for parameter in parameters_of(model.denoisers):
        parameter.data.normal_()
    states = adapters_state(model.denoisers)
    saved = save_adapters(model.denoisers, tmp_path / "adapter", {})
    copies = export.export_adapter(tmp_path / "adapter", tmp_path / "copy")
    assert [(copy.name, copy.read_bytes()) for copy in copies] == [(file.name, file.read_bytes()) for file in saved]
    merged = load_file(export.export_merged(Experts(), tmp_path / "adapter", tmp_path / "merged") / "model.safetensors")
    for name, state in states.items():
        update = state["0.lora_B.weight"] @ state["0.lora_A.weight"]
        torch.testing.assert_close(merged[name], base[name] + update)


def test_bad_exports_leave_with_one_line(folder, adapter, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no adapter at"):
        export.export_adapter(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="is not empty"):
        export.export_adapter(adapter, folder)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        export.export_adapter(adapter, tmp_path / "file" / "out")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(export.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(UserError, match="not enough disk"):
        export.export_merged(load_model("modelscope", str(folder)), adapter, tmp_path / "out")
