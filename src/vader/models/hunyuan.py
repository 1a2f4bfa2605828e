"""HunyuanVideo (arXiv 2412.03603), text to video, through diffusers' own classes.

A checkpoint is a `HunyuanVideoPipeline` folder or hub id: `hunyuanvideo-community/HunyuanVideo`. Its transformer was
distilled to be told the guidance scale, so that a step is one pass. Latents are `[B, C, T, h, w]`; of 4n + 1 frames
there are n + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPTextModel, LlamaModel

from vader.errors import UserError
from vader.files import hub as files
from vader.models.base import latent_frames, latent_sides
from vader.models.folder import FolderModel
from vader.models.hunyuan_text import TOKENS, LlamaEmbedder
from vader.models.hunyuan_vae import TileDecoder, recompute_layers
from vader.models.text import embed_once
from vader.models.text_cache import Part, TextEmbedder
from vader.networks.measure import weight_dtype
from vader.networks.recompute import Grain
from vader.nouns import Condition, Prompt, VideoSize

CLIP_TOKENS = 77
TOLD = 1000.0  # the scale is told in thousandths


class HunyuanVideo(FolderModel):
    """A transformer of text and video tokens, a VAE that is decoded tile by tile; Llama's features are made once."""

    family = "hunyuan"
    components = ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
    lora_pipeline = "HunyuanVideoPipeline"
    # Not those of the text's own two blocks: diffusers misreads them in files under original names.
    lora_targets = (
        *(f"transformer_blocks.*.attn.{layer}" for layer in FolderModel.lora_targets),
        *(f"single_transformer_blocks.*.attn.{layer}" for layer in ("to_q", "to_k", "to_v")),
    )
    guidance = "embedded"
    sigmas: str | None = "even"
    vae: Any  # diffusers' networks carry their settings in ways that type checkers do not see
    text_encoder_2: Any

    def __init__(
        self,
        transformer: nn.Module,
        vae: AutoencoderKLHunyuanVideo,
        text: TextEmbedder,
        text_encoder_2: CLIPTextModel,
        tokenizer_2: Any,
        scheduler: Mapping[str, Any],
    ) -> None:
        self.denoisers = {"transformer": transformer}
        self.vae = vae
        self.text = text
        self.text_encoder_2 = text_encoder_2
        self.tokenizer_2 = tokenizer_2
        self.scheduler = scheduler
        self.decoder = TileDecoder(vae)

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32) -> HunyuanVideo:
        """See `VideoModel.load`; `checkpoint` is a folder or a hub id.

        Raises:
            UserError: there is no such checkpoint, it is not of this family, or it is not told a guidance scale.
        """
        source = cls.locate(checkpoint)
        if not files.load_config(source, "transformer").get("guidance_embeds"):
            raise UserError(f"checkpoint {source!r} is not told a guidance scale: those are not supported")
        encoder, tokenizer = Part(source, "text_encoder"), Part(source, "tokenizer")
        tokens = TOKENS + LlamaEmbedder.skipped
        return cls(
            scheduler=files.load_config(source, "scheduler"),
            text=LlamaEmbedder(LlamaModel, encoder, tokenizer, dtype, tokens, "hunyuan"),
            text_encoder_2=files.load_network(CLIPTextModel, source, "text_encoder_2", dtype),
            tokenizer_2=files.load_tokenizer(AutoTokenizer, source, "tokenizer_2"),
            vae=files.load_network(AutoencoderKLHunyuanVideo, source, "vae", dtype),
            transformer=files.load_network(HunyuanVideoTransformer3DModel, source, "transformer", dtype),
        )

    # ---- text ----

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Encodes all that is new among the prompts, loading Llama once."""
        self.text.prepare([prompt.text for prompt in prompts], self.device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """Llama's features `[B, 256, D]` with their mask, and CLIP's pooled ones `[B, E]`. There is one branch: the
        unconditional twin is the same.

        Raises:
            UserError: images were given; this family makes videos from text alone.
        """
        if images is not None:
            raise UserError("models of the family 'hunyuan' take no images: use text prompts")
        texts = [prompt.text for prompt in prompts]
        features, mask = self.text(texts, self.device)
        missing = TOKENS - features.shape[1]
        cond = {
            "text": F.pad(features, (0, 0, 0, missing)),
            "mask": F.pad(mask.float(), (0, missing)),
            "pooled": embed_once(self._pooled, texts),
        }
        return Condition(cond, cond)

    def _pooled(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer_2(
            list(texts), padding="max_length", max_length=CLIP_TOKENS, truncation=True, return_tensors="pt"
        )
        return self.text_encoder_2(tokens.input_ids.to(self.device)).pooler_output

    # ---- latents ----

    def noise_shape(self, size: VideoSize) -> tuple[int, ...]:
        """`(C, T, h, w)`; there are 4n + 1 frames, and sides are multiples of 16."""
        patch = self._patch
        height, width = latent_sides(size, self.vae.spatial_compression_ratio * patch)
        frames = latent_frames(size, self.vae.temporal_compression_ratio)
        return self.vae.config.latent_channels, frames, height * patch, width * patch

    @property
    def _patch(self) -> int:
        """So many latents a side are one token."""
        return self.denoiser.config.patch_size

    @property
    def check_size(self) -> VideoSize:
        """See `VideoModel.check_size`: two latents of one token each."""
        side = self.vae.spatial_compression_ratio * self._patch
        return VideoSize(1 + self.vae.temporal_compression_ratio, side, side)

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """See `VideoModel.denoise`: latents and prediction (the velocity, noise minus data) are `[N, C, T, h, w]`.

        Raises:
            UserError: the guidance is another than `embedded`, and tells no scale.
        """
        if "guidance" not in inputs:
            raise UserError("HunyuanVideo has to be told a scale: set sampling.guidance to a number, or to 'embedded'")
        dtype = weight_dtype(self.denoiser)
        told = time.to(latents).expand(len(latents))
        text, pooled = inputs["text"].to(dtype), inputs["pooled"].to(dtype)
        scale = inputs["guidance"].to(dtype) * TOLD
        return self.denoiser(latents.to(dtype), told, text, inputs["mask"], pooled, guidance=scale, return_dict=False)[
            0
        ].to(latents.dtype)

    # ---- pixels ----

    def windows(self, size: VideoSize) -> Sequence[range]:
        """The frames of each tile: 13 of the first, 12 of each later one."""
        _, latents, *_ = self.noise_shape(size)
        return self.decoder.windows(latents)

    def decode_unclamped(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        """See `VideoModel.decode_unclamped` and `vader.models.hunyuan_vae`."""
        return self.decoder(latents, frames)

    def tiny_latents(self, latents: Tensor) -> Tensor:
        """See `VideoModel.tiny_latents`: of `taehv`."""
        return latents.movedim(2, 1)

    @torch.no_grad()
    def encode_video(self, pixels: Tensor) -> Tensor:
        """See `VideoModel.encode_video`: the mode of the VAE's posterior."""
        video = (pixels.movedim(2, 1) * 2 - 1).to(weight_dtype(self.vae))
        return self.vae.encode(video).latent_dist.mode().to(pixels.dtype) * self.vae.config.scaling_factor

    # ---- networks ----

    def networks(self) -> dict[str, nn.Module]:
        """Llama is not among them: it is there only while new prompts are encoded."""
        return {**self.denoisers, "vae": self.vae, "text_encoder_2": self.text_encoder_2}

    def recompute(self, name: str, network: nn.Module, of: Grain) -> None:
        """See `VideoModel.recompute`: of the VAE always layers, as its largest block would be most of it."""
        if name == "vae":
            recompute_layers(network)
        else:
            super().recompute(name, network, of)

    def diffusers_pipeline(self) -> HunyuanVideoPipeline:
        """The same networks as diffusers' pipeline, with the checkpoint's own scheduler and text encoders."""
        return HunyuanVideoPipeline(
            tokenizer=self.text.load_tokenizer(),
            text_encoder=self.text.load(torch.device("cpu")),
            tokenizer_2=self.tokenizer_2,
            text_encoder_2=self.text_encoder_2,
            vae=self.vae,
            transformer=self.denoiser,
            scheduler=getattr(diffusers, self.scheduler["_class_name"]).from_config(self.scheduler),
        )
