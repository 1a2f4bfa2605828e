"""Kandinsky 5 Lite, text to video, through diffusers' own classes.

A checkpoint is a `Kandinsky5T2VPipeline` folder or hub id of 5 seconds: `kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-
Diffusers`. Its VAE and its second text encoder are HunyuanVideo's. Latents are `[B, C, T, h, w]`; of 4n + 1 frames
there are n + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, Kandinsky5Transformer3DModel
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, Qwen2_5_VLForConditionalGeneration

from vader.errors import UserError
from vader.files import hub as files
from vader.models.hunyuan import HunyuanVideo
from vader.models.kandinsky5_attention import attend_in_float
from vader.models.kandinsky5_text import TOKENS, QwenEmbedder
from vader.models.text import embed_once
from vader.models.text_cache import Part
from vader.networks.measure import weight_dtype
from vader.nouns import Condition, Prompt, VideoSize

MIDDLE = range(480, 855)  # sides of videos whose places are told apart more finely than those of others


class Kandinsky5(HunyuanVideo):
    """A transformer in which video looks at text, and HunyuanVideo's VAE; Qwen's features are made once.

    The transformer has no mask for text, so that each pass is of one video, with just its own tokens.
    """

    family = "kandinsky5"
    lora_pipeline = "Kandinsky5T2VPipeline"
    lora_targets = ("to_query", "to_key", "to_value", "self_attention.out_layer", "cross_attention.out_layer")
    guidance = "cfg"
    sigmas = None

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32) -> Kandinsky5:
        """See `VideoModel.load`; `checkpoint` is a folder or a hub id.

        Raises:
            UserError: there is no such checkpoint, it is not of this family, or its attention is sparse.
        """
        source = cls.locate(checkpoint)
        if files.load_config(source, "transformer").get("attention_type", "regular") != "regular":
            raise UserError(f"checkpoint {source!r} has sparse attention (NABLA): use one of 5 seconds, which has none")
        encoder, tokenizer = Part(source, "text_encoder"), Part(source, "tokenizer")
        tokens = TOKENS + QwenEmbedder.skipped
        transformer = files.load_network(Kandinsky5Transformer3DModel, source, "transformer", dtype)
        attend_in_float(transformer)
        return cls(
            scheduler=files.load_config(source, "scheduler"),
            text=QwenEmbedder(Qwen2_5_VLForConditionalGeneration, encoder, tokenizer, dtype, tokens, "kandinsky5"),
            text_encoder_2=files.load_network(CLIPTextModel, source, "text_encoder_2", dtype),
            tokenizer_2=files.load_tokenizer(AutoTokenizer, source, "tokenizer_2"),
            vae=files.load_network(AutoencoderKLHunyuanVideo, source, "vae", dtype),
            transformer=transformer,
        )

    # ---- text ----

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Encodes all that is new among the prompts, loading Qwen once."""
        self.text.prepare([text for one in prompts for text in (one.text, one.negative)], self.device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """Qwen's features `[B, L, D]` with each text's own length `[B]`, on the CPU, and CLIP's pooled ones `[B, E]`;
        the unconditional ones are those of the negatives.

        Raises:
            UserError: images were given; this family makes videos from text alone.
        """
        if images is not None:
            raise UserError("models of the family 'kandinsky5' take no images: use text prompts")
        texts = [*(one.text for one in prompts), *(one.negative for one in prompts)]
        features, mask = self.text(texts, self.device)
        told = {"text": features, "length": self._lengths(mask), "pooled": embed_once(self._pooled, texts)}
        cond, uncond = ({name: value.chunk(2)[at] for name, value in told.items()} for at in range(2))
        return Condition(cond, uncond)

    def _lengths(self, mask: Tensor) -> Tensor:
        return mask.sum(dim=1).cpu()

    # ---- latents ----

    @property
    def _patch(self) -> int:
        return self.denoiser.config.patch_size[-1]

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """See `VideoModel.denoise`: latents and prediction (the velocity, noise minus data) are `[N, C, T, h, w]`."""
        columns = (latents.split(1), inputs["text"].split(1), inputs["length"].tolist(), inputs["pooled"].split(1))
        rows = zip(*columns, strict=True)
        return torch.cat([self._velocity(one, time, text[:, :length], pooled) for one, text, length, pooled in rows])

    def _velocity(self, latents: Tensor, time: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """The prediction for one video. Beside the noisy latents the transformer sees given ones, of which there are
        none, and where they are."""
        network: Any = self.denoiser
        dtype = weight_dtype(network.visual_embeddings)  # of others, some are kept in float32
        seen = latents.movedim(1, -1)  # [1, T, h, w, C]
        if network.config.visual_cond:
            given = seen.new_zeros(*seen.shape[:-1], seen.shape[-1] + 1)
            seen = torch.cat([seen, given], dim=-1)
        _, _, frames, height, width = latents.shape
        counts = (frames, height // self._patch, width // self._patch)
        velocity = network(
            seen.to(dtype),
            text.to(dtype),
            time.to(latents).expand(1),
            pooled.to(dtype),
            visual_rope_pos=[torch.arange(count, device=latents.device) for count in counts],
            text_rope_pos=torch.arange(text.shape[1], device=latents.device),
            scale_factor=self._scale(height, width),
            return_dict=False,
        )
        return velocity.movedim(-1, 1).to(latents.dtype)

    def _scale(self, height: int, width: int) -> tuple[float, float, float]:
        """By how much places in time, height and width are divided."""
        side = self.vae.spatial_compression_ratio
        middle = height * side in MIDDLE and width * side in MIDDLE
        return (1.0, 2.0, 2.0) if middle else (1.0, 3.16, 3.16)

    # ---- networks ----

    def diffusers_pipeline(self) -> Any:
        """Raises `UserError`: its processor of pictures, which takes no part here, would be missing."""
        raise UserError("a merged Kandinsky 5 is not written: export the adapter, which diffusers' pipeline loads")
