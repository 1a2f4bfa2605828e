"""Object removal: the reference's rule without its reset, a soft rule without a dead zone, and both detectors."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from reward_factories import make_tiny_grounding_dino, make_tiny_videomae, make_tiny_yolos, unit_range
from vader.errors import UserError
from vader.rewards import load_reward
from vader.rewards.object_removal import (
    Detections,
    class_detections,
    class_index,
    edges,
    official_size,
    reference_confidence,
    soft_confidence,
    to_height,
)
from vader.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalize

RULE = "parity/rewards/yolos_reward_rule.safetensors"


@pytest.fixture
def yolos(tmp_path):
    folder = str(make_tiny_yolos(tmp_path / "yolos", use_mid_position_embeddings=True))
    return lambda **more: load_reward("object_removal", **({"target": "book", "checkpoint": folder} | more))


# ---- rules ----


@pytest.mark.parametrize("case", ["A", "B", "C"])
def test_reference_rule_equals_the_reference_without_its_reset(shared, case):
    data = load_file(shared(RULE))
    found = class_detections(data[f"io.{case}.logits"], data["class_id"].item())
    loss = reference_confidence(found, 0.2).mean()
    torch.testing.assert_close(loss[None], data[f"io.{case}.loss_no_reset"], atol=1e-6, rtol=0)


def test_reference_rule_has_the_reference_gradient(shared):
    """Case B has a detection in every image, so that the reference's own gradient is not spoilt by its reset."""
    data = load_file(shared(RULE))
    logits = data["io.B.logits"].clone().requires_grad_()
    loss = reference_confidence(class_detections(logits, data["class_id"].item()), 0.2).mean()
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, data["io.B.grad_loss_vader"], atol=1e-7, rtol=1e-4)


def test_the_order_of_frames_does_not_matter(shared):
    data = load_file(shared(RULE))
    means = [reference_confidence(class_detections(data[f"io.{case}.logits"], 84), 0.2).mean() for case in "AC"]
    torch.testing.assert_close(*means)


def test_reference_rule_in_numbers():
    confidence = torch.tensor([[0.9, 0.5, 0.1], [0.19, 0.1, 0.0], [0.3, 0.8, 0.2]])
    best = torch.tensor([[True, True, True], [True, True, True], [True, False, True]])
    found = Detections(confidence, best)
    torch.testing.assert_close(reference_confidence(found, 0.2), torch.tensor([0.7, 0.0, 0.3]))
    torch.testing.assert_close(soft_confidence(found, 0.2), torch.tensor([0.9, 0.19, 0.8]))


def test_the_column_of_no_object_is_no_class():
    logits = torch.tensor([[[1.0, 2.0, 9.0]]])  # classes 0 and 1, and nothing
    found = class_detections(logits, target=1)
    torch.testing.assert_close(found.confidence[0, 0], logits.softmax(-1)[0, 0, 1])
    assert found.best.item()


@pytest.mark.parametrize("rule", ["soft", "reference"])
def test_gradient_below_the_threshold(yolos, rule):
    """Where no query is sure enough, the reference rule is dead and the soft one is not."""
    frames = torch.rand(2, 2, 3, 16, 16, requires_grad=True)
    reward = yolos(rule=rule)
    reward.detector.threshold = 0.4  # above what the random detector says of anything
    scores = reward(frames, ["", ""])
    (gradient,) = torch.autograd.grad(scores.sum(), frames)
    reached = gradient.flatten(2).norm(dim=2) > 0
    assert reached.all() if rule == "soft" else not reached.any()
    assert 0.6 < scores.max() < 1 if rule == "soft" else (scores == 1).all()


# ---- names ----


def test_the_checkpoints_own_names_rule(yolos):
    frames = torch.rand(1, 1, 3, 16, 16)
    scores = {name: yolos(target=name)(frames, [""]).item() for name in ("book", "BOOK", "cup")}
    assert scores["book"] == scores["BOOK"] != scores["cup"]


@pytest.mark.parametrize(
    ("target", "message"),
    [("bok", "detects no 'bok': did you mean 'book'?"), ("dog", "known: book, cup, person"), ("N/A", "detects no")],
)
def test_unknown_targets_get_the_nearest(yolos, target, message):
    with pytest.raises(UserError) as error:
        yolos(target=target)
    assert message in str(error.value)


def test_coco_names(shared):
    names = json.loads(shared("parity/rewards/labels.json").read_text())["yolos_id2label"]
    names = {int(index): name for index, name in names.items()}
    assert (class_index(names, "book", ""), class_index(names, "Person", "")) == (84, 1)
    with pytest.raises(UserError, match="did you mean 'wine glass'"):
        class_index(names, "wineglass", "yolos-base")


def test_a_target_is_needed():
    with pytest.raises(UserError, match="reward 'object_removal' needs the option 'target'"):
        load_reward("object_removal")


def test_other_checkpoints_are_refused(tmp_path):
    with pytest.raises(UserError, match="is a videomae, which is no detector known here: yolos, grounding-dino"):
        load_reward("object_removal", target="book", checkpoint=str(make_tiny_videomae(tmp_path / "v")))


# ---- resizing ----


@pytest.mark.parametrize("tail", ["", "_big"])
def test_height_equals_the_reference(shared, tail):
    data = load_file(shared("parity/rewards/preprocess.safetensors"))
    resized = normalize(to_height(unit_range(data[f"frames{tail}_m1_1"]), 512), IMAGENET_MEAN, IMAGENET_STD)
    assert list(resized.shape) == data[f"yolos_shape{tail}"].tolist()
    expected = data[f"yolos_every8{tail}"]
    torch.testing.assert_close(resized[: len(expected), :, ::8, ::8], expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(320, 512, (800, 1280)), (512, 320, (1280, 800)), (100, 300, (432, 1328)), (256, 256, (800, 800))],
)
def test_shortest_edge_is_that_of_the_processor(height, width, size):
    """Figures of transformers' `YolosImageProcessor` with its defaults (800, 1333, multiples of 16)."""
    assert official_size(height, width, 800, 1333, 16) == size


def test_sizes_come_from_the_checkpoint_or_the_option(yolos, tmp_path):
    folder = tmp_path / "yolos"
    yolos()
    assert edges(str(folder), None) == (16, 32)
    assert edges(str(folder), 800) == (800, 1333)
    (folder / "preprocessor_config.json").write_text('{"size": 512, "max_size": 864}')  # as old files have it
    assert edges(str(folder), None) == (512, 864)
    (folder / "preprocessor_config.json").write_text('{"size": {"height": 8, "width": 8}}')
    with pytest.raises(UserError, match="set the option size"):
        yolos()
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="set the option size"):
        yolos()
    assert yolos(size=32)
    assert yolos(resize="height", size=32)


# ---- the whole reward ----


def test_score_is_one_minus_the_confidence(yolos):
    frames = torch.rand(2, 3, 3, 16, 24)  # the detector's own size: nothing to resize
    reward = yolos()
    logits = reward.detector.model(pixel_values=normalize(frames.flatten(0, 1), IMAGENET_MEAN, IMAGENET_STD)).logits
    expected = 1 - logits.softmax(-1)[..., 3].max(dim=1).values.unflatten(0, (2, 3)).mean(dim=1)
    torch.testing.assert_close(reward(frames, ["", ""]), expected)


def finite_difference_error(reward, frames: Tensor, step: float) -> float:
    """Relative error of the gradient's slope in a random direction, against central differences."""
    frames = frames.double().requires_grad_()
    prompts = [""] * len(frames)
    (gradient,) = torch.autograd.grad(reward(frames, prompts).sum(), frames)
    direction = torch.randn_like(frames)
    with torch.no_grad():
        up, down = (reward(frames + sign * step * direction, prompts).double().sum() for sign in (1, -1))
    slope = (gradient * direction).sum()
    return ((up - down) / (2 * step) / slope - 1).abs().item()


@pytest.mark.parametrize("options", [{"resize": "height", "size": 16}, {}, {"size": 24, "rule": "reference"}])
def test_pixel_gradient_agrees_with_finite_differences(yolos, options):
    reward = yolos(**options).double()
    reward.detector.threshold = 0.0  # so that the reference rule sees something
    assert finite_difference_error(reward, torch.rand(2, 2, 3, 12, 20), 1e-6) < 1e-6


def test_half_precision_is_close(yolos):
    frames = torch.rand(2, 1, 3, 16, 16)
    exact, score = yolos()(frames, ["", ""]), yolos().to_precision(torch.bfloat16)(frames, ["", ""])
    assert score.dtype == torch.float32
    assert 0 < (score - exact).abs().max() < 0.05


def test_everything_is_frozen(yolos):
    assert not any(parameter.requires_grad for parameter in yolos().parameters())
    assert not any(module.training for module in yolos().modules())


# ---- Grounding DINO ----


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    folder = str(make_tiny_grounding_dino(tmp_path_factory.mktemp("dino")))
    return lambda **more: load_reward("object_removal", **({"target": "book", "checkpoint": folder, "size": 32} | more))


def test_grounding_dino_reads_the_phrase(dino):
    tokens = {target: dino(target=target).detector.tokens.tolist() for target in ("book", "Book.", "cup")}
    assert tokens == {"book": [[2, 6, 5, 3]], "Book.": [[2, 6, 5, 3]], "cup": [[2, 7, 5, 3]]}


def test_grounding_dino_scores_and_reaches_the_pixels(dino):
    frames = torch.rand(2, 2, 3, 32, 40, requires_grad=True)
    reward = dino()
    scores = reward(frames, ["", ""])
    assert scores.shape == (2,)
    assert ((scores > 0) & (scores < 1)).all()
    (gradient,) = torch.autograd.grad(scores.sum(), frames)
    assert gradient.isfinite().all()
    assert (gradient.flatten(2).norm(dim=2) > 0).all()
    torch.testing.assert_close(torch.cat([reward(frames[i : i + 1], [""]) for i in (0, 1)]), scores)


def test_grounding_dino_rules_and_precision(dino):
    frames = torch.rand(1, 2, 3, 32, 32)
    reward = dino(rule="reference").to_precision(torch.bfloat16)
    assert next(reward.parameters()).dtype == torch.float32
    found = reward.detector(normalize(frames[0], IMAGENET_MEAN, IMAGENET_STD))
    kept = [row[row > 0.4] for row in found.confidence]
    expected = torch.stack([1 - row.mean() if len(row) else torch.tensor(1.0) for row in kept]).mean()
    torch.testing.assert_close(reward(frames, [""])[0], expected)


def test_grounding_dino_gradient_agrees_with_finite_differences(dino):
    """Its logits are written into a float32 tensor, so the differences cannot be sharper than that."""
    assert finite_difference_error(dino().double(), torch.rand(1, 2, 3, 32, 32), 1e-2) < 0.02


@pytest.mark.parametrize(
    "size", [{"shortest_edge": 10**30}, {"shortest_edge": "16"}, {"shortest_edge": 0}, [], None, 0]
)
def test_an_image_size_that_is_none(tmp_path, size):
    folder = make_tiny_yolos(tmp_path)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": size}))
    with pytest.raises(UserError, match="set the option size"):
        load_reward("object_removal", target="book", checkpoint=str(folder))
    assert load_reward("object_removal", target="book", checkpoint=str(folder), size=16)
