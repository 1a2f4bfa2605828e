"""Video files keep their pixels: round trips, odd sizes, other formats, even subsampling, contact sheets."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vader.errors import UserError
from vader.files.video import (
    SEAM,
    contact_sheet,
    frame_strip,
    read_video,
    stream_frames,
    subsampled,
    to_bytes,
    write_mp4,
    write_png_frames,
)
from vader.nouns import VideoSize
from vader.tinyworld.scenes import render, sample_scenes


def scene(frames: int = 8, size: int = 32) -> torch.Tensor:
    return render(sample_scenes(1, torch.Generator().manual_seed(3)), frames, size)[0]


def raw_size(path) -> tuple[int, int, str]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.width, stream.height, stream.codec_context.pix_fmt


@pytest.mark.parametrize(("frames", "size"), [(8, 32), (1, 32), (25, 320)])
def test_mp4_round_trip_keeps_frames_and_pixels(tmp_path, frames, size):
    video = scene(frames, size)
    again = read_video(write_mp4(tmp_path / "video.mp4", video, fps=8))
    assert again.shape == video.shape
    assert again.dtype == torch.float32
    assert (again - video).abs().mean() < 0.01
    assert 0 <= again.min() <= again.max() <= 1


def test_colours_are_not_shifted(tmp_path):
    """Each flat colour comes back within two of 255 steps: matrix and range are tagged, and used in both directions."""
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0], [0.5, 0.5, 0.5], [0.9, 0.6, 0.1]])
    for colour in colours:
        video = colour[None, :, None, None].expand(3, 3, 32, 32)
        again = read_video(write_mp4(tmp_path / "flat.mp4", video, fps=8))
        assert (again - video).abs().max() <= 2.5 / 255


@pytest.mark.parametrize(("height", "width", "upscale"), [(33, 31, None), (33, 31, 1), (257, 301, None), (9, 16, 3)])
def test_odd_sizes(tmp_path, height, width, upscale):
    video = scene(4, 320)[..., :height, :width]
    path = write_mp4(tmp_path / "odd.mp4", video, 8, upscale)
    assert raw_size(path)[0] % 2 == raw_size(path)[1] % 2 == 0
    again = read_video(path)
    assert again.shape == video.shape
    assert (again - video).abs().mean() < 0.02


def test_small_videos_are_enlarged_by_a_whole_factor(tmp_path):
    assert raw_size(write_mp4(tmp_path / "a.mp4", scene(), 8)) == (256, 256, "yuv420p")
    assert raw_size(write_mp4(tmp_path / "b.mp4", scene(), 8, upscale=3)) == (96, 96, "yuv420p")
    assert raw_size(write_mp4(tmp_path / "c.mp4", scene(2, 320), 8)) == (320, 320, "yuv420p")


def test_faststart_and_frame_rate(tmp_path):
    path = write_mp4(tmp_path / "video.mp4", scene(), fps=12.5)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(path)) as container:
        assert float(container.streams.video[0].average_rate) == 12.5
        assert [float(f.time) for f in container.decode(video=0)] == pytest.approx(
            [i / 12.5 for i in range(8)], abs=1e-3
        )


def test_videos_of_others_keep_their_size_even_with_our_comment(tmp_path):
    """A file that was resized by other hands, its comment kept, is not reduced."""
    with av.open(str(tmp_path / "resized.mp4"), "w") as container:
        container.metadata["comment"] = "vader: 32x32 pixels enlarged by 8"
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(to_bytes(scene(1, 64))[0], format="rgb24")))
        container.mux(stream.encode())
    assert read_video(tmp_path / "resized.mp4").shape == (1, 3, 64, 64)


def test_unwritable_place_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write"):
        write_mp4(tmp_path / "file" / "video.mp4", scene(1), 8)


def test_gif(tmp_path):
    flat = torch.tensor([[0.2, 0.4, 0.6], [0.8, 0.4, 0.2], [0.2, 0.8, 0.4]])[:, :, None, None].expand(3, 3, 16, 20)
    images = [Image.fromarray(image) for image in to_bytes(flat)]
    images[0].save(tmp_path / "video.gif", save_all=True, append_images=images[1:], duration=100)
    again = read_video(tmp_path / "video.gif")
    assert again.shape == (3, 3, 16, 20)
    assert (again - flat).abs().max() <= 1.1 / 255


def test_webm(tmp_path):
    with av.open(str(tmp_path / "video.webm"), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for image in to_bytes(scene(3, 64)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    assert read_video(tmp_path / "video.webm").shape == (3, 3, 64, 64)
    assert read_video(tmp_path / "video.webm", max_frames=2).shape == (2, 3, 64, 64)


def test_folder_of_frames_is_sorted_naturally_and_lossless(tmp_path):
    video = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 3, 5, 7))).float() / 255
    for i, image in enumerate(to_bytes(video)):
        Image.fromarray(image).save(tmp_path / f"frame-{i}.png")
    (tmp_path / "prompts.json").write_text("[]")
    assert torch.equal(read_video(tmp_path), video)
    assert torch.equal(read_video(tmp_path, max_frames=4), video[[1, 4, 7, 10]])


def test_png_frames_round_trip(tmp_path):
    video = scene(3)
    paths = write_png_frames(tmp_path / "frames", video)
    assert [p.name for p in paths] == ["frame-0000.png", "frame-0001.png", "frame-0002.png"]
    assert (read_video(tmp_path / "frames") - video).abs().max() <= 0.5 / 255 + 1e-6


def test_subsampled_takes_the_middles_of_equal_stretches():
    assert subsampled(8, None) == subsampled(8, 8) == subsampled(8, 99) == list(range(8))
    assert subsampled(8, 4) == [1, 3, 5, 7]
    assert subsampled(9, 3) == [1, 4, 7]
    assert subsampled(100, 1) == [50]
    for count in range(1, 40):
        for limit in range(1, count + 1):
            chosen = subsampled(count, limit)
            assert len(set(chosen)) == limit
            assert chosen == sorted(chosen)
            assert 0 <= chosen[0] <= chosen[-1] < count


def test_subsampling_a_file_gives_the_chosen_frames(tmp_path):
    levels = torch.linspace(0.1, 0.9, 9)[:, None, None, None].expand(9, 3, 32, 32)
    path = write_mp4(tmp_path / "ramp.mp4", levels, 8)
    assert read_video(path, 3).mean(dim=(1, 2, 3)) == pytest.approx(levels[[1, 4, 7], 0, 0, 0], abs=0.01)


@pytest.mark.parametrize("content", [b"", b"this is not a video" * 100])
def test_unreadable_files_name_the_file(tmp_path, content):
    (tmp_path / "broken.mp4").write_bytes(content)
    for limit in (None, 2):
        with pytest.raises(UserError, match=r"broken\.mp4 is no video that can be read") as caught:
            read_video(tmp_path / "broken.mp4", limit)
        assert "\n" not in str(caught.value)


def test_other_unreadable_things(tmp_path):
    with pytest.raises(UserError, match="no video at"):
        read_video(tmp_path / "missing.mp4")
    with pytest.raises(UserError, match="has no frames"):
        read_video(tmp_path)
    (tmp_path / "frame-0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"frame-0\.png is no image"):
        read_video(tmp_path)


def test_frames_that_differ_in_size(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
    Image.new("RGB", (6, 8)).save(tmp_path / "1.png")
    with pytest.raises(UserError, match="differ in size: 8x6 and 6x8"):
        read_video(tmp_path)


def test_streaming_reads_no_further_than_asked(tmp_path):
    write_png_frames(tmp_path, scene(3))
    (tmp_path / "frame-0002.png").write_bytes(b"broken")
    frames = stream_frames(tmp_path)
    assert next(frames).shape == next(frames).shape == (3, 32, 32)


def test_a_line_parts_the_segments_of_a_long_video_on_a_sheet(tmp_path):
    size = VideoSize(7, 32, 32, segments=3)  # frames 2 and 4 end a segment and begin the next
    assert size.seams == [2, 4]
    video = torch.full((7, 3, 32, 32), 0.5)
    sheet = np.array(Image.open(contact_sheet(video[None], ["x"], tmp_path / "sheet.png", size.seams)))
    strip = sheet[16 + 24 + 4 :][:128, 16:]
    gaps = [strip[:, 132 * i - 4 : 132 * i] for i in range(1, 7)]
    assert [bool((gap == SEAM).all()) for gap in gaps] == [False, False, True, False, True, False]
    assert [bool((gap == 255).all()) for gap in gaps] == [True, True, False, True, False, True]
    few = np.array(frame_strip(video, 3, size.seams))  # frames 1, 3 and 5
    assert all((few[:, 132 * i - 4 : 132 * i] == SEAM).all() for i in (1, 2))


def test_frame_strip_enlarges_by_nearest_neighbour():
    strip = np.array(frame_strip(scene()))
    assert strip.shape == (128, 8 * 132 - 4, 3)
    assert np.array_equal(strip[::4, :128:4], to_bytes(scene())[0])
    assert np.array_equal(strip[3::4, 7 * 132 + 3 :: 4], to_bytes(scene())[7])


def test_contact_sheet_size_and_pixels(tmp_path):
    videos = torch.stack([scene(), 1 - scene()])
    sheet = np.array(Image.open(contact_sheet(videos, ["a red circle", "its negative"], tmp_path / "sheet.png")))
    strip_height, width = 128, 8 * 132 - 4
    assert sheet.shape[1] == width + 32
    for video, bottom in ((videos[1], sheet.shape[0] - 16), (videos[0], (sheet.shape[0] - 16) // 2)):
        row = sheet[bottom - strip_height : bottom, 16 : 16 + width]
        assert np.array_equal(row, np.array(frame_strip(video)))
    assert (sheet[: (sheet.shape[0] - 16) // 2 - strip_height].min(axis=-1) < 100).any(), "the caption is drawn"


def test_contact_sheet_breaks_long_captions(tmp_path):
    videos = scene(2)[None]
    short = Image.open(contact_sheet(videos, ["short"], tmp_path / "short.png"))
    long = Image.open(
        contact_sheet(videos, ["a caption that is much longer than a row of frames"], tmp_path / "long.png")
    )
    assert long.width == short.width
    assert long.height > short.height


def test_a_contact_sheet_of_many_is_about_square(tmp_path):
    """Columns are filled one after the other, and every video is there."""
    count = 40
    videos = torch.stack([torch.full((8, 3, 16, 16), i / count) for i in range(count)])
    sheet = np.array(Image.open(contact_sheet(videos, ["x"] * count, tmp_path / "sheet.png")))
    height, width = sheet.shape[:2]
    assert 0.5 < height / width < 2
    strip, row = np.array(frame_strip(videos[0])), 24 + 4 + 128 + 16
    columns = (width - 16) // (strip.shape[1] + 16)
    length = -(-count // columns)
    assert height == 16 + length * row
    for i in range(count):
        column, place = divmod(i, length)
        pixel = sheet[16 + place * row + 24 + 4 + 64, 16 + column * (strip.shape[1] + 16) + 64]
        assert pixel.tolist() == [round(255 * i / count)] * 3


def test_contact_sheet_of_large_videos_is_reduced(tmp_path):
    sheet = Image.open(contact_sheet(scene(16, 512)[None], ["large"], tmp_path / "sheet.png"))
    assert sheet.width == 8 * 260 - 4 + 32
