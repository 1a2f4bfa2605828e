"""LoRA files under the names of a model's original code, as ComfyUI and the trainers around it write and read them.

A key is `diffusion_model.<original name>.lora_A.weight` (and B), or `lora_down` and `lora_up`; a scale that is not in
the weights is `<original name>.alpha`, over the rank. Others write `lora_unet_<original name, dots as underscores>`,
which is read and never written: diffusers wants all layers of a block then. Each family registers its names; files of
all of them are read wherever adapters are, and written by `vader export --format comfyui`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from vader.errors import UserError

PREFIX = "diffusion_model."
FILE = "lora.safetensors"
EXPERTS = ("high_noise", "low_noise")  # what the files of two denoisers are for, the first denoiser's first
FLAT = re.compile(r"lora_unet_+(?P<name>[^.]+)(?P<rest>.+)")
FACTORS = {"lora_A": "lora_A", "lora_B": "lora_B", "lora_down": "lora_A", "lora_up": "lora_B"}


@dataclass(frozen=True)
class OriginalNames:
    """How one family's layers are called in its original code.

    Attributes:
        component: the network that such files are for.
        inside: layers of a block, ours to theirs.
        outside: all other layers.
        blocks: what the list of blocks is called, by both: `blocks.N`.
        together: layers of a block that loaders take both or neither.
        experts: of denoisers that have a file each, what the files are called for.
        mark: what is in the name of one layer at least, and makes loaders recognise a file; None: a block's name.
        bare: whether trainers also write these names behind the component's, as if they were diffusers'.
    """

    component: str
    inside: Mapping[str, str]
    outside: Mapping[str, str]
    blocks: str = "blocks"
    together: tuple[str, str] | None = None
    experts: Mapping[str, str] | None = None
    mark: str | None = None
    bare: bool = False

    @cached_property
    def _backward(self) -> tuple[dict[str, str], dict[str, str]]:
        inside, outside = ({theirs: ours for ours, theirs in names.items()} for names in (self.inside, self.outside))
        return inside, outside

    def dotted(self, flat: str) -> str | None:
        """An original name whose dots were made underscores, as it was; None: it is none of this family's."""
        found, (inside, outside) = re.fullmatch(rf"{self.blocks}_(?P<number>\d+)_(?P<layer>.+)", flat), self._backward
        if found is None:
            return next((name for name in outside if name.replace(".", "_") == flat), None)
        layer = next((name for name in inside if name.replace(".", "_") == found["layer"]), None)
        return layer and f"{self.blocks}.{found['number']}.{layer}"

    def theirs(self, layer: str) -> str | None:
        """A layer's original name; None: it has none that loaders know."""
        return self._renamed(layer, self.inside, self.outside)

    def ours(self, layer: str) -> str | None:
        """The layer of an original name; None: it is none of this family's."""
        return self._renamed(layer, *self._backward)

    def fuse(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """An adapter's weights by the layers that it has in the original code; most have the same."""
        return weights

    def split(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The opposite of `fuse`."""
        return weights

    def recognised(self, theirs: Collection[str]) -> bool:
        """Whether loaders take a file with these layers for one of this family."""
        return any(name.startswith(f"{self.blocks}.") if self.mark is None else self.mark in name for name in theirs)

    def _renamed(self, layer: str, inside: Mapping[str, str], outside: Mapping[str, str]) -> str | None:
        found = re.fullmatch(rf"(?P<block>{self.blocks}\.\d+\.)?(?P<layer>.+)", layer)
        if found is None:
            return None
        block = found["block"] or ""
        name = (inside if block else outside).get(found["layer"])
        return name and block + name


_families: dict[str, OriginalNames] = {}


def register_names(family: str, names: OriginalNames) -> None:
    """Has files under these names read as adapters, and adapters of the family written under them."""
    _families[family] = names


def names_of(family: object) -> OriginalNames:
    """Raises `UserError` if no program is known to read this family's adapters under original names."""
    if not isinstance(family, str) or family not in _families:
        known = ", ".join(sorted(_families))
        raise UserError(f"ComfyUI's names are known for adapters of {known}, not of {family!r}: use --format diffusers")
    return _families[family]


def original_file(expert: str | None = None) -> str:
    """The name of a file under original names; of an expert, with what it is for."""
    return FILE if expert is None else FILE.replace(".", f"_{expert}.")


# ---- written ----


def to_original(weights: Mapping[str, Tensor], names: OriginalNames) -> dict[str, Tensor]:
    """An adapter's `<module path>.lora_A.weight` (and B) under original names; its scale must be in the weights.

    Raises:
        UserError: a layer has no name that loaders know, or lacks one that they want beside it.
    """
    weights = names.fuse(weights)
    layers = {name.rsplit(".lora_", 1)[0] for name in weights}
    _check_together(layers, names)
    named = {layer: names.theirs(layer) for layer in layers}
    if strange := sorted(layer for layer, theirs in named.items() if theirs is None):
        raise UserError(f"layer {strange[0]!r} has no name that ComfyUI's loaders read: use --format diffusers")
    if not names.recognised([theirs for theirs in named.values() if theirs]):
        what = "in a block" if names.mark is None else f"that is {names.mark!r}"
        raise UserError(f"the adapter has no layer {what}, and loaders look for one: use --format diffusers")
    return {
        f"{PREFIX}{named[layer]}.lora_{factor}": weight
        for name, weight in weights.items()
        for layer, factor in [name.rsplit(".lora_", 1)]
    }


def _check_together(layers: Collection[str], names: OriginalNames) -> None:
    for here, there in [names.together, names.together[::-1]] if names.together else []:
        for layer in layers:
            if layer.endswith(here) and layer.removesuffix(here) + there not in layers:
                raise UserError(f"layer {layer!r} is read only beside its {there!r}: use --format diffusers")


# ---- read ----


def is_original(weights: Collection[str]) -> bool:
    plain = all(name.startswith(PREFIX) or FLAT.fullmatch(name) for name in weights)
    return bool(weights) and (plain or any(names.bare and names.recognised(weights) for names in _families.values()))


def from_original(weights: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    """A file's weights as ours, `<component>.<module path>.lora_A.weight` (and B), alpha folded into B.

    Raises:
        UserError: they are of no family whose names are known, or of more than LoRA's two factors.
    """
    found = {_plain(name): weight for name, weight in weights.items()}
    names = _family_of(found, label)
    ours: dict[str, Tensor] = {}
    for name, weight in found.items():
        if name.endswith(".alpha"):
            continue
        layer, factor = _parts(name, label)
        ours[f"{names.ours(layer)}.{factor}.weight"] = weight.float() * _scale(found, layer, factor)
    return {f"{names.component}.{name}": weight for name, weight in names.split(ours).items()}


def _plain(name: str) -> str:
    """A key without its prefix, its dots back where they were underscores and a family knows the name."""
    flat = FLAT.fullmatch(name)
    if flat is None:
        return re.sub(rf"^(?:{re.escape(PREFIX)}|transformer\.)", "", name)
    known = (names.dotted(flat["name"]) for names in _families.values())
    return next(filter(None, known), flat["name"]) + flat["rest"]


def _family_of(found: Collection[str], label: str) -> OriginalNames:
    layers = {_parts(name, label)[0] for name in found if not name.endswith(".alpha")}
    for names in _families.values():
        if all(names.ours(layer) for layer in layers):
            return names
    strange = next((layer for layer in layers if not any(one.ours(layer) for one in _families.values())), "a mixture")
    raise UserError(f"{label}: it is under the names of no model that is known here ({strange})")


def _parts(name: str, label: str) -> tuple[str, str]:
    """A key as the layer's name and our word for the factor."""
    layer, _, factor = name.removesuffix(".weight").rpartition(".")
    if not name.endswith(".weight") or factor not in FACTORS:
        raise UserError(f"{label}: it holds {name!r}, which is no factor of a LoRA")
    return layer, FACTORS[factor]


def _scale(found: Mapping[str, Tensor], layer: str, factor: str) -> float:
    """What goes into a factor: alpha over rank into B, where there is an alpha."""
    alpha = found.get(f"{layer}.alpha")
    if alpha is None or factor != "lora_B":
        return 1.0
    (rank,) = {len(found[key]) for key in (f"{layer}.lora_A.weight", f"{layer}.lora_down.weight") if key in found}
    return float(alpha) / rank
