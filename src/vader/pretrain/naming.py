"""A head beside a denoiser, for its training alone: tells what its tokens show, so that it learns shapes sooner.

Flow matching alone learns colours, backgrounds and directions in some hundred steps, and draws blobs for thousands:
a silhouette's corners are a small part of the error. The head asks a middle layer for them (as REPA, arXiv 2410.06940,
asks it for features of another network), and is thrown away.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vader.pretrain.video_vae import FRAMES, LATENTS
from vader.tinyworld.scenes import SHAPES, Scenes, object_masks

SILHOUETTE_WEIGHT, SHAPE_WEIGHT = 0.5, 0.1


def silhouettes(scenes: Scenes) -> Tensor:
    """Where the object is, `[N, LATENTS, 32, 32]`, in the last frame that each latent makes."""
    return object_masks(scenes, FRAMES, 32)[:, :: (FRAMES - 1) // (LATENTS - 1)] > 0.5


class NamingHead(nn.Module):
    """Reads the object's silhouette and shape off a layer's tokens `[B, T * side * side, width]`."""

    def __init__(self, layer: nn.Module, width: int, side: int) -> None:
        super().__init__()
        self.side, self.cells = side, (32 // side) ** 2  # pixels of a token
        self.read = nn.Linear(width, self.cells + len(SHAPES))
        self._seen: Tensor | None = None
        self._hook = layer.register_forward_hook(self._see)

    def _see(self, layer: nn.Module, given: tuple, made: Tensor) -> None:
        self._seen = made

    def loss(self, silhouettes: Tensor, shapes: Tensor) -> Tensor:
        """Of the layer's last pass: cross entropy of pixels, and of the shape where tokens show some of the object.

        Args:
            silhouettes: `[B, T, 32, 32]`.
            shapes: `[B]`, indices into SHAPES.
        """
        assert self._seen is not None  # the layer has run
        pixels, names = self.read(self._seen).split((self.cells, len(SHAPES)), dim=-1)
        self._seen = None
        there = self.by_token(silhouettes)
        shown = there.any(dim=-1)
        error = F.binary_cross_entropy_with_logits(pixels, there.to(pixels.dtype))
        wanted = shapes[:, None].expand(shown.shape)[shown]
        return SILHOUETTE_WEIGHT * error + SHAPE_WEIGHT * F.cross_entropy(names[shown], wanted)

    def by_token(self, silhouettes: Tensor) -> Tensor:
        """Each token's pixels, `[B, T * side * side, cells]`."""
        cells = silhouettes.unflatten(3, (self.side, -1)).unflatten(2, (self.side, -1)).transpose(3, 4)
        return cells.flatten(4).flatten(1, 3)  # of [B, T, row, column, y, x]

    def leave(self) -> None:
        """Ends looking at the layer."""
        self._hook.remove()
