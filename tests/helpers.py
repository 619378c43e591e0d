"""What several test files need: reference numbers, small models, sounds, files of them, the command in a process."""

import inspect
import io
import json
import multiprocessing
import os
import re
import signal
import sys
import tarfile
import warnings
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open

from torchbeats import BEATs, BEATsConfig, Tokenizers, TokenizersConfig, audio, cli
from torchbeats.extras import is_installed
from torchbeats.tables import store

GOLDEN = Path(__file__).parent / "golden"

# Parameters of tests: what runs an ONNX file.
OPENVINO = pytest.param(
    "openvino", marks=pytest.mark.skipif(not is_installed("openvino"), reason="the extra openvino is not installed")
)
EXPORTED_ENGINES = ("onnx", OPENVINO)

# Everything that published checkpoints switch on, at a size that computes in milliseconds.
SMALL = {
    "embed_dim": 32,
    "encoder_layers": 2,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 96,
    "encoder_attention_heads": 4,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "deep_norm": True,
    "relative_position_embedding": True,
    "num_buckets": 32,
    "max_distance": 64,
    "gru_rel_pos": True,
}


def golden(name):
    """Configuration (parsed metadata) and tensors of a reference file."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        about = {key: json.loads(value) for key, value in (file.metadata() or {}).items() if value.startswith("{")}
        return about, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def under(tensors, prefix):
    """The tensors whose names begin with ``prefix.``, without it."""
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + ".")}


def small_model(seed=0, **fields):
    """A seeded `BEATs` whose every parameter matters: none is at its initial zero or one."""
    torch.manual_seed(seed)
    return shaken(BEATs(BEATsConfig(SMALL, **fields)))


def small_tokenizer(seed=0, **fields):
    torch.manual_seed(seed)
    model = shaken(Tokenizers(TokenizersConfig(SMALL, quant_n=64, quant_dim=16, **fields)))
    codes = torch.randn(model.quantize.embedding.weight.shape)
    model.quantize.embedding.weight.copy_(torch.nn.functional.normalize(codes, dim=-1))
    model.quantize.embedding.initted.fill_(1)
    return model


def shaken(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def tone(seconds, rate=16_000, hertz=440.0, level=0.3):
    """A sine, ``(samples,)`` float32."""
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(seconds, rate=16_000, seed=0, level=0.1):
    """White noise, ``(samples,)`` float32."""
    samples = np.random.default_rng(seed).standard_normal(round(seconds * rate))
    return (level * samples).astype(np.float32)


def write_sound(path, samples, rate, subtype=None, **extra):
    """A sound file of libsndfile's; the path again."""
    soundfile.write(path, samples, rate, subtype, **extra)
    return path


def write_av(path, samples, rate, codec, *, video=False, sound=True, options=None):
    """A file from FFmpeg's own encoders, as phones and browsers write them; the path again."""
    import av  # few test files need it

    with av.open(str(path), "w", options=options or {}) as container:
        if video:
            pictures = container.add_stream("mpeg4", rate=10)
            pictures.width = pictures.height = 64
            pictures.pix_fmt = "yuv420p"
        if sound:
            track = container.add_stream(codec, rate=rate, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate = rate
            resampler = av.AudioResampler(track.codec_context.format, "mono", rate, track.codec_context.frame_size)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(track.encode(part))
            container.mux(track.encode(None))
        if video:
            for _ in range(30):  # 3 s: longer than the sound
                picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
                container.mux(pictures.encode(picture))
            container.mux(pictures.encode(None))
    return path


def write_sounds(folder, lengths):
    """Noise, a file for each name and its length in seconds; the folder again."""
    for seed, (name, seconds) in enumerate(lengths.items()):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        soundfile.write(folder / name, noise(seconds, seed=seed), 16_000)
    return folder


def shard_bytes(sounds):
    """A WebDataset shard of ``{name: content}``."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as shard:
        for name, content in sounds.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            shard.addfile(about, io.BytesIO(content))
    return file.getvalue()


def cut_short(path, part=0.6):
    """Keep a part of a file, from its beginning; the path again."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path


# Of the MP3 files of variable bit rate that some tests are of; soundfile 0.12 writes none.
writes_variable_bit_rate = pytest.mark.skipif(
    "bitrate_mode" not in inspect.signature(soundfile.write).parameters,
    reason="this soundfile writes MP3 of one bit rate only",
)


def load_quietly(path):
    """The samples of a file; any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return audio.load(path)


def plain(text):
    """Without the box that errors of usage come in, on one line."""
    return " ".join(re.sub("[─│╭╮╰╯]", " ", text).split())


IMPORTED = ["torchbeats.cli", "safetensors.torch", "soundfile", "soxr", "av", "helpers"]


def forking(*more):
    """Where processes come from that are forked from one that has imported everything.

    They take a tenth of the time of starting anew.

    Args:
        *more: modules that are to be imported as well.
    """
    if missing := [name for name in more if name not in IMPORTED]:
        IMPORTED.extend(missing)
        if forkserver._forkserver._forkserver_pid is not None:  # the next one knows them
            os.kill(forkserver._forkserver._forkserver_pid, signal.SIGTERM)  # by itself it ends only with all it began
            forkserver._forkserver._stop()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def become_command(arguments, log):
    """In a new process: be the command, which writes a part after every group; standard error goes to a file."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY, 0o600), 2)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115 - for the rest of the process
    sys.argv = ["torchbeats", *map(str, arguments)]
    store.FLUSH_SECONDS = 0.0
    torch.set_num_threads(1)
    cli.main()


# --- pre-trainings of seconds

TINY_RUN = {
    "config.encoder_layers": 1,
    "config.encoder_embed_dim": 32,
    "config.embed_dim": 32,
    "config.encoder_ffn_embed_dim": 64,
    "config.encoder_attention_heads": 2,
    "config.conv_pos": 16,
    "config.conv_pos_groups": 4,
    "tokens.quant_n": 32,
    "tokens.quant_dim": 8,
    "data.crop_seconds": "[0.5, 1]",
    "data.batch_seconds": 6,
    "data.workers": 0,
    "data.statistics_seconds": 30,
    "model.steps": 6,
    "model.warmup": 1,
    "model.predictor_layers": 1,
    "model.predictor_width": 32,
    "distillation.steps": 6,
    "distillation.warmup": 1,
    "distillation.estimator_layers": 1,
    "trainer.accelerator": "cpu",
    "trainer.log_every": 2,
}


def tiny_run(**over):
    """Assignments of settings for `--set`: `TINY_RUN`, and others as ``model__steps=3``."""
    settings = {**TINY_RUN, **{key.replace("__", "."): value for key, value in over.items()}}
    return [f"{key}={value}" for key, value in settings.items()]


def pretrain_command(data, out, **over):
    """The arguments of a pre-training; see `tiny_run`."""
    return ["pretrain", str(data), "--out", str(out), "--size", "nano"] + [
        part for assignment in tiny_run(**over) for part in ("--set", assignment)
    ]


def about_embeddings(width):
    """What a table of embeddings says of itself, of a model that there is not."""
    about = {"model": "m", "weights": "sha256:0", "engine": "torch", "dtype": "float32", "shape": [width]}
    return {**about, "pool": "mean", "layer": None, "hop": None, "window": 1.0, "batch_seconds": 40.0}


class TaskTrainer:
    """All that a task asks of its trainer."""

    global_step, global_rank = 0, 0

    def __init__(self, world_size=1):
        self.world_size = world_size


ALONE = TaskTrainer()  # a task holds no more than a weak reference
