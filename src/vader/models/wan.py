"""Wan 2.1 and 2.2 (arXiv 2503.20314), text to video, through diffusers' own classes.

A checkpoint is a `WanPipeline` folder or hub id: `Wan-AI/Wan2.1-T2V-1.3B-Diffusers`, `-14B-`, `Wan-AI/Wan2.2-TI2V-5B-
Diffusers`, or `Wan-AI/Wan2.2-T2V-A14B-Diffusers` with two experts, `transformer` for high noise and `transformer_2` for
low. Those of `Skywork/SkyReels-V2-T2V-14B-540P-Diffusers` and `-720P-` are the same network under another class, and of
`FastVideo/FastWan2.1-T2V-1.3B-Diffusers` under the same. Latents are `[B, C, T, h, w]`, normalised; of 4n + 1 frames
there are n + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKLWan,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import UMT5EncoderModel

from vader.errors import UserError
from vader.files import hub as files
from vader.models.base import latent_frames, latent_sides
from vader.models.causal_vae import check_back
from vader.models.folder import FolderModel
from vader.models.text_cache import Part, TextEmbedder
from vader.models.wan_vae import WindowDecoder, encode, recompute_layers
from vader.networks.measure import weight_dtype
from vader.networks.recompute import Grain
from vader.nouns import Condition, Prompt, VideoSize

TOKENS = 512  # of every text: beyond its own there are zeros, which are attended too
NETWORKS: dict[str, type[Any]] = {one.__name__: one for one in (WanTransformer3DModel, SkyReelsV2Transformer3DModel)}
UNLIKE = {  # classes that are told more than a text or a picture
    "WanVACETransformer3DModel": "VACE, which edits a video that it is shown",
    "WanAnimateTransformer3DModel": "Wan-Animate, which follows the motion of another video",
}


@dataclass(frozen=True)
class Index:
    """What a checkpoint's `model_index.json` says beside the components' classes.

    Attributes:
        boundary: the share of the trained times at and above which `transformer` works; None: there is no other.
        expand: whether every token may have its own time (TI2V-5B).
    """

    boundary: float | None = None
    expand: bool = False

    @classmethod
    def of(cls, source: str) -> Index:
        """Raises `UserError` if it cannot be read, or names a second expert and not when it works."""
        said = files.load_config(source, "", "model_index.json")
        second, boundary = said.get("transformer_2"), said.get("boundary_ratio")
        if not second or second == [None, None]:
            return cls(None, bool(said.get("expand_timesteps")))
        if not isinstance(boundary, float) or not 0 < boundary < 1:
            raise UserError(
                f"checkpoint {source!r} has a transformer_2, and its model_index.json the boundary_ratio {boundary!r}: "
                "below which share of the noise does it work?"
            )
        return cls(boundary, bool(said.get("expand_timesteps")))


class Wan(FolderModel):
    """A transformer or two, a causal VAE that is decoded window by window; text is encoded once, the encoder not kept.

    Two experts may have a guidance scale each: strategy `experts` (`vader.sampling.guidance`).
    """

    family = tiny = "wan"
    components = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    lora_pipeline = "WanPipeline"
    vae: Any  # diffusers' networks carry their settings in ways that type checkers do not see

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        vae: AutoencoderKLWan,
        text: TextEmbedder,
        scheduler: Mapping[str, Any],
        index: Index,
        transformer_2: WanTransformer3DModel | None = None,
        back: int = 0,
    ) -> None:
        self.denoisers = {"transformer": transformer}
        if transformer_2 is not None:
            self.denoisers["transformer_2"] = transformer_2
        self.vae = vae
        self.text = text
        self.scheduler = scheduler
        self.index = index
        self.decoder = WindowDecoder(vae, back)

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32, back: int = 0) -> Wan:
        """See `VideoModel.load`; `checkpoint` is `tiny`, a folder or a hub id.

        Args:
            back: a frame's gradient reaches the latent that it is decoded from and so many before; each costs another
                window's decoding. The frames are the same for any number.

        Raises:
            UserError: there is no such checkpoint, it is not of this family, or `back` is below 0.
        """
        source = cls.locate(checkpoint)
        check_network(source)
        if sees_pictures(source):
            raise UserError(f"checkpoint {source!r} starts from images: set model.family to wan-i2v")
        return cls(**load_parts(source, dtype, back))

    # ---- text ----

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Encodes all that is new among the prompts, loading the text encoder once."""
        self.text.prepare([prompt_clean(text) for one in prompts for text in (one.text, one.negative)], self.device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """Text embeddings `[B, 512, D]`, zero beyond each text; the unconditional ones are those of the negatives.

        Raises:
            UserError: images were given; this family makes videos from text alone.
        """
        if images is not None:
            raise UserError("models of the family 'wan' take no images: use text prompts")
        cond, uncond = self.embed(prompts)
        return Condition({"text": cond}, {"text": uncond})

    def embed(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Text embeddings `[B, 512, D]` of the prompts and of their negatives."""
        texts = [prompt_clean(text) for text in [*(one.text for one in prompts), *(one.negative for one in prompts)]]
        embedded, _ = self.text(texts, self.device)
        cond, uncond = F.pad(embedded, (0, 0, 0, TOKENS - embedded.shape[1])).chunk(2)
        return cond, uncond

    # ---- latents ----

    def noise_shape(self, size: VideoSize) -> tuple[int, ...]:
        """`(C, T, h, w)`; there are 4n + 1 frames, and sides are multiples of 16, in TI2V-5B of 32."""
        space, patch = self.vae.config.scale_factor_spatial, self._patch
        height, width = latent_sides(size, space * patch)
        frames = latent_frames(size, self.vae.config.scale_factor_temporal)
        return self.vae.config.z_dim, frames, height * patch, width * patch

    @property
    def _patch(self) -> int:
        """So many latents a side are one token."""
        return self.denoiser.config.patch_size[-1]

    def tokens(self, size: VideoSize) -> int:
        """See `VideoModel.tokens`."""
        _, frames, height, width = self.noise_shape(size)
        return frames * (height // self._patch) * (width // self._patch)

    @property
    def check_size(self) -> VideoSize:
        """See `VideoModel.check_size`: two latents of one token each."""
        side = self.vae.config.scale_factor_spatial * self._patch
        return VideoSize(1 + self.vae.config.scale_factor_temporal, side, side)

    def expert(self, time: float) -> str:
        """See `VideoModel.expert`."""
        if self.index.boundary is None:
            return "transformer"
        trained = self.scheduler.get("num_train_timesteps", 1000)
        return "transformer" if time >= self.index.boundary * trained else "transformer_2"

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """See `VideoModel.denoise`: latents and prediction (the velocity, noise minus data) are `[N, C, T, h, w]`."""
        return self.velocity(latents, time, inputs["text"], time.to(latents).expand(len(latents))).to(latents.dtype)

    def velocity(self, seen: Tensor, time: Tensor, text: Tensor, told: Tensor, **more: Tensor) -> Tensor:
        """The prediction of the expert of this time, for what the network sees; `told` is its time, or each token's."""
        one = len(self.denoisers) == 1  # a look at the time would wait for the device
        network: Any = self.denoiser if one else self.denoisers[self.expert(float(time))]
        dtype = weight_dtype(network.patch_embedding)  # of others, some are kept in float32
        more = {name: value.to(dtype) for name, value in more.items()}
        return network(seen.to(dtype), told, text.to(dtype), return_dict=False, **more)[0]

    # ---- pixels ----

    def windows(self, size: VideoSize) -> Sequence[range]:
        """The first frame, and four of each later latent."""
        _, latents, *_ = self.noise_shape(size)
        return self.decoder.windows(latents)

    def decode_unclamped(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        """See `VideoModel.decode_unclamped` and `vader.models.wan_vae`."""
        return self.decoder(latents, frames)

    def tiny_latents(self, latents: Tensor) -> Tensor:
        """See `VideoModel.tiny_latents`: of `taew2_1`, of TI2V-5B `taew2_2`."""
        return latents.movedim(2, 1)

    def encode_video(self, pixels: Tensor) -> Tensor:
        """See `VideoModel.encode_video`: the mode of the VAE's posterior."""
        return encode(self.vae, pixels)

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
        parts = self._pipeline_parts()
        if isinstance(self.denoiser, SkyReelsV2Transformer3DModel):
            return SkyReelsV2Pipeline(**{name: parts[name] for name in Wan.components})
        return WanPipeline(**parts)

    def _pipeline_parts(self) -> dict[str, Any]:
        """What diffusers' pipelines of this family are made of."""
        return {
            "tokenizer": self.text.load_tokenizer(),
            "text_encoder": self.text.load(torch.device("cpu")),
            "vae": self.vae,
            "scheduler": getattr(diffusers, self.scheduler["_class_name"]).from_config(self.scheduler),
            **self.denoisers,
            "boundary_ratio": self.index.boundary,
            "expand_timesteps": self.index.expand,
        }


def sees_pictures(source: str) -> bool:
    """Whether a checkpoint's transformer sees more than the video's latents."""
    said = files.load_config(source, "transformer")
    return said.get("in_channels") != said.get("out_channels")


def check_network(source: str) -> None:
    """Raises `UserError`, saying what it is, if a checkpoint is one of Wan's relatives with another network."""
    said, index = files.load_config(source, "transformer"), files.load_config(source, "", "model_index.json")
    if problem := _unlike(said, str(index.get("_class_name"))):
        raise UserError(f"checkpoint {source!r} is {problem}: that is not supported")


def _unlike(said: Mapping[str, Any], pipeline: str) -> str | None:
    """What a transformer with these settings, of this pipeline, is that Wan's from texts or from a picture are not."""
    name = said.get("_class_name")
    if name in UNLIKE:
        return UNLIKE[name]
    if said.get("pos_embed_seq_len") is not None:
        return "of the kind FLF2V, which goes from a first picture to a last one"
    if name != SkyReelsV2Transformer3DModel.__name__:
        return None
    if "DiffusionForcing" in pipeline or said.get("inject_sample_info") or said.get("num_frame_per_block", 1) != 1:
        return "a SkyReels-V2 with diffusion forcing, where each frame has a noise level of its own"
    if said.get("in_channels") != said.get("out_channels"):
        return "a SkyReels-V2 that starts from pictures"
    return None


def load_parts(source: str, dtype: torch.dtype, back: int) -> dict[str, Any]:
    """Arguments of `Wan`. Raises `UserError` if a part cannot be read, or `back` is below 0."""
    check_back(back)
    index = Index.of(source)
    names = ["transformer"] if index.boundary is None else ["transformer", "transformer_2"]
    return {
        "scheduler": files.load_config(source, "scheduler"),
        "text": TextEmbedder(
            UMT5EncoderModel, Part(source, "text_encoder"), Part(source, "tokenizer"), dtype, TOKENS, "wan"
        ),
        "vae": files.load_network(AutoencoderKLWan, source, "vae", dtype),
        **{name: files.load_network(_class_of(source, name), source, name, dtype) for name in names},
        "index": index,
        "back": back,
    }


def _class_of(source: str, name: str) -> type[Any]:
    """Of one of a checkpoint's transformers; of one that is none of these, that which it should be."""
    return NETWORKS.get(str(files.load_config(source, name).get("_class_name")), WanTransformer3DModel)
