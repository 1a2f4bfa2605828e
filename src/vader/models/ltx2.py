"""LTX-2 and LTX-2.3 (arXiv 2601.03233), text to video with sound, through diffusers' own classes.

A checkpoint is an `LTX2Pipeline` folder or hub id: `Lightricks/LTX-2`, `diffusers/LTX-2.3-Diffusers`. Latents are
`{"video": [B, C, T, h, w], "audio": [B, N, D]}`, normalised; of 8n + 1 frames there are n + 1, of a second of sound 25.
The transformer sees both as rows of tokens with their places in time, which attend to each other. Isolated, it makes
the video alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2Pipeline, LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2 import LTX2Vocoder, LTX2VocoderWithBWE
from torch import Tensor, nn

from vader.errors import UserError
from vader.files import hub as files
from vader.models.base import latent_frames, latent_sides
from vader.models.folder import FolderModel
from vader.models.ltx2_text import GemmaEmbedder
from vader.models.ltx_vae import LTX2FrameDecoder, encode
from vader.networks.measure import weight_dtype
from vader.networks.recompute import Grain
from vader.nouns import Audio, Condition, Prompt, VideoSize

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
VOCODERS = {network.__name__: network for network in (LTX2Vocoder, LTX2VocoderWithBWE)}


class LTX2(FolderModel):
    """A transformer over the tokens of video and sound, a VAE for each; what makes texts' contexts is not kept.

    Adapters go to the video's own attention. Video and sound may have a guidance scale each: strategy `modalities`
    (`vader.sampling.guidance`).
    """

    family = "ltx2"
    components = ("transformer", "vae", "audio_vae", "vocoder", "connectors", "text_encoder", "tokenizer", "scheduler")
    lora_pipeline = "LTX2Pipeline"
    lora_targets = tuple(f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ATTENTION)
    sigmas = "even"
    vae: Any  # diffusers' networks carry their settings in ways that type checkers do not see
    audio_vae: Any
    vocoder: Any

    def __init__(
        self,
        transformer: LTX2VideoTransformer3DModel,
        vae: AutoencoderKLLTX2Video,
        audio_vae: AutoencoderKLLTX2Audio,
        vocoder: LTX2Vocoder | LTX2VocoderWithBWE,
        text: GemmaEmbedder,
        scheduler: Mapping[str, Any],
        isolate: bool = False,
    ) -> None:
        self.denoisers = {"transformer": transformer}
        self.vae = vae
        self.audio_vae = audio_vae
        self.vocoder = vocoder
        self.text = text
        self.scheduler = scheduler
        self.isolate = isolate
        self.decoder = LTX2FrameDecoder(vae)

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32, isolate: bool = False) -> LTX2:
        """See `VideoModel.load`; `checkpoint` is a folder or a hub id.

        Args:
            isolate: make the video alone, without the sound that it would otherwise be made with: cheaper, and another
                video.

        Raises:
            UserError: there is no such checkpoint, or it is not of this family.
        """
        source = cls.locate(checkpoint)
        vocoder = VOCODERS.get(files.load_config(source, "vocoder").get("_class_name", ""), LTX2Vocoder)
        return cls(
            scheduler=files.load_config(source, "scheduler"),
            text=GemmaEmbedder(source, dtype),
            vae=files.load_network(AutoencoderKLLTX2Video, source, "vae", dtype),
            audio_vae=files.load_network(AutoencoderKLLTX2Audio, source, "audio_vae", dtype),
            vocoder=files.load_network(vocoder, source, "vocoder", dtype),
            transformer=files.load_network(LTX2VideoTransformer3DModel, source, "transformer", dtype),
            isolate=isolate,
        )

    # ---- text ----

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Encodes all that is new among the prompts, loading Gemma and the connectors once."""
        self.text.prepare([text for one in prompts for text in (one.text, one.negative)], self.device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """Contexts of the video's tokens `[B, 1024, V]` and of the sound's `[B, 1024, A]`, and frames a second
        `[B, 1]`; the unconditional contexts are those of the negatives.

        Raises:
            UserError: images were given; this family makes videos from text alone.
        """
        if images is not None:
            raise UserError("models of the family 'ltx2' take no images: use text prompts, or the family ltx2-i2v")
        return self.condition(prompts, size)

    def condition(self, prompts: Sequence[Prompt], size: VideoSize) -> Condition:
        """What both branches are told of the prompts, and of the video's speed."""
        contexts, _ = self.text([*(one.text for one in prompts), *(one.negative for one in prompts)], self.device)
        video, audio = contexts.tensor_split([self._video_width], dim=-1)
        fps = torch.full((len(prompts), 1), float(size.fps), device=self.device)
        if self.isolate:
            audio = audio[:, :1]  # nobody sees what is made of it
        branches = zip(video.chunk(2), audio.chunk(2), strict=True)
        cond, uncond = ({"text": text, "audio_text": audio_text, "fps": fps} for text, audio_text in branches)
        return Condition(cond, uncond)

    @property
    def _video_width(self) -> int:
        """Channels of a context of the video's tokens."""
        config = self.denoiser.config
        return config.caption_channels if config.use_prompt_embeddings else config.cross_attention_dim

    # ---- latents ----

    def noise_shape(self, size: VideoSize) -> dict[str, tuple[int, ...]]:
        """`(C, T, h, w)` of the video, `(N, D)` of the sound unless it is isolated; there are 8n + 1 frames, and sides
        are multiples of 32, of LTX-2 from 64 on."""
        height, width = latent_sides(size, self.vae.spatial_compression_ratio)
        if min(height, width) < self._least:
            least = self._least * self.vae.spatial_compression_ratio
            raise UserError(f"video size {size.height}x{size.width} is too small for this VAE: sides from {least} on")
        frames = latent_frames(size, self.vae.temporal_compression_ratio)
        config = self.denoiser.config
        shapes: dict[str, tuple[int, ...]] = {"video": (config.in_channels, frames, height, width)}
        if not self.isolate:
            each_second = config.audio_sampling_rate / config.audio_hop_length / config.audio_scale_factor
            shapes["audio"] = (round(size.frames / size.fps * each_second), config.audio_in_channels)
        return shapes

    @property
    def _least(self) -> int:
        """Latents that a side has at least: a decoder that pads by reflection takes what is beside the edge."""
        return 2 if self.vae.config.decoder_spatial_padding_mode == "reflect" else 1

    def tokens(self, size: VideoSize) -> int:
        """See `VideoModel.tokens`: those of the video, each a latent."""
        return math.prod(self.noise_shape(size)["video"][1:])

    @property
    def check_size(self) -> VideoSize:
        """See `VideoModel.check_size`: two latents in time."""
        side = self._least * self.vae.spatial_compression_ratio
        return VideoSize(1 + self.vae.temporal_compression_ratio, side, side)

    def denoise(self, latents: dict[str, Tensor], time: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `VideoModel.denoise`: latents and prediction (the velocity, noise minus data) are by name."""
        told = time.to(latents["video"]).expand(len(latents["video"]))
        return self.velocity(latents, told, told, inputs)

    def velocity(
        self, latents: dict[str, Tensor], video_time: Tensor, time: Tensor, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The prediction; `time` is that of each video `[N]`, `video_time` the same or that of each token of its
        frames `[N, T h w]`."""
        network, video = self.denoiser, latents["video"]
        dtype = weight_dtype(network)
        audio = latents.get("audio", video.new_zeros(len(video), 1, network.config.audio_in_channels))
        moving, sounding = network(
            video.flatten(2).transpose(1, 2).to(dtype),  # [N, T h w, C]
            audio.to(dtype),
            inputs["text"].to(dtype),
            inputs["audio_text"].to(dtype),
            video_time,
            audio_timestep=time,
            sigma=time,
            video_coords=self._places(video, inputs["fps"]),
            audio_num_frames=audio.shape[1],
            isolate_modalities=self.isolate,
            use_cross_timestep=network.config.cross_attn_mod,
            return_dict=False,
        )
        found = {"video": moving.transpose(1, 2).unflatten(2, video.shape[2:]), "audio": sounding}
        return {name: found[name].to(x.dtype) for name, x in latents.items()}

    def _places(self, video: Tensor, fps: Tensor) -> Tensor:
        """From where to where each of the video's tokens reaches, `[N, 3, T h w, 2]`: in seconds, rows and columns."""
        places = self.denoiser.rope.prepare_video_coords(len(video), *video.shape[2:], video.device, fps=1.0)
        return torch.cat([places[:, :1] / fps[:, :, None, None], places[:, 1:]], dim=1)

    # ---- pixels and sound ----

    def windows(self, size: VideoSize) -> Sequence[range]:
        """The frames of some latents together, see `FrameDecoder.windows`."""
        return self.decoder.windows(size.frames)

    def decode_unclamped(self, latents: dict[str, Tensor], frames: Tensor | None = None) -> Tensor:
        """See `VideoModel.decode_unclamped` and `vader.models.ltx_vae`."""
        return self.decoder(latents["video"], frames)

    def decode_audio(self, latents: dict[str, Tensor]) -> Audio:
        """See `VideoModel.decode_audio`: two channels, made of the mel spectrogram by the vocoder.

        Raises:
            UserError: the video is made alone.
        """
        if self.isolate:
            raise UserError("an isolated video has no sound: set model.options.isolate to false for what listens")
        vae, audio = self.audio_vae, latents["audio"]
        raw = audio * vae.latents_std.to(audio) + vae.latents_mean.to(audio)
        bins = vae.config.mel_bins // vae.mel_compression_ratio
        mel = vae.decode(raw.unflatten(2, (-1, bins)).transpose(1, 2).to(weight_dtype(vae)), return_dict=False)[0]
        samples = self.vocoder(mel.to(weight_dtype(self.vocoder)))
        return Audio(samples.to(audio.dtype), self.vocoder.config.output_sampling_rate)

    def encode_video(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `VideoModel.encode_video`: the mode of the VAE's posterior.

        Raises:
            UserError: sound is made too, which pixels do not have.
        """
        if not self.isolate:
            raise UserError(
                "videos without sound say nothing of it: set model.options.isolate to true to learn from them"
            )
        return {"video": encode(self.vae, pixels)}

    # ---- networks ----

    def networks(self) -> dict[str, nn.Module]:
        """Gemma and the connectors are not among them: they are there only while new prompts are encoded."""
        return {**self.denoisers, "vae": self.vae, "audio_vae": self.audio_vae, "vocoder": self.vocoder}

    def recompute(self, name: str, network: nn.Module, of: Grain) -> None:
        """See `VideoModel.recompute`: of the VAE always layers, as its largest block would be most of it."""
        super().recompute(name, network, "layers" if name == "vae" else of)

    def diffusers_pipeline(self) -> LTX2Pipeline:
        """The same networks as diffusers' pipeline, with the checkpoint's own scheduler and text networks."""
        text = self.text.load(torch.device("cpu"))
        return LTX2Pipeline(
            tokenizer=self.text.load_tokenizer(),
            text_encoder=text.gemma,
            connectors=text.connectors,
            scheduler=getattr(diffusers, self.scheduler["_class_name"]).from_config(self.scheduler),
            **self.networks(),
        )
