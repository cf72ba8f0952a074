"""Parquet and Arrow files to records, some rows at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ltune.errors import UsageError

BATCH = 1000  # rows made at once


def parquet(path: Path) -> Iterator[tuple[int, Any]]:
    """The file's rows, counted from 1."""
    import pyarrow
    from pyarrow import parquet as files

    try:
        with files.ParquetFile(path) as file:
            yield from enumerate((record for batch in file.iter_batches(BATCH) for record in batch.to_pylist()), 1)
    except (pyarrow.ArrowException, OSError) as error:
        raise _malformed(path, "parquet", error) from error


def arrow(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a stream, as ``datasets`` keeps it, or of an Arrow (Feather) file; counted from 1."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as file:
            is_file = file.size() > 6 and file.read_at(6, 0) == b"ARROW1"
            reader = pyarrow.ipc.open_file(file) if is_file else pyarrow.ipc.open_stream(file)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
            slices = (batch.slice(begin, BATCH) for batch in batches for begin in range(0, batch.num_rows, BATCH))
            yield from enumerate((record for batch in slices for record in batch.to_pylist()), 1)
    except (pyarrow.ArrowException, OSError) as error:
        raise _malformed(path, "arrow", error) from error


def _malformed(path: Path, kind: str, error: Exception) -> UsageError:
    return UsageError(f"{path}: malformed {kind}: {(str(error).splitlines() or ['no reason given'])[0][:200]}")
