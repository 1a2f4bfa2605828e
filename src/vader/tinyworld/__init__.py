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


def show(out: Path) -> None:
    """Writes a contact sheet of some scenes of the tiny world, dull and vivid, with their captions, as PNG."""
    import torch

    from vader.evaluation.video_io import contact_sheet
    from vader.tinyworld.scenes import captions, render, sample_scenes

    scenes = sample_scenes(10, torch.Generator().manual_seed(3))
    contact_sheet(render(scenes), captions(scenes), out)
