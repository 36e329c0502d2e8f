"""What every place that models are shared at has in common, whether a Hub or a plain folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mmzoo.checkpoints import screening
from mmzoo.checkpoints.folder import STAGING, is_checkpoint, read_manifest, umask
from mmzoo.checkpoints.screening import CARD, MANIFEST
from mmzoo.errors import CheckpointError, HubError

MAIN = "main"
Files = Mapping[str, Path]  # the name that a file has in a repository, to where it is


@dataclass(frozen=True)
class Pushed:
    """What a push did. ``sent`` are the files that were sent; the others were there already. Nothing is committed if nothing
    had changed."""

    repo: str
    revision: str
    commit: str
    url: str
    sent: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class SharedModel:
    """A shared model, as a search lists it: its name, and the tags of its card."""

    repo: str
    commit: str
    tags: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Remote(Protocol):
    """A repository of one model, with branches, tags and commits."""

    name: str

    def fetch(self, revision: str | None, to: Path | None) -> Path:
        """The verified folder of a revision: in ``to``, else in a cache."""

    def send(
        self, files: Files, *, private: bool, revision: str | None, create_pr: bool, tag: str | None, message: str
    ) -> Pushed:
        """Make the files of a checkpoint the content of a branch, in one commit or not at all."""


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a verified checkpoint folder that are shared: those of the manifest, the manifest, the card."""
    names = [*read_manifest(folder).files, MANIFEST]
    names += [CARD] if (folder / CARD).is_file() else []
    return {name: folder / name for name in sorted(names)}


@contextmanager
def staging(to: Path) -> Iterator[Path]:
    """A new folder beside ``to``; at the end of the block, what is in it is at ``to``, and on any error nothing is changed there.

    Raises:
        HubError: ``to`` holds something that is no checkpoint. CheckpointError: it cannot be written, or the disk is full.
    """
    to = to.expanduser()
    if to.exists() and not (to.is_dir() and (is_checkpoint(to) or not any(to.iterdir()))):
        raise HubError(f"{to}: is there already and is no checkpoint; name another folder")
    made: Path | None = None
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=STAGING, dir=to.parent))
        yield made
        made.chmod(0o777 & ~umask())
        _settle(made, to)
    except OSError as error:
        raise CheckpointError(f"{to}: cannot be written: {error.strerror or error}; what was there is unchanged") from None
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def _settle(made: Path, to: Path) -> None:
    if not to.exists() or not any(to.iterdir()):
        with suppress(FileNotFoundError):
            to.rmdir()
        os.replace(made, to)
        return
    # Over an older checkpoint: the manifest goes last, so that a half-done replacement is refused, not half believed.
    names = [path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()]
    old = {path.name for path in to.iterdir() if path.is_file() and (screening.known(path.name) or path.name == screening.PACK)}
    if screening.PACK not in names:  # what was unpacked there is no longer of this checkpoint
        shutil.rmtree(to / screening.BACKBONES, ignore_errors=True)
    for name in sorted(names, key=lambda name: (name == MANIFEST, name)):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(made / name, to / name)
    for name in old - set(names):
        (to / name).unlink()
