"""What leaves the package loads without it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from factories import make_tiny_modelscope
from vader import export
from vader.adapters import FILE_NAME, adapter_parameters, add_adapter, load_adapter, save_adapter
from vader.errors import UserError
from vader.models import Guidance, VideoSize, load_model

PLAIN_DIFFUSERS = """
import sys, torch
from diffusers import TextToVideoSDPipeline
from safetensors.torch import load_file, save_file
folder, latents, out = sys.argv[1:]
pipe = TextToVideoSDPipeline.from_pretrained(folder)
video = pipe(["a red ball"], latents=load_file(latents)["latents"], num_inference_steps=4, guidance_scale=5.0,
             height=16, width=16, output_type="pt").frames
assert not [name for name in sys.modules if name.split(".")[0] == "vader"]
save_file({"video": video.contiguous()}, out)
"""


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
    condition, schedule = model.encode(["a red ball"]), model.solver.schedule(4)
    for i in range(len(schedule)):
        prediction = model.predict(latents, schedule.times[i], condition, Guidance(5.0))
        latents = model.solver.step(schedule, i, latents, prediction).next
    return model.decode(latents)


def test_the_merged_export_gives_the_same_video_in_plain_diffusers(folder, adapter, tmp_path):
    model = load_model("modelscope", str(folder))
    latents = torch.randn(1, *model.noise_shape(VideoSize(3, 16, 16)))
    base = sample(model, latents)
    load_adapter(model.denoiser, adapter)
    expected = sample(model, latents)
    assert (expected - base).abs().max() > 0.01

    out = export.export_merged(load_model("modelscope", str(folder)), adapter, tmp_path / "merged")
    save_file({"latents": latents}, tmp_path / "latents.safetensors")
    command = [sys.executable, "-c", PLAIN_DIFFUSERS, out, tmp_path / "latents.safetensors", tmp_path / "video"]
    subprocess.run(command, check=True, capture_output=True)
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


def test_the_adapter_export_is_the_file(folder, adapter, tmp_path):
    copy = export.export_adapter(adapter, tmp_path / "out")
    assert copy.read_bytes() == (adapter / FILE_NAME).read_bytes()


def test_bad_exports_leave_with_one_line(folder, adapter, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no adapter at"):
        export.export_adapter(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="is not empty"):
        export.export_adapter(adapter, folder)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to folder"):
        export.export_adapter(adapter, tmp_path / "file" / "out")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(export.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(UserError, match="not enough disk"):
        export.export_merged(load_model("modelscope", str(folder)), adapter, tmp_path / "out")
