"""Original names of layers that are several of ours: queries, keys and values that are made by one matrix, say.

A fused layer's LoRA has the factors A of its parts above each other, and the factors B as blocks of one matrix: its
rank is the sum of theirs. All layers of a file get one rank, filled up with zeros, as loaders may give all the scale of
one. Read, such a layer is taken apart again, and what is zero is left out, so that the ranks are as they were.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vader.errors import UserError
from vader.networks.original_names import OriginalNames


class Blocks(NamedTuple):
    """One kind of block in the original code.

    Attributes:
        name: of their list: `name.N`.
        layers: ours to theirs.
        fused: theirs to ours, in the order of their rows, each with how many rows it has in relation to the others.
    """

    name: str
    layers: Mapping[str, str]
    fused: Mapping[str, Mapping[str, int]]


class Factors(NamedTuple):
    """A LoRA's of one layer: `[rank, in]` and `[out, rank]`."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class FusedNames(OriginalNames):
    """As `OriginalNames`, for blocks of several kinds, with fused layers in them.

    Attributes:
        kinds: the blocks by what we call their list.
    """

    kinds: Mapping[str, Blocks] = field(default_factory=dict)

    def theirs(self, layer: str) -> str | None:
        """See `OriginalNames.theirs`; a fused layer has its original name behind our block's."""
        blocks, number, rest = _taken_apart(layer)
        if blocks not in self.kinds:
            return self.outside.get(layer)
        kind = self.kinds[blocks]
        name = rest if rest in kind.fused else kind.layers.get(rest)
        return name and f"{kind.name}.{number}.{name}"

    def ours(self, layer: str) -> str | None:
        """See `OriginalNames.ours`; a fused layer keeps its original name behind our block's."""
        blocks, number, rest = _taken_apart(layer)
        for ours, kind in self.kinds.items():
            if blocks == kind.name:
                known = {name: name for name in kind.fused} | {name: one for one, name in kind.layers.items()}
                return known.get(rest) and f"{ours}.{number}.{known[rest]}"
        return next((ours for ours, theirs in self.outside.items() if theirs == layer), None)

    def dotted(self, flat: str) -> str | None:
        """See `OriginalNames.dotted`."""
        for kind in self.kinds.values():
            found = re.fullmatch(rf"{kind.name}_(?P<number>\d+)_(?P<layer>.+)", flat)
            for name in (*kind.fused, *kind.layers.values()) if found else ():
                if name.replace(".", "_") == found["layer"]:  # type: ignore[index]
                    return f"{kind.name}.{found['number']}.{name}"  # type: ignore[index]
        return next((name for name in self.outside.values() if name.replace(".", "_") == flat), None)

    # ---- written ----

    def fuse(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `OriginalNames.fuse`."""
        found = _factors(weights)
        for name, parts in self._fused(found).items():
            there = {part: found.pop(part) for part in parts if part in found}
            found[name] = _joined(there, parts)
        rank = max(len(factors.a) for factors in found.values())
        return _named({name: _filled(factors, rank) for name, factors in found.items()})

    def _fused(self, found: Mapping[str, Factors]) -> dict[str, dict[str, int]]:
        """The fused layers that some of the adapter's layers belong to: the names of all parts and their rows."""
        groups = {}
        for layer in found:
            blocks, number, rest = _taken_apart(layer)
            for name, parts in self.kinds[blocks].fused.items() if blocks in self.kinds else ():
                if rest in parts:
                    block = f"{blocks}.{number}."
                    groups[block + name] = {block + part: rows for part, rows in parts.items()}
        return groups

    # ---- read ----

    def split(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `OriginalNames.split`."""
        found: dict[str, Factors] = {}
        for layer, factors in _factors(weights).items():
            blocks, number, rest = _taken_apart(layer)
            parts = self.kinds[blocks].fused.get(rest) if blocks in self.kinds else None
            block = f"{blocks}.{number}."
            found |= {layer: factors} if parts is None else {block + name: one for name, one in _apart(factors, parts)}
        used = {layer: (factors.b != 0).any(dim=0) for layer, factors in found.items()}
        rank = max(int(columns.sum()) for columns in used.values()) or max(len(factors.a) for factors in found.values())
        return _named({layer: _filled(_kept(factors, used[layer]), rank) for layer, factors in found.items()})


def _taken_apart(layer: str) -> tuple[str, str, str]:
    """The list of blocks, the number and the rest of a layer's name, ours or theirs."""
    found = re.fullmatch(r"(\w+)\.(\d+)\.(.+)", layer)
    return (found[1], found[2], found[3]) if found else ("", "", layer)


def _factors(weights: Mapping[str, Tensor]) -> dict[str, Factors]:
    """Raises `UserError` if a layer has one factor alone."""
    layers = dict.fromkeys(name.rsplit(".lora_", 1)[0] for name in weights)
    if alone := [layer for layer in layers if any(f"{layer}.lora_{one}.weight" not in weights for one in "AB")]:
        raise UserError(f"the adapter has one factor alone of layer {alone[0]!r}")
    return {layer: Factors(*(weights[f"{layer}.lora_{factor}.weight"] for factor in "AB")) for layer in layers}


def _named(factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    return {
        f"{layer}.lora_{factor}.weight": weight.contiguous()
        for layer, pair in factors.items()
        for factor, weight in zip("AB", pair, strict=True)
    }


def _joined(there: Mapping[str, Factors], parts: Mapping[str, int]) -> Factors:
    """One layer's of those of its parts; where a part has none, its rows are zero."""
    name, one = next(iter(there.items()))
    unit = len(one.b) // parts[name]
    columns, rows, at = sum(len(factors.a) for factors in there.values()), [], 0
    for part, height in parts.items():
        b = there[part].b if part in there else one.b.new_zeros(height * unit, 0)
        rows.append(F.pad(b, (at, columns - at - b.shape[1])))
        at += b.shape[1]
    return Factors(torch.cat([there[part].a for part in parts if part in there]), torch.cat(rows))


def _apart(factors: Factors, parts: Mapping[str, int]) -> list[tuple[str, Factors]]:
    """A fused layer's parts with their factors, but for those whose update is nothing while another's is something."""
    unit = len(factors.b) // sum(parts.values())
    pieces = zip(parts, factors.b.split([height * unit for height in parts.values()]), strict=True)
    found = [(name, Factors(factors.a, b)) for name, b in pieces]
    return [(name, one) for name, one in found if one.b.any()] or found


def _filled(factors: Factors, rank: int) -> Factors:
    """The same update of a higher rank."""
    more = rank - len(factors.a)
    return Factors(F.pad(factors.a, (0, 0, 0, more)), F.pad(factors.b, (0, more)))


def _kept(factors: Factors, columns: Tensor) -> Factors:
    """The same update, without what counts for nothing in it; whole where that is all."""
    return Factors(factors.a[columns], factors.b[:, columns]) if columns.any() else factors
