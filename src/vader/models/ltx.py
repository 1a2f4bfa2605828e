"""LTX-Video 0.9.x (arXiv 2501.00103), text to video, through diffusers' own classes.

A checkpoint is an `LTXPipeline` or `LTXConditionPipeline` folder or hub id: `Lightricks/LTX-Video` (0.9.0),
`-0.9.5`, `-0.9.7-dev` and `-0.9.7-distilled`, `-0.9.8-13B-distilled`. Latents are `[B, C, T, h, w]`, normalised; of
8n + 1 frames there are n + 1. The transformer sees them as a row of tokens, each with its place in seconds and pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLLTXVideo, LTXConditionPipeline, LTXPipeline, LTXVideoTransformer3DModel
from torch import Tensor, nn
from transformers import T5EncoderModel

from vader.errors import UserError
from vader.files import hub as files
from vader.models.base import latent_frames, latent_sides
from vader.models.folder import FolderModel
from vader.models.ltx_vae import FrameDecoder, Told, encode
from vader.models.text_cache import Filled, Part, TextEmbedder
from vader.networks.measure import weight_dtype
from vader.networks.recompute import Grain
from vader.nouns import Condition, Prompt, VideoSize


@dataclass(frozen=True)
class Generation:
    """What diffusers' pipelines do differently from 0.9.5 on, which no setting of a checkpoint says.

    Attributes:
        tokens: of every text.
        padded: whether the text encoder attends to what a text is filled up with.
        sigmas: the noise levels that the pipeline asks for.
        early: whether a latent is placed at the first of its frames, as the causal encoder sees it.
        pipeline: its class.
    """

    tokens: int
    padded: bool
    sigmas: str
    early: bool
    pipeline: type[Any]

    @classmethod
    def of(cls, vae: Mapping[str, Any]) -> Generation:
        """Told by the settings of the VAE: its encoder's blocks are new in 0.9.5."""
        return LATER if "LTXVideo095DownBlock3D" in vae.get("down_block_types", ()) else FIRST


FIRST = Generation(128, padded=True, sigmas="even", early=False, pipeline=LTXPipeline)
LATER = Generation(256, padded=False, sigmas="linear_quadratic", early=True, pipeline=LTXConditionPipeline)


class LTX(FolderModel):
    """A transformer over rows of tokens, a VAE whose frames see each other; the text encoder is not kept."""

    family = tiny = "ltx"
    components = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    lora_pipeline = "LTXPipeline"
    vae: Any  # diffusers' networks carry their settings in ways that type checkers do not see

    def __init__(
        self,
        transformer: LTXVideoTransformer3DModel,
        vae: AutoencoderKLLTXVideo,
        text: TextEmbedder,
        scheduler: Mapping[str, Any],
        told: Told | None = None,
    ) -> None:
        self.denoisers = {"transformer": transformer}
        self.vae = vae
        self.text = text
        self.scheduler = scheduler
        self.generation = Generation.of(self.vae.config)
        self.sigmas = self.generation.sigmas
        self.decoder = FrameDecoder(vae, told)

    @classmethod
    def load(
        cls,
        checkpoint: str,
        *,
        dtype: torch.dtype = torch.float32,
        decode_timestep: float | None = None,
        decode_noise_scale: float | None = None,
    ) -> LTX:
        """See `VideoModel.load`; `checkpoint` is `tiny`, a folder or a hub id.

        Args:
            decode_timestep: what the decoder of 0.9.1 and later is told, in [0, 1]; None: 0.05.
            decode_noise_scale: the share of noise that it sees in the latents; None: 0.025.

        Raises:
            UserError: there is no such checkpoint, it is not of this family, or its decoder is told nothing.
        """
        source = cls.locate(checkpoint)
        vae = files.load_config(source, "vae")
        told, generation = told_of(vae, decode_timestep, decode_noise_scale), Generation.of(vae)
        return cls(
            scheduler=files.load_config(source, "scheduler"),
            text=embedder(source, dtype, generation),
            vae=files.load_network(AutoencoderKLLTXVideo, source, "vae", dtype),
            transformer=files.load_network(LTXVideoTransformer3DModel, source, "transformer", dtype),
            told=told,
        )

    # ---- text ----

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Encodes all that is new among the prompts, loading the text encoder once."""
        self.text.prepare([text for one in prompts for text in (one.text, one.negative)], self.device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """Text embeddings `[B, L, D]`, L the tokens of the longest text, their mask `[B, L]`, and frames a second
        `[B, 1]`; the unconditional embeddings are those of the negatives.

        Raises:
            UserError: images were given; this family makes videos from text alone.
        """
        if images is not None:
            raise UserError("models of the family 'ltx' take no images: use text prompts, or the family ltx-i2v")
        return self.condition(prompts, size)

    def condition(self, prompts: Sequence[Prompt], size: VideoSize) -> Condition:
        """What both branches are told of the prompts, and of the video's speed."""
        embedded, mask = self.text([*(one.text for one in prompts), *(one.negative for one in prompts)], self.device)
        fps = torch.full((len(prompts), 1), float(size.fps), device=self.device)
        branches = zip(embedded.chunk(2), mask.chunk(2), strict=True)
        cond, uncond = ({"text": text, "mask": there, "fps": fps} for text, there in branches)
        return Condition(cond, uncond)

    # ---- latents ----

    def noise_shape(self, size: VideoSize) -> tuple[int, ...]:
        """`(C, T, h, w)`; there are 8n + 1 frames, and sides are multiples of 32."""
        height, width = latent_sides(size, self.vae.spatial_compression_ratio)
        frames = latent_frames(size, self.vae.temporal_compression_ratio)
        return self.denoiser.config.in_channels, frames, height, width

    def tokens(self, size: VideoSize) -> int:
        """See `VideoModel.tokens`: a latent is one."""
        return math.prod(self.noise_shape(size)[1:])

    @property
    def check_size(self) -> VideoSize:
        """See `VideoModel.check_size`: two latents."""
        side = self.vae.spatial_compression_ratio
        return VideoSize(1 + self.vae.temporal_compression_ratio, side, side)

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """See `VideoModel.denoise`: latents and prediction (the velocity, noise minus data) are `[N, C, T, h, w]`."""
        return self.velocity(latents, time.to(latents).expand(len(latents), 1), inputs)

    def velocity(self, latents: Tensor, told: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The prediction; `told` is the time of each video `[N, 1]`, or of each of its tokens `[N, T h w]`."""
        network: Any = self.denoiser
        dtype = weight_dtype(network)
        tokens = network(
            latents.flatten(2).transpose(1, 2).to(dtype),  # [N, T h w, C]
            inputs["text"].to(dtype),
            told,
            inputs["mask"],
            video_coords=self._places(latents, inputs["fps"]),
            return_dict=False,
        )[0]
        return tokens.to(latents.dtype).transpose(1, 2).unflatten(2, latents.shape[2:])

    def _places(self, latents: Tensor, fps: Tensor) -> Tensor:
        """Where each token lies, `[N, 3, T h w]`: its seconds, and its row and column in pixels."""
        step, side = self.vae.temporal_compression_ratio, self.vae.spatial_compression_ratio
        along = [torch.arange(count, dtype=torch.float32, device=latents.device) for count in latents.shape[2:]]
        frame, row, column = torch.meshgrid(*along, indexing="ij")
        frame = (step * frame + 1 - step).clamp(min=0) if self.generation.early else step * frame
        places = torch.stack([frame, side * row, side * column]).flatten(1).repeat(len(latents), 1, 1)
        return torch.cat([places[:, :1] / fps[:, None], places[:, 1:]], dim=1)

    # ---- pixels ----

    def windows(self, size: VideoSize) -> Sequence[range]:
        """The frames of some latents together, see `FrameDecoder.windows`."""
        return self.decoder.windows(size.frames)

    def decode_unclamped(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        """See `VideoModel.decode_unclamped` and `vader.models.ltx_vae`."""
        return self.decoder(latents, frames)

    def encode_video(self, pixels: Tensor) -> Tensor:
        """See `VideoModel.encode_video`: the mode of the VAE's posterior."""
        return encode(self.vae, pixels)

    # ---- networks ----

    def networks(self) -> dict[str, nn.Module]:
        """The text encoder is not among them: it is there only while new prompts are encoded."""
        return {**self.denoisers, "vae": self.vae}

    def recompute(self, name: str, network: nn.Module, of: Grain) -> None:
        """See `VideoModel.recompute`: of the VAE always layers, as its largest block would be most of it."""
        super().recompute(name, network, "layers" if name == "vae" else of)

    def diffusers_pipeline(self) -> Any:
        """The same networks as diffusers' pipeline, with the checkpoint's own scheduler and text encoder."""
        return self.generation.pipeline(
            tokenizer=self.text.load_tokenizer(),
            text_encoder=self.text.load(torch.device("cpu")),
            vae=self.vae,
            scheduler=getattr(diffusers, self.scheduler["_class_name"]).from_config(self.scheduler),
            **self.denoisers,
        )


def told_of(vae: Mapping[str, Any], timestep: float | None, noise: float | None) -> Told | None:
    """What a VAE with these settings is told. Raises `UserError` if it is told nothing, or such shares do not exist."""
    given = {"timestep": timestep, "noise": noise}
    asked = {name: value for name, value in given.items() if value is not None}
    if not vae.get("timestep_conditioning"):
        if asked:
            raise UserError(
                "the VAE of this checkpoint (LTX-Video 0.9.0) is told no timestep: leave model.options.decode_timestep "
                "and decode_noise_scale out"
            )
        return None
    if any(not 0 <= value <= 1 for value in asked.values()):
        raise UserError("model.options.decode_timestep and decode_noise_scale are shares in [0, 1]")
    return Told(**asked)


def embedder(source: str, dtype: torch.dtype, generation: Generation) -> TextEmbedder:
    """T5-v1.1-XXL of a checkpoint."""
    encoder, tokenizer = Part(source, "text_encoder"), Part(source, "tokenizer")
    filled: Filled | None = "attended" if generation.padded else None
    return TextEmbedder(T5EncoderModel, encoder, tokenizer, dtype, generation.tokens, "ltx", filled=filled)
