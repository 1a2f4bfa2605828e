"""Pretrains the tiny twin of VideoCrafter2: one `model.ckpt` in the release's layout, its tokenizer beside it.

It starts from the ModelScope twin, whose UNet has the same blocks, and learns what VideoCrafter2 does otherwise: it
predicts the noise, on a signal that is scaled down by `videocrafter_scale`, and is told the frames per second. At high
noise that prediction is all but a copy of the input, and what counts is the small rest. A network as narrow as this
one copies badly, since each normalisation takes away how large its input was; so its last block is first given a way
on which the input arrives as it is (`open_input_path`), and the training is about the rest.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel

from vader.models.videocrafter.model import VideoCrafter
from vader.models.videocrafter.networks import build_unet
from vader.models.videocrafter.release import FILE_NAME, write_release
from vader.nouns import VideoSize, as_prompts
from vader.pretrain.loop import Schedule
from vader.pretrain.modelscope import (
    LatentPool,
    Stage,
    cached_pool,
    draw_features,
    fit_stages,
    judged,
    new_scheduler,
)
from vader.solvers import videocrafter_scale
from vader.tinyworld.scenes import ALL_ATTRIBUTES, CAPTIONS, caption

logger = logging.getLogger(__name__)

SEED = 19
STAGES = (Stage("videocrafter", tuple(range(8)), 16, Schedule(steps=1100, lr=1e-3, cooldown=400)),)
FPS = (4, 28)  # what is told in training, whatever the clip: the world's clips have no speed that it could explain
MAX_WEIGHT = 200.0  # of an error at the highest noise; the first of ten sampling steps has 170
CONSTANT = 10.0  # in the input path: large against latents, so that a norm hardly changes with them
KEPT = 0.1  # of the ModelScope twin's output, which predicts something else


# ---- where the training starts ----


def new_unet(twin: UNet3DConditionModel) -> UNet3DConditionModel:
    """The ModelScope twin's UNet with an embedding of the frames per second, and an open path for its input."""
    unet: Any = build_unet({key: value for key, value in twin.config.items() if not key.startswith("_")})
    unet.load_state_dict(twin.state_dict(), strict=False)
    nn.init.zeros_(unet.time_embedding.fps_embedding.linear_2.weight)
    nn.init.zeros_(unet.time_embedding.fps_embedding.linear_2.bias)
    open_input_path(unet)
    return unet


@torch.no_grad()
def open_input_path(unet: Any) -> None:
    """Frees, in the last block, one group of three channels for each latent channel x, so that `x` is the output.

    The three hold x, -x and a constant. The group's mean is then a constant, its deviation nearly one, and the final
    activation is undone by silu(x) - silu(-x) = x. Of the network's output so far the share `KEPT` is added.
    """
    plus, minus, constant = _freed_channels(unet)
    freed = torch.cat([plus, minus, constant])
    block = unet.up_blocks[-1]
    attentions = [block.attentions[-1], block.temp_attentions[-1]]
    convolutions = block.temp_convs[-1]
    shortcut = block.resnets[-1].conv_shortcut
    for writer in (shortcut, block.resnets[-1].conv2, convolutions.conv4[-1], *(each.proj_out for each in attentions)):
        writer.weight[freed] = 0
        writer.bias[freed] = 0
    for reader in (convolutions.conv1[-1], *(each.proj_in for each in attentions), unet.conv_out):
        reader.weight[:, freed] = 0

    reading, offset = _read_input(unet)
    width = reading.shape[1]  # the block's input ends in the features of `conv_in`
    for channels, sign in ((plus, 1), (minus, -1)):
        shortcut.weight[channels, -width:] = sign * reading[:, :, None, None]
        shortcut.bias[channels] = -sign * offset
        unet.conv_norm_out.weight[channels] = (2 * CONSTANT**2 / 9 + 2 / 3) ** 0.5  # the deviation where x has 1
        unet.conv_norm_out.bias[channels] = CONSTANT / 3
    shortcut.bias[constant] = CONSTANT
    unet.conv_norm_out.weight[constant] = 0
    unet.conv_norm_out.bias[constant] = 0
    unet.conv_out.weight *= KEPT
    unet.conv_out.bias *= KEPT
    latent = torch.arange(len(plus))
    unet.conv_out.weight[latent, plus, 1, 1] = 1
    unet.conv_out.weight[latent, minus, 1, 1] = -1


def _freed_channels(unet: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Three channels `[latent channels]` of each of the groups that weigh least in the output."""
    weight = unet.conv_out.weight.square().sum(dim=(0, 2, 3)) * unet.conv_norm_out.weight.square()
    groups = weight.view(unet.config.norm_num_groups, 3).sum(dim=1).argsort()[: unet.config.in_channels]
    first, second, third = (3 * groups + part for part in range(3))
    return first, second, third


def _read_input(unet: Any) -> tuple[Tensor, Tensor]:
    """What reads the input off the features of `conv_in`: `matrix @ features - offset`, `[latent channels, width]`.

    The features hold each pixel's 3x3 surroundings linearly, with room to spare; of all matrices that give the
    pixel itself, the one that hears least of what `transformer_in` adds is taken, and that is silenced.
    """
    seen = unet.conv_in.weight.flatten(1)  # [width, 9 x latent channels]
    added = unet.transformer_in.proj_out.weight
    wanted = torch.zeros(unet.config.in_channels, seen.shape[1])
    wanted[torch.arange(len(wanted)), 9 * torch.arange(len(wanted)) + 4] = 1
    spread = added @ added.T
    inverse = torch.linalg.inv(spread + 1e-3 * spread.diagonal().mean() * torch.eye(len(spread)))
    matrix = wanted @ torch.linalg.solve(seen.T @ inverse @ seen, seen.T @ inverse)
    heard = torch.linalg.pinv(matrix) @ matrix
    added -= heard @ added
    unet.transformer_in.proj_out.bias -= heard @ unet.transformer_in.proj_out.bias
    return matrix, matrix @ unet.conv_in.bias


# ---- the training ----


def noise_loss(unet: Any, levels: Tensor, latents: Tensor, features: Tensor, generator: torch.Generator) -> Tensor:
    """Error of the predicted noise at uniform times, weighted to be that of a v-prediction (arXiv 2202.00512, app. D).

    With a signal of variance a^2 and noise of variance 1 - alpha_bar in the input, it is divided by the signal's share
    a^2 / (a^2 + 1 - alpha_bar), up to `MAX_WEIGHT`.

    Args:
        levels: alpha_bar of each time `[T]`.
        latents: clean `[N, 4, F, h, w]`, with their text features `[N, L, D]`.
    """
    count, device = len(latents), features.device
    times = torch.randint(len(levels), (count,), generator=generator)
    fps = torch.randint(FPS[0], FPS[1] + 1, (count,), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    signal = (videocrafter_scale(len(levels))[times] ** 2 * levels[times]).float()
    rest = 1 - levels[times].float()
    weight = ((signal + rest) / signal).clamp(max=MAX_WEIGHT)
    amplitude, sigma = (part.sqrt().view(-1, 1, 1, 1, 1) for part in (signal, rest))
    noisy = (amplitude * latents + sigma * noise).to(device)
    prediction = unet(noisy, times.to(device), features, timestep_cond=fps.to(device)).sample.float()
    return ((prediction - noise.to(device)).square().mean(dim=(1, 2, 3, 4)) * weight.to(device)).mean()


def build(out: Path, work: Path, twin: Path) -> dict[str, float]:
    """Writes `out/model.ckpt` and `out/tokenizer`.

    Args:
        twin: the folder of the finished ModelScope twin: VAE, text encoder and tokenizer are its own.

    Returns:
        What the judge finds right in videos of held-out prompts, see `judged`.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(SEED)
    vae = AutoencoderKL.from_pretrained(twin / "vae", torch_dtype=torch.float32).to(device)
    pool = cached_pool(vae, work / "pool.pt")
    model = write_start(work / "videocrafter", vae, twin)
    model.to(device)
    train(model, pool, encode_captions(model), work, device)
    shutil.copytree(twin / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    _write(out, model.denoiser, model.vae, model.text_encoder)
    return judged(VideoCrafter.load(str(out)).to(device))


def write_start(folder: Path, vae: AutoencoderKL, twin: Path) -> VideoCrafter:
    """The model before its training, as it is read from the release's layout."""
    unet = new_unet(UNet3DConditionModel.from_pretrained(twin / "unet", torch_dtype=torch.float32))
    text_encoder = CLIPTextModel.from_pretrained(twin / "text_encoder", dtype=torch.float32)
    shutil.copytree(twin / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    _write(folder, unet, vae, text_encoder)
    return VideoCrafter.load(str(folder))


def _write(folder: Path, unet: Any, vae: AutoencoderKL, text_encoder: CLIPTextModel) -> None:
    levels = new_scheduler().alphas_cumprod
    write_release(folder / FILE_NAME, unet, vae, text_encoder, levels, dtype=torch.float16)


def encode_captions(model: VideoCrafter) -> Tensor:
    """Text features of all captions: `[templates, attributes + 1, tokens, width]`; the last row is the empty one."""
    size = VideoSize(8, 32, 32)
    texts = [[*(caption(item, template) for item in ALL_ATTRIBUTES), ""] for template in range(len(CAPTIONS))]
    return torch.stack([model.encode(as_prompts(each), size).cond["text"] for each in texts])


def train(
    model: VideoCrafter, pool: LatentPool, captions: Tensor, work: Path, device: torch.device | str = "cpu"
) -> None:
    """Trains the denoiser in place."""
    unet, levels = model.denoiser.requires_grad_(True), new_scheduler().alphas_cumprod
    if device == "cpu":
        unet.set_attn_processor(AttnProcessor())  # for sequences of 8 to 64 tokens faster there than fused attention

    def loss(stage: Stage, generator: torch.Generator) -> Tensor:
        latents, indices = pool.batch(stage, generator)
        return noise_loss(unet, levels, latents, draw_features(captions, indices, generator), generator)

    fit_stages(unet, loss, STAGES, SEED, work, device)
