"""`torchbeats export` and the engine onnx: the model's own numbers, whatever the settings and lengths."""

import io
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import torch.nn.functional as F

import onnx
import torchbeats
from helpers import noise, small_model, small_tokenizer, tone, write_sounds
from torchbeats import audio
from torchbeats.errors import ModelError
from torchbeats.onnx import export as onnx_export
from torchbeats.onnx.engine import OnnxModel
from torchbeats.pooling import POOLINGS

EXAMPLES = Path(__file__).parents[2] / "examples"
RATE = 16_000
LABELS = {0: "/m/04rlf", 1: "犬の鳴き声", 2: "Größe", 3: "a;b"}

# One clip or several; on both sides of a step's edge; shorter than a step and than a frame; so long that the farthest
# distances share a bucket.
LENGTHS = ([16_000], [9000, 2799, 2800, 5359, 5360], [1000, 399, 1], [60_000, 16_000])


@pytest.fixture(scope="module")
def tagger():
    model = small_model(finetuned_model=True, predictor_class=4)
    model.label_dict = LABELS
    return model


@pytest.fixture(scope="module")
def nano():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torchbeats.load()


@pytest.fixture(scope="module")
def saved(tagger, tmp_path_factory):
    """The same model as a checkpoint and as an ONNX file."""
    folder = tmp_path_factory.mktemp("model")
    torchbeats.save(tagger, folder / "small.safetensors")
    torchbeats.export(tagger, folder / "small.onnx")
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return write_sounds(tmp_path_factory.mktemp("sounds"), {"a.wav": 1.0, "b.wav": 0.1, "c.wav": 2.3})


def session(model, **settings):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(onnx_export.serialized(model, **settings), options)


def results(opened, **inputs):
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, opened.run(names, inputs)), strict=True))


def batch(lengths, seed=0):
    """Noise, also where it must not be looked at."""
    wav = torch.from_numpy(noise(max(lengths) * len(lengths) / RATE, seed=seed)).view(len(lengths), -1)
    return wav, torch.tensor(lengths)


def own(model, wav, lengths, layer=None):
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of short clips
        return model.encode(wav, lengths, layer=layer)


def check(found, expected, atol=1e-4):
    """Every output but the probabilities."""
    real = ~expected.padding_mask
    torch.testing.assert_close(found["embedding"], expected.pooled(), atol=atol, rtol=0)
    torch.testing.assert_close(found["patches"][real], expected.x[real], atol=atol, rtol=0)
    steps = real[:, :: expected.bands]
    torch.testing.assert_close(found["steps"][steps], expected.steps()[steps], atol=atol, rtol=0)
    assert found["step_counts"].tolist() == expected.step_counts().tolist()


# --- the graph


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"deep_norm": False, "layer_norm_first": True},
        {"gru_rel_pos": False},
        {"relative_position_embedding": False},
        {"embed_dim": 48, "conv_bias": True, "conv_pos": 15},
        {"input_patch_size": 32, "fbank_mean": -4.0, "fbank_std": 3.0},
        {"input_patch_size": 8, "encoder_attention_heads": 3},
        *({"activation_fn": name, "encoder_layers": 1} for name in ("relu", "gelu_accurate", "tanh", "linear", "glu")),
    ],
    ids=str,
)
def test_numbers_are_the_models(settings):
    model = small_model(**settings)
    opened = session(model)
    for lengths in LENGTHS:
        wav, lengths = batch(lengths)
        expected = own(model, wav, lengths)
        check(results(opened, waveform=wav.numpy(), lengths=lengths.numpy()), expected)


@pytest.mark.parametrize(
    ("problem_type", "pool"),
    [("multi_label", "mean"), ("single_label", "mean"), ("single_label", "bands"), ("single_label", "statistics")],
)
def test_probabilities(problem_type, pool):
    model = small_model(finetuned_model=True, predictor_class=7, problem_type=problem_type, predictor_pool=pool)
    opened = session(model)
    for lengths in LENGTHS:
        wav, lengths = batch(lengths)
        found = results(opened, waveform=wav.numpy(), lengths=lengths.numpy())
        check(found, own(model, wav, lengths))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = model(wav, lengths=lengths)[1]
        torch.testing.assert_close(found["probabilities"], expected, atol=1e-6, rtol=0)


def test_a_pooling_that_cannot_be_exported_is_said(monkeypatch):
    model = small_model(finetuned_model=True, predictor_class=7)
    model.cfg.predictor_pool = "median"
    with pytest.raises(ModelError, match=r"pooling 'median' .*cannot be exported"):
        session(model)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("first", [False, True])
def test_layers(layer, first):
    model = small_model(deep_norm=not first, layer_norm_first=first)
    wav, lengths = batch([9000, 4000])
    found = results(session(model, layer=layer), waveform=wav.numpy(), lengths=lengths.numpy())
    check(found, own(model, wav, lengths, layer))


def test_fbank_in():
    model = small_model()
    opened = session(model, takes="fbank")
    wav, lengths = batch([9000, 5360, 2800])
    counts = torch.tensor([54, 32, 16])
    fbank = model.fbank(wav)
    fbank[1, 32:] = torch.nan  # is not looked at
    check(results(opened, fbank=fbank.numpy(), lengths=counts.numpy()), own(model, wav, lengths))
    # What lacks of a step is filled up with what silence gives.
    short = results(opened, fbank=fbank[:, :5].numpy(), lengths=np.full(3, 5))
    silence = F.pad(fbank[:, :5], (0, 0, 0, 11), value=model.fbank(torch.zeros(1, 400)).min().item())
    expected = model.encode_features(model.normalise(silence))[0]
    check(short, expected)
    for padding in (0.0, math.nan):  # and what lies behind a clip is still not looked at
        padded = F.pad(fbank[:, :5], (0, 0, 0, 49), value=padding).numpy()
        found = results(opened, fbank=padded, lengths=np.full(3, 5))
        torch.testing.assert_close(found["embedding"], short["embedding"], atol=1e-4, rtol=0)


def test_nothing_behind_a_clips_length_is_looked_at():
    model = small_model()
    opened = session(model)
    wav, lengths = batch([9000, 4000])
    clean = results(opened, waveform=wav.numpy(), lengths=lengths.numpy())
    wav[1, 4000:] = torch.nan
    spoilt = results(opened, waveform=wav.numpy(), lengths=lengths.numpy())
    torch.testing.assert_close(spoilt["embedding"], clean["embedding"], atol=0, rtol=0)
    alone = results(opened, waveform=wav[1:, :4000].numpy(), lengths=lengths[1:].numpy())
    torch.testing.assert_close(alone["embedding"], clean["embedding"][1:], atol=1e-5, rtol=0)
    # A length beyond the batch's end means its end.
    beyond = results(opened, waveform=wav[:1].numpy(), lengths=np.array([10**9]))
    torch.testing.assert_close(beyond["embedding"], clean["embedding"][:1], atol=1e-5, rtol=0)


def test_the_built_in_model_on_real_sounds_and_a_tone(nano, monkeypatch):
    """Beside a pure tone the model's own FFT has only rounding, which no other gives; there with a better one."""
    opened, rounded = session(nano), session(nano, int8=True)
    embeddings, likeness = [], []
    for name in ("speech-english-2.wav", "drums-2.ogg", "engine.opus", "strings.ogg"):
        clip = np.concatenate(list(audio.stream(EXAMPLES / "audio" / name)))[np.newaxis, : 4 * RATE]
        inputs = {"waveform": clip, "lengths": np.array([clip.shape[1]])}
        expected = own(nano, torch.from_numpy(clip), None).pooled()
        torch.testing.assert_close(results(opened, **inputs)["embedding"], expected, atol=1e-4, rtol=0)
        embeddings.append(torch.cat([expected, results(rounded, **inputs)["embedding"]]))
        likeness.append(F.cosine_similarity(*embeddings[-1], dim=0).item())
    assert min(likeness) >= 0.999
    # Also of what tells the sounds apart.
    centred = torch.stack(embeddings) - torch.stack(embeddings)[:, 0].mean(0)
    assert F.cosine_similarity(centred[:, 0], centred[:, 1]).min() >= 0.99

    fft = torch.fft.rfft
    monkeypatch.setattr(torch.fft, "rfft", lambda x, n: fft(x.double(), n=n).to(torch.complex64))
    sine = tone(2, hertz=1000, level=0.9)[np.newaxis]
    found = results(opened, waveform=sine, lengths=np.array([2 * RATE]))
    torch.testing.assert_close(found["embedding"], own(nano, torch.from_numpy(sine), None).pooled(), atol=1e-4, rtol=0)


def test_half_precision_is_exported_as_float32():
    model = small_model().half()
    wav, lengths = batch([9000, 4000])
    found = results(session(model), waveform=wav.numpy(), lengths=lengths.numpy())
    check(found, own(model.float(), wav, lengths))


def test_int8_is_smaller_and_close(tagger):
    exact, rounded = (onnx_export.serialized(tagger, int8=int8) for int8 in (False, True))
    graph = onnx.load_from_string(rounded).graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    integers = [value for value in weights.values() if value.dtype == np.int8]
    assert len(integers) == 1 + 2 * 6  # the projection to the encoder's width, and those of each layer
    assert all(abs(value.astype(int)).max() == 64 for value in integers)
    assert len(exact) - len(rounded) > 2.9 * sum(value.size for value in integers) - 30_000  # more operations
    wav, lengths = batch([16_000, 9000])
    found = results(session(tagger, int8=True), waveform=wav.numpy(), lengths=lengths.numpy())
    expected = own(tagger, wav, lengths)
    assert F.cosine_similarity(found["embedding"], expected.pooled()).min() >= 0.999
    torch.testing.assert_close(found["probabilities"], tagger(wav, lengths=lengths)[1], atol=0.01, rtol=0)


@pytest.mark.parametrize("takes", ["waveform", "fbank"])
@pytest.mark.parametrize("int8", [False, True])
def test_the_file_is_valid_and_describes_itself(tagger, tmp_path, takes, int8):
    path = tmp_path / "new" / "m.onnx"
    torchbeats.export(tagger, path, takes=takes, int8=int8)
    assert [file.name for file in path.parent.iterdir()] == ["m.onnx"]
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert (proto.producer_name, proto.producer_version) == ("torchbeats", torchbeats.__version__)
    described = {p.key: p.value for p in proto.metadata_props}
    assert json.loads(described["labels"]) == ["Music", "犬の鳴き声", "Größe", "a;b"]
    assert described["sample_rate"] == "16000"
    assert described["torchbeats_version"] == torchbeats.__version__
    about = json.loads(described["torchbeats"])
    assert about["config"]["encoder_embed_dim"] == 48
    assert (about["takes"], about["int8"], about["layer"]) == (takes, int8, None)

    def shapes(values):
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    axes = {"waveform": ["batch", "samples"], "fbank": ["batch", "frames", 128]}
    assert shapes(proto.graph.input) == {takes: axes[takes], "lengths": ["batch"]}
    assert shapes(proto.graph.output) == {
        "embedding": ["batch", 48],
        "probabilities": ["batch", 4],
        "steps": ["batch", "steps", 48],
        "patches": ["batch", "patches", 48],
        "step_counts": ["batch"],
    }


def test_classes_without_names():
    opened = session(small_model(finetuned_model=True, predictor_class=3))
    assert json.loads(opened.get_modelmeta().custom_metadata_map["labels"]) == ["class 0", "class 1", "class 2"]


def test_a_head_that_was_exchanged_is_exported_as_it_is(tmp_path):
    model = small_model(finetuned_model=True, predictor_class=3)
    model.label_dict = {0: "a", 1: "b", 2: "c"}
    model.predictor = torch.nn.Linear(48, 5)
    torchbeats.export(model, tmp_path / "m.onnx")
    opened, wav = OnnxModel(tmp_path / "m.onnx"), batch([16_000])[0]
    assert opened.outputs["probabilities"].shape == (5,)
    assert opened.labels is None  # those of the head before
    torch.testing.assert_close(
        opened.compute("probabilities", wav), model.compute("probabilities", wav), atol=1e-4, rtol=0
    )
    model.predictor = None
    torchbeats.export(model, tmp_path / "m.onnx")
    assert not OnnxModel(tmp_path / "m.onnx").cfg.finetuned_model
    model.predictor = torch.nn.Sequential(torch.nn.Linear(48, 5))
    with pytest.raises(torchbeats.ModelError, match=r"predictor is a Sequential.*model\.predictor = None"):
        torchbeats.export(model, tmp_path / "m.onnx")


def test_replaced_parts_are_refused_by_name():
    """An adapter has the weights of the layer that it changes: without a look at its class it would be left out."""

    class Adapter(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + x.mean()

    model = small_model()
    model.encoder.layers[1].fc2 = Adapter(96, 48)
    with pytest.raises(torchbeats.ModelError, match=r"encoder\.layers\.1\.fc2 is a .*Adapter.*Merge adapters"):
        onnx_export.serialized(model)
    quantised = torch.ao.quantization.quantize_dynamic(small_model(), {torch.nn.Linear}, torch.qint8)
    with pytest.raises(torchbeats.ModelError, match=r"post_extract_proj is a .*Linear, which cannot be exported"):
        onnx_export.serialized(quantised)


def test_a_parametrised_layer_is_exported_with_its_weight():
    model = small_model()
    torch.nn.utils.parametrizations.weight_norm(model.encoder.layers[0].fc2)
    wav = batch([16_000])[0]
    torch.testing.assert_close(OnnxModel.of(model).compute("mean", wav), model.compute("mean", wav), atol=1e-4, rtol=0)


def test_only_beats_models_are_exported():
    class Other(torch.nn.Module):
        """A model kind of somebody else's."""

        outputs = {"mean": None}  # noqa: RUF012

    with pytest.raises(torchbeats.ModelError, match="Only a BEATs model can be exported; this has the type Other"):
        onnx_export.serialized(Other())


def test_chosen_outputs(tagger):
    def names(**settings):
        return [output.name for output in session(tagger, **settings).get_outputs()]

    assert names(outputs=["probabilities", "embedding"]) == ["embedding", "probabilities"]
    assert names(outputs=["probabilities"]) == ["probabilities"]
    assert names(outputs=["steps"]) == ["steps", "step_counts"]
    assert names(layer=1) == ["embedding", "steps", "patches", "step_counts"]
    assert "probabilities" in names(layer=2)


def test_export_refuses(tagger, tmp_path):
    path = tmp_path / "m.onnx"
    for model, settings, said in (
        (small_tokenizer(), {}, "Only a BEATs model can be exported; this has the type Tokenizers"),
        (tagger, {"takes": "mel"}, "A graph takes waveform or fbank, not 'mel'"),
        (tagger, {"outputs": ["logits"]}, "no output called 'logits'"),
        (tagger, {"outputs": []}, "must have an output"),
        (tagger, {"layer": 3}, "there is no layer 3"),
        (tagger, {"layer": 1, "outputs": ["probabilities"]}, "stands behind the last layer"),
        (small_model(), {"outputs": ["probabilities"]}, "is missing from this model"),
    ):
        with pytest.raises(ValueError, match=said):
            torchbeats.export(model, path, **settings)
    assert not list(tmp_path.iterdir())


def test_more_than_a_file_can_hold_is_refused(tagger, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "LARGEST", 10_000)
    with pytest.raises(ValueError, match="ends at 2 GB"):
        torchbeats.export(tagger, tmp_path / "m.onnx")


def test_a_file_is_complete_or_absent(tagger, tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_text("old")
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        torchbeats.export(tagger, path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


# --- without torch


def test_the_example_runs_without_torch(saved, tagger, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(1.5), RATE, subtype="FLOAT")
    example = EXAMPLES / "onnx_without_torch.py"
    code = (
        "import runpy, sys\n"
        "sys.modules['torch'] = sys.modules['torchbeats'] = None  # importing them would fail\n"
        "del sys.argv[0]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, example, saved / "small.onnx", tmp_path / "a.wav"]
    done = subprocess.run(command, capture_output=True, check=False)
    out = done.stdout.decode(errors="replace")
    assert done.returncode == 0, done.stderr
    wav = torch.from_numpy(noise(1.5))[None]
    expected = own(tagger, wav, None).pooled()[0, :4]
    found = np.fromstring(out[out.index("[") + 1 : out.index("]")], sep=" ")
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert f"{tagger(wav)[1].max():.3f}  " in out
    assert len(out.splitlines()) == 4


# --- the engine in Python


def test_the_engine_encodes_as_the_model(tagger, saved):
    engine = torchbeats.load(saved / "small.onnx")
    assert isinstance(engine, OnnxModel)
    assert engine.labels == tagger.labels
    assert engine.cfg == tagger.cfg
    wav, lengths = batch([9000, 5360, 2800])
    for given in (lengths, None):
        found, expected = engine.encode(wav, given), own(tagger, wav, given)
        check(
            {
                **found._asdict(),
                "embedding": found.pooled(),
                "patches": found.x,
                "steps": found.steps(),
                "step_counts": found.step_counts(),
            },
            expected,
        )
        torch.testing.assert_close(found.pooled_bands(), expected.pooled_bands(), atol=1e-4, rtol=0)
        torch.testing.assert_close(engine.compute("mean", wav, given), expected.pooled())
        for output, wanted in zip(engine(wav, lengths=given), tagger(wav, lengths=given), strict=True):
            if output.dim() == 3:
                output, wanted = output[~expected.padding_mask], wanted[~expected.padding_mask]
            torch.testing.assert_close(output, wanted, atol=1e-4, rtol=0)
    assert len(OnnxModel.of(small_model())(wav)) == 1
    pcm = (wav * 2**15).to(torch.int16)
    torch.testing.assert_close(engine.encode(pcm).x, tagger.encode(pcm).x, atol=1e-4, rtol=0)
    for wrong, said in ((wav[0], "must have the shape"), (wav * torch.nan, "NaN"), (wav[:, :0], "no samples")):
        with pytest.raises(ValueError, match=said):
            engine.encode(wrong)
    assert engine.to(device="cpu", dtype=torch.float32) is engine
    with pytest.raises(ValueError, match=r"cannot be moved to cpu and torch\.float16"):
        engine.to(dtype=torch.float16)


@pytest.mark.parametrize("pool", POOLINGS)
def test_embed_with_either_engine(tagger, saved, sounds, pool):
    expected, *others = (
        list(torchbeats.embed(sounds, model, pool=pool, window=1.5))
        for model in (tagger, OnnxModel.of(tagger), str(saved / "small.onnx"))
    )
    for rows in others:
        assert [row[:3] for row in rows] == [row[:3] for row in expected]
        for row, wanted in zip(rows, expected, strict=True):
            np.testing.assert_allclose(row.embedding, wanted.embedding, atol=1e-4)


def test_a_file_that_takes_features_embeds_sounds(tagger, sounds, tmp_path):
    torchbeats.export(tagger, tmp_path / "m.onnx", takes="fbank", layer=1)
    rows = torchbeats.embed(sounds, tmp_path / "m.onnx")
    for row, wanted in zip(rows, torchbeats.embed(sounds, tagger, layer=1), strict=True):
        np.testing.assert_allclose(row.embedding, wanted.embedding, atol=1e-4)


def test_tag_with_either_engine(tagger, saved, sounds):
    for every, views in ((None, 1), (0.5, 1), (None, 3)):
        expected, found = (
            list(torchbeats.tag(sounds, model, every=every, views=views)) for model in (tagger, saved / "small.onnx")
        )
        for row, wanted in zip(found, expected, strict=True):
            assert row[:3] == wanted[:3]
            assert dict(row.labels) == pytest.approx(dict(wanted.labels), abs=1e-5)


def test_what_a_file_lacks_is_said(tagger, sounds, tmp_path):
    torchbeats.export(tagger, tmp_path / "m.onnx", outputs=["embedding"], layer=1)
    torchbeats.export(small_model(), tmp_path / "headless.onnx")
    assert len(list(torchbeats.embed(sounds, tmp_path / "m.onnx"))) == 3
    for call, said in (
        (lambda: torchbeats.embed(sounds, tmp_path / "m.onnx", pool="bands"), "has the outputs embedding; .* patches"),
        (lambda: torchbeats.embed(sounds, tmp_path / "m.onnx", layer=2), "ends at layer 1; .* --layer 2"),
        (lambda: torchbeats.tag(sounds, tmp_path / "m.onnx"), "export it with probabilities as well"),
        (lambda: torchbeats.tag(sounds, tmp_path / "headless.onnx"), "no label head"),
        (lambda: torchbeats.tokenize(sounds, tmp_path / "m.onnx"), "tokens need a tokenizer"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_files_that_are_none(saved, tmp_path):
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "cut.onnx").write_bytes((saved / "small.onnx").read_bytes()[:5000])
    for name in ("text.onnx", "cut.onnx"):
        with pytest.raises(torchbeats.CheckpointError, match=f"{name}: ONNX Runtime cannot read it"):
            torchbeats.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no ONNX file missing\.onnx"):
        OnnxModel("missing.onnx")
    with pytest.raises(FileNotFoundError, match=r"missing\.onnx"):
        torchbeats.load("missing.onnx")
    with pytest.raises(torchbeats.CheckpointError, match="this is an exported model"):
        torchbeats.BEATs(saved / "small.onnx")

    proto = onnx.load(saved / "small.onnx")
    about = json.loads(next(p.value for p in proto.metadata_props if p.key == "torchbeats"))
    for metadata, said in (
        ({}, "not written by `torchbeats export`"),
        ({"torchbeats": "{"}, "metadata .* damaged"),
        ({"torchbeats": json.dumps({**about, "config": 5})}, "metadata .* damaged"),
        ({"torchbeats": json.dumps({**about, "version": 99})}, "newer torchbeats"),
    ):
        del proto.metadata_props[:]
        onnx.helper.set_model_props(proto, metadata)
        onnx.save(proto, tmp_path / "other.onnx")
        with pytest.raises(torchbeats.CheckpointError, match=said):
            torchbeats.load(tmp_path / "other.onnx")


# --- commands


def test_export_command(run, saved, tagger, tmp_path):
    target = tmp_path / "m.onnx"
    assert run("export", saved / "small.safetensors", target) == (0, "", "")
    assert target.read_bytes() == (saved / "small.onnx").read_bytes()
    arguments = ("--int8", "--fbank", "--output", "probabilities", "--output", "steps", "--layer", 2)
    status, _, err = run("export", saved / "small.safetensors", target, *arguments)
    assert status == 2
    assert "exists; use --overwrite" in err
    assert run("export", saved / "small.safetensors", target, *arguments, "--overwrite")[0] == 0
    expected = onnx_export.serialized(tagger, takes="fbank", outputs=["steps", "probabilities"], layer=2, int8=True)
    assert target.read_bytes() == expected


def test_export_command_refuses(run, saved, tmp_path):
    torchbeats.save(small_tokenizer(), tmp_path / "tokenizer.safetensors")
    target, model = tmp_path / "m.onnx", saved / "small.safetensors"
    for arguments, said in (
        ((model, tmp_path / "m.pt"), "must end in .onnx"),
        (
            (tmp_path / "tokenizer.safetensors", target),
            "this is a tokenizer checkpoint",
        ),
        ((saved / "small.onnx", target), "small.onnx is an exported model, and a checkpoint is needed"),
        ((tmp_path / "none.pt", target), "There is no checkpoint at"),
        ((model, target, "--layer", 7), "there is no layer 7"),
        ((model, target, "--output", "logits"), "'logits' is not one of"),
    ):
        status, out, err = run("export", *arguments)
        assert (status, out) == (2, "")
        assert said in err
        assert "Traceback" not in err
    assert not target.exists()


def test_help(run):
    for command, words in (("export", ("--int8", "--waveform", "--output", "--layer")), ("embed", ("--engine",))):
        status, out, _ = run(command, "--help")
        assert status == 0
        assert all(word in out for word in words)


def table(path):
    rows = pq.read_table(path)
    return np.stack(rows["embedding"].to_numpy()), json.loads(rows.schema.metadata[b"torchbeats"])


def test_embed_command_with_either_engine(run, saved, sounds, tmp_path):
    def embed(name, *arguments):
        assert run("embed", sounds, "-o", tmp_path / name, *arguments)[0] == 0
        return table(tmp_path / name)

    for more in ((), ("--layer", 1), ("--pool", "steps")):
        expected, about = embed("torch.parquet", "-m", saved / "small.safetensors", *more, "--overwrite")
        found, there = embed(
            "onnx.parquet", "-m", saved / "small.safetensors", "--engine", "onnx", *more, "--overwrite"
        )
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert (about["engine"], there["engine"]) == ("torch", "onnx")
    found, there = embed("file.parquet", "-m", saved / "small.onnx")
    np.testing.assert_allclose(
        found, embed("torch.parquet", "-m", saved / "small.safetensors", "--overwrite")[0], atol=1e-4
    )
    assert there["engine"] == "onnx"


def test_tag_and_evaluate_commands_with_either_engine(run, saved, sounds, tmp_path):
    def objects(*arguments):
        status, out, err = run("tag", sounds, "--format", "json", *arguments)
        assert (status, err) == (0, "")
        return [
            {entry["label"]: entry["probability"] for entry in json.loads(line)["labels"]} for line in io.StringIO(out)
        ]

    expected = objects("-m", saved / "small.safetensors")
    assert len(expected) == 3
    for arguments in (("-m", saved / "small.onnx"), ("-m", saved / "small.safetensors", "--engine", "onnx")):
        for row, wanted in zip(objects(*arguments), expected, strict=True):
            assert row == pytest.approx(wanted, abs=1e-5)

    lines = [json.dumps({"path": str(sounds / name), "label": "Größe"}) for name in ("a.wav", "c.wav")]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    figures = []
    for name in ("small.safetensors", "small.onnx"):
        status, out, _ = run("evaluate", tmp_path / "list.jsonl", "-m", saved / name, "--format", "json")
        assert status == 0
        figures.append(json.loads(out)["metrics"])
    assert figures[0] == pytest.approx(figures[1], abs=1e-3, nan_ok=True)


def test_engine_options_that_cannot_be(run, saved, sounds, tmp_path):
    exported, model = saved / "small.onnx", saved / "small.safetensors"
    for arguments, said in (
        (("-m", exported, "--engine", "torch"), "for torch name the checkpoint that it was made from"),
        (("-m", exported, "--dtype", "float16"), "A dtype is for the engine torch"),
        (("-m", model, "--engine", "onnx", "--device", "meta"), "ONNX Runtime computes on the CPU"),
        (("-m", exported, "--layer", 1), "ends at layer 2; for layer 1 export the model with --layer 1"),
        (("-m", model, "--engine", "onnx", "--layer", 9), "there is no layer 9"),
    ):
        status, _, err = run("embed", sounds, "-o", tmp_path / "t.parquet", *arguments)
        assert status == 2
        assert said in err
    for arguments, said in (
        (("convert", exported, tmp_path / "m.safetensors"), "is for ONNX Runtime"),
        (("tokens", sounds, "-o", tmp_path / "t.parquet", "-t", exported), "tokens need a tokenizer"),
    ):
        status, _, err = run(*arguments)
        assert status == 2
        assert said in err
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(run, saved, sounds, tmp_path, monkeypatch):
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
        said = f"This needs the package {package}: pip install 'torchbeats[onnx]'."
        commands = {
            "onnx": ("export", saved / "small.safetensors", tmp_path / "m.onnx"),
            "onnxruntime": ("tag", sounds, "-m", saved / "small.onnx"),
        }
        status, out, err = run(*commands[package])
        assert (status, out, err) == (2, "", f"Error: {said}")
        monkeypatch.delitem(sys.modules, package)
    assert not (tmp_path / "m.onnx").exists()
