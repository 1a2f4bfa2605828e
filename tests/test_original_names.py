"""LoRA files for ComfyUI: what diffusers' own converter makes of them is the adapter that was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_wan_lora_to_diffusers as to_diffusers
from safetensors.torch import load_file, save_file
from torch import nn

import vader
from vader.cli import main
from vader.errors import UserError
from vader.models.wan_lora import NAMES
from vader.networks.adapter import adapter_parameters, add_adapter
from vader.networks.adapter_files import load_adapters, read_adapters, save_adapters
from vader.networks.original_names import to_original
from vader.runs.adapters import find_adapter
from vader.tools.export import export_adapter, loading_lines
from wan_factories import make_transformer

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TARGETS = {
    "attention": ATTENTION,
    "blocks": (*ATTENTION, "ffn.net.0.proj", "ffn.net.2"),
    "everywhere": (*ATTENTION, "proj_out", "time_proj", "linear_1", "linear_2"),
}


def trained(seed: int, targets=ATTENTION, alpha=8.0) -> WanTransformer3DModel:
    network = add_adapter(make_transformer(seed), targets, rank=4, alpha=alpha)
    for parameter in adapter_parameters(network):
        parameter.data.normal_(std=0.3)
    return network


@torch.no_grad()
def output(network):
    draw = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 4, 3, 4, 4, generator=draw), torch.randn(1, 512, 16, generator=draw)
    return network.eval()(latents, torch.tensor([500.0]), text, return_dict=False)[0]


def pipeline(**more) -> WanPipeline:
    return WanPipeline(None, None, None, None, transformer=make_transformer(0), **more)


def saved(folder: Path, **denoisers) -> Path:
    save_adapters(denoisers, folder, {"family": "wan", "checkpoint": "tiny"})
    return folder


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("form", ["diffusers", "comfyui"])
def test_diffusers_loads_either_form_with_the_same_output(tmp_path, targets, form):
    network = trained(0, TARGETS[targets])
    (file,) = export_adapter(saved(tmp_path / "adapter", transformer=network), tmp_path / "out", form)
    pipe = pipeline()
    assert (output(pipe.transformer) - output(network)).abs().max() > 0.01
    (line,) = loading_lines([file])
    exec(line.removeprefix("into diffusers' WanPipeline: "), {"pipe": pipe})
    assert torch.equal(output(pipe.transformer), output(network))


def test_two_experts_are_two_files_that_say_for_which_noise(tmp_path):
    networks = {"transformer": trained(0), "transformer_2": trained(5)}
    files = export_adapter(saved(tmp_path / "adapter", **networks), tmp_path / "out", "comfyui")
    assert [file.name for file in files] == ["lora_high_noise.safetensors", "lora_low_noise.safetensors"]
    pipe = pipeline(transformer_2=make_transformer(5))
    for line in loading_lines(files):
        exec(line.removeprefix("into diffusers' WanPipeline: "), {"pipe": pipe})
    for name, network in networks.items():
        assert torch.equal(output(getattr(pipe, name)), output(network))


def test_the_low_expert_alone_is_loaded_into_its_network(tmp_path):
    network = trained(5)
    (file,) = export_adapter(saved(tmp_path / "adapter", transformer_2=network), tmp_path / "out", "comfyui")
    assert file.name == "lora_low_noise.safetensors"
    pipe = pipeline(transformer_2=make_transformer(5))
    (line,) = loading_lines([file])
    exec(line.removeprefix("into diffusers' WanPipeline: "), {"pipe": pipe})
    assert torch.equal(output(pipe.transformer_2), output(network))
    assert torch.equal(output(pipe.transformer), output(make_transformer(0)))


@pytest.mark.parametrize("settings", [{}, {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}])
def test_every_linear_layer_of_the_releases_round_trips_through_the_converter(settings):
    with torch.device("meta"):
        network = WanTransformer3DModel(**settings)
    layers = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    weights = {f"{layer}.lora_{factor}.weight": torch.zeros(1, 1) for layer in layers for factor in "AB"}
    back = to_diffusers(to_original(weights, NAMES))
    assert back.keys() == {f"transformer.{name}" for name in weights}
    assert [NAMES.ours(NAMES.theirs(layer)) for layer in layers] == layers


def test_the_files_are_read_here_again(tmp_path):
    network = trained(0)
    (file,) = export_adapter(saved(tmp_path / "adapter", transformer=network), tmp_path / "out", "comfyui")
    assert all(name.startswith("diffusion_model.blocks.") for name in load_file(file))
    again = {"transformer": make_transformer(0)}
    load_adapters(again, file, "wan")
    assert torch.equal(output(again["transformer"]), output(network))


def test_the_folder_of_such_files_is_an_adapter(tmp_path):
    networks = {"transformer": trained(0), "transformer_2": trained(5)}
    for name, held in {"one": ["transformer"], "two": list(networks)}.items():
        folder = tmp_path / name
        export_adapter(saved(tmp_path / f"{name}-run", **{one: networks[one] for one in held}), folder, "comfyui")
        again = {"transformer": make_transformer(0), "transformer_2": make_transformer(5)}
        load_adapters(again, find_adapter(folder), "wan")
        for one in held:
            assert torch.equal(output(again[one]), output(networks[one]))


@pytest.mark.parametrize("alpha", [None, 2.0])
@pytest.mark.parametrize("words", [("lora_A", "lora_B"), ("lora_down", "lora_up")])
@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_", "lora_unet__"])
def test_files_that_others_publish_are_read_with_their_scale(tmp_path, prefix, words, alpha):
    network = trained(0, TARGETS["everywhere"], alpha=alpha)
    (file,) = export_adapter(saved(tmp_path / "adapter", transformer=network), tmp_path / "out", "comfyui")
    scale = 1.0 if alpha is None else alpha / 4
    published = {}
    for name, weight in load_file(file).items():
        layer, factor = name.removeprefix("diffusion_model.").removesuffix(".weight").rsplit(".", 1)
        layer = prefix + (layer if prefix.endswith(".") else layer.replace(".", "_"))
        down = factor == "lora_A"
        published[f"{layer}.{words[not down]}.weight"] = weight if down else weight / scale
        if alpha is not None:
            published[f"{layer}.alpha"] = torch.tensor(alpha)
    save_file(published, tmp_path / "published.safetensors")
    again = vader.load_adapter(make_transformer(0), tmp_path / "published.safetensors")
    torch.testing.assert_close(output(again), output(network), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "diffusion_model.blocks.0.self_attn.q.diff",
            "q.diff', which is no factor of a LoRA",
        ),
        ("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", "of no model that is known here"),
    ],
)
def test_what_is_no_lora_or_of_a_stranger_is_said(tmp_path, name, told):
    save_file({name: torch.zeros(2, 2)}, tmp_path / "file.safetensors")
    with pytest.raises(UserError, match=told):
        read_adapters(tmp_path / "file.safetensors")


def test_what_loaders_misread_is_not_written(tmp_path):
    patch = trained(0, (*ATTENTION, "patch_embedding"))
    with pytest.raises(UserError, match="'patch_embedding' has no name that ComfyUI's loaders read: use --format"):
        export_adapter(saved(tmp_path / "patch", transformer=patch), tmp_path / "out", "comfyui")
    with pytest.raises(UserError, match="no layer in a block, and loaders look for one"):
        to_original({"proj_out.lora_A.weight": torch.ones(1, 1)}, NAMES)
    with pytest.raises(UserError, match=r"'blocks\.0\.attn2\.add_k_proj' is read only beside its 'add_v_proj'"):
        to_original({"blocks.0.attn2.add_k_proj.lora_A.weight": torch.ones(1, 1)}, NAMES)
    assert not (tmp_path / "out").exists()


def test_families_without_known_names_are_told(tmp_path):
    save_adapters({"transformer": trained(0)}, tmp_path / "adapter", {"family": "svd"})
    with pytest.raises(
        UserError,
        match="names are known for adapters of hunyuan, ltx, ltx-i2v, ltx2, ltx2-i2v, wan, wan-i2v, not of 'svd'",
    ):
        export_adapter(tmp_path / "adapter", tmp_path / "out", "comfyui")
    with pytest.raises(UserError, match="--format 'kohya' is none: diffusers or comfyui"):
        export_adapter(tmp_path / "adapter", tmp_path / "out", "kohya")


def test_a_merged_model_has_no_format_to_choose(tmp_path, capsys):
    command = ["export", "runs/x", "--merged", "--format", "comfyui", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert capsys.readouterr().err == "vader: --format is the adapter's, and a merged model has its own: leave it out\n"
