"""Rewards that do not keep their contract, each in one way, as their users would write them."""

from __future__ import annotations

import torch

from vader.rewards import FrameReward, Reward


class Good(FrameReward):
    def score_frames(self, images, prompts):
        return images.mean(dim=(1, 2, 3))


class NoReturn(FrameReward):
    def score_frames(self, images, prompts):
        images.mean()


class OneNumber(FrameReward):
    def score_frames(self, images, prompts):
        return images.mean()


class ANumber(Reward):
    def score(self, clip, prompts):
        return clip.frames.mean().item()


class TooWide(Reward):
    def score(self, clip, prompts):
        return clip.frames.mean(dim=(2, 3, 4))


class Counts(FrameReward):
    def score_frames(self, images, prompts):
        return (images > 0.5).sum(dim=(1, 2, 3))


class Half(FrameReward):
    def score_frames(self, images, prompts):
        return images.mean(dim=(1, 2, 3)).half()


class Raises(FrameReward):
    def score_frames(self, images, prompts):
        return {}[prompts[0].text]


class Detached(Good):
    def score_frames(self, images, prompts):
        return super().score_frames(images.detach(), prompts)


class ThroughNumpy(FrameReward):
    def score_frames(self, images, prompts):
        return torch.from_numpy(images.numpy().mean(axis=(1, 2, 3)))


class OfTheBatch(Reward):
    def score(self, clip, prompts):
        brightness = clip.frames.mean(dim=(1, 2, 3, 4))
        return brightness - brightness.mean()


class Normalised(FrameReward):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3, track_running_stats=False)

    def score_frames(self, images, prompts):
        return self.norm(images).square().mean(dim=(2, 3))[:, 0] + images[:, 0].mean(dim=(1, 2))


class Constant(FrameReward):
    """Its gradient is there, and zero."""

    def score_frames(self, images, prompts):
        return 0 * images.mean(dim=(1, 2, 3)) + 1


class Steep(FrameReward):
    """Its gradient is endless."""

    def score_frames(self, images, prompts):
        return (images - images.detach()).sqrt().mean(dim=(1, 2, 3))


class FailsLate(Good):
    """Fails in the first batch of more than two images."""

    def score_frames(self, images, prompts):
        if len(images) > 2:
            raise OSError("the table of words is gone")
        return super().score_frames(images, prompts)


class Random(FrameReward):
    def score_frames(self, images, prompts):
        return images.mean(dim=(1, 2, 3)) + 0.1 * torch.rand(len(images))


class NotANumber(FrameReward):
    def score_frames(self, images, prompts):
        return images.mean(dim=(1, 2, 3)) * float("nan")


class NoNumberForVideos(FrameReward):
    """One for random pixels, and none for what models make."""

    def score_frames(self, images, prompts):
        means = images.mean(dim=(1, 2, 3))
        return means if images.std() > 0.2 else means * float("nan")
