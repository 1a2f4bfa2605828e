"""LoRA adapters (arXiv:2106.09685): attach to any network, switch off, read and set their state, merge.

A frozen network comes in; it leaves with float32 low-rank layers beside its chosen linear and convolution
layers, and the rest of the program sees one network as before. What is here of one network is at the end of this
file of all `denoisers` of a model, by component name. Files are `vader.networks.adapter_files`' business.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vader.errors import UserError, nearest
from vader.networks.quantize import Quantized
from vader.randomness import generator

ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NAME = "default"  # peft's name of the one adapter


# ---- attach ----


def add_adapter(
    module: nn.Module, targets: Sequence[str], rank: int, alpha: float | None = None, seed: int = 0
) -> nn.Module:
    """Attaches a trainable adapter that changes nothing yet (B = 0), in place; all else is frozen.

    Args:
        module: the network; its own weights may be in half precision, the adapter's are float32.
        targets: full names or endings ("to_q", "attn1.to_out.0") of linear and convolution layers; `*` is any number.
        rank: of the update B A; its scale is alpha / rank.
        alpha: None for `rank`, so that the scale is 1.
        seed: of A; the same on every process, whatever the module order or device.

    Raises:
        UserError: a target names no layer.
    """
    inject(module, matching_layers(module, targets), rank, rank if alpha is None else alpha)
    _initialise(module, seed, "adapter")
    return module


def _initialise(module: nn.Module, seed: int, purpose: str) -> None:
    for name, layer in lora_layers(module).items():
        fresh = torch.empty(factor_a(layer).shape)
        nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator(seed, f"{purpose}/{name}"))
        factor_a(layer).data.copy_(fresh)


def matching_layers(module: nn.Module, targets: Sequence[str], label: str = "the denoiser") -> list[str]:
    """The full names of the layers that the targets mean.

    Raises:
        UserError: a target names no linear or convolution layer of the network, which the error calls `label`.
    """
    layers = [name for name, layer in module.named_modules() if isinstance(layer, ADAPTABLE)]
    for target in targets:
        if not any(_means(target, name) for name in layers):
            raise UserError(f"adapter target {target!r} names no layer of {label}: {_suggest(target, layers)}")
    return [name for name in layers if any(_means(target, name) for target in targets)]


def _means(target: str, name: str) -> bool:
    pattern = re.escape(target).replace(r"\*", r"\d+")
    return re.fullmatch(rf"(?:.*\.)?{pattern}", name) is not None


def _suggest(target: str, layers: Sequence[str]) -> str:
    """The nearest layer ending, or the commonest ones."""
    common = Counter(ending(name) for name in layers)
    suggestion = nearest(target, common)
    return (
        suggestion if suggestion.startswith("did") else f"common are {', '.join(n for n, _ in common.most_common(8))}"
    )


def ending(name: str) -> str:
    """The last part of a layer's name, with its predecessor where it is only a number: "to_out.0"."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def inject(module: nn.Module, layers: Sequence[str], rank: int, alpha: float) -> None:
    """Puts peft's layers, their factors in float32, in place of these layers."""
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": list(layers)}
    inject_adapter_in_model(LoraConfig(**settings), module)
    for layer in lora_layers(module).values():
        factor_a(layer).data = factor_a(layer).data.float()
        factor_b(layer).data = factor_b(layer).data.float()


def lora_layers(module: nn.Module) -> dict[str, Any]:
    """peft's layers by the name of the layer they wrap."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def factor_a(layer: Any) -> nn.Parameter:
    return layer.lora_A[NAME].weight


def factor_b(layer: Any) -> nn.Parameter:
    return layer.lora_B[NAME].weight


def has_adapter(module: nn.Module) -> bool:
    return bool(lora_layers(module))


def adapter_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters, in the order of `adapter_state`."""
    return list(_parameters(module).values())


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    found = {}
    for name, layer in lora_layers(module).items():
        found[f"{name}.lora_A.weight"] = factor_a(layer)
        found[f"{name}.lora_B.weight"] = factor_b(layer)
    return found


@contextmanager
def adapter_disabled(module: nn.Module) -> Iterator[None]:
    """Within, the network is the frozen base. No graph is recorded: recomputed blocks would have the adapter on."""
    layers = lora_layers(module).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def merge_adapter(module: nn.Module) -> nn.Module:
    """Adds the adapter to the weights (in float32, then rounded to theirs) and leaves a plain network, in place.

    Raises:
        UserError: the weights are quantised, and would have to be rounded to 8 bits once more.
    """
    if any(isinstance(layer.get_base_layer(), Quantized) for layer in lora_layers(module).values()):
        raise UserError("an adapter cannot be merged into quantised weights: load the model without 'quantize'")
    for name, layer in lora_layers(module).items():
        base = layer.get_base_layer()
        update = layer.get_delta_weight(NAME).float()
        base.weight.data.copy_(base.weight.data.float() + _distributed_as(base.weight.data, update))
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, base)
    del module.peft_config
    return module


def _distributed_as(weight: Tensor, update: Tensor) -> Tensor:
    """The update as the weight is: of a sharded one (`vader.networks.shard`), this process's part."""
    if not isinstance(weight, DTensor):
        return update
    return distribute_tensor(update, weight.device_mesh, weight.placements)


@contextmanager
def adapter_merged(module: nn.Module) -> Iterator[None]:
    """Within, the adapter is in the weights: the same numbers but for rounding (1e-6), by fewer operations.

    That goes for float32 weights; in half precision the rounding would be half of what an adapter changes, and sharded
    or quantised ones are not here whole: such layers stay as they are. Within, there is no graph to the adapter, and it
    must not be switched off.
    """
    layers = [layer for layer in lora_layers(module).values() if _may_merge(layer)]
    frozen = [layer.get_base_layer().weight.data for layer in layers]
    with torch.no_grad():
        merged = [weight + layer.get_delta_weight(NAME) for layer, weight in zip(layers, frozen, strict=True)]
    try:
        for layer, weight in zip(layers, merged, strict=True):
            layer.get_base_layer().weight.data = weight
            layer.enable_adapters(False)
        yield
    finally:
        for layer, weight in zip(layers, frozen, strict=True):
            layer.get_base_layer().weight.data = weight
            layer.enable_adapters(True)


def _may_merge(layer: Any) -> bool:
    base = layer.get_base_layer()
    if layer.disable_adapters or isinstance(base, Quantized):
        return False
    return base.weight.dtype == torch.float32 and not isinstance(base.weight.data, DTensor)


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
    check_names(state, parameters)
    for name, parameter in parameters.items():
        check_shape(name, state[name].shape, parameter.shape)
    for name, parameter in parameters.items():
        parameter.data.copy_(state[name])


def check_names(state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    if unknown := sorted(set(state) - set(expected)):
        raise UserError(f"it is of another model: there is no {unknown[0]!r} here ({len(unknown)} unknown)")
    if missing := sorted(set(expected) - set(state)):
        raise UserError(f"it is of another model: it lacks {missing[0]!r} ({len(missing)} missing)")


def check_shape(name: str, given: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(given) != tuple(expected):
        raise UserError(f"it is of another model: {name!r} is {list(given)}, should be {list(expected)}")


# ---- all denoisers of a model, by component name ----


def chosen_denoisers(denoisers: Mapping[str, nn.Module], names: Sequence[str] | None) -> dict[str, nn.Module]:
    """Those of a model's denoisers that are to carry an adapter; None for all.

    Raises:
        UserError: the model has no such denoiser, or none is chosen.
    """
    if names is None:
        return dict(denoisers)
    if unknown := [name for name in names if name not in denoisers]:
        raise UserError(f"adapter.denoisers names {unknown[0]!r}, but the model's are {', '.join(denoisers)}")
    if not names:
        raise UserError(f"adapter.denoisers is empty: name some of {', '.join(denoisers)}, or leave it out for all")
    return {name: denoiser for name, denoiser in denoisers.items() if name in names}


def add_adapters(
    denoisers: Mapping[str, nn.Module],
    targets: Sequence[str],
    rank: int,
    alpha: float | None = None,
    seed: int = 0,
) -> None:
    """Attaches an adapter to each, as `add_adapter` does. Each starts from random numbers of its own.

    Raises:
        UserError: a target names no layer in one of them, which would leave it half trained.
    """
    for name, denoiser in denoisers.items():
        matching_layers(denoiser, targets, _label(name, denoisers))  # of all, before anything is changed
    for number, (name, denoiser) in enumerate(denoisers.items()):
        add_adapter(denoiser, targets, rank, alpha, seed)
        if number:
            _initialise(denoiser, seed, f"adapter/{name}")


def _label(name: str, denoisers: Mapping[str, nn.Module]) -> str:
    return f"the denoiser {name!r}" if len(denoisers) > 1 else "the denoiser"


def adapted(denoisers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Those that carry an adapter."""
    return {name: denoiser for name, denoiser in denoisers.items() if has_adapter(denoiser)}


def parameters_of(denoisers: Mapping[str, nn.Module]) -> list[nn.Parameter]:
    """The trainable parameters of all."""
    return [parameter for denoiser in denoisers.values() for parameter in adapter_parameters(denoiser)]


@contextmanager
def adapters_disabled(denoisers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within, every denoiser is the frozen base, and no graph is recorded."""
    with ExitStack() as stack:
        for denoiser in denoisers.values():
            stack.enter_context(adapter_disabled(denoiser))
        yield


@contextmanager
def adapters_merged(denoisers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within, every denoiser has its adapter in its weights, as `adapter_merged` says."""
    with ExitStack() as stack:
        for denoiser in denoisers.values():
            stack.enter_context(adapter_merged(denoiser))
        yield


def merge_adapters(denoisers: Mapping[str, nn.Module]) -> None:
    """Merges each adapter into its denoiser, in place."""
    for denoiser in adapted(denoisers).values():
        merge_adapter(denoiser)


def adapters_state(denoisers: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """The exact state of each denoiser that carries an adapter: `{"transformer": {...}, "transformer_2": {...}}`."""
    return {name: adapter_state(denoiser) for name, denoiser in adapted(denoisers).items()}


def load_adapters_state(denoisers: Mapping[str, nn.Module], states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Sets the weights of the adapters that the denoisers already have, exactly.

    Raises:
        UserError: the states are of adapters of other denoisers, or with other layers or another rank.
    """
    check_names(states, adapted(denoisers))
    for name, state in states.items():
        load_adapter_state(denoisers[name], state)
