"""Text embeddings of encoders that are too large to stay: made once a prompt, kept on disk, the encoder dropped again.

T5-XXL and its kin are several times as large as a denoiser. So an encoder is loaded only for texts that were never seen
before, has the device to itself while it encodes them all, and is dropped; their embeddings are kept in
`$VADER_CACHE/text` (by default `~/.cache/vader/text`), some 200 KB a prompt. Negative prompts are texts like any other.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, BitsAndBytesConfig

from vader.errors import UserError
from vader.files import hub as files
from vader.files.atomic import atomic_write

Filled = Literal["attended", "kept", "masked"]  # see `TextEmbedder`


class Part(NamedTuple):
    """One component of a checkpoint: a folder or hub id, and the subfolder in it ("" where it is the whole)."""

    source: str
    subfolder: str = ""


class TextEmbedder:
    """Embeddings of prepared texts, from the cache or, for new ones, from the encoder.

    Attributes:
        skipped: tokens in front whose embeddings are not kept: those of a template around the texts.
        batch: texts that the encoder sees at once.
        beside: networks that wait in CPU memory while the encoder is on their device.

    Args:
        network: the encoder's class in transformers.
        encoder, tokenizer: where they lie.
        template: a name for how texts are prepared and cut, so that no family takes another's embeddings.
        dtype: of the encoder. (float16 is too narrow for T5, so bfloat16 stands in for it.)
        max_length: tokens after which a text is cut, its end mark included.
        filled: fill every text up to `max_length` tokens, as some pipelines do. None: no text is filled up. "attended":
            the encoder attends to all tokens alike, and the embeddings of the text's own are kept. "kept": all are.
            "masked": all are, but the encoder attends to the text's own.
        eight_bit: keep the encoder's linear layers in 8 bits (LLM.int8(), arXiv 2208.07339, by bitsandbytes): the
            4.8 B weights of T5-v1.1-XXL then take 5 GB, not 10.

    Raises:
        UserError: 8 bits are asked for, and bitsandbytes is not installed.
    """

    skipped: ClassVar[int] = 0
    batch: ClassVar[int] = 8

    def __init__(
        self,
        network: type[Any],
        encoder: Part,
        tokenizer: Part,
        dtype: torch.dtype,
        max_length: int,
        template: str,
        eight_bit: bool = False,
        filled: Filled | None = None,
    ) -> None:
        if eight_bit and importlib.util.find_spec("bitsandbytes") is None:
            raise UserError("model.options.text_8bit needs bitsandbytes: pip install bitsandbytes")
        self.network = network
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.dtype = torch.bfloat16 if dtype == torch.float16 else dtype
        self.max_length = max_length
        self.eight_bit = eight_bit
        self.filled = filled
        precision = "int8" if eight_bit else self.dtype
        more = [filled] if filled else []
        parts = (fingerprint(encoder), fingerprint(tokenizer), precision, max_length, template, *more)
        self.cache = EmbeddingCache(" ".join(map(str, parts)))
        self.beside: Sequence[nn.Module] = ()

    def prepare(self, texts: Sequence[str], device: torch.device) -> None:
        """Encodes the texts that the cache lacks; the encoder is on the device meanwhile, and gone afterwards."""
        if new := [text for text in dict.fromkeys(texts) if text not in self.cache]:
            with _waiting(self.beside, device):
                self._encode(new, device)
                _free(device)

    def __call__(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Embeddings `[B, L, D]`, zero beyond each text's tokens, and bool `[B, L]`: where there are tokens."""
        self.prepare(texts, device)
        rows = [self.embedded(text) for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device), mask.to(device)

    @torch.no_grad()
    def _encode(self, texts: list[str], device: torch.device) -> None:
        tokenizer = self.load_tokenizer()
        encoder = self.load(device)
        for start in range(0, len(texts), self.batch):
            some = texts[start : start + self.batch]
            tokens = self.tokenize(tokenizer, some, padding="max_length" if self.filled else True)
            own, every = tokens.attention_mask, torch.ones_like(tokens.input_ids)
            mask = every if self.filled in ("attended", "kept") else own
            shown = every if self.filled in ("kept", "masked") else own
            hidden = self.features(encoder, tokens.input_ids.to(device), mask.to(device)).cpu()
            for text, row, kept in zip(some, hidden, shown.bool(), strict=True):
                self.cache[text] = row[kept][self.skipped :]

    def embedded(self, text: str) -> Tensor:
        """The embedding `[n, D]` of a prepared text."""
        return self.cache[text]

    def tokenize(self, tokenizer: Any, texts: Sequence[str], **padding: Any) -> Any:
        """What the encoder is given of texts: `input_ids` and `attention_mask`, `[B, L]`."""
        said = [self.said(text) for text in texts]
        return tokenizer(said, truncation=True, max_length=self.max_length, return_tensors="pt", **padding)

    def said(self, text: str) -> str:
        """A text as it is given to the tokenizer."""
        return text

    def features(self, encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
        """What it makes of tokens `[B, L]`: `[B, L, D]`."""
        return encoder(ids, mask).last_hidden_state

    def load_tokenizer(self) -> Any:
        return files.load_tokenizer(AutoTokenizer, self.tokenizer.source, self.tokenizer.subfolder)

    def load(self, device: torch.device) -> Any:
        """The encoder itself."""
        where = (self.network, self.encoder.source, self.encoder.subfolder, self.dtype)
        if not self.eight_bit:
            return files.load_network(*where).to(device)
        quantization = BitsAndBytesConfig(load_in_8bit=True)
        return files.load_network(*where, quantization_config=quantization, device_map={"": device})


@contextmanager
def _waiting(networks: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Within, those that are on the device are in CPU memory; what is sharded over devices stays where it is."""
    there = [network for network in networks if device.type != "cpu" and _is_on(network, device)]
    try:
        for network in there:
            network.to("cpu")
        _free(device)
        yield
    finally:
        for network in there:
            network.to(device)


def _is_on(network: nn.Module, device: torch.device) -> bool:
    weights = list(network.parameters())
    return any(weight.device == device for weight in weights) and not any(isinstance(one, DTensor) for one in weights)


def _free(device: torch.device) -> None:
    """Gives back what nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def fingerprint(part: Part) -> str:
    """What tells one encoder from another: a hub id, or the names, sizes and times of a folder's files."""
    folder = Path(part.source, part.subfolder)
    if not folder.is_dir():
        return f"{part.source}/{part.subfolder}".rstrip("/")
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
