"""Qwen-VL networks as differentiable readers of videos and pictures, for the rewards that are built on them.

`pixels` is their image processor in tensors, `network` joins it with chat, tokens and positions, and `release` reads
checkpoints of rewards that were trained on them. Frames in [0, 1] and a text go in, hidden states come out.
"""

from vader.rewards.qwen_vl.network import QwenVL, load_qwen_vl
from vader.rewards.qwen_vl.release import load_release

__all__ = ["QwenVL", "load_qwen_vl", "load_release"]
