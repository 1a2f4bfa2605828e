"""From prompts to T5 embeddings: suffixes, cleaning, the encoder, and a cache on disk that makes the encoder rare.

T5-v1.1-XXL's encoder is four times as large as the denoiser. So it is loaded only for prompts that were never seen
before, encodes them all, and is dropped again; their embeddings are kept in `$VADER_CACHE/text` (by default
`~/.cache/vader/text`), some 200 KB a prompt.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, BitsAndBytesConfig, T5EncoderModel

from vader.errors import UserError
from vader.files import hub as files
from vader.files.atomic import atomic_write
from vader.models.opensora.parts import Part

BATCH = 8  # prompts that the encoder sees at once


def prepared(prompt: str) -> str:
    """A prompt as the release feeds it to T5: with its default suffix, cleaned."""
    return cleaned(with_scores(prompt, aesthetic=6.5))


def with_scores(
    prompt: str, aesthetic: float | None = None, motion: float | None = None, camera: str | None = None
) -> str:
    """Appends what the model was trained to find at a caption's end, each unless the prompt has its own."""
    suffixes = {
        "aesthetic score:": None if aesthetic is None else f"{aesthetic:.1f}",
        "motion score:": None if motion is None else f"{motion:.1f}",
        "camera motion:": camera,
    }
    for name, value in suffixes.items():
        if value is not None and name not in prompt:
            prompt = f"{prompt} {name} {value}."
    return prompt


def cleaned(prompt: str) -> str:
    """Lower case, without markup, addresses, file names and the like: the cleaning of DeepFloyd's captions, twice.

    diffusers has it in its PixArt pipeline, as a method that uses the class's constants and no pipeline.
    """
    pipeline: Any = PixArtAlphaPipeline
    for _ in range(2):
        prompt = pipeline._clean_caption(pipeline, prompt)
    return prompt


class TextEmbedder:
    """Embeddings of prepared prompts, from the cache or, for new prompts, from the encoder.

    Args:
        encoder, tokenizer: where they lie.
        dtype: of the encoder. (float16 is too narrow for T5, so bfloat16 stands in for it.)
        max_length: tokens after which a prompt is cut, its end mark included.
        eight_bit: keep the encoder's linear layers in 8 bits (LLM.int8(), arXiv 2208.07339, by bitsandbytes): the
            4.8 B weights of T5-v1.1-XXL then take 5 GB, not 10.

    Raises:
        UserError: 8 bits are asked for, and bitsandbytes is not installed.
    """

    def __init__(
        self, encoder: Part, tokenizer: Part, dtype: torch.dtype, max_length: int, eight_bit: bool = False
    ) -> None:
        if eight_bit and importlib.util.find_spec("bitsandbytes") is None:
            raise UserError('model.options.text_8bit needs bitsandbytes: pip install "vader-video[int8]"')
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.dtype = torch.bfloat16 if dtype == torch.float16 else dtype
        self.max_length = max_length
        self.eight_bit = eight_bit
        precision = "int8" if eight_bit else self.dtype
        self.cache = EmbeddingCache(f"{fingerprint(encoder)} {fingerprint(tokenizer)} {precision} {max_length}")

    def prepare(self, texts: Sequence[str], device: torch.device) -> None:
        """Encodes the texts that the cache lacks; the encoder is on the device meanwhile, and gone afterwards."""
        if new := [text for text in dict.fromkeys(texts) if text not in self.cache]:
            self._encode(new, device)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()

    def __call__(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Embeddings `[B, L, D]`, zero beyond each text's tokens, and bool `[B, L]`: where there are tokens."""
        self.prepare(texts, device)
        rows = [self.cache[text] for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device), mask.to(device)

    @torch.no_grad()
    def _encode(self, texts: list[str], device: torch.device) -> None:
        tokenizer = files.load_tokenizer(AutoTokenizer, self.tokenizer.source, self.tokenizer.subfolder)
        encoder = self._load_encoder(device)
        for start in range(0, len(texts), BATCH):
            some = texts[start : start + BATCH]
            tokens = tokenizer(some, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
            hidden = encoder(tokens.input_ids.to(device), tokens.attention_mask.to(device)).last_hidden_state.cpu()
            for text, row, kept in zip(some, hidden, tokens.attention_mask.bool(), strict=True):
                self.cache[text] = row[kept]

    def _load_encoder(self, device: torch.device) -> Any:
        where = (T5EncoderModel, self.encoder.source, self.encoder.subfolder, self.dtype)
        if not self.eight_bit:
            return files.load_network(*where).to(device)
        quantization = BitsAndBytesConfig(load_in_8bit=True)
        return files.load_network(*where, quantization_config=quantization, device_map={"": device})


def fingerprint(part: Part) -> str:
    """What tells one encoder from another: a hub id, or the names, sizes and times of a folder's files."""
    folder = Path(part.source, part.subfolder)
    if not folder.is_dir():
        return part.source
    stats = {file.name: file.stat() for file in sorted(folder.iterdir()) if file.is_file()}
    return " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats.items())


class EmbeddingCache:
    """Embeddings `[n, D]` of texts by one encoder, each in a file of its own, named after both."""

    def __init__(self, encoder: str) -> None:
        root = Path(os.environ.get("VADER_CACHE", "~/.cache/vader")).expanduser()
        self.folder = root / "text" / _digest(encoder)

    def __contains__(self, text: str) -> bool:
        return self._path(text).exists()

    def __getitem__(self, text: str) -> Tensor:
        path = self._path(text)
        try:
            return load_file(path)["embedding"]
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"the cached text {str(path)!r} is damaged: delete it ({error})") from error

    def __setitem__(self, text: str, embedding: Tensor) -> None:
        try:
            with atomic_write(self._path(text)) as temporary:  # several processes may write the same text
                save_file({"embedding": embedding.contiguous()}, temporary)
        except UserError as error:
            raise UserError(f"cannot keep encoded prompts in {self.folder}: set VADER_CACHE ({error})") from error

    def _path(self, text: str) -> Path:
        return self.folder / f"{_digest(text)}.safetensors"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
