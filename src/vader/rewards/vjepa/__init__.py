"""Temporal consistency by V-JEPA: how well hidden parts of a video can be told from the rest of it.

`masks` says what is hidden, `networks` and `transformers2` predict it (V-JEPA 1 and 2), `checkpoint` reads the
released files, and `reward` joins them. Pixels `[B, F, 3, H, W]` come in, one number a video goes out.
"""

from vader.rewards.vjepa.reward import VJEPA

__all__ = ["VJEPA"]
