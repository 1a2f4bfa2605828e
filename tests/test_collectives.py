"""Shares that keep processes in step, and the device's rules."""

from __future__ import annotations

import itertools

import pytest
import torch

from vader.engine import device as devices
from vader.engine.collectives import even_items, even_shares
from vader.errors import UserError

CASES = list(itertools.product((0, 1, 2, 5, 45, 50), (1, 2, 3, 8), (1, 4, 64)))


@pytest.mark.parametrize(("count", "world", "batch"), CASES)
def test_shares_are_even_and_cover_everything_once(count, world, batch):
    shares = [even_shares(count, rank, world, batch) for rank in range(world)]
    sizes = [[len(indices) for indices in share] for share in shares]
    assert all(each == sizes[0] for each in sizes)
    assert max(sizes[0], default=0) <= batch
    flat = [[index for indices in share for index in indices] for share in shares]
    own = [indices[: len(range(rank, count, world))] for rank, indices in enumerate(flat)]  # what follows are repeats
    assert sorted(itertools.chain(*own)) == list(range(count))
    assert all(0 <= index < count for indices in flat for index in indices)
    assert len(flat[0]) == -(-count // world)


@pytest.mark.parametrize(("count", "world"), [(0, 2), (1, 4), (3, 2), (7, 4), (8, 4)])
def test_items_are_even_and_repeats_weigh_nothing(count, world):
    items = [f"pair {i}" for i in range(count)]
    shares = [even_items(items, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(item for share in shares for item, weight in share if weight) == items
    assert {weight for share in shares for _, weight in share} <= {0.0, 1.0}


# ---- device ----


@pytest.mark.parametrize("there", ["cuda", "xpu", "mps", "cpu"])
def test_the_first_device_that_is_there(monkeypatch, there):
    order = ["cuda", "xpu", "mps", "cpu"]
    available = {kind: order.index(kind) >= order.index(there) for kind in order}
    monkeypatch.setattr("torch.cuda.is_available", lambda: available["cuda"])
    monkeypatch.setattr("torch.xpu.is_available", lambda: available["xpu"])
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: available["mps"])
    assert devices.best_device().type == there
    assert devices.is_gpu(torch.device(there)) == (there != "cpu")


@pytest.mark.parametrize(
    ("kind", "bf16", "expected"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("xpu", True, torch.bfloat16),
        ("mps", True, torch.float32),
        ("cpu", True, torch.float32),
    ],
)
def test_automatic_precision(monkeypatch, kind, bf16, expected):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: bf16)
    assert devices.frozen_dtype("auto", torch.device(kind)) == expected
    assert devices.frozen_dtype("fp16", torch.device(kind)) == torch.float16


def test_an_unknown_precision_is_named():
    with pytest.raises(UserError, match="unknown precision 'bf-16': did you mean 'bf16'"):
        devices.frozen_dtype("bf-16", torch.device("cpu"))


def test_a_cpu_needs_no_waiting():
    devices.synchronize(torch.device("cpu"))
