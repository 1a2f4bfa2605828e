"""The tiny world's detector: pictures of two objects, DETR's loss by exhaustive matching, average precision."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from vader.files.hub import tiny_weights
from vader.pretrain import detector
from vader.pretrain.detector import (
    Truth,
    average_precision,
    generalized_overlap,
    labelled_frames,
    match,
    overlap,
    patch_classes,
    set_loss,
    to_corners,
)
from vader.pretrain.loop import Schedule
from vader.tinyworld.scenes import (
    SHAPES,
    boxes,
    object_masks,
    render,
    render_grounds,
    render_pairs,
    sample_pairs,
    sample_scenes,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- pictures ----


def test_single_scenes_are_drawn_as_before():
    """Shipped weights stand on this random stream and this renderer."""
    video = render(sample_scenes(4, generator(7)))
    assert video.double().mean().item() == pytest.approx(0.4027649, abs=1e-6)
    assert video[2, 5, :, 9, 20].tolist() == pytest.approx([0.9602065, 0.5506482, 0.1220407], abs=1e-6)


def test_two_objects_stay_inside_and_never_touch():
    first, second = sample_pairs(200, generator())
    one, other = boxes(first), boxes(second)
    assert min(one.min(), other.min()) >= 0
    assert max(one.max(), other.max()) <= 1
    assert overlap(one, other).max() < 1e-6
    assert torch.equal(first.background, second.background)
    assert torch.equal(first.vividness, second.vividness)


def test_pairs_move_along_their_halves_in_all_directions():
    first, second = sample_pairs(200, generator())
    assert torch.equal(first.motion // 2, second.motion // 2)  # left and right are 0 and 1, up and down 2 and 3
    assert {*first.motion.tolist()} == {*second.motion.tolist()} == {0, 1, 2, 3}
    assert 0.2 < (first.center < second.center).any(dim=1).float().mean() < 0.9


def test_pictures_of_pairs_hold_both_objects():
    first, second = sample_pairs(16, generator())
    videos, masks = render_pairs(first, second, frames=2), [object_masks(s, 2, 32) > 0.99 for s in (first, second)]
    for scenes, mask in zip((first, second), masks, strict=True):
        alone = render(scenes, frames=2)
        where = mask[:, :, None].expand_as(videos)
        torch.testing.assert_close(videos[where], alone[where])
    neither = ~(object_masks(first, 2, 32) + object_masks(second, 2, 32) > 0)[:, :, None].expand_as(videos)
    torch.testing.assert_close(videos[neither], render_grounds(first, frames=2)[neither])


def test_labelled_frames_are_what_they_say():
    frames, truth = labelled_frames(64, generator())
    assert frames.shape == (64, 3, 32, 32)
    assert (truth.classes >= 0).sum(dim=1).bincount().tolist() == [8, 24, 32]
    assert set(truth.classes[truth.classes >= 0].tolist()) == set(range(len(SHAPES)))
    empty = (truth.classes < 0).all(dim=1)
    assert frames[empty].flatten(2).std(dim=2).max() < frames[~empty].flatten(2).std(dim=2).max()
    for n in torch.nonzero(~empty)[:8, 0].tolist():  # within its box, the first object differs from the box's corners
        x0, y0, x1, y1 = (truth.corners[n, 0] * 32).round().int().tolist()
        patch = frames[n, :, y0:y1, x0:x1]
        assert patch.flatten(1).std(dim=1).max() > 0.01


def test_patches_are_named_after_the_box_they_lie_in():
    corners = torch.tensor([[0.0, 0.0, 0.375, 0.25], [0.5, 0.5, 1.0, 1.0]])
    named = patch_classes(Truth(torch.tensor([[3, 1], [-1, -1]]), torch.stack([corners, corners]))).view(2, 8, 8)
    wanted = torch.full((8, 8), len(SHAPES))
    wanted[:2, :3], wanted[4:, 4:] = 3, 1
    assert torch.equal(named[0], wanted)
    assert (named[1] == len(SHAPES)).all()


# ---- boxes ----


def test_overlaps_in_numbers():
    unit = torch.tensor([0.0, 0.0, 1.0, 1.0])
    others = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.5, 0.0, 1.5, 1.0], [2.0, 0.0, 3.0, 1.0]])
    torch.testing.assert_close(overlap(unit, others), torch.tensor([1.0, 1 / 3, 0.0]))
    torch.testing.assert_close(generalized_overlap(unit, others), torch.tensor([1.0, 1 / 3, -1 / 3]))
    torch.testing.assert_close(to_corners(torch.tensor([0.5, 0.5, 0.2, 0.4])), torch.tensor([0.4, 0.3, 0.6, 0.7]))


def test_generalized_overlap_equals_the_librarys():
    library = pytest.importorskip("transformers.loss.loss_for_object_detection")
    one, other = (to_corners(0.2 + 0.6 * torch.rand(9, 4)) for _ in range(2))
    expected = library.generalized_box_iou(one, other).diagonal()
    torch.testing.assert_close(generalized_overlap(one, other), expected, atol=1e-4, rtol=0)


# ---- loss ----


@pytest.fixture
def predictions():
    """Random predictions of 5 queries for 6 frames with no, one or two objects."""
    classes = torch.tensor([[-1, -1], [0, -1], [3, -1], [1, 1], [4, 2], [0, 3]])
    truth = Truth(classes, to_corners(0.2 + 0.6 * torch.rand(6, 2, 4)))
    return torch.randn(6, 5, 6), 0.2 + 0.6 * torch.rand(6, 5, 4), truth


def test_matching_is_the_best_of_all(predictions):
    logits, predicted, truth = predictions
    corners, probability = to_corners(predicted), logits.softmax(dim=-1)

    def cost(n: int, queries: tuple[int, int]) -> float:
        total = 0.0
        for k, q in enumerate(queries):
            if truth.classes[n, k] >= 0:
                total += 5 * (corners[n, q] - truth.corners[n, k]).abs().sum().item()
                total -= 2 * generalized_overlap(corners[n, q], truth.corners[n, k]).item()
                total -= probability[n, q, truth.classes[n, k]].item()
        return total

    for n, queries in enumerate(match(logits, corners, truth).tolist()):
        assert queries[0] != queries[1]
        best = min(cost(n, pair) for pair in permutations(range(5), 2))
        assert cost(n, tuple(queries)) == pytest.approx(best, abs=1e-5)


def test_loss_falls_to_nothing_for_the_truth(predictions):
    logits, predicted, truth = predictions
    perfect, sure = predicted.clone(), torch.zeros_like(logits)
    sure[..., -1] = 30.0
    size = truth.corners[..., 2:] - truth.corners[..., :2]
    for k, query in enumerate((3, 1)):
        perfect[:, query] = torch.cat([truth.corners[:, k, :2] + size[:, k] / 2, size[:, k]], dim=-1)
        there = truth.classes[:, k] >= 0
        sure[there, query] = 60.0 * torch.nn.functional.one_hot(truth.classes[there, k], 6).float()
    assert set_loss(sure, perfect, truth) < 1e-4
    assert set_loss(logits, predicted, truth) > 1


def test_loss_has_a_gradient_for_every_query(predictions):
    logits, predicted, truth = predictions
    logits.requires_grad_()
    predicted.requires_grad_()
    set_loss(logits, predicted, truth).backward()
    assert (logits.grad.norm(dim=-1) > 0).all()
    assert (predicted.grad.norm(dim=-1) > 0).sum() == (truth.classes >= 0).sum()


# ---- quality ----


def test_average_precision_in_numbers():
    """Three objects; by confidence: found, missed, found a second time, found, never the third."""
    wanted = torch.tensor([[[0.0, 0.0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]], [[0.0, 0.0, 0.4, 0.4]] * 2])
    there = torch.tensor([[True, True], [True, False]])
    far = [0.9, 0.0, 1.0, 0.1]
    corners = torch.tensor([[[0.0, 0.0, 0.4, 0.4], far, [0.0, 0.0, 0.39, 0.4]], [[0.0, 0.01, 0.4, 0.4], far, far]])
    scores = torch.tensor([[0.9, 0.8, 0.7], [0.6, 0.1, 0.05]])
    found = average_precision(scores, corners, there, wanted)
    assert found == pytest.approx(1 / 3 * 1 + 1 / 3 * 0.5)
    assert average_precision(scores, corners, there, wanted, iou=0.99) == pytest.approx(1 / 3)


def test_a_few_steps_write_a_detector_that_the_reward_loads(tmp_path, monkeypatch):
    from vader.rewards import load_reward

    monkeypatch.setattr(detector, "SCHEDULE", Schedule(steps=3, lr=1e-3, warmup=1, cooldown=1))
    monkeypatch.setattr(detector, "BATCH", 8)
    monkeypatch.setattr(detector, "HELD_OUT", 32)
    found = detector.build(tmp_path / "detector", tmp_path, tiny_weights("modelscope/vae"))
    assert found.keys() == {"map_at_50", "empty_called_empty"}
    assert 0 <= found["map_at_50"] <= 1
    files = {path.name: path.stat().st_size for path in (tmp_path / "detector").iterdir()}
    assert files["model.safetensors"] < 3e6
    reward = load_reward("object_removal", checkpoint=str(tmp_path / "detector"), target="ring")
    assert reward.resize.keywords == {"short": 32, "long": 64, "multiple": 4}
    assert 0 < reward(torch.rand(1, 2, 3, 32, 32), [""]).item() < 1
