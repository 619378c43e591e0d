"""The folder of a run: what it computes, how it goes, which sounds it left out, and who is at work in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from torchbeats.description import RUN_SETTINGS, settings_of_run
from torchbeats.errors import FileInUseError, SettingsError
from torchbeats.files import held, refuse_inputs, remove_leftovers, replacing
from torchbeats.training.corpus import Failure
from torchbeats.training.listener import Listener
from torchbeats.training.processes import is_leader, leader_first

_LOCK = ".lock"


class RunFolder:
    """Where a run keeps what it computes, how it goes, and what it left out.

    Args:
        path: of the folder.
        listener: told of the progress; only by the process that leads.
    """

    def __init__(self, path: Path, listener: Listener | None = None) -> None:
        self.path = path
        self.listener = listener if listener and is_leader() else Listener()

    def claim(self, about: dict[str, Any], defaults: dict[str, Any], may_change: Sequence[str]) -> None:
        """Write down what the run computes, or find that it is the same as before.

        Args:
            about: everything that decides it, nested.
            defaults: of what a run may have been begun without.
            may_change: names, with dots, of what may be another when a run goes on.

        Raises:
            SettingsError: the folder holds a run with other settings, or something else; or it is a URL.
        """
        refuse_inputs([self.path], [])
        leader_first(lambda: self._claim(about, defaults, may_change))

    def _claim(self, about: dict[str, Any], defaults: dict[str, Any], may_change: Sequence[str]) -> None:
        file = self.path / RUN_SETTINGS
        if file.exists():
            existing = _filled(settings_of_run(self.path), defaults)
            changed = [
                f"{name} was {_shortened(old)} and is now {_shortened(new)}"
                for name, old, new in _differences(existing, about)
                if name not in may_change and name.split(".")[0] not in may_change
            ]
            if changed:
                raise SettingsError(
                    f"{self.path} holds a run with other settings: {'; '.join(changed)}. Give the command that began "
                    "it, or another --out."
                )
        elif self.path.exists() and any(entry.name != _LOCK for entry in self.path.iterdir()):
            raise SettingsError(f"{self.path} is not empty, and holds no run that could go on. Name another --out.")
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._held = held(self.path / _LOCK)
        except FileInUseError:
            raise SettingsError(f"Another run is at work in {self.path}; wait for it, or stop it.") from None
        _clean(self.path)
        with replacing(file) as temporary:
            temporary.write_text(yaml.safe_dump(about, sort_keys=False, allow_unicode=True), "utf-8")

    def skip(self, failure: Failure) -> None:
        """Tell of a sound that is left out, and add it to the list, once."""
        if self.list_skipped([failure]):
            self.listener.warn(f"Skipped {failure}.")

    def list_skipped(self, failures: Sequence[Failure]) -> bool:
        """Add sounds to the list of those left out, each once; returns whether any is new."""
        lines = [json.dumps({"path": failure.path, "error": failure.reason}) + "\n" for failure in failures]
        with (self.path / "skipped.jsonl").open("a+", encoding="utf-8") as file:
            file.seek(0)
            listed = set(file)
            new_lines = [line for line in lines if line not in listed]
            file.writelines(new_lines)
        return bool(new_lines)


def _clean(path: Path) -> None:
    """Delete what killed runs left half written in a folder and in those directly below it."""
    for folder in (path, *filter(Path.is_dir, path.iterdir())):
        remove_leftovers(folder)


def _filled(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, with defaults for what they lack."""
    nested = {
        name: _filled(values.get(name) or {}, default) if name != "config" else values.get(name, default)
        for name, default in defaults.items()
        if isinstance(default, dict)
    }
    return {**defaults, **values, **nested}


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name in {**old, **new}:
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            yield prefix + name, a, b


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"
