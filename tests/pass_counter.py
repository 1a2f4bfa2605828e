"""A memory technique of one's own that saves nothing: it notes each network's passes in each process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from torch import nn

from vader.networks.techniques import Role, Stage, Technique


class NotePasses(Technique):
    """Leaves a file `passes.<rank>` in a folder, with a line for every call of a network or reward: its name."""

    stage: ClassVar[Stage] = Stage.COMPILE

    def __init__(self, folder: str) -> None:
        self.file = Path(folder) / f"passes.{os.environ['RANK']}"

    def prepare(self, network: nn.Module, role: Role) -> None:
        network.register_forward_hook(lambda *_: self._note(role.name))

    def _note(self, name: str) -> None:
        with self.file.open("a") as file:
            file.write(f"{name}\n")
