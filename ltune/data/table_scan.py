"""A quick look at a Parquet or Arrow file, whole columns at once: which rows are not as usual (``usual.py``)?

Those are handed to ``to_row``, which has the last word. A file that cannot be read, or whose columns are of other types than usual, is left
to the reader.
"""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ltune.data.lines import Form
from ltune.data.tables import arrow_batches, parquet_batches
from ltune.data.usual import Question, Talk, Usual

if TYPE_CHECKING:
    from pyarrow import Array, RecordBatch, Schema

ROWS = 10_000  # looked at in one go; more take longer to read
UNUSUAL = 10_000  # rows that are looked at closely; where there are more, the look would take as long as the reader

SYSTEM, USER, ASSISTANT, OTHER, BEGIN = range(5)
TEXTS, LISTS = ("string", "large_string"), ("list<", "large_list<")
ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
FOLLOWS = np.zeros((5, 5), bool)  # [before, role]: whether it may come then
FOLLOWS[[BEGIN, BEGIN, SYSTEM, ASSISTANT, USER], [SYSTEM, USER, USER, USER, ASSISTANT]] = True


def scan_table(path: Path, prefix: str, wanted: int, form: Form) -> int | None:
    """The number of rows; None where the file is left to the reader.

    Args:
        path: The file.
        prefix: Stands before the numbers of rows in messages.
        wanted: So many rows are looked at, no more.
        form: What they must be.

    Raises:
        UsageError: The first that is not.
    """
    import pyarrow

    rows = unusual = 0
    with suppress(pyarrow.ArrowException, OSError, ValueError):  # the reader says what is wrong with such files
        for batch in (parquet_batches if path.suffix == ".parquet" else arrow_batches)(path, ROWS):
            if form.usual is None or not _is_known(batch.schema, form.usual):
                return None
            for at in np.flatnonzero(_unusual(batch, form.usual)[: wanted - rows]).tolist():
                unusual += 1
                if unusual > UNUSUAL:
                    return None
                form.check(f"{prefix}{rows + at + 1}", batch.slice(at, 1).to_pylist()[0])
            rows += batch.num_rows
            if rows >= wanted:
                break
        return min(rows, wanted)
    return None


def _is_known(schema: "Schema", usual: Usual) -> bool:
    """Whether the columns are there, each once, and conversations are lists of messages."""
    names = set(schema.names)
    if len(names) < len(schema.names) or not usual.needed <= names or {"kto_tag", "label"} <= names & {"kto_tag", *usual.needed}:
        return False
    if isinstance(usual, Question):
        return True
    assert isinstance(usual, Talk), usual
    kind = schema.field(usual.column).type
    if not str(kind).startswith(LISTS) or not str(kind.value_type).startswith("struct<"):
        return False
    keys = {field.name: str(field.type) for field in kind.value_type}
    return len(keys) == kind.value_type.num_fields and keys.get(usual.spelled.role) in TEXTS and usual.spelled.content in keys


def _unusual(batch: "RecordBatch", usual: Usual) -> np.ndarray:
    """Which rows are not as usual: (rows,), bool."""
    columns = {name: _plain(batch.column(name)) for name in batch.schema.names}
    if isinstance(usual, Question):
        return _unusual_question(columns, usual)
    assert isinstance(usual, Talk), usual
    return _unusual_talk(columns, usual)


def _unusual_question(columns: dict[str, "Array"], usual: Question) -> np.ndarray:
    asked, further = columns[usual.prompt], columns.get(usual.query or "")
    found = _is_no_text(asked) | (_is_nothing(asked) & (True if further is None else _is_nothing(further)))
    for column in [columns[name] for name in usual.answers]:
        found |= _is_no_text(column)
    for column in [columns[name] for name in (usual.query, *usual.texts) if name in columns]:
        found |= _is_no_text(column) & ~_is_nothing(column)
    return found | _unusual_beside(columns, usual)


def _unusual_talk(columns: dict[str, "Array"], usual: Talk) -> np.ndarray:
    talks = columns[usual.column]
    ends, role, has_fault = _messages(talks, usual)
    begins, lengths = ends[:-1], np.diff(ends)
    spoken = lengths > 0
    before = np.r_[BEGIN, role][:-1]
    before[begins[spoken]] = BEGIN
    found = _is_null(talks) | ~spoken
    # The last talk that begins no later than the message; empty ones that begin there too come before it
    found[np.searchsorted(begins, np.flatnonzero(has_fault | ~FOLLOWS[before, role]), side="right") - 1] = True
    found[spoken] |= ~np.isin(role[ends[1:][spoken] - 1], [ROLES[name] for name in usual.ends])
    if usual.system in columns:
        system = columns[usual.system]
        twice = np.zeros(len(found), bool)
        twice[spoken] = role[begins[spoken]] == SYSTEM
        found |= ~_is_nothing(system) & (_is_no_text(system) | twice)
    for column in [columns[name] for name in usual.answers]:
        found |= _is_no_text(column)
    return found | _unusual_beside(columns, usual)


def _messages(talks: "Array", usual: Talk) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a column of lists: where each begins and the last ends, (rows + 1,); of all messages in them, (messages,), the role, and whether
    something in it is not as usual."""
    ends = _ends(talks)
    messages = talks.values.slice(ends[0], ends[-1] - ends[0])
    values = dict(zip([field.name for field in messages.type], map(_plain, messages.flatten()), strict=True))
    written, said = values.pop(usual.spelled.role), values.pop(usual.spelled.content)
    role = _roles(written, usual.spelled.roles)
    has_fault = _is_no_text(said) | _is_nothing(said)
    for other in values.values():
        has_fault |= ~_is_null(other)
    return ends - ends[0], role, has_fault


def _roles(written: "Array", roles: dict[str, str]) -> np.ndarray:
    """What the roles mean, (messages,)."""
    import pyarrow
    from pyarrow import compute

    if not len(written):
        return np.zeros(0, int)
    names = [name.encode() for name in roles]
    ends = np.cumsum([0, *map(len, names)], dtype=_offset(written))
    buffers = [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(b"".join(names))]
    found = compute.index_in(written, value_set=pyarrow.Array.from_buffers(written.type, len(names), buffers))
    number = np.frombuffer(found.buffers()[1], np.int32)[found.offset : found.offset + len(found)]
    meant = np.array([*(ROLES.get(role, OTHER) for role in roles.values()), OTHER])
    return meant[np.where(_is_null(found), len(names), number)]


def _unusual_beside(columns: dict[str, "Array"], usual: Question | Talk) -> np.ndarray:
    """The marks that are neither true nor false, and columns that are not empty."""
    marks = [columns[name] for name in usual.marks]
    found = [_is_null(column) if str(column.type) == "bool" else np.ones(len(column), bool) for column in marks]
    found += [~_is_nothing(columns[name]) for name in usual.apart if name in columns]
    return np.logical_or.reduce([np.zeros(len(next(iter(columns.values()))), bool), *found])


# -- a column, whose buffers are read as they are: pyarrow's own ways to numpy import pandas -------------------------------------------


def _plain(column: "Array") -> "Array":
    return column.dictionary_decode() if str(column.type).startswith("dictionary") else column


def _is_null(column: "Array") -> np.ndarray:
    if column.null_count in (0, len(column)):
        return np.full(len(column), column.null_count > 0)
    return ~_bits(column, 0)


def _is_nothing(column: "Array") -> np.ndarray:
    """Null, or what Python takes for false: text and lists that are empty, False. Of other types only null is known to be."""
    kind, found = str(column.type), _is_null(column)
    if kind == "bool":
        return found | ~_bits(column, 1)
    return found | (np.diff(_ends(column)) == 0) if kind in TEXTS or kind.startswith(LISTS) else found


def _is_no_text(column: "Array") -> np.ndarray:
    """Null, of another type than text, or text that holds a null character."""
    if str(column.type) not in TEXTS:
        return np.ones(len(column), bool)
    found, ends, text = _is_null(column), _ends(column), column.buffers()[2]
    signs = np.frombuffer(text or b"", np.uint8)[ends[0] : ends[-1]]
    if len(signs) and signs.min() == 0:
        # The last text that begins no later than the character; empty ones that begin there too come before it
        found[np.searchsorted(ends[:-1] - ends[0], np.flatnonzero(signs == 0), side="right") - 1] = True
    return found


def _ends(column: "Array") -> np.ndarray:
    """Where each text or list begins and the last ends: (rows + 1,)."""
    buffer = column.buffers()[1]
    if buffer is None or not len(column):  # it may be missing where all is empty
        return np.zeros(len(column) + 1, _offset(column))
    return np.frombuffer(buffer, _offset(column))[column.offset : column.offset + len(column) + 1]


def _offset(column: "Array") -> type[np.signedinteger]:
    return np.int64 if str(column.type).startswith("large_") else np.int32


def _bits(column: "Array", buffer: int) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(column.buffers()[buffer], np.uint8), bitorder="little")
    return bits[column.offset : column.offset + len(column)].astype(bool)
