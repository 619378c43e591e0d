"""An ONNX file that `onnx_export` wrote → a model that `embed` and `tag` take, computed by ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchbeats import labels
from torchbeats.backbone import Encoded
from torchbeats.config import BEATsConfig
from torchbeats.errors import CheckpointError
from torchbeats.extras import require
from torchbeats.fbank import Fbank
from torchbeats.model import BEATs
from torchbeats.onnx.export import serialized
from torchbeats.patches import PatchGrid, frames, mask_behind
from torchbeats.waveform import prepare
from torchbeats.weights.families import FORMAT_VERSION, METADATA_KEY


class OnnxModel(nn.Module):
    """An exported model; it computes on the CPU, with as many threads as torch has.

    Args:
        path: of a file that `export` wrote.

    Attributes:
        cfg: the `BEATsConfig` of the model that was exported.
        label_dict: its labels, as `BEATs` has them.
        outputs: what the file gives: some of "embedding", "probabilities", "steps", "patches".
        layer: whose output that is; None for the model's.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: `export` did not write it, or it is damaged.
        MissingPackageError: onnxruntime is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"There is no ONNX file {path}.")
        self._open(path, str(path))

    @classmethod
    def of(cls, model: BEATs, layer: int | None = None) -> OnnxModel:
        """A model exported in memory: the same numbers, computed by ONNX Runtime.

        Args:
            model: a `BEATs`.
            layer: whose output; the model's where not given.
        """
        made = cls.__new__(cls)
        made._open("the exported model", serialized(model, layer=layer))
        return made

    def _open(self, name: str | os.PathLike[str], content: str | bytes) -> None:
        super().__init__()
        self._name = os.fspath(name)
        onnxruntime = require("onnxruntime", "onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors, which are raised as well
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it has a dozen types of its own
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise CheckpointError(
                name, f"ONNX Runtime cannot read it: the file is damaged, or none ({why})."
            ) from error
        self._describe(name, self._session.get_modelmeta().custom_metadata_map)
        self.outputs = tuple(output.name for output in self._session.get_outputs())
        self.fbank = Fbank()

    def _describe(self, name: str | os.PathLike[str], metadata: dict[str, str]) -> None:
        if METADATA_KEY not in metadata:
            raise CheckpointError(name, "this ONNX file was not written by `torchbeats export`.")
        try:
            about = json.loads(metadata[METADATA_KEY])
            if about["version"] != FORMAT_VERSION:
                raise CheckpointError(
                    name, f"a newer torchbeats wrote it (format {about['version']}); upgrade to read it."
                )
            self.cfg = BEATsConfig(about["config"])
            self.cfg.check()
            found = about["labels"]
            self.label_dict = None if found is None else {int(index): str(label) for index, label in found.items()}
            self.layer, self._takes = about["layer"], about["takes"]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(name, f"the metadata that describes the model is damaged ({error!r}).") from error
        self.grid = PatchGrid(self.cfg.input_patch_size)

    @property
    def labels(self) -> list[str] | None:
        """Readable label of each class, as `BEATs.labels`."""
        if self.label_dict is None:
            return None
        return [labels.display_name(self.label_dict[index]) for index in sorted(self.label_dict)]

    def check(self, output: str, layer: int | None = None) -> None:
        """Raise a ``ValueError`` where the file does not give this output of this layer."""
        if layer is not None and layer != self._depth:
            raise ValueError(
                f"This ONNX file ends at layer {self._depth}; for layer {layer} export the model with --layer {layer}."
            )
        if output in self.outputs:
            return
        if output == "probabilities" and not self.cfg.finetuned_model:
            raise ValueError("This model has no label head; take one that was fine-tuned.")
        raise ValueError(f"This ONNX file has the outputs {', '.join(self.outputs)}; export it with {output} as well.")

    @property
    def _depth(self) -> int:
        return self.cfg.encoder_layers if self.layer is None else int(self.layer)

    def forward(self, wav: Tensor, *, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        """As `BEATs.forward`: ``(x,)``, or ``(x, probabilities, padding_mask)`` from a file with probabilities."""
        if "probabilities" not in self.outputs:
            return (self.encode(wav, lengths).x,)
        self.check("patches")
        wav, samples = prepare(wav, self.grid.min_samples, lengths=lengths)
        x, probabilities = self._run(("patches", "probabilities"), wav, samples)
        encoded = self._encoded(x, samples)
        return encoded.x, probabilities, encoded.padding_mask

    def encode(self, wav: Tensor, lengths: Tensor | None = None, *, layer: int | None = None) -> Encoded:
        """Features of every patch, as `BEATs.encode` gives them; ``layer`` must be the one that was exported."""
        self.check("patches", layer)
        wav, samples = prepare(wav, self.grid.min_samples, lengths=lengths)
        (x,) = self._run(("patches",), wav, samples)
        return self._encoded(x, samples)

    def compute(self, output: str, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """One of the file's outputs.

        Args:
            output: "embedding" ``(B, C)``, "probabilities" ``(B, classes)``, "steps" ``(B, steps, C)`` or "patches"
                ``(B, T, C)``, if the file has it.
            wav: ``(B, samples)`` at 16 kHz, in [-1, 1] or integer PCM.
            lengths: ``(B,)`` integers, each clip's length in samples.

        Raises:
            ValueError: wrong rank, no samples, lengths out of range, NaN or infinite samples; or the file
                lacks that output.
        """
        self.check(output)
        return self._run((output,), *prepare(wav, self.grid.min_samples, lengths=lengths))[0]

    def _run(self, outputs: Sequence[str], wav: Tensor, samples: Tensor | None) -> list[Tensor]:
        """Outputs for what `waveform.prepare` gave."""
        given, counts = wav.float(), torch.full((len(wav),), wav.size(1)) if samples is None else samples
        if self._takes == "fbank":
            with torch.inference_mode():
                given, counts = self.fbank(wav), frames(counts)
        feed = {self._takes: given.detach().numpy(), "lengths": counts.numpy()}
        return [torch.from_numpy(found) for found in self._session.run(list(outputs), feed)]

    def _encoded(self, x: Tensor, samples: Tensor | None) -> Encoded:
        counts = torch.full((len(x),), x.size(1)) if samples is None else self.grid.patches(samples)
        return Encoded(x, mask_behind(counts, x.size(1)), counts, self.grid.bands)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Always a `CheckpointError`: weights stay in the file, so this cannot be saved as a checkpoint."""
        raise CheckpointError(
            self._name,
            "this is an exported model; its weights are to be had from the checkpoint that it was made from.",
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OnnxModel:
        moved = fn(torch.zeros(1))
        if moved.device.type != "cpu" or moved.dtype != torch.float32:
            raise ValueError(
                f"An ONNX model computes on the CPU, in the numbers that it was exported with; it cannot be moved to "
                f"{moved.device} and {moved.dtype}."
            )
        return self
