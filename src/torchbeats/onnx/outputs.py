"""From the encoder's output to a graph's outputs: every pooling that a graph can have, in this one table.

A new mode of `torchbeats.pooling` is a function here and an entry of `POOLINGS`; files, their metadata, the command and
the label heads that pool so take all else from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torchbeats import pooling
from torchbeats.errors import ModelError
from torchbeats.model import BEATs
from torchbeats.onnx.graph import Graph
from torchbeats.protocol import PROBABILITIES

STEP_COUNTS = "step_counts"  # accompanies outputs by step


class Features(NamedTuple):
    """Values of a graph that a pooling is made of; compare `torchbeats.backbone.Encoded`.

    Attributes:
        x: ``(B, T, C)``, ``patch = bands * step + band``.
        mask: ``(B, T)``, True = behind the clip's own patches.
        counts: ``(B,)`` int64, patches of each clip.
        step_counts: ``(B,)`` int64, steps of each clip.
        bands: patches a step.
        width: C.
    """

    x: str
    mask: str
    counts: str
    step_counts: str
    bands: int
    width: int


@dataclass(frozen=True)
class Pooling:
    """One pooling mode.

    Attributes:
        write: adds it to a graph, and returns the value's name.
        output: what a file calls it; None for a mode that only a label head has.
        shape: of the output, from the bands and the width.
    """

    write: Callable[[Graph, Features], str]
    output: str | None
    shape: Callable[[int, int], tuple[str | int, ...]]


def mean(g: Graph, features: Features) -> str:
    """``(B, C)``; see `pooling.mean`."""
    return _masked_mean(g, features.x, features.mask, features.counts)


def mean_by_band(g: Graph, features: Features) -> str:
    """``(B, bands * C)``; see `pooling.mean_by_band`."""
    by_step, padding = _steps_with_all_bands(g, features)
    return _masked_mean(g, by_step, padding, features.step_counts)


def mean_and_deviation(g: Graph, features: Features) -> str:
    """``(B, 2 * bands * C)``; see `pooling.mean_and_deviation`."""
    x, padding = _steps_with_all_bands(g, features)
    average = _masked_mean(g, x, padding, features.step_counts)
    centred = g.add("Sub", x, g.add("Unsqueeze", average, g.integers(1)))
    variance = _masked_mean(g, g.add("Mul", centred, centred), padding, features.step_counts)
    return g.add("Concat", average, g.add("Sqrt", variance), axis=1)


def steps(g: Graph, features: Features) -> str:
    """``(B, steps, C)``; see `pooling.steps`."""
    by_step = g.add("Reshape", features.x, g.integers(0, -1, features.bands, features.width))
    return g.add("ReduceMean", by_step, axes=[2], keepdims=0)


def patches(g: Graph, features: Features) -> str:
    """``(B, T, C)``, patch by patch as the model has them."""
    return features.x


def _steps_with_all_bands(g: Graph, features: Features) -> tuple[str, str]:
    """``(B, steps, bands * C)``, and the mask ``(B, steps)`` of what lies behind each clip's own."""
    by_step = g.add("Reshape", features.x, g.integers(0, -1, features.bands * features.width))
    return by_step, g.behind(features.step_counts, g.size(by_step, 1))


def _masked_mean(g: Graph, x: str, mask: str, counts: str) -> str:
    """``(B, T, C)`` to ``(B, C)``; see `pooling.masked_mean`."""
    x = g.add("Where", g.add("Unsqueeze", mask, g.integers(2)), g.number(0), x)
    total = g.add("ReduceSum", x, g.integers(1), keepdims=0)
    return g.add("Div", total, g.add("Unsqueeze", g.cast(counts, "FLOAT"), g.integers(1)))


POOLINGS = {
    "mean": Pooling(mean, "embedding", lambda bands, width: ("batch", width)),
    "bands": Pooling(mean_by_band, None, lambda bands, width: ("batch", bands * width)),
    "statistics": Pooling(mean_and_deviation, None, lambda bands, width: ("batch", 2 * bands * width)),
    "steps": Pooling(steps, "steps", lambda bands, width: ("batch", "steps", width)),
    "patches": Pooling(patches, "patches", lambda bands, width: ("batch", "patches", width)),
}
# The pooling of each output that is one.
BY_OUTPUT = {mode.output: name for name, mode in POOLINGS.items() if mode.output is not None}
BY_STEP = tuple(output for output, name in BY_OUTPUT.items() if pooling.pooling(name).by_step)
# In this order in a file.
OUTPUTS = (*(output for output in BY_OUTPUT if output not in BY_STEP), PROBABILITIES, *BY_STEP)


def write_outputs(g: Graph, features: Features, model: BEATs, names: Sequence[str]) -> None:
    """Add some of `OUTPUTS` to a graph, and the number of steps beside those that are by step."""
    values: dict[str, str] = {}

    def pool(mode: str) -> str:
        if mode not in POOLINGS:
            raise ModelError(f"The pooling {mode!r} cannot be exported; only {', '.join(POOLINGS)} can.")
        if mode not in values:
            values[mode] = POOLINGS[mode].write(g, features)
        return values[mode]

    if not set(names) <= set(BY_STEP):
        # Wanted or not, and in front of all outputs: a model's file is byte for byte the same as it has always been.
        for mode in ("mean", model.cfg.predictor_pool):
            pool(mode)
    for name in names:
        if name == PROBABILITIES:
            probabilities = _probabilities(g, pool(model.cfg.predictor_pool), model)
            g.output(probabilities, name, "FLOAT", ("batch", *model.outputs[PROBABILITIES].shape))
        else:
            mode = BY_OUTPUT[name]
            g.output(pool(mode), name, "FLOAT", POOLINGS[mode].shape(features.bands, features.width))
    if set(names) & set(BY_STEP):
        g.output(features.step_counts, STEP_COUNTS, "INT64", ("batch",))


def _probabilities(g: Graph, pooled: str, model: BEATs) -> str:
    """``(B, classes)``; see `BEATs.probabilities`."""
    head = model.predictor
    assert head is not None
    logits = g.linear(pooled, head.weight, head.bias, "predictor", exact=True)
    if model.cfg.problem_type == "single_label":
        return g.add("Softmax", logits, axis=-1)
    return g.add("Sigmoid", logits)
