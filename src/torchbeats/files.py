"""Files that are complete or absent, whenever the machine or the program stops."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from torchbeats.errors import DiskFullError, FileInUseError, SettingsError

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be replaced anyway
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file under a temporary name beside ``path``; when all went well, put it in ``path``'s place at once.

    What earlier processes left of such a write, as they were killed, goes first.

    Yields:
        The temporary name. What is written there reaches the disk before it gets its name.

    Raises:
        DiskFullError: there is no room for it; what is in ``path``'s place stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        temporary.touch()
    except OSError as error:  # of a name that nobody has typed
        if is_full(error):
            raise DiskFullError(path, _reason(error)) from error
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from error
    try:
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers make files for their owner only
        _sync(temporary, os.O_RDWR)
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # which would hide what went wrong
            temporary.unlink(missing_ok=True)
        if is_full(error) and not isinstance(error, DiskFullError):
            raise DiskFullError(path, _reason(error)) from error
        raise
    with suppress(OSError):  # not every system syncs folders
        _sync(path.parent, os.O_RDONLY)


_TEMPORARY = re.compile(r"\.(.+)\.([0-9]+)\.tmp", re.DOTALL)


def remove_leftovers(path: str | os.PathLike[str]) -> list[Path]:
    """Delete what `replacing` left beside a file, or anywhere in a folder, in processes that were killed.

    Where the process is alive, the file is being written, and stays.

    Args:
        path: a file, whether it exists or not; or a folder, for all files in it.

    Returns:
        What was deleted.
    """
    path = Path(path)
    folder, name = (path, None) if path.is_dir() else (path.parent, path.name)
    removed = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match and name in (None, match[1]) and not _is_alive(int(match[2])):
                with suppress(OSError):
                    os.unlink(entry.path)
                    removed.append(Path(entry.path))
    return removed


def _is_alive(process: int) -> bool:
    """Whether another process of this machine has the number; this one's own file is ours to write anew."""
    if process == os.getpid() or sys.platform == "win32":  # where an open file cannot be deleted anyway
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return process > 0


# What says that there is no room where the error has no number: torch's archives, and safetensors.
_NO_ROOM = re.compile(r"no space left|quota exceeded|file too large|file write failed|\(os error (28|122|27)\)", re.I)


def is_full(error: BaseException) -> bool:
    """Whether an error of writing says that there is no room: a full disk, a quota, or a limit of size."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if not isinstance(error, Exception):
        return False
    cause = error.__cause__ or error.__context__  # torch tells in its own words what the file told it
    return _NO_ROOM.search(str(error)) is not None or (cause is not None and is_full(cause))


def _reason(error: BaseException) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(errno.ENOSPC if number is None else number).lower()


def refuse_inputs(outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Say where an output would replace an input, by whatever name, or is a URL.

    Args:
        outputs: files to be written.
        inputs: files that are read; names of what is not there are let pass.

    Raises:
        SettingsError: one of them is both, or an output is no file of this machine.
    """
    outputs = list(outputs)
    for output in outputs:
        if is_called_like_url(output):
            raise SettingsError(
                f"The output {os.fspath(output)} is a URL. Write a file of this machine and copy it there; only a "
                "table that is made with --ray may be at a URL."
            )
    existing = {_identity(output): os.fspath(output) for output in outputs}
    existing.pop(None, None)
    for name in inputs if existing else ():
        if (clash := existing.get(_identity(name))) is not None:
            raise SettingsError(f"The output {clash} is one of the inputs; name another.")


def is_called_like_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL, maybe without a slash that `pathlib` leaves out, and nothing on this machine."""
    text = os.fspath(path)
    return _URL.match(text) is not None and not os.path.lexists(text.partition("/")[0])


def with_both_slashes(url: str | os.PathLike[str]) -> str:
    """A URL, for which `is_called_like_url` holds, as it has to be written."""
    scheme, _, rest = os.fspath(url).partition(":/")
    return f"{scheme}://{rest.lstrip('/')}"


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # two letters at least: C:/ is a drive


def refuse_existing(output: str | os.PathLike[str], overwrite: bool) -> None:
    """Say that an output exists, unless it is to be replaced.

    Raises:
        SettingsError: it exists, and nobody has asked to replace it.
    """
    if os.path.lexists(output) and not overwrite:
        raise SettingsError(f"{os.fspath(output)} exists; use --overwrite to replace it.")


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """The same for all names of a file; None where there is none, which is for its reader to say."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    return state.st_dev, state.st_ino


def held(path: str | os.PathLike[str]) -> IO[str]:
    """Open a file that no other process can hold until this one closes it, or is gone.

    Where the system or the file system knows no locks, any number of processes can.

    Raises:
        FileInUseError: another process holds it.
    """
    file = open(path, "w")  # noqa: SIM115
    if fcntl is not None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            raise FileInUseError from None
        except OSError:
            pass
    return file


def special_kind(path: str | os.PathLike[str]) -> str | None:
    """What a path leads to if it is neither a file nor a folder: opening it might wait for ever, or do something.

    Returns:
        "a named pipe", "a socket", "a device"; None for files, folders and what does not exist.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


# What `readable` writes for bytes that are not UTF-8 (80 to ff), for lone surrogates, and for a backslash that could be
# mistaken for the beginning of either.
_ESCAPED = re.compile(r"\\(?:x(5c|[89a-f][0-9a-f])|u(d[89a-f][0-9a-f]{2}))")


def readable(path: str | os.PathLike[str]) -> str:
    r"""A path as text that every writer of UTF-8 takes; different paths stay different.

    A byte of the name that is not UTF-8 becomes ``\xe9``, a lone surrogate ``\ud83d``. A backslash that could be
    mistaken for the beginning of such an escape becomes ``\x5c``; all other names stay as they are. `from_readable` is
    the inverse.

    Args:
        path: as `os.fsdecode`, `os.listdir` and the command line give it.
    """
    text = _ESCAPED.sub(lambda match: r"\x5c" + match[0][1:], os.fspath(path))
    return re.sub("[\ud800-\udfff]", lambda match: _escape(ord(match[0])), text)


def from_readable(text: str) -> str:
    """The path of which `readable` made the text, as `open` takes it."""
    return _ESCAPED.sub(lambda match: _unescape(*match.groups()), text)


def _escape(surrogate: int) -> str:
    # PEP 383: a byte that cannot be decoded is U+DC80 to U+DCFF
    return f"\\x{surrogate - 0xDC00:02x}" if 0xDC80 <= surrogate <= 0xDCFF else f"\\u{surrogate:04x}"


def _unescape(byte: str | None, surrogate: str | None) -> str:
    if surrogate is not None:
        return chr(int(surrogate, 16))
    value = int(byte or "", 16)
    return "\\" if value == 0x5C else chr(0xDC00 + value)


def printable(text: str | os.PathLike[str]) -> str:
    """Text of which a terminal obeys nothing, and every encoder of UTF-8 takes all.

    Control characters, line ends and what else does not print become blanks, bytes of a name that are not UTF-8 escapes
    as of `readable`.
    """
    text = re.sub("[\ud800-\udfff]", lambda match: _escape(ord(match[0])), os.fspath(text))
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def one_line(text: str | os.PathLike[str]) -> str:
    """As `printable`, with single blanks between words."""
    return " ".join(printable(text).split())


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON in which every character prints as itself, or is escaped; null for numbers that JSON does not have."""
    value = plain(value)
    text = json.dumps(value, ensure_ascii=False) if indent is None else _indented(value, indent, "\n")
    lines = text.split("\n")
    return "\n".join(line if line.isprintable() else _escaped(line) for line in lines)


def _indented(value: Any, indent: int, newline: str) -> str:
    """JSON in lines, but lists of numbers and words in one line each."""
    inner = newline + " " * indent
    if isinstance(value, dict) and value:
        members = (
            f"{json.dumps(str(name), ensure_ascii=False)}: {_indented(item, indent, inner)}"
            for name, item in value.items()
        )
        return "{" + inner + f",{inner}".join(members) + newline + "}"
    if isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        return "[" + inner + f",{inner}".join(_indented(item, indent, inner) for item in value) + newline + "]"
    return json.dumps(value, ensure_ascii=False)


def csv_line(cells: Iterable[Any]) -> str:
    r"""A line of CSV that ends in ``\n``; before 3.13, Python leaves a ``\r`` within a cell without quotes."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def plain(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as JSON, with null for numbers that JSON does not have."""
    with replacing(path) as temporary:
        temporary.write_text(as_json(value, indent=1) + "\n", "utf-8")


def cache_folder(purpose: str) -> Path:
    """Where what can be computed again is kept: ``$XDG_CACHE_HOME/torchbeats/purpose``, else below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchbeats" / purpose


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
