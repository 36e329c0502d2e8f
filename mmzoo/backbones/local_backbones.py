"""Use files of backbones that a pack or a plugin carries in place of the Hub; record which are fetched, to be packed.

`mmzoo.backbones.repository` and `mmzoo.backbones.weights` ask `find_local` before the Hub or a folder. A backbone that it finds
is read from local files only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class LocalBackbone:
    """Hold the local files of one repository or folder: their paths by name, and their commit, which is None for a folder.

    ``id`` and ``revision`` are as they were requested.
    """

    id: str
    revision: str | None
    commit: str | None
    files: dict[str, Path] = field(default_factory=dict)


_local: ContextVar[Sequence[LocalBackbone]] = ContextVar("local", default=())
_carried: ContextVar[bool] = ContextVar("carried", default=False)
_fetched: ContextVar[dict[tuple[str, str | None], LocalBackbone] | None] = ContextVar("fetched", default=None)


def find_local(id: str, revision: str | None) -> LocalBackbone | None:
    """Return the local backbone with an id and a revision or commit; None if there is none."""
    return next((b for b in _local.get() if b.id == id and revision in (b.revision, b.commit)), None)


def fetch_record(id: str, revision: str | None) -> LocalBackbone:
    """Return the record to add fetched files to. Outside of `record_fetches` nothing reads it."""
    record = LocalBackbone(id, revision, None)
    records = _fetched.get()
    return record if records is None else records.setdefault((id, revision), record)


def use_local(backbones: Sequence[LocalBackbone]) -> AbstractContextManager[object]:
    """Use these local files for each `Source` that is made in the block, for as long as the `Source` exists."""
    return _set(_local, backbones)


def uses_carried() -> bool:
    """Return whether a `Source` that is made here is to use the configurations that its plugin carries."""
    return _carried.get()


def use_carried(on: bool = True) -> AbstractContextManager[object]:
    """Use, for each `Source` that is made in the block, the configurations that its plugin carries: no weights are wanted."""
    return _set(_carried, on)


def record_fetches() -> AbstractContextManager[dict[tuple[str, str | None], LocalBackbone]]:
    """Yield a mapping from id and revision to the files fetched by each `Source` that is made in the block."""
    return _set(_fetched, {})


@contextmanager
def _set(variable: ContextVar[Any], value: T) -> Iterator[T]:
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)
