"""Spoiled pictures: of prompts, and as the frames of a folder."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from fuzz.checkpoints import checkpoints
from fuzz.harness import Case
from fuzz.mutations import spoiled, spoiled_node

FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP"}
SIZES = ((0, 0), (0, 8), (1, 1), (1, 3000), (2**31 - 1, 1), (60_000, 60_000), (10**5, 10**5))


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    rng = random.Random(f"pictures {seed}")
    sample = next(one for one in checkpoints(folder) if one.name == "svd").argv("tiny")[:-2]
    for number in range(count):
        suffix = rng.choice(list(FORMATS))
        name, mode = f"picture.{suffix}", rng.choice(("prompt", "prompts", "frames"))
        argv = {
            "prompt": [*sample, "--image", name],
            "prompts": [*sample, "--image", "."],
            "frames": ["score", ".", "--reward", "aesthetic:checkpoint=tiny"],
        }[mode]
        statuses, lines = ((0, 1, 2), 1) if mode == "frames" else ((0, 2), 1)
        yield Case(f"{mode}: {name} ({seed} {number})", argv, _maker(name, f"{seed} {number}"), statuses, lines)


def _maker(name: str, seed: str):
    def make(folder: Path) -> None:
        rng = random.Random(seed)
        path, kind = folder / name, rng.random()
        if kind < 0.1:
            spoiled_node(rng)[1](path)
        elif kind < 0.3:
            path.write_bytes(
                _png(*rng.choice(SIZES), depth=rng.choice((1, 8, 16, 99)), colour=rng.choice((0, 2, 3, 6, 9)))
            )
        elif kind < 0.4:
            path.write_bytes(_odd(rng))
        else:
            path.write_bytes(spoiled(_picture(name.rpartition(".")[2], rng), rng)[1])

    return make


def _picture(suffix: str, rng: random.Random) -> bytes:
    mode = rng.choice(("RGB", "L", "P", "RGBA", "1")) if suffix == "png" else "RGB"
    stream = io.BytesIO()
    Image.effect_noise((33, 20), 90).convert(mode).save(stream, FORMATS[suffix])
    return stream.getvalue()


def _odd(rng: random.Random) -> bytes:
    """A whole picture of a kind that is rare: of many frames, of floats, with an odd orientation."""
    stream = io.BytesIO()
    image = Image.effect_noise((33, 20), 90)
    match rng.randrange(4):
        case 0:
            image.save(stream, "GIF", save_all=True, append_images=[image.rotate(a) for a in (30, 60)])
        case 1:
            image.convert("F").save(stream, "TIFF")
        case 2:
            exif = Image.Exif()
            exif[274] = rng.choice((0, 3, 6, 9, 1000))
            image.convert("RGB").save(stream, "JPEG", exif=exif)
        case _:
            image.convert("I;16").save(stream, "PNG")
    return stream.getvalue()


def _png(width: int, height: int, depth: int, colour: int) -> bytes:
    """A PNG that says it is of some size, with the pixels of a few rows alone."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(bytes(4096))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
