"""A BEATs model → one ONNX file that needs neither torch nor torchbeats: front end, encoder, pooling, label head.

The graph is written operation by operation, not traced: that takes a second and no compiler, works with any torch, and
leaves every weight where a quantised product finds it. Tests hold it to the model in each of its settings.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from torchbeats.attention import MultiheadAttention
from torchbeats.encoder import TransformerSentenceEncoderLayer, WeightNormConv1d
from torchbeats.errors import ModelError, SettingsError
from torchbeats.extras import require
from torchbeats.fbank import LOG_FLOOR, N_FFT, PCM_SCALE, PREEMPHASIS
from torchbeats.files import replacing
from torchbeats.labels import class_names
from torchbeats.layers import GLU_Linear
from torchbeats.model import BEATs
from torchbeats.patches import FRAME_LENGTH, FRAME_SHIFT, N_MELS, SAMPLE_RATE, frames
from torchbeats.version import __version__
from torchbeats.weights.checkpoint import plain_settings
from torchbeats.weights.families import FORMAT_VERSION, METADATA_KEY

SUFFIX = ".onnx"
OPSET = 17  # the first with DFT and LayerNormalization: ONNX Runtime reads it since 1.12, of 2022
IR_VERSION = 8  # of that time too
LARGEST = 2**31 - 2**20  # bytes: a protocol buffer ends at 2 GB
# Weights from -64 to 64: processors without VNNI add pairs of 8-bit products in 16 bits, and cut off what is more.
INT8_RANGE = 64

INPUTS = ("waveform", "fbank")
OUTPUTS = ("embedding", "probabilities", "steps", "patches")  # in this order in a file
STEP_COUNTS = "step_counts"  # accompanies the last two


def export(
    model: BEATs,
    path: str | os.PathLike[str],
    *,
    takes: str = "waveform",
    outputs: Iterable[str] | None = None,
    layer: int | None = None,
    int8: bool = False,
) -> None:
    """Write a model to an ONNX file, which is complete or absent.

    The graph has two inputs, batch and time being of any size:

    | input | |
    |---|---|
    | ``waveform`` | ``(batch, samples)`` float32 at 16 kHz, in [-1, 1]; |
    | or ``fbank`` | ``(batch, frames, 128)`` float32, log-mel features as `torchbeats.fbank.Fbank` gives them |
    | ``lengths`` | ``(batch,)`` int64: samples, or frames, of each clip; what lies behind them is not looked at |

    | output | |
    |---|---|
    | ``embedding`` | ``(batch, C)``, the mean over each clip's own patches |
    | ``probabilities`` | ``(batch, classes)``, of a model with a label head |
    | ``steps`` | ``(batch, steps, C)``, the mean over the bands of each 160 ms |
    | ``patches`` | ``(batch, 8 * steps, C)``, ``patch = 8 * step + band`` |
    | ``step_counts`` | ``(batch,)`` int64, beside either of the last two: the steps that are a clip's own |

    Clips shorter than one step are filled up with silence. The file's metadata have ``sample_rate``, ``labels`` (a JSON
    list in the order of ``probabilities``), ``torchbeats_version``, and all settings under ``torchbeats``.

    Args:
        model: a `BEATs`.
        path: of the file.
        takes: "waveform", or "fbank" for a graph without the front end.
        outputs: some of "embedding", "probabilities", "steps" and "patches"; all that the model has where not given.
        layer: whose output; the model's where not given. 0 is the encoder's input to the first layer.
        int8: the encoder's weights as 8-bit integers, under a third of the size; values then agree to about a percent,
            and those of a clip depend a little on the clips beside it.

    Raises:
        ValueError: a setting that makes no sense, or a model that is none of `BEATs`.
        MissingPackageError: the package onnx is not installed.
    """
    content = serialized(model, takes=takes, outputs=outputs, layer=layer, int8=int8)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def serialized(
    model: BEATs,
    *,
    takes: str = "waveform",
    outputs: Iterable[str] | None = None,
    layer: int | None = None,
    int8: bool = False,
) -> bytes:
    """What `export` writes."""
    chosen = check(model, takes, outputs, layer)
    onnx = require("onnx", "onnx")

    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        model = copy.deepcopy(model).float()
    graph = _Graph(int8)
    with torch.no_grad():
        _Writer(model, graph).write(takes, chosen, layer)
    if graph.bytes > LARGEST:
        raise ModelError(f"An ONNX file ends at 2 GB, and the weights have {graph.bytes / 1e9:.1f} GB. Export int8.")

    about = {
        "version": FORMAT_VERSION,
        "kind": "beats",
        "config": plain_settings(model.cfg.to_dict()),
        "labels": model.label_dict,
        "takes": takes,
        "layer": layer,
        "int8": int8,
    }
    metadata = {METADATA_KEY: json.dumps(about), "torchbeats_version": __version__, "sample_rate": str(SAMPLE_RATE)}
    if "probabilities" in chosen:
        metadata["labels"] = json.dumps(class_names(model.label_dict, model.cfg.predictor_class), ensure_ascii=False)
    proto = onnx.helper.make_model(
        graph.proto("beats"),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="torchbeats",
        producer_version=__version__,
    )
    onnx.helper.set_model_props(proto, metadata)
    return cast("bytes", proto.SerializeToString())


def check(model: BEATs, takes: str, outputs: Iterable[str] | None, layer: int | None) -> tuple[str, ...]:
    """The outputs that are meant; a `ModelError` or `SettingsError` where there are none. Arguments: see `export`."""
    if not isinstance(model, nn.Module) or "mean" not in model.outputs:
        raise ModelError(f"Only a BEATs model can be exported; this has the type {type(model).__name__}.")
    if takes not in INPUTS:
        raise SettingsError(f"A graph takes {' or '.join(INPUTS)}, not {takes!r}.")
    depth = model.cfg.encoder_layers
    if layer is not None and not 0 <= layer <= depth:
        raise ModelError(f"The model has {depth} layers; there is no layer {layer}.")
    labelled = model.predictor is not None and layer in (None, depth)
    if outputs is None:
        return tuple(name for name in OUTPUTS if name != "probabilities" or labelled)
    wanted = set(outputs)
    if unknown := sorted(wanted - set(OUTPUTS)):
        raise SettingsError(f"There is no output called {unknown[0]!r}; choose some of {', '.join(OUTPUTS)}.")
    if not wanted:
        raise SettingsError(f"A graph must have an output; choose some of {', '.join(OUTPUTS)}.")
    if "probabilities" in wanted and not labelled:
        why = "stands behind the last layer" if model.predictor is not None else "is missing from this model"
        raise ModelError(f"Probabilities come from the label head, which {why}.")
    return tuple(name for name in OUTPUTS if name in wanted)


class _Graph:
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
        before, self._scope = self._scope, f"{self._scope}{name}/"
        yield
        self._scope = before

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


class _Writer:
    """Writes a model's operations into a graph. Shapes are named as in the model."""

    def __init__(self, model: BEATs, graph: _Graph) -> None:
        self.model, self.graph = model, graph
        self.heads = model.cfg.encoder_attention_heads

    def write(self, takes: str, outputs: Sequence[str], layer: int | None) -> None:
        """Everything from the inputs to the outputs."""
        g, grid, width = self.graph, self.model.grid, self.model.cfg.encoder_embed_dim
        if takes == "waveform":
            given = g.input(takes, "FLOAT", ("batch", "samples"))
            fbank, frame_counts = self._fbank(given, g.input("lengths", "INT64", ("batch",)))
        else:
            given = g.input(takes, "FLOAT", ("batch", "frames", N_MELS))
            fbank, frame_counts = self._filled(given, g.input("lengths", "INT64", ("batch",)))
        step_counts = g.add("Div", frame_counts, g.integer(grid.patch_size))
        counts = g.add("Mul", step_counts, g.integer(grid.bands))

        x = self._patches(fbank)
        mask = g.behind(counts, g.size(x, 1))  # (B, T)
        x = self._encoder(x, mask, layer)

        if "embedding" in outputs or "probabilities" in outputs:
            embedding = pooled = self._mean(x, mask, counts)
            if (pool := self.model.cfg.predictor_pool) != "mean":
                by_step = g.add("Reshape", x, g.integers(0, -1, grid.bands * width))
                behind = g.behind(step_counts, g.size(by_step, 1))
                pooled = self._mean(by_step, behind, step_counts)
                if pool == "statistics":
                    pooled = g.add("Concat", pooled, self._deviation(by_step, pooled, behind, step_counts), axis=1)
                elif pool != "bands":
                    raise ModelError(f"The pooling {pool!r} of the label head cannot be exported.")
        for name in outputs:
            match name:
                case "embedding":
                    g.output(embedding, name, "FLOAT", ("batch", width))
                case "probabilities":
                    g.output(self._probabilities(pooled), name, "FLOAT", ("batch", self.model.cfg.predictor_class))
                case "steps":
                    by_step = g.add("Reshape", x, g.integers(0, -1, grid.bands, width))
                    steps = g.add("ReduceMean", by_step, axes=[2], keepdims=0)
                    g.output(steps, name, "FLOAT", ("batch", "steps", width))
                case "patches":
                    g.output(x, name, "FLOAT", ("batch", "patches", width))
        if "steps" in outputs or "patches" in outputs:
            g.output(step_counts, STEP_COUNTS, "INT64", ("batch",))

    # --- front end

    def _fbank(self, wav: str, lengths: str) -> tuple[str, str]:
        """``(B, samples)`` to ``(B, frames, 128)``, and how many of them are each clip's own; see `fbank.Fbank`."""
        g, front = self.graph, self.model.fbank
        with g.scope("fbank"):
            samples = g.size(wav, 1)
            lengths = g.add("Min", lengths, samples)
            wav = g.add("Where", g.behind(lengths, samples), g.number(0), wav)
            wav, lengths = self._at_least(wav, lengths, self.model.grid.min_samples, fill=0, rank=2)
            wav = g.add("Mul", wav, g.number(PCM_SCALE))

            starts = g.add("Mul", g.range(self._frames(g.size(wav, 1))), g.integer(FRAME_SHIFT))
            places = g.add("Add", g.add("Unsqueeze", starts, g.integers(1)), g.integers(*range(FRAME_LENGTH)))
            x = g.add("Gather", wav, places, axis=1)  # (B, frames, 400)
            x = g.add("Sub", x, g.add("ReduceMean", x, axes=[-1], keepdims=1))
            first, others = (
                g.add("Slice", x, g.integers(0), g.integers(end), g.integers(-1)) for end in (1, FRAME_LENGTH - 1)
            )
            before = g.add("Mul", g.add("Concat", first, others, axis=-1), g.number(PREEMPHASIS))
            x = g.add("Mul", g.add("Sub", x, before), g.weight(front.window, "window"))
            # In float64: runtimes differ in how exact their float32 is, and beside a loud tone it shows.
            x = g.add("Unsqueeze", g.cast(x, "DOUBLE"), g.integers(3))
            x = g.add("DFT", x, g.integer(N_FFT), axis=2, onesided=1)  # (B, frames, 257, 2)
            power = g.add("ReduceSum", g.add("Mul", x, x), g.integers(-1), keepdims=0)
            mel = g.add("MatMul", g.cast(power, "FLOAT"), g.weight(front.filters, "filters"))
            return g.add("Log", g.add("Max", mel, g.number(LOG_FLOOR))), self._frames(lengths)

    def _frames(self, samples: str) -> str:
        """Number of frames in so many samples; see `patches.frames`."""
        g = self.graph
        shifts = g.add("Div", g.add("Sub", samples, g.integer(FRAME_LENGTH)), g.integer(FRAME_SHIFT))
        return g.add("Add", shifts, g.integer(1))

    def _filled(self, fbank: str, lengths: str) -> tuple[str, str]:
        """Given features, at least one step of them, and how many are each clip's own."""
        g = self.graph
        lengths = g.add("Min", lengths, g.size(fbank, 1))
        shortest, silence = frames(self.model.grid.min_samples), math.log(LOG_FLOOR)
        behind = g.add("Unsqueeze", g.behind(lengths, g.size(fbank, 1)), g.integers(2))
        fbank = g.add("Where", behind, g.number(silence), fbank)
        return self._at_least(fbank, lengths, shortest, fill=silence, rank=3)

    def _at_least(self, x: str, lengths: str, shortest: int, fill: float, rank: int) -> tuple[str, str]:
        """``x`` of so many axes, filled up to ``shortest`` along axis 1, and its lengths likewise."""
        g = self.graph
        lacking = g.add("Max", g.add("Sub", g.integers(shortest), g.size(x, 1)), g.integers(0))
        # Pad is told how much comes before each axis, then how much behind each.
        pads = [g.integers(*[0] * (rank + 1)), lacking, *[g.integers(0)] * (rank - 2)]
        x = g.add("Pad", x, g.add("Concat", *pads, axis=0), g.number(fill))
        return x, g.add("Max", lengths, g.integer(shortest))

    # --- encoder

    def _patches(self, fbank: str) -> str:
        """``(B, frames, 128)`` to the encoder's input, ``(B, T, C)``; see `Backbone.embed_patches`."""
        g, model = self.graph, self.model
        with g.scope("patch_embedding"):
            x = g.add("Sub", fbank, g.number(model.cfg.fbank_mean))
            x = g.add("Div", x, g.number(2 * model.cfg.fbank_std))
            x = g.add("Unsqueeze", x, g.integers(1))
            x = self._conv(
                x, model.patch_embedding.weight, model.patch_embedding.bias, strides=[model.grid.patch_size] * 2
            )
            x = g.add("Reshape", x, g.integers(0, model.cfg.embed_dim, -1))  # (B, E, T), time-major
            x = g.norm(g.add("Transpose", x, perm=[0, 2, 1]), model.layer_norm, "layer_norm")
        if model.post_extract_proj is not None:
            x = g.linear(x, model.post_extract_proj.weight, model.post_extract_proj.bias, "post_extract_proj")
        return x

    def _conv(self, x: str, weight: Tensor, bias: Tensor | None, **attributes: Any) -> str:
        g = self.graph
        biases = [] if bias is None else [g.weight(bias, "bias")]
        return g.add("Conv", x, g.weight(weight, "weight"), *biases, **attributes)

    def _encoder(self, x: str, mask: str, layer: int | None) -> str:
        """``(B, T, C)`` to ``(B, T, C)``; see `TransformerEncoder`."""
        g, encoder = self.graph, self.model.encoder
        x = g.add("Where", g.add("Unsqueeze", mask, g.integers(2)), g.number(0), x)
        with g.scope("pos_conv"):
            conv = cast("WeightNormConv1d", encoder.pos_conv[0])
            taps = conv.weight_v.size(2)
            # One fewer behind where the number of taps is even: what SamePad cuts off.
            pads = [taps // 2, taps - 1 - taps // 2]
            y = self._conv(g.add("Transpose", x, perm=[0, 2, 1]), conv.weight, conv.bias, pads=pads, group=conv.groups)
            x = g.add("Add", x, g.add("Transpose", self._gelu(y), perm=[0, 2, 1]))
        if not encoder.layer_norm_first:
            x = g.norm(x, encoder.layer_norm, "layer_norm")

        depth = len(encoder.layers) if layer is None else layer
        layers = [cast("TransformerSentenceEncoderLayer", module) for module in encoder.layers[:depth]]
        if layers:
            hidden = g.add("Where", mask, g.number(-math.inf), g.number(0))
            hidden = g.add("Unsqueeze", hidden, g.integers(1, 2))  # (B, 1, 1, T)
            bias = self._position_bias(layers[0].self_attn, x)
        for index, module in enumerate(layers):
            with g.scope(f"layers.{index}"):
                x = self._layer(x, module, hidden, bias)
        if encoder.layer_norm_first and depth == len(encoder.layers):
            x = g.norm(x, encoder.layer_norm, "layer_norm")
        return x

    def _layer(self, x: str, layer: TransformerSentenceEncoderLayer, hidden: str, bias: str | None) -> str:
        """``(B, T, C)`` to ``(B, T, C)``; see `TransformerSentenceEncoderLayer`."""
        g = self.graph
        norms = (layer.self_attn_layer_norm, "self_attn_layer_norm"), (layer.final_layer_norm, "final_layer_norm")

        def attend(x: str) -> str:
            with g.scope("self_attn"):
                return self._attention(x, layer.self_attn, hidden, bias)

        for (norm, name), part in zip(norms, (attend, lambda x: self._feed_forward(x, layer)), strict=True):
            y = part(g.norm(x, norm, name) if layer.layer_norm_first else x)
            if layer.residual_scale != 1:
                x = g.add("Mul", x, g.number(layer.residual_scale))
            x = g.add("Add", y, x)
            if not layer.layer_norm_first:
                x = g.norm(x, norm, name)
        return x

    def _attention(self, x: str, attention: MultiheadAttention, hidden: str, bias: str | None) -> str:
        """``(B, T, C)`` to ``(B, T, C)``; see `MultiheadAttention`."""
        g, C = self.graph, attention.embed_dim

        def heads(projection: nn.Linear, name: str, *perm: int) -> str:
            y = g.linear(x, projection.weight, projection.bias, name)
            y = g.add("Reshape", y, g.integers(0, 0, attention.num_heads, attention.head_dim))
            return g.add("Transpose", y, perm=perm)

        q = heads(attention.q_proj, "q_proj", 0, 2, 1, 3)  # (B, H, T, D)
        k = heads(attention.k_proj, "k_proj", 0, 2, 3, 1)
        v = heads(attention.v_proj, "v_proj", 0, 2, 1, 3)
        scores = g.add("MatMul", g.add("Mul", q, g.number(attention.scaling)), k)
        if bias is not None:
            scores = g.add(
                "Add", scores, g.add("Mul", self._gate(q, attention), bias) if attention.gru_rel_pos else bias
            )
        weights = g.add("Softmax", g.add("Add", scores, hidden), axis=-1)
        y = g.add("Transpose", g.add("MatMul", weights, v), perm=[0, 2, 1, 3])
        y = g.add("Reshape", y, g.integers(0, 0, C))
        return g.linear(y, attention.out_proj.weight, attention.out_proj.bias, "out_proj")

    def _gate(self, q: str, attention: MultiheadAttention) -> str:
        """``(B, H, T, 1)``; see `MultiheadAttention._gate`."""
        g = self.graph
        weight = attention.grep_linear.weight.unflatten(0, (2, 4)).sum(1)
        bias = attention.grep_linear.bias.unflatten(0, (2, 4)).sum(1)
        y = g.add("Sigmoid", g.linear(q, weight, bias, "grep_linear", exact=True))
        a, b = g.split("Split", y, g.integers(1, 1), results=2, axis=-1)
        b = g.add("Sub", g.add("Mul", b, g.weight(attention.grep_a, "grep_a")), g.number(1))
        return g.add("Add", g.add("Mul", a, b), g.number(2))

    def _position_bias(self, attention: MultiheadAttention, x: str) -> str | None:
        """``(H, T, T)``; see `MultiheadAttention.compute_bias`."""
        if not attention.has_relative_attention_bias:
            return None
        g = self.graph
        with g.scope("position_bias"):
            farthest = 2 * attention.max_distance  # from max_distance on, all have the last bucket
            table = g.weight(attention._bias_by_distance(-farthest, farthest + 1), "table")  # (distances, H)
            places = g.range(g.size(x, 1))
            row, column = (g.add("Unsqueeze", places, g.integers(axis)) for axis in (1, 0))
            distance = g.add("Clip", g.add("Sub", column, row), g.integer(-farthest), g.integer(farthest))
            rows = g.add("Gather", table, g.add("Add", distance, g.integer(farthest)), axis=0)
            return g.add("Transpose", rows, perm=[2, 0, 1])

    def _feed_forward(self, x: str, layer: TransformerSentenceEncoderLayer) -> str:
        g, fc1 = self.graph, layer.fc1
        if isinstance(fc1, GLU_Linear):
            y = g.linear(x, fc1.linear.weight, fc1.linear.bias, "fc1")
            value, gate = g.split("Split", y, g.integers(fc1.output_dim, fc1.output_dim), results=2, axis=-1)
            y = g.add("Mul", value, g.add("Mul", gate, g.add("Sigmoid", gate)))  # swish
        else:
            y = self._activation(g.linear(x, fc1.weight, fc1.bias, "fc1"))
        return g.linear(y, layer.fc2.weight, layer.fc2.bias, "fc2")

    def _activation(self, x: str) -> str:
        """What the config's ``activation_fn`` names; see `layers.get_activation_fn`."""
        match name := self.model.cfg.activation_fn:
            case "gelu":
                return self._gelu(x)
            case "gelu_accurate" | "gelu_fast":
                return self._gelu_accurate(x)
            case "relu":
                return self.graph.add("Relu", x)
            case "tanh":
                return self.graph.add("Tanh", x)
            case "linear":
                return x
        raise ModelError(f"The activation {name!r} cannot be exported.")

    def _gelu(self, x: str) -> str:
        g = self.graph  # in the shape that runtimes know and compute in one pass
        erf = g.add("Erf", g.add("Div", x, g.number(math.sqrt(2))))
        return g.add("Mul", g.add("Mul", x, g.add("Add", erf, g.number(1))), g.number(0.5))

    def _gelu_accurate(self, x: str) -> str:
        g = self.graph
        cube = g.add("Mul", g.add("Mul", x, x), x)
        inner = g.add("Add", x, g.add("Mul", cube, g.number(0.044715)))
        tanh = g.add("Tanh", g.add("Mul", inner, g.number(math.sqrt(2 / math.pi))))
        return g.add("Mul", g.add("Mul", x, g.number(0.5)), g.add("Add", tanh, g.number(1)))

    # --- behind the encoder

    def _mean(self, x: str, mask: str, counts: str) -> str:
        """``(B, C)``; see `backbone.masked_mean`."""
        g = self.graph
        x = g.add("Where", g.add("Unsqueeze", mask, g.integers(2)), g.number(0), x)
        total = g.add("ReduceSum", x, g.integers(1), keepdims=0)
        return g.add("Div", total, g.add("Unsqueeze", g.cast(counts, "FLOAT"), g.integers(1)))

    def _deviation(self, x: str, mean: str, mask: str, counts: str) -> str:
        """``(B, C)``; see `pooling.mean_and_deviation`."""
        g = self.graph
        away = g.add("Sub", x, g.add("Unsqueeze", mean, g.integers(1)))
        return g.add("Sqrt", self._mean(g.add("Mul", away, away), mask, counts))

    def _probabilities(self, pooled: str) -> str:
        """``(B, classes)``; see `BEATs.probabilities`."""
        g, head = self.graph, self.model.predictor
        assert head is not None
        logits = g.linear(pooled, head.weight, head.bias, "predictor", exact=True)
        return (
            g.add("Softmax", logits, axis=-1)
            if self.model.cfg.problem_type == "single_label"
            else g.add("Sigmoid", logits)
        )
