"""Settles what a training is to do: named sizes, a YAML file over them, and single settings over both."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchbeats.config import BEATsConfig, shown
from torchbeats.errors import SettingsError
from torchbeats.training.defaults import DataSize, by_size
from torchbeats.training.explaining import explanations
from torchbeats.training.limits import beyond_limits
from torchbeats.training.settings import LARGEST_SIZE, FinetuneSettings, Settings, predictor_heads
from torchbeats.training.yaml_values import read_yaml, read_yaml_file

LARGEST = 2**31 - 1  # number that a setting may be, seeds apart
LARGEST_SEED = 10**15  # what is derived from it has to fit into 64 bits

# Beside the architectures of config.SIZES. Base and large follow ESPnet's reproduction (arXiv 2507.14129).
_SMALL_MODEL = {"lr": 1e-3, "warmup": 300, "predictor_layers": 2}
# A tokenizer that starts as a copy of its teacher needs few steps; the shorter they are, the sooner a code is missed.
_SMALL_TOKENIZER = {
    "steps": 500,
    "warmup": 50,
    "estimator_layers": 2,
    "start": "auto",
    "decay": 0.95,
    "reseed_below": 0.05,
}
PRESETS: dict[str, dict[str, Any]] = {
    "nano": {  # a few hours on a laptop core
        "iterations": 2,
        "config": {"dropout": 0.0, "attention_dropout": 0.0},
        "data": {"crop_seconds": [1.0, 2.5, 10.0], "batch_seconds": 64.0},
        "model": {**_SMALL_MODEL, "steps": 5_000, "predictor_width": 128},
        "distillation": _SMALL_TOKENIZER,
    },
    "tiny": {  # a day on a laptop, an hour on a GPU
        "iterations": 2,
        "config": {"dropout": 0.0, "attention_dropout": 0.0},
        "data": {"crop_seconds": [2.5, 10.0], "batch_seconds": 128.0},
        "model": {**_SMALL_MODEL, "steps": 20_000, "predictor_width": 192},
        "distillation": {**_SMALL_TOKENIZER, "steps": 2_000},
    },
    "base": {},
    "large": {"model": {"lr": 3e-4}},
}


def settings(
    size: str = "base",
    file: Path | None = None,
    assignments: Iterable[str] = (),
    **named: Any,
) -> Settings:
    """Settle what a run is to do.

    Args:
        size: of `PRESETS`.
        file: YAML, nested as `Settings` is.
        assignments: ``key=value`` with dots in the key, ``model.lr=1e-3``; the value is read as YAML.
        **named: fields of `Settings`, over all others; None stands for not given.

    Raises:
        SettingsError: no such setting, or a value that it cannot have.
    """
    values = read_yaml_file(file) if file is not None else {}
    assignments = list(assignments)
    size = values.get("size", size) if isinstance(values, Mapping) else size
    for assignment in assignments:
        if assignment.startswith("size="):
            size = assignment[len("size=") :]
    if size not in list(PRESETS):  # of a list, so that what cannot be a key is none
        raise SettingsError(f"There is no size called {shown(size)}; choose one of {', '.join(PRESETS)}.")
    result = Settings(size=size)
    _merge(result, PRESETS[size], "")
    _apply(result, values, assignments, named)
    _check(result)
    return result


def finetune_settings(
    file: Path | None = None, assignments: Iterable[str] = (), size: DataSize | None = None, **named: Any
) -> FinetuneSettings:
    """Settle what a fine-tuning is to do.

    Args:
        file: YAML, nested as `FinetuneSettings` is.
        assignments: as for `settings`.
        size: of the data; what nothing else says is by it then, see `torchbeats.training.defaults`.
        **named: as for `settings`.

    Raises:
        SettingsError: as `settings`.
    """
    result = FinetuneSettings()
    if size is not None:
        _merge(result, by_size(size), "")
    _apply(result, read_yaml_file(file) if file is not None else {}, assignments, named)
    _check_finetune(result)
    return result


def _apply(target: Any, values: Any, assignments: Iterable[str], named: Mapping[str, Any]) -> None:
    """Set what a file says, over that what assignments say, over that what is named and not None."""
    _merge(target, values, "")
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise SettingsError(f"{assignment!r} sets nothing; write it as key=value, as in model.lr=1e-3.")
        nested: Any = read_yaml(value, f"The value of {key}")
        for name in reversed(key.strip().split(".")):
            nested = {name: nested}
        _merge(target, nested, "")
    _merge(target, {name: value for name, value in named.items() if value is not None}, "")


def _merge(target: Any, values: Any, prefix: str, everywhere: Sequence[str] = ()) -> None:
    """Set fields of a settings object from a dictionary, both nested; ``everywhere`` are the names to think of."""
    everywhere = everywhere or [row.name for row in explanations(target)]
    if not isinstance(values, Mapping):
        raise SettingsError(f"{prefix.rstrip('.') or 'The file'} must hold names and values, not {shown(values)}.")
    kinds = typing.get_type_hints(type(target))
    for name, value in values.items():
        if name not in kinds:
            raise _no_setting(prefix, name, kinds, everywhere)
        current = getattr(target, name)
        if dataclasses.is_dataclass(current):
            _merge(current, value, f"{prefix}{name}.", everywhere)
        elif isinstance(current, dict):
            if not isinstance(value, Mapping):
                raise SettingsError(f"{prefix}{name} must hold names and values, not {shown(value)}.")
            current.update(value)
        else:
            setattr(target, name, _as(kinds[name], value, prefix + name))


def _no_setting(prefix: str, name: Any, known: Iterable[str], everywhere: Iterable[str] = ()) -> SettingsError:
    name = name if isinstance(name, str) and len(name) < 80 else shown(name)
    near = [full for full in everywhere if full.endswith(f".{name}")]
    near = near or difflib.get_close_matches(prefix + name, list(everywhere), 1, 0.75)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    return SettingsError(
        f"There is no setting {prefix}{name}; there are {', '.join(prefix + n for n in known)}.{meant}"
    )


def _as(kind: Any, value: Any, name: str) -> Any:
    """``value`` as a setting of type ``kind``."""
    origin = typing.get_origin(kind)
    if origin is list:
        items = value if isinstance(value, (list, tuple)) else [value]
        return [_as(typing.get_args(kind)[0], item, name) for item in items]
    choices = typing.get_args(kind) if origin in (typing.Union, types.UnionType) else (kind,)
    limit = LARGEST_SEED if name == "seed" else LARGEST
    if isinstance(value, (int, float)) and not abs(value) <= limit:
        raise SettingsError(f"{name} must be a number of at most {limit}, not {shown(value)}.")
    if float in choices and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if int in choices and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, choices) and (bool in choices or not isinstance(value, bool)):
        return value
    if str in choices and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise SettingsError(f"{name} must be of type {' or '.join(c.__name__ for c in choices)}, not {shown(value)}.")


def _check(settings: Settings) -> None:
    """Refuse values that would only fail later, or quietly do nothing."""
    _refuse(beyond_limits(settings))
    known = [field.name for field in dataclasses.fields(BEATsConfig)]
    if unknown := [name for name in settings.config if name not in known]:
        raise _no_setting("config.", unknown[0], known)
    try:
        settings.beats_config().check()
    except (TypeError, ValueError) as error:
        raise SettingsError(f"config: {error}") from error
    data, model, config = settings.data, settings.model, settings.beats_config()
    width = model.predictor_width or config.encoder_embed_dim
    heads = predictor_heads(config, width)
    rules = {
        "data.batch_seconds must be at least the longest of data.crop_seconds": max(data.crop_seconds)
        <= data.batch_seconds,
        "with model.targets=teacher there are no labels that a tokenizer could be made for, so iterations must be 1": (
            model.targets != "teacher" or settings.iterations == 1
        ),
        f"model.teacher_layers must be at most the model's {config.encoder_layers} layers": model.teacher_layers
        <= config.encoder_layers,
        f"model.predictor_width must be at most {LARGEST_SIZE}": width <= LARGEST_SIZE,
        f"model.predictor_width must be a multiple of its {heads} heads and of config.conv_pos_groups, "
        f"{config.conv_pos_groups}": width % config.conv_pos_groups == 0 and width % heads == 0,
    }
    _refuse(rule for rule, holds in rules.items() if not holds)


def _check_finetune(settings: FinetuneSettings) -> None:
    """Refuse values that would only fail later, or quietly do nothing."""
    _refuse(beyond_limits(settings))
    data, augment = settings.data, settings.augment
    rules = {
        "data.batch_seconds must be at least data.seconds": data.seconds <= data.batch_seconds,
        "augment.delay must be at most data.seconds": augment.delay <= data.seconds,
    }
    _refuse(rule for rule, holds in rules.items() if not holds)


def _refuse(broken: Iterable[str]) -> None:
    for rule in broken:
        raise SettingsError(f"The settings cannot be followed: {rule}.")
