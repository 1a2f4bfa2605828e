"""HunyuanVideo 1.5 (arXiv 2511.18870), text to video, through diffusers' own classes.

A checkpoint is a `HunyuanVideo15Pipeline` folder or hub id, with guidance distilled into it or not:
`hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v` or `-720p_t2v`. Latents are `[B, C, T, h, w]`; of 4n + 1
frames there are n + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLHunyuanVideo15, HunyuanVideo15Pipeline, HunyuanVideo15Transformer3DModel
from torch import Tensor, nn
from transformers import Qwen2_5_VLTextModel, T5EncoderModel

from vader.errors import UserError
from vader.files import hub as files
from vader.models.base import latent_frames, latent_sides
from vader.models.causal_vae import check_back
from vader.models.folder import FolderModel
from vader.models.hunyuan15_attention import all_of, drop_masks
from vader.models.hunyuan15_text import GLYPH_TOKENS, TOKENS, GlyphEmbedder, QwenEmbedder
from vader.models.hunyuan15_vae import WindowDecoder, encode, recompute_layers
from vader.models.text_cache import Part, TextEmbedder
from vader.networks.measure import weight_dtype
from vader.networks.recompute import Grain
from vader.nouns import Condition, Prompt, VideoSize


class HunyuanVideo15(FolderModel):
    """A transformer of text and video tokens, a causal VAE that is decoded latent by latent; text is encoded once."""

    family = tiny = "hunyuan15"
    components = (
        "transformer",
        "vae",
        "text_encoder",
        "tokenizer",
        "text_encoder_2",
        "tokenizer_2",
        "scheduler",
        "guider",
    )
    lora_network = "HunyuanVideo15Transformer3DModel"
    sigmas = "even"
    vae: Any  # diffusers' networks carry their settings in ways that type checkers do not see

    def __init__(
        self,
        transformer: HunyuanVideo15Transformer3DModel,
        vae: AutoencoderKLHunyuanVideo15,
        text: TextEmbedder,
        glyphs: TextEmbedder,
        scheduler: Mapping[str, Any],
        guider: Mapping[str, Any],
        back: int = 0,
    ) -> None:
        drop_masks(transformer)
        self.denoisers = {"transformer": transformer}
        self.vae = vae
        self.text = text
        self.glyphs = glyphs
        self.scheduler = scheduler
        self.guider = guider
        self.decoder = WindowDecoder(vae, back)

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32, back: int = 0) -> HunyuanVideo15:
        """See `VideoModel.load`; `checkpoint` is a folder or a hub id.

        Args:
            back: a frame's gradient reaches the latent that it is decoded from and so many before; each costs another
                decoding with graph.

        Raises:
            UserError: there is no such checkpoint, it is not of this family, it starts from pictures, or is distilled
                to few steps.
        """
        source = cls.locate(checkpoint)
        if files.load_config(source, "transformer").get("task_type") == "i2v":
            raise UserError(f"checkpoint {source!r} starts from images: set model.family to hunyuan15-i2v")
        return cls(**load_parts(source, dtype, back))

    # ---- text ----

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Encodes all that is new among the prompts and negative texts, loading each encoder once."""
        texts = [text for prompt in prompts for text in (prompt.text, prompt.negative)]
        self.text.prepare(texts, self.device)
        self.glyphs.prepare(texts, self.device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """Qwen's features `text` `[B, L, D]` and ByT5's of quotes, `glyphs` `[B, M, E]`, with masks on the host.

        Raises:
            UserError: images were given; this family makes videos from text alone.
        """
        if images is not None:
            raise UserError("models of the family 'hunyuan15' take no images: use text prompts")
        return Condition(*self.embed(prompts))

    def embed(self, prompts: Sequence[Prompt]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What is known of prompts and of their negative texts."""
        self.prepare(prompts)
        texts = [prompt.text for prompt in prompts] + [prompt.negative for prompt in prompts]
        found = {}
        for name, embedder in (("text", self.text), ("glyphs", self.glyphs)):
            found[name], mask = embedder(texts, self.device)
            found[f"{name}_mask"] = mask.cpu()
        halves = [{name: value.chunk(2)[half] for name, value in found.items()} for half in (0, 1)]
        return halves[0], halves[1]

    # ---- latents ----

    def noise_shape(self, size: VideoSize) -> tuple[int, ...]:
        """`(C, T, h, w)`; there are 4n + 1 frames, and sides are multiples of 16."""
        height, width = latent_sides(size, self.vae.spatial_compression_ratio)
        frames = latent_frames(size, self.vae.temporal_compression_ratio)
        return self.vae.config.latent_channels, frames, height, width

    @property
    def check_size(self) -> VideoSize:
        """See `VideoModel.check_size`: two latents of one token each."""
        side = self.vae.spatial_compression_ratio
        return VideoSize(1 + self.vae.temporal_compression_ratio, side, side)

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """See `VideoModel.denoise`: latents and prediction (the velocity, noise minus data) are `[N, C, T, h, w]`."""
        rows = [{name: value[row : row + 1] for name, value in inputs.items()} for row in range(len(latents))]
        videos = zip(latents.split(1), rows, strict=True)
        return torch.cat([self._velocity(video, time, row) for video, row in videos])

    def _velocity(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """One video's, with its own tokens alone. Beside the noisy latents lie the picture's, and where it is; of no
        picture there is nothing to see, and no features."""
        network, dtype = self.denoiser, weight_dtype(self.denoiser)
        nothing = latents.new_zeros(1, latents.shape[1] + 1, *latents.shape[2:])
        seen = torch.cat([latents, inputs.get("image", nothing)], dim=1)
        features = inputs.get("features", latents.new_zeros(1, 0, network.config.image_embed_dim))
        text, glyphs = (inputs[name][:, : int(inputs[f"{name}_mask"].sum())].to(dtype) for name in ("text", "glyphs"))
        return network(
            seen.to(dtype),
            time.to(dtype).expand(1),
            text,
            all_of(text),
            encoder_hidden_states_2=glyphs,
            encoder_attention_mask_2=all_of(glyphs),
            image_embeds=features.to(dtype),
            return_dict=False,
        )[0].to(latents.dtype)

    # ---- pixels ----

    def windows(self, size: VideoSize) -> Sequence[range]:
        """The first frame, and four of each later latent."""
        _, latents, *_ = self.noise_shape(size)
        return self.decoder.windows(latents)

    def decode_unclamped(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        """See `VideoModel.decode_unclamped` and `vader.models.hunyuan15_vae`."""
        return self.decoder(latents, frames)

    def encode_video(self, pixels: Tensor) -> Tensor:
        """See `VideoModel.encode_video`: the mode of the VAE's posterior."""
        return encode(self.vae, pixels)

    # ---- networks ----

    def networks(self) -> dict[str, nn.Module]:
        """The text encoders are not among them: they are there only while new prompts are encoded."""
        return {**self.denoisers, "vae": self.vae}

    def recompute(self, name: str, network: nn.Module, of: Grain) -> None:
        """See `VideoModel.recompute`: of the VAE always layers, as its largest block would be most of it."""
        if name == "vae":
            recompute_layers(network)
        else:
            super().recompute(name, network, of)

    def diffusers_pipeline(self) -> HunyuanVideo15Pipeline:
        """The same networks as diffusers' pipeline, with the checkpoint's own scheduler, guider and text encoders."""
        return HunyuanVideo15Pipeline(**self._pipeline_parts())

    def _pipeline_parts(self) -> dict[str, Any]:
        """What every pipeline of this family is made of."""
        made = {
            name: getattr(diffusers, config["_class_name"]).from_config(config)
            for name, config in {"scheduler": self.scheduler, "guider": self.guider}.items()
        }
        return {
            "tokenizer": self.text.load_tokenizer(),
            "text_encoder": self.text.load(torch.device("cpu")),
            "tokenizer_2": self.glyphs.load_tokenizer(),
            "text_encoder_2": self.glyphs.load(torch.device("cpu")),
            "vae": self.vae,
            "transformer": self.denoiser,
            **made,
        }


def load_parts(source: str, dtype: torch.dtype, back: int) -> dict[str, Any]:
    """What both families are made of.

    Raises:
        UserError: as `HunyuanVideo15.load`.
    """
    check_back(back)
    if files.load_config(source, "transformer").get("use_meanflow"):
        raise UserError(f"checkpoint {source!r} is distilled to few steps, which need a second time: not supported")
    transformer = files.load_network(HunyuanVideo15Transformer3DModel, source, "transformer", dtype)
    width = transformer.config.text_embed_2_dim
    qwen, byt5 = ((Part(source, f"text_encoder{n}"), Part(source, f"tokenizer{n}"), dtype) for n in ("", "_2"))
    return {
        "scheduler": files.load_config(source, "scheduler"),
        "guider": files.load_config(source, "guider"),
        "text": QwenEmbedder(Qwen2_5_VLTextModel, *qwen, TOKENS + QwenEmbedder.skipped, "hunyuan15"),
        "glyphs": GlyphEmbedder(T5EncoderModel, *byt5, GLYPH_TOKENS, "hunyuan15-glyphs", width=width),
        "vae": files.load_network(AutoencoderKLHunyuanVideo15, source, "vae", dtype),
        "transformer": transformer,
        "back": back,
    }
