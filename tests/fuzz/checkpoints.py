"""The whole checkpoints whose copies are spoiled, and the cheapest command that loads each of them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))  # the tests' own factories

from transformers import BertTokenizer  # noqa: E402

from opensora_factories import write_tokenizer  # noqa: E402
from reward_factories import make_tiny_grounding_dino  # noqa: E402
from test_rewards_imagereward import WORDS, released  # noqa: E402
from vader.files.hub import TINY_WEIGHTS  # noqa: E402
from vader.files.open_clip import to_open_clip  # noqa: E402
from vader.files.video import write_mp4, write_png  # noqa: E402
from wan_factories import make_tiny_wan  # noqa: E402

OPENSORA_SIZE = ("--frames", "1", "--height", "32", "--width", "32")
WAN_SIZE = ("--frames", "5", "--height", "16", "--width", "16")
SMALL_SIZE = ("--frames", "2", "--height", "32", "--width", "32")


@dataclass(frozen=True)
class Checkpoint:
    """Files of one model, and `argv(source)`, the command that loads them from there; `indexed` is one that reads its
    `model_index.json`."""

    name: str
    source: Path
    argv: Callable[[str], list[str]]
    indexed: bool = False

    def files(self, *suffixes: str) -> list[str]:
        """The names of the files with these endings, relative to the source; of a single file, its own."""
        if self.source.is_file():
            return [self.source.name] if self.source.name.endswith(suffixes) else []
        found = [file for file in sorted(self.source.rglob("*")) if file.is_file() and file.name.endswith(suffixes)]
        names = [file.relative_to(self.source).as_posix() for file in found]
        return [name for name in names if name != "model_index.json" or self.indexed]

    def copied(self, place: Path, but: str) -> Path:
        """The checkpoint in `place`, made of links; the path of the one file that is left out."""
        top = place / self.source.name
        if self.source.is_file():
            return top
        for name in self.files(""):
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            if name != but:
                (top / name).symlink_to(self.source / name)
        return top / but


def checkpoints(folder: Path) -> list[Checkpoint]:
    """All of them; what the package does not hold is made in `folder`."""
    made = _made(folder)
    weights, bert, picture = TINY_WEIGHTS, made / "bert", str(made / "picture.png")

    def scored(reward: str) -> Callable[[str], list[str]]:
        told = ["--prompt", "a red book moving left"]
        return lambda source: ["score", str(made / "video.mp4"), "--reward", reward.format(source), *told]

    return [
        Checkpoint("modelscope", weights / "modelscope", lambda source: _sample("modelscope", source)),
        Checkpoint("svd", weights / "svd", lambda source: _sample("svd", source, "--image", picture)),
        Checkpoint("opensora", weights / "opensora", lambda source: _sample("opensora", source, size=OPENSORA_SIZE)),
        Checkpoint("videocrafter", weights / "videocrafter", lambda source: _sample("videocrafter", source)),
        Checkpoint("wan", made / "wan", lambda source: _sample("wan", source, size=WAN_SIZE), indexed=True),
        Checkpoint("hps", weights / "clip", scored("hps:checkpoint={}")),
        Checkpoint("aesthetic", weights / "clip", scored("aesthetic:head=tiny,checkpoint={}")),
        Checkpoint("detector", weights / "detector", scored("object_removal:target=circle,checkpoint={}")),
        Checkpoint("dino", made / "dino", scored("object_removal:target=book,size=32,checkpoint={}")),
        Checkpoint("actions", weights / "actions", scored("action:label=left,checkpoint={}")),
        Checkpoint("head", weights / "aesthetic_head.safetensors", scored("aesthetic:checkpoint=tiny,head={}")),
        Checkpoint("weather", made / "weather.pt", scored(f"weather:checkpoint={weights / 'clip'},head={{}}")),
        Checkpoint("vjepa", weights / "vjepa.safetensors", scored("vjepa:checkpoint={}")),
        Checkpoint("vjepa file", made / "vjepa.pth", scored("vjepa:heads=4,checkpoint={}")),
        Checkpoint("open_clip", made / "open_clip.pt", scored("hps:tokenizer=tiny,checkpoint={}")),
        Checkpoint("imagereward", made / "ImageReward.pt", scored(f"imagereward:tokenizer={bert},checkpoint={{}}")),
        Checkpoint("bert", bert, scored(f"imagereward:checkpoint={made}/ImageReward.pt,tokenizer={{}}")),
    ]


def _sample(family: str, source: str, *more: str, size: tuple[str, ...] = SMALL_SIZE) -> list[str]:
    prompt = [] if "--image" in more else ["a red circle"]
    return ["sample", *prompt, "--model", f"{family}:{source}", *size, "--steps", "1", "--out", "videos", *more]


def _made(folder: Path) -> Path:
    """What the package does not hold, made once: a video, a picture, and rewards in their released formats."""
    made = folder / "whole"
    if made.exists():
        return made
    made.mkdir(parents=True)
    frames = torch.linspace(0, 1, 8 * 3 * 32 * 32).reshape(8, 3, 32, 32)
    write_mp4(made / "video.mp4", frames, 8)
    write_png(made / "picture.png", Image.new("RGB", (40, 32), (200, 30, 10)))
    make_tiny_grounding_dino(made / "dino")
    make_tiny_wan(made / "wan", experts=True)
    shutil.rmtree(made / "wan" / "tokenizer")  # as tokenizer.json: what spoils that makes its library panic, at length
    write_tokenizer(made / "wan" / "tokenizer")
    head = load_file(TINY_WEIGHTS / "aesthetic_head.safetensors")
    torch.save(head, made / "weather.pt")
    torch.save(_jepa(load_file(TINY_WEIGHTS / "vjepa.safetensors")), made / "vjepa.pth")
    clip = load_file(TINY_WEIGHTS / "clip" / "model.safetensors")
    torch.save({"state_dict": to_open_clip(clip)}, made / "open_clip.pt")
    (made / "bert").mkdir()
    (made / "bert" / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer.from_pretrained(made / "bert").save_pretrained(made / "bert")
    torch.save(released(), made / "ImageReward.pt")
    return made


def _jepa(flat: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The release's nesting of the same weights."""
    nested: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in flat.items():
        part, _, rest = name.partition(".")
        nested.setdefault(part, {})[rest] = tensor
    return nested


def link(source: Path, target: Path) -> Path:
    target.symlink_to(source)
    return target
