"""Trackers are shown the videos of every evaluation."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from toy_runs import toy_recipe
from vader.evaluation.held_out import VideoScore
from vader.files.video import gif_bytes
from vader.nouns import Clip, Prompt
from vader.training.trackers import show_videos
from vader.training.trainer import train


def images_of(folder: Path) -> dict[tuple[str, int], tuple[str, bytes]]:
    """What TensorBoard's files hold of images: by tag and step, the name that is shown and the file."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = {}
    for path in folder.rglob("events.out.tfevents.*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "images":
                    found[value.tag, event.step] = value.metadata.display_name, value.tensor.string_val[2]
    return found


def test_tensorboard_plays_the_samples_of_each_evaluation(tmp_path):
    train(toy_recipe("train.trackers=[tensorboard]", "evaluation.shown=2"), tmp_path)
    found = images_of(tmp_path)
    assert found.keys() == {(f"samples/{i:03d}", step) for i in (0, 1) for step in (0, 3, 6)}
    name, file = found["samples/001", 6]
    assert name.split(" (reward ")[0] != found["samples/000", 6][0].split(" (reward ")[0]
    with Image.open(io.BytesIO(file)) as image:
        assert (image.format, image.n_frames, image.info["duration"], image.info["loop"]) == ("GIF", 4, 250, 0)


def test_wandb_gets_the_files_with_their_prompts(monkeypatch):
    made, logged = [], []

    class Video:
        def __init__(self, *arguments: object, **options: object) -> None:
            made.append((arguments, options))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Video=Video))
    tracker = SimpleNamespace(name="wandb", log=lambda values, step: logged.append((list(values), step)))
    videos = [VideoScore(i, Prompt(f"prompt {i}"), 0.5 * i, {}, {}, clip()) for i in (0, 7)]
    show_videos(SimpleNamespace(trackers=[tracker]), videos, Path("samples"), fps=8, step=20)
    assert made == [
        (("samples/000.mp4",), {"caption": "prompt 0 (reward 0.000)", "format": "mp4"}),
        (("samples/007.mp4",), {"caption": "prompt 7 (reward 3.500)", "format": "mp4"}),
    ]
    assert logged == [(["samples/000", "samples/007"], 20)]


def clip() -> Clip:
    return Clip.whole(torch.rand(1, 2, 3, 8, 8), 8.0)


@pytest.mark.parametrize(("fps", "milliseconds"), [(4, 250), (24, 40), (120, 20)])
def test_a_gif_shows_every_frame_as_long_as_the_video_does(fps, milliseconds):
    levels = torch.tensor([0.0, 0.5, 1.0])
    frames = levels[:, None, None, None].expand(3, 3, 8, 8)
    with Image.open(io.BytesIO(gif_bytes(frames, fps))) as image:
        assert image.size == (256, 256)
        found = []
        for i in range(image.n_frames):
            image.seek(i)
            assert image.info["duration"] == pytest.approx(milliseconds, abs=10)  # a GIF counts in hundredths
            found.append(int(np.array(image.convert("RGB")).mean()))
    assert found == pytest.approx([0, 128, 255], abs=2)
