"""A Lance dataset that grows while a run goes on: fragments are written beside what is there, and committed at the end.

Until then they are no part of the dataset, so that it appears whole, or stays as it was.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from torchbeats.errors import DiskFullError
from torchbeats.extras import require
from torchbeats.files import is_full
from torchbeats.tables.formats import BEGINS, exists, open_lance

FRAGMENT_BYTES = 2**27  # that rows of an unfinished run may take before they become a fragment


def add_fragment(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> bytes:
    """Write some rows to where the dataset is to be; they survive whatever stops the run.

    Args:
        path: of the dataset, which need not exist.
        schema: of its rows.
        tables: the rows, with the column `BEGINS`.

    Returns:
        A line for each new fragment, of which `commit` makes the dataset.

    Raises:
        DiskFullError: there is no room.
    """
    schema = schema.remove_metadata()

    def batches() -> Iterator[pa.RecordBatch]:
        for table in tables:
            yield from table.drop_columns([BEGINS]).cast(schema).to_batches()

    write = require("lance", "search").fragment.write_fragments
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "overwrite" if exists(path) else "create"
    try:
        reader = pa.RecordBatchReader.from_batches(schema, batches())
        fragments = write(reader, str(path), schema, mode=mode, max_rows_per_file=2**31 - 1)
        for fragment in fragments:
            for file in fragment.files:
                _sync(path / "data" / file.path)
    except OSError as error:
        if is_full(error):
            raise DiskFullError(path, os.strerror(error.errno or errno.ENOSPC).lower()) from error
        raise
    return b"".join(json.dumps(fragment.to_json()).encode() + b"\n" for fragment in fragments)


def commit(path: Path, schema: pa.Schema, lines: Sequence[bytes]) -> None:
    """Make a dataset of fragments, in place of what was there; data of versions before go.

    Args:
        path: of the dataset.
        schema: of its rows, with its metadata.
        lines: of all fragments, as `add_fragment` returned them, in order.
    """
    lance = require("lance", "search")
    fragments = [lance.FragmentMetadata.from_json(line.decode()) for line in lines]
    before = open_lance(path).version if exists(path) else None
    operation = lance.LanceOperation.Overwrite(schema, fragments)
    dataset: Any = lance.LanceDataset.commit(str(path), operation, read_version=before)
    dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)


def discard(path: Path) -> None:
    """Delete fragments that a run which is begun anew left; a dataset that is there loses them when it is written."""
    if path.is_dir() and not exists(path):
        shutil.rmtree(path, ignore_errors=True)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
