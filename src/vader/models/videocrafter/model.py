"""VideoCrafter2 text-to-video (arXiv:2401.09047) as a base model.

A checkpoint is the released `model.ckpt`, the same as `model.safetensors`, the folder of either, a hub id
(`VideoCrafter/VideoCrafter2`), a folder or hub id in diffusers' layout, or `tiny`. The file holds no tokenizer: a
`tokenizer` folder beside it is taken, or else CLIP's from the hub. Latents are `[B, C, F, h, w]`, of unit variance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from vader.errors import UserError
from vader.files import hub as files
from vader.files.open_clip import clean
from vader.models.base import VideoModel, latent_sides
from vader.models.image_vae import decode_frames, encode_frames, space_factor
from vader.models.text import embed_once
from vader.models.videocrafter.folder import alphas_cumprod, load_networks
from vader.models.videocrafter.networks import empty_text, empty_unet, empty_vae, load_text, load_unet, load_vae
from vader.models.videocrafter.release import (
    FAMILY,
    FILE_NAME,
    find_release,
    read_release,
    write_release,
)
from vader.networks.measure import weight_dtype
from vader.nouns import Condition, Prompt, VideoSize

TOKENIZER = "openai/clip-vit-large-patch14"  # its vocabulary is open_clip's
PADDING = 0  # open_clip pads with zeros, not with the end token


class VideoCrafter(VideoModel):
    """UNet3D denoiser that is told the frames per second, image VAE, OpenCLIP text encoder."""

    family = FAMILY
    lora_targets = ("to_q", "to_k", "to_v")
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
    def locate(cls, checkpoint: str) -> Path | str:
        """See `VideoModel.locate`: a path is the release's file, a text what has diffusers' layout."""
        return find_release(checkpoint)

    @classmethod
    def load(
        cls,
        checkpoint: str,
        *,
        dtype: torch.dtype = torch.float32,
        tokenizer: str | None = None,
        parts: str | None = None,
    ) -> VideoCrafter:
        """See `VideoModel.load`; the module's text says what `checkpoint` may be.

        Args:
            tokenizer: folder or hub id of a CLIP tokenizer, in place of the one beside the file or CLIP's own.
            parts: folder or hub id in diffusers' layout, for the VAE and the text encoder of a UNet that lies alone.
        """
        found = cls.locate(checkpoint)
        if isinstance(found, str):
            return cls._from_folder(found, parts, tokenizer, dtype)
        if parts is not None:
            raise UserError(f"model.options.parts is for a UNet alone, and {checkpoint!r} has all parts: leave it out")
        return cls._from_file(found, tokenizer, dtype)

    @classmethod
    def _from_file(cls, path: Path, tokenizer: str | None, dtype: torch.dtype) -> VideoCrafter:
        release = read_release(path)
        label, settings = release.label, release.settings
        unet = empty_unet(release.unet, settings, f"UNet of {label}")
        vae = empty_vae(release.vae, settings, f"VAE of {label}")
        text_encoder = empty_text(release.text, settings, f"text encoder of {label}")
        return cls(
            scheduler=scheduler_config(release.schedule["alphas_cumprod"].double()),
            tokenizer=_load_tokenizer(tokenizer or _tokenizer_beside(path), text_encoder, label),
            unet=load_unet(unet, release.unet, dtype, f"UNet of {label}"),
            vae=load_vae(vae, release.vae, dtype, f"VAE of {label}"),
            text_encoder=load_text(text_encoder, release.text, dtype, f"text encoder of {label}"),
        )

    @classmethod
    def _from_folder(cls, source: str, parts: str | None, tokenizer: str | None, dtype: torch.dtype) -> VideoCrafter:
        unet, vae, text_encoder, other = load_networks(source, parts, dtype)
        if tokenizer is None:
            words = files.load_tokenizer(CLIPTokenizer, other, "tokenizer")
        else:
            words = _load_tokenizer(tokenizer, text_encoder, f"checkpoint {source!r}")
        return cls(
            scheduler=scheduler_config(alphas_cumprod()),
            tokenizer=words,
            unet=unet,
            vae=vae,
            text_encoder=text_encoder,
        )

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """Text features `[B, L, D]` and frames per second `[B]`; unconditional are the negative texts and the same fps.

        Raises:
            UserError: images were given; this family makes videos from text alone.
        """
        if images is not None:
            raise UserError("models of the family 'videocrafter' take no images: use text prompts")
        cond, uncond = ([prompt.text for prompt in prompts], [prompt.negative for prompt in prompts])
        fps = torch.full((len(prompts),), size.fps, device=self.device)
        return Condition({"text": self._embed(cond), "fps": fps}, {"text": embed_once(self._embed, uncond), "fps": fps})

    def _embed(self, texts: Sequence[str]) -> Tensor:
        """All positions of the text encoder, those of the padding too, as the release has it."""
        length = self.text_encoder.config.max_position_embeddings
        found = self.tokenizer([clean(text) for text in texts], truncation=True, max_length=length).input_ids
        tokens = [ids + [PADDING] * (length - len(ids)) for ids in found]
        return self.text_encoder(torch.tensor(tokens, device=self.device))[0]

    def noise_shape(self, size: VideoSize) -> tuple[int, ...]:
        """`(C, F, h, w)`; the UNet was trained on latents that it halves evenly at every level but the last."""
        halvings = 2 ** (len(self.denoiser.config.block_out_channels) - 1)
        height, width = latent_sides(size, halvings * space_factor(self.vae))
        return self.denoiser.config.in_channels, size.frames, height * halvings, width * halvings

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """See `VideoModel.denoise`: latents and prediction are `[N, C, F, h, w]`."""
        dtype = weight_dtype(self.denoiser)
        prediction = self.denoiser(
            latents.to(dtype),
            time.to(latents.device),
            inputs["text"].to(dtype),
            timestep_cond=inputs["fps"],
            return_dict=False,
        )[0]
        return prediction.to(latents.dtype)

    def decode_unclamped(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        """See `VideoModel.decode_unclamped`: frames are decoded one by one, so only the chosen ones cost anything."""
        return decode_frames(self.vae, latents, frames)

    def encode_video(self, pixels: Tensor) -> Tensor:
        """See `VideoModel.encode_video`: the mode of the VAE's posterior, frame by frame."""
        return encode_frames(self.vae, pixels)

    def exporter(self) -> Callable[[Path], Any]:
        """Writes the networks as the released file, `model.ckpt`, with the tokenizer beside it."""
        return self._export

    def _export(self, folder: Path) -> None:
        write_release(folder / FILE_NAME, self.denoiser, self.vae, self.text_encoder, self._alpha_bar())
        self.tokenizer.save_pretrained(folder / "tokenizer")

    def _alpha_bar(self) -> Tensor:
        return (1 - torch.tensor(self.scheduler["trained_betas"], dtype=torch.float64)).cumprod(0)

    def networks(self) -> dict[str, nn.Module]:
        return {"unet": self.denoiser, "vae": self.vae, "text_encoder": self.text_encoder}


def scheduler_config(levels: Tensor) -> dict[str, Any]:
    """The schedule `[T]` as a DDIM config: uniform times, last step to the first trained level, scaled x0."""
    betas = 1 - levels / torch.cat([levels.new_ones(1), levels[:-1]])
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": len(levels),
        "trained_betas": betas.tolist(),
        "clip_sample": False,
        "set_alpha_to_one": False,
        "timestep_spacing": "uniform",
        "dynamic_rescale": True,
    }


def _tokenizer_beside(path: Path) -> str:
    """The tokenizer of a file: in the folder beside it, or else CLIP's from the hub."""
    beside = path.parent / "tokenizer"
    return str(beside) if beside.is_dir() else TOKENIZER


def _load_tokenizer(source: str, text_encoder: CLIPTextModel, label: str) -> CLIPTokenizer:
    """Raises `UserError` if it cannot be had, or knows words that the text encoder does not."""
    tokenizer = files.load_tokenizer(CLIPTokenizer, files.resolve(source, FAMILY), "")
    words = text_encoder.config.vocab_size
    if len(tokenizer) > words:
        raise UserError(f"tokenizer {source!r} has {len(tokenizer)} words, the text encoder of {label} {words}")
    return tokenizer
