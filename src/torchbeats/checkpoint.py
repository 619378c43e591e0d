"""Every published weight format in, one safetensors file that is a whole model out.

The formats are told apart by what is in the file, never by its name:

| family | file | beside it |
|---|---|---|
| ours | safetensors; config and labels in its metadata | |
| Microsoft: BEATs, its fine-tuned models and tokenizers | ``{"cfg", "model", "label_dict"}`` | |
| OpenBEATs (ESPnet), pre-trained | ``{"cfg", "model"}`` and two frozen convolutions | |
| OpenBEATs (ESPnet), fine-tuned | tensors under ``encoder.``, a head under ``decoder.`` | ``config.yaml`` |
| AVEX, NatureBEATs | safetensors, flat or under ``backbone.``, a head under ``classifier.`` | ``label_map.json`` |

Files are data: nothing in them is ever executed.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torchbeats.config import BEATsConfig, TokenizersConfig
from torchbeats.encoder import PARAMETRIZED_NAMES
from torchbeats.files import replacing

METADATA_KEY = "torchbeats"  # of the JSON in our safetensors files' metadata
FORMAT_VERSION = 1
SUFFIXES = (".safetensors", ".pt", ".pth")

_POSITION_TABLE = re.compile(r"encoder\.layers\.\d+\.self_attn\.relative_attention_bias\.weight")
# Frozen helpers of ESPnet's front end, which hold nothing that was learned.
_UNUSED = ("patch_embedding_pad.", "raw2fbank_pad.")
# Where ESPnet's models and AVEX's keep a label head; ours and Microsoft's is called "predictor".
_HEADS = ("decoder.linear_out.", "classifier.", "output_layer.", "head.")


class CheckpointError(ValueError):
    """A file from which no model can be loaded; the message names it and says why."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = os.fspath(path)
        self.reason = reason


@dataclass
class Checkpoint:
    """What a file holds, in the reference's names.

    Attributes:
        path: of the file.
        config: a `TokenizersConfig` if the model is a tokenizer.
        tensors: by state-dict name; emptied as they go into a model.
        label_dict: class index to label, of a fine-tuned model.
    """

    path: Path
    config: Any
    tensors: dict[str, Tensor]
    label_dict: dict[int, str] | None = field(default=None)

    def fill(self, model: nn.Module) -> None:
        """Put the tensors into a model that was built from ``config``, as its float32 parameters.

        Raises:
            CheckpointError: tensors are missing, left over, of another shape, or not finite. The model is then no use.
        """
        wanted = model.state_dict()
        _share_position_table(self.tensors, wanted)
        missing = [name for name in wanted if name not in self.tensors]
        extra = [name for name in self.tensors if name not in wanted]
        if len(missing) > len(wanted) / 2:
            raise CheckpointError(
                self.path, f"this is a checkpoint of another model: it lacks {_few(missing)}, and has {_few(extra)}."
            )
        misshapen = [
            f"{name} {tuple(self.tensors[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in self.tensors and self.tensors[name].shape != tensor.shape
        ]
        faults = {
            "lacks": missing,
            "has tensors that do not belong to the model:": extra,
            "has shapes that are wrong:": misshapen,
        }
        if told := [f"it {verb} {_few(names)}" for verb, names in faults.items() if names]:
            raise CheckpointError(
                self.path, f"{'; '.join(told)}. It is damaged, or its config is that of another model."
            )
        if odd := [name for name in wanted if not _is_plain(self.tensors[name])]:
            raise CheckpointError(self.path, f"it has tensors without plain values: {_few(odd)}.")
        broken = []
        ready = {}
        for name, target in wanted.items():  # one at a time, so that converting never holds two copies of the model
            tensor = self.tensors.pop(name).to(target.dtype)
            if not bool(tensor.isfinite().all()):
                broken.append(name)
            ready[name] = tensor
        if broken:
            raise CheckpointError(self.path, f"it holds NaN or infinite weights, in {_few(broken)}.")
        model.load_state_dict(ready, assign=True)


def read(path: str | os.PathLike[str], expect: type[BEATsConfig] | None = None) -> Checkpoint:
    """Read a checkpoint of any family.

    Args:
        path: of the file.
        expect: `BEATsConfig` or `TokenizersConfig`: what kind of model the caller wants.

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
    if start[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        tensors, metadata = _read_safetensors(path)
        found = _ours(path, tensors, metadata) if METADATA_KEY in metadata else _bare(path, tensors)
    else:
        content = _read_pickle(path)
        found = _microsoft(path, content) if isinstance(content.get("model"), Mapping) else _bare(path, content)
    layers = _layers(found.tensors)
    if not layers:
        raise CheckpointError(path, f"this is a checkpoint of another model: it has {_few(list(found.tensors))}.")
    if layers != found.config.encoder_layers:  # said before anything of the size that the config asks for is built
        raise CheckpointError(path, f"its config speaks of {found.config.encoder_layers} layers; it holds {layers}.")
    if expect is not None and isinstance(found.config, TokenizersConfig) != (expect is TokenizersConfig):
        kind, use = ("tokenizer", "Tokenizers") if isinstance(found.config, TokenizersConfig) else ("model", "BEATs")
        raise CheckpointError(path, f"this is a {kind} checkpoint; load it with torchbeats.load or torchbeats.{use}.")
    return found


Config = TypeVar("Config", bound=BEATsConfig)


def source(
    given: Config | Checkpoint | str | os.PathLike[str] | None, kind: type[Config]
) -> tuple[Config, Checkpoint | None]:
    """What a model is to be built from: its config, and the checkpoint to fill it from unless its weights are fresh."""
    if given is None:
        return kind(), None
    if isinstance(given, BEATsConfig):
        return kind(given.to_dict()), None
    stored = given if isinstance(given, Checkpoint) else read(given, expect=kind)
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


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model to one file, which is complete or absent.

    Args:
        model: a `BEATs` or `Tokenizers`.
        path: ``.safetensors`` for a file that is a whole model; ``.pt`` for one that the research code and its many
            copies read.
    """
    path = Path(path)
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    config: BEATsConfig = model.cfg  # type: ignore[assignment]
    label_dict: dict[int, str] | None = model.label_dict  # type: ignore[assignment]
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        tables = [name for name in state if _POSITION_TABLE.fullmatch(name)]
        for name in tables[1:]:  # one table, listed under every layer; a safetensors file stores a tensor once
            del state[name]
        about = {
            "version": FORMAT_VERSION,
            "kind": "tokenizer" if isinstance(config, TokenizersConfig) else "beats",
            "config": _plain(config.to_dict()),
            "labels": label_dict,
        }
        with replacing(path) as temporary:
            tensors = {name: tensor.contiguous() for name, tensor in state.items()}
            save_file(tensors, temporary, {METADATA_KEY: json.dumps(about)})
    elif path.suffix in SUFFIXES:
        content: dict[str, Any] = {"cfg": _plain(config.to_dict()), "model": state}
        if label_dict is not None:
            content["label_dict"] = label_dict
        with replacing(path) as temporary:
            torch.save(content, temporary)
    else:
        raise ValueError(f"The name of a checkpoint must end in {', '.join(SUFFIXES)}; {path} does not.")


# --- files to tensors -------------------------------------------------------------------------------------------------


def _refuse_obvious(path: Path) -> None:
    """Say what a file is that is often found in a checkpoint's place."""
    if path.is_dir():
        raise CheckpointError(path, "this is a folder; name the checkpoint file in it.")
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(path, "the file is empty. Download it again.")
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


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
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
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"(?:GLOBAL|Unsupported class)\s+([\w.]+)", str(error))
        if wanted:
            raise CheckpointError(
                path,
                f"it wants to run code on loading ({wanted[1]}), which torchbeats never allows: a checkpoint holds "
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


# --- families ---------------------------------------------------------------------------------------------------------


def _ours(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Checkpoint:
    try:
        about = json.loads(metadata[METADATA_KEY])
        version, kind, cfg, labels = about["version"], about["kind"], about["config"], about["labels"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(path, f"the metadata that describes the model is damaged ({error!r}).") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(path, f"it was written by a newer torchbeats (format {version}); upgrade to read it.")
    config = _config(path, cfg, TokenizersConfig if kind == "tokenizer" else BEATsConfig)
    return Checkpoint(path, config, tensors, _label_dict(path, labels, config))


def _microsoft(path: Path, content: dict[str, Any]) -> Checkpoint:
    """A dictionary with ``cfg`` and ``model``: the research code's files, and ESPnet's pre-trained ones."""
    tensors = _tensors(path, content["model"])
    cfg = content.get("cfg")
    if cfg is None:
        raise CheckpointError(path, 'it has weights under "model" but no "cfg" that describes them.')
    if _is_espnet_finetuned(tensors):
        return _espnet_finetuned(path, tensors, content)
    tokenizer = any(name.startswith("quantize.") for name in tensors)
    config = _config(path, cfg, TokenizersConfig if tokenizer else BEATsConfig)
    return Checkpoint(path, config, tensors, _label_dict(path, content.get("label_dict"), config))


def _bare(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    """Tensors alone; sizes come from their shapes, and all else from what the publishers of such files always use."""
    tensors = _tensors(path, content)
    if _is_espnet_finetuned(tensors):
        return _espnet_finetuned(path, tensors, _espnet_settings(path))
    if any(name.startswith("backbone.") for name in tensors):
        # The head that the backbone had before is of no use; the trained one is the classifier.
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("backbone.predictor.")}
    tensors = _with_predictor(_under(tensors, "backbone."))
    config = _config(path, _sizes(path, tensors), BEATsConfig)
    beside = _beside(path, "label_map.json") if config.finetuned_model else None
    labels = None if beside is None else _parsed(beside, json.loads)
    return Checkpoint(path, config, tensors, _label_dict(path, labels, config))


def _is_espnet_finetuned(tensors: Mapping[str, Tensor]) -> bool:
    return "encoder.patch_embedding.weight" in tensors


def _espnet_finetuned(path: Path, tensors: dict[str, Tensor], said: Mapping[str, Any]) -> Checkpoint:
    """An encoder under ``encoder.`` with a head; ``said`` has ``token_list`` and, in ``cfg``, how it was trained."""
    tensors = _with_predictor(_under(tensors, "encoder."))
    if not isinstance(said["cfg"], Mapping):
        raise CheckpointError(path, f"its config must be a dictionary of settings, not {type(said['cfg']).__name__}.")
    config = _config(path, {**said["cfg"], **_sizes(path, tensors)}, BEATsConfig)
    labels = said.get("token_list")
    if isinstance(labels, list):  # behind the labels come one or two symbols that the head has no output for
        labels = labels[: config.predictor_class]
    return Checkpoint(path, config, tensors, _label_dict(path, labels, config))


def _with_predictor(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, a label head of whatever name under that of the reference."""
    heads = {prefix + part: "predictor." + part for prefix in _HEADS for part in ("weight", "bias")}
    renamed = {heads[name] for name in tensors if name in heads}
    return {heads.get(name, name): tensor for name, tensor in tensors.items() if name not in renamed}


def _espnet_settings(path: Path) -> dict[str, Any]:
    """Labels, problem type and settings of a fine-tuned ESPnet model, from the ``config.yaml`` that comes with it."""
    import yaml

    beside = _beside(path, "config.yaml")
    if beside is None:
        raise CheckpointError(path, "a fine-tuned ESPnet model needs its config.yaml beside it; download that too.")
    said = _parsed(beside, yaml.safe_load)
    encoder, decoder, task = (said.get(name) or {} for name in ("encoder_conf", "decoder_conf", "model_conf"))
    base = encoder.get("beats_config") or {} if isinstance(encoder, Mapping) else {}
    if not all(isinstance(part, Mapping) for part in (encoder, decoder, task, base)):
        raise CheckpointError(path, f"the settings in {beside} must be dictionaries: encoder_conf, its beats_config, …")
    if decoder.get("pooling", "mean") != "mean":
        raise CheckpointError(
            path, f"its head pools by {decoder['pooling']}; torchbeats reads heads that pool by mean."
        )
    for option in ("max_layer", "use_weighted_representation", "adapter_config"):
        if encoder.get(option):
            raise CheckpointError(path, f"it was trained with ESPnet's {option}, which torchbeats does not have.")
    settings = dict(base)
    settings |= {name: encoder[name] for name in ("fbank_mean", "fbank_std") if encoder.get(name) is not None}
    kind = task.get("classification_type", "multi-class")
    settings["problem_type"] = "multi_label" if kind == "multi-label" else "single_label"
    return {"token_list": said.get("token_list"), "cfg": settings}


def _sizes(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration that shapes imply, with everything on that published models have on."""
    attention = "encoder.layers.0.self_attn."
    try:
        patch, table = tensors["patch_embedding.weight"], _first(tensors, _POSITION_TABLE)
        kernel = tensors["encoder.pos_conv.0.weight_v"]
        width = tensors[attention + "q_proj.weight"].size(0)
        sizes = {
            "input_patch_size": patch.size(-1),
            "embed_dim": patch.size(0),
            "conv_bias": "patch_embedding.bias" in tensors,
            "encoder_layers": _layers(tensors),
            "encoder_embed_dim": width,
            "encoder_ffn_embed_dim": tensors["encoder.layers.0.fc2.weight"].size(1),
            "encoder_attention_heads": table.size(1),
            "num_buckets": table.size(0),
            "max_distance": 800,
            "conv_pos": kernel.size(-1),
            "conv_pos_groups": width // kernel.size(1),
            "deep_norm": True,
            "relative_position_embedding": True,
            "gru_rel_pos": True,
            "activation_fn": "glu" if "encoder.layers.0.fc1.linear.weight" in tensors else "gelu",
        }
        if "predictor.weight" in tensors:
            sizes |= {"finetuned_model": True, "predictor_class": tensors["predictor.weight"].size(0)}
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            path, f"this is not a BEATs checkpoint: it has no {error}. It has {_few(list(tensors))}."
        ) from error
    return sizes


# --- parts ------------------------------------------------------------------------------------------------------------


def _config(path: Path, cfg: Any, kind: type[BEATsConfig]) -> BEATsConfig:
    if not isinstance(cfg, Mapping) or not all(isinstance(name, str) for name in cfg):
        raise CheckpointError(path, f"its config must be a dictionary of settings, not {type(cfg).__name__}.")
    if clashes := [name for name in cfg if callable(getattr(kind, name, None))]:
        raise CheckpointError(path, f"its config has settings that no model has: {_few(clashes)}.")
    config = kind(cfg)
    try:
        config.check()
    except ValueError as error:
        raise CheckpointError(path, f"no model can be built from its config: {error}") from error
    return config


def _tensors(path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors under the reference's names, less the ones that hold nothing."""
    found: dict[str, Tensor] = {}
    strangers = []
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            strangers.append(str(name))
            continue
        for theirs, ours in PARAMETRIZED_NAMES.items():
            if name.endswith(theirs):
                name = name.removesuffix(theirs) + ours
        if not name.removeprefix("encoder.").startswith(_UNUSED):
            found[name] = value
    if strangers or not found:
        what = f"entries that are no tensors: {_few(strangers)}" if strangers else "no tensors"
        raise CheckpointError(path, f"this is not a BEATs checkpoint: it has {what}.")
    return found


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The same tensors, less a prefix where they have it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _share_position_table(tensors: dict[str, Tensor], wanted: Iterable[str]) -> None:
    """List the one position table, which a file may store once, under every layer."""
    table = next((tensor for name, tensor in tensors.items() if _POSITION_TABLE.fullmatch(name)), None)
    if table is not None:
        for name in wanted:
            if _POSITION_TABLE.fullmatch(name):
                tensors.setdefault(name, table)


def _label_dict(path: Path, labels: Any, config: BEATsConfig) -> dict[int, str] | None:
    """Labels by index from any form they come in: a list, index to label, or label to index."""
    if labels is None:
        return None
    try:
        if isinstance(labels, Mapping):
            pairs = [(k, v) if str(k).lstrip("-").isdigit() else (v, k) for k, v in labels.items()]
        else:
            pairs = list(enumerate(labels))
        table = {int(index): str(label) for index, label in pairs}
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(path, f"its labels cannot be read as a table from index to label ({error}).") from error
    if sorted(table) != list(range(config.predictor_class)):
        raise CheckpointError(path, f"it has {len(table)} labels for a head of {config.predictor_class} classes.")
    return dict(sorted(table.items()))


def _beside(path: Path, name: str) -> Path | None:
    """A file that describes the weights: beside them or, in the Hub's cache, at the top of their repository."""
    folders = [path.parent]
    if "snapshots" in path.parts:
        top = len(path.parts) - path.parts[::-1].index("snapshots") + 1
        folders.append(Path(*path.parts[:top]))
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _parsed(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The dictionary that a describing file holds."""
    from yaml import YAMLError

    try:
        content = parse(path.read_text("utf-8"))
    except (OSError, ValueError, YAMLError) as error:
        raise CheckpointError(path, f"the file that describes the weights cannot be read ({error}).") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(path, f"the file that describes the weights holds a {type(content).__name__}.")
    return dict(content)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is an array of real numbers."""
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_complex())


def _layers(tensors: Iterable[str]) -> int:
    return len({match[1] for name in tensors if (match := re.match(r"encoder\.layers\.(\d+)\.", name))})


def _first(tensors: Mapping[str, Tensor], pattern: re.Pattern[str]) -> Tensor:
    for name, tensor in tensors.items():
        if pattern.fullmatch(name):
            return tensor
    raise KeyError("relative position table")


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that JSON can hold; a checkpoint may have carried others, which no model is built from."""

    def plain(value: Any) -> bool:
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            return False
        return True

    return {name: value for name, value in settings.items() if plain(value)}


def _few(names: list[str], most: int = 5) -> str:
    """The first few of many names, and how many there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} … ({len(names)} in all)"
