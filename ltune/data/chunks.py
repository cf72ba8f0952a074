"""Records in chunks, and a chunk's records to tokens: a few large arrays, which travel between processes as fast as memory is copied."""

from array import array
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from ltune.data.encode import Dropped, Encoded, Encoder
from ltune.data.formats import LOOK, settled, to_row
from ltune.data.pairs import mismatched
from ltune.data.read import BadRows, Record, first_rows, read
from ltune.data.report import Tally
from ltune.data.rows import IGNORE, BadRow, Row
from ltune.data.sources import Source
from ltune.errors import UsageError

ROWS = 500
CHARACTERS = 4_000_000  # that a chunk of long texts is cut at, so that memory stays flat
EMPTY = np.empty(0, np.int32)


@dataclass(frozen=True)
class Part:
    """A data set cut to its first ``limit`` rows."""

    source: Source
    limit: int | None


@dataclass(frozen=True)
class Chunk:
    """Some records of one data set, and the error that the reader met right after them."""

    part: int  # number of the data set
    source: Source
    records: list[Record]
    error: UsageError | None = None
    before: Record | None = None  # the one before them, where rows need it; before the first comes the data set's last


@dataclass(frozen=True)
class Made:
    """What became of a chunk."""

    part: int
    input_ids: np.ndarray  # (tokens,) int32, the sequences end to end
    labels: np.ndarray  # (tokens,) int32
    lengths: np.ndarray  # (sequences,) int64
    trained: np.ndarray  # (sequences,) int64: trained tokens
    origins: np.ndarray  # (sequences, 2) int64: number of the prefix, number behind it
    prefixes: list[str]  # of places: "rows.jsonl:"
    read: Counter[str]  # records by prefix
    tally: Tally
    extras: dict[str, np.ndarray]  # float32: (sequences,), or (trained tokens,)
    notes: np.ndarray  # (bytes,) uint8, end to end
    note_lengths: np.ndarray  # (sequences,) int64; (0,) where this kind of rows has none


def chunks_of(parts: list[Part], rows: type[Row], bad_rows: BadRows) -> Iterator[Chunk]:
    """All records in order. The reader's error comes as part of the last chunk, behind what may be wrong with the rows before it."""
    for number, part in enumerate(parts):
        source, records = part.source, list[Record]()
        before = _last(part, bad_rows) if rows.needs_previous else None
        size, error = 0, None
        try:
            found = first_rows(read(source, bad_rows), part.limit)
            head = list(islice(found, 1 if bad_rows == "error" else LOOK))
            source = settled(source, head, rows)
            for record in chain(head, found):
                records.append(record)
                size += _characters(record[1])
                if len(records) == ROWS or size >= CHARACTERS:
                    yield Chunk(number, source, records, before=before)
                    before = records[-1] if rows.needs_previous else None
                    records, size = [], 0
        except UsageError as met:
            error = met
        if records or error:
            yield Chunk(number, source, records, error, before)
        if error:
            return


def _last(part: Part, bad_rows: BadRows) -> Record | None:
    """The data set's last record; None where its end cannot be read, which is told when the reader comes there."""
    try:
        return deque(first_rows(read(part.source, bad_rows), part.limit), maxlen=1).pop()
    except (UsageError, IndexError):
        return None


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 1


def refuse_bad_rows(parts: list[Part], rows: type[Row]) -> None:
    """Read every record and look at its form, which takes a twentieth of the time of tokenising: a fault at the end is told at once.

    Raises:
        UsageError: The first fault in the order of the rows.
    """
    for chunk in chunks_of(parts, rows, "error"):
        for place, record in chunk.records:
            _row(chunk.source, place, record, rows)
        if chunk.error:
            raise chunk.error


def encode_chunk(chunk: Chunk, rows: type[Row], encoder: Encoder, bad_rows: BadRows) -> Made:
    """A chunk's records to tokens.

    Raises:
        UsageError: The first fault in the order of the rows, unless such rows are skipped.
    """
    tally, read_rows = Tally(), Counter[str]()
    input_ids, labels = [EMPTY], [EMPTY]
    lengths, trained, origins = array("q"), array("q"), array("q")
    prefixes: dict[str, int] = {}
    extras: dict[str, list[np.ndarray]] = {}
    notes: list[bytes] = []
    for place, outcome in _outcomes(chunk, rows, encoder, bad_rows):
        prefix, number = split_place(place)
        read_rows[prefix] += 1
        if isinstance(outcome, BadRow):
            tally.skip(outcome.reason, place)
            continue
        if isinstance(outcome, Dropped):
            tally.drop(outcome.reason, place)
            continue
        tally.note(
            outcome.truncated,
            outcome.control_tokens,
            empty_answer=outcome.empty_answer,
            end_cut=outcome.end_token_cut,
            split=outcome.split,
            equal_answers=outcome.equal_answers,
            place=place,
        )
        for count, sequence in enumerate(outcome.sequences):
            ids, targets = np.asarray(sequence.input_ids, np.int32), np.asarray(sequence.labels, np.int32)
            input_ids.append(ids)
            labels.append(targets)
            lengths.append(len(ids))
            trained.append(int(np.count_nonzero(targets != IGNORE)))
            origins.extend((prefixes.setdefault(prefix, len(prefixes)), number))
            tally.add(ids, trained[-1], targets if trained[-1] else None, same_row=count % rows.sequences > 0)
            for name, values in sequence.extras.items():
                extras.setdefault(name, []).append(np.atleast_1d(values).astype(np.float32))
            if sequence.note:
                notes.append(sequence.note)
    if chunk.error:
        raise chunk.error
    return Made(
        part=chunk.part,
        input_ids=np.concatenate(input_ids),
        labels=np.concatenate(labels),
        lengths=np.array(lengths, np.int64),
        trained=np.array(trained, np.int64),
        origins=np.array(origins, np.int64).reshape(-1, 2),
        prefixes=list(prefixes),
        read=read_rows,
        tally=tally,
        extras={name: np.concatenate(values) for name, values in extras.items()},
        notes=np.frombuffer(b"".join(notes), np.uint8),
        note_lengths=np.array([len(note) for note in notes], np.int64),
    )


Outcome = Encoded | Dropped | BadRow


def _outcomes(chunk: Chunk, rows: type[Row], encoder: Encoder, bad_rows: BadRows) -> Iterator[tuple[str, Outcome]]:
    """What became of each record; that of a bad one is its fault."""
    made: dict[int, Row] = {}  # by the record's number
    faults: dict[int, BadRow] = {}
    for number, (place, record) in enumerate(chunk.records):
        try:
            made[number] = _row(chunk.source, place, record, rows)
        except UsageError as error:
            if not isinstance(error, BadRow) or bad_rows == "error":
                _encoded(made, encoder, bad_rows)  # what is wrong with a row before it comes first
                raise
            faults[number] = error
    if rows.needs_previous:
        made = _after_another(made, chunk, rows)
    outcomes = faults | _encoded(made, encoder, bad_rows)
    return ((place, outcomes[number]) for number, (place, _) in enumerate(chunk.records))


def _after_another(made: dict[int, Row], chunk: Chunk, rows: type[Row]) -> dict[int, Row]:
    """Each row with the one before it that could be read; with itself, where it is the only one."""
    if not made:
        return made
    previous = list(made.values())[-1]
    if chunk.before is not None:
        with suppress(BadRow):
            previous = _row(chunk.source, *chunk.before, rows)
    together: dict[int, Row] = {}
    for number, row in made.items():
        together[number] = mismatched(row, previous)
        previous = row
    return together


def _encoded(rows: dict[int, Row], encoder: Encoder, bad_rows: BadRows) -> dict[int, Outcome]:
    try:
        return dict(zip(rows, encoder.process_batch(list(rows.values())), strict=True))
    except UsageError:  # of some row; one by one, the first is told or skipped
        return {number: _encoded_alone(row, encoder, bad_rows) for number, row in rows.items()}


def _encoded_alone(row: Row, encoder: Encoder, bad_rows: BadRows) -> Outcome:
    try:
        return encoder.process(row)
    except BadRow as error:
        if bad_rows == "error":
            raise
        return error


def _row(source: Source, place: str, record: Any, rows: type[Row]) -> Row:
    return to_row(place, record, source.format, source.columns, source.tags, rows)


def split_place(place: str) -> tuple[str, int]:
    """ "rows.jsonl:13" is ("rows.jsonl:", 13)."""
    prefix = place.rstrip("0123456789")
    return prefix, int(place[len(prefix) :])
