"""Parquet and Arrow files to records, some rows at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltune.errors import UsageError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

BATCH = 1000  # rows made at once


def parquet(path: Path) -> Iterator[tuple[int, Any]]:
    """The file's rows, counted from 1."""
    return _rows(path, "parquet", parquet_batches(path, BATCH))


def arrow(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a stream, as ``datasets`` keeps it, or of an Arrow (Feather) file; counted from 1."""
    return _rows(path, "arrow", arrow_batches(path, BATCH))


def parquet_batches(path: Path, rows: int) -> Iterator["RecordBatch"]:
    """The file's rows, so many at a time."""
    from pyarrow import parquet as files

    with files.ParquetFile(path) as file:
        yield from file.iter_batches(rows)


def arrow_batches(path: Path, rows: int) -> Iterator["RecordBatch"]:
    """The rows of a stream or of a file, no more than so many at a time."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        is_file = file.size() > 6 and file.read_at(6, 0) == b"ARROW1"
        reader = pyarrow.ipc.open_file(file) if is_file else pyarrow.ipc.open_stream(file)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        yield from (batch.slice(begin, rows) for batch in batches for begin in range(0, batch.num_rows, rows))


def _rows(path: Path, kind: str, batches: Iterator["RecordBatch"]) -> Iterator[tuple[int, Any]]:
    import pyarrow

    try:
        yield from enumerate((record for batch in batches for record in batch.to_pylist()), 1)
    except (pyarrow.ArrowException, OSError) as error:
        raise _malformed(path, kind, error) from error


def _malformed(path: Path, kind: str, error: Exception) -> UsageError:
    return UsageError(f"{path}: malformed {kind}: {(str(error).splitlines() or ['no reason given'])[0][:200]}")
