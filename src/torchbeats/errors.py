"""Every exception of this package.

    TorchbeatsError
    ├── AudioError            (ValueError)    a file that gives no usable sound
    ├── CheckpointError       (ValueError)    a file from which no model can be loaded
    ├── DiskFullError         (OSError)       a file for which there is no room
    ├── FileInUseError                        a file that another process holds
    ├── HubError              (RuntimeError)  a name for which no file can be had
    ├── InputError            (ValueError)    inputs that name no sounds, or labels that cannot be used
    │   └── CorpusError                       inputs that nothing can be learned from
    ├── MissingPackageError   (ImportError)   an optional package that is not installed
    ├── ModelError            (ValueError)    a model that does not give what is asked of it
    ├── RequestError                          a request that a server refuses
    ├── SettingsError         (ValueError)    a setting that does not exist or makes no sense
    ├── StoreError                            a table that cannot be written or continued
    └── TrainingError         (RuntimeError)  a training that cannot go on

Each is a sentence for the user: what is wrong, with which input, and what to do.

Beside the tree, as nothing is wrong: `Stopped` (KeyboardInterrupt), somebody stops the command.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping


class TorchbeatsError(Exception):
    """What a user can mend; the message says how. Every exception of this package is one."""


class AudioError(TorchbeatsError, ValueError):
    """A file that gives no usable sound; ``str()`` of it is one sentence that names the file.

    Attributes:
        path: the file as the caller named it.
        reason: what is wrong with it, without the final full stop.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path, self.reason = os.fspath(path), reason
        super().__init__(self.path, reason)  # both, so that the error survives pickling from a worker process

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}."


class CheckpointError(TorchbeatsError, ValueError):
    """A file from which no model can be loaded; the message names it and says why."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path, self.reason = os.fspath(path), reason
        super().__init__(self.path, reason)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class DiskFullError(TorchbeatsError, OSError):
    """There is no room for a file; the message names it and says what was kept.

    Attributes:
        path: the file.
        reason: the system's words for it: no space left, a quota, a limit of size.
        advice: a sentence about what was written before.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str, advice: str = "Make room and try again.") -> None:
        self.path, self.reason, self.advice = os.fspath(path), reason, advice
        super().__init__(self.path, reason, advice)

    def __str__(self) -> str:
        return f"{self.path} could not be written: {self.reason}. {self.advice}"


class FileInUseError(TorchbeatsError):
    """Another process holds the file."""


class HubError(TorchbeatsError, RuntimeError):
    """No file could be had for a name; the message says why, and what to do about it."""


class InputError(TorchbeatsError, ValueError):
    """An input from which no list of sounds can be made; the message names it and says why."""


class CorpusError(InputError):
    """Inputs that nothing can be learned from; the message names them and says why."""


class MissingPackageError(TorchbeatsError, ImportError):
    """An optional package is not installed; the message says how to get it.

    Args:
        package: that is missing.
        extra: of torchbeats, which installs it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"This needs the package {package}: pip install 'torchbeats[{extra}]'.", name=package)
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingPackageError], tuple[str | None, str]]:
        return type(self), (self.name, self.extra)


class ModelError(TorchbeatsError, ValueError):
    """A model that does not give what is asked of it; the message says what would."""


class RequestError(TorchbeatsError):
    """A request that the server refuses; the message says why, and what would be answered.

    Attributes:
        status: of HTTP.
        code: the reason in one word, for programs.
        message: the sentence.
        headers: of the answer, beside the usual ones.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})
        super().__init__(status, code, message)

    def __str__(self) -> str:
        return self.message


class SettingsError(TorchbeatsError, ValueError):
    """A setting that does not exist or makes no sense; the message names it and says what would."""


class StoreError(TorchbeatsError):
    """A table that cannot be written or continued; the message names it and says what to do."""


class Stopped(KeyboardInterrupt):
    """The command is stopped, by Ctrl-C or SIGTERM.

    Attributes:
        status: the exit status that tells so, 130 or 143.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.status = 128 + number


class TrainingError(TorchbeatsError, RuntimeError):
    """A training that cannot go on; the message says what happened and what to try."""


# --- names in sentences -----------------------------------------------------------------------------------------------


def some_of(names: Iterable[str], limit: int = 8) -> str:
    """The first of many names, and how many more there are."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def quoted(names: Iterable[str], limit: int = 8) -> str:
    """Some of the names, as `some_of`, with quotation marks around each."""
    return some_of(map(repr, names), limit)
