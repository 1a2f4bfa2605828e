"""The sizes of video that Open-Sora 1.2 makes: its own table of resolutions and aspect ratios, and what else fits.

In goes the size that a recipe asks for, out comes the size of its latents, or a `UserError` that names the nearest
possible one.
"""

from __future__ import annotations

from vader.errors import UserError
from vader.models.opensora.vae import CHUNK, latent_frames, pixel_frames
from vader.nouns import VideoSize

# Pixels (height x width) that the release was trained on. Where 8 does not divide them, it decodes a few pixels less.
RESOLUTIONS = {
    "144p": "117x312 125x291 133x277 135x270 139x262 141x260 144x256 151x241 156x234 166x221 192x192 221x165 235x156 "
    "256x144 263x139 271x135 277x132",
    "240p": "196x522 210x490 222x462 226x452 232x438 236x436 240x426 252x404 262x393 276x368 320x320 370x278 392x262 "
    "426x240 440x232 452x226 462x222",
    "360p": "294x784 314x732 332x692 340x680 350x662 352x652 360x640 380x608 392x588 416x554 480x480 554x416 588x392 "
    "640x360 660x350 678x340 692x332",
    "480p": "392x1046 420x980 444x925 452x904 466x880 470x870 480x854 506x810 522x784 554x738 640x640 740x555 784x522 "
    "854x480 880x466 906x454 924x444",
    "720p": "588x1568 628x1466 666x1388 678x1356 698x1318 706x1306 720x1280 758x1212 784x1176 832x1110 960x960 "
    "1108x832 1176x784 1280x720 1320x698 1358x680 1386x666",
    "1080p": "882x2352 942x2198 998x2080 1018x2036 1048x1980 1058x1958 1080x1920 1138x1820 1176x1764 1248x1664 "
    "1440x1440 1662x1246 1764x1176 1920x1080 1980x1048 2036x1018 2078x998",
}


def trained_sizes() -> set[tuple[int, int]]:
    """Every (height, width) of the release's table."""
    sizes = (size.split("x") for row in RESOLUTIONS.values() for size in row.split())
    return {(int(height), int(width)) for height, width in sizes}


def latent_size(size: VideoSize, factor: int) -> tuple[int, int, int]:
    """Frames, height and width of the latents, the VAE shrinking height and width by `factor`.

    Raises:
        UserError: a number of frames, or a height and width, that the model cannot make.
    """
    _check_frames(size.frames)
    if (size.height, size.width) not in trained_sizes():
        _check_sides(size, factor)
    return latent_frames(size.frames), size.height // factor, size.width // factor


def _check_frames(frames: int) -> None:
    """1 frame; or whole chunks of 17 with 0, 4, 8, 12 or 16 more, so that the latents tell how many frames they are."""
    if frames == 1 or (frames >= CHUNK and pixel_frames(latent_frames(frames)) == frames):
        return
    longer = pixel_frames(latent_frames(max(frames, CHUNK)))
    shorter = max((n for n in range(CHUNK, frames) if pixel_frames(latent_frames(n)) == n), default=1)
    raise UserError(
        f"Open-Sora cannot make {frames} frames: they are 1, or a multiple of 17 with 0, 4, 8, 12 or 16 more; "
        f"the nearest are {shorter} and {longer} (the release was trained on 51, 102, 204 and 408)"
    )


def _check_sides(size: VideoSize, factor: int) -> None:
    if size.height % factor or size.width % factor:
        height, width = (max(1, round(side / factor)) * factor for side in (size.height, size.width))
        raise UserError(
            f"video size {size.height}x{size.width} (height x width) is not possible: both must be multiples of "
            f"{factor}, or a size of Open-Sora's own table such as 240x426; the nearest is {height}x{width}"
        )
