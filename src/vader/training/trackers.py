"""What trackers are shown of a run beside its numbers: its sample videos.

In go the videos of an evaluation and the folder that they lie in. TensorBoard has no videos, but plays GIFs as images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from vader.evaluation.held_out import VideoScore, sample_name
from vader.files.video import gif_bytes


def show_videos(accelerator: Accelerator, videos: Sequence[VideoScore], folder: Path, fps: int, step: int) -> None:
    """Hands the videos of a step to every tracker, each under `samples/000` and so on with its prompt and reward.

    Args:
        videos: those that lie in `folder` under their `sample_name`.
    """
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            _to_wandb(tracker, videos, folder, step)
        if tracker.name == "tensorboard":
            _to_tensorboard(tracker.tracker, videos, fps, step)


def _to_wandb(tracker: Any, videos: Sequence[VideoScore], folder: Path, step: int) -> None:
    from wandb import Video

    files = [str(folder / sample_name(video)) for video in videos]
    shown = [Video(file, caption=_caption(video), format="mp4") for file, video in zip(files, videos, strict=True)]
    tracker.log({_tag(video): one for video, one in zip(videos, shown, strict=True)}, step=step)


def _to_tensorboard(writer: Any, videos: Sequence[VideoScore], fps: int, step: int) -> None:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

    kept = [(video, video.clip.frames[0]) for video in videos if video.clip is not None]
    images = [
        Summary.Image(height=f.shape[-2], width=f.shape[-1], colorspace=3, encoded_image_string=gif_bytes(f, fps))
        for _, f in kept
    ]
    values = [
        Summary.Value(tag=_tag(video), image=image, metadata=SummaryMetadata(display_name=_caption(video)))
        for (video, _), image in zip(kept, images, strict=True)
    ]
    writer._get_file_writer().add_summary(Summary(value=values), step)


def _tag(video: VideoScore) -> str:
    return f"samples/{video.index:03d}"


def _caption(video: VideoScore) -> str:
    return f"{video.prompt} (reward {video.reward:.3f})"
