"""Adapter files: written and read in diffusers' LoRA format, one file a denoiser; others are read as ours.

In goes a network with an adapter, out comes what diffusers calls a LoRA: keys `<component>.<module>.lora_A.weight`,
alpha folded into B. The first denoiser's file is `pytorch_lora_weights.safetensors`, that of another one
`pytorch_lora_weights.transformer_2.safetensors`. Its keys, too, begin with `transformer.`: diffusers wants them so for
`pipe.load_lora_weights(folder, weight_name=..., load_into_transformer_2=True)`, and would take keys under
`transformer_2.` for those of no network, without a word. For which denoiser a file is, its metadata says.

To use such a file in diffusers where its own loader knows the class: `pipe.load_lora_weights(folder)`;
where it does not (UNet3D, as of 0.42): `vader.load_into(pipe, folder)`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from vader.errors import UserError
from vader.files.atomic import atomic_write
from vader.files.foreign import reading, require_regular
from vader.files.paths import user_path
from vader.files.weights import check_numbers, save_tensors
from vader.networks.adapter import (
    ADAPTABLE,
    NAME,
    adapted,
    check_names,
    check_shape,
    ending,
    factor_a,
    factor_b,
    has_adapter,
    inject,
    load_adapter_state,
    lora_layers,
)
from vader.networks.original_names import EXPERTS, from_original, is_original, original_file
from vader.version import __version__

FILE_NAME = "pytorch_lora_weights.safetensors"
Content = tuple[dict[str, Tensor], dict[str, str]]  # weights as in our files, and a header as theirs
_formats: dict[str, Callable[[Path], Content]] = {}


def register_format(suffixes: Sequence[str], reader: Callable[[Path], Content]) -> None:
    """Has files with these endings read by `reader`, wherever adapters are loaded: a family's own LoRA format.

    Args:
        reader: gives weights `<component>.<module path>.lora_A.weight` (and B, its scale folded in) and a header
            like that of our files; raises `UserError` where the file is not of its format.
    """
    _formats.update(dict.fromkeys(suffixes, reader))


def is_foreign(path: Path) -> bool:
    """Whether a registered format, not diffusers' own, is expected of this file."""
    return path.suffix in _formats


# ---- written ----


def save_adapters(denoisers: Mapping[str, nn.Module], folder: Path | str, metadata: Mapping[str, Any]) -> list[Path]:
    """Writes a file for each denoiser that carries an adapter; see `save_adapter`.

    Args:
        denoisers: all of a model's, by component name: the first one's file has the name that diffusers looks for.
    """
    first = next(iter(denoisers))
    return [
        save_adapter(denoiser, folder, name, metadata, file_name(None if name == first else name))
        for name, denoiser in adapted(denoisers).items()
    ]


def file_name(component: str | None) -> str:
    """The name of a denoiser's file; None for the first denoiser's."""
    return FILE_NAME if component is None else FILE_NAME.replace(".", f".{component}.")


def save_adapter(
    module: nn.Module, folder: Path | str, component: str, metadata: Mapping[str, Any], name: str = FILE_NAME
) -> Path:
    """Writes the adapter in diffusers' LoRA format, alpha folded into B, so that scale 1 is right everywhere.

    Args:
        folder: made where it is missing; the file in it is replaced in one move.
        component: the network's name in a diffusers pipeline: "unet", "transformer", "transformer_2".
        metadata: what the adapter belongs to (family, checkpoint, recipe ...), JSON values; component, network, rank,
            alpha, layers and the package's version are added. `read_metadata` gives all of it back.
        name: of the file.

    Returns:
        The path of the file.
    """
    path = Path(folder) / name
    with atomic_write(path) as temporary:
        save_tensors(_folded(module, component), temporary, _header(module, component, metadata))
    return path


def key_prefix(component: str) -> str:
    """What diffusers' files begin their keys with: of an expert, the name of the first one."""
    return re.sub(r"_\d+$", "", component)


def _folded(module: nn.Module, component: str) -> dict[str, Tensor]:
    weights = {}
    for name, layer in lora_layers(module).items():
        key = f"{key_prefix(component)}.{name}"
        weights[f"{key}.lora_A.weight"] = factor_a(layer).detach().cpu().contiguous()
        weights[f"{key}.lora_B.weight"] = (factor_b(layer) * layer.scaling[NAME]).detach().cpu().contiguous()
    return weights


def _header(module: nn.Module, component: str, metadata: Mapping[str, Any]) -> dict[str, str]:
    """safetensors metadata: ours under "vader", and peft's settings as diffusers reads them (alpha is folded: = r)."""
    config: Any = module.peft_config[NAME]  # type: ignore[index]
    ours = {
        **metadata,
        "component": component,
        "network": settings_digest(module),
        "rank": config.r,
        "alpha": config.lora_alpha,
        "targets": sorted({ending(name) for name in lora_layers(module)}),
        "vader_version": __version__,
    }
    theirs = {"r": config.r, "lora_alpha": config.r, "target_modules": sorted(lora_layers(module))}
    return {
        "format": "pt",
        "vader": json.dumps(ours),
        "lora_adapter_metadata": json.dumps({f"{key_prefix(component)}.{key}": value for key, value in theirs.items()}),
    }


def settings_digest(network: nn.Module) -> str | None:
    """A network's settings in 16 digits, the same for families that share one; None where it has none by name."""
    config = getattr(network, "config", None)
    if not isinstance(config, Mapping):
        return None
    own = {name: value for name, value in config.items() if not name.startswith("_")}
    return sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()[:16]


# ---- read ----


@dataclass(frozen=True)
class AdapterFile:
    """What a file holds: weights under its own keys, and its header."""

    path: Path
    weights: dict[str, Tensor]
    header: dict[str, str]

    @property
    def ours(self) -> dict[str, Any]:
        """What `save_adapter` wrote about it; empty of a file that others wrote."""
        return self._said("vader")

    def _said(self, key: str) -> dict[str, Any]:
        """An entry of the header. Raises `UserError` if it is no JSON object."""
        label = f"{str(self.path)!r} is no adapter: its metadata {key!r} cannot be read"
        with reading(label):
            found = json.loads(self.header.get(key, "{}"))
        if not isinstance(found, dict):
            raise UserError(f"{label}: it is no JSON object")
        return found

    @property
    def components(self) -> list[str]:
        """The networks that it has weights for."""
        said = self.ours.get("component")
        if not isinstance(said, str | None):
            raise UserError(f"{str(self.path)!r} is no adapter: its metadata says that it is for {said!r}")
        return [said] if said else sorted({name.partition(".")[0] for name in self.weights})

    def state(self, component: str) -> dict[str, Tensor]:
        """One network's weights by `<module path>.lora_A.weight` (and B)."""
        prefix = f"{key_prefix(component)}." if "component" in self.ours else f"{component}."
        return {name.removeprefix(prefix): w for name, w in self.weights.items() if name.startswith(prefix)}

    def alpha(self, component: str, rank: int) -> float:
        """The alpha that is not in the weights, as diffusers' training scripts leave it; else the rank."""
        theirs = self._said("lora_adapter_metadata")
        alpha = theirs.get(f"{key_prefix(component)}.lora_alpha", theirs.get(f"{component}.lora_alpha", rank))
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise UserError(f"adapter {str(self.path)!r} says that its alpha is {alpha!r}, which is no number")
        return alpha


def adapter_files(path: Path | str) -> list[Path]:
    """The adapter's files, given one itself or the folder that holds them, the first denoiser's first.

    A folder may hold them under the names of the model's original code, as `vader export --format comfyui` writes it.

    Raises:
        UserError: there is none.
    """
    path = user_path(path, "adapter")
    ours = [path] if path.is_file() else [path / FILE_NAME, *sorted(path.glob(file_name("?*")))]
    original = [path / original_file(expert) for expert in (None, *EXPERTS)]
    for found in (ours, original):
        if files := [file for file in found if file.is_file()]:
            return files
    raise UserError(f"no adapter at {str(path)!r}: name a {FILE_NAME} or the folder that holds it")


def read_adapters(path: Path | str) -> list[AdapterFile]:
    """The content of the adapter's files.

    Raises:
        UserError: no such file, or no adapter.
    """
    return [AdapterFile(file, *_read(file)) for file in adapter_files(path)]


def read_metadata(path: Path | str) -> dict[str, Any]:
    """What `save_adapter` wrote about the adapter: rank, alpha, targets, family, checkpoint, recipe ...

    Raises:
        UserError: no such file, or no adapter.
    """
    return read_adapters(path)[0].ours


def _read(file: Path) -> Content:
    label = f"{str(file)!r} is no LoRA adapter"
    require_regular(file, label)
    with reading(label):
        weights, header = _formats[file.suffix](file) if is_foreign(file) else _read_ours(file)
    strange = [name for name in weights if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    if strange or not weights:
        raise UserError(f"{label}: {f'it holds {strange[0]!r}' if strange else 'it is empty'}")
    for name, weight in weights.items():
        if weight.ndim < 2 or not len(weight) or not weight.is_floating_point():
            raise UserError(f"{label}: {name} is {list(weight.shape)} of {weight.dtype}, no factor of an update")
    check_numbers(weights, f"adapter {str(file)!r}")
    return weights, header


def _read_ours(file: Path) -> Content:
    with safe_open(file, framework="pt") as stream:
        weights = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        header = stream.metadata() or {}
    if is_original(weights):
        weights = from_original(weights, f"{str(file)!r} is no LoRA adapter that can be read")
    return weights, header


# ---- loaded ----


def load_adapter(module: nn.Module, path: Path | str, component: str | None = None) -> nn.Module:
    """Attaches the adapter of a file to one network, in place, or sets the weights of the adapter that is there.

    Args:
        module: the network that the adapter was trained on (or a fine-tune of the same architecture).
        path: the file, or the folder that holds it.
        component: which network's weights to take; None where there is only one's.

    Raises:
        UserError: no such file, no adapter, or the adapter of another model.
    """
    held = {name: file for file in read_adapters(path) for name in file.components}
    if component is None and len(held) > 1:
        raise UserError(f"adapter {str(path)!r} is for several networks ({_listed(held)}): name one")
    component = component or next(iter(held))
    if component not in held:
        raise UserError(f"adapter {str(path)!r} has no weights for {component!r}: {_listed(held)}")
    _load(module, held[component], component)
    return module


def load_adapters(denoisers: Mapping[str, nn.Module], path: Path | str, family: str = "") -> None:
    """Attaches every adapter of a file or folder to the denoiser that it is for, as `load_adapter` does.

    Args:
        family: of the model that the denoisers are of; empty where nobody knows.

    Raises:
        UserError: as `load_adapter`, or it is for a denoiser that is not among these, or of another family's model
            and not of the same network.
    """
    files = read_adapters(path)
    for file in files:
        _check_family(file, family, denoisers)
    held = [(name, file) for file in files for name in file.components]
    if strange := [name for name, _ in held if name not in denoisers]:
        raise UserError(
            f"adapter {str(path)!r} is for {strange[0]!r}, and the networks here are {', '.join(denoisers)}"
        )
    for name, file in held:
        _load(denoisers[name], file, name)


def _check_family(file: AdapterFile, family: str, denoisers: Mapping[str, nn.Module]) -> None:
    """Two families may have layers of the same names and shapes: what the file says of itself decides. They may also
    share a network, as where one checkpoint starts from texts and from pictures: then its adapters serve both."""
    said = file.ours.get("family")
    known = family and isinstance(said, str) and ":" not in said  # of a model of the user's own the layers decide
    if known and said != family and not _same_network(file, denoisers):
        raise UserError(f"adapter {str(file.path)!r} was trained on a model of the family {said!r}, not {family!r}")


def _same_network(file: AdapterFile, denoisers: Mapping[str, nn.Module]) -> bool:
    """Whether a file was made for just such networks as these."""
    here = {settings_digest(denoisers[name]) for name in file.components if name in denoisers}
    return None not in here and here == {file.ours.get("network")}


def _listed(components: Mapping[str, Any]) -> str:
    return f"it has {', '.join(components)}"


def _load(module: nn.Module, file: AdapterFile, component: str) -> None:
    state = file.state(component)
    rank = _rank(state, file.path)
    try:
        if not has_adapter(module):
            _attach_fitting(module, state, rank)
        _check_rank(module, rank)
        load_adapter_state(module, _rescaled(module, state, file.alpha(component, rank) / rank))
    except UserError as error:
        origin = f" (trained on {file.ours['checkpoint']!r})" if "checkpoint" in file.ours else ""
        raise UserError(f"adapter {str(file.path)!r}{origin} does not fit: {error}") from error


def _rescaled(module: nn.Module, state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The state for a network whose adapter has its own scale, so that scale * B A stays what the file means."""
    scales = {f"{name}.lora_B.weight": scale / layer.scaling[NAME] for name, layer in lora_layers(module).items()}
    return {name: weight * scales.get(name, 1.0) for name, weight in state.items()}


def _rank(state: Mapping[str, Tensor], path: Path) -> int:
    ranks = {len(weight) for name, weight in state.items() if name.endswith("lora_A.weight")}
    if len(ranks) != 1:
        raise UserError(f"adapter {str(path)!r} has layers of ranks {sorted(ranks)}: one rank for all is needed")
    return ranks.pop()


def _check_rank(module: nn.Module, rank: int) -> None:
    """Raises `UserError` unless the network's adapter has this rank."""
    own = len(factor_a(next(iter(lora_layers(module).values()))))
    if own != rank:
        raise UserError(f"it has rank {rank}, and the adapter here {own}: set adapter.rank to {rank}")


def _attach_fitting(module: nn.Module, state: Mapping[str, Tensor], rank: int) -> None:
    """Attaches an adapter to the layers that the state names, once it is sure that all exist and fit."""
    names = {name.rsplit(".lora_", 1)[0] for name in state}
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, ADAPTABLE)}
    expected = {f"{name}.lora_{factor}.weight": layers.get(name) for name in names for factor in "AB"}
    check_names(state, {name: layer for name, layer in expected.items() if layer is not None})
    for name in names:
        weight = layers[name].weight
        check_shape(name + ".lora_A.weight", state[name + ".lora_A.weight"].shape, (rank, *weight.shape[1:]))
        check_shape(name + ".lora_B.weight", state[name + ".lora_B.weight"].shape[:2], (len(weight), rank))
    inject(module, sorted(names), rank, rank)
