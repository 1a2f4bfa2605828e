"""CogVideoX (arXiv 2408.06072), text to video, through diffusers' own classes.

A checkpoint is a `CogVideoXPipeline` folder or hub id: `zai-org/CogVideoX-2b`, `zai-org/CogVideoX-5b` or
`zai-org/CogVideoX1.5-5B`. Latents are `[B, T, C, h, w]`; of 8n + 1 frames there are 2n + 1, and in 1.5, whose tokens
span two latents, one more in front, which is sampled and never decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor, nn
from transformers import T5EncoderModel

from vader.errors import UserError
from vader.files import hub as files
from vader.models.base import latent_frames, latent_sides
from vader.models.causal_vae import check_back
from vader.models.cogvideox_vae import TOGETHER, WindowDecoder, encode, recompute_layers
from vader.models.folder import FolderModel
from vader.models.image_vae import space_factor
from vader.models.text_cache import Part, TextEmbedder
from vader.models.wan import sees_pictures
from vader.networks.measure import weight_dtype
from vader.networks.recompute import Grain
from vader.nouns import Condition, Prompt, VideoSize


class CogVideoX(FolderModel):
    """A transformer of text and video tokens, a causal VAE that is decoded window by window; text is encoded once."""

    family = "cogvideox"
    components = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    lora_pipeline = "CogVideoXPipeline"
    frame_axis = 1
    vae: Any  # diffusers' networks carry their settings in ways that type checkers do not see

    def __init__(
        self,
        transformer: CogVideoXTransformer3DModel,
        vae: AutoencoderKLCogVideoX,
        text: TextEmbedder,
        scheduler: Mapping[str, Any],
        back: int = 0,
    ) -> None:
        self.denoisers = {"transformer": transformer}
        self.vae = vae
        self.text = text
        self.scheduler = scheduler
        self.decoder = WindowDecoder(vae, back)

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32, back: int = 0) -> CogVideoX:
        """See `VideoModel.load`; `checkpoint` is a folder or a hub id.

        Args:
            back: a frame's gradient reaches the latents of its window (the first 9 frames, then 8 by 8) and of so many
                windows before; each costs another window's decoding. The frames are the same for any number.

        Raises:
            UserError: there is no such checkpoint, it is not of this family, or `back` is below 0.
        """
        check_back(back)
        source = cls.locate(checkpoint)
        if sees_pictures(source) != cls.takes_images:
            other, does = ("cogvideox", "makes videos of text alone"), ("cogvideox-i2v", "starts from images")
            family, what = other if cls.takes_images else does
            raise UserError(f"checkpoint {source!r} {what}: set model.family to {family}")
        transformer = files.load_network(CogVideoXTransformer3DModel, source, "transformer", dtype)
        encoder, tokenizer = Part(source, "text_encoder"), Part(source, "tokenizer")
        tokens = transformer.config.max_text_seq_length
        return cls(
            scheduler=files.load_config(source, "scheduler"),
            text=TextEmbedder(T5EncoderModel, encoder, tokenizer, dtype, tokens, "cogvideox", filled="kept"),
            vae=files.load_network(AutoencoderKLCogVideoX, source, "vae", dtype),
            transformer=transformer,
            back=back,
        )

    # ---- text ----

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Encodes all that is new among the prompts, loading the text encoder once."""
        self.text.prepare([text for one in prompts for text in (one.text, one.negative)], self.device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """Text embeddings `[B, 226, D]`, of filling too; the unconditional ones are those of the negatives.

        Raises:
            UserError: images were given; this family makes videos from text alone.
        """
        if images is not None:
            raise UserError("models of the family 'cogvideox' take no images: use text prompts")
        cond, uncond = self.embed(prompts)
        return Condition({"text": cond}, {"text": uncond})

    def embed(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Text embeddings `[B, 226, D]` of the prompts and of their negatives."""
        embedded, _ = self.text([*(one.text for one in prompts), *(one.negative for one in prompts)], self.device)
        cond, uncond = embedded.chunk(2)
        return cond, uncond

    # ---- latents ----

    def noise_shape(self, size: VideoSize) -> tuple[int, ...]:
        """`(T, C, h, w)`; there are 8n + 1 frames, sides are multiples of 16, and as the positions allow."""
        config = self.denoiser.config
        height, width = latent_sides(size, space_factor(self.vae) * config.patch_size)
        self._check_sides(height, width)
        windows = latent_frames(size, TOGETHER * self.vae.config.temporal_compression_ratio)
        latents = TOGETHER * (windows - 1) + 1 + self._unseen
        return latents, self.vae.config.latent_channels, height * config.patch_size, width * config.patch_size

    def _check_sides(self, height: int, width: int) -> None:
        """Raises `UserError` if the transformer has no positions for so many tokens."""
        config = self.denoiser.config
        side = space_factor(self.vae) * config.patch_size
        known = (config.sample_height // config.patch_size, config.sample_width // config.patch_size)
        made, trained = (f"{rows * side}x{columns * side}" for rows, columns in ((height, width), known))
        if config.use_learned_positional_embeddings and (height, width) != known:
            raise UserError(f"this checkpoint's positions were learned at {trained} alone: use that, not {made}")
        if config.patch_size_t is not None and (height > known[0] or width > known[1]):
            raise UserError(f"this checkpoint has positions up to {trained}, and {made} is beyond: use a smaller size")

    @property
    def _unseen(self) -> int:
        """Latents in front that fill up the first token and are not decoded: the others are an odd number."""
        return 0 if self.denoiser.config.patch_size_t is None else 1

    @property
    def check_size(self) -> VideoSize:
        """See `VideoModel.check_size`: one window of one token each latent, or of the only sides there are."""
        config, factor = self.denoiser.config, space_factor(self.vae)
        frames = TOGETHER * self.vae.config.temporal_compression_ratio + 1
        if config.use_learned_positional_embeddings:
            return VideoSize(frames, config.sample_height * factor, config.sample_width * factor)
        return VideoSize(frames, config.patch_size * factor, config.patch_size * factor)

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """See `VideoModel.denoise`: latents and prediction (v) are `[N, T, C, h, w]`."""
        return self.predicted(latents, time, inputs["text"]).to(latents.dtype)

    def predicted(self, seen: Tensor, time: Tensor, text: Tensor, **more: Tensor) -> Tensor:
        """The prediction for what the transformer sees, `[N, T, C, h, w]`, and for text `[N, 226, D]`."""
        dtype = weight_dtype(self.denoiser)
        told = time.to(seen.device).expand(len(seen))
        rotary = rotary_embedding(self.denoiser.config, seen)
        seen, text = seen.to(dtype), text.to(dtype)
        return self.denoiser(seen, text, told, image_rotary_emb=rotary, return_dict=False, **more)[0]

    # ---- pixels ----

    def windows(self, size: VideoSize) -> Sequence[range]:
        """The first nine frames, and eight by eight."""
        latents, *_ = self.noise_shape(size)
        return self.decoder.windows(latents - self._unseen)

    def decode_unclamped(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        """See `VideoModel.decode_unclamped` and `vader.models.cogvideox_vae`."""
        return self.decoder(latents[:, self._unseen :], frames)

    def tiny_latents(self, latents: Tensor) -> Tensor:
        """See `VideoModel.tiny_latents`: of `taecvx`."""
        return latents[:, self._unseen :]

    def encode_video(self, pixels: Tensor) -> Tensor:
        """See `VideoModel.encode_video`: the mode of the VAE's posterior; what is not decoded repeats the first."""
        latents = encode(self.vae, pixels) * self.vae.config.scaling_factor
        return torch.cat([latents[:, : self._unseen], latents], dim=1)

    # ---- networks ----

    def networks(self) -> dict[str, nn.Module]:
        """The text encoder is not among them: it is there only while new prompts are encoded."""
        return {**self.denoisers, "vae": self.vae}

    def recompute(self, name: str, network: nn.Module, of: Grain) -> None:
        """See `VideoModel.recompute`: of the VAE always layers, as its largest block would be most of it."""
        if name == "vae":
            recompute_layers(network)
        else:
            super().recompute(name, network, of)

    def diffusers_pipeline(self) -> Any:
        """The same networks as diffusers' pipeline, with the checkpoint's own scheduler and text encoder."""
        return CogVideoXPipeline(**self._pipeline_parts())

    def _pipeline_parts(self) -> dict[str, Any]:
        """What diffusers' pipelines of this family are made of."""
        return {
            "tokenizer": self.text.load_tokenizer(),
            "text_encoder": self.text.load(torch.device("cpu")),
            "vae": self.vae,
            "transformer": self.denoiser,
            "scheduler": getattr(diffusers, self.scheduler["_class_name"]).from_config(self.scheduler),
        }


def rotary_embedding(config: Any, latents: Tensor) -> tuple[Tensor, Tensor] | None:
    """Cosine and sine `[tokens, D]` of the rotary positions of latents `[N, T, C, h, w]`; None where there are none.

    In the first release a grid of any size is stretched over the trained one, whose proportions are kept; in 1.5 it is
    cut from it, and a token spans several latents.
    """
    if not config.use_rotary_positional_embeddings:
        return None
    frames, (height, width) = latents.shape[1], (side // config.patch_size for side in latents.shape[-2:])
    base = (config.sample_height // config.patch_size, config.sample_width // config.patch_size)
    if config.patch_size_t is None:
        crop = get_resize_crop_region_for_grid((height, width), base[1], base[0])
        places = {"crops_coords": crop, "temporal_size": frames}
    else:
        steps = frames // config.patch_size_t
        places = {"crops_coords": None, "temporal_size": steps, "grid_type": "slice", "max_size": base}
    return get_3d_rotary_pos_embed(
        config.attention_head_dim, grid_size=(height, width), device=latents.device, **places
    )
