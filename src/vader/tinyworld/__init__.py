"""The tiny world: a procedural world with its own small pretrained models, for laptops, tests and benchmarks."""

from __future__ import annotations

from pathlib import Path

from vader.errors import UserError, nearest

WEIGHTS = Path(__file__).parent / "weights"


def weights_path(name: str) -> Path:
    """Where the package keeps the tiny world's weights `name`: "modelscope", "clip", "aesthetic_head.safetensors".

    Raises:
        UserError: there are no such weights.
    """
    path = WEIGHTS / name
    if not path.exists():
        known = [entry.name for entry in WEIGHTS.glob("*")]
        raise UserError(f"the tiny world has no weights {name!r}: {nearest(name, known)}")
    return path
