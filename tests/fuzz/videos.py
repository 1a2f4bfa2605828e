"""Spoiled videos, given to `vader score`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from fuzz.harness import Case
from fuzz.mutations import spoiled, spoiled_node

CODECS = {
    "mp4": ("libx264", "yuv420p"),
    "mkv": ("libx264", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "gif": ("gif", "rgb8"),
}
COMMENTS = (
    "vader: 16x16 pixels enlarged by 2", "vader: 0x0 pixels enlarged by 0", "vader: 1x1 pixels enlarged by 99999999999",
    "vader: 32x32 pixels enlarged by 1", "vader: 16x16 pixels enlarged by 0", "\u2212" * 300,
)  # fmt: skip


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    rng = random.Random(f"videos {seed}")
    whole = _whole(folder)
    for number in range(count):
        suffix = rng.choice([*CODECS, "mp4", "comment"])
        name = f"video.{'mp4' if suffix == 'comment' else suffix}"
        argv = ["score", rng.choice((name, ".")), "--reward", "aesthetic:checkpoint=tiny"]
        argv += rng.choice(([], ["--max-frames", "2"], ["--json"]))
        yield Case(f"{suffix} ({seed} {number})", argv, _maker(whole, suffix, name, f"{seed} {number}"), (0, 1, 2))


def _maker(whole: dict[str, bytes], suffix: str, name: str, seed: str):
    def make(folder: Path) -> None:
        rng = random.Random(seed)
        if suffix == "comment":
            _write(folder / name, "mp4", rng.choice(COMMENTS), frames=rng.choice((1, 3)))
        elif rng.random() < 0.08:
            spoiled_node(rng)[1](folder / name)
        else:
            content = whole[suffix]
            for _ in range(rng.choice((1, 1, 4, 16))):
                content = spoiled(content, rng)[1]
            (folder / name).write_bytes(content)

    return make


def _whole(folder: Path) -> dict[str, bytes]:
    found = {}
    for suffix in CODECS:
        path = folder / f"whole-video.{suffix}"
        if not path.exists():
            _write(path, suffix)
        found[suffix] = path.read_bytes()
    return found


def _write(path: Path, suffix: str, comment: str = "", frames: int = 6) -> None:
    codec, pixels = CODECS[suffix]
    noise = np.random.default_rng(0).integers(0, 255, (frames, 32, 32, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        if comment:
            container.metadata["comment"] = comment
        stream = container.add_stream(codec, rate=Fraction(8))
        stream.height, stream.width, stream.pix_fmt = 32, 32, pixels
        for image in noise:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
