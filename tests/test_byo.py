"""A model, a reward and prompts of one's own go the whole way: check, train, report, export, sample, score."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vader.cli import main
from vader.files.video import read_video
from vader.runs.reader import read_run

MODEL = '''
import torch
from torch import nn

from vader import Condition, VideoModel

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


class Velocity(nn.Module):
    """Mixes the channels of each place and time, told the time and a colour."""

    def __init__(self):
        super().__init__()
        self.into = nn.Linear(8, 16)
        self.out = nn.Linear(16, 4)

    def forward(self, latents, time, colour):
        places = latents.permute(0, 2, 3, 4, 1)
        told = torch.cat([colour, (time / 1000).expand(len(colour), 1)], dim=1)[:, None, None, None]
        hidden = self.into(torch.cat([places, told.expand(*places.shape[:-1], -1)], dim=-1))
        return self.out(nn.functional.silu(hidden)).permute(0, 4, 1, 2, 3)


class Studio(VideoModel):
    family = "studio"
    lora_targets = ("into", "out")

    scheduler = FLOW

    def __init__(self, seed, dtype):
        torch.manual_seed(seed)
        self.denoisers = {"transformer": Velocity().to(dtype).eval().requires_grad_(False)}
        self.decoder = nn.Conv2d(4, 3, 1).to(dtype).eval().requires_grad_(False)

    @classmethod
    def load(cls, checkpoint, *, dtype=torch.float32):
        return cls(int(checkpoint), dtype)

    def networks(self):
        return {**self.denoisers, "vae": self.decoder}

    def encode(self, prompts, size, images=None):
        cond = self.colours([prompt.text for prompt in prompts])
        return Condition({"colour": cond}, {"colour": self.colours([prompt.negative for prompt in prompts])})

    def colours(self, texts):
        names = ("red", "green", "blue")
        return torch.tensor([[float(name in text) for name in names] for text in texts], device=self.device)

    def noise_shape(self, size):
        return (4, size.frames, size.height, size.width)

    def denoise(self, latents, time, inputs):
        return self.denoiser(latents, time.to(latents), inputs["colour"].to(latents))

    def decode_unclamped(self, latents, frames=None):
        images = latents.permute(0, 2, 1, 3, 4)
        if frames is not None:
            images = torch.stack([video[chosen] for video, chosen in zip(images, frames)])
        return 0.5 + 0.1 * self.decoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])
'''

REWARD = '''
from vader import FrameReward, Reward


class Like(FrameReward):
    """One minus the squared distance to a grey level."""

    def __init__(self, level: float = 0.5):
        super().__init__()
        self.level = level

    def score_frames(self, images, prompts):
        return 1 - (images - self.level).square().mean(dim=(1, 2, 3))


class Calm(Reward):
    """Little change from frame to frame."""

    def score(self, clip, prompts):
        return -(clip.frames[:, 1:] - clip.frames[:, :-1]).square().mean(dim=(1, 2, 3, 4))
'''

RECIPE = """
name: studio-calm
model: {family: "studio_model:Studio", checkpoint: "7"}
video: {frames: 4, height: 12, width: 16}
sampling: {steps: 3, guidance: 1.5}
rewards:
  - {name: "studio_rewards:Like", level: 0.8, sees: 2}
  - {name: "studio_rewards:Calm", weight: 0.5, sees: 2}
prompts: {train: "studio_prompts:train", test: test.txt}
optimizer: {lr: 0.02}
train: {steps: 12, batch: 2}
evaluation: {every: 6, videos: 4, shown: 2}
"""


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Path:
    """The folder of a user who has written everything but VADER."""
    folder = tmp_path_factory.mktemp("studio")
    (folder / "studio_model.py").write_text(MODEL)
    (folder / "studio_rewards.py").write_text(REWARD)
    (folder / "studio_prompts.py").write_text(
        "from vader import prompt_set\n"
        '@prompt_set\ndef train():\n    return ["a red sky", "green grass", "a blue sea"]\n'
    )
    (folder / "test.txt").write_text("# held out\nred earth\na blue bird\n")
    (folder / "studio.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(autouse=True)
def _inside(studio, monkeypatch):
    monkeypatch.chdir(studio)
    monkeypatch.setattr(sys, "path", sys.path.copy())


@pytest.fixture(scope="module")
def run(studio) -> Path:
    """The trained run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(studio)
        patch.setattr(sys, "path", sys.path.copy())
        assert main(["train", "studio.yaml"]) == 0
    return studio / "runs/studio-calm"


@pytest.mark.parametrize(
    "check",
    [
        ["reward", "studio_rewards:Like:level=0.3"],
        ["reward", "studio_rewards:Calm"],
        ["model", "studio_model:Studio:7", "--size", "4x12x16"],
    ],
    ids=lambda check: check[1],
)
def test_checks_pass(capsys, check):
    assert main(["check", *check]) == 0
    assert "FAIL" not in capsys.readouterr().out


def test_training_raises_the_reward(run):
    found = read_run(run)
    assert found.finished
    assert len(found.train) == 12
    assert set(found.evaluations[0].parts) == {"Like", "Calm"}
    assert found.evaluations[-1].reward > found.evaluations[0].reward + 0.01


def test_report_and_export(run, studio, capsys):
    (run / "report.html").unlink()
    assert main(["report", "runs/studio-calm"]) == 0
    assert "studio-calm" in (run / "report.html").read_text()
    capsys.readouterr()
    assert main(["export", "runs/studio-calm", "--adapter", "--out", "exported"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "exported/pytorch_lora_weights.safetensors",
        'into one of diffusers: transformer.load_lora_adapter("exported", '
        'weight_name="pytorch_lora_weights.safetensors")',
        'into any network: vader.load_into(transformer, "exported")',
    ]
    weights = load_file(studio / "exported/pytorch_lora_weights.safetensors")
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == {
        "transformer.into.lora_A.weight": (16, 8),
        "transformer.into.lora_B.weight": (16, 16),
        "transformer.out.lora_A.weight": (16, 16),
        "transformer.out.lora_B.weight": (4, 16),
    }
    capsys.readouterr()
    assert main(["export", "runs/studio-calm", "--merged", "--out", "merged", "--trust-code"]) == 2
    assert "export the adapter instead" in capsys.readouterr().err


def test_sampling_with_the_adapter_gives_the_runs_own_videos(run, studio):
    """Held-out videos are sampled from the run's seed and the prompt's place, as `vader sample` does."""
    arguments = ["sample", "--file", "test.txt", "--recipe", "studio.yaml", "--adapter", "runs/studio-calm/adapter"]
    assert main([*arguments, "--out", "sampled"]) == 0
    for name, place in (("000-red-earth.mp4", "000.mp4"), ("001-a-blue-bird.mp4", "001.mp4")):
        sampled = read_video(studio / "sampled" / name)
        assert (sampled - read_video(run / "samples/step-000012" / place)).abs().max() < 0.02
        assert (sampled - read_video(run / "samples/step-000000" / place)).abs().max() > 0.04


def test_scoring_the_samples(run, capsys):
    videos = [f"runs/studio-calm/samples/step-000012/{name}.mp4" for name in ("000", "001")]
    assert main(["score", *videos, "--reward", "studio_rewards:Like:level=0.8", "--json"]) == 0
    assert torch.tensor(read_run(run).evaluations[-1].parts["Like"]) > 0.5
    assert '"Like"' in capsys.readouterr().out


def test_an_algorithm_of_ones_own(studio, capsys):
    (studio / "studio_algorithms.py").write_text(
        "from vader.algorithms.reward_gradient import RewardGradient\n"
        "class Twice(RewardGradient):\n"
        '    """Two optimiser steps on each batch."""\n'
        "    def step(self, engine, batch):\n"
        "        super().step(engine, batch)\n"
        "        return super().step(engine, batch)\n"
    )
    assert main(["train", "studio.yaml", "name=twice", "algorithm.name=studio_algorithms:Twice", "train.steps=2"]) == 0
    assert "runs/twice/report.html" in capsys.readouterr().out
