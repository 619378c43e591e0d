"""An ONNX file that `export` wrote → a model that `embed` and `tag` take, computed by ONNX Runtime or OpenVINO."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchbeats import labels
from torchbeats.backbone import Encoded
from torchbeats.errors import CheckpointError, ModelError, SettingsError
from torchbeats.fbank import Fbank
from torchbeats.model import BEATs
from torchbeats.onnx.export import serialized
from torchbeats.onnx.metadata import LENGTHS
from torchbeats.onnx.outputs import BY_OUTPUT, BY_STEP
from torchbeats.onnx.sessions import OnnxRuntime, OpenVino, Session
from torchbeats.patches import PatchGrid, frames, mask_behind
from torchbeats.pooling import POOLINGS
from torchbeats.protocol import PROBABILITIES, Layer, Output, embeddings, refuse
from torchbeats.waveform import prepare

ENGINES: dict[str, Callable[[str, str | bytes], Session]] = {"onnx": OnnxRuntime, "openvino": OpenVino}
TITLES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
# What a file calls an output, where it has the very one: labels' probabilities, and a row a clip.
_INSIDE = {PROBABILITIES: PROBABILITIES} | {mode: output for output, mode in BY_OUTPUT.items() if output not in BY_STEP}


class OnnxModel:
    """An exported model; it computes on the CPU, with as many threads as torch has.

    Args:
        path: of a file that `export` wrote.
        engine: "onnx" for ONNX Runtime, or "openvino".

    Attributes:
        engine: what computes.
        cfg: the `BEATsConfig` of the model that was exported.
        label_dict: its labels, as `BEATs` has them.
        layer: at which the exported model ends; None for its last.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: `export` did not write it, or it is damaged.
        MissingPackageError: onnxruntime, or openvino, is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], engine: str = "onnx") -> None:
        path = Path(path).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"There is no ONNX file {path}.")
        self._open(path, str(path), engine)

    @classmethod
    def of(cls, model: BEATs, layer: int | None = None, engine: str = "onnx") -> OnnxModel:
        """A model exported in memory: the same numbers, computed by ONNX Runtime or OpenVINO.

        Args:
            model: a `BEATs`.
            layer: whose output; the model's where not given.
            engine: "onnx" for ONNX Runtime, or "openvino".
        """
        result = cls.__new__(cls)
        for_openvino = engine == "openvino"
        content = serialized(model, takes="fbank" if for_openvino else "waveform", layer=layer, fused=for_openvino)
        result._open("the exported model", content, engine)
        return result

    def _open(self, name: str | os.PathLike[str], content: str | bytes, engine: str) -> None:
        self._name, self.engine = os.fspath(name), engine
        if engine not in ENGINES:
            raise SettingsError(f"An ONNX file has no engine called {engine!r}; choose {' or '.join(ENGINES)}.")
        self._session = ENGINES[engine](self._name, content)
        result = self._session.description
        self.cfg, self.label_dict, self.layer = result.config, result.label_dict, result.layer
        self.grid = PatchGrid(self.cfg.input_patch_size)
        self._takes, self._inside = self._session.takes, tuple(self._session.outputs)
        self._fbank = Fbank()
        self._digest = hashlib.sha256(content if isinstance(content, bytes) else Path(content).read_bytes()).hexdigest()

    @property
    def labels(self) -> list[str] | None:
        """Readable label of each class, as `BEATs.labels`."""
        if self.label_dict is None:
            return None
        return [labels.display_name(self.label_dict[index]) for index in sorted(self.label_dict)]

    @property
    def outputs(self) -> dict[str, Output]:
        """What `compute` gives, by name: what the file has, and every pooling that can be made of its patches."""
        possible = embeddings(self.cfg.encoder_embed_dim, self.grid.bands)
        if "patches" not in self._inside:
            possible = {name: output for name, output in possible.items() if _INSIDE.get(name) in self._inside}
        if PROBABILITIES in self._inside:
            possible[PROBABILITIES] = Output((self.cfg.predictor_class,), np.dtype(np.float32))
        return possible

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    def digest(self) -> str:
        """SHA-256 of the file."""
        return self._digest

    def check(self, output: str, layer: Layer = None) -> None:
        """Raise a `ModelError` where the file does not give this output of this layer."""
        if layer is not None and layer != self._depth:
            raise ModelError(
                f"This ONNX file ends at layer {self._depth}; for layer {layer} export the model with --layer {layer}."
            )
        if output in self.outputs:
            return
        if output in (*POOLINGS, PROBABILITIES) and (output != PROBABILITIES or self.cfg.finetuned_model):
            missing = output if output == PROBABILITIES else "patches"
            raise ModelError(
                f"This ONNX file has the outputs {', '.join(self._inside)}; export it with {missing} as well."
            )
        refuse(self.outputs, output)

    @property
    def _depth(self) -> int:
        return self.cfg.encoder_layers if self.layer is None else int(self.layer)

    def __call__(self, wav: Tensor, *, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        """As `BEATs.forward`: ``(x,)``, or ``(x, probabilities, padding_mask)`` from a file with probabilities."""
        if PROBABILITIES not in self._inside:
            return (self.encode(wav, lengths).x,)
        self.check("patches")
        wav, samples = prepare(wav, self.grid.min_samples, lengths=lengths)
        x, probabilities = self._run(("patches", PROBABILITIES), wav, samples)
        encoded = self._encoded(x, samples)
        return encoded.x, probabilities, encoded.padding_mask

    def encode(self, wav: Tensor, lengths: Tensor | None = None, *, layer: int | None = None) -> Encoded:
        """Features of every patch, as `BEATs.encode` gives them; ``layer`` must be the one that was exported."""
        self.check("patches", layer)
        wav, samples = prepare(wav, self.grid.min_samples, lengths=lengths)
        (x,) = self._run(("patches",), wav, samples)
        return self._encoded(x, samples)

    def compute(self, output: str, wav: Tensor, lengths: Tensor | None = None, layer: Layer = None) -> Tensor:
        """One of `outputs`.

        Args:
            output: its name.
            wav: ``(B, samples)`` at 16 kHz, in [-1, 1] or integer PCM.
            lengths: ``(B,)`` integers, each clip's length in samples.
            layer: must be the one that was exported, where given.

        Returns:
            ``(B, D)``, or by step ``(B, steps, D)``, float32.

        Raises:
            ValueError: wrong rank, no samples, lengths out of range, NaN or infinite samples; or the file
                lacks that output.
        """
        self.check(output, layer)
        wav, samples = prepare(wav, self.grid.min_samples, lengths=lengths)
        name = _INSIDE.get(output)
        if name is not None and name in self._inside:
            return self._run((name,), wav, samples)[0]
        (x,) = self._run(("patches",), wav, samples)
        return self._encoded(x, samples).pool(output)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> OnnxModel:
        """The model itself, which stays where it is.

        Raises:
            ModelError: another device than the CPU, or another dtype than float32.
        """
        device = self.device if device is None else torch.device(device)
        if device.type != "cpu" or dtype not in (None, torch.float32):
            raise ModelError(
                "An ONNX model computes on the CPU, in the numbers that it was exported with; it cannot be moved to "
                f"{device} and {dtype or torch.float32}."
            )
        return self

    def _run(self, outputs: Sequence[str], wav: Tensor, samples: Tensor | None) -> list[Tensor]:
        """Outputs for what `waveform.prepare` gave."""
        inputs, counts = wav.float(), torch.full((len(wav),), wav.size(1)) if samples is None else samples
        if self._takes == "fbank":
            with torch.inference_mode():
                whole = self.grid.steps(wav.size(1)) * self.grid.patch_size  # frames of whole patches: fewer shapes
                inputs, counts = self._fbank(wav)[:, :whole], frames(counts)
        feed = {self._takes: inputs.detach().numpy(), LENGTHS: counts.numpy()}
        results = [torch.from_numpy(result) for result in self._session.run(outputs, feed)]
        for output, result in zip(outputs, results, strict=True):
            if output == "patches" and result.size(1) != (expected := self.grid.patches(wav.size(1))):
                raise CheckpointError(
                    self._name,
                    f"it gives {result.size(1)} patches where {expected} belong to its input_patch_size of "
                    f"{self.cfg.input_patch_size}: its metadata are those of another model.",
                )
        return results

    def _encoded(self, x: Tensor, samples: Tensor | None) -> Encoded:
        counts = torch.full((len(x),), x.size(1)) if samples is None else self.grid.patches(samples)
        return Encoded(x, mask_behind(counts, x.size(1)), counts, self.grid.bands)
