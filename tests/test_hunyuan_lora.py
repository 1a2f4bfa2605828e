"""HunyuanVideo's LoRA files under original names, where layers are fused: what diffusers' converter makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from diffusers.loaders.lora_conversion_utils import _convert_hunyuan_video_lora_to_diffusers as to_diffusers
from safetensors.torch import load_file, save_file
from torch import nn

from hunyuan_factories import make_transformer
from vader.errors import UserError
from vader.models.hunyuan import HunyuanVideo
from vader.models.hunyuan_lora import NAMES
from vader.networks.adapter import adapter_parameters, add_adapter, matching_layers
from vader.networks.adapter_files import load_adapters, read_adapters, save_adapters
from vader.networks.original_names import from_original, to_original
from vader.tools.export import export_adapter, loading_lines

RANK = 2
EVERYWHERE = tuple(
    f"{blocks}.*.{layer}"
    for blocks, layers in {
        "transformer_blocks": [
            "attn.add_q_proj",
            "attn.to_add_out",
            "norm1.linear",
            "ff.net.2",
            "ff_context.net.0.proj",
        ],
        "single_transformer_blocks": ["proj_mlp", "proj_out", "norm.linear"],
    }.items()
    for layer in layers
)
TARGETS = {"default": HunyuanVideo.lora_targets, "more": (*HunyuanVideo.lora_targets, *EVERYWHERE)}


@pytest.fixture(scope="module")
def release() -> nn.Module:
    """Of the release's width, which the converter knows by heart, with one block of each kind."""
    with torch.device("meta"):
        return HunyuanVideoTransformer3DModel(num_layers=1, num_single_layers=1, num_refiner_layers=1)


def drawn(network: nn.Module, layers: list[str]) -> dict[str, torch.Tensor]:
    """Factors of a rank, with the layers' own outputs and few inputs."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for layer in layers:
        out = network.get_submodule(layer).out_features
        weights[f"{layer}.lora_A.weight"] = torch.randn(RANK, 3, generator=generator)
        weights[f"{layer}.lora_B.weight"] = torch.randn(out, RANK, generator=generator)
    return weights


def updates(weights: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    layers = {name.removeprefix(prefix).rsplit(".lora_", 1)[0] for name in weights}
    factors = {layer: [weights[f"{prefix}{layer}.lora_{factor}.weight"] for factor in "BA"] for layer in layers}
    return {layer: b @ a for layer, (b, a) in factors.items()}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Layers that are only in one are not changed at all."""
    for layer in found.keys() | expected.keys():
        if layer in expected:
            torch.testing.assert_close(found[layer], expected[layer], atol=1e-5, rtol=1e-5)
        else:
            assert not found[layer].any()


@pytest.mark.parametrize("targets", TARGETS)
def test_the_converter_finds_the_same_updates_of_the_release_s_layers(release, targets):
    weights = drawn(release, matching_layers(release, TARGETS[targets]))
    written = to_original(weights, NAMES)
    assert {len(weight) for name, weight in written.items() if "lora_A" in name} == {
        RANK * (4 if targets == "more" else 3)
    }
    same(updates(to_diffusers(dict(written)), "transformer."), updates(weights))


def test_every_layer_that_has_a_name_passes_the_converter_and_comes_back(release):
    """But for those of the text's own blocks, and those whose rows the two lay in another order."""
    layers = [name for name, layer in release.named_modules() if isinstance(layer, nn.Linear)]
    nameless = [name for name in layers if name.startswith("context_embedder") or name == "norm_out.linear"]
    weights = drawn(release, [name for name in layers if name not in nameless])
    written = to_original(weights, NAMES)
    same(updates(to_diffusers(dict(written)), "transformer."), updates(weights))
    again = {name.removeprefix("transformer."): weight for name, weight in from_original(written, "it").items()}
    assert again.keys() == weights.keys()
    same(updates(again), updates(weights))
    for layer in nameless:
        with pytest.raises(UserError, match=f"'{layer}' has no name that ComfyUI's loaders read"):
            to_original(weights | drawn(release, [layer]), NAMES)


# ---- files ----


def trained(targets) -> nn.Module:
    network = add_adapter(make_transformer(0), targets, RANK, alpha=8.0)
    for parameter in adapter_parameters(network):
        parameter.data.normal_(std=0.3)
    return network


def exported(network: nn.Module, folder: Path, form: str = "comfyui") -> Path:
    save_adapters({"transformer": network}, folder / "adapter", {"family": "hunyuan"})
    (file,) = export_adapter(folder / "adapter", folder / form, form)
    return file


@torch.no_grad()
def output(network):
    draw = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 4, 2, 2, 4, generator=draw), torch.randn(1, 6, 16, generator=draw)
    given = (latents, torch.tensor([500.0]), text, torch.ones(1, 6), torch.randn(1, 8, generator=draw))
    return network.eval()(*given, torch.tensor([6000.0]), return_dict=False)[0]


def test_diffusers_loads_a_file_with_the_same_output(tmp_path):
    """Of the double blocks: of the single ones its converter knows the release's width alone."""
    network = trained(("transformer_blocks.*.attn.to_q", "transformer_blocks.*.attn.to_v", "attn.to_out.0", "ff.net.2"))
    with pytest.raises(UserError, match="has no name that ComfyUI's loaders read"):
        exported(network, tmp_path / "text")
    blocks = ("attn.to_q", "attn.to_v", "attn.to_out.0", "ff.net.2")
    network = trained([f"transformer_blocks.*.{layer}" for layer in blocks])
    file = exported(network, tmp_path)
    pipe = HunyuanVideoPipeline(None, None, make_transformer(0), None, None, None, None)
    (line,) = loading_lines([file])
    exec(line.removeprefix("into diffusers' HunyuanVideoPipeline: "), {"pipe": pipe})
    torch.testing.assert_close(output(pipe.transformer), output(network), atol=1e-5, rtol=1e-5)
    assert (output(network) - output(make_transformer(0))).abs().max() > 0.01


def test_a_file_starts_a_run_as_what_it_was_written_from(tmp_path):
    network = trained(HunyuanVideo.lora_targets)
    file = exported(network, tmp_path)
    (read,), own = read_adapters(file), load_file(exported(network, tmp_path / "own", "diffusers"))
    assert read.weights.keys() == own.keys()
    assert all(torch.equal(weight, own[name]) for name, weight in read.weights.items())
    again = {"transformer": make_transformer(0)}
    load_adapters(again, file, "hunyuan")
    torch.testing.assert_close(output(again["transformer"]), output(network), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer.", "lora_unet_"])
def test_files_that_others_publish_are_read_with_their_scale(tmp_path, prefix):
    """Their fused layers are trained as one, so that all parts have the same factor A."""
    draw, alpha, width = torch.Generator().manual_seed(0), 1.0, 20
    rows = {"double_blocks.0.img_attn_qkv": 3 * width, "double_blocks.0.img_attn_proj": width}
    rows["single_blocks.0.linear1"] = 7 * width
    published, expected = {}, {}
    for name, out in rows.items():
        a, b = torch.randn(RANK, width, generator=draw), torch.randn(out, RANK, generator=draw)
        key = prefix + (name.replace(".", "_") if prefix == "lora_unet_" else name)
        published |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b, f"{key}.alpha": torch.tensor(alpha)}
        expected[name] = alpha / RANK * b @ a
    save_file(published, tmp_path / "file.safetensors")
    (file,) = read_adapters(tmp_path / "file.safetensors")
    found = updates(file.weights, "transformer.")
    joint = torch.cat([found[f"transformer_blocks.0.attn.{part}"] for part in ("to_q", "to_k", "to_v")])
    single = [
        found[f"single_transformer_blocks.0.{part}"] for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]
    torch.testing.assert_close(joint, expected["double_blocks.0.img_attn_qkv"])
    torch.testing.assert_close(torch.cat(single), expected["single_blocks.0.linear1"])
    torch.testing.assert_close(found["transformer_blocks.0.attn.to_out.0"], expected["double_blocks.0.img_attn_proj"])
    load_adapters({"transformer": make_transformer(0)}, tmp_path / "file.safetensors", "hunyuan")


def test_what_loaders_misread_is_not_written(tmp_path):
    with pytest.raises(UserError, match="no layer that is 'img_attn_qkv', and loaders look for one"):
        exported(trained(["single_transformer_blocks.*.attn.to_q"]), tmp_path)
    with pytest.raises(UserError, match=r"one factor alone of layer 'transformer_blocks\.0\.attn\.to_q'"):
        to_original({"transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(1, 1)}, NAMES)
