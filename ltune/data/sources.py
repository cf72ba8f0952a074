"""Where rows come from: a data set's name to its files. ``read`` takes it from there. It refuses to know what a record means."""

import difflib
import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltune.data import hub
from ltune.data.read import KINDS, Record, kind_of, read, read_file, sha256
from ltune.data.registry import COLUMNS, FILE, TAGS, Entry, check_names, entries, entry_of
from ltune.errors import UsageError

__all__ = ["QUICKSTART", "Dataset", "Record", "Source", "read", "read_file", "resolve", "sha256"]

ASSETS = Path(__file__).resolve().parents[1] / "assets"
QUICKSTART = ASSETS / "quickstart.jsonl"
EMBEDDED = {file.stem: file for file in sorted(ASSETS.glob("quickstart*.jsonl"))}  # conversations; pairs and rated answers; prompts


@dataclass
class Dataset:
    """A data set as the configuration names it.

    Args:
        name: Name in dataset_info.json, file, glob ("rows/*.jsonl"), folder, "quickstart" and its like, hub id or hf://datasets/owner/name[@revision][/path].
        files: Files, globs and folders that make up the data set; ``name`` is then what it is called.
        max_rows: First rows taken; null: as for all data sets.
        weight: How often its rows count: 2 shows each twice in an epoch, 0.5 a random half; interleaved, its share of the rows.
        format: alpaca, sharegpt, openai, completion or text; null: by the first row's columns.
        columns: Which column plays which part: prompt, query, response, history, messages, system, tools, chosen, rejected, kto_tag.
        tags: How messages are written: role_tag, content_tag, user_tag, assistant_tag, system_tag, function_tag, observation_tag.
        num_samples: So many rows, drawn at random before ``max_rows`` counts; some more than once where there are not as many. null: all.
        seed: For num_samples.
        subset: Of a hub data set.
        split: Of a hub data set; null: train.
        revision: Of a hub data set: branch, tag or commit.
        streaming: Read the first ``max_rows`` rows of a hub data set without fetching the rest. Files are always read row by row.
    """

    name: str
    files: list[str] | None = None
    max_rows: int | None = None
    weight: float = 1.0
    format: str | None = None
    columns: dict[str, str] | None = None
    tags: dict[str, str] | None = None
    num_samples: int | None = None
    seed: int = 42
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    streaming: bool = False


@dataclass(frozen=True)
class Source:
    """A data set whose files are found."""

    name: str
    files: tuple[Path, ...]
    max_rows: int | None = None
    format: str | None = None
    columns: dict[str, str] | None = None
    tags: dict[str, str] | None = None
    num_samples: int | None = None
    seed: int = 42


Remote = tuple[Dataset, hub.Place, Entry | None]  # one on the hub, where it is there, and what dataset_info.json says of it


def resolve(dataset: "str | Dataset", folder: str | Path) -> Source:
    """Find a data set: in dataset_info.json, as file, glob or folder, embedded, or on the hub (only then is anything fetched).

    Raises:
        UsageError: It is nowhere, or is of a kind that cannot be read.
    """
    found = find(dataset, folder)
    return found if isinstance(found, Source) else _fetched(*found)


def find(dataset: "str | Dataset", folder: str | Path) -> Source | Remote:
    """As ``resolve``, but nothing is fetched: what is on the hub comes as its place there."""
    wanted, folder = dataset if isinstance(dataset, Dataset) else Dataset(dataset), Path(folder)
    _check(wanted)
    registered = entries(folder)
    if wanted.files is not None:
        return _local(wanted, _several(wanted, folder))
    if wanted.name in registered:
        return _registered(wanted, entry_of(wanted.name, registered[wanted.name], folder))
    if files := _found(wanted.name, folder):
        return _local(wanted, files)
    if wanted.name in EMBEDDED:
        return _local(wanted, (EMBEDDED[wanted.name],))
    address = hub.parse(wanted.name)
    if address and (wanted.name.startswith("hf://") or Path(wanted.name).suffix not in (*KINDS, ".gz")):
        id, revision, path = address
        return _remote(wanted, hub.Place(id, revision, path))
    raise _unknown(wanted.name, folder, list(registered))


def _unknown(name: str, folder: Path, registered: list[str]) -> UsageError:
    guess = difflib.get_close_matches(name, [*registered, *EMBEDDED], 1)
    return UsageError(
        f"there is no data set {name}.\n"
        f"Looked for: an entry in {folder / FILE} ({len(registered)} there), a file or folder of that name.\n"
        + (f"Did you mean {guess[0]}?" if guess else "Give one of its entries, a path, quickstart, or a hub id (owner/name).")
    )


def _check(wanted: Dataset) -> None:
    place = f"data set {wanted.name}"
    for key in ("max_rows", "num_samples"):
        if (value := getattr(wanted, key)) is not None and value < 1:
            raise UsageError(f"{place}: {key} is {value}; it must be 1 or more, or null for all.")
    if not 0 < wanted.weight < float("inf"):
        raise UsageError(f"{place}: weight is {wanted.weight}; it must be above 0.")
    check_names(place, "columns", wanted.columns, COLUMNS)
    check_names(place, "tags", wanted.tags, TAGS)


# -- where the files are --------------------------------------------------------------------------------------------------------------


def _local(wanted: Dataset, files: tuple[Path, ...], entry: Entry | None = None) -> Source:
    for key in ("subset", "split", "revision"):
        if getattr(wanted, key) is not None:
            raise UsageError(f"data set {wanted.name}: {key} is for data sets on the hub, and this one is {files[0]}.\nRemove it.")
    if entry is not None and (entry.subset or entry.folder or entry.split not in (None, "train")):
        raise UsageError(f"{entry.place}: subset, split and folder are for data sets on the hub, and this one is {files[0]}.\nRemove them.")
    return _source(wanted, files, entry)


def _registered(wanted: Dataset, entry: Entry) -> Source | Remote:
    if entry.hub_id:
        address = hub.parse(entry.hub_id)
        if address is None:
            raise UsageError(f"{entry.place}: hf_hub_url must be owner/name; got {entry.hub_id}.")
        return _remote(wanted, hub.Place(*address, subset=entry.subset, split=entry.split or "train", folder=entry.folder), entry)
    assert entry.file is not None
    files = _found(str(entry.file), Path())
    if not files:
        raise UsageError(f"{entry.place}: its file {entry.file} does not exist.")
    return _local(wanted, files, entry)


def _remote(wanted: Dataset, place: hub.Place, entry: Entry | None = None) -> Remote:
    place = hub.Place(
        place.id, wanted.revision or place.revision, place.path, wanted.subset or place.subset, wanted.split or place.split, place.folder
    )
    return wanted, place, entry


def _fetched(wanted: Dataset, place: hub.Place, entry: Entry | None) -> Source:
    if not wanted.streaming:
        return _source(wanted, hub.fetch(place), entry)
    if wanted.max_rows is None:
        raise UsageError(
            f"data set {wanted.name}: streaming reads the first rows without fetching the rest, and has to know how many.\n"
            "Set its max_rows, or  streaming: false"
        )
    return _source(wanted, hub.stream(place, wanted.max_rows), entry)


def _source(wanted: Dataset, files: tuple[Path, ...], entry: Entry | None) -> Source:
    def either(given: Any, key: str) -> Any:
        return given if given is not None else getattr(entry, key) if entry is not None else None

    return Source(
        wanted.name,
        files,
        wanted.max_rows,
        either(wanted.format, "format"),
        either(wanted.columns, "columns"),
        either(wanted.tags, "tags"),
        either(wanted.num_samples, "num_samples"),
        wanted.seed,
    )


def _several(wanted: Dataset, folder: Path) -> tuple[Path, ...]:
    if not wanted.files:
        raise UsageError(f"data set {wanted.name}: files is empty; name files, globs or folders, or set it to null.")
    files: list[Path] = []
    for name in wanted.files:
        found = _found(name, folder)
        if not found:
            raise UsageError(f"data set {wanted.name}: there is no file {name}, neither here nor in {folder}.")
        files += found
    twice = next((file for file in files if files.count(file) > 1), None)
    if twice is not None:
        raise UsageError(f"data set {wanted.name}: its files name {twice} twice.\nTo show rows twice set  weight: 2")
    return tuple(files)


def _found(name: str, folder: Path) -> tuple[Path, ...]:
    """The files of that name, here or in the folder: one, those of a folder, or those that a glob matches; in order of their names."""
    for path in (Path(name).expanduser(), folder / name):
        if path.is_dir():
            return _in_folder(path)
        if path.exists():
            return (_readable(path),)
        if glob.has_magic(name) and (matches := sorted(map(Path, glob.glob(str(path), recursive=True)))):
            return tuple(_readable(match) for match in matches if match.is_file() and match.name != FILE)
    return ()


def _in_folder(folder: Path) -> tuple[Path, ...]:
    files = sorted(file for file in folder.iterdir() if kind_of(file) in KINDS and file.name != FILE and not file.name.startswith("."))
    files = [file for file in files if kind_of(file) != ".txt"] or files  # beside rows, a text is a note
    if not files:
        raise UsageError(f"{folder}: the folder holds no {', '.join(KINDS)} file.")
    return tuple(files)


def _readable(path: Path) -> Path:
    if kind_of(path) not in KINDS:
        raise UsageError(f"{path}: cannot read this kind of file; known are {', '.join(KINDS)}, and .gz of those that are text.")
    return path
