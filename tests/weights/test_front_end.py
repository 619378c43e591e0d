"""AVEX 1.4 stores its front end with the weights: it is ours, or the model is none of ours."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

import torchbeats
from helpers import noise, small_model
from torchbeats import CheckpointError

HEAD = {"finetuned_model": True, "predictor_class": 3}


def avex_filters(bands=128, low=20.0, high=8000.0, rate=16000, size=512):
    """AVEX's filters by its own formula, in float32: ``(257, bands)``."""

    def mel(hz):
        return 1127.0 * math.log(1.0 + hz / 700.0)

    delta = (mel(high) - mel(low)) / (bands + 1)
    left = mel(low) + torch.arange(bands).unsqueeze(1) * delta
    mels = (1127.0 * (1.0 + rate / size * torch.arange(size // 2) / 700.0).log()).unsqueeze(0)
    rising, falling = (mels - left) / delta, (left + 2 * delta - mels) / delta
    return torch.nn.functional.pad(torch.minimum(rising, falling).clamp_min(0), (0, 1)).T


def avex_window(samples=400):
    return torch.hann_window(samples, periodic=False).pow(0.85)


def avex(path, window=None, filters=None, prefix="backbone.", dtype=torch.float32):
    source = small_model(max_distance=800, **HEAD)
    with torch.no_grad():
        for tensor in source.state_dict().values():
            tensor.copy_(tensor.to(dtype))
    stored = {prefix + name: tensor.to(dtype) for name, tensor in source.state_dict().items()}
    for part in ("weight", "bias"):
        stored[f"classifier.{part}"] = stored.pop(f"{prefix}predictor.{part}")
    stored[f"{prefix}fbank.window"] = (avex_window() if window is None else window).to(dtype)
    stored[f"{prefix}fbank.mel_fb"] = (avex_filters() if filters is None else filters).to(dtype)
    if path.suffix == ".safetensors":
        save_file({name: tensor.clone().contiguous() for name, tensor in stored.items()}, path)
    else:
        torch.save({"model_state_dict": stored, "epoch": 3}, path)
    (path.parent / "label_map.json").write_text(json.dumps({"0": "a", "1": "b", "2": "c"}))
    return source


@pytest.mark.filterwarnings("ignore:.*no settings beside")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_front_end_that_is_ours_is_dropped(tmp_path, suffix, prefix, dtype):
    if prefix.startswith("module"):
        source = avex(tmp_path / f"m{suffix}", prefix="backbone.", dtype=dtype)
        stored = torch.load(tmp_path / "m.pt", weights_only=True) if suffix == ".pt" else None
        if stored is None:
            return
        stored["model_state_dict"] = {f"module.{k}": v for k, v in stored["model_state_dict"].items()}
        torch.save(stored, tmp_path / "m.pt")
    else:
        source = avex(tmp_path / f"m{suffix}", prefix=prefix, dtype=dtype)
    loaded = torchbeats.load(tmp_path / f"m{suffix}")
    wav = torch.from_numpy(noise(0.5)).unsqueeze(0)
    assert torch.equal(loaded(wav)[1], source(wav)[1])
    assert loaded.labels == ["a", "b", "c"]


OTHERS = {
    "64 bands": {"filters": avex_filters(bands=64)},
    "from 50 Hz": {"filters": avex_filters(low=50.0)},
    "up to 7.6 kHz": {"filters": avex_filters(high=7600.0)},
    "32 kHz": {"filters": avex_filters(rate=32000, high=16000.0)},
    "another window": {"window": torch.hann_window(400, periodic=False)},
    "a longer window": {"window": avex_window(480)},
    "not a number": {"window": torch.full((400,), torch.nan)},
}


@pytest.mark.parametrize("front", OTHERS.values(), ids=OTHERS)
def test_another_front_end_is_told(tmp_path, front):
    avex(tmp_path / "m.safetensors", **front)
    with pytest.raises(CheckpointError, match=r"another front end: its fbank\.(window|mel_fb) is not that of 128 mel"):
        torchbeats.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("setting", [("num_mel_bins", 64), ("sample_frequency", 32000.0), ("frame_shift", 20.0)])
def test_settings_of_another_front_end_are_told(tmp_path, setting):
    name, value = setting
    source = small_model()
    for told, fails in ((value, True), ({"num_mel_bins": 128, "frame_shift": 10.0}.get(name, 16000.0), False)):
        cfg = {**source.cfg.to_dict(), name: told}
        torch.save({"cfg": cfg, "model": source.state_dict()}, tmp_path / "m.pt")
        if fails:
            with pytest.raises(CheckpointError, match=f"another front end: {name} {value:g}"):
                torchbeats.load(tmp_path / "m.pt")
        else:
            torchbeats.load(tmp_path / "m.pt")
