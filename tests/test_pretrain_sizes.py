"""The stage of several sizes: clips of each, and a few steps that leave a folder which loads under its own name."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL

from vader.files.hub import resolve, tiny_weights
from vader.pretrain import modelscope, modelscope_sizes
from vader.pretrain.loop import Schedule, generator_for

BASE = tiny_weights("modelscope")


def test_clips_come_in_every_size_with_latents_of_unit_variance():
    vae = AutoencoderKL.from_pretrained(BASE / "vae", torch_dtype=torch.float32)
    found = [modelscope_sizes.clips(vae, generator_for(0, step)) for step in range(12)]
    assert {latents.shape[-1] * 4: len(latents) for latents, _ in found} == modelscope_sizes.BATCHES
    assert all(0.6 < latents.std() < 1.4 for latents, _ in found)
    assert all(len(indices) == len(latents) for latents, indices in found)


def test_a_few_steps_leave_a_folder_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(modelscope_sizes, "BATCHES", {24: 2})
    monkeypatch.setattr(modelscope, "SAMPLING_STEPS", 2)
    short = Schedule(steps=2, lr=1e-3, warmup=1, cooldown=1)
    quality = modelscope_sizes.build(tmp_path / "modelscope-sizes", tmp_path, BASE, short, judged=2)
    assert {"shape_24", "motion_24", "vividness_24"} <= quality.keys()
    monkeypatch.setattr("vader.files.hub.TINY_WEIGHTS", tmp_path)
    assert resolve("tiny/modelscope-sizes", "modelscope") == str(tmp_path / "modelscope-sizes")
