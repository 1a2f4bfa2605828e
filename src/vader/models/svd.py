"""Stable Video Diffusion (arXiv:2311.15127), image to video, through diffusers' own classes.

A checkpoint is a `StableVideoDiffusionPipeline` folder or hub id (`stabilityai/stable-video-diffusion-img2vid`, 14
frames, or `...-img2vid-xt`, 25). Latents are `[B, F, C, h, w]`, scaled to unit variance. The text of a prompt plays
no part; its picture does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers import StableVideoDiffusionPipeline
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from vader.errors import UserError
from vader.files import hub as files
from vader.files.images import normalize, starting_images
from vader.models.base import latent_sides
from vader.models.folder import FolderModel
from vader.models.image_vae import space_factor
from vader.networks.measure import weight_dtype
from vader.nouns import Condition, Prompt, VideoSize
from vader.randomness import generator


class StableVideoDiffusion(FolderModel):
    """Spatio-temporal UNet, VAE whose decoder mixes frames, CLIP image encoder.

    The guidance scale is the last frame's; it rises evenly from 1 at the first, which is the picture itself.
    """

    family = "svd"
    components = ("unet", "vae", "image_encoder", "feature_extractor", "scheduler")
    takes_images = True
    takes_negative = False
    guidance = "ramp"
    frame_axis = 1
    vae: Any  # diffusers' networks carry their settings in ways that type checkers do not see
    image_encoder: Any

    def __init__(
        self,
        unet: UNetSpatioTemporalConditionModel,
        vae: AutoencoderKLTemporalDecoder,
        image_encoder: CLIPVisionModelWithProjection,
        scheduler: Mapping[str, Any],
        image_config: dict[str, Any],
        motion_bucket: int = 127,
        noise_augmentation: float = 0.02,
        decode_chunk: int | None = None,
    ) -> None:
        self.denoisers = {"unet": unet}
        self.vae = vae
        self.image_encoder = image_encoder
        self.scheduler = scheduler
        self.image_config = image_config
        self.motion_bucket = motion_bucket
        self.noise_augmentation = noise_augmentation
        self.decode_chunk = decode_chunk

    @classmethod
    def load(
        cls,
        checkpoint: str,
        *,
        dtype: torch.dtype = torch.float32,
        motion_bucket: int = 127,
        noise_augmentation: float = 0.02,
        decode_chunk: int | None = None,
    ) -> StableVideoDiffusion:
        """See `VideoModel.load`; `checkpoint` is `tiny`, a folder or a hub id.

        Args:
            motion_bucket: how much shall move; the model knows 1 to 255.
            noise_augmentation: standard deviation of the noise on the picture (in [-1, 1]) that the VAE sees; more
                lets the video leave the picture further behind.
            decode_chunk: frames that are decoded together, see `decode_unclamped`; None for all of a video.

        Raises:
            UserError: there is no such checkpoint, it is not of this family, or an option is out of its range.
        """
        _check_options(motion_bucket, noise_augmentation, decode_chunk)
        source = cls.locate(checkpoint)
        return cls(
            scheduler=files.load_config(source, "scheduler"),
            image_config=files.load_config(source, "feature_extractor"),
            image_encoder=files.load_network(CLIPVisionModelWithProjection, source, "image_encoder", dtype),
            vae=_load_vae(source, dtype),
            unet=files.load_network(UNetSpatioTemporalConditionModel, source, "unet", dtype),
            motion_bucket=motion_bucket,
            noise_augmentation=noise_augmentation,
            decode_chunk=decode_chunk,
        )

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """The pictures `[B, 3, H, W]` as a CLIP embedding `[B, 1, D]` and as VAE latents `[B, C, h, w]`, and three
        numbers `[B, 3]`: frames a second less one (so the model was trained), motion bucket, noise augmentation.

        The noise on a picture is drawn from a seed that is the picture itself. The unconditional twin has zeros for
        embedding and latents, and the same numbers.

        Raises:
            UserError: a prompt carries no image, or those given are of another size than the videos.
        """
        images = starting_images(prompts, size, images).to(self.device)
        numbers = images.new_tensor([[size.fps - 1, self.motion_bucket, self.noise_augmentation]]).repeat(
            len(images), 1
        )
        cond = {"clip": self._embed(images), "image": self._image_latents(images), "numbers": numbers}
        zeros = {name: torch.zeros_like(cond[name]) for name in ("clip", "image")}
        return Condition(cond, {**zeros, "numbers": numbers})

    def _embed(self, images: Tensor) -> Tensor:
        small = shrink(images, self.image_encoder.config.image_size)
        pixels = normalize(small, self.image_config["image_mean"], self.image_config["image_std"])
        return self.image_encoder(pixels.to(weight_dtype(self.image_encoder))).image_embeds[:, None]

    def _image_latents(self, images: Tensor) -> Tensor:
        """The mode of the VAE's posterior; unlike the video's latents, not scaled."""
        noisy = images * 2 - 1 + self.noise_augmentation * own_noise(images)
        return self.vae.encode(noisy.to(weight_dtype(self.vae.encoder))).latent_dist.mode().to(images.dtype)

    def noise_shape(self, size: VideoSize) -> tuple[int, ...]:
        """`(F, C, h, w)`; height and width must be whole multiples of the VAE's factor."""
        height, width = latent_sides(size, space_factor(self.vae))
        return size.frames, self.vae.config.latent_channels, height, width

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """See `VideoModel.denoise`: latents and prediction are `[N, F, C, h, w]`."""
        dtype = weight_dtype(self.denoiser)
        image = inputs["image"].to(latents)[:, None].expand_as(latents)
        beside = torch.cat([latents, image], dim=2).to(dtype)
        clip, numbers = inputs["clip"].to(dtype), inputs["numbers"]
        return self.denoiser(beside, time.to(latents.device), clip, numbers, return_dict=False)[0].to(latents.dtype)

    def windows(self, size: VideoSize) -> Sequence[range]:
        """Stretches of `decode_chunk` frames; the last may be shorter."""
        chunk = self.decode_chunk or size.frames
        return [range(start, min(start + chunk, size.frames)) for start in range(0, size.frames, chunk)]

    def decode_unclamped(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        """See `VideoModel.decode_unclamped`. The decoder mixes the frames that it decodes together.

        A video of F frames falls into windows of `decode_chunk` = c frames: 0 to c - 1, c to 2c - 1, and so on, the
        last one shorter where c does not divide F. Every window that holds a chosen frame is decoded whole, by
        itself, and no other. So a frame looks the same whether it is chosen or all are, and has gradient at all
        latents of its window. diffusers' pipeline has the same windows for a single video.
        """
        count = latents.shape[1]
        chosen = [list(range(count))] * len(latents) if frames is None else frames.tolist()
        return torch.stack([self._decode_video(video, wanted) for video, wanted in zip(latents, chosen, strict=True)])

    def _decode_video(self, latents: Tensor, wanted: Sequence[int]) -> Tensor:
        """The wanted frames `[n, 3, H, W]` of one video's latents `[F, C, h, w]`."""
        chunk = self.decode_chunk or len(latents)
        starts = sorted({i - i % chunk for i in wanted})
        windows = {start: self._decode_window(latents[start : start + chunk]) for start in starts}
        return torch.stack([windows[i - i % chunk][i % chunk] for i in wanted])

    def _decode_window(self, latents: Tensor) -> Tensor:
        scaled = (latents / self.vae.config.scaling_factor).to(weight_dtype(self.vae.decoder))
        pixels = self.vae.decode(scaled, num_frames=len(latents), return_dict=False)[0]
        return pixels.to(latents.dtype) / 2 + 0.5

    def networks(self) -> dict[str, nn.Module]:
        return {"unet": self.denoiser, "vae": self.vae, "image_encoder": self.image_encoder}

    def diffusers_pipeline(self) -> StableVideoDiffusionPipeline:
        """The same networks as diffusers' pipeline, with the checkpoint's own scheduler."""
        return StableVideoDiffusionPipeline(
            vae=self.vae,
            image_encoder=self.image_encoder,
            unet=self.denoiser,
            scheduler=getattr(diffusers, self.scheduler["_class_name"]).from_config(self.scheduler),
            feature_extractor=CLIPImageProcessor.from_dict(self.image_config),
        )


def _check_options(motion_bucket: int, noise_augmentation: float, decode_chunk: int | None) -> None:
    if not 1 <= motion_bucket <= 255:
        raise UserError(f"model.options.motion_bucket is {motion_bucket}: the model knows 1 to 255")
    if noise_augmentation < 0:
        raise UserError(f"model.options.noise_augmentation is {noise_augmentation:g}: it must be 0 or more")
    if decode_chunk is not None and decode_chunk < 1:
        raise UserError(f"model.options.decode_chunk is {decode_chunk}: it must be at least 1 frame, or null for all")


def _load_vae(source: str, dtype: torch.dtype) -> AutoencoderKLTemporalDecoder:
    """In half precision its encoder overflows, so that stays in float32, as `force_upcast` in its config asks."""
    vae = files.load_network(AutoencoderKLTemporalDecoder, source, "vae", dtype)
    if dtype == torch.float16 and vae.config.force_upcast:
        vae.encoder.float()
        vae.quant_conv.float()
    return vae


def own_noise(images: Tensor) -> Tensor:
    """Standard normal noise like images `[B, 3, H, W]`: each picture's is a function of its pixels, to 8 bits."""
    pixels = (images.detach().cpu() * 255).round().to(torch.uint8)
    keys = [hashlib.blake2b(picture.numpy().tobytes(), digest_size=16).hexdigest() for picture in pixels]
    noise = [torch.randn(images.shape[1:], generator=generator(0, f"svd/augmentation/{key}")) for key in keys]
    return torch.stack(noise).to(images)


def shrink(images: Tensor, side: int) -> Tensor:
    """Images `[N, 3, H, W]` as SVD's image encoder was trained to see them: `[N, 3, side, side]`, squashed.

    A Gaussian blur whose width grows with the reduction, then bicubic resizing with aligned corners.
    """
    for _ in ("columns", "rows"):
        sigma = max((images.shape[-1] / side - 1) / 2, 0.001)
        images = _blurred(images, sigma).transpose(-1, -2)
    return F.interpolate(images, (side, side), mode="bicubic", align_corners=True)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur along the last dimension, over two standard deviations each way, edges mirrored."""
    taps = int(max(4 * sigma, 3)) | 1
    offsets = torch.arange(taps, dtype=images.dtype, device=images.device) - taps // 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (weights / weights.sum()).expand(images.shape[1], 1, 1, taps)
    padded = F.pad(images, (taps // 2, taps // 2, 0, 0), mode="reflect")
    return F.conv2d(padded, kernel, groups=images.shape[1])
