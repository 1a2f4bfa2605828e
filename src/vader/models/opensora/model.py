"""Open-Sora 1.2 (arXiv:2412.20404) as a base model: STDiT3 denoiser, chunked VAE, T5 prompts, rectified flow.

`vader.models.opensora.parts` says what a checkpoint is. Latents are `[B, 4, T, h, w]`, of unit variance; 17 frames
are 5 latent ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5EncoderModel

from vader.errors import UserError
from vader.files.hub import resolve
from vader.models.base import VideoModel
from vader.models.opensora.parts import find_parts, load_scheduler, load_transformer, load_vae, write_checkpoint
from vader.models.opensora.sizes import latent_size
from vader.models.opensora.stdit3 import STDiT3
from vader.models.opensora.text import prepared
from vader.models.opensora.vae import CHANNELS, CHUNK, OpenSoraVAE, pixel_frames
from vader.models.text_cache import TextEmbedder
from vader.networks.measure import weight_dtype
from vader.nouns import Condition, Prompt, VideoSize

STILL_FPS = 120  # what the denoiser is told of a single frame


class OpenSora(VideoModel):
    """STDiT3, decoded window by window; text is encoded once a prompt, and the encoder not kept."""

    family = "opensora"
    lora_targets = ("qkv", "q_linear", "kv_linear")

    def __init__(self, transformer: STDiT3, vae: OpenSoraVAE, text: TextEmbedder, scheduler: Mapping[str, Any]) -> None:
        self.denoisers = {"transformer": transformer}
        self.vae = vae
        self.text = text
        self.scheduler = scheduler

    @classmethod
    def locate(cls, checkpoint: str) -> str:
        """See `VideoModel.locate`: of the transformer, or of a folder of all parts."""
        return resolve(checkpoint, cls.family)

    @classmethod
    def load(
        cls,
        checkpoint: str,
        *,
        dtype: torch.dtype = torch.float32,
        vae: str | None = None,
        text_encoder: str | None = None,
        text_8bit: bool = False,
    ) -> OpenSora:
        """See `VideoModel.load`; `vader.models.opensora.parts` says what `checkpoint`, `vae`, `text_encoder` may be.

        Args:
            text_8bit: hold the text encoder in 8 bits while it is there; needs bitsandbytes.
        """
        parts = find_parts(checkpoint, vae, text_encoder)
        transformer = load_transformer(parts.transformer, dtype)
        length = transformer.config.model_max_length
        return cls(
            transformer=transformer,
            vae=load_vae(parts.vae, dtype),
            text=TextEmbedder(
                T5EncoderModel, parts.text_encoder, parts.tokenizer, dtype, length, cls.family, text_8bit
            ),
            scheduler=load_scheduler(parts.transformer),
        )

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Encodes all that is new among the prompts, loading the text encoder once."""
        negative = [prompt.negative for prompt in prompts if prompt.negative]
        self.text.prepare([prepared(text) for text in [*map(str, prompts), *negative]], self.device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """Text embeddings `[B, L, D]`, L the longest prompt's tokens, with their mask, and the video's size and fps.

        The unconditional twin is the learned null embedding, cut to as many tokens as the prompt has; of a prompt with
        a negative text, that text's embedding.

        Raises:
            UserError: images were given; this family makes videos from text alone.
        """
        if images is not None:
            raise UserError("models of the family 'opensora' take no images: use text prompts")
        negatives = {row: prompt.negative for row, prompt in enumerate(prompts) if prompt.negative}
        texts = [prepared(text) for text in [*map(str, prompts), *negatives.values()]]
        embedded, masks = self.text(texts, self.device)
        text, mask = embedded[: len(prompts)], masks[: len(prompts)]
        null = self.denoiser.y_embedder.y_embedding[: text.shape[1]].repeat(len(prompts), 1, 1)
        uncond_mask = mask.clone()
        for place, row in enumerate(negatives, start=len(prompts)):
            null[row], uncond_mask[row] = embedded[place].to(null.dtype), masks[place]
        size_inputs = self._size_inputs(size, len(prompts))
        cond = {"text": text.to(null.dtype), "text_mask": mask, **size_inputs}
        return Condition(cond, {"text": null, "text_mask": uncond_mask, **size_inputs})

    def _size_inputs(self, size: VideoSize, count: int) -> dict[str, Tensor]:
        numbers = {
            "fps": STILL_FPS if size.frames == 1 else size.fps,
            "height": size.height,
            "width": size.width,
        }
        return {name: torch.full((count,), float(value), device=self.device) for name, value in numbers.items()}

    def noise_shape(self, size: VideoSize) -> tuple[int, ...]:
        """`(4, T, h, w)`; `vader.models.opensora.sizes` says which sizes there are."""
        return CHANNELS, *latent_size(size, self.vae.space_factor)

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """See `VideoModel.denoise`: latents and prediction (the velocity, data minus noise) are `[N, 4, T, h, w]`."""
        out = self.denoiser(latents, time.to(latents.device).expand(len(latents)), **inputs)
        return out[:, :CHANNELS].to(latents.dtype)

    def windows(self, size: VideoSize) -> Sequence[range]:
        """Chunks of 17 frames, which 5 latent ones make; the last may be shorter."""
        return [range(start, min(start + CHUNK, size.frames)) for start in range(0, size.frames, CHUNK)]

    def decode_unclamped(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        """See `VideoModel.decode_unclamped`: chosen frames cost their own chunks of 17 frames, and no other.

        Height and width are whole multiples of the VAE's factor, rounded down.
        """
        count, z = pixel_frames(latents.shape[2]), latents.to(weight_dtype(self.vae))
        if frames is None:
            pixels = self.vae.decode(z, count)
        else:
            each = zip(z.split(1), frames.tolist(), strict=True)
            pixels = torch.cat([self.vae.decode_frames(video, chosen, count) for video, chosen in each])
        return pixels.movedim(1, 2).to(latents.dtype) / 2 + 0.5

    @torch.no_grad()
    def encode_video(self, pixels: Tensor) -> Tensor:
        """See `VideoModel.encode_video`: the means of the posteriors, `[B, 4, T, h, w]`."""
        inputs = pixels.movedim(2, 1).to(weight_dtype(self.vae)) * 2 - 1
        return self.vae.encode(inputs, torch.zeros_like).to(pixels.dtype)

    def exporter(self) -> Callable[[Path], Any]:
        """Writes a checkpoint of this family; see `vader.models.opensora.parts.write_checkpoint`."""
        return lambda folder: write_checkpoint(
            folder, self.denoiser, self.vae, self.scheduler, (self.text.encoder, self.text.tokenizer)
        )

    def networks(self) -> dict[str, nn.Module]:
        """The text encoder is not among them: it is there only while new prompts are encoded."""
        return {"transformer": self.denoiser, "vae": self.vae}
