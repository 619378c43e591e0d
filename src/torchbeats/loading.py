"""A name or a path, and an engine → a model that is ready to use."""

from __future__ import annotations

import copy
import os
import warnings
from typing import Any, Literal, TypeAlias, TypeVar, cast, overload

import torch

from torchbeats import other_models
from torchbeats.config import BEATsConfig
from torchbeats.errors import ModelError, SettingsError
from torchbeats.model import BEATs
from torchbeats.onnx.engine import ENGINES as EXPORTED
from torchbeats.onnx.engine import TITLES, OnnxModel
from torchbeats.onnx.export import SUFFIX
from torchbeats.protocol import Layer, Model
from torchbeats.tokenizers import RandomProjectionTokenizer, Tokenizers
from torchbeats.weights import checkpoint, hub, kinds

AnyModel: TypeAlias = "BEATs | Tokenizers | RandomProjectionTokenizer | OnnxModel"
M = TypeVar("M", bound="BEATs | Tokenizers | RandomProjectionTokenizer | OnnxModel")
ENGINES = ("torch", *EXPORTED)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

other_models.import_all()


@overload
def load(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    freeze: bool = True,
    engine: Literal["onnx", "openvino"],
    layer: int | None = None,
    expect: None = None,
) -> OnnxModel: ...


@overload
def load(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    freeze: bool = True,
    engine: str | None = None,
    layer: int | None = None,
    expect: type[M],
) -> M: ...


@overload
def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    freeze: bool = True,
    engine: Literal["torch"],
    layer: int | None = None,
    expect: None = None,
) -> BEATs | Tokenizers | RandomProjectionTokenizer: ...


@overload
def load(
    name_or_path: None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    freeze: bool = True,
    engine: Literal["torch"] | None = None,
    layer: int | None = None,
    expect: None = None,
) -> BEATs: ...


@overload
def load(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    freeze: bool = True,
    engine: str | None = None,
    layer: int | None = None,
    expect: None = None,
) -> AnyModel: ...


def load(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    freeze: bool = True,
    engine: str | None = None,
    layer: int | None = None,
    expect: type[Any] | None = None,
) -> Any:
    """Load a model by name or from a file.

    Args:
        name_or_path: a name that ``torchbeats models`` lists, ``owner/repo[/file][@revision]`` on the Hugging Face Hub,
            a checkpoint file of any published family, or an .onnx file that `export` wrote; None for the small model
            that comes with the package, with a warning that says so.
        device: where the model goes; "auto" for a GPU if there is one; the CPU where not given.
        dtype: of its parameters; float32 where not given. The front end stays in float32.
        freeze: stay in evaluation mode and ask for no parameter gradients, until ``model.unfreeze()``.
        engine: what computes: "torch", or on the CPU "onnx", which is ONNX Runtime, or "openvino". Where not given,
            torch for a checkpoint and ONNX Runtime for an .onnx file. A checkpoint is exported in memory for the other
            two, which takes two seconds at the base size.
        layer: at which a checkpoint ends that is exported so.
        expect: the class that the file must hold; where not given, any.

    Returns:
        A `BEATs`, with its label names under ``labels`` if it has any; from a tokenizer's checkpoint, a `Tokenizers` or
        a `RandomProjectionTokenizer`; from an .onnx file, or with another engine than "torch", an `OnnxModel`; from a
        file of another kind that is registered (see `weights.kinds`), its class.

    Raises:
        FileNotFoundError: there is no such file.
        HubError: no such name, or its file cannot be had.
        CheckpointError: the file is not a BEATs checkpoint, is damaged, or holds another kind than ``expect``.
        MissingPackageError: ONNX Runtime or OpenVINO is needed, and not installed.
        ModelError: a model that cannot be exported, or an exported one that cannot be had otherwise.
        SettingsError: a device that this machine lacks, or an engine, device and dtype that do not go together.
    """
    if name_or_path is None:
        warnings.warn(hub.BUILT_IN_NOTE, stacklevel=2)
        name_or_path = hub.BUILT_IN
    if engine not in (None, *ENGINES):
        raise SettingsError(f"There is no engine called {engine!r}; choose one of {', '.join(ENGINES)}.")
    torch_device = None if device is None else device_called(device)
    path = hub.resolve(name_or_path)
    exported = path.suffix == SUFFIX
    if exported and engine == "torch":
        raise ModelError(
            f"{path} is for ONNX Runtime or OpenVINO; for torch name the checkpoint that it was made from."
        )
    if exported and expect not in (None, OnnxModel):
        raise ModelError(f"{path} is an exported model, and a checkpoint is needed: the one that it was made from.")
    if exported and engine is None:
        engine = "onnx"
    if engine in EXPORTED:
        if device != "auto" and torch_device is not None and torch_device.type != "cpu":
            raise SettingsError(
                f"{TITLES[engine]} computes on the CPU here; leave the device out, or use the engine torch."
            )
        if dtype not in (None, torch.float32):
            raise SettingsError("A dtype is for the engine torch; for smaller numbers, export the model with --int8.")
    if exported:
        return OnnxModel(path, cast("str", engine))
    kind = None if expect is None else kinds.kind_of_model(expect)
    stored = checkpoint.read(path, expect=None if expect is None else BEATsConfig if kind is None else kind.config)
    kind = kinds.kind_of(type(stored.config))
    model = kind.build(stored, freeze)
    if engine in EXPORTED:
        if not isinstance(model, BEATs):
            raise ModelError(f"{path} is a {kind.about}; {TITLES[engine]} is for BEATs models.")
        try:
            return OnnxModel.of(model, layer, engine)
        except ValueError as error:
            raise ModelError(f"{path}: {error}") from error
    return model.to(device=torch_device, dtype=dtype)


def exported_layer(engine: str | None, layer: Layer) -> int | None:
    """The layer at which a checkpoint is to be exported for an engine; None for its last."""
    return layer if engine in EXPORTED and isinstance(layer, int) else None


def ready(
    model: Model | str | os.PathLike[str] | None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """A model to compute with: loaded by its name, or the caller's own.

    The caller's own is never changed: where it is to be elsewhere, or of another dtype, a copy of it is.

    Args:
        model: one, or what `load` takes.
        device: where it is to be; where it is, if not given.
        dtype: of its parameters; as they are, if not given.
    """
    if model is None or isinstance(model, (str, os.PathLike)):
        return load(model, device=device, dtype=dtype)
    if isinstance(model, OnnxModel):
        return model.to(None if device is None else device_called(device), dtype)
    torch_device = model.device if device is None else device_called(device)
    if not isinstance(model, torch.nn.Module):  # of another library, which cannot be moved from here
        if torch_device != model.device or dtype is not None:
            raise ModelError(f"A {type(model).__name__} cannot be moved; give it where, and as, it is to compute.")
        return model
    kinds = {parameter.dtype for parameter in model.parameters()}
    if torch_device == model.device and (dtype is None or kinds <= {dtype}):
        return model
    copied: Model = copy.deepcopy(model).to(device=torch_device, dtype=dtype)
    return copied


def device_called(name: str | torch.device) -> torch.device:
    """The device of that name, if this machine has it; for "auto" a GPU if there is one.

    Raises:
        SettingsError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)  # says at once if it is not there
    except (ValueError, RuntimeError, AssertionError) as error:  # PyTorch asserts that it has CUDA
        raise SettingsError(f"There is no device {name} here; name cpu, auto, or one that PyTorch finds.") from error
    return device
