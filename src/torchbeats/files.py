"""Files that are complete or absent, whenever the machine or the program stops."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from torchbeats.errors import FileInUseError

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be replaced anyway
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file under a temporary name beside ``path``; when all went well, put it in ``path``'s place at once.

    Yields:
        The temporary name. What is written there reaches the disk before it gets its name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers make files for their owner only
        _sync(temporary, os.O_RDWR)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # which would hide what went wrong
            temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every system syncs folders
        _sync(path.parent, os.O_RDONLY)


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


def plain(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: plain(inside) for key, inside in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inside) for inside in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as JSON, with null for numbers that JSON does not have."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plain(value), ensure_ascii=False, indent=1) + "\n", "utf-8")


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
