"""Subject consistency: VBench's number by its own loop, with every kind of encoder, and what it thinks of clips."""

from __future__ import annotations

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from vader.errors import UserError
from vader.rewards import load_reward
from vader.rewards.clip import load_image_tower
from vader.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalize, squash

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
MAKERS = {
    "dino": lambda: ViTModel(ViTConfig(intermediate_size=32, **SMALL), add_pooling_layer=False),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SMALL)),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of tiny random networks in the releases' layout, by kind, and the networks."""
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    networks = {kind: maker().eval() for kind, maker in MAKERS.items()}
    for kind, network in networks.items():
        network.save_pretrained(folder / kind)
    return folder, networks


@pytest.fixture(scope="module")
def clips():
    return torch.rand(2, 4, 3, 24, 32, generator=torch.Generator().manual_seed(0))


def vbench(features):
    """VBench's loop over the frames of one video; features `[F, D]`."""
    total, features = 0.0, torch.nn.functional.normalize(features, dim=-1)
    for i in range(1, len(features)):
        previous = max(0.0, torch.nn.functional.cosine_similarity(features[i - 1], features[i], dim=0).item())
        first = max(0.0, torch.nn.functional.cosine_similarity(features[0], features[i], dim=0).item())
        total += (previous + first) / 2
    return total / (len(features) - 1)


@pytest.mark.parametrize("kind", MAKERS)
def test_it_is_vbench_s_number(saved, clips, kind):
    folder, networks = saved
    reward = load_reward("consistency", checkpoint=str(folder / kind))
    pixels = normalize(squash(clips.flatten(0, 1), 16), IMAGENET_MEAN, IMAGENET_STD)
    with torch.no_grad():
        features = networks[kind](pixel_values=pixels).last_hidden_state[:, 0].unflatten(0, (2, 4))
    assert reward(clips, ["", ""]).tolist() == pytest.approx([vbench(one) for one in features], abs=1e-6)


def test_a_clip_s_tower_will_do(clips):
    found = load_reward("consistency", checkpoint="tiny")(clips, ["", ""])
    with torch.no_grad():
        features = load_image_tower("tiny", "squash", "hps")(clips.flatten(0, 1)).unflatten(0, (2, 4))
    assert found.tolist() == pytest.approx([vbench(one) for one in features], abs=1e-6)


def test_both_is_the_mean_of_first_and_previous(saved, clips):
    both, first, previous = (
        load_reward("consistency", checkpoint=str(saved[0] / "dino"), to=to)(clips, ["", ""])
        for to in ("both", "first", "previous")
    )
    torch.testing.assert_close(both, (first + previous) / 2)
    assert not torch.equal(first, previous)


def test_features_that_point_apart_count_nothing():
    from vader.rewards.consistency import similarity

    features = torch.tensor([[1.0, 0.0], [-0.6, 0.8], [0.6, 0.8]])
    assert similarity(features, features[:1]).tolist() == pytest.approx([1.0, 0.0, 0.6])


def test_its_gradient_is_the_slope(saved):
    reward = load_reward("consistency", checkpoint=str(saved[0] / "dino")).double()
    frames = torch.rand(1, 3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    direction = torch.randn(frames.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    leaf = frames.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(leaf, [""]).sum(), leaf)
    assert all(gradient[0, i].abs().sum() > 0 for i in range(3))  # every frame is told
    step = 1e-6
    ahead, behind = (reward(frames + sign * step * direction, [""]).item() for sign in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx((ahead - behind) / (2 * step), rel=1e-5)


def test_a_still_video_is_perfect_and_an_order_matters(saved, clips):
    reward = load_reward("consistency", checkpoint=str(saved[0] / "dinov2"))
    assert reward(clips[:, :1].expand(-1, 3, -1, -1, -1), ["", ""]).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert not torch.allclose(reward(clips, ["", ""]), reward(clips[:, [0, 2, 1, 3]], ["", ""]), atol=1e-7)


def test_another_network_is_named(tmp_path):
    from reward_factories import make_tiny_yolos

    folder = make_tiny_yolos(tmp_path / "yolos")
    with pytest.raises(UserError, match="is a yolos: reward 'consistency' takes a DINO"):
        load_reward("consistency", checkpoint=str(folder))
