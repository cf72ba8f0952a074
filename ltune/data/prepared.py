"""Rows tokenised once, kept on disk under a key of our own (contents and settings), and read through memory maps.

A folder in the cache appears whole or not at all: it is written beside, under a hidden name, and renamed. Nothing here grows with the
number of rows but eight bytes for each (``Tally``, to find duplicates): a million rows take as much memory as a thousand.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ltune.data.chunks import Made, Part
from ltune.data.contents import cache_folder, content_hash, hashes_in, identity, while_unchanged
from ltune.data.encode import Encoder
from ltune.data.growing import Growing
from ltune.data.processes import encode_rows
from ltune.data.read import BadRows, place_prefixes
from ltune.data.report import Tally, data_report, write_report
from ltune.data.rows import Row, Sequence
from ltune.data.sources import Dataset, resolve
from ltune.errors import ResourceError, UsageError
from ltune.system import is_alive, sync, sync_all

FORMAT = 6  # of what is stored; to be raised when the same settings give other contents
STAGE = re.compile(r"\.(\d+)@(.+)\.[^.]+")

KINDS: dict[str, tuple] = {  # of the arrays: their numbers, and how many in a row
    "input_ids": ("<i4",),
    "labels": ("<i4",),
    "offsets": ("<i8",),  # (sequences + 1,): where each sequence's tokens begin
    "lengths": ("<i8",),  # of each sequence, as all below
    "trained": ("<i8",),
    "origins": ("<i8", 2),  # number of the place's prefix, and what stands behind it
    "notes": ("|u1",),
    "note_ends": ("<i8",),  # of each sequence's, in bytes; none where this kind of rows has no notes
}
ARRAYS = tuple(KINDS)
EXTRA = "extra.{}"  # an array of float32: one for each sequence, or for each trained token

log = logging.getLogger(__name__)


class Prepared:
    """Tokenised rows that were kept, in order. Opening costs no reading: arrays are memory-mapped.

    Args:
        folder: Of the cache, complete.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder.name
        # As plain arrays: cutting a row out of a memmap takes ten times as long
        arrays = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ARRAYS}
        self._input_ids, self._labels, self._offsets, self._origins = (
            arrays[name] for name in ("input_ids", "labels", "offsets", "origins")
        )
        self._notes, self._note_ends = arrays["notes"], arrays["note_ends"]
        stored = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        self._prefixes: list[str] = stored.pop("places")
        self._per_row: int = stored.pop("sequences_per_row")
        self._extras = {name: np.asarray(np.load(folder / f"{EXTRA.format(name)}.npy", mmap_mode="r")) for name in stored.pop("extras")}
        self.report: dict[str, Any] = stored
        counts = {len(arrays["lengths"]), len(arrays["trained"]), len(self._origins), len(self._offsets) - 1}
        if len(counts) > 1 or not len(self._input_ids) == len(self._labels) == self._offsets[-1]:
            raise ValueError(f"{folder}: the arrays do not fit together")
        self.lengths = self._of_rows(arrays["lengths"])  # (rows,) int64: tokens of all its sequences
        self.trained = self._of_rows(arrays["trained"])  # (rows,) int64: trained tokens
        tokenwise = any(len(values) != len(arrays["trained"]) for values in self._extras.values())
        self._trained_before = np.concatenate([[0], np.cumsum(arrays["trained"])]) if tokenwise else None  # (sequences + 1,)

    def _of_rows(self, values: np.ndarray) -> np.ndarray:
        return values if self._per_row == 1 else values.reshape(-1, self._per_row).sum(1)

    def __len__(self) -> int:
        return len(self.trained)

    @property
    def counted(self) -> np.ndarray:
        """(rows,): the trained tokens of each, by their weights where they have some."""
        return self._of_rows(self._extras["weights"].astype(np.float64)) if "weights" in self._extras else np.asarray(self.trained)

    def __getitem__(self, row: int) -> tuple[Sequence, ...]:
        """Its sequences: two (tokens,) int32 arrays each, read-only, and the extras."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        if self._per_row == 1:
            return (self._sequence(row),)
        return tuple(self._sequence(number) for number in range(row * self._per_row, (row + 1) * self._per_row))

    def _sequence(self, number: int) -> Sequence:
        begin, end = self._offsets[number], self._offsets[number + 1]
        extras = {name: self._extra(name, number) for name in self._extras}
        return Sequence(self._input_ids[begin:end], self._labels[begin:end], extras, self._note(number))

    def _note(self, number: int) -> bytes:
        if not len(self._note_ends):
            return b""
        return self._notes[self._note_ends[number - 1] if number else 0 : self._note_ends[number]].tobytes()

    def _extra(self, name: str, number: int) -> np.ndarray:
        values = self._extras[name]
        if len(values) == len(self._offsets) - 1:
            return values[number]
        assert self._trained_before is not None
        return values[self._trained_before[number] : self._trained_before[number + 1]]

    def __reduce__(self) -> tuple:
        return Prepared, (self.folder,)  # a memory map would be sent as its whole contents

    def place(self, row: int) -> str:
        """Where the row came from: "identity.json row 12"."""
        prefix, number = self._origins[row * self._per_row]
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
    bad_rows: BadRows = "error",
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
        bad_rows: error: the first bad row is refused; skip: such rows are counted and left out.

    Raises:
        UsageError: Nothing to train on, or anything wrong with a data set or a row.
    """
    if max_rows is not None and max_rows < 1:
        raise UsageError(f"data.max_rows: {max_rows}; it must be 1 or more, or null for all.")
    sources = [resolve(dataset, folder) for dataset in datasets]
    parts = [Part(source, max_rows if source.max_rows is None else source.max_rows) for source in sources]
    cache = cache_folder(cache)
    files, identities = _hashed(parts, hashes_in(cache))
    target = cache / _key(parts, files, rows, encoder, bad_rows)
    if (found := _open(target)) is not None:
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        chunks = encode_rows(parts, rows, encoder, processes, bad_rows)
        _build(target, parts, files, while_unchanged(chunks, identities), rows.sequences)
    except OSError as error:
        raise ResourceError(f"data.cache: cannot write the tokenised rows to {cache}: {error}") from error
    return Prepared(target)


def _hashed(parts: list[Part], memory: Path) -> tuple[list[dict], dict[Path, list[int]]]:
    files, identities = [], {}
    for source in (part.source for part in parts):
        for file in source.files:
            try:
                identities[file] = identity(file)
                files.append({"name": source.name, "path": str(file), "sha256": content_hash(file, memory)})
            except OSError as error:
                raise UsageError(f"data set {source.name}: {file} cannot be read: {error.strerror}") from error
    return files, identities


def _key(parts: list[Part], files: list[dict], rows: type[Row], encoder: Encoder, bad_rows: BadRows) -> str:
    from tokenizers import __version__ as tokenizers_version

    named = [asdict(part.source) | {"files": None, "limit": part.limit} for part in parts]
    settings = [FORMAT, tokenizers_version, named, files, rows.__name__, bad_rows, encoder.settings()]
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
        if match and match.group(2) == socket.gethostname() and not is_alive(int(match.group(1))):
            shutil.rmtree(folder, ignore_errors=True)


# -- building -------------------------------------------------------------------------------------------------------------------------


def _build(target: Path, parts: list[Part], files: list[dict], chunks: Iterator[Made], per_row: int) -> None:
    stage = Path(tempfile.mkdtemp(prefix=f".{os.getpid()}@{socket.gethostname()}.", dir=target.parent))
    try:
        _write(stage, parts, files, chunks, per_row)
        sync_all(stage)
        try:
            os.rename(stage, target)
        except OSError:
            if not target.exists():
                raise
            return  # another process was faster, with the same contents
        sync(target.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)  # gone already where it was renamed


def _write(stage: Path, parts: list[Part], files: list[dict], chunks: Iterator[Made], per_row: int) -> None:
    """Arrays and report. All arrays go straight to the files, chunk by chunk."""
    tallies = [(part.source.name, Tally()) for part in parts]
    read_rows: Counter[tuple[int, str]] = Counter()  # by part and prefix
    prefixes: dict[str, int] = {}
    extras: dict[str, Growing] = {}
    tokens = noted = 0
    with ExitStack() as opened:
        arrays = {name: opened.enter_context(Growing(stage / f"{name}.npy", *kind)) for name, kind in KINDS.items()}
        arrays["offsets"].append(np.zeros(1, np.int64))
        for made in chunks:
            numbers = np.array([prefixes.setdefault(prefix, len(prefixes)) for prefix in made.prefixes], np.int64)
            offsets = tokens + np.cumsum(made.lengths)
            tokens += len(made.input_ids)
            origins = np.stack([numbers[made.origins[:, 0]], made.origins[:, 1]], axis=1)
            note_ends = noted + np.cumsum(made.note_lengths)
            noted += len(made.notes)
            values = (made.input_ids, made.labels, offsets, made.lengths, made.trained, origins, made.notes, note_ends)
            for name, value in zip(ARRAYS, values, strict=True):
                arrays[name].append(value)
            for name, value in made.extras.items():
                if name not in extras:
                    extras[name] = opened.enter_context(Growing(stage / f"{EXTRA.format(name)}.npy", "<f4"))
                extras[name].append(value)
            tally = tallies[made.part][1]
            tally += made.tally
            read_rows.update({(made.part, prefix): count for prefix, count in made.read.items()})
    _refuse_nothing(tallies)
    named = [(part, prefix) for part, cut in enumerate(parts) for prefix in place_prefixes(cut.source.files)]
    sources = [file | {"rows": read_rows.pop(key, 0)} for file, key in zip(files, named, strict=True)]
    stored = {"places": list(prefixes), "sequences_per_row": per_row, "extras": list(extras)}
    write_report(data_report(tallies, sources) | stored, stage / "report.json")


def _refuse_nothing(tallies: list[tuple[str, Tally]]) -> None:
    for name, tally in tallies:
        if not tally.counts["rows"]:
            left_out = tally.dropped | tally.skipped
            reasons = [f"{entry['rows']} rows: {reason} (first: {entry['places'][0]})" for reason, entry in left_out.items()]
            raise UsageError("\n".join([f"data set {name}: no row of it can be trained on.", *reasons[:3]]))
