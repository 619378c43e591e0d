"""The small parts: activations, gated linear units, padding, gradient scaling, quantisation noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchbeats import kernels
from torchbeats.config import shown

Activation = Callable[[Tensor], Tensor]


def gelu(x: Tensor) -> Tensor:
    """Gaussian error linear unit, computed in float32 and returned in ``x``'s dtype (arXiv 1606.08415)."""
    return F.gelu(x.float()).type_as(x)


def gelu_accurate(x: Tensor) -> Tensor:
    """The tanh form of `gelu`: ``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))``."""
    return F.gelu(x, approximate="tanh")


def _identity(x: Tensor) -> Tensor:
    return x


# "glu" is linear here because a layer that is asked for it has its gate inside the first projection (`GLU_Linear`).
_ACTIVATIONS: dict[str, Activation] = {
    "relu": F.relu,
    "gelu": gelu,
    "gelu_fast": gelu_accurate,
    "gelu_accurate": gelu_accurate,
    "tanh": torch.tanh,
    "linear": _identity,
    "glu": _identity,
}


def get_activation_fn(name: str) -> Activation:
    """The activation called ``name``: relu, gelu, gelu_accurate, tanh, linear or glu.

    ``gelu_fast`` is a deprecated alias of ``gelu_accurate`` and warns.

    Raises:
        RuntimeError: any other name.
    """
    if name not in _ACTIVATIONS:
        raise RuntimeError(f"There is no activation called {shown(name)}. Choose one of: {', '.join(_ACTIVATIONS)}.")
    if name == "gelu_fast":
        warnings.warn('The activation "gelu_fast" is now called "gelu_accurate".', DeprecationWarning, stacklevel=2)
    return _ACTIVATIONS[name]


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, whose mask is drawn quickly on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Of any shape."""
        return kernels.drop(input, self.p) if self.training else input


class Swish(nn.Module):
    """``x * sigmoid(x)`` (arXiv 1710.05941)."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise; any shape."""
        return F.silu(x)


class GLU_Linear(nn.Module):
    """A linear layer whose second half of outputs gates the first (arXiv 2002.05202).

    Args:
        input_dim: channels in.
        output_dim: channels out; the layer computes twice as many.
        glu_type: what the gate passes through: sigmoid, swish, relu, gelu, or "bilinear" for nothing.
        bias_in_glu: the linear layer has a bias.
    """

    _GATES: dict[str, Activation] = {  # noqa: RUF012 - read only
        "sigmoid": torch.sigmoid,
        "swish": F.silu,
        "relu": F.relu,
        "gelu": F.gelu,
        "bilinear": _identity,
    }

    def __init__(self, input_dim: int, output_dim: int, glu_type: str = "sigmoid", bias_in_glu: bool = True) -> None:
        super().__init__()
        if glu_type not in self._GATES:
            raise ValueError(f"There is no gate called {glu_type!r}. Choose one of: {', '.join(self._GATES)}.")
        self.glu_type = glu_type
        self.output_dim = output_dim
        self.linear = nn.Linear(input_dim, 2 * output_dim, bias=bias_in_glu)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., input_dim)`` to ``(..., output_dim)``."""
        value, gate = self.linear(x).chunk(2, dim=-1)
        return value * self._GATES[self.glu_type](gate)


class SamePad(nn.Module):
    """Cuts what a convolution padded by half its kernel returns too much, so that lengths stay the same.

    Args:
        kernel_size: of the convolution in front.
        causal: the convolution was padded by ``kernel_size - 1``, and all of the surplus at the end goes.
    """

    def __init__(self, kernel_size: int, causal: bool = False) -> None:
        super().__init__()
        self.remove = kernel_size - 1 if causal else 1 - kernel_size % 2

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, T + surplus)`` to ``(B, C, T)``."""
        return x[..., : x.size(-1) - self.remove]


class GradMultiply(torch.autograd.Function):
    """``GradMultiply.apply(x, scale)`` is ``x``, but its gradient is multiplied by ``scale``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        """Remember the scale; the values pass unchanged."""
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Scale the gradient."""
        return grad * ctx.scale, None


class _QuantNoise:
    """Mixed into a layer's class by `quant_noise`: in training, the forward pass sees a noisy copy of the weight."""

    quant_noise_p: float
    quant_noise_block: int
    training: bool

    def noisy(self, weight: Tensor) -> Tensor:
        """``weight`` with a random share of its blocks zeroed and the rest scaled up, in training."""
        p, block = self.quant_noise_p, self.quant_noise_block
        if not self.training:
            return weight
        if weight.dim() == 4 and weight.shape[2:] != (1, 1):  # k x k convolution: whole kernels
            dropped = weight.new_empty(*weight.shape[:2], 1, 1).bernoulli_(p)
        else:  # blocks of consecutive inputs
            rows, columns = weight.shape[:2]
            dropped = weight.new_empty(rows, columns // block).bernoulli_(p).repeat_interleave(block, dim=1)
            dropped = dropped.view(rows, columns, *[1] * (weight.dim() - 2))
        noisy = weight * (1 - dropped) / (1 - p) if p < 1 else torch.zeros_like(weight)
        return weight + (noisy - weight).detach()  # straight-through: the gradient is that of the weight itself


class _NoisyLinear(_QuantNoise, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.noisy(self.weight), self.bias)


class _NoisyEmbedding(_QuantNoise, nn.Embedding):
    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(
            index,
            self.noisy(self.weight),
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )


class _NoisyConv2d(_QuantNoise, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.noisy(self.weight), self.bias)


_NOISY: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _NoisyLinear,
    nn.Embedding: _NoisyEmbedding,
    nn.Conv2d: _NoisyConv2d,
}

Layer = TypeVar("Layer", bound=nn.Module)


def quant_noise(module: Layer, p: float, block_size: int) -> Layer:
    """Train ``module`` to bear quantisation (Fan et al., 2020, arXiv 2004.07320).

    In training each forward pass zeroes every block of ``block_size`` consecutive input weights (every whole kernel of
    a k x k convolution) with probability ``p`` and scales the rest by ``1 / (1 - p)``. The stored weight stays as it
    is and receives the gradient straight through. In evaluation nothing changes.

    Args:
        module: `nn.Linear`, `nn.Embedding` or `nn.Conv2d`; changed in place.
        p: probability of a block; 0 leaves the module alone.
        block_size: must divide the inputs (embedding dimensions; input channels of a 1 x 1 convolution; k * k of a
            k x k convolution).

    Returns:
        ``module``.

    Raises:
        TypeError: another kind of module.
        ValueError: ``p`` outside [0, 1], or a block size that does not divide.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p is a probability and must lie in [0, 1], not {p}.")
    if p == 0:
        return module
    # A subclass with a forward of its own would lose it.
    kind = next((kind for kind in _NOISY if isinstance(module, kind) and type(module).forward is kind.forward), None)
    if kind is None:
        names = ", ".join(kind.__name__ for kind in _NOISY)
        raise TypeError(f"quant_noise takes one of {names}, not {type(module).__name__}.")
    shape = module.weight.shape
    assert isinstance(shape, torch.Size)
    kernel = shape[2:].numel()  # 1 for all but k x k convolutions
    divided, what = (kernel, "the kernel's elements") if kernel > 1 else (shape[1], "the inputs")
    if block_size < 1 or divided % block_size:
        raise ValueError(f"block_size must divide {what} of {kind.__name__} ({divided}); {block_size} does not.")
    # Swapping the class rather than hooking keeps the state dict, deep copies and pickles of the module as they are.
    object.__setattr__(module, "__class__", _NOISY[kind])
    vars(module).update(quant_noise_p=p, quant_noise_block=block_size)
    return module
