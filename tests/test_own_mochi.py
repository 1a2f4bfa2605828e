"""Mochi 1 as the page on models of one's own has it, against diffusers' pipeline on a tiny random checkpoint."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from factories import Fixed
from opensora_factories import write_tokenizer
from vader.errors import UserError
from vader.models import load_model
from vader.networks.recompute import Recomputed
from vader.nouns import Prompt, VideoSize
from vader.sampling.videos import make_sampler, solver_of
from vader.sampling.walk import Walk
from vader.tools.check import check_model

SIZE = VideoSize(frames=7, height=16, width=32, fps=12)
PROMPTS = [Prompt("a red ball", negative="a b"), Prompt("a b c")]


def make_tiny_mochi(folder: Path) -> None:
    """Of random weights, saved in the release's layout."""
    torch.manual_seed(0)
    channels = (32, 32, 32, 32)  # of which norms make 32 groups
    vae = AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        layers_per_block=(1,) * 5,
        latents_mean=[0.1 * i for i in range(12)],
        latents_std=[0.5 + 0.1 * i for i in range(12)],
    )
    write_tokenizer(folder / "tokenizer")
    MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=vae,
        text_encoder=T5EncoderModel(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        transformer=MochiTransformer3DModel(
            in_channels=12,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            pooled_projection_dim=16,
            text_embed_dim=16,
            time_embed_dim=4,
        ),
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    made = tmp_path_factory.mktemp("mochi")
    make_tiny_mochi(made)
    return str(made)


@pytest.fixture
def family(monkeypatch, tmp_path) -> str:
    """The page's second listing, as the module that it says to save."""
    page = Path(__file__).parents[1] / "docs" / "models" / "own.md"
    code = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)[1]
    module = types.ModuleType("my_mochi")
    monkeypatch.setitem(sys.modules, "my_mochi", module)
    monkeypatch.setenv("VADER_CACHE", str(tmp_path))
    exec(code, module.__dict__)
    return "my_mochi:Mochi"


@torch.no_grad()
def test_it_samples_as_diffusers_does(folder, family):
    model, pipe = load_model(family, folder), MochiPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(2, *model.noise_shape(SIZE))
    theirs = pipe(
        [one.text for one in PROMPTS],
        [one.negative for one in PROMPTS],
        latents=latents,
        num_frames=SIZE.frames,
        height=SIZE.height,
        width=SIZE.width,
        num_inference_steps=5,
        guidance_scale=3.0,
        output_type="pt",
    ).frames
    walk = Walk(make_sampler(model, SIZE, 5, 3.0), model.encode(PROMPTS, SIZE), Fixed(latents))
    ours = model.decode(walk.frozen(len(walk)).latents)
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_it_keeps_the_contract(folder, family):
    model = load_model(family, folder)
    assert not [check for check in check_model(model) if not check.passed]
    model.recompute("vae", model.vae, "blocks")
    assert isinstance(model.vae.decoder.up_blocks[0].resnets[0].forward, Recomputed)


def test_its_limits_are_one_line(folder, family):
    model = load_model(family, folder)
    with pytest.raises(UserError, match=r"makes 6n \+ 1 frames, height and width multiples of 16"):
        model.noise_shape(VideoSize(8, 16, 16))
    with pytest.raises(UserError, match="cannot be sampled by ddim"):
        solver_of(model, kind="ddim")
