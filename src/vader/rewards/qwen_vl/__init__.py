"""Qwen-VL networks as differentiable readers of videos and pictures, for the rewards that are built on them.

`pixels` is their image processor in tensors, `network` joins it with chat, tokens and positions, and `release` reads
checkpoints of rewards that were trained on them. Frames in [0, 1] and a text go in, hidden states come out.
"""
