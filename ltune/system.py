"""What is asked of the operating system: that files reach the disk, whether a process lives, and how much memory is left."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """A file, or a folder's list of names, reaches the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """The folder and its files reach the disk."""
    for path in (*folder.iterdir(), folder):
        sync(path)


def is_alive(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, but alive
        return True
    return True


# Of a container: its limit, what it uses, and the line of its statistics with what it would give back; in cgroups' two versions
_LIMITS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: of the machine's memory, and of its container's limit. None where nobody tells."""
    found = []
    if (available := _line(root / "proc/meminfo", "MemAvailable:")) is not None:
        found.append(1024 * available)
    for folder, limit, used, reclaimable in _LIMITS:
        try:
            left = int((root / folder / limit).read_text()) - int((root / folder / used).read_text())
        except (OSError, ValueError):  # another version, or no limit ("max")
            continue
        found.append(left + (_line(root / folder / "memory.stat", reclaimable) or 0))
    return max(0, min(found)) if found else None


def _line(file: Path, name: str) -> int | None:
    """The number after a name at the start of a line."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(words[1]) for words in map(str.split, lines) if words[:1] == [name]), None)
