"""Text embeddings that many videos share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def embed_once(embed: Callable[[Sequence[str]], Tensor], texts: Sequence[str]) -> Tensor:
    """Embeddings `[B, ...]` of B texts, equal ones embedded once: negative texts are mostly the same."""
    rows = {text: embed([text])[0] for text in dict.fromkeys(texts)}
    return torch.stack([rows[text] for text in texts])
