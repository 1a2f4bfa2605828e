"""LTX-Video as the page on models of one's own has it, against diffusers' pipeline on a tiny random checkpoint."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from opensora_factories import write_tokenizer
from vader.errors import UserError
from vader.models import load_model
from vader.nouns import VideoSize, as_prompts
from vader.sampling.videos import make_sampler, solver_of
from vader.sampling.walk import Walk
from vader.tools.check import check_model

SIZE = VideoSize(frames=9, height=32, width=64, fps=12)
PROMPTS = ["a red ball", "a b c"]


def tiny_pipeline(folder: Path) -> LTXPipeline:
    """Of random weights, saved in the release's layout; pixels are four latents wide, high and long."""
    torch.manual_seed(0)
    four, five = ((True, True, False, False), (1,) * 5)
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=five,
        decoder_layers_per_block=five,
        spatio_temporal_scaling=four,
        decoder_spatio_temporal_scaling=four,
        patch_size=1,
    )
    vae.latents_mean.normal_()
    vae.latents_std.uniform_(0.5, 2)
    write_tokenizer(folder / "tokenizer")
    pipe = LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=1024,
            max_image_seq_len=4096,
            shift_terminal=0.1,
        ),
        vae=vae.eval(),
        text_encoder=T5EncoderModel(
            T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        ).eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        transformer=LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=2,
            caption_channels=16,
        ).eval(),
    )
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> LTXPipeline:
    folder = tmp_path_factory.mktemp("ltx")
    pipe = tiny_pipeline(folder)
    pipe.folder = str(folder)
    return pipe


@pytest.fixture
def family(monkeypatch) -> str:
    """The page's second listing, as the module that it says to save."""
    page = Path(__file__).parents[1] / "docs" / "models" / "own.md"
    code = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)[1]
    module = types.ModuleType("my_ltx")
    monkeypatch.setitem(sys.modules, "my_ltx", module)
    exec(code, module.__dict__)
    return "my_ltx:LTXVideo"


class Fixed:
    def __init__(self, latents):
        self.latents = latents

    def draw(self, use):
        return self.latents


@torch.no_grad()
def test_it_samples_as_diffusers_does(pipe, family):
    model = load_model(family, pipe.folder)
    latents = torch.randn(2, *model.noise_shape(SIZE))
    theirs = pipe(
        PROMPTS,
        latents=latents.flatten(2).transpose(1, 2),
        num_frames=SIZE.frames,
        height=SIZE.height,
        width=SIZE.width,
        frame_rate=SIZE.fps,
        num_inference_steps=5,
        guidance_scale=3.0,
        output_type="pt",
    ).frames
    walk = Walk(make_sampler(model, SIZE, 5, 3.0), model.encode(as_prompts(PROMPTS), SIZE), Fixed(latents))
    ours = model.decode(walk.frozen(len(walk)).latents)
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_it_keeps_the_contract(pipe, family):
    assert not [
        check for check in check_model(load_model(family, pipe.folder), VideoSize(5, 16, 16)) if not check.passed
    ]


def test_its_limits_are_one_line(pipe, family):
    model = load_model(family, pipe.folder)
    with pytest.raises(UserError, match=r"makes 4n \+ 1 frames, height and width multiples of 4"):
        model.noise_shape(VideoSize(8, 16, 16))
    with pytest.raises(UserError, match="cannot be sampled by ddim"):
        solver_of(model, kind="ddim")
