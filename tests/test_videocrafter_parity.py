"""VideoCrafter2's networks, sampler and whole pipeline against numbers of the official classes."""

from __future__ import annotations

import json

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file

from factories import predict
from vader.models.image_vae import decode_frames, encode_frames
from vader.models.videocrafter.model import VideoCrafter, scheduler_config
from vader.models.videocrafter.names import to_diffusers, to_release
from vader.models.videocrafter.networks import (
    Settings,
    empty_text,
    empty_unet,
    empty_vae,
    load_text,
    load_unet,
    load_vae,
    names_of_unet,
    text_to_release,
    unet_to_release,
    vae_to_release,
)
from vader.models.videocrafter.release import PREFIXES, schedule_buffers
from vader.networks.adapter import adapter_parameters, add_adapter
from vader.nouns import Condition
from vader.solvers.scheduler_config import solver_from_config

UNETS = {"unet_tiny": 5, "unet_tiny64": 2}


@pytest.fixture
def fixture(shared):
    """`fixture("unet_tiny")` is a fixture's tensors, merged from all its files, and what its JSON says."""

    def read(name: str):
        info = json.loads(shared(f"parity/videocrafter2/{name}.json").read_text())
        files = [*info.get("files", [f"{name}.safetensors"]), *info.get("gradients", {}).get("files", [])]
        tensors = {}
        for file in files:
            tensors |= load_file(shared(f"parity/videocrafter2/{file}"))
        return tensors, info

    return read


def weights_of(tensors, scaled=(), scale=1.0):
    named = {name.removeprefix("weights/"): w for name, w in tensors.items() if name.startswith("weights/")}
    return {name: w * scale if name in scaled else w for name, w in named.items()}


def unet_of(tensors, **scaling):
    weights = weights_of(tensors, **scaling)
    return load_unet(empty_unet(weights, Settings(), "UNet"), weights, torch.float32, "UNet")


def vae_of(tensors, **scaling):
    weights = weights_of(tensors, **scaling)
    return load_vae(empty_vae(weights, Settings(), "VAE"), weights, torch.float32, "VAE")


def text_of(tensors, **scaling):
    weights = weights_of(tensors, **scaling)
    return load_text(empty_text(weights, Settings(text_heads=4), "text"), weights, torch.float32, "text")


def small_of(info):
    case = info["small_weights_case"]
    return {"scaled": set(case["scaled_parameters"]), "scale": case["scale"]}


def run(unet, tensors, case):
    x, times, text, fps = (tensors[f"{case}/{name}"] for name in ("x", "timesteps", "context", "fps"))
    return unet(x, times, text, timestep_cond=fps).sample


def close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def close_to_largest(actual, expected, share=1e-4):
    close(actual, expected, atol=share * expected.abs().max().item())


# ---- UNet ----


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_unet_outputs(fixture, name):
    tensors, _ = fixture(name)
    unet = unet_of(tensors)
    for case in range(UNETS[name]):
        close(run(unet, tensors, f"case{case}"), tensors[f"case{case}/out"], atol=1e-5)


@torch.no_grad()
def test_unet_epsilons(fixture):
    """A residual stream so small that every normalisation's epsilon shows."""
    tensors, info = fixture("unet_tiny")
    close(run(unet_of(tensors, **small_of(info)), tensors, "small"), tensors["small/out"], atol=1e-5)


LAST_LAYER = {"in_layers": ".2", "out_layers": ".3", "emb_layers": ".1"}  # of the release's sequences
ENDS = ("", ".temopral_conv", ".conv", ".op")  # what a residual block, an up- and a downsampler end in


def our_module(unet, name: str):
    """The module of ours whose output is the official module's: the last part that we have."""
    tails = [LAST_LAYER.get(name.split(".")[-1], ""), *ENDS, *(f".{i}{end}" for i in (3, 2, 1, 0) for end in ENDS)]
    for tail in tails:
        try:
            return unet.get_submodule(to_diffusers(f"{name}{tail}.", names_of_unet(unet)).rstrip("."))
        except KeyError:
            continue
    raise AssertionError(f"no module of ours is {name}")


@torch.no_grad()
def test_unet_activations(fixture, shared):
    """What every block gives, and the parts of one: 55 places of the network."""
    tensors, info = fixture("unet_tiny")
    expected = load_file(shared("parity/videocrafter2/unet_tiny_activations.safetensors"))
    unet, found = unet_of(tensors), {}

    def keep(name):
        def hook(module, inputs, output) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return hook

    for name in info["activations"]["order"]:
        our_module(unet, name).register_forward_hook(keep(name))
    run(unet, tensors, "case0")
    assert len(found) == 55
    for name, output in found.items():
        wanted = expected[f"act/{name}"]
        if wanted.ndim == 5 and output.ndim == 4:
            output = rearrange(output, "(b f) c h w -> b c f h w", b=len(wanted))
        close_to_largest(output.reshape(wanted.shape), wanted)


@pytest.mark.parametrize("name", UNETS)
def test_unet_gradients(fixture, name):
    """Of inputs, of chosen weights entry by entry, and of every weight by its norm."""
    tensors, info = fixture(name)
    unet = unet_of(tensors).requires_grad_(True)
    leaves = {key: tensors[f"case0/{key}"].requires_grad_() for key in ("x", "context")}
    loss = (run(unet, tensors, "case0") * tensors["grad/R"]).sum()
    loss.backward()
    close_to_largest(loss.detach()[None], tensors["grad/loss"])
    for key, leaf in leaves.items():
        close_to_largest(leaf.grad, tensors[f"grad/{key}"])
    pairs, facts = names_of_unet(unet), info["gradients"]
    grads = {to_release(key, pairs): parameter.grad for key, parameter in unet.named_parameters()}
    for key in facts["weights"]:
        wanted = tensors[f"grad/weights/{key}"]
        close_to_largest(grads[key].reshape(wanted.shape), wanted)
    for key, norm in facts["gradient_l2_norm_of_every_parameter"].items():
        if key not in facts["parameters_without_effect"]:
            assert grads[key].norm().item() == pytest.approx(norm, rel=1e-3)


# ---- VAE and text encoder ----


@torch.no_grad()
def test_vae(fixture):
    tensors, info = fixture("vae_tiny")
    vae = vae_of(tensors)
    for case in range(3):
        pixels = decode_frames(vae, tensors[f"case{case}/z"]).movedim(1, 2) * 2 - 1
        close(pixels, tensors[f"case{case}/out"], atol=1e-5)
    images = rearrange(tensors["enc0/x"], "b c f h w -> (b f) c h w")
    close(vae.encode(images).latent_dist.parameters, tensors["enc0/moments"], atol=1e-5)
    latents = encode_frames(vae, tensors["enc0/x"].movedim(2, 1) / 2 + 0.5)
    close(latents, tensors["enc0/z_mode"], atol=1e-5)
    small = decode_frames(vae_of(tensors, **small_of(info)), tensors["small/z"]).movedim(1, 2) * 2 - 1
    close(small, tensors["small/out"], atol=1e-5)


def test_vae_gradient(fixture):
    tensors, _ = fixture("vae_tiny")
    z = tensors["case0/z"].requires_grad_()
    pixels = decode_frames(vae_of(tensors), z).movedim(1, 2) * 2 - 1
    (pixels * tensors["grad/R"]).sum().backward()
    close_to_largest(z.grad, tensors["grad/z"])


@torch.no_grad()
def test_text_encoder(fixture):
    tensors, info = fixture("text_tiny")
    tokens = tensors["case0/tokens"]
    out = text_of(tensors)(tokens, output_hidden_states=True)
    close(out.last_hidden_state, tensors["case0/out"], atol=1e-5)
    for block in (0, 1):
        close(out.hidden_states[block + 1], tensors[f"case0/after_block_{block}"], atol=1e-5)
    close(text_of(tensors, **small_of(info))(tokens).last_hidden_state, tensors["small/out"], atol=1e-5)


def test_networks_go_back_to_the_release_unchanged(fixture):
    unet, vae, text = (fixture(name)[0] for name in ("unet_tiny64", "vae_tiny", "text_tiny"))
    back = {**unet_to_release(unet_of(unet)), **vae_to_release(vae_of(vae)), **text_to_release(text_of(text))}
    whole = {**weights_of(unet), **weights_of(vae), **weights_of(text)}
    made_up = {name for name in whole if "resblocks.2." in name or name in ("text_projection", "logit_scale")}
    assert back.keys() == whole.keys()
    for name in whole.keys() - made_up:
        close(back[name], whole[name], atol=1e-7)


# ---- schedule, sampler, pipeline ----


@pytest.fixture
def official_schedule(fixture):
    tensors, _ = fixture("sampler")
    named = {name.removeprefix("schedule/"): t for name, t in tensors.items() if name.startswith("schedule/")}
    return {name: tensor for name, tensor in named.items() if name != "lvlb_weights"}  # in no checkpoint


def test_schedule_buffers(official_schedule):
    """From the float32 levels, so that small differences of them have their rounding."""
    made = schedule_buffers(official_schedule["alphas_cumprod"])
    assert made.keys() == official_schedule.keys()
    for name, expected in official_schedule.items():
        torch.testing.assert_close(made[name], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("steps", [25, 50])
def test_sampler_tables(fixture, official_schedule, steps):
    tensors, _ = fixture("sampler")
    solver = solver_from_config(scheduler_config(official_schedule["alphas_cumprod"].double()), eta=1.0)
    schedule = solver.schedule(steps)
    table = {
        name: tensors[f"ddim_S{steps}/{name}"].double().flip(0)
        for name in ("timesteps", "alphas", "alphas_prev", "scale", "scale_prev", "sigmas_eta1")
    }
    starts, ends = schedule.starts, schedule.ends
    assert [level.time for level in starts] == table["timesteps"].tolist()
    for ours, expected in (
        ([level.alpha for level in starts], table["scale"] * table["alphas"].sqrt()),
        ([level.alpha for level in ends], table["scale_prev"] * table["alphas_prev"].sqrt()),
        ([level.sigma for level in starts], (1 - table["alphas"]).sqrt()),
        (list(map(solver.std, starts, ends)), table["sigmas_eta1"]),
    ):
        torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_the_whole_pipeline(fixture, official_schedule, index):
    """Both tiny networks, guidance 12, the released schedule, decoding: the official video."""
    stored, info = fixture("e2e_tiny")
    tensors = {key.split("/")[1]: t for key, t in stored.items() if key.startswith(f"run{index}/")}
    told, limits = info["runs"][index], info["tolerance"]
    config = scheduler_config(official_schedule["alphas_cumprod"].double())
    solver = solver_from_config(config, eta=float(told["eta"]))
    model = VideoCrafter(unet_of(fixture("unet_tiny")[0]), vae_of(fixture("vae_tiny")[0]), None, None, config)
    condition = Condition(
        {"text": tensors["context"], "fps": tensors["fps"]}, {"text": tensors["uncond_context"], "fps": tensors["fps"]}
    )
    schedule, x = solver.schedule(told["requested_steps"]), tensors["x_T"]
    for i, (here, there, expected) in enumerate(zip(schedule.starts, schedule.ends, tensors["x"], strict=True)):
        prediction = predict(model, x, here.time, condition, told["guidance"])
        x = solver.step(x, prediction, here, there, tensors["noise"][i] if told["eta"] else None).next
        assert (x - expected).norm() / expected.norm() < limits["latent_rel_l2"]
    close(model.decode_unclamped(x).movedim(1, 2) * 2 - 1, tensors["video"], atol=limits["video_max_abs"])


# ---- the released configuration, on the meta device ----


@pytest.fixture
def manifest(shared):
    return json.loads(shared("parity/videocrafter2/manifest.json").read_text())


def test_every_released_tensor_is_consumed_with_its_shape(manifest):
    listed = {name: torch.empty(t["shape"], device="meta") for name, t in manifest["tensors"].items()}
    parts = {
        part: {name.removeprefix(prefix): t for name, t in listed.items() if name.startswith(prefix)}
        for part, prefix in PREFIXES.items()
    }
    unet = empty_unet(parts["unet"], Settings(), "UNet")
    vae = empty_vae(parts["vae"], Settings(), "VAE")
    text = empty_text(parts["text"], Settings(), "text encoder")
    schedule = {name: tuple(t.shape) for name, t in listed.items() if not name.startswith(tuple(PREFIXES.values()))}
    assert schedule == {name: tuple(t.shape) for name, t in schedule_buffers(torch.full((1000,), 0.5)).items()}
    assert sum(map(len, parts.values())) + len(schedule) == manifest["totals"]["all"]["keys"] == 2039
    counts = [sum(p.numel() for p in network.parameters()) for network in (unet, vae, text)]
    used = [manifest["totals"][part]["elements"] for part in ("unet", "vae")]
    assert counts == [*used, manifest["totals"]["text"]["elements_used_at_inference"]]
    assert text.config.num_attention_heads == 16


def test_lora_goes_where_the_paper_puts_it(manifest):
    listed = {name: torch.empty(t["shape"], device="meta") for name, t in manifest["tensors"].items()}
    prefix = PREFIXES["unet"]
    weights = {name.removeprefix(prefix): t for name, t in listed.items() if name.startswith(prefix)}
    unet = empty_unet(weights, Settings(), "UNet")
    pairs = names_of_unet(unet)
    add_adapter(unet, VideoCrafter.lora_targets, rank=16)
    parameters = adapter_parameters(unet)
    assert sum(p.numel() for p in parameters) == manifest["lora_targets"]["parameters_rank_16"] == 5_015_552
    assert len(parameters) == 2 * 198
    sites = {
        prefix + to_release(name, pairs).removesuffix(".lora_A.default.weight")
        for name, _ in unet.named_parameters()
        if "lora_A" in name
    }
    assert sites == manifest["lora_targets"]["shapes"].keys()
