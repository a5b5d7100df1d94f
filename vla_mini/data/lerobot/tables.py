"""Parquet files -> their columns, checked: what is damaged, missing or doubled is a ValueError that names the file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vla_mini.utils import files
from vla_mini.utils.errors import as_value_error, show


def read_table(path: Path, columns: Iterable[str] | None = None, *, optional: Iterable[str] = ()) -> pa.Table:
    """A parquet file's `columns` (None: all), and those `optional` ones that there are."""
    files.require_file(path)
    with (
        as_value_error(f"{path} is damaged or cut short", pa.ArrowException, OSError),
        pq.ParquetFile(path, page_checksum_verification=True) as parquet,
    ):
        present = parquet.schema_arrow.names
        if doubled := sorted({name for name in present if present.count(name) > 1}):
            raise ValueError(f"{path}: there are two columns {doubled[0]!r}")
        if columns is not None:
            columns = list(columns)
            if missing := sorted(set(columns) - set(present)):
                raise ValueError(f"{path}: no column {missing[0]!r}")
            columns += [name for name in optional if name in present]
        table = parquet.read(columns)
    return table.replace_schema_metadata()  # without the descriptions for pandas and Hugging Face in the schema


def whole_numbers(path: Path, name: str, values: pa.ChunkedArray) -> list[int]:
    """A column of integers, which pandas may have written as floats."""
    found = values.to_pylist()
    for row, value in enumerate(found):
        if not is_whole(value):
            raise ValueError(f"{path}, row {row}: {name}={show(value)} is not an integer")
    return list(map(int, found))


def is_whole(value: Any) -> bool:
    """Whether it is an integer that 64 bits can hold."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -(2.0**63) < value < 2.0**63 and value == int(value)
