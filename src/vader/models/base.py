"""The contract of a base model: prompts in, condition out; latents in, prediction or pixels out.

A family (ModelScope, ...) says how its denoisers are called and how its latents become pixels. How videos are sampled
from it (solver, guidance, where gradient enters) is none of its business: it only tells its checkpoint's own scheduler
settings, and which strategy of guidance it was made for. Bring your own: subclass `VideoModel`, name it `module:Class`.

Shapes: B videos, F frames, C channels, H x W pixels. Latents have the family's own layout, float32 outside the
networks; a family may have several by name (video and audio). Pixels are float32 `[B, F, 3, H, W]` in [0, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vader.errors import UserError
from vader.files.images import check_pictures
from vader.networks.recompute import Grain, checkpoint_blocks
from vader.nouns import Audio, Condition, Prompt, VideoSize
from vader.plugins import explain_methods

WORK = ("prepare", "encode", "denoise", "decode_unclamped", "encode_video")


def latent_sides(size: VideoSize, factor: int) -> tuple[int, int]:
    """Height and width in latents, for a VAE that makes `factor` x `factor` pixels of one.

    Raises:
        UserError: a side is no multiple of the factor; names the nearest size that is possible.
    """
    if size.height % factor or size.width % factor:
        height, width = (max(1, round(side / factor)) * factor for side in (size.height, size.width))
        raise UserError(
            f"video size {size.height}x{size.width} (height x width) is not possible: "
            f"both must be multiples of {factor}; the nearest is {height}x{width}"
        )
    return size.height // factor, size.width // factor


def latent_frames(size: VideoSize, factor: int) -> int:
    """Frames in latents of a causal VAE, which makes one frame of the first and `factor` of each other.

    Raises:
        UserError: there are no so many frames; names the nearest that are possible.
    """
    more, over = divmod(size.frames - 1, factor)
    if over:
        below, above = more * factor + 1, (more + 1) * factor + 1
        raise UserError(
            f"{size.frames} frames are not possible: they must be {factor}n + 1; the nearest are {below} and {above}"
        )
    return more + 1


class VideoModel(ABC):
    """A pretrained video diffusion model. Every network is frozen and in eval mode but for the adapters.

    Attributes:
        family: its name; adapters of another one are refused. A model of one's own may have none.
        lora_targets: the layers that an adapter goes to unless the recipe names others.
        takes_images: whether a video starts from a picture (image-to-video).
        takes_last_image: whether a prompt may also name the picture at which its video is to arrive.
        takes_negative: whether a prompt may say what guidance leads away from; not where no text is read.
        guidance: the strategy it was made for, by name (`vader.sampling.guidance`).
        frame_axis: which axis of the latents counts frames.
        lora_pipeline: the pipeline of diffusers whose own loader takes this family's adapters; empty: none.
        lora_network: the network of diffusers that takes them itself where no pipeline does; empty: none.
        sigmas: of a flow model, the levels that its pipeline asks for, as `solver_from_config` takes them.
        denoisers: the networks that carry adapters, by component name; experts come in the order of their use.
        scheduler: the checkpoint's own scheduler settings, as `solver_from_config` reads them.
    """

    family: ClassVar[str] = ""
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    takes_images: ClassVar[bool] = False
    takes_last_image: ClassVar[bool] = False
    takes_negative: ClassVar[bool] = True
    guidance: ClassVar[str] = "cfg"
    frame_axis: ClassVar[int] = 2
    lora_pipeline: ClassVar[str] = ""
    lora_network: ClassVar[str] = ""

    sigmas: str | None = None
    denoisers: dict[str, nn.Module]
    scheduler: Mapping[str, Any]

    def __init_subclass__(cls, **more: Any) -> None:
        """Whatever a family's own networks raise in their work is one line that names the family and the work: settings
        that no loader minds may not fit it, so that this holds for the built-in families too."""
        super().__init_subclass__(**more)
        explain_methods(cls, WORK, lambda model: f"model {model.family or type(model).__name__!r}")

    @classmethod
    @abstractmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32) -> VideoModel:
        """Loads a checkpoint on the CPU: every network frozen, in eval mode, its weights in `dtype`.

        A family's further parameters are options of the recipe (`model.options`).

        Args:
            checkpoint: what the recipe names: a folder, a file or a hub id; a family may define words of its own.

        Raises:
            UserError: there is no such checkpoint, or it is not of this family.
        """

    @classmethod
    def locate(cls, checkpoint: str) -> str | Path | None:
        """Where a checkpoint lies, before anything is loaded; None: only `load` can tell.

        Raises:
            UserError: there is no such checkpoint, or it is not whole.
        """
        return None

    @classmethod
    def check_prompts(cls, prompts: Sequence[Prompt], pictured: bool = False) -> None:
        """Before anything is loaded: whether prompts carry what the family starts from, and nothing that it ignores.

        Args:
            pictured: pictures to start from are given beside the prompts.

        Raises:
            UserError: naming the first prompt that does not fit, or whose picture cannot be opened.
        """
        for prompt in prompts:
            if problem := cls._problem(prompt, pictured):
                raise UserError(f"models of the family {cls.family!r} {problem}")
        pictures = [picture for prompt in prompts for picture in (prompt.image, prompt.last_image)]
        check_pictures([picture for picture in pictures if picture is not None])

    @classmethod
    def _problem(cls, prompt: Prompt, pictured: bool) -> str | None:
        if prompt.image is None and cls.takes_images and not pictured:
            return f"start from images, but prompt {prompt.text!r} has none: use a set of pictures, or --image PICTURE"
        if prompt.image is not None and not cls.takes_images:
            return f"take no images, but prompt {prompt.text!r} has one: use a set of texts"
        if not cls.takes_images and not prompt.text.strip():
            return "make a video of a text, but a prompt is empty: write what its video is to show"
        if prompt.last_image is not None and not cls.takes_last_image:
            return f"take no last image, but prompt {prompt.text!r} has one: leave it out"
        if prompt.negative and not cls.takes_negative:
            return f"read no text, but prompt {prompt.text!r} has the negative {prompt.negative!r}: leave it out"
        return None

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """Encodes B prompts, without gradient; the unconditional twins are their negative texts.

        Args:
            prompts: one a video.
            size: of the videos, for families whose denoiser is told it (fps, resolution).
            images: `[B, 3, H, W]` in [0, 1] to start from; None: those that the prompts carry.
        """

    def prepare(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027 (most families have nothing to do)
        """Told every prompt before a run or a batch of samples begins.

        A family whose text encoder is too large to stay in memory encodes them here, and drops it.
        """

    @abstractmethod
    def noise_shape(self, size: VideoSize) -> Any:
        """The shape of one video's latents, or a dictionary of shapes.

        Raises:
            UserError: the model cannot make videos of this size.
        """

    def tokens(self, size: VideoSize) -> int:
        """How many tokens a video is to the denoiser, for checkpoints whose noise levels depend on it.

        Raises:
            UserError: this family does not say; one with such a checkpoint overrides this.
        """
        raise UserError(
            f"{type(self).__name__} does not say its tokens, on which its noise levels depend: add `tokens`"
        )

    @property
    def check_size(self) -> VideoSize:
        """Small videos that it can make, for `vader check model`."""
        return VideoSize(frames=4, height=32, width=32)

    @abstractmethod
    def denoise(self, latents: Any, time: Tensor, inputs: dict[str, Tensor]) -> Any:
        """One pass: scaled latents `[N, ...]`, one time (scalar), inputs `[N, ...]` -> the prediction, like latents.

        Where there are several denoisers, the one that `expert` names of this time works.
        """

    def expert(self, time: float) -> str:
        """Which of the denoisers a time belongs to, as `denoise` is told it; families with several override this."""
        return next(iter(self.denoisers))

    def windows(self, size: VideoSize) -> Sequence[range]:
        """The frames that are decoded together, window by window; one by one unless a family overrides this."""
        return [range(frame, frame + 1) for frame in range(size.frames)]

    @abstractmethod
    def decode_unclamped(self, latents: Any, frames: Tensor | None = None) -> Tensor:
        """Pixels of the chosen frames before clamping: about [0, 1], may overshoot.

        Args:
            latents: the final latents of B videos.
            frames: indices `[B, n]` of the frames to decode, each video its own; None for all.

        Returns:
            float32 `[B, n, 3, H, W]`. Only the windows that hold a chosen frame cost anything.
        """

    def decode(self, latents: Any, frames: Tensor | None = None) -> Tensor:
        """Pixels of the chosen frames, in [0, 1]; see `decode_unclamped`."""
        return self.decode_unclamped(latents, frames).clamp(0, 1)

    def tiny_latents(self, latents: Any) -> Tensor:
        """Final latents as published tiny decoders take them (`vader.models.tiny_decoder`): `[B, T, C, h, w]`.

        Raises:
            UserError: none is published for this family; one for which there is overrides this.
        """
        raise UserError(f"no tiny decoder is known for models of {type(self).__name__}: leave model.decoder out")

    def decode_audio(self, latents: Any) -> Audio:
        """The videos' sound, differentiable to the latents.

        Raises:
            UserError: this family makes none; one that does overrides this.
        """
        raise UserError(f"models of {type(self).__name__} make no sound, so no reward or metric can listen to it")

    @classmethod
    def check_sound(cls, listens: bool) -> None:
        """Raises `UserError` if a reward or metric listens and this family makes no sound, before it is loaded."""
        if listens and cls.decode_audio is VideoModel.decode_audio:
            raise UserError(f"models of {cls.__name__} make no sound, so no reward or metric can listen to it")

    def encode_video(self, pixels: Tensor) -> Any:
        """Pixels `[B, F, 3, H, W]` in [0, 1] as final latents, without gradient: what `decode` takes back.

        Raises:
            UserError: this family has no way to; one that has overrides this.
        """
        raise UserError(f"models of {type(self).__name__} cannot encode videos, so they learn from no video files")

    def recompute(self, name: str, network: nn.Module, of: Grain) -> None:
        """Has one of the networks, in place, keep little for the backward pass and compute the rest again there.

        Every block of it, whatever it is, unless a family overrides this: where one block of a VAE is most of it, say,
        its layers, or its class's own switch.
        """
        checkpoint_blocks(network, of)

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """Every network by its component name ("unet", "vae", ...), for placing, counting and exporting."""

    def diffusers_pipeline(self) -> Any:
        """The same networks and scheduler as a diffusers pipeline, for exporting; families that have one override this.

        Raises:
            UserError: diffusers has no pipeline for this family.
        """
        raise UserError(f"models of {type(self).__name__} have no diffusers pipeline: export the adapter instead")

    def exporter(self) -> Callable[[Path], Any]:
        """What writes the whole model into a folder, for use without this package: as diffusers' pipeline, or else
        families override this.

        Raises:
            UserError: diffusers has no pipeline for this family.
        """
        return self.diffusers_pipeline().save_pretrained

    @property
    def denoiser(self) -> Any:
        """The first of the denoisers: for families that have one, the one."""
        return next(iter(self.denoisers.values()))

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def to(self, device: torch.device | str) -> VideoModel:
        for network in self.networks().values():
            network.to(device)
        self.share_device()
        return self

    def share_device(self, *others: nn.Module) -> None:
        """Says what else is on the model's device: it waits in CPU memory, as the model's own networks do, while a text
        encoder that is too large to stay is there."""
        from vader.models.text_cache import TextEmbedder  # and with it transformers, which a contract does without

        for part in vars(self).values():
            if isinstance(part, TextEmbedder):
                part.beside = (*self.networks().values(), *others)
