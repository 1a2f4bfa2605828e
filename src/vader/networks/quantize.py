"""Quantisation: frozen weights wait in 8 bits, and become the layer's own type again for as long as it works.

In goes a network with its adapter, it leaves with the same modules, whose frozen linear and convolution layers within
its blocks hold codes and a scale for each of their outputs. Unlike every other technique it changes numbers: it rounds
weights, once, before the run (docs/memory.md says by how much). All that is computed is in the layer's own type.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vader.errors import UserError
from vader.networks.recompute import network_blocks
from vader.networks.techniques import Role, Stage, Technique

Code = Literal["int8", "fp8"]
# What a code is, and the largest that is used. A row of weights is near to normal, its largest some four times its
# standard deviation: 127 even steps up to there are finer than fp8's three bits after the first.
CODES: dict[Code, tuple[torch.dtype, float]] = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}
QUANTIZED = ("denoiser", "text", "reward")  # kinds of networks; the decoder is small, and its errors are seen


class Quantize(Technique):
    """Frozen weights of the denoisers', encoders' and rewards' blocks take 8 bits each; this rounds them.

    Args:
        to: int8, or fp8 (e4m3): as many bytes, and the larger error.
    """

    stage: ClassVar[Stage] = Stage.QUANTIZE

    def __init__(self, to: Code = "int8") -> None:
        self.to = to

    def prepare(self, network: nn.Module, role: Role) -> None:
        if role.kind in QUANTIZED and not quantize_blocks(network, self.to) and role.kind == "denoiser":
            raise UserError(
                f"memory technique 'quantize' finds no frozen linear or convolution layer in blocks of {role.name!r} "
                "(module lists): leave it out"
            )


def quantize_blocks(network: nn.Module, to: Code = "int8") -> int:
    """Quantises the layers of a network's blocks in place, a LoRA's base layers among them.

    What lies outside the blocks stays: first and last layers, embeddings and heads are few and count the most. So do
    layers that are trained, and subclasses, which may look at their weights in ways of their own.

    Returns:
        How many layers are quantised now that were not.
    """
    layers = [layer for block in network_blocks(network) for layer in block.modules() if _can_be(layer)]
    for layer in layers:
        _quantize(layer, to)
    return len(layers)


def _can_be(layer: nn.Module) -> bool:
    if type(layer) not in KINDS or any(parameter.requires_grad for parameter in layer.parameters()):
        return False
    return isinstance(layer, nn.Linear) or (layer.padding_mode == "zeros" and not isinstance(layer.padding, str))


def _quantize(layer: Any, to: Code) -> None:
    """The layer becomes another class's object, and stays the same: whoever holds it need not be told."""
    weight = layer.weight.detach()
    codes, scales = quantized(weight, to)
    del layer.weight
    layer.__class__ = KINDS[type(layer)]
    layer.working = weight.dtype
    # Buffers: what asks the network for the type of its parameters means the type that it works in.
    layer.register_buffer("codes", codes)
    layer.register_buffer("scales", scales)


def quantized(weight: Tensor, to: Code) -> tuple[Tensor, Tensor]:
    """Codes `[out, ...]` and float32 scales `[out, 1, ...]`, whose product is the weight `[out, ...]` but for rounding.

    A row's largest weight gets the largest code, so that int8 errs by half a scale, 1/254 of that weight, at most.
    """
    dtype, largest = CODES[to]
    rows = weight.float()
    scales = rows.abs().amax(dim=tuple(range(1, rows.ndim)), keepdim=True).clamp(min=1e-12) / largest  # no row of zeros
    codes = (rows / scales).clamp(-largest, largest)
    return (codes if dtype.is_floating_point else codes.round()).to(dtype), scales


class Quantized(nn.Module):
    """A frozen layer without a weight of its own: `weight` is made when it is asked for, in the working type."""

    codes: Tensor
    scales: Tensor
    working: torch.dtype
    bias: Any

    def whole(self) -> Tensor:
        """Codes are exact in every working type; their product with the scales is rounded to it once."""
        return self.codes.to(self.working).mul_(self.scales)

    weight: Any = property(whole)

    def forward(self, x: Tensor) -> Tensor:
        return Result.apply(x, self)

    def result(self, x: Tensor) -> Tensor:
        """Of `x`, as the plain layer."""
        raise NotImplementedError

    def pulled(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """The gradient at the input, which has this shape."""
        raise NotImplementedError


class Result(torch.autograd.Function):
    """A quantised layer's result. Its graph keeps neither weight nor input: backward makes the weight once more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Quantized) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return layer.result(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.layer.pulled(gradient, ctx.shape), None


class QuantizedLinear(Quantized, nn.Linear):
    def result(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def pulled(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        return gradient @ self.weight


class _QuantizedConvolution(Quantized):
    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    groups: int

    def result(self, x: Tensor) -> Tensor:
        return torch.convolution(x, self.weight, self.bias, *self._geometry())

    def pulled(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        shaped = gradient.new_empty(1).expand(shape)  # of the input only the shape is asked
        wanted = (True, False, False)
        backward = torch.ops.aten.convolution_backward
        return backward(gradient, shaped, self.weight, None, *self._geometry(), wanted)[0]

    def _geometry(self) -> tuple[Any, ...]:
        """Stride, padding, dilation, whether it is transposed, its output padding, groups."""
        return self.stride, self.padding, self.dilation, False, (0,) * len(self.stride), self.groups


class QuantizedConv1d(_QuantizedConvolution, nn.Conv1d): ...


class QuantizedConv2d(_QuantizedConvolution, nn.Conv2d): ...


class QuantizedConv3d(_QuantizedConvolution, nn.Conv3d): ...


KINDS: dict[type, type] = {
    nn.Linear: QuantizedLinear,
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Conv3d: QuantizedConv3d,
}
