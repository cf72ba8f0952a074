"""The hash of a file's contents, remembered until the file changes: a large file is read once, not at every start.

What tells is size, modification time, change time and inode. Tools can restore the modification time of a file that they changed; none can
set the change time, so a changed file is noticed whatever was done to it, short of writing to the disk beneath the file system.
"""

import json
import os
import time
from contextlib import suppress
from hashlib import sha256 as sha256_of
from pathlib import Path

from ltune.data.read import sha256

LARGE = 16 << 20  # bytes; a smaller file is hashed in less time than its record is worth
SETTLED = 2.0  # seconds; a file that was written within these may change again without its times showing it


def content_hash(path: str | Path, memory: str | Path) -> str:
    """The sha256 of the file's contents, in hexadecimal.

    Args:
        path: The file.
        memory: Folder of the hashes that are known; one that cannot be written is done without.
    """
    before = os.stat(path)
    if before.st_size < LARGE:
        return sha256(path)
    record = Path(memory) / f"{sha256_of(os.fsencode(os.path.abspath(path))).hexdigest()[:32]}.json"
    known = _read(record)
    if known is not None and known[0] == _identity(before):
        return known[1]
    digest = sha256(path)
    after = os.stat(path)
    if _identity(after) == _identity(before) and time.time() - max(after.st_mtime, after.st_ctime) > SETTLED:
        _write(record, path, _identity(after), digest)
    return digest


def _identity(found: os.stat_result) -> list[int]:
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


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
