"""The tiny world's V-JEPA: V-JEPA's own training step, and a file that the reward loads."""

from __future__ import annotations

import torch

from vader.pretrain import vjepa
from vader.pretrain.loop import Schedule
from vader.rewards import load_reward
from vader.rewards.vjepa.masks import Grid


def test_the_loss_trains_encoder_and_predictor_but_not_the_target():
    networks = vjepa.new_networks()
    for seed in range(12):  # both kinds of masks: each of the predictor's mask tokens has its own
        vjepa.pretraining_loss(networks, torch.rand(2, 8, 3, 32, 32), torch.Generator().manual_seed(seed)).backward()
    trained = {name for name, parameter in networks.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in networks.named_parameters() if not name.startswith("target_encoder.")}


def test_the_target_follows_the_encoder():
    networks = vjepa.new_networks()
    old = networks.encoder.norm.weight.clone()
    networks.encoder.norm.weight.data += 1
    vjepa.follow(networks, momentum=0.75)
    torch.testing.assert_close(networks.target_encoder.norm.weight, old + 0.25)


def test_shuffled_clips_hold_the_same_frames_in_another_order():
    frames = torch.arange(3.0).expand(50, 3)[..., None, None, None] * torch.ones(50, 3, 1, 2, 2)
    mixed = vjepa.shuffled(frames, torch.Generator().manual_seed(0))[:, :, 0, 0, 0]
    assert torch.equal(mixed.sort(dim=1).values, frames[:, :, 0, 0, 0])
    assert {tuple(order) for order in mixed.tolist()} == {(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1)}


def test_clips_are_short_or_long_and_long_ones_go_on_from_their_last_frame():
    lengths = {vjepa.draw_clips(torch.Generator().manual_seed(seed)).shape[:2] for seed in range(20)}
    assert lengths == {(16, 8), (4, 22)}
    frames = torch.arange(4.0).view(1, 4, 1, 1, 1)
    assert vjepa.there_and_back(frames, 11).flatten().tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2]


def test_four_in_five_batches_foretell_the_future():
    grid = Grid(4, 4, 4)
    drawn = [vjepa.draw_hidden(grid, torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert 0.7 < sum(len(masks) == 1 for masks in drawn) / 200 < 0.9
    beginnings = {masks[0].context.shape[1] for masks in drawn if len(masks) == 1}
    assert beginnings == {16, 32, 48}


def test_attention_begins_with_what_is_alike():
    attention = vjepa.new_networks().encoder.blocks[0].attn
    queries, keys = attention.qkv(torch.randn(10, 64))[:, :128].chunk(2, dim=1)
    assert torch.equal(queries, keys)


def test_half_of_the_clips_are_clean_and_half_lightly_noisy():
    grey = torch.full((40, 4, 3, 8, 8), 0.5)
    spread = (vjepa.lightly_noisy(grey, torch.Generator().manual_seed(0)) - grey).flatten(1).std(dim=1)
    assert (spread[:20] == 0).all()
    assert spread[20:].max() < 0.12
    assert 0.04 < spread[20:].mean() < 0.06


def test_a_few_steps_write_a_file_that_the_reward_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(vjepa, "SCHEDULE", Schedule(steps=2, lr=1e-3, warmup=1, cooldown=1))
    monkeypatch.setattr(vjepa, "BATCH", 4)
    monkeypatch.setattr(vjepa, "PAIRS", 8)
    found = vjepa.build(tmp_path, tmp_path)
    kinds = ("shuffled", "color", "shape", "background", "place", "dull", "blurred", "noisy")
    assert found.keys() == {"loss", "loss_shuffled", *(f"{kind}_told" for kind in kinds)}
    path = tmp_path / "vjepa.safetensors"
    assert path.stat().st_size < 3e6
    scores = load_reward("vjepa", checkpoint=str(path))(torch.rand(2, 8, 3, 32, 32), ["", ""])
    assert scores.isfinite().all()
