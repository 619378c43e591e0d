"""An ONNX graph, operation by operation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Weights from -64 to 64: processors without VNNI add pairs of 8-bit products in 16 bits, and cut off what is more.
INT8_RANGE = 64


class Graph:
    """An ONNX graph that grows: each method adds what computes one value, and returns the value's name.

    Args:
        int8: products with weights are computed in 8-bit integers.
    """

    def __init__(self, int8: bool = False) -> None:
        self.int8, self.bytes = int8, 0
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._constants: dict[tuple[Any, ...], str] = {}
        self._quantised: dict[str, list[str]] = {}
        self._scope = ""

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

    def proto(self, name: str) -> Any:
        """The graph as ONNX has it."""
        from onnx import helper

        return helper.make_graph(self._nodes, name, self._inputs, self._outputs, self._weights)

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
            if self.int8 and not exact:
                y = self._int8_product(x, weight.detach().cpu())
            else:
                y = self.add("MatMul", x, self.weight(weight.t(), "weight"))
            return y if bias is None else self.add("Add", y, self.weight(bias, "bias"))

    def _int8_product(self, x: str, weight: Tensor) -> str:
        """``x @ weight.T``: inputs rounded to one scale, found as they come; weights to one for each output."""
        if x not in self._quantised:  # queries, keys and values have the same
            self._quantised[x] = self.split("DynamicQuantizeLinear", x, results=3)
        rounded, scale, zero = self._quantised[x]
        steps = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / INT8_RANGE
        integers = (weight / steps[:, None]).round().to(torch.int8).t()
        y = self.add("MatMulInteger", rounded, self.weight(integers, "weight"), zero)
        return self.add("Mul", self.cast(y, "FLOAT"), self.add("Mul", scale, self.weight(steps, "weight_scale")))
