"""Whether a file's bytes are those that were written: checksums of PyTorch's archives, and a digest of our own files.

Both find accidents, as a bad disk or a broken download makes them. Neither is a signature: who can change a file can
change its checksums.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchbeats.errors import CheckpointError

DIGEST = "digest"  # key in the metadata of our files
_BLOCK = 2**20  # bytes read at once


def signed(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The metadata of one of our files, with a digest of them and of the tensors."""
    return {**about, DIGEST: _digest(about, tensors)}


def check_digest(path: Path, about: Any, tensors: Mapping[str, Tensor]) -> None:
    """Compare a file with the digest in its metadata; files of earlier versions have none.

    Raises:
        CheckpointError: it is another.
    """
    if not isinstance(about, dict) or DIGEST not in about:
        return
    rest = {name: value for name, value in about.items() if name != DIGEST}
    if about[DIGEST] != _digest(rest, tensors):
        raise CheckpointError(
            path,
            "it is damaged: its tensors or settings are not those that were written, by the digest in its metadata. "
            "Download or copy it again.",
        )


def _digest(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the metadata and, in the order of their names, of every tensor's type, shape and CRC-32.

    A CRC is the fastest of the checksums in the standard library, and finds every burst of up to 32 wrong bits.
    """
    lines = [json.dumps(about, sort_keys=True)]
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        lines.append(json.dumps([name, str(tensor.dtype), list(tensor.shape), zlib.crc32(values.data)]))
    return "sha256-crc32:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_archive(path: Path) -> None:
    """Compare every record of a file that PyTorch wrote with its checksum; PyTorch itself does not, on loading.

    Files in the form of PyTorch before 1.6, which are no archives, have no checksums.

    Raises:
        CheckpointError: a record is damaged, or the archive is none of PyTorch's.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            # PyTorch never compresses. So records hold together what the file does, and none of them is a bomb.
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise CheckpointError(
                    path,
                    "it is a compressed archive, which PyTorch does not write. Unpack it, or save it again.",
                )
            if sum(record.file_size for record in records) > path.stat().st_size:
                raise CheckpointError(path, "it is damaged: its records are larger than the file.")
            if not any(record.CRC for record in records):  # written with PyTorch's checksums switched off
                return
            for record in records:
                with archive.open(record) as content:
                    while content.read(_BLOCK):  # raises where the checksum is another
                        pass
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(path, f"it is damaged ({error}). Download or copy it again.") from error
