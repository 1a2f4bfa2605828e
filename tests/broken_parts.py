"""Parts of every kind that fail, each in one way, as their users would write them."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from vader import Algorithm, Guidance, Metric, Technique, View, prompt_set


class Divides(Metric):
    def per_video(self, clip, prompts):
        return clip.frames.mean(dim=(1, 2, 3, 4)) * (1 / 0)


class DividesSets(Metric):
    def over_set(self, clips, prompts):
        return 1 / (len(clips) - 3)  # as many as toy.yaml has


class Text(Metric):
    def per_video(self, clip, prompts):
        return "good"


class OneText(Metric):
    def over_set(self, clips, prompts):
        return {"words": "1.5"}


class Late(Metric):
    """Fails in the first batch of more than two videos."""

    def per_video(self, clip, prompts):
        return {}[len(prompts)] if len(prompts) > 2 else clip.frames.mean(dim=(1, 2, 3, 4))


class Unprepared(Metric):
    def prepare(self, device, dtype):
        self.network.to(device)

    def per_video(self, clip, prompts):
        return clip.frames.mean(dim=(1, 2, 3, 4))


class Unmade(Metric):
    def __init__(self):
        self.table = {}["a"]

    def per_video(self, clip, prompts):
        return clip.frames.mean(dim=(1, 2, 3, 4))


def forgetful(walk, generator):
    yield View(walk.to(len(walk), walk.start(), {}["steps"]).latents)


def no_generator(walk, generator):
    return [][0]


class Leads(Guidance):
    def __call__(self, passes):
        return passes.cond() / 0 if passes.share < 0 else passes.strength


class Refuses(Guidance):
    def check(self, model, steps):
        return 1 / 0

    def __call__(self, passes):
        return passes.cond()


class Enters(Technique):
    @contextmanager
    def gradient_step(self):
        yield 1 / 0


class Packs(Technique):
    def gradient_step(self):
        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda packed: packed.nowhere)


class Prepares(Technique):
    def prepare(self, network, role):
        raise KeyError(role.name)


class Steps(Algorithm):
    def step(self, engine, batch):
        return batch.nothing


class Unready(Algorithm):
    def __init__(self, settings, recipe):
        super().__init__(settings, recipe)
        self.rate = settings.rate

    def step(self, engine, batch):
        return batch


@prompt_set
def prompts():
    return ["a"][1]
