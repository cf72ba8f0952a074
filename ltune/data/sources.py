"""Where rows come from: a data set's name to files, files to records. It refuses to know what a record means."""

import csv
import difflib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from ltune.errors import UsageError

QUICKSTART = Path(__file__).resolve().parents[1] / "assets" / "quickstart.jsonl"
LINES = (".jsonl", ".ndjson")
KINDS = (*LINES, ".json", ".csv", ".parquet")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Parts that a column can play for other kinds of rows; passing over them would train on something else
OTHER_PARTS = ("chosen", "rejected", "kto_tag", "images", "videos", "audios")
SPACE = re.compile(r"[ \t\r\n]*")
NOT_JSON = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)')

Record = tuple[str, dict[str, Any]]  # place, column to value


@dataclass
class Dataset:
    """A data set as the configuration names it.

    Args:
        name: Name in dataset_info.json, file, folder, "quickstart" or hub id.
        max_rows: First rows taken; null: as for all data sets.
        format: alpaca, sharegpt, openai or text; null: by the columns.
        columns: Which column plays which part: prompt, query, response, history, messages, system, tools.
        tags: How messages are written: role_tag, content_tag, user_tag, assistant_tag, system_tag.
    """

    name: str
    max_rows: int | None = None
    format: str | None = None
    columns: dict[str, str] | None = None
    tags: dict[str, str] | None = None


@dataclass(frozen=True)
class Source:
    """A data set whose files are found."""

    name: str
    files: tuple[Path, ...]
    max_rows: int | None = None
    format: str | None = None
    columns: dict[str, str] | None = None
    tags: dict[str, str] | None = None
    num_samples: int | None = None  # of dataset_info.json: no more than these first rows exist


# -- a name to files ------------------------------------------------------------------------------------------------------------------


def resolve(dataset: "str | Dataset", folder: str | Path) -> Source:
    """Find a data set: in the folder's dataset_info.json, as a file or folder, "quickstart", or on the hub (only then is anything fetched).

    Raises:
        UsageError: It is nowhere, or is of a kind that cannot be read.
    """
    wanted = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    registry = _registry(Path(folder))
    if wanted.name in registry:
        return _registered(wanted, registry[wanted.name], Path(folder))
    for path in (Path(wanted.name).expanduser(), Path(folder) / wanted.name):
        if path.exists():
            return _source(wanted, _files(path))
    if wanted.name == "quickstart":
        return _source(wanted, (QUICKSTART,))
    if HUB_ID.fullmatch(wanted.name) and Path(wanted.name).suffix not in KINDS:
        return _source(wanted, _download(wanted.name, None, "train"))
    known = [*registry, "quickstart"]
    guess = difflib.get_close_matches(wanted.name, known, 1)
    raise UsageError(
        f"there is no data set {wanted.name}.\n"
        f"Looked for: an entry in {Path(folder) / 'dataset_info.json'} ({len(registry)} there), a file or folder of that name.\n"
        + (f"Did you mean {guess[0]}?" if guess else "Give one of its entries, a path, quickstart, or a hub id (owner/name).")
    )


def _source(wanted: Dataset, files: tuple[Path, ...], entry: dict[str, Any] | None = None) -> Source:
    entry = entry or {}
    if wanted.max_rows is not None and wanted.max_rows < 1:
        raise UsageError(f"data set {wanted.name}: max_rows is {wanted.max_rows}; it must be 1 or more, or null for all.")
    columns, tags = wanted.columns or entry.get("columns"), wanted.tags or entry.get("tags")
    format = wanted.format or entry.get("formatting")
    return Source(wanted.name, files, wanted.max_rows, format, columns, tags, entry.get("num_samples"))


def _registry(folder: Path) -> dict[str, Any]:
    path = folder / "dataset_info.json"
    if not path.is_file():
        return {}
    text = _decoded(path, path.read_bytes())
    registry = _parsed(path, text, 1)
    if not isinstance(registry, dict):
        raise UsageError(f"{path}: must be an object, data set name to its entry.")
    return registry


def _registered(wanted: Dataset, entry: dict[str, Any], folder: Path) -> Source:
    place = f"data set {wanted.name} in {folder / 'dataset_info.json'}"
    if not isinstance(entry, dict):
        raise UsageError(f"{place}: its entry must be an object.")
    if entry.get("ranking"):
        raise UsageError(f"{place} holds ranked answers (ranking: true); SFT and Pretrain train on single ones.")
    other = [part for part in OTHER_PARTS if part in (entry.get("columns") or {})]
    if other:
        raise UsageError(f"{place}: its columns name {', '.join(other)}, which SFT and Pretrain do not train on.")
    if "file_name" in entry:
        path = folder / entry["file_name"]
        if not path.exists():
            raise UsageError(f"{place}: its file {path} does not exist.")
        return _source(wanted, _files(path), entry)
    if "hf_hub_url" in entry:
        return _source(wanted, _download(entry["hf_hub_url"], entry.get("subset"), entry.get("split", "train")), entry)
    raise UsageError(f"{place}: its entry has neither file_name nor hf_hub_url; got {', '.join(entry) or 'nothing'}.")


def _files(path: Path) -> tuple[Path, ...]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in KINDS and file.name != "dataset_info.json")
        if not files:
            raise UsageError(f"{path}: the folder holds no {', '.join(KINDS)} file.")
        return tuple(files)
    if path.suffix not in KINDS:
        raise UsageError(f"{path}: cannot read this kind of file; known are {', '.join(KINDS)}.")
    return (path,)


def _download(name: str, subset: str | None, split: str) -> tuple[Path, ...]:
    import datasets

    try:
        loaded = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = str(error).strip().splitlines()[:1]
        raise UsageError(
            f"cannot get data set {name} (split {split}) from the hub: {first[0] if first else type(error).__name__}"
        ) from error
    return tuple(Path(file["filename"]) for file in loaded.cache_files)


def sha256(path: str | Path) -> str:
    """Of the file's contents, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- files to records -----------------------------------------------------------------------------------------------------------------


def read(source: Source) -> Iterator[Record]:
    """(place, record) of every row, in order.

    Raises:
        UsageError: An empty file, malformed content (with file:line), or a row that is no object.
    """
    return islice((row for path in source.files for row in read_file(path)), source.num_samples)


def read_file(path: Path) -> Iterator[Record]:
    """The rows of one file, as ``read`` gives them."""
    reader = {".csv": _csv, ".parquet": _parquet, ".arrow": _arrow, ".json": _json}.get(path.suffix, _jsonl)
    prefix, empty = place_prefix(path), True
    for number, record in reader(path):
        empty = False
        if not isinstance(record, dict):
            raise UsageError(f"{prefix}{number}: a row must be an object of columns; got {repr(record)[:80]}.")
        yield f"{prefix}{number}", record
    if empty:
        raise UsageError(f"{path}: the file is empty: it has no rows.")


def place_prefix(path: Path) -> str:
    """What stands before the number in a file's places: lines where a row is a line, else rows, counted from 1."""
    return f"{path.name}:" if path.suffix in LINES else f"{path.name} row "


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = _decoded(path, line, number)
            if text.strip():
                yield number, _parsed(path, text, number)


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    """Row by row: only the text is held as a whole. Some tools name files of lines .json too."""
    text = _decoded(path, path.read_bytes())
    position = _skip(text, 0)
    if text[position : position + 1] != "[":
        yield from ((number, _parsed(path, line, number)) for number, line in enumerate(text.split("\n"), 1) if line.strip())
        return
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    number, position = 0, _skip(text, position + 1)
    ended = text[position : position + 1] == "]"
    position = _skip(text, position + 1) if ended else position
    while not ended:
        number += 1
        try:
            record, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            _malformed(path, text, 1, error, position)
        yield number, record
        position = _skip(text, position)
        mark = text[position : position + 1]
        if mark not in (",", "]") or not mark:
            _malformed(path, text, 1, json.JSONDecodeError("Expecting ',' or ']'", text, position))
        ended = mark == "]"
        position = _skip(text, position + 1)
    if position < len(text):
        _malformed(path, text, 1, json.JSONDecodeError("Nothing may follow the closing ']'", text, position))


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for number, record in enumerate(reader, 1):
                if None in record or None in record.values():
                    raise UsageError(
                        f"{path}:{reader.line_num}: the row has not as many fields as the header ({len(reader.fieldnames or ())})."
                    )
                yield number, record
        except (csv.Error, UnicodeDecodeError) as error:
            raise UsageError(f"{path}:{reader.line_num}: malformed CSV: {error}.") from error


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from enumerate((record for batch in file.iter_batches(1000) for record in batch.to_pylist()), 1)
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path}: malformed parquet: {str(error).splitlines()[0]}") from error


def _arrow(path: Path) -> Iterator[tuple[int, Any]]:
    """What ``datasets`` keeps of a hub data set."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        yield from enumerate((record for batch in pyarrow.ipc.open_stream(file) for record in batch.to_pylist()), 1)


# -- JSON, with the place of what is wrong --------------------------------------------------------------------------------------------


def _decoded(path: Path, raw: bytes, line: int = 1) -> str:
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        place = f"{path}:{line + raw[: error.start].count(10)}"
        raise UsageError(f"{place}: not UTF-8 text: {error.reason}.") from error


def _parsed(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _malformed(path, text, line, error)


def _malformed(path: Path, text: str, line: int, error: Exception, begin: int = 0) -> NoReturn:
    if isinstance(error, json.JSONDecodeError):
        position, what = error.pos, f"{error.msg} (column {error.colno})"
    else:  # a constant, whose place the parser does not tell, or objects nested too deeply
        found = next((match for match in NOT_JSON.finditer(text, begin) if match.group(1)), None)
        position, what = found.start() if found else begin, str(error)
    line += text[:position].count("\n")
    raise UsageError(f"{path}:{line}: malformed JSON: {what}.") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _skip(text: str, position: int) -> int:
    """Past white space."""
    return SPACE.match(text, position).end()  # type: ignore[union-attr]
