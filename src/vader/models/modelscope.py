"""ModelScope text-to-video (arXiv:2308.06571) through diffusers' own classes.

A checkpoint is a `TextToVideoSDPipeline` folder or hub id (`ali-vilab/text-to-video-ms-1.7b`, the tiny world's
twin, any fine-tune of the same layout). Latents are `[B, C, F, h, w]`, scaled to unit variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers import TextToVideoSDPipeline
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from vader.errors import UserError
from vader.files import hub as files
from vader.models.base import latent_sides
from vader.models.folder import FolderModel
from vader.models.image_vae import decode_frames, encode_frames, space_factor
from vader.models.text import embed_once
from vader.networks.measure import weight_dtype
from vader.nouns import Condition, Prompt, VideoSize


class ModelScope(FolderModel):
    """UNet3D denoiser, image VAE decoded frame by frame, CLIP text encoder."""

    family = "modelscope"
    components = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    vae: Any  # diffusers' networks carry their settings in ways that type checkers do not see

    def __init__(
        self,
        unet: UNet3DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: Mapping[str, Any],
    ) -> None:
        self.denoisers = {"unet": unet}
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.scheduler = scheduler

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32) -> ModelScope:
        """See `VideoModel.load`; `checkpoint` is `tiny`, a folder or a hub id."""
        source = cls.locate(checkpoint)
        return cls(
            scheduler=files.load_config(source, "scheduler"),
            tokenizer=files.load_tokenizer(CLIPTokenizer, source, "tokenizer"),
            text_encoder=files.load_network(CLIPTextModel, source, "text_encoder", dtype),
            vae=files.load_network(AutoencoderKL, source, "vae", dtype),
            unet=files.load_network(UNet3DConditionModel, source, "unet", dtype),
        )

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """Text embeddings `[B, L, D]`; the unconditional ones are those of the negative texts.

        Raises:
            UserError: images were given; this family makes videos from text alone.
        """
        if images is not None:
            raise UserError("models of the family 'modelscope' take no images: use text prompts")
        cond, uncond = ([prompt.text for prompt in prompts], [prompt.negative for prompt in prompts])
        return Condition({"text": self._embed(cond)}, {"text": embed_once(self._embed, uncond)})

    def _embed(self, texts: Sequence[str]) -> Tensor:
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return self.text_encoder(tokens.input_ids.to(self.device))[0]

    def noise_shape(self, size: VideoSize) -> tuple[int, ...]:
        """`(C, F, h, w)`; height and width must be whole multiples of the VAE's factor (UNet3D takes any latents)."""
        return self.denoiser.config.in_channels, size.frames, *latent_sides(size, space_factor(self.vae))

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """See `VideoModel.denoise`: latents and prediction are `[N, C, F, h, w]`."""
        dtype = weight_dtype(self.denoiser)
        text = inputs["text"].to(dtype)
        return self.denoiser(latents.to(dtype), time.to(latents.device), text, return_dict=False)[0].to(latents.dtype)

    def decode_unclamped(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        """See `VideoModel.decode_unclamped`: frames are decoded one by one, so only the chosen ones cost anything."""
        return decode_frames(self.vae, latents, frames)

    def encode_video(self, pixels: Tensor) -> Tensor:
        """See `VideoModel.encode_video`: the mode of the VAE's posterior, frame by frame."""
        return encode_frames(self.vae, pixels)

    def networks(self) -> dict[str, nn.Module]:
        return {"unet": self.denoiser, "vae": self.vae, "text_encoder": self.text_encoder}

    def diffusers_pipeline(self) -> TextToVideoSDPipeline:
        """The same networks as diffusers' pipeline, with the checkpoint's own scheduler."""
        return TextToVideoSDPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.denoiser,
            scheduler=getattr(diffusers, self.scheduler["_class_name"]).from_config(self.scheduler),
        )
