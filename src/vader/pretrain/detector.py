"""Pretrains the tiny world's detector of shapes: transformers' `YolosForObjectDetection` at 32x32 pixels.

Frames hold no object, one or two, and are shown clean and disturbed, as a reward will see them. The loss is DETR's
set-prediction loss (arXiv 2005.12872, section 3.1); with two objects at most, the best matching is found by trying all.
Beside it, a linear head that is thrown away afterwards names what every patch lies in: boxes alone are soon learned
without a look at the shapes.

Shapes: N frames, Q queries, P patches a side, C classes, 2 objects at most (class -1: there is none).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import YolosConfig, YolosForObjectDetection

from vader.pretrain.clip import as_seen_by_rewards
from vader.pretrain.loop import Schedule, fit, generator_for
from vader.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalize
from vader.tinyworld.scenes import (
    SHAPES,
    Scenes,
    boxes,
    object_centers,
    render,
    render_grounds,
    render_pairs,
    sample_pairs,
    sample_scenes,
)

SEED = 15
SCHEDULE = Schedule(steps=2700, lr=1e-3, cooldown=800, autocast=False)
BATCH = 64
SIZE = 32
HELD_OUT = 512
QUERIES = 6
WEIGHT_STD = 0.1  # about 1 / sqrt(width); with the 0.02 of large transformers, it does not learn to look for long
EMBEDDING_STD = 0.3
NOTHING_WEIGHT = 0.1  # of the class "no object" in the loss
BOX_WEIGHT, OVERLAP_WEIGHT = 5.0, 2.0
CLASS_WEIGHT = 4.0  # with DETR's 1 the boxes are learned long before the shapes in them
PATCH = 4


class Truth(NamedTuple):
    """What is in N frames: classes `[N, 2]`, corners (x0, y0, x1, y1) `[N, 2, 4]` in frame sides."""

    classes: Tensor
    corners: Tensor


def new_detector() -> YolosForObjectDetection:
    names = dict(enumerate(SHAPES))
    config = YolosConfig(
        image_size=[SIZE, SIZE],
        patch_size=PATCH,
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_detection_tokens=QUERIES,
        use_mid_position_embeddings=False,
        initializer_range=WEIGHT_STD,
        id2label=names,
        label2id={name: index for index, name in names.items()},
    )
    model = YolosForObjectDetection(config)
    # The library starts these at zero, for weights to be loaded: all queries and all places would be alike.
    for start in (model.vit.embeddings.detection_tokens, model.vit.embeddings.position_embeddings):
        nn.init.normal_(start, std=EMBEDDING_STD)
    return model


# ---- data ----


def labelled_frames(count: int, generator: torch.Generator) -> tuple[Tensor, Truth]:
    """Frames `[N, 3, 32, 32]` in [0, 1] of an eighth empty, three eighths one and half two objects, and the truth."""
    empty, one, two = count // 8, count // 2 - count // 8, count - count // 2
    ground = render_grounds(sample_scenes(empty, generator), frames=1, size=SIZE)
    single = at_random_times(sample_scenes(one, generator), generator)
    first, second = (at_random_times(scenes, generator) for scenes in sample_pairs(two, generator))
    frames = torch.cat([ground, render(single, 1, SIZE), render_pairs(first, second, 1, SIZE)])[:, 0]
    classes, corners = torch.full((count, 2), -1), torch.zeros(count, 2, 4)
    classes[empty:, 0], corners[empty:, 0] = torch.cat([single.shape, first.shape]), _corners(single, first)
    classes[empty + one :, 1], corners[empty + one :, 1] = second.shape, _corners(second)
    order = torch.randperm(count, generator=generator)
    return frames[order], Truth(classes[order], corners[order])


def at_random_times(scenes: Scenes, generator: torch.Generator) -> Scenes:
    """The scenes stopped at a random one of their frames."""
    frame = torch.randint(8, (len(scenes),), generator=generator)
    return replace(scenes, center=object_centers(scenes, 8)[torch.arange(len(scenes)), frame])


def _corners(*scenes: Scenes) -> Tensor:
    return torch.cat([boxes(some, frames=1)[:, 0] for some in scenes])


def seen_frames(count: int, vae: AutoencoderKL, generator: torch.Generator) -> tuple[Tensor, Truth]:
    """Labelled frames as a reward sees them, normalised for the detector."""
    frames, truth = labelled_frames(count, generator)
    return normalize(as_seen_by_rewards(frames, vae, generator), IMAGENET_MEAN, IMAGENET_STD), truth


# ---- loss ----


def set_loss(logits: Tensor, predicted: Tensor, truth: Truth) -> Tensor:
    """DETR's loss of class logits `[N, Q, C + 1]` and boxes (x, y, width, height) `[N, Q, 4]` (eq. 2 and 9)."""
    corners = to_corners(predicted)
    there = truth.classes >= 0
    queries = match(logits, corners, truth)
    wanted = torch.full(logits.shape[:2], logits.shape[-1] - 1)
    wanted.scatter_(1, queries, torch.where(there, truth.classes, logits.shape[-1] - 1))
    weight = torch.ones(logits.shape[-1])
    weight[-1] = NOTHING_WEIGHT
    matched = corners.gather(1, queries[..., None].expand(-1, -1, 4))[there]
    difference = BOX_WEIGHT * (matched - truth.corners[there]).abs().sum(dim=-1)
    distance = OVERLAP_WEIGHT * (1 - generalized_overlap(matched, truth.corners[there]))
    named = CLASS_WEIGHT * F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight)
    return named + (difference + distance).mean()


@torch.no_grad()
def match(logits: Tensor, corners: Tensor, truth: Truth) -> Tensor:
    """The two distinct queries `[N, 2]` that at the lowest cost predict the objects (DETR's eq. 1)."""
    there = truth.classes >= 0
    probability = logits.softmax(dim=-1).gather(2, truth.classes.clamp(min=0)[:, None].expand(-1, logits.shape[1], -1))
    each, wanted = corners[:, :, None], truth.corners[:, None]  # [N, Q, 1, 4] and [N, 1, 2, 4]
    cost = BOX_WEIGHT * (each - wanted).abs().sum(dim=-1) - OVERLAP_WEIGHT * generalized_overlap(each, wanted)
    cost = (cost - probability) * there[:, None]  # [N, Q, 2]
    together = cost[:, :, None, 0] + cost[:, None, :, 1]  # [N, Q, Q]
    together.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    best = together.flatten(1).argmin(dim=1)
    return torch.stack([best // logits.shape[1], best % logits.shape[1]], dim=1)


def to_corners(predicted: Tensor) -> Tensor:
    """(x, y, width, height) `[..., 4]` to (x0, y0, x1, y1)."""
    center, half = predicted[..., :2], predicted[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes (x0, y0, x1, y1) `[..., 4]`."""
    both = _area(torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:]))
    return both / (_area(one[..., :2], one[..., 2:]) + _area(other[..., :2], other[..., 2:]) - both).clamp(min=1e-6)


def generalized_overlap(one: Tensor, other: Tensor) -> Tensor:
    """Generalised IoU (arXiv 1902.09630, algorithm 1): overlap, less the share of their hull that neither covers."""
    union = _area(one[..., :2], one[..., 2:]) + _area(other[..., :2], other[..., 2:])
    both = _area(torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:]))
    hull = _area(torch.minimum(one[..., :2], other[..., :2]), torch.maximum(one[..., 2:], other[..., 2:]))
    return overlap(one, other) - (hull - union + both) / hull.clamp(min=1e-6)


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(dim=-1)


class Learner(nn.Module):
    """The detector, and the head that names patches while it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.detector = new_detector()
        self.naming = nn.Linear(self.detector.config.hidden_size, len(SHAPES) + 1)

    def loss(self, pixels: Tensor, truth: Truth) -> Tensor:
        output = self.detector(pixel_values=pixels)
        patches = output.last_hidden_state[:, 1:-QUERIES]  # the first token is the class token
        named = F.cross_entropy(self.naming(patches).flatten(0, 1), patch_classes(truth).flatten())
        return set_loss(output.logits, output.pred_boxes, truth) + CLASS_WEIGHT * named


def patch_classes(truth: Truth) -> Tensor:
    """The class `[N, P * P]` of the box in which each patch's middle lies; C where it lies in none."""
    line = (torch.arange(SIZE // PATCH) + 0.5) * PATCH / SIZE
    middles = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).flatten(0, 1)  # [P * P, 2]
    corners = truth.corners[:, :, None]  # [N, 2, 1, 4]
    inside = ((middles > corners[..., :2]) & (middles < corners[..., 2:])).all(dim=-1)
    found = torch.where(inside, truth.classes[..., None], -1).amax(dim=1)  # objects do not overlap
    return torch.where(found >= 0, found, len(SHAPES))


# ---- quality ----


def average_precision(scores: Tensor, corners: Tensor, there: Tensor, wanted: Tensor, iou: float = 0.5) -> float:
    """The area under one class's precision-recall curve, precision made monotonous (PASCAL VOC 2010).

    Args:
        scores: of every query `[N, Q]`.
        corners: of every query `[N, Q, 4]`.
        there: whether each object is of the class `[N, 2]`.
        wanted: its corners `[N, 2, 4]`.
        iou: overlap from which a query has found an object; each object is found once, by the surest query.
    """
    order = scores.flatten().argsort(descending=True).tolist()
    overlaps = overlap(corners[:, :, None], wanted[:, None]).masked_fill(~there[:, None], -1.0)
    found, hits = torch.zeros_like(there), []
    for image, query in (divmod(index, scores.shape[1]) for index in order):
        left = overlaps[image, query].masked_fill(found[image], -1.0)
        hits.append(left.max().item() >= iou)
        if hits[-1]:
            found[image, left.argmax()] = True
    right = torch.tensor(hits, dtype=torch.float64).cumsum(0)
    precision = (right / torch.arange(1, len(hits) + 1)).flip(0).cummax(0).values.flip(0)
    recall = right / max(int(there.sum()), 1)
    return (precision * recall.diff(prepend=torch.zeros(1))).sum().item()


@torch.no_grad()
def quality(model: YolosForObjectDetection, pixels: Tensor, truth: Truth) -> dict[str, float]:
    """Mean average precision over classes at an overlap of 0.5; and how often empty frames are called empty."""
    output = model(pixel_values=pixels)
    corners, probability = to_corners(output.pred_boxes), output.logits.softmax(dim=-1)[..., :-1]
    precisions = [
        average_precision(probability[..., index], corners, truth.classes == index, truth.corners)
        for index in range(len(SHAPES))
    ]
    empty = (truth.classes < 0).all(dim=1)
    calm = (probability[empty].amax(dim=(1, 2)) < 0.5).float().mean().item()
    return {"map_at_50": sum(precisions) / len(precisions), "empty_called_empty": calm}


def build(out: Path, work: Path, vae_folder: Path) -> dict[str, float]:
    """Trains the detector, writes it to `out` in transformers' format, and returns its held-out quality."""
    torch.manual_seed(SEED)
    vae = AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float32).eval()
    learner = Learner()

    def loss(generator: torch.Generator) -> Tensor:
        return learner.loss(*seen_frames(BATCH, vae, generator))

    trained = fit(learner, loss, SCHEDULE, SEED, checkpoint=work / "detector.pt").detector
    found = quality(trained, *seen_frames(HELD_OUT, vae, generator_for(SEED, -1)))
    trained.half().save_pretrained(out)
    settings = {
        "image_processor_type": "YolosImageProcessor",
        "size": {"shortest_edge": SIZE, "longest_edge": 2 * SIZE},
    }
    (out / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return found
