"""What an ONNX file says of itself is not believed: one sentence, in no time and no memory, or it is right."""

import json
import re
import resource
import time

import pytest
import torch
from torch import nn

import onnx
import torchbeats
from helpers import EXPORTED_ENGINES, noise, small_model
from torchbeats.onnx.engine import OnnxModel
from torchbeats.onnx.export import serialized

LABELS = {0: "cat", 1: "dog", 2: "hen"}


def labelled():
    model = small_model(finetuned_model=True, predictor_class=3)
    model.label_dict = dict(LABELS)
    return model


@pytest.fixture(scope="module", params=EXPORTED_ENGINES)
def engine(request):
    OnnxModel.of(labelled(), engine=request.param)  # what it needs once is not counted
    return request.param


@pytest.fixture(scope="module")
def proto():
    return onnx.load_from_string(serialized(labelled()))


def rewritten(path, proto, about=None, text=None, change=None):
    """The file with other settings in its metadata (``about``), other metadata (``text``), or another graph."""
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    real = json.loads(next(p.value for p in proto.metadata_props if p.key == "torchbeats"))
    del other.metadata_props[:]
    value = json.dumps({**real, **(about or {})}) if text is None else text
    onnx.helper.set_model_props(other, {"torchbeats": value})
    if change is not None:
        change(other.graph)
    onnx.save(other, path)
    return path


def refused(path, engine):
    """The sentence with which a file is refused, once it has been seen to cost nothing."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(torchbeats.CheckpointError) as caught:
        torchbeats.load(path, engine=engine)
    assert time.monotonic() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB
    said = str(caught.value)
    assert len(said) < len(str(path)) + 300
    assert "\n" not in said
    return said


CONFIG = labelled().cfg.to_dict()


def config(**fields):
    return {"config": {**CONFIG, **fields}}


LONG = "x" * 10**6
HOSTILE = {
    "version of a million letters": ({"version": LONG}, "newer torchbeats \\(format 'xxx"),
    "version of 10^30": ({"version": 10**30}, "newer torchbeats \\(format 1000"),
    "version true": ({"version": True}, "newer torchbeats \\(format True"),
    "version a list": ({"version": [1] * 10**5}, "newer torchbeats"),
    "kind of a tokenizer": ({"kind": "tokenizer"}, "holds a 'tokenizer'"),
    "kind a list": ({"kind": []}, "holds a \\[\\]"),
    "kind of a million letters": ({"kind": LONG}, "holds a 'xxx"),
    "kind missing": ({"kind": None}, "holds a None"),
    "config a list": ({"config": [1]}, "metadata .* damaged .*config"),
    "config with the name of a method": (config(check=3), "settings that no model has: check"),
    "layers of 10^30": (config(encoder_layers=10**30), "encoder_layers must be at most"),
    "width of 10^30": (config(encoder_embed_dim=10**30), "encoder_embed_dim must be at most"),
    "classes 10^9": (config(predictor_class=10**9), "predictor_class must be at most"),
    "a size true": (config(encoder_layers=True), "encoder_layers must be of type int, not True"),
    "a size of a million letters": (config(encoder_layers=LONG), "encoder_layers must be of type int"),
    "mean 10^400": (config(fbank_mean=10**400), "fbank_mean must be a finite number"),
    "another width": (config(encoder_embed_dim=96), "encoder_embed_dim 96;.*embedding .*48"),
    "other classes": (config(predictor_class=4), "3 labels for a head of 4"),
    "other classes, no labels": (
        {**config(predictor_class=4), "labels": None},
        "predictor_class 4;.*probabilities .*3",
    ),
    "no head": ({**config(finetuned_model=False), "labels": None}, "finetuned_model .*probabilities"),
    "two labels": ({"labels": {"0": "a", "1": "b"}}, "2 labels for a head of 3"),
    "labels of another index": ({"labels": {"0": "a", "1": "b", "7": "c"}}, "3 labels for a head of 3"),
    "labels a number": ({"labels": 5}, "labels cannot be read"),
    "labels indexed by a million letters": ({"labels": {LONG: "a", "1": "b", "2": "c"}}, "labels cannot be read"),
    "layer true": ({"layer": True}, "layer must be .* not True"),
    "layer 10^30": ({"layer": 10**30}, "layer must be .* not 1000"),
    "layer 3 of 2": ({"layer": 3}, "layer must be .* not 3"),
    "layer a word": ({"layer": LONG}, "layer must be .* not 'xxx"),
    "probabilities behind layer 1": ({"layer": 1}, "probabilities, which layer 1 cannot"),
    "takes features": ({"takes": "fbank"}, "takes .*fbank.* waveform, lengths"),
    "takes a list": ({"takes": ["waveform"]}, "takes .*'waveform'"),
    "takes a million letters": ({"takes": LONG}, "takes .*'xxx"),
}


@pytest.mark.parametrize(("about", "said"), HOSTILE.values(), ids=HOSTILE)
def test_settings_that_lie(engine, proto, tmp_path, about, said):
    assert re.search(said, refused(rewritten(tmp_path / "m.onnx", proto, about), engine))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("sample_rate", "8000", "sample_rate '8000'; BEATs models hear 16000"),
        ("sample_rate", LONG, "sample_rate 'xxx"),
        ("labels", '["cat", "hen", "dog"]', "name its classes twice, and not alike"),
        ("labels", '["cat"]', "name its classes twice"),
        ("labels", "[" * 10**5, "name its classes twice"),
        ("labels", LONG, "name its classes twice"),
    ],
    ids=lambda value: value[:20],
)
def test_what_other_programs_are_told_is_no_lie(engine, proto, tmp_path, name, value, said):
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    next(entry for entry in other.metadata_props if entry.key == name).value = value
    onnx.save(other, tmp_path / "m.onnx")
    assert said in refused(tmp_path / "m.onnx", engine)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "5", "[" * 10**6, '{"version": ' + "9" * 10**5 + "}", '{"version": 1}', " " * 10**7],
    ids=lambda text: repr(text[:20]),
)
def test_metadata_that_are_none(engine, proto, tmp_path, text):
    path = rewritten(tmp_path / "m.onnx", proto, text=text)
    assert "metadata that describes the model is damaged" in refused(path, engine)


def rename_output(graph):
    for node in graph.node:
        node.output[:] = ["other" if name == "embedding" else name for name in node.output]
    next(output for output in graph.output if output.name == "embedding").name = "other"


def drop_lengths(graph):
    graph.node.append(onnx.helper.make_node("Constant", [], ["lengths"], value_ints=[16_000]))
    node = graph.node.pop()
    graph.node.insert(0, node)
    del graph.input[1]


def widen_waveform(graph):
    dims = graph.input[0].type.tensor_type.shape.dim
    dims.append(onnx.TensorShapeProto.Dimension(dim_value=10**6))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (rename_output, "outputs.*other"),
        (drop_lengths, "takes .*waveform"),
        (widen_waveform, "cannot read it|waveform"),
    ],
)
def test_graphs_of_another_form(engine, proto, tmp_path, change, said):
    assert re.search(said, refused(rewritten(tmp_path / "m.onnx", proto, change=change), engine))


def test_a_patch_size_that_lies_is_found_when_it_computes(engine, proto, tmp_path):
    model = OnnxModel(rewritten(tmp_path / "m.onnx", proto, config(input_patch_size=8)), engine)
    with pytest.raises(torchbeats.CheckpointError, match="input_patch_size"):
        model.encode(torch.from_numpy(noise(1.0)).unsqueeze(0))


def test_a_head_that_was_exchanged_is_described_as_it_is(tmp_path):
    """The configuration is that of the model as it was built; the file's must be of the model as it is."""
    model = small_model(finetuned_model=True, predictor_class=3)
    model.predictor = nn.Linear(48, 5)
    torchbeats.export(model, tmp_path / "five.onnx")
    opened = torchbeats.load(tmp_path / "five.onnx")
    wav = torch.from_numpy(noise(1.0)).unsqueeze(0)
    assert opened.cfg.predictor_class == 5
    torch.testing.assert_close(opened(wav)[1], model(wav)[1], atol=1e-4, rtol=0)
    model = labelled()
    model.predictor = None
    torchbeats.export(model, tmp_path / "none.onnx")
    opened = torchbeats.load(tmp_path / "none.onnx")
    assert not opened.cfg.finetuned_model
    assert opened.labels is None
