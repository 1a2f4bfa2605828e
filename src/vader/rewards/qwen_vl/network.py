"""A Qwen-VL network that looks at a video or a picture and reads a text: frames and words in, hidden states out.

It sees one video at a time, so that no score depends on what else is in the batch, and needs neither padding nor an
attention mask. Networks are transformers' own (Qwen2-VL, Qwen2.5-VL, Qwen3-VL); its processors are not used, as they
import torchvision.

Shapes: n frames, L tokens, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from vader.errors import UserError
from vader.files.hub import from_pretrained, load_pretrained, load_tokenizer
from vader.rewards.preprocess import CLIP_MEAN, CLIP_STD
from vader.rewards.qwen_vl.pixels import Limits, PatchLayout, patches

Kind = Literal["image", "video"]
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
START, END = "<|vision_start|>", "<|vision_end|>"
PADS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
TYPES = {"image": 1, "video": 2}  # of tokens, as positions are counted; text is 0
HALF = (0.5, 0.5, 0.5)
TRANSFORMERS = 5  # before, the networks had other parts and names


class Family(NamedTuple):
    """What differs between the generations.

    Attributes:
        network: transformers' class.
        mean, std: of the colours.
        system: what the chat template puts first.
        stamped: whether every group of frames stands behind its second, written out.
    """

    network: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    system: str
    stamped: bool


FAMILIES = {
    "qwen2_vl": Family("Qwen2VLForConditionalGeneration", CLIP_MEAN, CLIP_STD, SYSTEM, stamped=False),
    "qwen2_5_vl": Family("Qwen2_5_VLForConditionalGeneration", CLIP_MEAN, CLIP_STD, SYSTEM, stamped=False),
    "qwen3_vl": Family("Qwen3VLForConditionalGeneration", HALF, HALF, "", stamped=True),
}


class Reading(NamedTuple):
    """Hidden states `[L, D]` behind the last layer, and the tokens `[L]` that they stand at, on the CPU."""

    hidden: Tensor
    tokens: Tensor

    def at(self, token: int) -> Tensor:
        """The state `[D]` at a token that stands there once.

        Raises:
            UserError: it does not.
        """
        places = (self.tokens == token).nonzero()[:, 0].tolist()
        if len(places) != 1:
            raise UserError(f"the text has the token {token} {len(places)} times, where a score is read at one")
        return self.hidden[places[0]]


class QwenVL(nn.Module):
    """Reads frames `[n, 3, H, W]` in [0, 1] and a text, differentiable to every pixel."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """
        Args:
            model: transformers' network without its language head, of one of the `FAMILIES`.
            tokenizer: its own, with whatever words a reward has added.
        """
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.family = FAMILIES[model.config.model_type]
        vision = model.config.vision_config
        self.layout = PatchLayout(
            vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size, self.family.mean, self.family.std
        )

    def forward(
        self, frames: Tensor, text: str, limits: Limits, times: Tensor | None = None, flat: bool = False
    ) -> Reading:
        """
        Args:
            frames: of a video, or a single picture if there are no times.
            text: what the user asks after what is seen.
            times: in seconds `[n]`.
            flat: count positions 0, 1, 2 ... in all three axes, as two released rewards were trained; else M-RoPE.
        """
        kind: Kind = "image" if times is None else "video"
        rows, grid = patches(frames, self.layout, limits)
        tokens = self.tokens(self.seen(kind, grid, times) + text)
        positions = flat_positions(tokens) if flat else self.positions(kind, tokens, grid, times)
        return Reading(self.states(kind, rows, grid, tokens, positions).to(frames.dtype), tokens)

    def states(self, kind: Kind, rows: Tensor, grid: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        """Hidden states `[L, D]`; tokens, positions and the grid come from the CPU."""
        device, pixels = rows.device, {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
        seen = {pixels: rows, f"{kind}_grid_thw": grid[None].to(device)}
        found = self.model(
            input_ids=tokens[None].to(device), position_ids=positions.to(device), use_cache=False, **seen
        )
        return found.last_hidden_state[0]

    def seen(self, kind: Kind, grid: Tensor, times: Tensor | None) -> str:
        """What stands for the frames in the text: a placeholder for each of their tokens."""
        count = self.layout.tokens(grid)
        if times is None or not self.family.stamped:
            return f"{START}{PADS[kind] * count}{END}"
        each = f"{START}{PADS[kind] * (count // int(grid[0]))}{END}"
        return "".join(f"<{second:.1f} seconds>{each}" for second in self._seconds(times))

    def _seconds(self, times: Tensor) -> Sequence[float]:
        """When each group of frames is shown: between its first frame and its last."""
        seconds = times.tolist()
        each = self.layout.temporal
        seconds += seconds[-1:] * (-len(seconds) % each)
        return [(seconds[i] + seconds[i + each - 1]) / 2 for i in range(0, len(seconds), each)]

    def tokens(self, message: str) -> Tensor:
        """The tokens `[L]` of a user's message, up to where the answer begins."""
        chat = f"{self.family.system}<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n"
        return torch.tensor(self.tokenizer(chat, add_special_tokens=False).input_ids, device="cpu")

    def positions(self, kind: Kind, tokens: Tensor, grid: Tensor, times: Tensor | None) -> Tensor:
        """Positions `[3, 1, L]` along time, height and width, as the network counts them (M-RoPE)."""
        types = torch.where(tokens == self.word(PADS[kind]), TYPES[kind], 0)[None]
        options: dict[str, Any] = {f"{kind}_grid_thw": grid[None]}
        if times is not None and hasattr(self.model.config.vision_config, "tokens_per_second"):
            span = float(times[-1] - times[0]) / max(1, len(times) - 1)
            options["second_per_grid_ts"] = [self.layout.temporal * span]
        return self.model.get_rope_index(tokens[None], types, **options)[0]

    def word(self, text: str) -> int:
        """The token of a text that is one.

        Raises:
            UserError: it is several.
        """
        found = self.tokenizer(text, add_special_tokens=False).input_ids
        if len(found) != 1:
            raise UserError(f"the tokenizer takes {text!r} for {len(found)} tokens, not one: it is not Qwen-VL's")
        return int(found[0])

    def check_text(self, text: str) -> None:
        """Raises `UserError` if a text holds one of the tokenizer's own marks, which would be read as such."""
        if marks := [word for word in self.tokenizer.get_added_vocab() if word in text]:
            raise UserError(f"prompt {text!r} holds {marks[0]!r}, which means something else here: leave it out")


def flat_positions(tokens: Tensor) -> Tensor:
    """Positions `[3, 1, L]` that count tokens in each axis."""
    return torch.arange(len(tokens), device="cpu").expand(3, 1, -1)


def check_transformers() -> None:
    """Raises `UserError` if transformers is too old for these networks."""
    if int(transformers.__version__.split(".")[0]) < TRANSFORMERS:
        raise UserError(
            f"rewards on Qwen-VL need transformers {TRANSFORMERS} or newer, here is {transformers.__version__}: "
            "pip install -U transformers"
        )


def qwen_config(source: str) -> Any:
    """The settings of a Qwen-VL in a folder or on the hub.

    Raises:
        UserError: they cannot be read, or are of another kind.
    """
    check_transformers()
    config = from_pretrained(AutoConfig, source, "Qwen-VL", trust_remote_code=False)
    if config.model_type not in FAMILIES:
        raise UserError(f"{source} is a {config.model_type}, and no Qwen-VL of {', '.join(FAMILIES)}")
    return config


def load_qwen_vl(source: str) -> tuple[QwenVL, nn.Linear]:
    """A released Qwen-VL in float32, and its language head, from a folder or hub id.

    Raises:
        UserError: it cannot be loaded, or is of another kind.
    """
    family = FAMILIES[qwen_config(source).model_type]
    whole = load_pretrained(getattr(transformers, family.network), source, "Qwen-VL")
    return QwenVL(whole.model, load_tokenizer(AutoTokenizer, source)), whole.lm_head
