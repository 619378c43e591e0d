"""An ONNX graph, operation by operation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from torchbeats.version import __version__

OPSET = 17  # the first with DFT and LayerNormalization: ONNX Runtime reads it since 1.12, of 2022
IR_VERSION = 8  # of that time too
# Weights from -64 to 64: processors without VNNI add pairs of 8-bit products in 16 bits, and cut off what is more.
INT8_RANGE = 64
INPUT_RANGE = 127
LEAST_RANGE = 1e-6  # of inputs: a step must not be zero where all sounds were silent
TINY = torch.finfo(torch.float32).tiny


class Graph:
    """An ONNX graph that grows: each method adds what computes one value, and returns the value's name.

    Args:
        int8: products with weights are computed in 8-bit integers.
        ranges: largest magnitude of what enters each such product, as `Observing` names them: inputs are rounded by
            these, and written as quantised and dequantised values, which runtimes compute in integers. Without them
            inputs are rounded by the range that they turn out to have.
    """

    def __init__(self, int8: bool = False, ranges: Mapping[str, float] | None = None) -> None:
        self.int8, self.bytes, self._ranges = int8 or ranges is not None, 0, ranges
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._constants: dict[tuple[Any, ...], str] = {}
        self._quantised: dict[str, list[str]] = {}
        self._rounded: dict[tuple[str, float], str] = {}
        self._scope = ""

    @property
    def static(self) -> bool:
        """Whether values are rounded by known ranges."""
        return self._ranges is not None

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Around a part whose values' names begin with this one."""
        outer, self._scope = self._scope, f"{self._scope}{name}/"
        yield
        self._scope = outer

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """One operation with one result."""
        return self.split(operator, *inputs, results=1, **attributes)[0]

    def split(self, operator: str, *inputs: str, results: int, **attributes: Any) -> list[str]:
        """One operation with several results."""
        from onnx import helper

        name = f"{self._scope}{operator}_{len(self._nodes)}"
        names = [name] if results == 1 else [f"{name}:{index}" for index in range(results)]
        self._nodes.append(helper.make_node(operator, inputs, names, name, **attributes))
        return names

    def weight(self, value: Tensor | np.ndarray[Any, Any], name: str) -> str:
        """A constant with a name of its own."""
        from onnx import numpy_helper

        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        self._weights.append(numpy_helper.from_array(np.asarray(array, order="C"), self._scope + name))
        self.bytes += array.nbytes
        return self._scope + name

    def integers(self, *values: int) -> str:
        """A list of int64."""
        return self._constant(np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """One int64, without an axis."""
        return self._constant(np.array(value, np.int64))

    def integer_array(self, values: Tensor) -> str:
        """int64 of any shape."""
        return self._constant(values.numpy())

    def number(self, value: float) -> str:
        """One float32, without an axis."""
        return self._constant(np.array(value, np.float32))

    def _constant(self, array: np.ndarray[Any, Any]) -> str:
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self._constants:
            scope, self._scope = self._scope, ""
            self._constants[key] = self.weight(array, f"constant_{len(self._constants)}")
            self._scope = scope
        return self._constants[key]

    def input(self, name: str, kind: str, shape: Sequence[str | int]) -> str:
        """A value that the caller gives. ``kind`` is FLOAT or INT64."""
        from onnx import TensorProto, helper

        self._inputs.append(helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape))
        return name

    def output(self, value: str, name: str, kind: str, shape: Sequence[str | int]) -> None:
        """A value that the caller gets."""
        from onnx import TensorProto, helper

        self._nodes.append(helper.make_node("Identity", [value], [name], name))
        self._outputs.append(helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape))

    def serialized(self, metadata: Mapping[str, str] | None = None) -> bytes:
        """The graph as a file has it."""
        from onnx import helper

        proto = helper.make_model(
            helper.make_graph(self._nodes, "beats", self._inputs, self._outputs, self._weights),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="torchbeats",
            producer_version=__version__,
        )
        helper.set_model_props(proto, dict(metadata or {}))
        return cast("bytes", proto.SerializeToString())

    # --- what occurs often

    def cast(self, x: str, kind: str) -> str:
        """``x`` as FLOAT, DOUBLE or INT64."""
        from onnx import TensorProto

        return self.add("Cast", x, to=getattr(TensorProto, kind))

    def size(self, x: str, axis: int) -> str:
        """Length of an axis, as a list of one integer."""
        return self.add("Shape", x, start=axis, end=axis + 1)

    def range(self, end: str) -> str:
        """``0, 1, … end - 1``, where ``end`` is a list of one integer."""
        return self.add("Range", self.integer(0), self.add("Squeeze", end), self.integer(1))

    def behind(self, counts: str, size: str) -> str:
        """Mask ``(B, size)`` of what lies behind each row's own items; see `torchbeats.patches.mask_behind`."""
        return self.add("GreaterOrEqual", self.range(size), self.add("Unsqueeze", counts, self.integers(1)))

    def norm(self, x: str, norm: nn.LayerNorm, name: str) -> str:
        """Layer norm over the last axis."""
        with self.scope(name):
            weight, bias = self.weight(norm.weight, "weight"), self.weight(norm.bias, "bias")
            return self.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)

    def linear(self, x: str, weight: Tensor, bias: Tensor | None, name: str, exact: bool = False) -> str:
        """``x @ weight.T + bias``, in float32 where ``exact``."""
        with self.scope(name):
            if exact:
                y = self.add("MatMul", x, self.weight(weight.t(), "weight"))
            elif self.int8 and self._ranges is None:
                y = self._int8_product(x, weight.detach().cpu())
            else:
                y = self.add("MatMul", self.rounded(x, "input"), self.rounded_weight(weight.t(), 1))
            return y if bias is None else self.add("Add", y, self.weight(bias, "bias"))

    def _int8_product(self, x: str, weight: Tensor) -> str:
        """``x @ weight.T``: inputs rounded to one scale, found as they come; weights to one for each output."""
        if x not in self._quantised:  # queries, keys and values have the same
            self._quantised[x] = self.split("DynamicQuantizeLinear", x, results=3)
        rounded, scale, zero = self._quantised[x]
        integers, steps = integers_and_steps(weight, 0)
        y = self.add("MatMulInteger", rounded, self.weight(integers.t(), "weight"), zero)
        return self.add("Mul", self.cast(y, "FLOAT"), self.add("Mul", scale, self.weight(steps, "weight_scale")))

    # --- rounding by known ranges

    def rounded(self, x: str, name: str) -> str:
        """``x``, which enters a product, in steps of its range; as it is, where ranges are not known."""
        if self._ranges is None:
            return x
        step = max(self._ranges[self._scope + name], LEAST_RANGE) / INPUT_RANGE
        if (x, step) not in self._rounded:  # queries, keys and values have the same
            scale, zero = self.number(step), self._constant(np.array(0, np.int8))
            integers = self.add("QuantizeLinear", x, scale, zero)
            self._rounded[x, step] = self.add("DequantizeLinear", integers, scale, zero)
        return self._rounded[x, step]

    def rounded_weight(self, weight: Tensor, axis: int) -> str:
        """A weight in steps of its own for each index of an axis, the outputs; as it is, where ranges are not known."""
        if self._ranges is None:
            return self.weight(weight, "weight")
        integers, steps = integers_and_steps(weight, axis)
        return self.in_steps(self.weight(integers, "weight"), steps, axis)

    def in_steps(self, integers: str, steps: Tensor, axis: int) -> str:
        """Integers times the size of a step for each index of an axis."""
        scale = self.weight(steps, "weight_scale")
        return self.add("DequantizeLinear", integers, scale, self._constant(np.zeros(len(steps), np.int8)), axis=axis)


def integers_and_steps(weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """A weight as 8-bit integers, and the size of a step for each index of an axis.

    Args:
        weight: of any shape.
        axis: of the outputs.

    Returns:
        int8 of the same shape; ``(outputs,)`` float32.
    """
    weight = weight.detach().cpu()
    steps = weight.abs().amax([other for other in range(weight.dim()) if other != axis]).clamp_min(TINY) / INT8_RANGE
    shape = [-1 if other == axis else 1 for other in range(weight.dim())]
    return (weight / steps.view(shape)).round().to(torch.int8), steps


class Observing(Graph):
    """A graph in float32 which also gives how large what enters each product becomes.

    Attributes:
        observed: names of those outputs, by the names that `Graph` wants its ranges to have.
    """

    def __init__(self) -> None:
        super().__init__()
        self.observed: dict[str, str] = {}

    def rounded(self, x: str, name: str) -> str:
        """``x`` itself, whose largest magnitude becomes an output."""
        self.observed[self._scope + name] = f"observed/{len(self.observed)}"
        largest = self.add("ReduceMax", self.add("Abs", x), keepdims=0)
        self.output(largest, self.observed[self._scope + name], "FLOAT", ())
        return x
