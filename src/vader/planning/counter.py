"""Counts what is alive: the bytes of every tensor's storage while a program runs, and its floating-point operations.

On the meta device tensors have shapes and types and no data, so that a step of any size can be walked through in
seconds; what is asked of their values is answered with one. Numbers are those of tensors: an allocator's rounding, the
libraries' workspaces and the driver's own part come on top.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

ATTENTION_BACKWARD = 2.5  # times the forward's operations: it is computed once more for its gradient


class Counter(TorchDispatchMode):
    """Within, every new tensor of the device is counted until its storage is gone.

    Attributes:
        now, peak: bytes alive, and the most there were.
        peaks: the most in each phase (`phase`).
        host: bytes that wait in CPU memory, and `host_peak`, the most there were.
        operations: floating-point operations so far, a multiply-add being two.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.now = self.peak = self.host = self.host_peak = self.operations = 0
        self.peaks: dict[str, int] = {}
        self.phase = "other"
        self._known: set[int] = set()
        self._waiting = False

    # ---- what is alive ----

    def add(self, tensor: Tensor) -> None:
        """Counts a tensor's storage, unless it is known or elsewhere."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if tensor.device.type != self.device.type or key in self._known:
            return
        self._known.add(key)
        waiting = self._waiting
        self._changed(size, waiting)
        weakref.finalize(storage, self._gone, key, size, waiting)

    def _gone(self, key: int, size: int, waiting: bool) -> None:
        self._known.discard(key)
        self._changed(-size, waiting)

    def _changed(self, size: int, waiting: bool) -> None:
        if waiting:
            self.host += size
            self.host_peak = max(self.host_peak, self.host)
        else:
            self.now += size
            self.reached(self.now)

    def reached(self, size: int) -> None:
        """So many bytes are alive for a moment."""
        self.peak = max(self.peak, size)
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), size)

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Within, new tensors stand for copies in CPU memory."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def offload(self) -> AbstractContextManager[None]:
        """Within, what the backward pass needs waits in CPU memory, as `vader.networks.offload` does it."""

        def pack(tensor: Tensor) -> Tensor:
            with self.elsewhere():
                return torch.empty_like(tensor)

        return torch.autograd.graph.saved_tensors_hooks(pack, torch.empty_like)

    # ---- every operation ----

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = self._answer(operation, args, kwargs)
        if result is NotImplemented:
            result = operation(*args, **kwargs)
        if count := flop_registry.get(operation.overloadpacket):
            self.operations += count(*args, **kwargs, out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result

    def _answer(self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What stands for the values of tensors without data."""
        if not (args and isinstance(args[0], Tensor) and args[0].is_meta):
            return NotImplemented
        if operation is torch.ops.aten._local_scalar_dense.default:
            return _ONE.get(args[0].dtype, 1.0)
        target = kwargs.get("device")
        if operation is torch.ops.aten._to_copy.default and target is not None and torch.device(target).type == "cpu":
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return NotImplemented


_ONE: dict[torch.dtype, Any] = {torch.bool: True, torch.int64: 1, torch.int32: 1}


# ---- attention as GPUs do it ----


class _Fused(torch.autograd.Function):
    """Attention without the matrix of all pairs: only its result and one number a row are kept."""

    counter: ClassVar[Counter]

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        *batch, heads, length = query.shape[:-1]
        result = query.new_empty(*batch, length, heads, value.shape[-1]).transpose(-3, -2)  # as the kernels lay it
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32))
        ctx.operations = 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        _Fused.counter.operations += ctx.operations
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        _Fused.counter.operations += int(ATTENTION_BACKWARD * ctx.operations)
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@contextmanager
def fused_attention(counter: Counter) -> Iterator[None]:
    """Within, attention on the meta device needs what it needs on a GPU; there torch would write it out."""
    real, _Fused.counter = F.scaled_dot_product_attention, counter

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (_Fused.apply if query.is_meta else _plain(real, args, kwargs))(query, key, value)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real


def _plain(real: Callable[..., Tensor], args: Any, kwargs: Any) -> Callable[..., Tensor]:
    return lambda *tensors: real(*tensors, *args, **kwargs)


# ---- the same pass again ----


class Remembered:
    """A network's forward that is walked once for each kind of input while there is no graph.

    A sampling prefix is the same pass over and over: after the first, its height and operations are known.
    """

    def __init__(self, network: nn.Module, counter: Counter) -> None:
        self.forward, self.counter = network.forward, counter
        self.passes: dict[Any, tuple[int, int, Any]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        key = str(tree_map(_kind, (args, kwargs)))
        if key not in self.passes:
            self.passes[key] = self._walked(args, kwargs)
            return tree_map(_empty, self.passes[key][2])
        height, operations, result = self.passes[key]
        self.counter.operations += operations
        self.counter.reached(self.counter.now + height)
        return tree_map(_empty, result)

    def _walked(self, args: Any, kwargs: Any) -> tuple[int, int, Any]:
        counter = self.counter
        outer, counter.peak = counter.peak, 0
        before, operations = counter.now, counter.operations
        result = tree_map(_kind, self.forward(*args, **kwargs))
        height, counter.peak = counter.peak - before, max(outer, counter.peak)
        return height, counter.operations - operations, result


class _Kind:
    """A tensor's shape, type and device, printed as such."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device

    def __repr__(self) -> str:
        return f"{tuple(self.shape)} {self.dtype}"


def _kind(value: Any) -> Any:
    return _Kind(value) if isinstance(value, Tensor) else value


def _empty(value: Any) -> Any:
    if isinstance(value, _Kind):
        return torch.empty(value.shape, dtype=value.dtype, device=value.device)
    return value
