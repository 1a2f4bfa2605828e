"""LoRA adapters (arXiv:2106.09685): attach to any network, train, save in diffusers' format, load, merge.

A frozen network comes in; it leaves with float32 low-rank layers beside its chosen linear and convolution
layers, and the rest of the program sees one network as before. The file is what diffusers calls a LoRA:
`pytorch_lora_weights.safetensors`, keys `<component>.<module path>.lora_A.weight`, alpha folded into B.

To use such a file in diffusers where its own loader knows the class: `pipe.load_lora_weights(folder)`;
where it does not (UNet3D, as of 0.42): `vader.networks.adapter.load_into(pipe, folder)`.

Also read are the `.pt` files that VADER's authors published (`vader.models.videocrafter.lora`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vader.errors import UserError, nearest
from vader.files.atomic import atomic_write
from vader.models.videocrafter import lora
from vader.randomness import generator

FILE_NAME = "pytorch_lora_weights.safetensors"
ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NAME = "default"  # peft's name of the one adapter
Target = TypeVar("Target")


# ---- attach ----


def add_adapter(
    module: nn.Module, targets: Sequence[str], rank: int, alpha: float | None = None, seed: int = 0
) -> nn.Module:
    """Attaches a trainable adapter that changes nothing yet (B = 0), in place; all else is frozen.

    Args:
        module: the network; its own weights may be in half precision, the adapter's are float32.
        targets: full names or endings ("to_q", "attn1.to_out.0") of linear and convolution layers.
        rank: of the update B A; its scale is alpha / rank.
        alpha: None for `rank`, so that the scale is 1.
        seed: of A; the same on every process, whatever the module order or device.

    Raises:
        UserError: a target names no layer.
    """
    _inject(module, matching_layers(module, targets), rank, rank if alpha is None else alpha)
    for name, layer in _lora_layers(module).items():
        fresh = torch.empty(_factor_a(layer).shape)
        nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator(seed, f"adapter/{name}"))
        _factor_a(layer).data.copy_(fresh)
    return module


def matching_layers(module: nn.Module, targets: Sequence[str]) -> list[str]:
    """The full names of the layers that the targets mean.

    Raises:
        UserError: a target names no linear or convolution layer.
    """
    layers = [name for name, layer in module.named_modules() if isinstance(layer, ADAPTABLE)]
    for target in targets:
        if not any(_means(target, name) for name in layers):
            raise UserError(f"adapter target {target!r} names no layer of the denoiser: {_suggest(target, layers)}")
    return [name for name in layers if any(_means(target, name) for target in targets)]


def _means(target: str, name: str) -> bool:
    return name == target or name.endswith("." + target)


def _suggest(target: str, layers: Sequence[str]) -> str:
    """The nearest layer ending, or the commonest ones."""
    common = Counter(_ending(name) for name in layers)
    suggestion = nearest(target, common)
    return (
        suggestion if suggestion.startswith("did") else f"common are {', '.join(n for n, _ in common.most_common(8))}"
    )


def _ending(name: str) -> str:
    """The last part of a layer's name, with its predecessor where it is only a number: "to_out.0"."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def _inject(module: nn.Module, layers: list[str], rank: int, alpha: float) -> None:
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": layers}
    inject_adapter_in_model(LoraConfig(**settings), module)
    for layer in _lora_layers(module).values():
        _factor_a(layer).data = _factor_a(layer).data.float()
        _factor_b(layer).data = _factor_b(layer).data.float()


def _lora_layers(module: nn.Module) -> dict[str, Any]:
    """peft's layers by the name of the layer they wrap."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def _factor_a(layer: Any) -> nn.Parameter:
    return layer.lora_A[NAME].weight


def _factor_b(layer: Any) -> nn.Parameter:
    return layer.lora_B[NAME].weight


def has_adapter(module: nn.Module) -> bool:
    return bool(_lora_layers(module))


def adapter_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters, in the order of `adapter_state`."""
    return list(_parameters(module).values())


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    found = {}
    for name, layer in _lora_layers(module).items():
        found[f"{name}.lora_A.weight"] = _factor_a(layer)
        found[f"{name}.lora_B.weight"] = _factor_b(layer)
    return found


@contextmanager
def adapter_disabled(module: nn.Module) -> Iterator[None]:
    """Within, the network is the frozen base. No graph is recorded: recomputed blocks would have the adapter on."""
    layers = _lora_layers(module).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge_adapter(module: nn.Module) -> nn.Module:
    """Adds the adapter to the weights (in float32, then rounded to theirs) and leaves a plain network, in place."""
    for name, layer in _lora_layers(module).items():
        base = layer.get_base_layer()
        weight = base.weight.data
        base.weight.data = (weight.float() + layer.get_delta_weight(NAME).float()).to(weight.dtype)
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, base)
    del module.peft_config
    return module


# ---- exact state, for checkpoints ----


def adapter_state(module: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights as they are (alpha not folded in): `<module path>.lora_A.weight`, `...lora_B.weight`."""
    return {name: parameter.detach() for name, parameter in _parameters(module).items()}


def load_adapter_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Sets the weights of the adapter that `module` already has, exactly.

    Raises:
        UserError: the state is of an adapter with other layers or another rank.
    """
    parameters = _parameters(module)
    _check_names(state, parameters)
    for name, parameter in parameters.items():
        _check_shape(name, state[name].shape, parameter.shape)
    for name, parameter in parameters.items():
        parameter.data.copy_(state[name])


def _check_names(state: Mapping[str, Tensor], expected: Mapping[str, Any]) -> None:
    if unknown := sorted(set(state) - set(expected)):
        raise UserError(f"it is of another model: there is no {unknown[0]!r} here ({len(unknown)} unknown)")
    if missing := sorted(set(expected) - set(state)):
        raise UserError(f"it is of another model: it lacks {missing[0]!r} ({len(missing)} missing)")


def _check_shape(name: str, given: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(given) != tuple(expected):
        raise UserError(f"it is of another model: {name!r} is {list(given)}, should be {list(expected)}")


# ---- files ----


def save_adapter(module: nn.Module, folder: Path | str, component: str, metadata: Mapping[str, Any]) -> Path:
    """Writes the adapter in diffusers' LoRA format, alpha folded into B, so that scale 1 is right everywhere.

    Args:
        folder: made where it is missing; the file in it is replaced in one move.
        component: the network's name in a diffusers pipeline: "unet" or "transformer".
        metadata: what the adapter belongs to (family, checkpoint, recipe ...), JSON values; rank, alpha, layers
            and the package's version are added. `read_metadata` gives all of it back.

    Returns:
        The path of the file.
    """
    path = Path(folder) / FILE_NAME
    with atomic_write(path) as temporary:
        save_file(_folded(module, component), temporary, metadata=_header(module, component, metadata))
    return path


def _folded(module: nn.Module, component: str) -> dict[str, Tensor]:
    weights = {}
    for name, layer in _lora_layers(module).items():
        weights[f"{component}.{name}.lora_A.weight"] = _factor_a(layer).detach().cpu().contiguous()
        weights[f"{component}.{name}.lora_B.weight"] = (
            (_factor_b(layer) * layer.scaling[NAME]).detach().cpu().contiguous()
        )
    return weights


def _header(module: nn.Module, component: str, metadata: Mapping[str, Any]) -> dict[str, str]:
    """safetensors metadata: ours under "vader", and peft's settings as diffusers reads them (alpha is folded: = r)."""
    config: Any = module.peft_config[NAME]  # type: ignore[index]
    ours = {
        **metadata,
        "rank": config.r,
        "alpha": config.lora_alpha,
        "targets": sorted({_ending(name) for name in _lora_layers(module)}),
        "vader_version": version("vader"),
    }
    theirs = {"r": config.r, "lora_alpha": config.r, "target_modules": sorted(_lora_layers(module))}
    return {
        "format": "pt",
        "vader": json.dumps(ours),
        "lora_adapter_metadata": json.dumps({f"{component}.{key}": value for key, value in theirs.items()}),
    }


def load_adapter(module: nn.Module, path: Path | str, component: str | None = None) -> nn.Module:
    """Attaches the adapter of a file, in place, or sets the weights of the adapter that is already there.

    Args:
        module: the network that the adapter was trained on (or a fine-tune of the same architecture).
        path: the file, or the folder that holds `pytorch_lora_weights.safetensors`.
        component: which network's weights to take from the file; None where it holds only one's.

    Raises:
        UserError: no such file, no adapter, or the adapter of another model.
    """
    weights, header = _read(path)
    component = component or _sole_component(weights, path)
    state = {name.removeprefix(f"{component}."): w for name, w in weights.items() if name.startswith(f"{component}.")}
    if not state:
        raise UserError(f"adapter {str(path)!r} has no weights for {component!r}: {_components(weights)}")
    rank = _rank(state, path)
    alpha = json.loads(header.get("lora_adapter_metadata", "{}")).get(f"{component}.lora_alpha", rank)
    try:
        if not has_adapter(module):
            _attach_fitting(module, state, rank)
        load_adapter_state(module, _rescaled(module, state, alpha / rank))
    except UserError as error:
        raise UserError(f"adapter {str(path)!r}{_origin(header)} does not fit: {error}") from error
    return module


def _rescaled(module: nn.Module, state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The state for a network whose adapter has its own scale, so that scale * B A stays what the file means."""
    scales = {f"{name}.lora_B.weight": scale / layer.scaling[NAME] for name, layer in _lora_layers(module).items()}
    return {name: weight * scales.get(name, 1.0) for name, weight in state.items()}


def _origin(header: Mapping[str, str]) -> str:
    ours = json.loads(header.get("vader", "{}"))
    return f" (trained on {ours['checkpoint']!r})" if "checkpoint" in ours else ""


def load_into(target: Target, path: Path | str) -> Target:
    """Attaches an adapter file to a diffusers pipeline or a network of it: `load_into(pipe, "runs/x/adapter")`.

    Raises:
        UserError: as `load_adapter`.
    """
    if isinstance(target, nn.Module):
        load_adapter(target, path)
    else:
        component = _sole_component(_read(path)[0], path)
        load_adapter(getattr(target, component), path, component)
    return target


def read_metadata(path: Path | str) -> dict[str, Any]:
    """What `save_adapter` wrote about the adapter: rank, alpha, targets, family, checkpoint, recipe ...

    Raises:
        UserError: no such file, or no adapter.
    """
    return json.loads(_read(path)[1].get("vader", "{}"))


def adapter_file(path: Path | str) -> Path:
    """The adapter's file, given itself or its folder.

    Raises:
        UserError: there is none.
    """
    path = Path(path).expanduser()
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"no adapter at {str(path)!r}: name a {FILE_NAME} or the folder that holds it")
    return file


def _read(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    file = adapter_file(path)
    if file.suffix in lora.SUFFIXES:
        return lora.read_lora(file)
    try:
        with safe_open(file, framework="pt") as stream:
            weights = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            header = stream.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{str(file)!r} is no adapter: it is not a safetensors file ({error})") from error
    strange = [name for name in weights if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    if strange or not weights:
        raise UserError(f"{str(file)!r} is no LoRA adapter: {f'it holds {strange[0]!r}' if strange else 'it is empty'}")
    return weights, header


def _components(weights: Mapping[str, Tensor]) -> str:
    return "it has " + ", ".join(sorted({name.partition(".")[0] for name in weights}))


def _sole_component(weights: Mapping[str, Tensor], path: Path | str) -> str:
    components = {name.partition(".")[0] for name in weights}
    if len(components) > 1:
        raise UserError(f"adapter {str(path)!r} is for several networks ({_components(weights)}): name one")
    return components.pop()


def _rank(state: Mapping[str, Tensor], path: Path | str) -> int:
    ranks = {len(weight) for name, weight in state.items() if name.endswith("lora_A.weight")}
    if len(ranks) != 1:
        raise UserError(f"adapter {str(path)!r} has layers of ranks {sorted(ranks)}: one rank for all is needed")
    return ranks.pop()


def _attach_fitting(module: nn.Module, state: Mapping[str, Tensor], rank: int) -> None:
    """Attaches an adapter to the layers that the state names, once it is sure that all exist and fit."""
    names = {name.rsplit(".lora_", 1)[0] for name in state}
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, ADAPTABLE)}
    expected = {f"{name}.lora_{factor}.weight": layers.get(name) for name in names for factor in "AB"}
    _check_names(state, {name: layer for name, layer in expected.items() if layer is not None})
    for name in names:
        weight = layers[name].weight
        _check_shape(name + ".lora_A.weight", state[name + ".lora_A.weight"].shape, (rank, *weight.shape[1:]))
        _check_shape(name + ".lora_B.weight", state[name + ".lora_B.weight"].shape[:2], (len(weight), rank))
    _inject(module, sorted(names), rank, rank)
