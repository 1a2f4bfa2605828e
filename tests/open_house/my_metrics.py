"""How far a set of videos is from another one: FVD's distance, of features that need no network."""

from pathlib import Path

import torch

from vader import Metric, read_video


def features(frames):
    """Of each video `[B, F, 3, H, W]`: its mean colour, and how much it moves. `[B, 4]`."""
    colour = frames.mean(dim=(1, 3, 4))
    motion = frames.diff(dim=1).abs().mean(dim=(1, 2, 3, 4))
    return torch.cat([colour, motion[:, None]], dim=1).double()


def statistics(found):
    return found.mean(dim=0), found.T.cov()


def root(matrix):
    """Of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


class Frechet(Metric):
    """The distance of two normal distributions, of the videos' features and of real videos' (arXiv 1812.01717)."""

    def __init__(self, real: Path):
        found = [features(read_video(path)[None]) for path in sorted(real.glob("*.mp4"))]
        self.mean, self.cov = statistics(torch.cat(found))

    def over_set(self, clips, prompts):
        mean, cov = statistics(torch.cat([features(clip.frames) for clip in clips]))
        half = root(self.cov)
        cross = root(half @ cov @ half)
        return float((mean - self.mean).square().sum() + (cov + self.cov - 2 * cross).trace())
