"""The engine openvino, calibrated files, and the form of the graph that both want: the model's own numbers."""

import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

import onnx
import torchbeats
from helpers import EXPORTED_ENGINES, OPENVINO, noise, small_model, write_sounds
from torchbeats import audio
from torchbeats.onnx.calibration import ranges
from torchbeats.onnx.engine import OnnxModel
from torchbeats.onnx.export import serialized

EXAMPLES = Path(__file__).parents[2] / "examples" / "audio"
RATE = 16_000
# As in test_export.py: one clip or several; on both sides of a step's edge; shorter than a step and than a frame; long.
LENGTHS = ([16_000], [9000, 2799, 2800, 5359, 5360], [1000, 399, 1], [60_000, 16_000])

with_openvino = pytest.mark.parametrize("engine", [OPENVINO])
with_both = pytest.mark.parametrize("engine", EXPORTED_ENGINES)


@pytest.fixture(scope="module")
def nano():
    return torchbeats.load("beats-nano")


@pytest.fixture(scope="module")
def clips():
    """Real sounds of 2 to 3.5 s."""
    return [torch.from_numpy(audio.load(path)) for path in sorted(EXAMPLES.glob("*.*")) if path.suffix != ".md"]


@pytest.fixture(scope="module")
def calibrated(nano, clips, tmp_path_factory):
    """Calibrated with every other sound."""
    path = tmp_path_factory.mktemp("model") / "nano8.onnx"
    torchbeats.export(nano, path, int8=True, calibrate=clips[::2])
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small model with labels, as a checkpoint."""
    model = small_model(finetuned_model=True, predictor_class=3)
    model.label_dict = {0: "cat", 1: "dog", 2: "hen"}
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    torchbeats.save(model, path)
    return path


def batch(lengths, seed=0):
    """Noise, also where it must not be looked at."""
    wav = torch.from_numpy(noise(max(lengths) * len(lengths) / RATE, seed=seed)).view(len(lengths), -1)
    return wav, torch.tensor(lengths)


def padded(clips):
    """Clips of different lengths beside each other, with noise behind the shorter ones."""
    lengths = torch.tensor([len(clip) for clip in clips])
    wav, _ = batch([int(lengths.max())] * len(clips))
    for row, clip in zip(wav, clips, strict=True):
        row[: len(clip)] = clip
    return wav, lengths


def assert_same(found, expected):
    """Patches of all but padding, and what is made of them."""
    real = ~expected.padding_mask
    torch.testing.assert_close(found.x[real], expected.x[real], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.pooled(), expected.pooled(), atol=1e-4, rtol=0)
    assert found.patch_counts.tolist() == expected.patch_counts.tolist()


# --- numbers


def gates(value):
    """A model whose gates are far from 1: by negative values they become 0, by which nothing may be divided."""
    model = small_model()
    for layer in model.encoder.layers:
        layer.self_attn.grep_a.data.fill_(value)
    return model


MODELS = {
    "plain": small_model,
    "norm first": lambda: small_model(deep_norm=False, layer_norm_first=True),
    "no gate": lambda: small_model(gru_rel_pos=False),
    "gates of 1 to 3": lambda: gates(2.0),
    "gates of 0 and less": lambda: gates(-4.0),
    "gates of 10": lambda: gates(10.0),
    "no position bias": lambda: small_model(relative_position_embedding=False),
    "an odd convolution with a bias": lambda: small_model(embed_dim=48, conv_bias=True, conv_pos=15),
    "four bands": lambda: small_model(input_patch_size=32),
    "sixteen bands": lambda: small_model(input_patch_size=8),
    "gated activation": lambda: small_model(activation_fn="glu"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_fused_form_is_the_same_model(name):
    """Computed by ONNX Runtime, so that it is tested wherever that is."""
    model = MODELS[name]()
    opened = onnxruntime.InferenceSession(serialized(model, outputs=["embedding"], fused=True))
    for lengths in LENGTHS:
        wav, counts = batch(lengths)
        (found,) = opened.run(None, {"waveform": wav.numpy(), "lengths": counts.numpy()})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of short clips
            expected = model.compute("mean", wav, counts)
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=0)


@with_openvino
@pytest.mark.filterwarnings("ignore:.*shorter than")
@pytest.mark.parametrize("name", MODELS)
def test_numbers_are_the_models(engine, name):
    model = MODELS[name]()
    opened = OnnxModel.of(model, engine=engine)
    for lengths in LENGTHS:
        assert_same(opened.encode(*batch(lengths)), model.encode(*batch(lengths)))


@with_openvino
def test_files_of_sound_and_of_features(engine, tmp_path):
    """The front end that is not in OpenVINO is left out of the one, and was never in the other."""
    model = small_model(finetuned_model=True, predictor_class=3)
    wav, lengths = batch([30_000, 9000, 2800])
    for takes in ("waveform", "fbank"):
        torchbeats.export(model, tmp_path / "m.onnx", takes=takes)
        opened = torchbeats.load(tmp_path / "m.onnx", engine=engine)
        assert opened.engine == "openvino"
        assert_same(opened.encode(wav, lengths), model.encode(wav, lengths))
        for output in ("mean", "bands", "statistics", "probabilities"):
            found, expected = (each.compute(output, wav, lengths) for each in (opened, model))
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@with_openvino
def test_the_built_in_model_on_sounds_of_mixed_lengths(engine, nano, clips):
    opened = torchbeats.load("beats-nano", engine=engine)
    assert_same(opened.encode(*padded(clips)), nano.encode(*padded(clips)))


@with_both
def test_a_calibrated_file(engine, nano, clips, calibrated):
    """On sounds that it was not calibrated with, beside each other and alone."""
    opened = torchbeats.load(calibrated, engine=engine)
    unheard = clips[1::2]
    expected = nano.compute("mean", *padded(unheard))
    found = opened.compute("mean", *padded(unheard))
    assert F.cosine_similarity(found, expected).min() > 0.9999
    alone = torch.cat([opened.compute("mean", clip[None]) for clip in unheard])
    assert F.cosine_similarity(found, alone).min() > 0.99999  # beside others it is the same, but for sums' rounding
    patches = opened.encode(*padded(unheard)).x, nano.encode(*padded(unheard))
    assert F.cosine_similarity(patches[0], patches[1].x, dim=-1)[~patches[1].padding_mask].mean() > 0.999


@with_openvino
def test_products_are_computed_in_integers(engine, calibrated):
    """All six a layer, and the position convolution: a rounding that a runtime does not recognise would be slower."""
    opened = torchbeats.load(calibrated, engine=engine)
    operations = opened._session._compiled.get_runtime_model().get_ops()
    kinds = [
        (info["layerType"].astype(str), info["runtimePrecision"].astype(str))
        for info in (operation.get_rt_info() for operation in operations)
    ]
    in_integers = [kind for kind, precision in kinds if precision in ("i8", "u8")]
    assert sum(kind.startswith("FullyConnected") for kind in in_integers) == 6 * 6
    assert in_integers.count("Convolution") == 1


def test_a_calibrated_file_is_small(nano, calibrated, tmp_path):
    torchbeats.export(nano, tmp_path / "dynamic.onnx", int8=True)
    assert calibrated.stat().st_size <= (tmp_path / "dynamic.onnx").stat().st_size
    onnx.checker.check_model(onnx.load(calibrated), full_check=True)
    described = {entry.key: entry.value for entry in onnx.load(calibrated).metadata_props}
    about = json.loads(described["torchbeats"])
    assert (about["int8"], about["calibrated"]) == (True, True)


def test_ranges_are_those_of_the_sounds():
    """Of one that is louder they are wider, and several have the widest of each."""
    model = small_model()
    sounds = [torch.from_numpy(noise(1.0, seed=seed)) for seed in range(3)]
    each = [ranges(model, [sound]) for sound in sounds]
    together = ranges(model, sounds)
    assert list(together) == list(each[0])
    assert together == {name: max(found[name] for found in each) for name in together}
    assert "layers.1/fc2/input" in together
    assert "layers.1/fc2/input" not in ranges(model, sounds, layer=1)
    taken = []
    model.encoder.layers[1].fc2.register_forward_hook(lambda layer, given, result: taken.append(given[0].abs().max()))
    model.encode(sounds[0][None])
    assert each[0]["layers.1/fc2/input"] == pytest.approx(float(taken[0]), rel=1e-4)


# --- refusals


@with_openvino
def test_what_is_no_file_of_ours(engine, tmp_path):
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(torchbeats.CheckpointError, match="OpenVINO cannot read it: the file is damaged, or none"):
        torchbeats.load(tmp_path / "text.onnx", engine=engine)
    (tmp_path / "cut.onnx").write_bytes(serialized(small_model())[:5000])
    with pytest.raises(torchbeats.CheckpointError, match="the file is damaged, or none"):
        torchbeats.load(tmp_path / "cut.onnx", engine=engine)
    with pytest.raises(torchbeats.SettingsError, match="no engine called 'tensorrt'"):
        OnnxModel(tmp_path / "text.onnx", "tensorrt")


@with_openvino
def test_a_front_end_that_is_not_ours(engine, tmp_path):
    """Its place is found by names, which anybody may give."""
    proto = onnx.load_from_string(serialized(small_model()))
    for node in proto.graph.node:
        if node.op_type == "Log":
            node.name = "logarithm"
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(torchbeats.CheckpointError, match=r"its front end is not that of `torchbeats export`"):
        torchbeats.load(tmp_path / "m.onnx", engine=engine)


@with_openvino
def test_weights_in_other_files_are_not_read(engine, tmp_path):
    proto = onnx.load_from_string(serialized(small_model()))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    with pytest.raises(torchbeats.CheckpointError, match="weights are in other files"):
        torchbeats.load(tmp_path / "m.onnx", engine=engine)


def test_calibration_refuses(tmp_path):
    for settings, said in (
        ({"calibrate": [torch.zeros(RATE)]}, "are for int8"),
        ({"int8": True, "calibrate": []}, "no sounds to calibrate with"),
        ({"int8": True, "calibrate": [torch.full((RATE,), torch.nan)]}, "NaN"),
        ({"int8": True, "calibrate": [torch.zeros(2, RATE)]}, "shape"),
    ):
        with pytest.raises(ValueError, match=said):
            torchbeats.export(small_model(), tmp_path / "m.onnx", **settings)
    assert not list(tmp_path.iterdir())


@with_both
def test_silence_is_no_division_by_zero(engine, tmp_path):
    torchbeats.export(small_model(), tmp_path / "m.onnx", int8=True, calibrate=[torch.zeros(RATE)])
    opened = torchbeats.load(tmp_path / "m.onnx", engine=engine)
    assert opened.compute("mean", *batch([16_000, 9000])).isfinite().all()


# --- running


@with_openvino
def test_threads_are_torchs(engine):
    before, cores = (
        torch.get_num_threads(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    )
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            opened = OnnxModel.of(small_model(), engine=engine)
            assert opened._session._compiled.get_property("INFERENCE_NUM_THREADS") == min(count, cores)
    finally:
        torch.set_num_threads(before)


@with_openvino
def test_callers_in_several_threads_get_their_own_results(engine):
    model = small_model()
    opened = OnnxModel.of(model, engine=engine)
    sounds = [batch([9000 + 1000 * number], seed=number)[0] for number in range(6)]
    found = {}

    def work(number):
        for _ in range(5):
            found[number] = opened.compute("mean", sounds[number])

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(sounds))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for number, sound in enumerate(sounds):
        torch.testing.assert_close(found[number], model.compute("mean", sound), atol=1e-4, rtol=0)


FREED_BY_ANOTHER = """
import os, signal, sys, threading
from torchbeats.onnx.sessions import OpenVino
model = [OpenVino("a file", sys.argv[1])]
freeing = threading.Thread(target=model.clear)
freeing.start()
freeing.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("engine", [OPENVINO])
def test_a_signal_behind_a_model_that_another_thread_let_go(engine, tmp_path):
    torchbeats.export(small_model(), tmp_path / "model.onnx", takes="fbank")
    code = [sys.executable, "-X", "faulthandler", "-c", FREED_BY_ANOTHER, str(tmp_path / "model.onnx")]
    done = subprocess.run(code, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


# --- commands


@with_openvino
def test_export_and_embed_commands(engine, run, small, tmp_path):
    sounds = write_sounds(tmp_path / "sounds", {"a.wav": 1.0, "b.wav": 0.4, "c.wav": 2.3})
    (sounds / "broken.wav").write_bytes(b"RIFF")
    target = tmp_path / "m.onnx"
    status, out, err = run("export", small, target, "--int8", "--calibrate", sounds)
    assert (status, out) == (0, "")
    assert err.startswith("Warning: ")
    assert "broken.wav was left out" in err
    (sounds / "broken.wav").unlink()
    rows = {}
    for name, more in (
        ("torch", ("-m", small)),
        ("openvino", ("-m", small, "--engine", engine)),
        ("layer", ("-m", small, "--engine", engine, "--layer", 1)),
        ("torch layer", ("-m", small, "--layer", 1)),
        ("int8", ("-m", target, "--engine", engine)),
    ):
        assert run("embed", sounds, "-o", tmp_path / f"{name}.parquet", *more)[0] == 0
        table = pq.read_table(tmp_path / f"{name}.parquet")
        rows[name] = np.stack(table["embedding"].to_numpy())
        about = json.loads(table.schema.metadata[b"torchbeats"])
        assert about["engine"] == ("torch" if "torch" in name else "openvino")
    np.testing.assert_allclose(rows["openvino"], rows["torch"], atol=1e-4)
    np.testing.assert_allclose(rows["layer"], rows["torch layer"], atol=1e-4)
    assert F.cosine_similarity(*map(torch.from_numpy, (rows["int8"], rows["torch"]))).min() > 0.999
    assert run("tag", sounds, "-m", target, "--engine", engine)[0] == 0


def test_commands_refuse(run, small, tmp_path):
    sounds = write_sounds(tmp_path / "sounds", {"a.wav": 1.0})
    for name in ("b.wav", "c.wav"):
        (sounds / name).write_bytes(b"RIFF")
    target = tmp_path / "m.onnx"
    for arguments, said in (
        (("export", small, target, "--calibrate", sounds), "--calibrate is for --int8"),
        (("export", small, target, "--int8", "--calibrate", sounds / "b.wav"), "None of the sounds"),
        (("export", small, target, "--int8", "--calibrate", tmp_path / "none"), "none"),
        (
            ("embed", sounds, "-o", tmp_path / "t.parquet", "-m", small, "--engine", "openvino", "--device", "meta"),
            "CPU",
        ),
    ):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert said in err
        assert "Traceback" not in err
    assert not target.exists()


def test_a_missing_package_is_named(run, small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    sounds = write_sounds(tmp_path / "sounds", {"a.wav": 1.0})
    assert run("tag", sounds, "-m", small, "--engine", "openvino") == (
        2,
        "",
        "Error: This needs the package openvino: pip install 'torchbeats[openvino]'.",
    )
