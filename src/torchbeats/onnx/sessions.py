"""What computes an ONNX graph: ONNX Runtime or OpenVINO, both on the CPU, with as many threads as torch has."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from torchbeats.errors import CheckpointError
from torchbeats.extras import require
from torchbeats.onnx.metadata import LENGTHS, Description, description_of
from torchbeats.onnx.network import FRONT_END
from torchbeats.patches import N_MELS

Arrays = Mapping[str, "np.ndarray[Any, Any]"]


class Session(Protocol):
    """An opened graph.

    Attributes:
        description: of its model.
        outputs: of the file, by name.
        takes: what `run` wants beside the lengths, "waveform" or "fbank".
    """

    description: Description
    outputs: Sequence[str]
    takes: str

    def run(self, outputs: Sequence[str], inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        """Some of the outputs."""


class OnnxRuntime:
    """A graph in ONNX Runtime; see `Session`.

    Args:
        name: of the file, for messages.
        content: path of the file, or all of it.

    Raises:
        CheckpointError: it cannot be read, or is none of ours.
        MissingPackageError: onnxruntime is not installed.
    """

    def __init__(self, name: str, content: str | bytes) -> None:
        require("onnxruntime", "onnx")
        try:
            self._session = inference_session(content)
        except Exception as error:  # it has a dozen types of its own
            raise _unreadable(name, "ONNX Runtime", error) from error
        inputs, outputs = (
            {value.name: value.shape for value in values}
            for values in (self._session.get_inputs(), self._session.get_outputs())
        )
        self.description = description_of(name, self._session.get_modelmeta().custom_metadata_map, inputs, outputs)
        self.outputs: Sequence[str] = tuple(outputs)
        self.takes = self.description.takes

    def run(self, outputs: Sequence[str], inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        """Some of the outputs."""
        return self._session.run(list(outputs), dict(inputs))


def inference_session(content: str | bytes) -> Any:
    """Any graph in ONNX Runtime, by its path or its content."""
    onnxruntime = require("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors, which are raised as well
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class OpenVino:
    """A graph in OpenVINO; see `Session`. Shapes stay open: a batch of new lengths costs a tenth more than one of old.

    Of a graph that takes sound it computes what stands behind the front end, whose FFT in float64 OpenVINO lacks.

    Args:
        name: of the file, for messages.
        content: path of the file, or all of it.

    Raises:
        CheckpointError: it cannot be read, or is none of ours.
        MissingPackageError: openvino or onnx is not installed.
    """

    def __init__(self, name: str, content: str | bytes) -> None:
        require("openvino", "openvino")
        onnx = require("onnx", "openvino")
        if isinstance(content, str):
            content = Path(content).read_bytes()
        try:
            proto = onnx.load_model_from_string(content)
        except Exception as error:  # of protobuf, which has several kinds
            raise _unreadable(name, "OpenVINO", error) from error
        graph = proto.graph
        if any(onnx.external_data_helper.uses_external_data(weight) for weight in graph.initializer):
            raise CheckpointError(name, "its weights are in other files, and `torchbeats export` writes one.")
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        outputs = _shapes(graph.output)
        self.description = description_of(name, metadata, _shapes(graph.input), outputs)
        self.outputs: Sequence[str] = tuple(outputs)
        self.takes = "fbank"
        if self.description.takes != self.takes:
            _cut_front_end(name, graph)
            content = proto.SerializeToString()
        del proto, graph
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # processes with a thread each would all be bound to the first core
            "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 otherwise, where a processor has it
            "CPU_RUNTIME_CACHE_CAPACITY": 500,  # of kernels, some for each new shape; with 5,000 memory grows for long
        }
        core = _core()
        try:
            self._compiled = core.compile_model(core.read_model(content), "CPU", settings)
        except Exception as error:
            raise _unreadable(name, "OpenVINO", error) from error
        self._request = self._compiled.create_infer_request()
        self._running = threading.Lock()

    def run(self, outputs: Sequence[str], inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        """Some of the outputs."""
        with self._running:  # one request at a time: it has all threads
            self._request.infer(dict(inputs), share_inputs=True)
            return [self._request.get_tensor(name).data.copy() for name in outputs]


@functools.cache
def _core() -> Any:
    """OpenVINO itself, once and for good.

    The thread that first compiles a graph has its signals handled on a stack of OpenVINO's, which is unmapped with the
    last graph. Where another thread let that go, as its garbage collection may, the next Ctrl-C ended the process.
    """
    return require("openvino", "openvino").Core()


def _shapes(values: Any) -> dict[str, list[int | str]]:
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values
    }


def _cut_front_end(name: str, graph: Any) -> None:
    """Make a graph that takes sound one that takes log-mel features, and their numbers of frames as lengths."""
    inside = [node for node in graph.node if node.name.startswith(FRONT_END)]
    rest = [node for node in graph.node if not node.name.startswith(FRONT_END)]
    makers = {value: node.op_type for node in inside for value in node.output}
    taken = {value for node in rest for value in node.input}
    features = [value for value in taken if makers.get(value) == "Log"]
    counts = [value for value in taken if value in makers and makers[value] != "Log"]
    if len(features) != 1 or len(counts) != 1 or taken & {"waveform", LENGTHS}:
        raise CheckpointError(name, "it takes sound, but its front end is not that of `torchbeats export`.")
    renamed = {features[0]: "fbank", counts[0]: LENGTHS}
    for node in rest:
        node.input[:] = [renamed.get(value, value) for value in node.input]
    del graph.node[:]
    graph.node.extend(rest)
    for value in graph.input:
        if value.name == "waveform":
            value.name = "fbank"
            value.type.tensor_type.shape.dim.add().dim_value = N_MELS


def _unreadable(name: str, engine: str, error: Exception) -> CheckpointError:
    lines = str(error).strip().splitlines()
    reason = next(iter(lines), type(error).__name__)[-200:]  # its beginning is the path again
    return CheckpointError(name, f"{engine} cannot read it: the file is damaged, or none ({reason}).")
