"""Read and write files by URL through fsspec (https://filesystem-spec.readthedocs.io): on a disk or in an object store."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from mmzoo.common.files import staged_file, staged_folder
from mmzoo.common.sanitize import one_line
from mmzoo.errors import CheckpointError, HubError, MmzooError

CHUNK = 8 << 20
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
_QUERY = re.compile(r"\?\S*")  # of a URL in an error's message: signatures are passed there
_MISSING = (FileNotFoundError, NotADirectoryError)


class Store:
    """Reach the files below one URL; paths are relative to it. Whatever a backend raises becomes a `HubError` that names it."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, root: str, url: str) -> None:
        self.filesystem, self.root, self.url = filesystem, root.rstrip("/"), url
        self.local = isinstance(filesystem, LocalFileSystem)
        filesystem.invalidate_cache()  # backends keep listings, which others change

    def child(self, path: str) -> Store:
        """Return the store of a folder in this one."""
        return Store(self.filesystem, self._at(path), f"{self.url}/{quote(path) if self.local else path}")

    def exists(self) -> bool:
        """Return whether the folder exists."""
        return self._info("") is not None

    def is_file(self, path: str) -> bool:
        """Return whether there is such a file."""
        info = self._info(path)
        return info is not None and info["type"] == "file"

    def _info(self, path: str) -> dict[str, Any] | None:
        """Return what the backend knows of a file or folder; None if there is none. Its own `isfile` hides every fault."""
        with self._access("read"):
            try:
                return self.filesystem.info(self._at(path))
            except _MISSING:
                return None

    def names(self, folder: str = "") -> list[str]:
        """Return the names in a folder, in order; none if there is no such folder."""
        with self._access("read"):
            try:
                return sorted(PurePosixPath(path).name for path in self.filesystem.ls(self._at(folder), detail=False))
            except _MISSING:
                return []

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size in bytes of each file below a folder, by its path from there."""
        root, sizes = self._at(folder), dict[str, int]()
        with self._access("read"), suppress(*_MISSING):
            faults = {"on_error": "raise"} if self.local else {}  # fsspec leaves out what it cannot list; s3fs does not
            entries = self.filesystem.find(root, detail=True, **faults).values()
            sizes = {entry["name"].removeprefix(root).removeprefix("/"): entry["size"] for entry in entries}
        return {name: size for name, size in sizes.items() if name}  # some stores list the folder itself

    def read(self, path: str, limit: int) -> bytes | None:
        """Return the content of a file of at most ``limit`` bytes, None if there is no such file."""
        with self._access("read"):
            try:
                self._check_regular(path)
                with self.filesystem.open(self._at(path), "rb") as file:  # a range of an empty file is an error in S3
                    content = file.read(limit + 1)
            except _MISSING:
                return None
        if len(content) > limit:
            raise CheckpointError(f"{self.url}: {path} is larger than {limit} bytes, which are allowed")
        return content

    def chunks(self, path: str) -> Iterator[bytes]:
        """Yield the content of a file."""
        with self._access("read"):
            self._check_regular(path)
            with self.filesystem.open(self._at(path), "rb") as file:
                while chunk := file.read(CHUNK):
                    yield chunk

    def sha256(self, path: str) -> str:
        """Return the sha256 of a file, in hex."""
        digest = hashlib.sha256()
        for chunk in self.chunks(path):
            digest.update(chunk)
        return digest.hexdigest()

    def write(self, path: str, content: bytes | Path) -> None:
        """Write a file, or replace it. A reader sees all of it or nothing, as object stores take care of by themselves."""
        with self._access("written"):
            if self.local:
                with staged_file(Path(self._at(path))) as staged:
                    staged.write_bytes(content) if isinstance(content, bytes) else shutil.copyfile(content, staged)
            elif isinstance(content, bytes):
                self.filesystem.pipe_file(self._at(path), content)
            else:
                self.filesystem.put_file(str(content), self._at(path))

    def create(self, path: str, content: bytes) -> bool:
        """Write a new file; return whether it is new. Of two that do so at once, one writes it."""
        with self._access("written"):
            try:
                if self.local:  # a reader must never see half of it
                    target = Path(self._at(path))
                    with staged_folder(target) as staged:
                        (staged / target.name).write_bytes(content)
                        os.link(staged / target.name, target)
                else:
                    with self.filesystem.open(self._at(path), "xb") as file:
                        file.write(content)
            except FileExistsError:
                return False
        return True

    def copy(self, source: str, target: str) -> None:
        """Copy a file within the store, so that it need not be sent."""
        if self.local:
            self.write(target, Path(self._at(source)))
            return
        with self._access("written"):
            self.filesystem.cp_file(self._at(source), self._at(target))

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def _check_regular(self, path: str) -> None:
        """Refuse a link, which may lead anywhere, and a pipe, which never ends. Only local folders have them."""
        if self.local and not stat.S_ISREG(os.lstat(self._at(path)).st_mode):
            raise CheckpointError(f"{self.url}: {path} is a link or no regular file")

    @contextmanager
    def _access(self, verb: str) -> Iterator[None]:
        try:
            yield
        except MmzooError:
            raise
        except Exception as error:  # each backend has exceptions of its own
            text = error.strerror or str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            reason = one_line(_QUERY.sub("", text)) or type(error).__name__
            unchanged = "; what was there is unchanged" if verb == "written" else ""
            fix = "Check the disk and your permissions" if self.local else "Check the name, your credentials and the connection"
            raise HubError(f"{self.url}: cannot be {verb}: {reason}{unchanged}. {fix}") from None


def open_store(url: str) -> Store:
    """Open the store at a URL, with credentials from where its backend finds them. Nothing is read yet."""
    scheme = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(scheme)
        filesystem, root = fsspec.url_to_fs(url)
    except ImportError as error:
        fix = f'pip install "mmzoo[{EXTRAS[scheme]}]"' if scheme in EXTRAS else one_line(error)
        raise HubError(f"{url}: {scheme}:// needs a package that is not installed: {fix}") from None
    except Exception as error:  # an unknown protocol, or what the backend misses
        known = ", ".join(f"{name}://" for name in ("file", *EXTRAS, "memory"))
        reason = one_line(_QUERY.sub("", str(error)))
        raise HubError(f"{url}: cannot be opened: {reason}. Known are {known} and what else fsspec knows") from None
    return Store(filesystem, root, url.rstrip("/"))


def open_local_store(folder: Path) -> Store:
    """Open a folder on this machine; its URL is quoted."""
    return Store(LocalFileSystem(auto_mkdir=True), folder.as_posix(), f"file://{quote(folder.as_posix())}")
