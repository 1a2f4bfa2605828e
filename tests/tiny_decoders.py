"""Files in the layout of the published tiny decoders, of random weights: encoder and decoder, by their names."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

RELEASED = (256, 128, 64, 64)


def make_weights(
    channels: int = 16, grows: tuple[int, ...] = (1, 2, 2), patch: int = 1, widths: tuple[int, ...] = (8, 6, 4, 4)
) -> dict[str, Tensor]:
    """The names and shapes as they are written down in the release, with numbers that are heard to the end."""
    draw = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw) * (2 / (shape[1] * 9 if shape[-1] == 3 else shape[1])) ** 0.5

    found = {"encoder.0.weight": weight(64, 3 * patch**2, 3, 3), "encoder.0.bias": torch.zeros(64)}
    found |= {"decoder.1.weight": weight(widths[0], channels, 3, 3), "decoder.1.bias": torch.zeros(widths[0])}
    for level, times in enumerate(grows):
        wide, narrow, at = widths[level], widths[level + 1], 3 + 6 * level
        for block in range(at, at + 3):
            for place, seen in ((0, 2 * wide), (2, wide), (4, wide)):
                found[f"decoder.{block}.conv.{place}.weight"] = weight(wide, seen, 3, 3) * 0.7
                found[f"decoder.{block}.conv.{place}.bias"] = 0.1 * torch.randn(wide, generator=draw)
        found[f"decoder.{at + 4}.conv.weight"] = weight(times * wide, wide, 1, 1)
        found[f"decoder.{at + 5}.weight"] = weight(narrow, wide, 3, 3)
    last = 3 * patch**2
    return found | {
        "decoder.22.weight": 0.2 * weight(last, widths[-1], 3, 3),
        "decoder.22.bias": torch.full((last,), 0.5),
    }


def make_file(path: Path, **layout: object) -> Path:
    torch.save(make_weights(**layout), path)  # type: ignore[arg-type]
    return path
