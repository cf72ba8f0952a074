"""Data sets on the hub: an id, or hf://datasets/owner/name[@revision][/path]. Fetched whole, file by file, or only the first rows."""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ltune.errors import UsageError

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
ADDRESS = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+))?")
SPLIT = re.compile(r"\w[\w.-]*(\+\w[\w.-]*)*")  # "train" or "train+test"
GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Place:
    """What of a hub repository is wanted."""

    id: str
    revision: str | None = None
    path: str | None = None  # of files in it; may be a glob
    subset: str | None = None
    split: str = "train"
    folder: str | None = None  # in it


def parse(name: str) -> tuple[str, str | None, str | None] | None:
    """(id, revision, path) of a hub id or an hf:// address; None where it is neither."""
    if match := ADDRESS.fullmatch(name):
        return match.group(1), match.group(2), match.group(3)
    if name.startswith("hf://"):
        raise UsageError(f"data set {name}: an address on the hub is  hf://datasets/owner/name[@revision][/path/of/file]")
    return (name, None, None) if ID.fullmatch(name) else None


def fetch(place: Place) -> tuple[Path, ...]:
    """The files that hold its rows, downloaded unless they are in the hub's own cache.

    Raises:
        UsageError: It cannot be had; in two lines, with the hub's own words.
    """
    if not SPLIT.fullmatch(place.split):
        raise UsageError(
            f"data set {place.id}: split is {place.split}; give a name such as train, or train+test.\nFor some of the rows set  max_rows"
        )
    return _download(place) if place.path else _load(place)


def _load(place: Place) -> tuple[Path, ...]:
    import datasets

    try:
        loaded = datasets.load_dataset(place.id, place.subset, split=place.split, revision=place.revision, data_dir=place.folder)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _unavailable(place, error) from error
    files = tuple(Path(file["filename"]) for file in loaded.cache_files)
    if not files:
        raise UsageError(f"data set {place.id}: datasets keeps it in memory only.\nUnset HF_DATASETS_IN_MEMORY_MAX_SIZE")
    return files


def _download(place: Place) -> tuple[Path, ...]:
    from huggingface_hub import hf_hub_download, snapshot_download

    assert place.path is not None
    try:
        if not GLOB.search(place.path):
            return (Path(hf_hub_download(place.id, place.path, repo_type="dataset", revision=place.revision)),)
        folder = Path(snapshot_download(place.id, repo_type="dataset", revision=place.revision, allow_patterns=place.path))
    except (OSError, ValueError, RuntimeError) as error:
        raise _unavailable(place, error) from error
    files = tuple(sorted(file for file in folder.glob(place.path) if file.is_file()))
    if not files:
        raise UsageError(f"data set {place.id}: no file of it is named {place.path}.")
    return files


def _unavailable(place: Place, error: Exception) -> UsageError:
    wanted = ", ".join(f"{key} {value}" for key in ("path", "subset", "split", "revision") if (value := getattr(place, key)))
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return UsageError(f"cannot get data set {place.id} ({wanted}) from the hub: {first[:300]}\nIs the name right, and the network there?")


# -- only the first rows --------------------------------------------------------------------------------------------------------------


def stream(place: Place, rows: int, cache: Path | None = None) -> tuple[Path, ...]:
    """A file of the first ``rows`` rows, read from the hub without fetching the rest.

    The file is kept, so that a run that goes on has the same rows, and needs no network for it.

    Args:
        place: What is wanted.
        rows: How many rows.
        cache: Folder for the file; None: $XDG_CACHE_HOME/ltune/hub.
    """
    folder = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ltune" / "hub"
    key = hashlib.sha256(json.dumps([*vars(place).values(), rows]).encode()).hexdigest()[:16]
    target = folder / f"{place.id.strip('/').replace('/', '--')}-{place.split}-{key}.jsonl"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _keep(place, rows, target)
    return (target,)


def _keep(place: Place, rows: int, target: Path) -> None:
    import datasets

    half = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        loaded = datasets.load_dataset(
            place.id, place.subset, split=place.split, revision=place.revision, data_dir=place.folder, data_files=place.path, streaming=True
        )
        with half.open("w", encoding="utf-8") as file:
            for record in islice(loaded, rows):
                file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        half.replace(target)
    except TypeError as error:
        raise UsageError(f"data set {place.id}: a column holds what is no text, number or list: {error}.\nSet  streaming: false") from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _unavailable(place, error) from error
    finally:
        half.unlink(missing_ok=True)
