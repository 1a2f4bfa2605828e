"""Pictures of prompts: upright, never stretched, exact to the bit where nothing is scaled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vader.errors import UserError
from vader.files.images import check_pictures, prompt_images, read_picture
from vader.nouns import Prompt

ORIENTATION = 0x0112  # the EXIF tag

# How the stored pixels must be turned to stand upright (EXIF 2.32, table of tag 274).
TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x.transpose(1, 0, 2), 2),
    8: lambda x: np.rot90(x, 1),
}


def stored(path: Path, pixels: np.ndarray, orientation: int | None = None) -> Path:
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    if orientation:
        exif[ORIENTATION] = orientation
    image.save(path, exif=exif)
    return path


def random_pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied_exactly(tmp_path, orientation):
    pixels = random_pixels(6, 4)
    upright = TURNS[orientation](pixels)
    path = stored(tmp_path / "photo.png", pixels, orientation)
    assert torch.equal(read_picture(path, *upright.shape[:2]), as_tensor(upright))


def test_a_wide_picture_loses_its_sides_and_a_tall_one_its_top_and_bottom(tmp_path):
    pixels = random_pixels(8, 20)
    wide = stored(tmp_path / "wide.png", pixels)
    assert torch.equal(read_picture(wide, 8, 10), as_tensor(pixels[:, 5:15]))
    tall = stored(tmp_path / "tall.png", pixels.transpose(1, 0, 2))
    assert torch.equal(read_picture(tall, 10, 8), as_tensor(pixels.transpose(1, 0, 2)[5:15]))


@pytest.mark.parametrize(("height", "width"), [(40, 120), (120, 40), (30, 30)])
def test_scaling_keeps_the_aspect_ratio(tmp_path, height, width):
    """A centred disc stays a disc, whatever the shapes of picture and video."""
    y, x = np.mgrid[-120:120, -160:160] + 0.5
    disc = np.where((x**2 + y**2 < 60**2)[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2)
    seen = read_picture(stored(tmp_path / "disc.png", disc), height, width)[0]
    scale = max(height / 240, width / 320)
    across, down = seen[height // 2].sum().item(), seen[:, width // 2].sum().item()
    assert across == pytest.approx(min(120 * scale, width), abs=1)
    assert down == pytest.approx(min(120 * scale, height), abs=1)


def test_transparency_is_white_and_grey_is_grey(tmp_path):
    clear = np.zeros((4, 4, 4), dtype=np.uint8)
    clear[:2, :, 3] = 255  # an opaque black top, a clear bottom
    seen = read_picture(stored(tmp_path / "clear.png", clear), 4, 4)
    assert seen[:, :2].max() == 0
    assert seen[:, 2:].min() == 1
    grey = read_picture(stored(tmp_path / "grey.png", np.full((4, 4), 51, dtype=np.uint8)), 4, 4)
    assert torch.equal(grey, torch.full((3, 4, 4), 0.2))


def test_prompts_bring_their_pictures_in_order(tmp_path):
    paths = [stored(tmp_path / f"{level}.png", np.full((5, 7, 3), level, dtype=np.uint8)) for level in (0, 255)]
    images = prompt_images([Prompt("night", image=paths[0]), Prompt("day", image=paths[1])], 4, 6)
    assert images.shape == (2, 3, 4, 6)
    assert images.flatten(1).mean(dim=1).tolist() == [0, 1]


def test_what_is_no_picture_is_one_line(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    good = stored(tmp_path / "good.png", random_pixels(4, 4))
    for name in ("text.png", "missing.png"):
        with pytest.raises(UserError, match=rf"{name}' cannot be read") as caught:
            read_picture(tmp_path / name, 8, 8)
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match=rf"{name}' cannot be read"):
            check_pictures([good, tmp_path / name])
    cut = stored(tmp_path / "cut.png", random_pixels(64, 64))
    cut.write_bytes(cut.read_bytes()[:300])
    with pytest.raises(UserError, match=r"cut.png' cannot be read"):
        read_picture(cut, 8, 8)
    with pytest.raises(UserError, match="prompt 'a dog' has no image"):
        prompt_images([Prompt("a dog")], 8, 8)
