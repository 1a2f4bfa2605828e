"""From noise to latents: the walk, guidance, and the policies that say where gradient enters.

In go a model, a condition and noise; out come latents, with a graph exactly where a policy asks for one.
"""

from vader.sampling.guidance import Guidance, load_guidance
from vader.sampling.noise import Noise
from vader.sampling.policies import POLICIES, Policy, View, load_policy
from vader.sampling.videos import make_sampler, sample_videos
from vader.sampling.walk import Place, Sampler, Walk

__all__ = [
    "POLICIES",
    "Guidance",
    "Noise",
    "Place",
    "Policy",
    "Sampler",
    "View",
    "Walk",
    "load_guidance",
    "load_policy",
    "make_sampler",
    "sample_videos",
]
