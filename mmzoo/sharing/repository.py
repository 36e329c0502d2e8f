"""Define what all places that share models have in common: a Hub, a folder, an object store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mmzoo.checkpoints import screening
from mmzoo.checkpoints.folder import is_checkpoint, move_files, read_manifest
from mmzoo.checkpoints.screening import BACKBONES, CARD, MANIFEST, PACK
from mmzoo.common.files import staged_folder
from mmzoo.errors import CheckpointError, HubError

MAIN = "main"
Files = Mapping[str, Path]  # from the name of a file in the repository to its path on this machine


@dataclass(frozen=True)
class Pushed:
    """Report what a push did. Files in ``unchanged`` were in the repository already; if all were, there is no new commit."""

    repo: str
    revision: str
    commit: str
    url: str
    sent: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class SharedModel:
    """Represent a shared model, as a search lists it: its name, its newest commit, and the tags of its card."""

    repo: str
    commit: str
    tags: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


class Remote(Protocol):
    """Define a repository of one model, with branches, tags and commits."""

    name: str

    def fetch(self, revision: str | None, to: Path | None) -> Path:
        """Return the verified folder of a revision: ``to``, or one in a cache if that is None."""

    def send(
        self, files: Files, *, private: bool, revision: str | None, create_pr: bool, tag: str | None, message: str
    ) -> Pushed:
        """Make the files of a checkpoint the content of a branch, in one commit. If it fails, the branch is unchanged."""


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files of a verified checkpoint folder that are shared: those in the manifest, the manifest, the card."""
    names = [*read_manifest(folder).files, MANIFEST]
    names += [CARD] if (folder / CARD).is_file() else []
    return {name: folder / name for name in sorted(names)}


@contextmanager
def staging(to: Path) -> Iterator[Path]:
    """Yield a new folder beside ``to``; at the end of the block its files move to ``to``. On any error ``to`` is unchanged."""
    to = to.expanduser()
    if to.exists() and not (to.is_dir() and (is_checkpoint(to) or not any(to.iterdir()))):
        raise HubError(f"{to}: exists and is no checkpoint; name another folder")
    try:
        with staged_folder(to) as staged:
            yield staged
            _replace(staged, to)
    except OSError as error:
        raise CheckpointError(f"{to}: cannot be written: {error.strerror or error}; what was there is unchanged") from None


def _replace(staged: Path, to: Path) -> None:
    """Move a checkpoint over what is at ``to``: nothing, an empty folder, or an older checkpoint."""
    if not to.exists() or not any(to.iterdir()):
        with suppress(FileNotFoundError):
            to.rmdir()
        try:
            staged.replace(to)
            return
        except OSError:
            if not is_checkpoint(to):  # else another process that pulls the same was first
                raise
    old = {path.name for path in to.iterdir() if path.is_file() and (screening.known(path.name) or path.name == PACK)}
    if not (staged / PACK).is_file():  # backbones that an older pack left do not belong to this checkpoint
        shutil.rmtree(to / BACKBONES, ignore_errors=True)
    for name in old.difference(move_files(staged, to)):
        (to / name).unlink()
