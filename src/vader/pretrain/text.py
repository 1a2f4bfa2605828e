"""The tiny world's tokenizer, and the base model's text encoder, pretrained contrastively against scene attributes.

The text encoder is pretrained alone, before the denoiser: a caption's pooled feature must pick its own
attributes out of a batch. Conditioning is then meaningful from the denoiser's first step on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vader.pretrain.loop import Schedule, fit, generator_for
from vader.tinyworld.scenes import ALL_ATTRIBUTES, BACKGROUNDS, CAPTIONS, COLORS, MOTIONS, SHAPES, Attributes, caption

SEED = 12
SCHEDULE = Schedule(steps=2000, lr=1e-3)
BATCH = 192
TOKENS = 16  # the longest caption has 12, counting start and end
WIDTH = 64
STYLE_WORDS = ("dull", "faded", "plain", "bright", "vivid", "photo", "of")
TEMPERATURE = 0.07


def write_tokenizer(folder: Path, words: Sequence[str] = ()) -> CLIPTokenizer:
    """Writes a CLIP tokenizer of every byte and, as one token each, the tiny world's words and `words`."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bpe.train_from_iterator(
        [_all_words(words)], trainers.BpeTrainer(vocab_size=4000, end_of_word_suffix="</w>", min_frequency=1)
    )
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    learned = [token for token in bpe.get_vocab() if len(token.removesuffix("</w>")) > 1]
    tokens = [*bytes_, *(byte + "</w>" for byte in bytes_), *sorted(learned), start, end]
    folder.mkdir(parents=True, exist_ok=True)
    bpe.model.save(str(folder))  # merges.txt, in the order they were learned
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "pad_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def _all_words(more: Sequence[str]) -> str:
    names = [*COLORS, *SHAPES, *BACKGROUNDS, *MOTIONS, *STYLE_WORDS, *more]
    return " ".join(sorted({word for text in (*CAPTIONS, *names) for word in text.split() if "{" not in word}))


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids `[N, TOKENS]`, padded as the pipelines do."""
    return tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids


def clip_text_config(tokenizer: CLIPTokenizer, width: int, layers: int, projection: int) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": projection,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": TOKENS,
        "hidden_act": "gelu",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


class CaptionMatcher(nn.Module):
    """A text tower and an embedding of attributes that must agree on which caption describes which scene."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text = CLIPTextModel(CLIPTextConfig(**clip_text_config(tokenizer, WIDTH, layers=2, projection=WIDTH)))
        self.attributes = nn.ModuleList(
            nn.Embedding(len(kind), WIDTH) for kind in (COLORS, SHAPES, BACKGROUNDS, MOTIONS)
        )

    def forward(self, tokens: Tensor, attributes: Tensor) -> Tensor:
        """Cosine similarities `[N, N]` of captions (rows) and attribute tuples (columns)."""
        text = self.text(input_ids=tokens).pooler_output
        scene = sum(table(column) for table, column in zip(self.attributes, attributes.unbind(dim=1), strict=True))
        return F.normalize(text.float(), dim=-1) @ F.normalize(scene.float(), dim=-1).T


def contrastive_loss(similarity: Tensor, temperature: float | Tensor = TEMPERATURE) -> Tensor:
    """Symmetric InfoNCE over `[N, N]` similarities whose diagonal holds the true pairs (CLIP, arXiv 2103.00020)."""
    target = torch.arange(len(similarity), device=similarity.device)
    logits = similarity / temperature
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def distinct_captions(count: int, generator: torch.Generator) -> tuple[list[str], list[Attributes]]:
    """`count` captions of different attributes, each after a random template."""
    picks = torch.randperm(len(ALL_ATTRIBUTES), generator=generator)[:count].tolist()
    attributes = [ALL_ATTRIBUTES[i] for i in picks]
    templates = torch.randint(len(CAPTIONS), (count,), generator=generator).tolist()
    return [caption(item, t) for item, t in zip(attributes, templates, strict=True)], attributes


def build(out: Path, work: Path) -> dict[str, float]:
    """Writes `out/tokenizer` and `out/text_encoder`, and returns how often a caption finds its own attributes."""
    torch.manual_seed(SEED)
    tokenizer = write_tokenizer(out / "tokenizer")
    matcher = CaptionMatcher(tokenizer)

    def batch(generator: torch.Generator, count: int = BATCH) -> Tensor:
        texts, attributes = distinct_captions(count, generator)
        return matcher(tokenize(tokenizer, texts), torch.tensor(attributes))

    matcher = fit(matcher, lambda g: contrastive_loss(batch(g)), SCHEDULE, SEED, checkpoint=work / "text.pt")
    with torch.no_grad():
        similarity = batch(generator_for(SEED, -1), len(ALL_ATTRIBUTES))
    matcher.text.half().save_pretrained(out / "text_encoder")
    return {"retrieval": (similarity.argmax(dim=1) == torch.arange(len(similarity))).float().mean().item()}
