"""The LoRAs that VADER's authors published: names, counts, strength, and where they are accepted."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from vader.errors import UserError
from vader.models import load_into
from vader.models.videocrafter.lora import PREFIX, RELEASED, _expected_names, import_lora, read_lora
from vader.models.videocrafter.names import to_diffusers
from vader.models.videocrafter.networks import names_of_unet
from vader.networks.adapter import merge_adapter
from vader.networks.adapter_files import load_adapter, read_metadata
from vader.tools.export import export_adapter
from videocrafter_factories import make_networks

RANK = 4


def our_layer(name, pairs):
    return to_diffusers(name.removeprefix(PREFIX), pairs).rsplit(".lora_", 1)[0]


@pytest.fixture
def tiny():
    """A tiny UNet, and a LoRA of it as VADER's code names it, saved nowhere yet."""
    unet = make_networks()[0]
    pairs = names_of_unet(unet)
    tensors = {}
    for name in sorted(_expected_names(pairs)):
        weight = unet.get_submodule(our_layer(name, pairs)).weight
        shape = (RANK, weight.shape[1]) if "lora_A" in name else (weight.shape[0], RANK)
        tensors[name] = torch.randn(shape) * 0.1
    return unet, pairs, tensors


@pytest.fixture
def released(tmp_path):
    """A file with the released names, of widths that no model has."""
    tensors = {name: torch.ones(2, 3) if "lora_A" in name else torch.ones(5, 2) for name in _expected_names(RELEASED)}
    torch.save(tensors, tmp_path / "vader_videocrafter_pickscore.pt")
    return tmp_path / "vader_videocrafter_pickscore.pt"


def test_released_names():
    names = _expected_names(RELEASED)
    assert len(names) == 396
    assert {
        "base_model.model.model.diffusion_model.init_attn.0.transformer_blocks.0.attn2.to_v.lora_B.weight",
        "base_model.model.model.diffusion_model.middle_block.2.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "base_model.model.model.diffusion_model.output_blocks.3.1.transformer_blocks.0.attn1.to_k.lora_A.weight",
    } <= names


def test_the_prefix_is_what_peft_makes_of_the_official_nesting():
    """LatentDiffusion holds the UNet at model.diffusion_model."""
    outer, wrapper, unet = nn.Module(), nn.Module(), nn.Module()
    unet.to_q = nn.Linear(2, 2)
    wrapper.diffusion_model, outer.model = unet, wrapper
    state = get_peft_model_state_dict(get_peft_model(outer, LoraConfig(target_modules=["to_q"])))
    assert set(state) == {f"{PREFIX}to_q.lora_{factor}.weight" for factor in "AB"}


@pytest.mark.parametrize("alpha", [8.0, 2.0])
def test_the_update_is_alpha_over_rank_times_b_a(tiny, tmp_path, monkeypatch, alpha):
    unet, pairs, tensors = tiny
    torch.save(tensors, tmp_path / "lora.pt")
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    monkeypatch.setattr("vader.networks.adapter_files._formats", {".pt": lambda path: read_lora(path, alpha, pairs)})
    merge_adapter(load_adapter(unet, tmp_path / "lora.pt"))
    after = unet.state_dict()
    for name in tensors:
        if "lora_A" in name:
            update = alpha / RANK * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
            weight = f"{our_layer(name, pairs)}.weight"
            torch.testing.assert_close(after[weight] - before[weight], update, atol=1e-6, rtol=0)
    changed = [name for name in before if not before[name].equal(after[name])]
    assert len(changed) == len(tensors) // 2


def test_it_is_accepted_where_adapters_are(released, tmp_path):
    assert read_metadata(released) == {
        "family": "videocrafter",
        "checkpoint": "VideoCrafter/VideoCrafter2",
        "rank": 2,
        "alpha": 8.0,
        "targets": ["to_k", "to_q", "to_v"],
    }
    with pytest.raises(UserError, match="does not fit"):
        load_into(make_networks()[0], released)
    copied = load_file(*export_adapter(released, tmp_path / "ours"))
    name = "unet.mid_block.temp_attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight"
    assert len(copied) == 396
    assert copied[name].unique().tolist() == [8 / 2]


def test_another_alpha_is_folded_in(released, tmp_path):
    written = import_lora(released, tmp_path / "lora.safetensors", alpha=1.0)
    factors = {name[-8]: weight.unique().item() for name, weight in load_file(written).items()}
    assert factors == {"A": 1.0, "B": 0.5}
    assert read_metadata(written)["alpha"] == 1.0


def test_other_files_are_refused(released, tmp_path):
    tensors = torch.load(released, weights_only=True)
    some = next(name for name in tensors if "lora_A" in name)
    for change, message in (
        (lambda: tensors.pop(some), "holds 395 tensors, not 396"),
        (lambda: tensors.update({some.replace("attn", "attm"): torch.ones(2, 3)}), "it holds .*attm"),
        (lambda: (tensors.pop(some.replace("attn", "attm")), tensors.update({some: torch.ones(7, 3)})), "ranks"),
    ):
        change()
        torch.save(tensors, tmp_path / "other.pt")
        with pytest.raises(UserError, match=message):
            read_metadata(tmp_path / "other.pt")
