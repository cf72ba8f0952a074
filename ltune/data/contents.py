"""The hash of a file's contents, remembered until the file changes: a large file is read once, not at every start.

What tells is size, modification time, change time and inode. Tools can restore the modification time of a file that they changed; none can
set the change time, so a changed file is noticed whatever was done to it, short of writing to the disk beneath the file system.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import TypeVar

from ltune.data.read import sha256
from ltune.errors import UsageError

T = TypeVar("T")

LARGE = 16 << 20  # bytes; a smaller file is hashed in less time than its record is worth
SETTLED = 2.0  # seconds; a file that was written within these may change again without its times showing it


def content_hash(path: str | Path, memory: str | Path) -> str:
    """The sha256 of the file's contents, in hexadecimal.

    Args:
        path: The file.
        memory: Folder of the hashes that are known; one that cannot be written is done without.
    """
    before = identity(path)
    if before[0] < LARGE:
        return sha256(path)
    record = _record(path, memory)
    known = _read(record)
    if known is not None and known[0] == before:
        return known[1]
    digest = sha256(path)
    if identity(path) == before and _is_settled(before):
        _write(record, path, before, digest)
    return digest


def was_sound(path: str | Path, memory: str | Path, form: str) -> bool:
    """Whether the file as it is now was found to be of this form."""
    known = _read(_record(path, memory, form))
    return known is not None and known[0] == identity(path)


def note_sound(path: str | Path, memory: str | Path, form: str, before: list[int]) -> None:
    """Remember that a large file was found to be of this form, which it was if it is still the one it was ``before``."""
    if before[0] >= LARGE and identity(path) == before and _is_settled(before):
        _write(_record(path, memory, form), path, before, "")


def cache_folder(cache: str | Path | None) -> Path:
    """``data.cache``, or where tokenised rows are kept where it is null."""
    if cache:
        return Path(cache).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ltune" / "data"


def hashes_in(cache: Path) -> Path:
    """Where the hashes of the source files are remembered."""
    return cache / "hashes"


def identity(path: str | Path) -> list[int]:
    """What changes with the file: size, modification and change time in nanoseconds, inode."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def while_unchanged(items: Iterator[T], known: dict[Path, list[int]]) -> Iterator[T]:
    """The items, which are made from files with these identities.

    Raises:
        UsageError: At the end, if one of the files has changed meanwhile: what was read is neither the one nor the other.
    """
    yield from items
    for path, before in known.items():
        if identity(path) != before:
            raise UsageError(f"{path} changed while it was read.\nStart again when nothing writes to it any more.")


def _is_settled(identity: list[int]) -> bool:
    return time.time() - max(identity[1:3]) / 1e9 > SETTLED


def _record(path: str | Path, memory: str | Path, form: str = "") -> Path:
    name = os.fsencode(os.path.abspath(path)) + (b"\0" + form.encode() if form else b"")
    return Path(memory) / f"{sha256_of(name).hexdigest()[:32]}.json"


def _read(record: Path) -> tuple[list[int], str] | None:
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        return known["identity"], known["sha256"]
    except (OSError, ValueError, KeyError, TypeError):  # not there, or torn: the file is hashed anew
        return None


def _write(record: Path, path: str | Path, identity: list[int], digest: str) -> None:
    beside = record.with_suffix(f".{os.getpid()}")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps({"path": os.path.abspath(path), "identity": identity, "sha256": digest}), encoding="utf-8")
        os.replace(beside, record)
    except OSError:  # the next start hashes again; whoever needs the folder for more says what is wrong with it
        with suppress(OSError):
            beside.unlink()
