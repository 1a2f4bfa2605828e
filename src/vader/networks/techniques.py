"""The contract of a memory technique: a part of a recipe's `memory` list, built in or `module:Name`.

In goes the recipe's list, out come `Techniques`: what is done to each network before a run (`vader.networks.prepare`),
and what surrounds every denoising step that has a graph. No technique but `quantize` changes a number. Bring your own:
subclass `Technique`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from vader.errors import UserError
from vader.plugins import Part, explain_methods, explained, find_class, instantiate, is_built_in

TECHNIQUES = {
    "compile": "vader.networks.compile:Compile",
    "offload_activations": "vader.networks.offload:OffloadActivations",
    "park": "vader.networks.park:Park",
    "quantize": "vader.networks.quantize:Quantize",
    "recompute": "vader.networks.recompute:Recompute",
    "shard": "vader.networks.shard:Shard",
}


class Stage(IntEnum):
    """Where in the written order a technique acts on a network; `prepare` says why this order."""

    QUANTIZE = 1
    RECOMPUTE = 2
    COMPILE = 3
    SHARD = 4
    PARK = 5


@dataclass(frozen=True)
class Role:
    """What a network is for.

    Attributes:
        kind: what it does in the program.
        name: its component name in the model ("transformer_2", "vae"), or the reward's name in the recipe.
        device: where it is to work; its weights may still be on the CPU.
        recompute: how its family has it recomputed, given network and grain; None: as any network.
    """

    kind: Literal["denoiser", "decoder", "text", "reward"]
    name: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    recompute: Callable[[nn.Module, Any], object] | None = None


def _label(technique: Technique) -> str:
    return f"memory technique {type(technique).__name__!r}"


class Technique:
    """One way to need less memory. Options are the constructor's arguments; both methods may do nothing.

    Attributes:
        stage: where it acts in the written order.
        exact: whether it changes no result beyond rounding, so that a run may go on with or without it.
    """

    stage: ClassVar[Stage] = Stage.RECOMPUTE
    exact: ClassVar[bool] = False

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if not is_built_in(cls):
            explain_methods(cls, ("prepare", "gradient_step"), _label)

    def prepare(self, network: nn.Module, role: Role) -> None:
        """Changes a network in place, once, after its adapter is attached.

        Raises:
            UserError: it cannot be done here.
        """

    def gradient_step(self) -> AbstractContextManager[None]:
        """Surrounds every denoising step that has a graph."""
        return nullcontext()


class Techniques(tuple[Technique, ...]):
    """A recipe's techniques, in the order in which they act."""

    @contextmanager
    def gradient_step(self) -> Iterator[None]:
        """All of theirs, the first outermost."""
        with ExitStack() as stack:
            for technique in self:
                with explained(f"{_label(technique)} fails in gradient_step"):
                    stack.enter_context(technique.gradient_step())
            yield

    def try_out(self, device: torch.device) -> None:
        """One multiplication and its backward pass within each technique of the user's own, before a run starts.

        Raises:
            UserError: one fails, which it names.
        """
        for technique in self:
            if not is_built_in(type(technique)):
                with explained(f"{_label(technique)} fails in gradient_step"), torch.enable_grad():
                    with technique.gradient_step():
                        number = torch.ones(1, device=device, requires_grad=True)
                        product = number * number
                    product.backward()


def load_techniques(parts: Sequence[Part]) -> Techniques:
    """The techniques that a recipe lists, in the order of their stages, whatever the order of the list.

    Raises:
        UserError: no such technique or option, one is there twice, or two cannot go together.
    """
    counts = Counter(part.name for part in parts)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise UserError(f"memory names {twice[0]!r} twice: once is enough")
    if counts["quantize"] and counts["shard"]:
        raise UserError("memory techniques 'quantize' and 'shard' cannot go together yet: leave out one")
    return Techniques(sorted(map(_load, parts), key=lambda technique: technique.stage))


def inexact(parts: Sequence[Part]) -> list[Part]:
    """Those that change results, or may. Raises `UserError` if there is no such technique."""
    return [part for part in parts if not _class(part).exact]


def _load(part: Part) -> Technique:
    return instantiate(_class(part), f"memory technique {part.name!r}", part.options)


def _class(part: Part) -> type[Technique]:
    return find_class(part.name, "memory technique", TECHNIQUES, Technique)
