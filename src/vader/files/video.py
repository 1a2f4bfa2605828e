"""Videos in and out of files: mp4 for people, PNG frames and contact sheets, and any video file as a tensor.

In and out go pixels `[F, 3, H, W]` in [0, 1]. Small videos are enlarged for the eye; the file remembers
by how much, so that reading it back gives the pixels that were sampled. Every file appears whole or not at all.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace
from einops import rearrange, reduce, repeat
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from vader.errors import UserError
from vader.files.atomic import atomic_write
from vader.files.foreign import reading, require_regular

EYE = 256  # pixels: smaller videos are enlarged towards this
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
BT709 = 1  # the code of these primaries, transfer and matrix in ISO/IEC 23091-2: what browsers take for granted
LIMITED_RANGE = 1

PAPER, INK, SEAM = (255, 255, 255), (28, 30, 34), (200, 85, 61)
TALL = 4096  # pixels: a contact sheet of one column may be so tall
MARGIN, GAP, FONT_SIZE, LINE_HEIGHT = 16, 4, 18, 24


def write_mp4(
    path: str | Path, frames: Tensor, fps: float, upscale: int | None = None, seams: Sequence[int] = ()
) -> Path:
    """Writes an H.264 file that every browser plays and that starts before it is loaded whole.

    Args:
        path: where; an existing file is replaced.
        frames: pixels `[F, 3, H, W]` in [0, 1], any float type and device; values beyond are clamped.
        fps: frames a second.
        upscale: each pixel becomes a square of this side; None enlarges small videos to about 256 pixels.
        seams: frames that end one segment and begin the next, for the file's comment.

    Odd sides, which 4:2:0 chroma cannot have, gain one row or column, a copy of the edge. `read_video`
    takes both away again.
    """
    height, width = frames.shape[-2:]
    factor = upscale or enlargement(height, width)
    images = to_bytes(_evened(enlarged(frames, factor)))
    with atomic_write(path) as temporary:
        _encode(temporary, images, Fraction(fps).limit_denominator(1001), _mark(height, width, factor, seams))
    return Path(path)


def gif_bytes(frames: Tensor, fps: float) -> bytes:
    """A GIF that plays round and round, small videos enlarged: for what shows images and no videos.

    Args:
        frames: pixels `[F, 3, H, W]` in [0, 1].
        fps: frames a second; a GIF plays at most 50.
    """
    images = [Image.fromarray(image) for image in to_bytes(enlarged(frames, enlargement(*frames.shape[-2:])))]
    written = io.BytesIO()
    milliseconds = max(20, round(1000 / fps))
    images[0].save(written, "GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
    return written.getvalue()


def read_video(path: str | Path, max_frames: int | None = None) -> Tensor:
    """Reads a video file (mp4, webm, gif, ...) or a folder of frames (png, jpg, ...), sorted by name and number.

    Args:
        path: the file or folder.
        max_frames: at most so many frames, spread evenly (see `subsampled`); None for all.

    Returns:
        Pixels, float32 `[F, 3, H, W]` in [0, 1].

    Raises:
        UserError: missing or unreadable, or the frames of a folder differ in size.
    """
    return torch.stack(list(stream_frames(path, max_frames)))


def stream_frames(path: str | Path, max_frames: int | None = None) -> Iterator[Tensor]:
    """`read_video`, one frame `[3, H, W]` at a time, so that a long video need not fit into memory."""
    path = _existing(path)
    images = _folder_images(path, max_frames) if path.is_dir() else _file_images(path, max_frames)
    first = next(images, None)
    if first is None:
        raise UserError(f"{path} has no frames: give a video file or a folder of png or jpg frames")
    for image in chain([first], images):
        if image.shape != first.shape:
            raise UserError(f"the frames of {path} differ in size: {_size(first)} and {_size(image)}")
        yield image


def frame_rate(path: str | Path, max_frames: int | None = None) -> float | None:
    """Frames a second of a video file, as `stream_frames` gives them; None for a folder of frames, which tells none.

    Raises:
        UserError: missing or unreadable.
    """
    path = _existing(path)
    if path.is_dir():
        return None
    with _readable(path), av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        if rate is None or max_frames is None:
            return None if rate is None else float(rate)
        count = _count_frames(path)
        return float(rate) * len(subsampled(count, max_frames)) / count  # of no frames: it is no video


def _existing(path: str | Path) -> Path:
    if not Path(path).exists() and not Path(path).is_symlink():
        raise UserError(f"no video at {path}: give a video file or a folder of frames")
    require_regular(Path(path), f"video {str(path)!r}")
    return Path(path)


def subsampled(count: int, limit: int | None) -> list[int]:
    """At most `limit` of `count` frame indices: the middles of `limit` equal stretches of the video."""
    if limit is None or limit >= count:
        return list(range(count))
    return [(2 * i + 1) * count // (2 * limit) for i in range(limit)]


def write_png_frames(folder: str | Path, frames: Tensor) -> list[Path]:
    """Writes frames `[F, 3, H, W]` in [0, 1] as `frame-0000.png`, ... in their own size, rounded to 8 bits."""
    paths = [Path(folder) / f"frame-{i:04d}.png" for i in range(len(frames))]
    for path, image in zip(paths, to_bytes(frames), strict=True):
        write_png(path, Image.fromarray(image))
    return paths


def frame_strip(video: Tensor, count: int = 8, seams: Sequence[int] = ()) -> Image.Image:
    """At most `count` frames of a video `[F, 3, H, W]` beside each other; small ones enlarged, large ones reduced.

    Args:
        seams: frames that end one segment and begin the next; a line parts the frames up to one from those after it.
    """
    chosen = subsampled(len(video), count)
    cells = to_bytes(_cell_sized(video[chosen]))
    height, width = cells.shape[1:3]
    strip = Image.new("RGB", (len(cells) * (width + GAP) - GAP, height), PAPER)
    for i, cell in enumerate(cells):
        left = i * (width + GAP)
        strip.paste(Image.fromarray(cell), (left, 0))
        if i and any(chosen[i - 1] <= seam < chosen[i] for seam in seams):
            strip.paste(SEAM, (left - GAP, 0, left, height))
    return strip


def contact_sheet(videos: Tensor, captions: Sequence[str], path: str | Path, seams: Sequence[int] = ()) -> Path:
    """Writes a PNG with a row a video, its caption above at most 8 of its frames; many are in several columns.

    Args:
        videos: pixels `[B, F, 3, H, W]` in [0, 1].
        captions: B lines; long ones are broken.
        path: where; an existing file is replaced.
        seams: of every video, as `frame_strip`.
    """
    rows = [_captioned(frame_strip(video, seams=seams), text) for video, text in zip(videos, captions, strict=True)]
    width, heights = max(row.width for row in rows) + MARGIN, [row.height + MARGIN for row in rows]
    columns = _columns(width, sum(heights))
    length = -(-len(rows) // columns)  # rows of a column
    starts = range(0, len(rows), length)
    height = MARGIN + max(sum(heights[start : start + length]) for start in starts)
    sheet = Image.new("RGB", (MARGIN + len(starts) * width, height), PAPER)
    for column, start in enumerate(starts):
        top = MARGIN
        for row, step in zip(rows[start : start + length], heights[start : start + length], strict=True):
            sheet.paste(row, (MARGIN + column * width, top))
            top += step
    return write_png(path, sheet)


def _columns(width: int, height: int) -> int:
    """How many columns make what would be so wide and so tall about square, once it is too tall to look at."""
    return 1 if height <= TALL else math.ceil(math.sqrt(height / width))


def write_png(path: str | Path, image: Image.Image) -> Path:
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")
    return Path(path)


def enlargement(height: int, width: int, side: int = EYE) -> int:
    """The whole factor that brings a small video up to at most `side` pixels."""
    return max(1, side // max(height, width))


def enlarged(frames: Tensor, factor: int) -> Tensor:
    """Every pixel of `[F, 3, H, W]` becomes a square of side `factor`."""
    return repeat(frames, "f c h w -> f c (h a) (w b)", a=factor, b=factor)


def to_bytes(frames: Tensor) -> np.ndarray:
    """Pixels `[F, 3, H, W]` in [0, 1] as uint8 `[F, H, W, 3]`, rounded."""
    images = rearrange(frames.detach().float().clamp(0, 1), "f c h w -> f h w c")
    return np.ascontiguousarray((images * 255).round().to(torch.uint8).cpu().numpy())


def _evened(frames: Tensor) -> Tensor:
    height, width = frames.shape[-2:]
    return F.pad(frames.float(), (0, width % 2, 0, height % 2), mode="replicate")


def _encode(path: Path, images: np.ndarray, rate: Fraction, comment: str) -> None:
    """Encodes uint8 `[F, H, W, 3]` of even size."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12", "preset": "medium"})
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "yuv420p"
        codec = stream.codec_context
        codec.color_primaries = codec.color_trc = codec.colorspace = BT709
        codec.color_range = LIMITED_RANGE
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _mark(height: int, width: int, factor: int, seams: Sequence[int]) -> str:
    """What the file's comment says, so that `read_video` finds the sampled pixels again."""
    said = f"; seams at frames {', '.join(map(str, seams))}" if seams else ""
    return f"vader: {width}x{height} pixels enlarged by {factor}{said}"


def _unmark(comment: str, height: int, width: int) -> tuple[int, int, int]:
    """Height, width and enlargement of the sampled video, if the comment fits the frame's size."""
    found = re.fullmatch(r"vader: (\d+)x(\d+) pixels enlarged by (\d+)(?:; .*)?", comment)
    if found:
        own_width, own_height, factor = map(int, found.groups())
        if (own_height * factor + 1) // 2 * 2 == height and (own_width * factor + 1) // 2 * 2 == width:
            return own_height, own_width, factor
    return height, width, 1


def _file_images(path: Path, max_frames: int | None) -> Iterator[Tensor]:
    """Decodes a file, twice when only some frames are wanted: containers don't tell their frame count reliably."""
    with _readable(path):
        chosen = None if max_frames is None else set(subsampled(_count_frames(path), max_frames))
        with av.open(str(path)) as container:
            comment = container.metadata.get("comment", "")
            for i, frame in enumerate(container.decode(video=0)):
                if chosen is None or i in chosen:
                    yield _as_sampled(_to_pixels(frame.to_ndarray(format="rgb24")), comment)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a file of strangers: FFmpeg fails on it in many ways
        raise UserError(
            f"{path} is no video that can be read: give an mp4, webm or gif, or a folder of frames"
        ) from error


def _count_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def _as_sampled(image: Tensor, comment: str) -> Tensor:
    """Takes padding and enlargement away; the mean over each square also takes coding noise away."""
    height, width, factor = _unmark(comment, *image.shape[-2:])
    cropped = image[:, : height * factor, : width * factor]
    return reduce(cropped, "c (h a) (w b) -> c h w", "mean", a=factor, b=factor)


def _folder_images(folder: Path, max_frames: int | None) -> Iterator[Tensor]:
    files = sorted((p for p in folder.iterdir() if _is_frame(p)), key=_natural)
    for i in subsampled(len(files), max_frames):
        yield _to_pixels(_frame(files[i]))


def _frame(file: Path) -> np.ndarray:
    """The pixels of one frame, uint8 `[H, W, 3]`."""
    label = f"{file} is no image that can be read, replace or remove it"
    require_regular(file, label)
    with reading(label), Image.open(file) as image:
        return np.array(image.convert("RGB"))


def _is_frame(path: Path) -> bool:
    return path.suffix.lower() in FRAME_SUFFIXES and not path.name.startswith(".")


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sort key in which frame-9 comes before frame-10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)]


def _to_pixels(image: np.ndarray) -> Tensor:
    """uint8 `[H, W, 3]` -> float32 `[3, H, W]` in [0, 1]."""
    return rearrange(torch.from_numpy(image), "h w c -> c h w").float() / 255


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"


def _cell_sized(frames: Tensor) -> Tensor:
    """Frames at the size of a contact sheet's cell: enlarged to about 128 pixels, or reduced to at most 256."""
    height, width = frames.shape[-2:]
    if max(height, width) <= EYE:
        return enlarged(frames, enlargement(height, width, EYE // 2))
    scale = EYE / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return F.interpolate(frames.float(), size, mode="bilinear", antialias=True)


def lettered(text: str, width: int, ink: tuple[int, int, int] = INK) -> Image.Image:
    """A text in as many lines as it takes at a width."""
    font = ImageFont.load_default(FONT_SIZE)
    lines = _broken(text, font, width)
    image = Image.new("RGB", (width, LINE_HEIGHT * len(lines)), PAPER)
    pen = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        pen.text((0, i * LINE_HEIGHT), line, fill=ink, font=font)
    return image


def _captioned(strip: Image.Image, caption: str) -> Image.Image:
    words = lettered(caption, strip.width)
    row = Image.new("RGB", (strip.width, words.height + GAP + strip.height), PAPER)
    row.paste(words, (0, 0))
    row.paste(strip, (0, row.height - strip.height))
    return row


def _broken(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Breaks a text at spaces into lines that fit; a word longer than a line sticks out."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
