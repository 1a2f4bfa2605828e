"""Large activations wait on the disk for the backward pass."""

import itertools
import tempfile
from pathlib import Path

import torch

from vader import Technique

PREPARED, SPILLED = [], []  # what was done, for whoever wants to know


class Spill(Technique):
    def __init__(self, least: int = 1024):
        """`least`: numbers of a tensor from which on it is worth a file."""
        self.least = least
        self.folder = tempfile.TemporaryDirectory()
        self.numbers = itertools.count()

    def prepare(self, network, role):
        PREPARED.append((role.kind, role.name))

    def gradient_step(self):
        return torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)

    def pack(self, tensor):
        if tensor.numel() < self.least:
            return tensor
        path = Path(self.folder.name) / str(next(self.numbers))
        torch.save(tensor.detach(), path)
        SPILLED.append(path.name)
        return path

    def unpack(self, packed):
        return torch.load(packed) if isinstance(packed, Path) else packed
