"""Rows tokenised once, kept on disk under a key of our own (contents and settings), and read through memory maps.

A folder in the cache appears whole or not at all: it is written beside, under a hidden name, and renamed.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import socket
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ltune.data.encode import Dropped, Encoder
from ltune.data.processes import Outcome, Part, encode_rows
from ltune.data.report import Tally, data_report, write_report
from ltune.data.rows import IGNORE, Row, Sequence
from ltune.data.sources import Dataset, place_prefix, resolve, sha256
from ltune.errors import ResourceError, UsageError

FORMAT = 1  # of what is stored; to be raised when the same settings give other contents
STAGE = re.compile(r"\.(\d+)@(.+)\.[^.]+")

log = logging.getLogger(__name__)


class Prepared:
    """Tokenised rows that were kept, in order. Opening costs no reading: arrays are memory-mapped.

    Args:
        folder: Of the cache, complete.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder.name
        self._input_ids, self._labels, self._offsets, self._origins = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("input_ids", "labels", "offsets", "origins")
        )
        self.trained = np.load(folder / "trained.npy")  # (rows,) int64: trained tokens
        self.lengths = np.diff(self._offsets)  # (rows,) int64: tokens
        stored = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        self._prefixes: list[str] = stored.pop("places")
        self.report: dict[str, Any] = stored
        if not len(self._input_ids) == len(self._labels) == self._offsets[-1]:
            raise ValueError(f"{folder}: the arrays do not fit together")

    def __len__(self) -> int:
        return len(self.trained)

    def __getitem__(self, row: int) -> Sequence:
        """Two (tokens,) int32 arrays, read-only."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        begin, end = self._offsets[row], self._offsets[row + 1]
        return Sequence(self._input_ids[begin:end], self._labels[begin:end])

    def __reduce__(self) -> tuple:
        return Prepared, (self.folder,)  # a memory map would be sent as its whole contents

    def place(self, row: int) -> str:
        """Where the row came from: "identity.json row 12"."""
        prefix, number = self._origins[row]
        return f"{self._prefixes[prefix]}{number}"


def prepare(
    datasets: list[str | Dataset] | list[str] | list[Dataset],
    folder: str | Path,
    *,
    rows: type[Row],
    encoder: Encoder,
    max_rows: int | None = None,
    processes: int | None = None,
    cache: str | Path | None = None,
) -> Prepared:
    """Tokenise the data sets, one after the other, or find them tokenised.

    Args:
        datasets: In the order wanted.
        folder: Holds dataset_info.json.
        rows: Kind of rows wanted.
        encoder: Makes tokens of them.
        max_rows: First rows taken of each data set that does not say itself.
        processes: None: one for few rows, else as many as cores.
        cache: Folder; None: $XDG_CACHE_HOME/ltune/data.

    Raises:
        UsageError: Nothing to train on, or anything wrong with a data set or a row.
    """
    if max_rows is not None and max_rows < 1:
        raise UsageError(f"data.max_rows: {max_rows}; it must be 1 or more, or null for all.")
    sources = [resolve(dataset, folder) for dataset in datasets]
    parts = [Part(source, max_rows if source.max_rows is None else source.max_rows) for source in sources]
    files = [{"name": part.source.name, "path": str(file), "sha256": sha256(file)} for part in parts for file in part.source.files]
    cache = Path(cache).expanduser() if cache else _default_cache()
    target = cache / _key(parts, files, rows, encoder)
    if (found := _open(target)) is not None:
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        _build(target, parts, files, rows, encoder, processes)
    except OSError as error:
        raise ResourceError(f"data.cache: cannot write the tokenised rows to {cache}: {error}") from error
    return Prepared(target)


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ltune" / "data"


def _key(parts: list[Part], files: list[dict], rows: type[Row], encoder: Encoder) -> str:
    from tokenizers import __version__ as tokenizers_version

    named = [asdict(part.source) | {"files": None, "limit": part.limit} for part in parts]
    settings = [FORMAT, tokenizers_version, named, files, rows.__name__, encoder.settings()]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _open(folder: Path) -> Prepared | None:
    if not folder.exists():
        return None
    try:
        return Prepared(folder)
    except (OSError, ValueError, KeyError, EOFError) as error:
        log.warning("%s is damaged (%s); the rows are tokenised anew", folder, error)
        shutil.rmtree(folder)
        return None


def _sweep(cache: Path) -> None:
    """Remove what processes of this machine that are no more left half-written."""
    for folder in cache.glob(".*"):
        match = STAGE.fullmatch(folder.name)
        if match and match.group(2) == socket.gethostname() and not _alive(int(match.group(1))):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# -- building -------------------------------------------------------------------------------------------------------------------------


def _build(target: Path, parts: list[Part], files: list[dict], rows: type[Row], encoder: Encoder, processes: int | None) -> None:
    stage = Path(tempfile.mkdtemp(prefix=f".{os.getpid()}@{socket.gethostname()}.", dir=target.parent))
    try:
        _write(stage, parts, files, encode_rows(parts, rows, encoder, processes))
        _sync(stage)
        try:
            os.rename(stage, target)
        except OSError:
            if not target.exists():
                raise
            return  # another process was faster, with the same contents
        _sync_one(target.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)  # gone already where it was renamed


def _write(stage: Path, parts: list[Part], files: list[dict], outcomes: Iterator[Outcome]) -> None:
    """Arrays and report. Memory holds a few numbers a row; tokens go straight to the files."""
    tallies = [(part.source.name, Tally()) for part in parts]
    offsets, trained, origins = array("q", [0]), array("q"), array("q")
    prefixes: dict[str, int] = {}
    read_rows = [0] * len(files)
    named = [(part, place_prefix(file)) for part, cut in enumerate(parts) for file in cut.source.files]
    file_of = {part_and_prefix: file for file, part_and_prefix in enumerate(named)}
    with _Growing(stage / "input_ids.npy") as input_ids, _Growing(stage / "labels.npy") as labels:
        for part, place, outcome in outcomes:
            tally = tallies[part][1]
            prefix, number = _split_place(place)
            read_rows[file_of[part, prefix]] += 1
            if isinstance(outcome, Dropped):
                tally.drop(outcome.reason, place)
                continue
            tally.note(outcome.truncated, outcome.control_tokens)
            for sequence in outcome.sequences:
                ids, targets = np.asarray(sequence.input_ids, np.int32), np.asarray(sequence.labels, np.int32)
                input_ids.append(ids)
                labels.append(targets)
                trained.append(int(np.count_nonzero(targets != IGNORE)))
                offsets.append(offsets[-1] + len(ids))
                origins.extend((prefixes.setdefault(prefix, len(prefixes)), number))
                tally.add(ids, trained[-1])
    _refuse_nothing(tallies)
    np.save(stage / "offsets.npy", np.frombuffer(offsets, np.int64))
    np.save(stage / "trained.npy", np.frombuffer(trained, np.int64))
    np.save(stage / "origins.npy", np.frombuffer(origins, np.int64).reshape(-1, 2))
    sources = [file | {"rows": count} for file, count in zip(files, read_rows, strict=True)]
    write_report(data_report(tallies, sources) | {"places": list(prefixes)}, stage / "report.json")


def _refuse_nothing(tallies: list[tuple[str, Tally]]) -> None:
    for name, tally in tallies:
        if not tally.counts["rows"]:
            reasons = [f"{entry['rows']} rows: {reason} (first: {entry['places'][0]})" for reason, entry in tally.dropped.items()]
            raise UsageError("\n".join([f"data set {name}: no row of it can be trained on.", *reasons[:3]]))


def _split_place(place: str) -> tuple[str, int]:
    prefix = place.rstrip("0123456789")
    return prefix, int(place[len(prefix) :])


class _Growing:
    """A one-dimensional int32 ``.npy`` file that is appended to; its length is written into the header at the end."""

    def __init__(self, path: Path) -> None:
        self.path, self.length = path, 0

    def __enter__(self) -> "_Growing":
        self.file: BinaryIO = self.path.open("wb")
        self._header()
        self.begin = self.file.tell()
        return self

    def append(self, values: np.ndarray) -> None:
        """(n,) int32."""
        self.file.write(values.tobytes())
        self.length += len(values)

    def __exit__(self, *error: object) -> None:
        self.file.seek(0)
        self._header()
        assert self.file.tell() == self.begin, "NumPy pads the header so that a longer length fits in"
        self.file.close()

    def _header(self) -> None:
        np.lib.format.write_array_header_1_0(self.file, {"descr": "<i4", "fortran_order": False, "shape": (self.length,)})


def _sync(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
