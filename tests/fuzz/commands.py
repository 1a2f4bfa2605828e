"""Command lines: any command with any of its options, given words, numbers, paths and things that are no files.

Nothing that is right as a whole and takes long is among them: training is a dry run, samples are small.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

from fuzz.harness import Case
from vader.files.video import write_mp4

WORDS = (
    "", " ", "x", "-", "---", "-x", "--x", "=", "a=b", ":", "a:b", "a:b:c", "tiny", "tiny:x", "modelscope:tiny",
    "os:abort", "0", "1", "-1", "1e9", "nan", "inf", "99999999999999999999", "9" * 5_000, "0.5", "'", '"', "é", "😀",
    "\udcff", "a\nb", "\x1b[31m", "[red]x[/red]", "[/]", "~", "~nouser", "~nouser/x", ".", "/", "/dev/null",
    "/dev/zero", "/dev/full", "/proc/self/mem", "/root/../etc", "a" * 300, "a/" * 3_000, "x" * 100_000, "pipe",
    "pipe.txt", "loop", "loop.txt", "folder", "empty.txt", "file.txt", "clip.mp4", "broken.mp4", "device.txt", "run",
    "run/recipe.yaml", "file.txt/x", "no/such/place", "*", "?", "a|b", "$(x)", "%00",
)  # fmt: skip
PATHS = ("--out", "--runs", "--adapter", "--page", "--image", "--file", "--prompts", "--recipe")
NUMBERS = (
    "--seed", "--steps", "--guidance", "--frames", "--height", "--width", "--fps", "--batch", "--videos", "--seeds",
    "--max-frames", "--jobs",
)  # fmt: skip
OTHERS = (
    "--model", "--negative", "--metric", "--reward", "--prompt", "--scale", "--only", "--size", "--json", "--merged",
    "--dry-run", "--trust-code", "--help", "--debug", "--version",
)  # fmt: skip
COMMANDS = {
    "train": (["train", "tiny"], ["--runs"], ["--dry-run"]),
    "sample": (["sample", "a dog"],
               ["--file", "--image", "--recipe", "--model", "--adapter", "--out", *NUMBERS, "--negative"],
               ["--steps", "1", "--frames", "2", "--height", "8", "--width", "8"]),
    "score": (["score", "clip.mp4"], ["--prompt", "--prompts", "--max-frames", "--json", "--reward"],
              ["--reward", "compression"]),
    "evaluate": (["evaluate"], ["--adapter", "--recipe", "--model", "--prompts", "--metric", "--out"],
                 ["--videos", "0"]),
    "report": (["report"], [], []),
    "compare": (["compare"], ["--out"], []),
    "export": (["export"], ["--out", "--merged", "--adapter"], []),
    "list": (["list"], [], []),
    "check": (["check", "reward"], [], []),
    "check model": (["check", "model"], ["--size"], []),
    "reproduce": (["reproduce", "none"], ["--scale", "--only", "--seeds", "--jobs", "--out", "--page"], []),
    "tinyworld": (["tinyworld", "build", "none"], ["--out"], []),
    "show": (["tinyworld", "show"], ["--out"], []),
    "": ([], [], []),
}  # fmt: skip


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    rng = random.Random(f"commands {seed}")
    clip = folder / "clip.mp4"
    if not clip.exists():
        import torch

        write_mp4(clip, torch.rand(2, 3, 16, 16), 8)
    for _ in range(count):
        argv = _argv(rng)
        name = " ".join(word if len(word) < 40 else f"{word[:10]}..." for word in argv)
        statuses = (0, 1, 2) if argv[:1] in (["score"], ["check"]) else (0, 2)
        yield Case(ascii(name), argv, _maker(clip), statuses, 3 if argv[:1] == ["score"] else 1)


def _argv(rng: random.Random) -> list[str]:
    words, options, always = COMMANDS[rng.choice(list(COMMANDS))]
    given = [*words, *(rng.choice(WORDS) for _ in range(rng.choice((0, 0, 1, 1, 2))))]
    if words and rng.random() < 0.3 and words[0] not in ("reproduce", "tinyworld", "train"):
        given[-1] = rng.choice(WORDS)
    for _ in range(rng.choice((0, 1, 1, 2))):
        name = rng.choice(options or OTHERS) if rng.random() < 0.9 else rng.choice((*PATHS, *NUMBERS, *OTHERS))
        given += [name] if rng.random() < 0.05 and not always else [name, rng.choice(WORDS)]
    return [word.replace("\0", "") for word in [*given, *always]]


def _maker(clip: Path):
    def make(place: Path) -> None:
        for name in ("pipe", "pipe.txt"):
            os.mkfifo(place / name)
        for name in ("loop", "loop.txt"):
            (place / name).symlink_to(name)
        (place / "device.txt").symlink_to("/dev/zero")
        (place / "folder").mkdir()
        (place / "run").mkdir()
        (place / "run/recipe.yaml").write_text("name: x\n")
        (place / "empty.txt").touch()
        (place / "file.txt").write_text("a dog\n")
        (place / "broken.mp4").write_bytes(clip.read_bytes()[:300])
        (place / "clip.mp4").write_bytes(clip.read_bytes())

    return make
