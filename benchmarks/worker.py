"""One implementation of BEATs in a process of its own, told what to do by lines of JSON, one answer a line.

`bench.Worker` starts it, with the Python of the environment that the implementation is installed in. So this file
imports nothing but the standard library until it is told to, and nothing of torchbeats but in `Torchbeats`.
"""

import json
import os
import sys
import time
from pathlib import Path


class Torchbeats:
    """Ours: a checkpoint, or an .onnx file that `torchbeats export` wrote."""

    options = {}  # noqa: RUF012

    def __init__(self):
        import torchbeats

        self.package = torchbeats

    def load(self, checkpoint, device):
        self.model = self.package.load(checkpoint, device=device, **self.options)

    def patches(self, wav):
        """Patches ``(B, T, C)`` of whole clips ``(B, samples)``."""
        return self.model.encode(wav).x

    def folder(self, paths, batch, window):
        """The mean over each file's patches ``(files, C)``; over its windows, if it has several."""
        import numpy as np

        rows = {}
        for row in self.package.embed(paths, self.model, window=window):
            rows.setdefault(row.path, []).append(row.embedding)
        return np.stack([np.mean(rows[path], axis=0) for path in paths])


class OpenVino(Torchbeats):
    """The same by OpenVINO."""

    options = {"engine": "openvino"}  # noqa: RUF012


class Peer:
    """What the peers have in common: none makes batches of files, so each gets the loop that its users write."""

    def folder(self, paths, batch, window):
        """The mean over each file's patches ``(files, C)``, in batches padded to their longest."""
        import numpy as np
        import soundfile
        import torch

        means = []
        for first in range(0, len(paths), batch):
            clips = [soundfile.read(path, dtype="float32")[0] for path in paths[first : first + batch]]
            wav = torch.zeros(len(clips), max(map(len, clips)))
            for row, clip in zip(wav, clips, strict=True):
                row[: len(clip)] = torch.from_numpy(clip)
            x = self.patches(wav.to(self.device), [len(clip) for clip in clips])
            for row, clip in zip(x, clips, strict=True):
                own = 8 * ((1 + (len(clip) - 400) // 160) // 16)  # eight bands of each 16 frames
                means.append(row[:own].mean(0).cpu().numpy())
        return np.stack(means)


class SpeechBrain(Peer):
    def __init__(self):
        from speechbrain.lobes.models.beats import BEATs

        self.kind = BEATs

    def load(self, checkpoint, device):
        self.device = device
        self.model = self.kind(checkpoint).to(device)  # it loads strictly, and evaluates without gradients

    def patches(self, wav, lengths=None):
        import torch

        # It does not work without lengths.
        lengths = [wav.shape[1]] * len(wav) if lengths is None else lengths
        return self.model(wav, torch.tensor(lengths, device=wav.device) / wav.shape[1])[0]


class Avex(Peer):
    """Its backbone, as its own wrapper calls it; the wrapper itself loads from the network only."""

    def __init__(self):
        from avex.models.beats import BEATs, BEATsConfig

        self.kind, self.settings = BEATs, BEATsConfig

    def load(self, checkpoint, device):
        import torch

        self.device = device
        stored = torch.load(checkpoint, weights_only=True)
        self.model = self.kind(self.settings(**stored["cfg"]))
        found = self.model.load_state_dict(stored["model"], strict=False)
        # Window and mel filters of its front end are constants that no checkpoint holds.
        if odd := [name for name in found.missing_keys if not name.startswith("fbank.")] + found.unexpected_keys:
            raise ValueError(f"AVEX does not take these weights: {odd[:5]}.")
        self.model.eval().to(device)

    def patches(self, wav, lengths=None):
        import torch

        mask = None
        if lengths is not None and min(lengths) < wav.shape[1]:
            mask = torch.arange(wav.shape[1], device=wav.device) >= torch.tensor(lengths, device=wav.device)[:, None]
        return self.model(wav, mask)[0]


class OpenBeats(Peer):
    def __init__(self):
        from openbeats.model import OpenBeats as Kind

        self.kind = Kind

    def load(self, checkpoint, device):
        self.device = device
        self.model = self.kind.from_pretrained(checkpoint, device=device).encoder

    def patches(self, wav, lengths=None):
        import torch

        lengths = [wav.shape[1]] * len(wav) if lengths is None else lengths
        return self.model(wav, torch.tensor(lengths, device=wav.device), waveform_input=True)[0]


class Products:
    """No model: the matrix products that the encoder cannot do without, and nothing else.

    They are those of its linear layers and of attention, in the shapes of one batch, by oneDNN where PyTorch has it for
    this processor, which torchbeats takes too. The position convolution, the front end, softmax, norms and activations
    cost nothing here.
    """

    def load(self, checkpoint, device):
        import torch

        stored = torch.load(checkpoint, weights_only=True)["cfg"]
        self.layers, self.heads = stored["encoder_layers"], stored["encoder_attention_heads"]
        self.dim, self.hidden = stored["encoder_embed_dim"], stored["encoder_ffn_embed_dim"]
        self.device = device

    def patches(self, wav):
        import torch

        clips, samples = wav.shape
        count = 8 * ((1 + (samples - 400) // 160) // 16)
        if getattr(self, "made", None) != (clips, count):
            self.made = (clips, count)
            sizes = [(self.dim, self.dim)] * 4 + [(self.dim, self.hidden), (self.hidden, self.dim)]
            draw = lambda *shape: torch.randn(*shape, device=self.device)  # noqa: E731
            self.linear = [(draw(clips * count, inner), draw(outer, inner)) for inner, outer in sizes]
            head = self.dim // self.heads
            self.query, self.key = (draw(clips * self.heads, count, head) for _ in range(2))
            self.scores = draw(clips * self.heads, count, count)
        onednn = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
        linear = torch.nn.functional.linear
        if onednn and self.device == "cpu":
            linear = lambda given, weight: torch.ops.mkldnn._linear_pointwise(given, weight, None, "none", [], "none")  # noqa: E731
        for _ in range(self.layers):
            for given, weight in self.linear:
                linear(given, weight)
            torch.bmm(self.query, self.key.mT, out=self.scores)
            torch.bmm(self.scores, self.key)
        return self.query


class IntegerProducts(Products):
    """Those of the linear layers alone, in 8-bit integers with float32 results, by oneDNN."""

    def patches(self, wav):
        import torch

        clips, samples = wav.shape
        count = 8 * ((1 + (samples - 400) // 160) // 16)
        if getattr(self, "made", None) != (clips, count):
            self.made, self.linear = (clips, count), []
            for inner, outer in [(self.dim, self.dim)] * 4 + [(self.dim, self.hidden), (self.hidden, self.dim)]:
                given = torch.randint(0, 255, (clips * count, inner), dtype=torch.uint8)
                weight = torch.randint(-64, 64, (outer, inner), dtype=torch.int8)
                packed = torch.ops.onednn.qlinear_prepack(weight, list(given.shape))
                self.linear.append((given, packed, torch.ones(outer), torch.zeros(outer, dtype=torch.int64)))
        for _ in range(self.layers):
            for given, packed, steps, zeros in self.linear:
                result = torch.ops.onednn.qlinear_pointwise(
                    given, 0.1, 0, packed, steps, zeros, None, 1.0, 0, torch.float32, "none", [], ""
                )
        return result


ENGINES = {
    "torchbeats": Torchbeats,
    "openvino": OpenVino,
    "speechbrain": SpeechBrain,
    "avex": Avex,
    "openbeats": OpenBeats,
}
ENGINES |= {"products": Products, "int8_products": IntegerProducts}


def memory(field):
    """VmRSS, what this process holds of memory, or VmHWM, the most that it ever did; in MB, or None outside Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


class Session:
    """What a worker can be told; every public method is a command."""

    def __init__(self, engine, threads):
        self._kind, self._threads = ENGINES[engine], threads
        self._clips = {}

    def start(self):
        """Import the implementation."""
        begun = time.perf_counter()
        self._engine = self._kind()
        seconds = time.perf_counter() - begun
        import torch

        if self._threads:
            torch.set_num_threads(self._threads)
        torch.set_grad_enabled(False)
        return {"seconds": seconds}

    def load(self, checkpoint, device):
        begun = time.perf_counter()
        self._engine.load(checkpoint, device)
        self._device = device
        self._wait()
        return {"seconds": time.perf_counter() - begun, "rss": memory("VmRSS")}

    def encode(self, clips, seconds):
        """Time one pass over noise that is in memory."""
        wav = self._noise(clips, seconds)
        self._wait()
        begun, processor = time.perf_counter(), time.process_time()
        self._engine.patches(wav)
        self._wait()
        return {
            "seconds": time.perf_counter() - begun,
            "processor": time.process_time() - processor,
            "peak": memory("VmHWM"),
        }

    def values(self, clips, seconds, out):
        """Write the patches of the same noise, for comparison."""
        import numpy as np

        np.save(out, self._engine.patches(self._noise(clips, seconds)).float().cpu().numpy())
        return {}

    def folder(self, paths, out, batch=1, window=None):
        """Time files → one embedding each."""
        import numpy as np

        begun = time.perf_counter()
        means = self._engine.folder(paths, batch, window)
        taken = time.perf_counter() - begun
        np.save(out, means)
        return {"seconds": taken}

    def command(self, arguments):
        """Run ``torchbeats …`` in this process, to see what memory it takes."""
        from torchbeats.cli import main

        sys.argv = ["torchbeats", *arguments]
        begun = time.perf_counter()
        try:
            main()
        except SystemExit as done:
            if done.code:
                raise RuntimeError(f"`torchbeats {' '.join(arguments)}` ended with status {done.code}.") from done
        return {"seconds": time.perf_counter() - begun, "peak": memory("VmHWM")}

    def export(self, checkpoint, out, int8, sounds=()):
        """Write an ONNX file, calibrated where there are sounds."""
        import torchbeats
        from torchbeats import audio

        settings = {"calibrate": map(audio.load, sounds)} if sounds else {}
        torchbeats.export(torchbeats.load(checkpoint), out, int8=int8, **settings)
        return {}

    def _noise(self, clips, seconds):
        import torch

        if (clips, seconds) not in self._clips:
            drawn = torch.randn(clips, round(16000 * seconds), generator=torch.Generator().manual_seed(0)) / 10
            self._clips = {(clips, seconds): drawn.to(self._device)}
        return self._clips[clips, seconds]

    def _wait(self):
        import torch

        if self._device.startswith("cuda"):
            torch.cuda.synchronize()


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    session = Session(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(session, request.pop("do"))(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
