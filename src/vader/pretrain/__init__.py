"""Trains the tiny world's models from the renderer alone, with fixed seeds (`vader tinyworld build NAME`).

Each script takes the folder of finished weights, where it finds what it stands on, and a folder for unfinished
work, from which a stopped training goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from vader.errors import UserError, nearest
from vader.pretrain import (
    actions,
    clip,
    detector,
    latent_rating,
    ltx,
    modelscope,
    modelscope_sizes,
    opensora,
    preference,
    svd,
    text,
    vae,
    videocrafter,
    vjepa,
    wan,
)

Build = Callable[[Path, Path], dict[str, float]]

BUILDS: dict[str, tuple[Build, tuple[str, ...]]] = {  # name: (script, what must lie in `out` before)
    "vae": (lambda out, work: vae.build(out / "modelscope" / "vae", work), ()),
    "text": (lambda out, work: text.build(out / "modelscope", work), ()),
    "clip": (lambda out, work: clip.build(out, work, out / "modelscope" / "vae"), ("modelscope/vae",)),
    "modelscope": (
        lambda out, work: modelscope.build(out / "modelscope", work),
        ("modelscope/vae", "modelscope/text_encoder"),
    ),
    "modelscope-sizes": (
        lambda out, work: modelscope_sizes.build(out / "modelscope-sizes", work, out / "modelscope"),
        ("modelscope/unet",),
    ),
    "videocrafter": (
        lambda out, work: videocrafter.build(out / "videocrafter", work, out / "modelscope"),
        ("modelscope/unet",),
    ),
    "detector": (
        lambda out, work: detector.build(out / "detector", work, out / "modelscope" / "vae"),
        ("modelscope/vae",),
    ),
    "actions": (
        lambda out, work: actions.build(out / "actions", work, out / "modelscope" / "vae"),
        ("modelscope/vae",),
    ),
    "latent-rating": (
        lambda out, work: latent_rating.build(out, work, out / "modelscope" / "vae"),
        ("modelscope/vae",),
    ),
    "hps": (lambda out, work: preference.build("hps", out, work), ("modelscope/vae", "clip")),
    "pickscore": (lambda out, work: preference.build("pickscore", out, work), ("modelscope/vae", "clip")),
    "vjepa": (vjepa.build, ()),
    "svd": (
        lambda out, work: svd.build(out / "svd", work, out / "modelscope" / "vae", out / "clip"),
        ("modelscope/vae", "clip"),
    ),
    "opensora": (
        lambda out, work: opensora.build(out / "opensora", work, out / "modelscope" / "vae"),
        ("modelscope/vae",),
    ),
    "wan": (
        lambda out, work: wan.build(out / "wan", work, out / "opensora"),
        ("opensora",),
    ),
    "ltx": (
        lambda out, work: ltx.build(out / "ltx", work, out / "opensora"),
        ("opensora",),
    ),
}


def build(name: str, out: Path) -> dict[str, float]:
    """Trains one of the tiny world's models, or `all`, and returns its held-out quality.

    Args:
        name: one of `BUILDS`, in which each stands after what it stands on; "all" for all.
        out: the folder of weights, laid out as the package's own; unfinished work is kept in `out/work`.

    Raises:
        UserError: no such model, or one that it stands on is not in `out` yet.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    names = list(BUILDS) if name == "all" else [name]
    quality: dict[str, float] = {}
    for each in names:
        quality |= _build_one(each, Path(out))
    return quality


def _build_one(name: str, out: Path) -> dict[str, float]:
    if name not in BUILDS:
        raise UserError(f"the tiny world has no model {name!r}: {nearest(name, [*BUILDS, 'all'])}")
    script, needs = BUILDS[name]
    for need in needs:
        if not (out / need).exists():
            raise UserError(f"{name!r} stands on {out / need}, which is not there: build {need.split('/')[-1]!r} first")
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    quality = script(out, work)
    logging.getLogger(__name__).info("%s: %s", name, ", ".join(f"{key} {value:.3f}" for key, value in quality.items()))
    return quality
