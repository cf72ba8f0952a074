"""Folders and files that appear whole or not at all, at whatever instant the process or the machine stops.

A folder is written under a hidden name beside its final one, sealed with `manifest.json`, and renamed. Nothing here knows what is in it.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from ltune.errors import ResourceError, UsageError
from ltune.system import is_alive, sync

MANIFEST = "manifest.json"
PACKAGES = ("ltune", "torch", "transformers", "peft", "lightning", "bitsandbytes", "triton", "flash-attn-4")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
HIDDEN = re.compile(r"\.(?P<name>.+)\.tmp-(?P<pid>\d+)-[0-9a-f]{8}(?P<old>-old)?")

_staged_here: set[Path] = set()  # what this process is writing now: after a restart in a container our process id may be the dead one's


class Damaged(UsageError):
    """A published folder is not what its manifest says.

    Attributes:
        folder: the published folder.
        file: name of the damaged file in it, "/" between sub folders.
        why: what is wrong with that file.
    """

    def __init__(self, folder: Path, file: str, why: str):
        super().__init__(f"{folder} is damaged: {file} {why}.\nRemove the folder, or put an intact copy in its place.")
        self.folder, self.file, self.why = folder, file, why


@contextlib.contextmanager
def publish(final: Path, *, extra: dict[str, Any] | None = None, need: int | None = None) -> Iterator[Path]:
    """Give a folder to write into; when the body ends it has become `final`, complete and on the disk. An older `final` is replaced.

    Args:
        final: the folder's name once it is complete; its parents are made.
        extra: more facts for the manifest (position, hashes), JSON values; not "files", "versions" or "sha256".
        need: how many bytes will be written, for the message when the disk is full.

    Raises:
        ResourceError: the disk (or a quota, or a limit on file sizes) is full. The stage is gone; `final` is what it was.
    """
    final = Path(final).absolute()
    stage = hidden_name(final)
    _staged_here.add(stage)
    try:
        stage.mkdir(parents=True)
        yield stage
        _seal(stage, extra or {})
        _put_in_place(stage, final)
    except BaseException as error:
        need = max(need or 0, _bytes_in(stage))
        shutil.rmtree(stage, ignore_errors=True)  # what it cannot remove, the next start sweeps; the first error is the one to hear of
        if isinstance(error, OSError) and error.errno in FULL:
            raise full_disk(error, final, need) from error
        raise
    finally:
        _staged_here.discard(stage)


def verify(folder: Path) -> None:
    """Check every file of a published folder against its manifest, by size and sha256.

    Raises:
        Damaged: names the first file that is missing or differs.
    """
    for name, expected in read_manifest(folder)["files"].items():
        try:
            with open(folder / name, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != expected["size"]:
                    raise Damaged(folder, name, f"has {size} bytes instead of {expected['size']}")
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    raise Damaged(folder, name, "has another sha256 than when it was written")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise Damaged(folder, name, "is missing") from None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise Damaged(folder, name, f"cannot be read ({error.strerror})") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a published folder: {"files": {name: {"size", "sha256"}}, "versions": {package: version}, ...extra}.

    Raises:
        Damaged: there is none, it is not JSON, or it is not as it was written.
    """
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(folder, MANIFEST, "is missing") from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise Damaged(folder, MANIFEST, "cannot be read") from error
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _sha256(manifest) or _render(manifest) != text:
        raise Damaged(folder, MANIFEST, "is not as it was written")
    return manifest


def other_versions(folder: Path) -> str:
    """Packages that a published folder was not written with as they are installed now; empty: there are none."""
    then, now = read_manifest(folder)["versions"], _versions()
    names = (name for name in PACKAGES if then.get(name) != now.get(name))
    return "; ".join(f"{name} {then.get(name, 'missing')}, now {now.get(name, 'missing')}" for name in names)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a single file: a reader, or a machine that stops, finds the old content or the new one.

    Raises:
        ResourceError: the disk is full; the old file is untouched.
    """
    path = Path(path).absolute()
    data = content.encode("utf-8") if isinstance(content, str) else content
    staged = hidden_name(path)
    with disk_errors(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_synced(staged, data)
            os.replace(staged, path)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        sync(path.parent)


def remove(folder: Path) -> None:
    """Delete a published folder. It is renamed first, so that one that is half deleted never looks like one that is there."""
    aside = hidden_name(folder)
    os.rename(folder, aside)
    shutil.rmtree(aside)


def sweep(folder: Path) -> None:
    """Clear away what processes that are no longer alive left half written (or half deleted) in `folder`, not in its sub folders.

    A folder that was moved aside for a newer one which then never came is put back. Process ids are those of this machine.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.absolute().iterdir()):
        match = HIDDEN.fullmatch(path.name)
        if match is None or path in _staged_here or _lives_elsewhere(int(match["pid"])):
            continue
        if match["old"] and not (folder / match["name"]).exists():
            os.rename(path, folder.absolute() / match["name"])
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def hidden_name(final: Path) -> Path:
    """A new name beside `final` that `sweep` recognises as this process's."""
    return final.parent / f".{final.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"


@contextlib.contextmanager
def disk_errors(path: Path, need: int) -> Iterator[None]:
    """Turn "no space left", "quota exceeded" and "file too large" while writing `need` bytes to `path` into a ResourceError."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise full_disk(error, path, need) from error


def full_disk(error: OSError, path: Path, need: int) -> ResourceError:
    """The error to raise where `path` could not be written. Sizes in bytes."""
    free = shutil.disk_usage(next(parent for parent in path.parents if parent.exists())).free
    return ResourceError(
        f"Cannot write {path}: {os.strerror(error.errno or 0)}.\n"
        f"It needs at least {_readable(need)}; {_readable(free)} are free there.\n"
        "Make room (or raise the quota or file size limit) and run the same command again."
    )


def _seal(stage: Path, extra: dict[str, Any]) -> None:
    files, folders = {}, [stage]
    for path in sorted(stage.rglob("*")):
        if path.is_dir():
            folders.append(path)
            continue
        assert not path.is_symlink(), f"{path}: a link cannot be published"
        path.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner can read
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
            files[path.relative_to(stage).as_posix()] = {"size": os.fstat(file.fileno()).st_size, "sha256": digest}
    manifest = {"files": files, "versions": _versions()}
    assert not extra.keys() & {"sha256", *manifest}, f"reserved in a manifest: {sorted(extra)}"
    manifest |= extra
    _write_synced(stage / MANIFEST, _render(manifest).encode("utf-8"))
    for path in folders:
        sync(path)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _put_in_place(stage: Path, final: Path) -> None:
    aside = stage.with_name(stage.name + "-old")
    if final.exists():
        os.rename(final, aside)  # killed from here to the next line: sweep puts it back
    os.rename(stage, final)
    sync(final.parent)
    if aside.exists():
        shutil.rmtree(aside)


def _render(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest | {"sha256": _sha256(manifest)}, indent=1, allow_nan=False) + "\n"


def _sha256(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, allow_nan=False).encode("utf-8")).hexdigest()


@functools.cache  # looking takes as long as writing a small checkpoint
def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _lives_elsewhere(pid: int) -> bool:
    return pid != os.getpid() and is_alive(pid)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _readable(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"
