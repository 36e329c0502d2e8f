"""Read and write packs: zip archives of files with known names, stored without compression.

A pack may come from anyone, so its list of files is checked before the first file is extracted. Nothing in a pack can expand: no
file is compressed, and together the files are no larger than the archive. Bytes that belong to no listed file are never read.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mmzoo.checkpoints import screening
from mmzoo.common.sanitize import one_line, short_repr
from mmzoo.errors import CheckpointError

MAX_MEMBERS, MAX_DIRECTORY = 10_000, 4 << 20  # files, and bytes of the list of files
CHUNK = 1 << 20
UTF8_NAME = 0x800  # the only flag that a file of a pack may have


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a pack for the length of a block; a `CheckpointError` if it cannot be read or is not a valid one."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such pack; `mmzoo pack MODEL {path.name}` writes one")
    try:
        file = _BoundedReader(io.FileIO(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    with file:
        yield Archive(path, file)


class Archive:
    """Read an open pack whose list of files is valid. ``sizes`` maps the name of each file to its size in bytes."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(file)
        except Exception as error:  # zipfile raises many types of errors for damaged archives
            raise self._error(f"is no pack: it is no zip archive, or damaged ({one_line(error)})") from None
        self.sizes = self._checked_sizes()

    def extract(self, name: str, target: Path, sha256: str | None = None) -> None:
        """Write a file of the pack to ``target``, which must not exist; a `CheckpointError` if its hash is not ``sha256``."""
        digest = hashlib.sha256()
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out:
            for chunk in self._chunks(name):
                digest.update(chunk)
                out.write(chunk)
        if sha256 is not None and digest.hexdigest() != sha256:
            raise self._error(f"{name} was altered after it was packed (its sha256 does not match); pack it again")

    def read(self, name: str) -> bytes:
        """Return the content of a small file; a `CheckpointError` if it is damaged."""
        return b"".join(self._chunks(name))

    def _chunks(self, name: str) -> Iterator[bytes]:
        """Yield a file in chunks. `zipfile` reads no more bytes than are listed, and compares the CRC."""
        try:
            with self._zip.open(name) as file:
                while chunk := file.read(CHUNK):
                    yield chunk
        except (zipfile.BadZipFile, EOFError) as error:
            raise self._error(f"{name} is damaged or was altered after it was packed: {one_line(error)}") from None

    def _checked_sizes(self) -> dict[str, int]:
        """Return the size of each file, after checking all that the archive says of it."""
        members = self._zip.infolist()
        if len(members) > MAX_MEMBERS:
            raise self._error(f"lists {len(members)} files; {MAX_MEMBERS} are allowed")
        sizes: dict[str, int] = {}
        for member in members:
            name = member.orig_filename  # `filename` ends at a null character
            self._check_member(name, member)
            if name in sizes:
                raise self._error(f"lists {name} twice")
            sizes[name] = member.file_size
        if (total := sum(sizes.values())) > (size := self.path.stat().st_size):
            raise self._error(f"is {size} bytes, and says that its files have {total}")
        return sizes

    def _check_member(self, name: str, member: zipfile.ZipInfo) -> None:
        """Check that a file belongs to a pack, is stored without compression, regular, and where the list says that it is."""
        if not screening.known_in_pack(name):
            screening.check_names([name], str(self.path))
            raise self._error(f"contains {short_repr(name)}, which is no file of a pack; nothing was read")
        stored = member.compress_type == zipfile.ZIP_STORED and member.file_size == member.compress_size
        if not stored or member.flag_bits & ~UTF8_NAME:
            raise self._error(f"{name} is compressed, encrypted or of unknown size; files of a pack are stored as they are")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise self._error(f"{name} is a link or no regular file")
        try:
            self._zip.open(name).close()  # compares the header before the file
        except Exception as error:
            raise self._error(f"{name} is not where the list of files says: {one_line(error)}") from None

    def _error(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {reason}")


class _BoundedReader(io.BufferedReader):
    """Refuse large reads: `zipfile` reads the list of files at once, however long the archive says that it is."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise ValueError(f"its list of files is {size} bytes long; {MAX_DIRECTORY} are allowed")
        return super().read(size)


def write_archive(path: Path, members: Mapping[str, Path | bytes]) -> None:
    """Write an archive of files, in order. The same files give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, source in members.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = (stat.S_IFREG | 0o644) << 16
            if isinstance(source, bytes):
                archive.writestr(member, source)
                continue
            member.file_size = source.stat().st_size
            with source.open("rb") as data, archive.open(member, "w") as out:
                shutil.copyfileobj(data, out, CHUNK)
