"""A model's operations, from a sound or its features to the encoder's output, in an ONNX graph.

This is a second description of the network beside `torchbeats.backbone`; tests hold the two together in every setting.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchbeats.attention import MultiheadAttention
from torchbeats.encoder import TransformerSentenceEncoderLayer, WeightNormConv1d
from torchbeats.errors import ModelError
from torchbeats.fbank import LOG_FLOOR, N_FFT, PCM_SCALE, PREEMPHASIS
from torchbeats.layers import GLU_Linear
from torchbeats.model import BEATs
from torchbeats.onnx.graph import Graph, integers_and_steps
from torchbeats.onnx.outputs import Features
from torchbeats.patches import FRAME_LENGTH, FRAME_SHIFT, N_MELS, frames

INPUTS = ("waveform", "fbank")
FRONT_END = "fbank/"  # what the names of its operations begin with
PATCHES_AT_ONCE = 8  # in the position convolution: a whole step of most models


class Network:
    """Writes a model's operations into a graph. Shapes are named as in the model.

    Args:
        model: a `BEATs`.
        graph: to write into.
        fused: in the form that OpenVINO computes fastest. The numbers are the same, but for rounding.
    """

    def __init__(self, model: BEATs, graph: Graph, fused: bool = False) -> None:
        self.model, self.graph, self.fused = model, graph, fused

    def write(self, takes: str, layer: int | None) -> Features:
        """Everything from the graph's inputs to the output of a layer; the model's where not given."""
        g, grid = self.graph, self.model.grid
        if takes == "waveform":
            sound = g.input(takes, "FLOAT", ("batch", "samples"))
            fbank, frame_counts = self._fbank(sound, g.input("lengths", "INT64", ("batch",)))
        else:
            features = g.input(takes, "FLOAT", ("batch", "frames", N_MELS))
            fbank, frame_counts = self._filled(features, g.input("lengths", "INT64", ("batch",)))
        step_counts = g.add("Div", frame_counts, g.integer(grid.patch_size))
        counts = g.add("Mul", step_counts, g.integer(grid.bands))

        x = self._patches(fbank)
        mask = g.behind(counts, g.size(x, 1))  # (B, T)
        x = self._encoder(x, mask, layer)
        return Features(x, mask, counts, step_counts, grid.bands, self.model.cfg.encoder_embed_dim)

    # --- front end

    def _fbank(self, wav: str, lengths: str) -> tuple[str, str]:
        """``(B, samples)`` to ``(B, frames, 128)``, and how many of them are each clip's own; see `fbank.Fbank`."""
        g, front = self.graph, self.model.fbank
        with g.scope(FRONT_END.rstrip("/")):
            samples = g.size(wav, 1)
            lengths = g.add("Min", lengths, samples)
            wav = g.add("Where", g.behind(lengths, samples), g.number(0), wav)
            wav, lengths = self._at_least(wav, lengths, self.model.grid.min_samples, fill=0, rank=2)
            wav = g.add("Mul", wav, g.number(PCM_SCALE))

            starts = g.add("Mul", g.range(self._frames(g.size(wav, 1))), g.integer(FRAME_SHIFT))
            indices = g.add("Add", g.add("Unsqueeze", starts, g.integers(1)), g.integers(*range(FRAME_LENGTH)))
            x = g.add("Gather", wav, indices, axis=1)  # (B, frames, 400)
            x = g.add("Sub", x, g.add("ReduceMean", x, axes=[-1], keepdims=1))
            first, following = (
                g.add("Slice", x, g.integers(0), g.integers(end), g.integers(-1)) for end in (1, FRAME_LENGTH - 1)
            )
            emphasis = g.add("Mul", g.add("Concat", first, following, axis=-1), g.number(PREEMPHASIS))
            x = g.add("Mul", g.add("Sub", x, emphasis), g.weight(front.window, "window"))
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
        """Features ``(B, frames, 128)``, at least one step of them, and how many are each clip's own."""
        g = self.graph
        lengths = g.add("Min", lengths, g.size(fbank, 1))
        shortest, silence = frames(self.model.grid.min_samples), math.log(LOG_FLOOR)
        behind = g.add("Unsqueeze", g.behind(lengths, g.size(fbank, 1)), g.integers(2))
        fbank = g.add("Where", behind, g.number(silence), fbank)
        return self._at_least(fbank, lengths, shortest, fill=silence, rank=3)

    def _at_least(self, x: str, lengths: str, shortest: int, fill: float, rank: int) -> tuple[str, str]:
        """``x`` of so many axes, filled up to ``shortest`` along axis 1, and its lengths likewise."""
        g = self.graph
        missing = g.add("Max", g.add("Sub", g.integers(shortest), g.size(x, 1)), g.integers(0))
        # Pad is told how much comes before each axis, then how much behind each.
        pads = [g.integers(*[0] * (rank + 1)), missing, *[g.integers(0)] * (rank - 2)]
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
            y = self._position_conv_by_blocks(x, conv) if self.fused else self._position_conv(x, conv)
            x = g.add("Add", x, y)
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

    def _position_conv(self, x: str, conv: WeightNormConv1d) -> str:
        """``(B, T, C)`` to ``(B, T, C)``, activation included."""
        g, taps = self.graph, conv.weight_v.size(2)
        # One fewer behind where the number of taps is even: what SamePad cuts off.
        pads = [taps // 2, taps - 1 - taps // 2]
        y = self._conv(g.add("Transpose", x, perm=[0, 2, 1]), conv.weight, conv.bias, pads=pads, group=conv.groups)
        return g.add("Transpose", self._gelu(y), perm=[0, 2, 1])

    def _position_conv_by_blocks(self, x: str, conv: WeightNormConv1d) -> str:
        """The same, some neighbouring patches at once: P of them are P times as many channels of a shorter sequence.

        Groups of 16 channels are too few for OpenVINO's fast convolutions, which were a quarter of its time. A weight
        stands P times in the larger one, between zeros; the file has it once, and runtimes arrange it as they load.
        """
        g, groups, taps = self.graph, conv.groups, conv.weight_v.size(2)
        weight = conv.weight.detach()
        inner, outer = weight.size(1), weight.size(0) // groups
        P = math.gcd(self.model.grid.bands, PATCHES_AT_ONCE)
        # Patch P * b + p of the output takes from patch P * (b + block) + q of the input what has the tap that follows.
        first, last = -((taps // 2 + P - 1) // P), (taps - 1 - taps // 2 + P - 1) // P
        block, p, q = torch.arange(first, last + 1), torch.arange(P)[:, None, None], torch.arange(P)[:, None]
        tap = P * block + q - p + taps // 2
        tap = torch.where((tap >= 0) & (tap < taps), tap, taps)  # the last one is zero

        weight, steps = F.pad(weight, (0, 1)), None
        if g.static:
            weight, steps = integers_and_steps(weight, 0)
        y = g.add("Gather", g.weight(weight, "weight"), g.integer_array(tap), axis=2)
        y = g.add("Reshape", y, g.integers(groups, outer, inner, P, P, len(block)))
        y = g.add("Transpose", y, perm=[0, 3, 1, 4, 2, 5])
        blocks = g.add("Reshape", y, g.integers(groups * P * outer, P * inner, len(block)))

        def by_block(values: Tensor) -> Tensor:
            return values.detach().view(groups, 1, outer).expand(-1, P, -1).reshape(-1)

        if steps is not None:
            blocks = g.in_steps(blocks, by_block(steps), 0)
        x = g.add("Reshape", g.rounded(x, "input"), g.integers(0, -1, P, groups, inner))
        x = g.add("Transpose", x, perm=[0, 3, 2, 4, 1])
        x = g.add("Reshape", x, g.integers(0, groups * P * inner, -1))
        biases = [] if conv.bias is None else [g.weight(by_block(conv.bias), "bias")]
        y = self._gelu(g.add("Conv", x, blocks, *biases, pads=[-first, last], group=groups))
        y = g.add("Transpose", g.add("Reshape", y, g.integers(0, groups, P, outer, -1)), perm=[0, 4, 2, 1, 3])
        return g.add("Reshape", y, g.integers(0, -1, groups * outer))

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
        gate = self._gate(q, attention) if bias is not None and attention.gru_rel_pos else None
        scaling = g.number(attention.scaling)
        if gate is not None and self.fused and _is_moderate(attention):
            # (q k / gate + bias) * gate: nothing but the product and a few passes over it, which OpenVINO makes as one.
            q = g.add("Mul", q, g.add("Div", scaling, gate))
            scores = g.add("Mul", g.add("Add", self._scores(q, k), cast("str", bias)), gate)
        else:
            scores = self._scores(g.add("Mul", q, scaling), k)
            if bias is not None:
                scores = g.add("Add", scores, bias if gate is None else g.add("Mul", gate, bias))
        weights = g.add("Softmax", g.add("Add", scores, hidden), axis=-1)
        y = g.add("Transpose", g.add("MatMul", weights, v), perm=[0, 2, 1, 3])
        y = g.add("Reshape", y, g.integers(0, 0, C))
        return g.linear(y, attention.out_proj.weight, attention.out_proj.bias, "out_proj")

    def _scores(self, q: str, k: str) -> str:
        """``(B, H, T, T)``, products of queries and keys."""
        g = self.graph
        return g.add("MatMul", g.rounded(q, "queries"), g.rounded(k, "keys"))

    def _gate(self, q: str, attention: MultiheadAttention) -> str:
        """``(B, H, T, 1)``; see `MultiheadAttention.gate_projection`."""
        g = self.graph
        weight, bias = attention.gate_projection()
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
            table = g.weight(attention.bias_by_distance(-farthest, farthest + 1), "table")  # (distances, H)
            positions = g.range(g.size(x, 1))
            row, column = (g.add("Unsqueeze", positions, g.integers(axis)) for axis in (1, 0))
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


def _is_moderate(attention: MultiheadAttention) -> bool:
    """Whether the gate is between 1/2 and 4 whatever is heard, so that one may divide by it.

    It is ``a * (b * grep_a - 1) + 2``, with a and b between 0 and 1.
    """
    grep_a = attention.grep_a
    return bool((grep_a >= -0.5).all() and (grep_a <= 3).all())
