"""Parquet: a table of paths, or with the bytes of sounds in it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchbeats.data.columns import Columns, key
from torchbeats.data.list_formats.raw_list import RawList
from torchbeats.data.stored import StoredSound


def read_parquet(path: Path, labels: bool | str) -> RawList:
    """A table of paths, or of the sounds themselves as Hugging Face's data sets store them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        raise FileNotFoundError(path)
    table = pq.ParquetFile(path)
    schema = table.schema_arrow
    columns = Columns(schema.names)
    stored = next((name for name in schema.names if _holds_sounds(table, name)), None)
    if stored is not None:
        columns.paths = [stored]
    names = [] if stored else columns.paths[:1]
    if labels:
        names += [*columns.partitions.values(), *((columns.label,) if columns.label else ())]
        names += [name for name in columns.unused if _is_flat(schema.field(name).type)]
        names += [name for name in schema.names if isinstance(labels, str) and key(name) == key(labels)]
    names += [time.name for time in columns.times]
    selected = [name for name in dict.fromkeys(names) if name != stored]
    if stored is None and columns.paths:
        kind = schema.field(columns.paths[0]).type
        if not _may_be_path(kind):
            raise ValueError(
                f"its column {columns.paths[0]!r} must hold paths of files or their bytes, not values of type {kind}."
            )

    inner = [f"{stored}.path"] if stored is not None and pa.types.is_struct(schema.field(stored).type) else []
    name_counts = Counter[str]()
    if inner:
        for batch in table.iter_batches(columns=inner):
            name_counts.update(batch.column(0).field(0).to_pylist())

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        for group in range(table.num_row_groups):
            row = 0
            for batch in table.iter_batches(row_groups=[group], columns=[*selected, *inner]):
                for values in batch.to_pylist() if batch.num_columns else ({} for _ in range(batch.num_rows)):
                    number += 1
                    if stored is not None:
                        inside = (values.get(stored) or {}).get("path")
                        name = f"{path}#{inside}" if inside and name_counts[inside] == 1 else f"{path}#row {number}"
                        values[stored] = StoredSound(
                            str(path), f"{stored}.bytes" if inner else stored, group, row, name
                        )
                    row += 1
                    yield number, values

    return RawList(schema.names, rows(), "row", path=stored, label_names=_label_names(schema))


def _is_flat(kind: Any) -> bool:
    """Whether a column has a number or a word a row: no embeddings, and no contents of files."""
    import pyarrow as pa

    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_sounds(table: Any, name: str) -> bool:
    """Whether a column of Parquet holds bytes of sounds: struct<bytes, path>, or a known name and bytes."""
    import pyarrow as pa

    kind = table.schema_arrow.field(name).type
    is_bytes = lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind)  # noqa: E731
    if pa.types.is_struct(kind):
        inside = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        if not {"bytes", "path"} <= set(inside) or not is_bytes(inside["bytes"]):
            return False
        return not _all_null(table, f"{name}.bytes")
    return is_bytes(kind) and bool(Columns([name]).paths)


def _all_null(table: Any, leaf: str) -> bool:
    """Whether a column is known to be empty, by what its row groups' heads say."""
    for group in range(table.num_row_groups):
        about = table.metadata.row_group(group)
        for i in range(about.num_columns):
            column = about.column(i)
            if column.path_in_schema == leaf:
                known = column.statistics is not None and column.statistics.has_null_count
                if not known or column.statistics.null_count < column.num_values:
                    return False
    return True


def _may_be_path(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "path" and _may_be_path(kind.field(i).type) for i in range(kind.num_fields))
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _label_names(schema: Any) -> dict[str, list[str]]:
    """The names of numbered classes, as Hugging Face's data sets keep them in a table's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in about["names"]]
            for column, about in features.items()
            if isinstance(about, dict) and isinstance(about.get("names"), list)
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}
