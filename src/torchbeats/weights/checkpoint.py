"""Every published weight format in, one safetensors file that is a whole model out.

Files are data: nothing in them is ever executed.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torchbeats.config import BEATsConfig, ModelConfig
from torchbeats.errors import CheckpointError, ModelError, SettingsError, some_of
from torchbeats.files import replacing
from torchbeats.weights import integrity, kinds, transformers_folder
from torchbeats.weights.families import FORMAT_VERSION, METADATA_KEY, POSITION_TABLE, Checkpoint, recognise
from torchbeats.weights.research import for_research_code
from torchbeats.weights.trainers import plain_values

SUFFIXES = (".safetensors", ".pt", ".pth")  # of the files that are written
READ_SUFFIXES = (*SUFFIXES, ".ckpt")  # Lightning's are read too


def read(path: str | os.PathLike[str], expect: Any = None) -> Checkpoint:
    """Read a checkpoint of any family.

    Args:
        path: of the file.
        expect: the class of settings that the caller wants, `BEATsConfig` say.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a checkpoint, is damaged, or of the other kind.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    _refuse_obvious(path)
    with path.open("rb") as file:
        start = file.read(16)
    safetensors = start[8:9] == b"{"  # behind eight bytes of length comes JSON
    content, metadata = _read_safetensors(path) if safetensors else (_read_pickle(path), {})
    checkpoint = recognise(path, content, metadata)
    if expect is not None and type(checkpoint.config) is not expect:
        kind = kinds.kind_of(type(checkpoint.config))
        how = f"torchbeats.load or torchbeats.{kind.model.__name__}"
        raise CheckpointError(path, f"this is a {kind.about} checkpoint; load it with {how}.")
    return checkpoint


def fill(model: nn.Module, stored: Checkpoint) -> None:
    """Put the tensors into a model that was built from ``config``, as its float32 parameters.

    Raises:
        CheckpointError: tensors are missing, left over, of another shape, or not finite. The model is then no use.
    """
    expected = model.state_dict()
    _share_position_table(stored.tensors, expected)
    missing = [name for name in expected if name not in stored.tensors]
    extra = [name for name in stored.tensors if name not in expected]
    if len(missing) > len(expected) / 2:
        difference = f"it lacks {some_of(missing)}, and has {some_of(extra)}"
        raise CheckpointError(stored.path, f"this is a checkpoint of another model: {difference}.")
    misshapen = [
        f"{name} {tuple(stored.tensors[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in stored.tensors and stored.tensors[name].shape != tensor.shape
    ]
    rounded = [
        f"{name} ({str(stored.tensors[name].dtype).removeprefix('torch.')})"
        for name, tensor in expected.items()
        if name in stored.tensors and tensor.is_floating_point() and not stored.tensors[name].is_floating_point()
    ]
    problems = {
        "lacks": missing,
        "has tensors that do not belong to the model:": extra,
        "has shapes that are wrong:": misshapen,
        "has weights that are no floating-point numbers:": rounded,
    }
    if messages := [f"it {verb} {some_of(names)}" for verb, names in problems.items() if names]:
        raise CheckpointError(
            stored.path, f"{'; '.join(messages)}. It is damaged, or its config is that of another model."
        )
    broken = []
    ready = {}
    for name, target in expected.items():  # one at a time, so that converting never holds two copies of the model
        tensor = stored.tensors.pop(name).to(target.dtype)
        if not bool(tensor.isfinite().all()):
            broken.append(name)
        ready[name] = tensor
    if broken:
        raise CheckpointError(stored.path, f"it holds NaN or infinite weights, in {some_of(broken)}.")
    model.load_state_dict(ready, assign=True)


def _share_position_table(tensors: dict[str, Tensor], names: Iterable[str]) -> None:
    """List the one position table, which a file may store once, under every layer."""
    table = next((tensor for name, tensor in tensors.items() if POSITION_TABLE.fullmatch(name)), None)
    if table is not None:
        for name in names:
            if POSITION_TABLE.fullmatch(name):
                tensors.setdefault(name, table)


Config = TypeVar("Config", bound=ModelConfig)


def source(
    config_or_file: Config | Checkpoint | str | os.PathLike[str] | None, kind: type[Config]
) -> tuple[Config, Checkpoint | None]:
    """What a model is to be built from: its config, and the checkpoint to fill it from unless its weights are fresh."""
    if config_or_file is None:
        return kind(), None
    if isinstance(config_or_file, ModelConfig):
        return kind(config_or_file.to_dict()), None
    stored = config_or_file if isinstance(config_or_file, Checkpoint) else read(config_or_file, expect=kind)
    return stored.config, stored


@contextmanager
def drafted_for(stored: Checkpoint | None) -> Iterator[None]:
    """Around the building of a model: weights that a file is to bring are not drawn first.

    Memory that nobody writes to takes no room, so building costs next to nothing. (The meta device would do as well,
    but its operations import PyTorch's whole compiler: 80 MB and more than a second.)
    """
    with nullcontext() if stored is None else _Uninitialised():
        try:
            yield
        except (RuntimeError, ValueError, MemoryError, OverflowError) as error:
            if stored is None or isinstance(error, CheckpointError):
                raise
            raise CheckpointError(stored.path, f"no model can be built from its config ({error}).") from error


class _Uninitialised(TorchFunctionMode):
    """Skips what gives fresh weights their values."""

    _DRAWS = (Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in self._DRAWS or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def save(model: nn.Module, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
    """Write a model to one file, which is complete or absent; or to a folder for transformers.

    Args:
        model: a `BEATs`, a tokenizer, or another kind that is registered (see `weights.kinds`).
        path: ``.safetensors`` for a file that is a whole model; ``.pt`` for one that the research code and its many
            copies read. They normalise by the published mean and deviation whatever the config says: a model's own
            are folded into the patch embedding there, which then has a bias. What they have no code for (a
            random-projection tokenizer, a head over bands) is refused; a single-label model is written with a warning.
            A folder, or a name that ends in a slash: what transformers and sentence-transformers open.
        dtype: of the numbers in the file, float16 say; those of the model where not given. Loading makes them float32.

    Raises:
        SettingsError: a name with another ending.
        ModelError: a head that no checkpoint holds, a ``.pt`` of a model that the research code does not have, or a
            folder of a tokenizer.
    """
    folder = transformers_folder.is_folder(path)
    path = Path(path)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{path}: an exported model cannot be saved; save the checkpoint that it was made from.")
    config, label_dict = config_and_labels(model)
    kind = kinds.kind_of(type(config))
    if folder and type(config) is not BEATsConfig:
        raise ModelError(f"{path}: transformers has no class for a {kind.about}. Write it to a .safetensors file.")
    suffixes = SUFFIXES if isinstance(config, BEATsConfig) else SUFFIXES[:1]
    if not folder and path.suffix not in suffixes:
        reason = "" if path.suffix not in SUFFIXES else f": the research code knows no {kind.about}, and reads none"
        raise SettingsError(
            f"The name of such a checkpoint must end in {', '.join(suffixes)}; {path} does not{reason}."
        )
    state = {name: tensor.detach().to("cpu", dtype) for name, tensor in model.state_dict().items()}
    if folder:
        names: list[str] | None = model.labels if label_dict is not None else None  # type: ignore[assignment]
        transformers_folder.write(path, config, label_dict, names, state)
    elif path.suffix == ".safetensors":
        _write_safetensors(path, config, label_dict, state)
    else:
        _write_pickle(path, config, label_dict, state)


def _write_safetensors(path: Path, config: Any, label_dict: dict[int, str] | None, state: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    tables = [name for name in state if POSITION_TABLE.fullmatch(name)]
    for name in tables[1:]:  # one table, listed under every layer; a safetensors file stores a tensor once
        del state[name]
    about = {
        "version": FORMAT_VERSION,
        "kind": kinds.kind_of(type(config)).name,
        "config": plain_settings(config.to_dict()),
        "labels": label_dict,
    }
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    about = json.loads(json.dumps(about))  # as it will be read, for the digest
    with replacing(path) as temporary:
        save_file(tensors, temporary, {METADATA_KEY: json.dumps(integrity.signed(about, tensors))})


def _write_pickle(path: Path, config: BEATsConfig, label_dict: dict[int, str] | None, state: dict[str, Tensor]) -> None:
    settings, state = for_research_code(path, config, state)
    content: dict[str, Any] = {"cfg": plain_settings(settings), "model": state}
    if label_dict is not None:
        content["label_dict"] = label_dict
    with replacing(path) as temporary:
        torch.save(content, temporary)


def config_and_labels(model: nn.Module) -> tuple[Any, dict[int, str] | None]:
    """Config and labels of a model as it is: its label head may have been taken off or exchanged since it was built.

    Raises:
        ModelError: its head is no linear layer with a bias.
    """
    config: Any = copy.copy(model.cfg)
    label_dict: dict[int, str] | None = model.label_dict  # type: ignore[assignment]
    if not hasattr(model, "predictor"):
        return config, label_dict
    head: Any = model.predictor
    if head is None:
        config.update({"finetuned_model": False})
        return config, None
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise ModelError(
            f"A file holds a linear head with a bias; this model's predictor is a {type(head).__name__}. "
            "Save its state_dict, or take it off first: model.predictor = None."
        )
    config.update({"finetuned_model": True, "predictor_class": head.out_features})
    return config, label_dict if label_dict is None or len(label_dict) == head.out_features else None


# --- files to tensors -------------------------------------------------------------------------------------------------


def _refuse_obvious(path: Path) -> None:
    """Say what a file is that is often found in a checkpoint's place."""
    if path.is_dir():
        raise CheckpointError(path, "this is a folder; name the checkpoint file in it.")
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(path, "the file is empty. Download it again.")
    if path.suffix == ".onnx":
        raise CheckpointError(
            path,
            "this is an exported model, which embed, tag and evaluate take; for anything else name the checkpoint that "
            "it was made from.",
        )
    with path.open("rb") as file:
        start = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError(
            path,
            "this is a web page, not a checkpoint: the link it came from no longer delivers the file. `torchbeats "
            "models` lists where the published checkpoints are to be had.",
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            path, "this is a Git LFS pointer, not the checkpoint itself. Run `git lfs pull`, or download the file."
        )


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        # Tensors stay mapped to the file until they are written to, so a loaded model is in memory once.
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            path, f"the safetensors file is damaged or cut off ({error}). Download it again."
        ) from error


def _read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in a PyTorch file, if tensors and plain values are all that it holds."""
    integrity.check_archive(path)
    try:
        with plain_values():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"(?:GLOBAL|Unsupported class)\s+([\w.]+)", str(error))
        if forbidden:
            raise CheckpointError(
                path,
                f"it wants to run code on loading ({forbidden[1]}), which torchbeats never allows: a checkpoint holds "
                "tensors and plain values. Ask its author for a safetensors file.",
            ) from error
        raise CheckpointError(path, "this is not a checkpoint that PyTorch can read.") from error
    except Exception as error:  # PyTorch's reader takes a damaged file at its word, and may fail in any way
        size = path.stat().st_size
        raise CheckpointError(
            path,
            f"the file of {size:,} bytes is damaged, cut off, or not a checkpoint at all. Compare its size with the "
            "original's and download it again.",
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(path, f"it holds a {type(content).__name__}; a checkpoint holds a dictionary.")
    return dict(content)


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that JSON can hold; a checkpoint may have carried others, which no model is built from."""

    def plain(value: Any) -> bool:
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            return False
        return True

    return {name: value for name, value in settings.items() if plain(value)}
