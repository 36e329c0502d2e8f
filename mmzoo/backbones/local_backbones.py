"""Files of backbones that lie beside a checkpoint, in the place of the Hub or the folder that they came from.

A pack has such a shelf. Whatever fetches files through `mmzoo.backbones.repository` or `mmzoo.backbones.weights` looks there first, and only there for
what stands on it; `recording` notes what was fetched, so that it can be packed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class LocalBackbone:
    """Files of a repository, or of a folder (which has no commit). ``id`` and ``revision`` are as they were asked for."""

    id: str
    revision: str | None
    commit: str | None
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where its files lie, all beside each other."""
        return next(iter(self.files.values())).parent


_standing: ContextVar[Sequence[LocalBackbone]] = ContextVar("standing", default=())
_recorded: ContextVar[dict[tuple[str, str | None], LocalBackbone] | None] = ContextVar("recorded", default=None)


def find_local(id: str, revision: str | None) -> LocalBackbone | None:
    """What stands on the shelf under a name and revision."""
    return next((b for b in _standing.get() if b.id == id and revision in (b.revision, b.commit)), None)


def fetch_record(id: str, revision: str | None) -> LocalBackbone:
    """What to enter files into that are fetched under a name and revision; nobody reads it outside `recording`."""
    made = LocalBackbone(id, revision, None)
    notes = _recorded.get()
    return made if notes is None else notes.setdefault((id, revision), made)


@contextmanager
def use_local(backbones: Sequence[LocalBackbone]) -> Iterator[None]:
    """For the length of the block these stand on the shelf, for what is made in it and as long as that lives."""
    token = _standing.set(backbones)
    try:
        yield
    finally:
        _standing.reset(token)


@contextmanager
def record_fetches() -> Iterator[dict[tuple[str, str | None], LocalBackbone]]:
    """What is fetched by whatever is made in the block."""
    notes: dict[tuple[str, str | None], LocalBackbone] = {}
    token = _recorded.set(notes)
    try:
        yield notes
    finally:
        _recorded.reset(token)


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(path: Path) -> str:
    """A file's SHA-256, computed once as long as it is unchanged."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)
