"""A reward that needs to know when a frame is shown."""

from vader import PerSecond, Reward

SEEN = []  # the times of every clip that has been scored


class Speed(Reward):
    """Change of the picture a second, seen at two frames a second: a video is as fast as it is played."""

    needs = PerSecond(2.0, least=2)
    sensible_range = (0.0, 0.5)

    def score(self, clip, prompts):
        SEEN.append(clip.times.cpu())
        change = clip.frames.diff(dim=1).square().mean(dim=(2, 3, 4))
        return (change / clip.times.diff(dim=1)).mean(dim=1)
