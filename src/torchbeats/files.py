"""Files that are complete or absent, whenever the machine or the program stops."""

from __future__ import annotations

import hashlib
import json
import math
import os
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
