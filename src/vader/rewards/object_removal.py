"""Object removal: one minus a detector's confidence that an object is there (paper, section 4.2, "Object Removal").

YOLOS (arXiv 2106.00666) or Grounding DINO (arXiv 2303.05499) looks at single images; which of the two, the
checkpoint says. Each of the detector's Q queries has a confidence in the target, and a rule makes one of them:
`soft` takes the largest, which has a gradient wherever the object may be, however faint; `reference` averages
those above a threshold, as the paper's code does, and has none where no query passes it.

Shapes: N images, Q queries, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, GroundingDinoForObjectDetection, YolosForObjectDetection
from transformers.image_processing_utils import BaseImageProcessor

from vader.errors import UserError, nearest
from vader.files.foreign import reading
from vader.files.hub import from_pretrained, load_pretrained, load_tokenizer, resolve
from vader.nouns import Prompt
from vader.rewards.base import FrameReward
from vader.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalize, resize

REFERENCE_HEIGHT = 512  # of the paper's code
LONGEST = 1333 / 800  # DETR's largest longer side, in shorter sides
LARGEST = 10_000  # pixels of a side: what is beyond is no size


@dataclass
class Detections:
    """What the queries think of the target: confidence `[N, Q]` in [0, 1], and whether it is their best class."""

    confidence: Tensor
    best: Tensor


class Detector(nn.Module):
    """A frozen detector of one target: normalised pixels `[N, 3, H, W]` -> `Detections`.

    `threshold` is the confidence at which the paper's code counts a detection; image edges are to be a multiple
    of `multiple`, or the rest is not seen.
    """

    model: Any
    threshold: float
    multiple: int

    def to_precision(self, dtype: torch.dtype) -> None:
        """Runs the network in `dtype`; one that does not override this stays in float32."""


class Yolos(Detector):
    """A detector of fixed classes: the target is one of their names."""

    threshold = 0.2

    def __init__(self, source: str, target: str) -> None:
        super().__init__()
        self.model = load_pretrained(YolosForObjectDetection, source, "YOLOS detector")
        self.target = class_index(self.model.config.id2label, target, source)
        self.multiple = self.model.config.patch_size

    def forward(self, pixels: Tensor) -> Detections:
        logits = self.model(pixel_values=pixels.to(self.model.dtype)).logits
        return class_detections(logits.to(pixels.dtype), self.target)

    def to_precision(self, dtype: torch.dtype) -> None:
        self.model.to(dtype)


class GroundingDino(Detector):
    """A detector of what words name: the target is any phrase. Its deformable attention stays in float32."""

    threshold = 0.4
    multiple = 1

    def __init__(self, source: str, target: str) -> None:
        super().__init__()
        self.model = load_pretrained(GroundingDinoForObjectDetection, source, "Grounding DINO")
        tokenizer = load_tokenizer(AutoTokenizer, source)
        phrase = target.lower().rstrip(". ") + "."  # it was trained on phrases that end so
        self.register_buffer("tokens", tokenizer(phrase, return_tensors="pt").input_ids, persistent=False)

    def forward(self, pixels: Tensor) -> Detections:
        tokens = self.get_buffer("tokens").expand(len(pixels), -1)
        logits = self.model(pixel_values=pixels, input_ids=tokens).logits.to(pixels.dtype)
        confidence = logits.sigmoid().amax(dim=-1)  # over the phrase's tokens; padding is at minus infinity
        return Detections(confidence, torch.ones_like(confidence, dtype=torch.bool))


DETECTORS: dict[str, Callable[[str, str], Detector]] = {"yolos": Yolos, "grounding-dino": GroundingDino}


class ObjectRemoval(FrameReward):
    """How sure a detector is that an object is not there: 1 minus its confidence (YOLOS or Grounding DINO)."""

    sensible_range = (0.0, 1.0)

    def __init__(
        self,
        target: str,
        checkpoint: str = "hustvl/yolos-base",
        rule: Literal["soft", "reference"] = "soft",
        resize: Literal["shortest_edge", "height"] = "shortest_edge",
        size: int | None = None,
    ) -> None:
        """
        Args:
            target: what is to vanish: for YOLOS one of its class names ("book"), for Grounding DINO any phrase.
            checkpoint: `tiny`, a folder, or a hub id of a YOLOS or a Grounding DINO.
            rule: `soft`, 1 minus the largest confidence of all queries, or `reference`, 1 minus the mean of
                those above 0.2 (Grounding DINO: 0.4) whose best class is the target, and 1 where there is none.
            resize: `shortest_edge`, as the detectors were trained (antialiased, the longer side limited), or
                `height`, as the paper's code does (not antialiased).
            size: that edge or height, in pixels: lower saves memory. None: the checkpoint's own, or 512.

        Raises:
            UserError: weights are missing, or the detector does not know the target.
        """
        super().__init__()
        source = resolve(checkpoint, "detector")
        kind = from_pretrained(AutoConfig, source, "detector", trust_remote_code=False).model_type
        if kind not in DETECTORS:
            raise UserError(f"{checkpoint} is a {kind}, which is no detector known here: {', '.join(DETECTORS)}")
        self.detector: Detector = DETECTORS[kind](source, target)
        self.rule = RULES[rule]
        self.resize: Callable[[Tensor], Tensor] = partial(to_height, height=size or REFERENCE_HEIGHT)
        if resize == "shortest_edge":
            short, long = edges(source, size)
            self.resize = partial(to_shortest_edge, short=short, long=long, multiple=self.detector.multiple)

    def score_frames(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        found = self.detector(normalize(self.resize(images), IMAGENET_MEAN, IMAGENET_STD))
        return 1 - self.rule(found, self.detector.threshold)

    def to_precision(self, dtype: torch.dtype) -> ObjectRemoval:
        self.detector.to_precision(dtype)
        return self


# ---- rules ----


def class_detections(logits: Tensor, target: int) -> Detections:
    """From class logits `[N, Q, C + 1]`, of which the last means that there is nothing, to detections of one class."""
    probability = logits.softmax(dim=-1)[..., :-1]
    return Detections(probability[..., target], probability.argmax(dim=-1) == target)


def soft_confidence(found: Detections, threshold: float) -> Tensor:
    """The largest confidence `[N]` of all queries: no threshold, so its gradient never vanishes with the object."""
    return found.confidence.amax(dim=1)


def reference_confidence(found: Detections, threshold: float) -> Tensor:
    """The mean confidence `[N]` of the queries above the threshold whose best class is the target; 0 if none is.

    The paper's code has this rule, less its reset of the sum over images at every image without a detection.
    """
    kept = (found.best & (found.confidence > threshold)).to(found.confidence.dtype)
    return (found.confidence * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


RULES: dict[str, Callable[[Detections, float], Tensor]] = {"soft": soft_confidence, "reference": reference_confidence}


def class_index(names: Mapping[int, str], target: str, source: str) -> int:
    """The index of a class by its name, in any case.

    Raises:
        UserError: the checkpoint knows no such class.
    """
    indices = {name.lower(): index for index, name in names.items() if name != "N/A"}  # gaps of COCO's numbering
    if target.lower() not in indices:
        raise UserError(f"{source} detects no {target!r}: {nearest(target.lower(), indices)}")
    return indices[target.lower()]


# ---- resizing ----


def to_height(images: Tensor, height: int) -> Tensor:
    """Bilinear, not antialiased, to `[N, 3, height, W']` of the same aspect, W' rounded down: the paper's code's."""
    width = height * images.shape[-1] // images.shape[-2]
    return F.interpolate(images, (height, width), mode="bilinear", align_corners=False)


def to_shortest_edge(images: Tensor, short: int, long: int, multiple: int) -> Tensor:
    """Bilinear, antialiased, to the `official_size`."""
    height, width = images.shape[-2:]
    return resize(images, *official_size(height, width, short, long, multiple), "bilinear")


def official_size(height: int, width: int, short: int, long: int, multiple: int) -> tuple[int, int]:
    """The size at which the shorter edge is `short`, or the longer one `long` if it would be more (DETR's rule).

    Each edge is then cut to a multiple of `multiple`, as YOLOS's own processor does.
    """
    small, large = sorted((height, width))
    exact = min(short, long * small / large)
    low, high = (max(edge // multiple, 1) * multiple for edge in (round(exact), int(exact * large / small)))
    return (high, low) if width < height else (low, high)


def edges(source: str, size: int | None) -> tuple[int, int]:
    """The shorter edge, and what the longer may be at most: of `size`, or from the checkpoint's own settings.

    Raises:
        UserError: the checkpoint does not say.
    """
    if size:
        return size, round(LONGEST * size)
    with reading(f"{source} does not say its image size, set the option size"):
        settings: dict[str, Any] = BaseImageProcessor.get_image_processor_dict(source)[0]
        named: Any = settings["size"]
        if isinstance(named, int):  # as transformers wrote it before 4.27
            named = {"shortest_edge": named, "longest_edge": settings.get("max_size", round(LONGEST * named))}
        short = named["shortest_edge"]
        long = named.get("longest_edge", round(LONGEST * short))
    if not all(isinstance(edge, int) and 0 < edge <= LARGEST for edge in (short, long)):
        raise UserError(f"{source} says that its shortest edge is {short!r}: set the option size")
    return short, long
