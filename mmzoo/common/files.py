"""Write files atomically, hash them, and locate the cache folder."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STAGING = ".mmzoo-writing-"  # prefix of the names of unfinished files and folders


def cache_folder() -> Path:
    """Return ``$MMZOO_CACHE``, or ``mmzoo`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if chosen := os.environ.get("MMZOO_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mmzoo"


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield the path of a new file beside ``path``; at the end of the block it replaces ``path`` in one step.

    On any error ``path`` is unchanged and the new file is removed. Two processes may write at once: the last one wins.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=STAGING, dir=path.parent)
    os.close(handle)
    staged = Path(name)
    try:
        yield staged
        staged.chmod(0o666 & ~umask())  # mkstemp writes for the owner alone
        with staged.open("rb+") as file:  # the content must reach the disk before the rename
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file completely, or raise `OSError` and leave an existing file unchanged; text is encoded as UTF-8."""
    with staged_file(path) as staged:
        staged.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def staged_folder(beside: Path) -> Iterator[Path]:
    """Yield a new folder beside ``beside``, so that moving it there is a rename; remove it at the end unless it was moved.

    Raises:
        OSError: the folder cannot be written.
    """
    beside.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=STAGING, dir=beside.parent))
    try:
        staged.chmod(0o777 & ~umask())
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def umask() -> int:
    """Return the permission bits that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def hash_file(path: str | Path) -> str:
    """Return the sha256 of a file, in hex; raise `OSError` if it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_unchanged(path: Path) -> str:
    """Return the sha256 of a file, in hex; cached while its size and modification time stay the same.

    Use it for locks, which hash the same large files again and again. To verify a file, use `hash_file`.
    """
    state = path.stat()
    return _hash(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _hash(path: Path, size: int, changed: int) -> str:
    return hash_file(path)
