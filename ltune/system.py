"""What is asked of the operating system in several places: that files reach the disk, and whether a process lives."""

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
