"""Families whose checkpoints are folders in diffusers' layout, here or on the hub."""

from __future__ import annotations

from typing import ClassVar

from vader.files import hub
from vader.models.base import VideoModel


class FolderModel(VideoModel):
    """A family whose checkpoints are folders of parts.

    Attributes:
        components: the parts (subfolders) that a whole folder has.
        tiny: the family whose weights of the tiny world `tiny` stands for; empty: this one.
    """

    components: ClassVar[tuple[str, ...]] = ()
    tiny: ClassVar[str] = ""

    @classmethod
    def locate(cls, checkpoint: str) -> str:
        """See `VideoModel.locate`: a folder, a hub id, or `tiny` where the tiny world has the family."""
        source = hub.resolve(checkpoint, cls.tiny or cls.family)
        hub.check_components(source, cls.components)
        return source
