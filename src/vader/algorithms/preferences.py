"""Pairs of videos of one prompt, one preferred to the other: ranked by the reward as they are sampled, or from a file.

Both kinds give `Pair`s by number. A buffer makes pairs of all videos of a prompt that it still has; a file names
prompts and videos, which are read and encoded when their pair's turn comes.
"""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vader.engine.engine import Engine
from vader.errors import UserError, nearest
from vader.files.paths import read_text
from vader.files.video import read_video, stream_frames
from vader.nouns import Prompt, VideoSize, map_latents

COLUMNS = ("prompt", "winner", "loser", "image")


@dataclass(frozen=True)
class Pair:
    """Final latents `[2, ...]` of two videos of one prompt, the preferred one first."""

    prompt: Prompt
    latents: Any


class Pairs(ABC):
    """A numbered set of pairs."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def pick(self, engine: Engine, number: int) -> Pair:
        """The pair of this number, on the model's device."""


# ---- ranked by the reward ----


@dataclass(frozen=True)
class Entry:
    prompt: Prompt
    reward: float
    latents: Any  # on the CPU


class ReplayBuffer(Pairs):
    """The latest `capacity` videos; every two of one prompt with different rewards are a pair."""

    def __init__(self, capacity: int) -> None:
        self.entries: deque[Entry] = deque(maxlen=capacity)
        self.ranked = torch.empty(0, 2, dtype=torch.long)  # winner and loser, by place among the entries

    def __len__(self) -> int:
        return len(self.ranked)

    def add(self, prompts: Sequence[Prompt], rewards: Tensor, latents: Any) -> None:
        """B videos more: rewards `[B]`, latents `[B, ...]`; as many of the oldest go as there is no room for."""
        for row, (prompt, reward) in enumerate(zip(prompts, rewards.tolist(), strict=True)):
            video = map_latents(lambda x, row=row: x[row].cpu().clone(), latents)
            self.entries.append(Entry(prompt, reward, video))
        self.ranked = _ranked(list(self.entries))

    def pick(self, engine: Engine, number: int) -> Pair:
        winner, loser = (self.entries[place] for place in self.ranked[number].tolist())
        device = engine.model.device
        return Pair(winner.prompt, map_latents(lambda *two: torch.stack(two).to(device), winner.latents, loser.latents))

    def state_dict(self) -> dict[str, Any]:
        prompts = [_packed(entry.prompt) for entry in self.entries]
        rewards, latents = ([getattr(entry, of) for entry in self.entries] for of in ("reward", "latents"))
        return {"prompts": prompts, "rewards": rewards, "latents": latents}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        prompts = [_unpacked(packed) for packed in state["prompts"]]
        self.entries.clear()
        self.entries.extend(map(Entry, prompts, state["rewards"], state["latents"]))
        self.ranked = _ranked(list(self.entries))


def _ranked(entries: Sequence[Entry]) -> Tensor:
    """Places `[P, 2]` of all winners and losers of one prompt."""
    keys = [entry.prompt for entry in entries]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    prompts = torch.tensor([numbers[key] for key in keys])
    rewards = torch.tensor([entry.reward for entry in entries], dtype=torch.float64)
    return ((prompts[:, None] == prompts) & (rewards[:, None] > rewards)).nonzero()


def _packed(prompt: Prompt) -> dict[str, str | None]:
    """A prompt as plain texts, which checkpoints hold."""
    return {name: None if value is None else str(value) for name, value in asdict(prompt).items()}


def _unpacked(packed: Mapping[str, Any]) -> Prompt:
    pictures = {name: packed[name] and Path(packed[name]) for name in ("image", "last_image")}
    return Prompt(**{**packed, **pictures})


# ---- from a file ----


@dataclass(frozen=True)
class Preference:
    """A line of a preference file."""

    prompt: Prompt
    winner: Path
    loser: Path


class PreferenceFile(Pairs):
    """The pairs of a `.csv` or `.jsonl` file: `prompt`, `winner`, `loser`, for image-to-video `image`.

    Videos are files or folders of frames, of the run's size; paths are relative to the file.

    Raises:
        UserError: the file or a video in it is missing, not well-formed, or of another size.
    """

    def __init__(self, path: Path, size: VideoSize) -> None:
        self.preferences = read_preferences(path)
        for video in dict.fromkeys(chain.from_iterable((p.winner, p.loser) for p in self.preferences)):
            check_video(video, size)

    def __len__(self) -> int:
        return len(self.preferences)

    def pick(self, engine: Engine, number: int) -> Pair:
        preference = self.preferences[number]
        pixels = torch.stack([read_video(preference.winner), read_video(preference.loser)])
        return Pair(preference.prompt, engine.model.encode_video(pixels.to(engine.model.device)))


def check_video(path: Path, size: VideoSize) -> None:
    """Raises `UserError` unless a video is of this size; every frame is read, as containers don't tell their number."""
    shapes = [frame.shape[1:] for frame in stream_frames(path)]
    found, wanted = (len(shapes), *shapes[0]), (size.frames, size.height, size.width)
    if found != wanted:
        raise UserError(
            f"video {str(path)!r} is {_size(*found)}, but the recipe's are {_size(*wanted)}: "
            "set video.frames, video.height and video.width, or convert it"
        )


def _size(frames: int, height: int, width: int) -> str:
    return f"{frames} frames of {height}x{width}"


def read_preferences(path: Path) -> list[Preference]:
    """The lines of a preference file.

    Raises:
        UserError: no such file, not text, no lines, an unknown or missing key.
    """
    text = read_text(path, "preference file")
    rows = _json_rows(text, path) if path.suffix.lower() == ".jsonl" else _csv_rows(text, path)
    if not rows:
        raise UserError(f"preference file {str(path)!r} holds no pairs: its columns are {', '.join(COLUMNS)}")
    return [_preference(row, path, f"pair {number} of {str(path)!r}") for number, row in enumerate(rows, start=1)]


def _json_rows(text: str, path: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets without end, too
        raise UserError(f"preference file {str(path)!r} is not a JSON object a line: {error}") from None


def _csv_rows(text: str, path: Path) -> list[Any]:
    try:
        return list(csv.DictReader(io.StringIO(text)))
    except csv.Error as error:
        raise UserError(f"preference file {str(path)!r} is no table: {error}") from None


def _preference(row: Any, path: Path, where: str) -> Preference:
    if not isinstance(row, dict) or not all(isinstance(value, str | None) for value in row.values()):
        raise UserError(f"{where} is no row of texts under the keys {', '.join(COLUMNS)}")
    if unknown := [name for name in row if name not in COLUMNS]:
        raise UserError(f"{where} has a key {unknown[0]!r}: {nearest(str(unknown[0]), COLUMNS)}")
    values = {name: (row.get(name) or "").strip() for name in COLUMNS}
    if missing := [name for name in ("prompt", "winner", "loser") if not values[name]]:
        raise UserError(f"{where} has no {missing[0]!r}")
    image = path.parent / values["image"] if values["image"] else None
    return Preference(
        Prompt(values["prompt"], image=image), path.parent / values["winner"], path.parent / values["loser"]
    )
