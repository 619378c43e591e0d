"""The table of a graph's outputs keeps step with the poolings of the model."""

import math

import onnxruntime
import pytest
import torch

import torchbeats
from helpers import noise, small_model
from torchbeats import pooling
from torchbeats.onnx import export, outputs
from torchbeats.onnx.graph import Graph
from torchbeats.onnx.network import Network


def test_every_pooling_of_the_model_has_its_graph():
    assert set(outputs.POOLINGS) == set(pooling.POOLINGS)


def test_rows_a_clip_come_first_then_probabilities_then_rows_a_step():
    assert outputs.OUTPUTS == ("embedding", "probabilities", "steps", "patches")


def test_a_pooling_without_a_graph_is_refused_by_name(monkeypatch):
    model = small_model(finetuned_model=True, predictor_class=3, predictor_pool="bands")
    monkeypatch.delitem(outputs.POOLINGS, "bands")
    with pytest.raises(torchbeats.TorchbeatsError, match="pooling 'bands' cannot be exported"):
        export.serialized(model, outputs=["probabilities"])


@pytest.mark.parametrize("name", pooling.POOLINGS)
def test_a_graphs_pooling_is_the_models(name):
    """Each mode, also those that only label heads have."""
    model, graph, mode = small_model(), Graph(), outputs.POOLINGS[name]
    with torch.no_grad():
        features = Network(model, graph).write("waveform", None)
        shape = mode.shape(features.bands, features.width)
        graph.output(mode.write(graph, features), "pooled", "FLOAT", shape)
    session = onnxruntime.InferenceSession(graph.serialized())

    wav, lengths = torch.from_numpy(noise(1.5)).view(2, -1), torch.tensor([12_000, 7_000])
    values = torch.from_numpy(session.run(None, {"waveform": wav.numpy(), "lengths": lengths.numpy()})[0])
    assert len(shape) == values.dim()
    assert shape[-1] == values.size(-1)
    encoded = model.encode(wav, lengths)
    expected = encoded.pool(name)
    if pooling.pooling(name).by_step:
        steps = ~encoded.padding_mask[:, :: encoded.bands]
        values = values.reshape(2, -1, math.prod(pooling.pooling(name).shape(encoded.bands, features.width)))
        values, expected = values[steps], expected[steps]
    torch.testing.assert_close(values, expected, atol=1e-4, rtol=0)
