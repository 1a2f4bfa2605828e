"""LoRA adapters: attach, train, save, load, merge."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import (
    TextToVideoSDPipeline,
    UNet3DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import vader
from factories import make_tiny_modelscope
from vader.errors import UserError
from vader.models import load_into
from vader.networks import adapter as adapters
from vader.networks import adapter_files as files
from vader.networks.measure import count_parameters
from vader.tools.export import loading_lines

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_modelscope(tmp_path_factory.mktemp("modelscope") / "model")


@pytest.fixture
def unet(folder):
    return UNet3DConditionModel.from_pretrained(folder / "unet").eval().requires_grad_(False)


def run(unet, dtype=torch.float32):
    g = torch.Generator().manual_seed(3)
    latents, text = torch.randn(1, 4, 2, 8, 8, generator=g), torch.randn(1, 5, 16, generator=g)
    return unet(latents.to(dtype), torch.tensor(7), text.to(dtype)).sample


def randomised(unet, seed=5):
    """As if trained: B is no longer zero."""
    g = torch.Generator().manual_seed(seed)
    for parameter in adapters.adapter_parameters(unet):
        parameter.data = torch.randn(parameter.shape, generator=g) * 0.1
    return unet


def adapted(unet, rank=4, alpha=None, targets=TARGETS):
    return randomised(adapters.add_adapter(unet, targets, rank, alpha))


def fresh(folder):
    return UNet3DConditionModel.from_pretrained(folder / "unet").eval().requires_grad_(False)


def test_a_new_adapter_changes_nothing_and_is_all_that_trains(unet):
    before = run(unet)
    adapters.add_adapter(unet, TARGETS, rank=4)
    torch.testing.assert_close(run(unet), before, atol=0, rtol=0)
    parameters = adapters.adapter_parameters(unet)
    assert sum(p.numel() for p in parameters) == count_parameters(unet, trainable=True) > 0


def test_initial_weights_depend_on_the_seed_alone(unet, folder):
    torch.manual_seed(1)
    adapters.add_adapter(unet, TARGETS, rank=4, seed=9)
    torch.manual_seed(2)
    other = adapters.add_adapter(fresh(folder).bfloat16(), TARGETS, rank=4, seed=9)
    third = adapters.add_adapter(fresh(folder), TARGETS, rank=4, seed=10)
    state = adapters.adapter_state(unet)
    assert all(torch.equal(value, state[name]) for name, value in adapters.adapter_state(other).items())
    name = next(name for name in state if "lora_A" in name)
    assert not torch.equal(state[name], adapters.adapter_state(third)[name])
    assert state[name].std().item() == pytest.approx(state[name].shape[1] ** -0.5 / 3**0.5, rel=0.4)


def test_a_bf16_base_has_float32_adapter_weights_and_gradients(unet):
    unet.bfloat16()
    adapters.add_adapter(unet, (*TARGETS, "conv_in", "conv4.3"), rank=4)
    output = run(unet, torch.bfloat16)
    assert output.dtype == torch.bfloat16
    output.float().square().mean().backward()
    for name, parameter in unet.named_parameters():
        trains = "lora" in name
        assert parameter.dtype == (torch.float32 if trains else torch.bfloat16)
        assert (parameter.grad is not None) == trains
    grads = [p.grad for p in adapters.adapter_parameters(unet)]
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)
    assert sum(g.abs().sum() for g in grads) > 0


def test_targets_that_match_nothing_name_real_layers(unet):
    with pytest.raises(UserError, match=r"did you mean 'to_out\.0'"):
        adapters.add_adapter(unet, ("to_q", "to_out.1"), rank=4)
    with pytest.raises(UserError, match="common are to_"):
        adapters.add_adapter(unet, ("zzz",), rank=4)
    assert not adapters.has_adapter(unet)


def test_containers_are_no_targets(unet):
    with pytest.raises(UserError, match="'attn1' names no layer"):
        adapters.add_adapter(unet, ("attn1",), rank=4)


def test_disabled_is_the_base_and_leaves_gradients_alone(unet):
    base = run(unet)
    adapted(unet)
    output = run(unet)
    assert not torch.allclose(output, base)
    with adapters.adapter_disabled(unet):
        disabled = run(unet)
    torch.testing.assert_close(disabled, base, atol=0, rtol=0)
    assert not disabled.requires_grad
    output.sum().backward()
    assert all(p.grad is not None for p in adapters.adapter_parameters(unet))
    torch.testing.assert_close(run(unet), output, atol=0, rtol=0)


def test_state_round_trip_is_exact(unet, folder):
    state = adapters.adapter_state(adapted(unet, alpha=3))
    other = adapters.add_adapter(fresh(folder), TARGETS, rank=4, alpha=3)
    adapters.load_adapter_state(other, state)
    torch.testing.assert_close(run(other), run(unet), atol=0, rtol=0)
    with pytest.raises(UserError, match=r"should be \[2, "):
        adapters.load_adapter_state(adapters.add_adapter(fresh(folder), TARGETS, rank=2), state)
    with pytest.raises(UserError, match="unknown"):
        adapters.load_adapter_state(adapters.add_adapter(fresh(folder), ("to_q",), rank=4), state)
    with pytest.raises(UserError, match="missing"):
        adapters.load_adapter_state(adapters.add_adapter(fresh(folder), (*TARGETS, "conv_in"), rank=4), state)


def test_file_round_trip_is_exact(unet, folder, tmp_path):
    files.save_adapter(adapted(unet), tmp_path, "unet", {"checkpoint": "tiny"})
    other = files.load_adapter(fresh(folder), tmp_path, "unet")
    torch.testing.assert_close(run(other), run(unet), atol=0, rtol=0)
    assert all(torch.equal(w, adapters.adapter_state(other)[n]) for n, w in adapters.adapter_state(unet).items())


def test_alpha_is_folded_into_the_file(unet, folder, tmp_path):
    path = files.save_adapter(adapted(unet, rank=4, alpha=8), tmp_path, "unet", {"recipe": "r"})
    weights, state = load_file(path), adapters.adapter_state(unet)
    for name, value in state.items():
        torch.testing.assert_close(weights[f"unet.{name}"], value * (2 if "lora_B" in name else 1), atol=0, rtol=0)
    torch.testing.assert_close(run(files.load_adapter(fresh(folder), path)), run(unet), atol=1e-5, rtol=1e-5)
    same_scale = files.load_adapter(adapters.add_adapter(fresh(folder), TARGETS, 4, alpha=8), path)
    torch.testing.assert_close(run(same_scale), run(unet), atol=0, rtol=0)
    assert files.read_metadata(path).items() >= {"rank": 4, "alpha": 8, "recipe": "r"}.items()
    assert files.read_metadata(path)["targets"] == sorted(TARGETS)
    with safe_open(path, framework="pt") as stream:
        header = json.loads(stream.metadata()["lora_adapter_metadata"])
    assert header["unet.r"] == header["unet.lora_alpha"] == 4


def test_a_file_with_an_alpha_of_its_own_keeps_its_strength(unet, folder, tmp_path):
    """As diffusers' training scripts write it: alpha in the metadata and not in the weights."""
    adapted(unet, rank=4, alpha=8)
    weights = {f"unet.{name}": value.contiguous() for name, value in adapters.adapter_state(unet).items()}
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 8})}
    save_file(weights, tmp_path / files.FILE_NAME, metadata=header)
    other = files.load_adapter(fresh(folder), tmp_path)
    torch.testing.assert_close(run(other), run(unet), atol=1e-5, rtol=1e-5)


def test_diffusers_own_loader_reads_the_file(unet, folder, tmp_path):
    """UNet3D has no loader in diffusers yet, so it is lent the mixin that other networks have."""
    from diffusers.loaders import PeftAdapterMixin

    files.save_adapter(adapted(unet, alpha=8), tmp_path, "unet", {})
    lent = type("Lent", (UNet3DConditionModel, PeftAdapterMixin), {"_repeated_blocks": []})
    other = lent.from_pretrained(folder / "unet").eval()
    other.load_lora_adapter(tmp_path, prefix="unet", weight_name=files.FILE_NAME, use_safetensors=True)
    torch.testing.assert_close(run(other), run(unet), atol=1e-5, rtol=1e-5)


def test_load_into_a_diffusers_pipeline(unet, folder, tmp_path):
    files.save_adapter(adapted(unet), tmp_path, "unet", {})
    pipe = load_into(TextToVideoSDPipeline.from_pretrained(folder), tmp_path)
    torch.testing.assert_close(run(pipe.unet), run(unet), atol=0, rtol=0)


def test_merged_equals_adapter_and_is_a_plain_network(unet):
    names = set(unet.state_dict())
    adapted(unet, alpha=8, targets=(*TARGETS, "conv_in", "conv4.3", "proj_in"))
    output = run(unet)
    adapters.merge_adapter(unet)
    assert set(unet.state_dict()) == names
    assert not adapters.has_adapter(unet)
    assert not any("peft" in type(module).__module__ for module in unet.modules())
    torch.testing.assert_close(run(unet), output, atol=1e-5, rtol=1e-5)


def test_adapters_fit_any_network(tmp_path):
    net = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2)).requires_grad_(False)
    randomised(adapters.add_adapter(net, ("0", "2"), rank=2))
    files.save_adapter(net, tmp_path, "transformer", {})
    x = torch.randn(3, 4)
    output = net(x)
    torch.testing.assert_close(adapters.merge_adapter(net)(x), output)


# ---- two experts ----

WAN_TARGETS = ("to_q", "to_v", "to_out.0", "ffn.net.2")


def make_wan(seed):
    torch.manual_seed(seed)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "num_layers": 2}
    network = WanTransformer3DModel(**sizes, text_dim=16, freq_dim=32, ffn_dim=32)
    return network.eval().requires_grad_(False)


def make_experts():
    return {"transformer": make_wan(0), "transformer_2": make_wan(1)}


@torch.no_grad()
def outputs(experts):
    g = torch.Generator().manual_seed(3)
    latents, text = torch.randn(1, 4, 3, 4, 4, generator=g), torch.randn(1, 5, 16, generator=g)
    return [expert(latents, torch.tensor([500.0]), text, return_dict=False)[0] for expert in experts.values()]


@pytest.fixture
def experts():
    found = make_experts()
    adapters.add_adapters(found, WAN_TARGETS, rank=4, alpha=8)
    for seed, expert in enumerate(found.values()):
        randomised(expert, seed)
    return found


def assert_same_outputs(ours, reference, atol=1e-6):
    for one, other in zip(outputs(ours), outputs(reference), strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=0)


def wan_pipeline():
    return WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=UniPCMultistepScheduler(), **make_experts()
    )  # fmt: skip


def in_pipeline(pipe):
    return {"transformer": pipe.transformer, "transformer_2": pipe.transformer_2}


def test_diffusers_loads_the_files_of_both_experts(experts, tmp_path):
    first, second = files.save_adapters(experts, tmp_path, {"family": "wan"})
    assert first.name == files.FILE_NAME
    assert second.name == "pytorch_lora_weights.transformer_2.safetensors"
    for path in (first, second):
        assert all(name.startswith("transformer.") for name in load_file(path))
    pipe = wan_pipeline()
    assert max((a - b).abs().max() for a, b in zip(outputs(experts), outputs(in_pipeline(pipe)), strict=True)) > 0.01
    pipe.load_lora_weights(tmp_path, weight_name=first.name)
    pipe.load_lora_weights(tmp_path, weight_name=second.name, load_into_transformer_2=True)
    assert_same_outputs(in_pipeline(pipe), experts)


def test_the_lines_that_an_export_prints_load_it_into_networks_of_diffusers(experts, tmp_path):
    files.save_adapters(experts, tmp_path, {"family": "my_wan:Wan"})
    *lines, ours = loading_lines(files.adapter_files(tmp_path))
    networks = make_experts()
    for line in lines:
        exec(line.removeprefix("into one of diffusers: "), dict(networks))
    assert_same_outputs(networks, experts)
    pipe = wan_pipeline()
    exec(ours.removeprefix("into any network: "), {"vader": vader, "pipe": pipe})
    assert_same_outputs(in_pipeline(pipe), experts)


def test_of_a_network_that_diffusers_cannot_load_into_an_export_prints_one_line(unet, folder, tmp_path):
    files.save_adapter(adapted(unet), tmp_path, "unet", {"family": "modelscope"})
    (line,) = loading_lines(files.adapter_files(tmp_path))
    assert line == f'into any network: vader.load_into(unet, "{tmp_path}")'
    other = fresh(folder)
    exec(line.removeprefix("into any network: "), {"vader": vader, "unet": other})
    torch.testing.assert_close(run(other), run(unet), atol=0, rtol=0)
    files.save_adapter(unet, tmp_path, "unet", {"family": "mine"})
    assert loading_lines(files.adapter_files(tmp_path))[0].endswith(
        ', weight_name="pytorch_lora_weights.safetensors", prefix="unet")'
    )


def test_a_folder_is_loaded_into_all_denoisers_or_a_pipeline(experts, tmp_path):
    files.save_adapters(experts, tmp_path, {})
    assert_same_outputs(in_pipeline(load_into(wan_pipeline(), tmp_path)), experts)
    others = make_experts()
    files.load_adapters(others, tmp_path)
    assert_same_outputs(others, experts)
    single = files.load_adapter(make_wan(1), tmp_path, "transformer_2")
    also = files.load_adapter(make_wan(1), tmp_path / "pytorch_lora_weights.transformer_2.safetensors")
    expected = outputs({"second": experts["transformer_2"]})
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(outputs({"": single}) * 2, expected * 2, strict=True))
    assert torch.allclose(*outputs({"": also}), *expected, atol=1e-6)
    with pytest.raises(UserError, match=r"several networks \(it has transformer, transformer_2\): name one"):
        files.load_adapter(make_wan(0), tmp_path)
    with pytest.raises(UserError, match="is for 'transformer_2', and the networks here are transformer"):
        files.load_adapters({"transformer": make_wan(0)}, tmp_path)


def test_one_expert_alone_carries_an_adapter(tmp_path):
    experts = make_experts()
    chosen = adapters.chosen_denoisers(experts, ["transformer_2"])
    adapters.add_adapters(chosen, WAN_TARGETS, rank=2)
    randomised(experts["transformer_2"])
    (path,) = files.save_adapters(experts, tmp_path, {})
    assert files.read_metadata(tmp_path)["component"] == "transformer_2"
    assert path.name == "pytorch_lora_weights.transformer_2.safetensors"
    assert len(adapters.parameters_of(experts)) == len(adapters.adapter_parameters(experts["transformer_2"]))
    others = make_experts()
    files.load_adapters(others, tmp_path)
    assert not adapters.has_adapter(others["transformer"])
    assert_same_outputs(others, experts)
    with pytest.raises(UserError, match=r"names 'unet', but the model's are transformer, transformer_2"):
        adapters.chosen_denoisers(experts, ["unet"])
    with pytest.raises(UserError, match="is empty"):
        adapters.chosen_denoisers(experts, [])


def test_a_target_must_be_in_every_expert():
    experts = {"transformer": make_wan(0), "transformer_2": nn.Sequential(nn.Linear(2, 2))}
    with pytest.raises(UserError, match="'to_q' names no layer of the denoiser 'transformer_2'"):
        adapters.add_adapters(experts, ("to_q",), rank=2)
    assert not adapters.has_adapter(experts["transformer"])


def test_experts_start_apart_and_the_first_as_an_only_denoiser_does():
    experts = {"transformer": make_wan(0), "transformer_2": make_wan(0)}
    adapters.add_adapters(experts, WAN_TARGETS, rank=2, seed=9)
    states = adapters.adapters_state(experts)
    only = adapters.adapter_state(adapters.add_adapter(make_wan(0), WAN_TARGETS, rank=2, seed=9))
    assert all(torch.equal(only[name], value) for name, value in states["transformer"].items())
    assert not any(torch.equal(only[name], value) for name, value in states["transformer_2"].items() if "_A" in name)


def test_states_and_switches_of_all_experts(experts):
    base = make_experts()
    with adapters.adapters_disabled(experts):
        assert_same_outputs(experts, base, atol=0)
    adapters.add_adapters(base, WAN_TARGETS, rank=4, alpha=8)
    adapters.load_adapters_state(base, adapters.adapters_state(experts))
    assert_same_outputs(base, experts, atol=0)
    expected = outputs(experts)
    adapters.merge_adapters(experts)
    assert not any(adapters.has_adapter(expert) for expert in experts.values())
    for ours, reference in zip(outputs(experts), expected, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="it lacks 'transformer_2'"):
        adapters.load_adapters_state(base, {"transformer": adapters.adapter_state(base["transformer"])})


# ---- files that do not fit ----


def test_files_that_do_not_fit_say_so(unet, folder, tmp_path):
    with pytest.raises(UserError, match="no adapter at"):
        files.load_adapter(unet, tmp_path / "nowhere", "unet")
    (tmp_path / files.FILE_NAME).write_text("not safetensors")
    with pytest.raises(UserError, match="not a safetensors file"):
        files.load_adapter(unet, tmp_path, "unet")
    with pytest.raises(UserError, match=r"no LoRA adapter: it holds 'conv_in\.bias'"):
        files.load_adapter(unet, folder / "unet/diffusion_pytorch_model.safetensors", "unet")
    net = randomised(adapters.add_adapter(nn.Sequential(nn.Linear(4, 8)), ("0",), rank=2))
    files.save_adapter(net, tmp_path / "other", "unet", {"checkpoint": "some/model"})
    with pytest.raises(UserError, match=r"trained on 'some/model'\) does not fit: it is of another model"):
        files.load_adapter(unet, tmp_path / "other", "unet")
    with pytest.raises(UserError, match="no weights for 'transformer': it has unet"):
        files.load_adapter(unet, tmp_path / "other", "transformer")
    wide = randomised(adapters.add_adapter(nn.ModuleDict({"conv_in": nn.Conv2d(9, 9, 3)}), ("conv_in",), rank=2))
    files.save_adapter(wide, tmp_path / "wide", "unet", {})
    with pytest.raises(UserError, match=r"'conv_in.lora_A.weight' is \[2, 9, 3, 3\], should be \[2, 4, 3, 3\]"):
        files.load_adapter(unet, tmp_path / "wide", "unet")
    assert not adapters.has_adapter(unet)


def test_adapter_files_of_equal_tensors_are_equal_bytes(unet, tmp_path):
    """The library writes a header's entries in an order that differs from process to process, and from call to call."""
    adapters.add_adapter(unet, TARGETS, 4)
    told = {"family": "modelscope", "checkpoint": "tiny", "recipe": 'ré"cipe'}
    written = [files.save_adapter(unet, tmp_path / str(i), "unet", told).read_bytes() for i in range(8)]
    assert set(written) == {written[0]}
    assert files.read_metadata(tmp_path / "0").items() >= told.items()


def test_an_adapter_of_another_family_is_refused(unet, folder, tmp_path):
    """Even where names and shapes are the same, as those of ModelScope and VideoCrafter2 are in part."""
    adapters.add_adapter(unet, TARGETS, 4)
    path = files.save_adapter(unet, tmp_path, "unet", {"family": "modelscope"})
    said = rf"^adapter '{path}' was trained on a model of the family 'modelscope', not 'videocrafter'$"
    for family in ("modelscope", "", "videocrafter"):  # the same network by another family's name
        files.load_adapters({"unet": unet}, tmp_path, family)
    other = fresh(folder)
    other.register_to_config(norm_eps=0.1)
    with pytest.raises(UserError, match=said):
        files.load_adapters({"unet": other}, tmp_path, "videocrafter")
    silent = nn.Module()  # a network that tells no settings
    with pytest.raises(UserError, match=said):
        files.load_adapters({"unet": silent}, tmp_path, "videocrafter")
    files.save_adapter(unet, tmp_path, "unet", {"family": "my_models:Mine"})
    files.load_adapters({"unet": unet}, tmp_path, "videocrafter")  # a model of one's own: the layers decide


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_holds_no_numbers_is_refused(unet, tmp_path, value):
    adapters.add_adapter(unet, TARGETS, 4)
    name, layer = next(iter(adapters.lora_layers(unet).items()))
    adapters.factor_b(layer).data[0, 0] = value
    files.save_adapter(unet, tmp_path, "unet", {})
    with pytest.raises(UserError, match=rf"cannot be used: unet\.{name}\.lora_B\.weight holds nan or inf in float32$"):
        files.load_adapter(unet, tmp_path)


HEADERS = {
    "not json": ({"vader": "{"}, "its metadata 'vader' cannot be read: "),
    "no object": ({"vader": "[]"}, "its metadata 'vader' cannot be read: it is no JSON object"),
    "nested": ({"vader": "[" * 100_000}, "its metadata 'vader' cannot be read: it is nested too deeply"),
    "no component": ({"vader": '{"component": 3}'}, "its metadata says that it is for 3"),
    "no alpha": (
        {"lora_adapter_metadata": '{"unet.lora_alpha": "x"}'},
        "says that its alpha is 'x', which is no number",
    ),
    "endless alpha": ({"lora_adapter_metadata": '{"unet.lora_alpha": NaN}'}, "says that its alpha is nan"),
}


@pytest.mark.parametrize(("header", "said"), HEADERS.values(), ids=HEADERS)
def test_headers_that_are_none(unet, tmp_path, header, said):
    adapters.add_adapter(unet, TARGETS, 4)
    path = files.save_adapter(unet, tmp_path, "unet", {})
    save_file(load_file(path), path, header)
    with pytest.raises(UserError) as caught:
        files.load_adapter(unet, path)
    assert said in str(caught.value)


@pytest.mark.parametrize("factor", [torch.tensor(1.0), torch.zeros(0, 3), torch.ones(2, 2, dtype=torch.int64)])
def test_factors_that_are_none(unet, tmp_path, factor):
    path = tmp_path / files.FILE_NAME
    save_file({"unet.x.lora_A.weight": factor, "unet.x.lora_B.weight": torch.ones(2, 2)}, path)
    with pytest.raises(UserError, match=r"is no LoRA adapter: unet\.x\.lora_A\.weight is .*, no factor of an update$"):
        files.load_adapter(unet, path)
