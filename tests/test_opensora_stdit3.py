"""STDiT3 against the official outputs, and against what must hold of it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vader.errors import UserError
from vader.models.opensora.model import OpenSora
from vader.models.opensora.stdit3 import STDiT3, STDiT3Config, position_table
from vader.networks.adapter import add_adapter, matching_layers
from vader.networks.measure import count_parameters
from vader.networks.recompute import checkpoint_blocks

TINY = STDiT3Config(depth=2, hidden_size=32, num_heads=4, caption_channels=16, model_max_length=10)


@pytest.fixture
def stored(shared):
    return load_file(shared("parity/opensora12/stdit3_tiny.safetensors"))


@pytest.fixture
def info(shared):
    return json.loads(shared("parity/opensora12/stdit3_tiny.json").read_text())


@pytest.fixture
def official(stored, info):
    network = STDiT3(STDiT3Config.from_json(info["config"]))
    weights = {name.removeprefix("weights/"): w for name, w in stored.items() if name.startswith("weights/")}
    network.load_state_dict(weights)
    return network


def inputs(stored: dict[str, Tensor], case: int) -> dict[str, Tensor | None]:
    """A stored case in the words of `STDiT3.forward`; what is given for fewer videos is repeated whole."""
    given = {name.split("/")[2]: value for name, value in stored.items() if name.startswith(f"case{case}/in/")}
    count = len(given["x"])

    def tiled(name: str) -> Tensor | None:
        return None if name not in given else given[name].flatten(1).repeat(count // len(given[name]), 1)

    mask = tiled("mask") if "mask" in given else None
    sizes = {name: given[name].repeat(count // len(given[name])) for name in ("fps", "height", "width")}
    return {
        "latents": given["x"],
        "timestep": given["timestep"],
        "text": given["y"][:, 0],
        "text_mask": None if mask is None else mask.bool(),
        **sizes,
        "frame_mask": given.get("x_mask"),
    }


@pytest.mark.parametrize("case", range(6))
@torch.no_grad()
def test_output_is_the_official_one(official, stored, case):
    out = official(**inputs(stored, case))
    torch.testing.assert_close(out, stored[f"case{case}/out"], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("case", [0, 2])
@torch.no_grad()
def test_every_part_s_output_is_the_official_one(official, stored, case):
    seen: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, temporal: bool = False) -> None:
        def hook(module: nn.Module, args: object, out: Tensor) -> None:
            seen[name if name not in seen else f"{name}_t0"] = out.transpose(1, 2) if temporal else out

        module.register_forward_hook(hook)

    for name in ("x_embedder", "t_embedder", "fps_embedder", "t_block", "final_layer"):
        note(name, getattr(official, name))
    note("y_proj", official.y_embedder)
    for i in range(2):
        note(f"spatial_block_{i}", official.spatial_blocks[i])
        note(f"temporal_block_{i}", official.temporal_blocks[i], temporal=True)
    given = inputs(stored, case)
    official(**given)
    seen["y_flat"] = seen["y_proj"][given["text_mask"]]
    scale = (given["height"][0] * given["width"][0]).sqrt() / 512
    seen["pos_embed"] = position_table(seen["x_embedder"].shape[2:4], scale, 64)
    expected = {n.split("/")[2]: value for n, value in stored.items() if n.startswith(f"case{case}/inter/")}
    assert expected.keys() <= seen.keys()
    for name, value in expected.items():
        torch.testing.assert_close(seen[name].reshape(value.shape), value, atol=5e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("case", [0, 3])
def test_gradients_are_the_official_ones(official, stored, info, case):
    given = inputs(stored, case)
    given["latents"].requires_grad_()
    given["text"].requires_grad_()
    (official(**given) * stored[f"case{case}/grad/cotangent"]).sum().backward()
    parameters = dict(official.named_parameters())
    tolerance = {"atol": 3e-4, "rtol": 1e-3}
    torch.testing.assert_close(given["latents"].grad, stored[f"case{case}/grad/x"], **tolerance)
    torch.testing.assert_close(given["text"].grad[:, None], stored[f"case{case}/grad/y"], **tolerance)
    prefix = f"case{case}/grad/weights/"
    for name in (name for name in stored if name.startswith(prefix)):
        torch.testing.assert_close(parameters[name.removeprefix(prefix)].grad, stored[name], **tolerance)
    for name, norm in info["grads"][f"case{case}"]["l2_norm_of_every_parameter_gradient"].items():
        grad = parameters[name].grad
        assert (grad is None) == (norm is None), name
        assert grad is None or grad.norm().item() == pytest.approx(norm, abs=3e-4, rel=1e-3), name


@torch.no_grad()
def test_bfloat16_stays_near_float32(official, stored):
    out = official.bfloat16()(**inputs(stored, 0))
    assert out.dtype == torch.float32
    assert (out - stored["case0/out"]).abs().max() < 0.3


@pytest.fixture(scope="module")
def full_size():
    """STDiT3-XL/2 without memory."""
    with torch.device("meta"):
        return STDiT3(STDiT3Config()).requires_grad_(False)


def test_full_size_holds_exactly_the_released_tensors(full_size, shared):
    manifest = json.loads(shared("parity/opensora12/manifest.json").read_text())["stdit3"]
    assert STDiT3Config.from_json(manifest["config"]) == full_size.config
    ours = {name: list(tensor.shape) for name, tensor in full_size.state_dict().items()}
    assert ours == {tensor["key"]: tensor["shape"] for tensor in manifest["tensors"]}
    assert count_parameters(full_size) == manifest["param_count"]
    assert "y_embedder.y_embedding" in dict(full_size.named_buffers())


def test_full_size_adapter_has_168_sites(full_size):
    assert len(matching_layers(full_size, OpenSora.lora_targets)) == 168
    add_adapter(full_size, OpenSora.lora_targets, rank=16)
    assert count_parameters(full_size, trainable=True) == 9_289_728


# ---- without fixtures ----


@pytest.fixture
def network():
    return STDiT3(TINY).requires_grad_(False).eval()


def batch(count: int = 2, frames: int = 3, rows: int = 5, columns: int = 6, dtype=torch.float32) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    size = {"fps": 24.0, "height": 40.0, "width": 48.0}
    return {
        "latents": torch.randn(count, 4, frames, rows, columns, generator=draw).to(dtype),
        "timestep": torch.linspace(100, 900, count).to(dtype),
        "text": torch.randn(count, 7, 16, generator=draw).to(dtype),
        "text_mask": torch.arange(7) < torch.tensor([[3], [7]])[:count],
        **{name: torch.full((count,), value).to(dtype) for name, value in size.items()},
    }


@torch.no_grad()
def test_odd_latents_keep_their_size_and_videos_do_not_mix(network):
    given = batch()
    out = network(**given)
    assert out.shape == (2, 8, 3, 5, 6)
    for row in range(2):
        alone = network(**{name: value[row : row + 1] for name, value in given.items()})
        torch.testing.assert_close(alone[0], out[row], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_masked_tokens_are_not_read(network):
    given = batch()
    changed = {**given, "text": torch.where(given["text_mask"][..., None], given["text"], 9.0)}
    torch.testing.assert_close(network(**changed), network(**given))
    cut = {name: value[:1] for name, value in given.items()}
    cut |= {"text": given["text"][:1, :3], "text_mask": None}
    torch.testing.assert_close(network(**cut), network(**given)[:1], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_all_frames_noisy_is_the_same_as_no_frame_mask(network):
    given = batch()
    masked = network(**given, frame_mask=torch.ones(2, 3, dtype=torch.bool))
    torch.testing.assert_close(masked, network(**given))
    first_clean = torch.tensor([[False, True, True]]).expand(2, -1)
    assert (network(**given, frame_mask=first_clean) - masked).abs().max() > 0.01


@torch.no_grad()
def test_time_frame_rate_size_and_frame_order_matter(network):
    given = batch()
    out = network(**given)
    for name in ("timestep", "fps", "height"):
        assert (network(**{**given, name: given[name] * 1.3}) - out).abs().max() > 1e-3, name
    swapped = network(**{**given, "latents": given["latents"].flip(2)}).flip(2)
    assert (swapped - out).abs().max() > 1e-3


def test_gradient_equals_central_differences(network):
    network.double()
    given = batch(dtype=torch.float64)
    along = torch.randn(given["latents"].shape, dtype=torch.float64)

    def value(h: Tensor) -> Tensor:
        return network(**{**given, "latents": given["latents"] + h * along}).square().sum()

    h = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(h), h)
    numeric = (value(torch.tensor(1e-5)) - value(torch.tensor(-1e-5))) / 2e-5
    assert gradient.item() == pytest.approx(numeric.item(), rel=1e-6)


def test_checkpointed_blocks_give_the_same_gradients(network):
    plain, recomputed = network, STDiT3(TINY).requires_grad_(False).eval()
    recomputed.load_state_dict(plain.state_dict())
    assert checkpoint_blocks(recomputed) == 4
    grads = []
    for each in (plain, recomputed):
        add_adapter(each, OpenSora.lora_targets, rank=2)
        each(**batch()).square().sum().backward()
        grads.append({name: p.grad for name, p in each.named_parameters() if p.grad is not None})
    assert len(grads[0]) == 24  # A and B of three layers in four blocks
    assert sum(bool(grad.any()) for grad in grads[0].values()) == 12  # A's gradient is zero while B is
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


def test_variants_that_are_other_networks_are_refused():
    with pytest.raises(UserError, match="qk_norm=False is not supported"):
        STDiT3Config.from_json({"qk_norm": False})
    assert STDiT3Config.from_json({"depth": 3, "drop_path": 0.0, "patch_size": [1, 2, 2]}).depth == 3
