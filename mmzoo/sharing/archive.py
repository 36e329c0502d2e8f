"""The zip archive that a pack is: files of known names, stored one after the other, with nothing before, between or behind them.

A pack is this package's own, so it is read more strictly than the format allows: what is stored as it is cannot unfold, and files
that tile the archive cannot overlap. Everything is checked before the first one is read.
Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from mmzoo.checkpoints import screening
from mmzoo.errors import CheckpointError

MAX_MEMBERS, MAX_DIRECTORY = 10_000, 4 << 20
CHUNK = 1 << 20
_UTF8 = 0x800
_END, _LOCATOR, _END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL = 0xFFFFFFFF  # stands where the number is in a zip64 field


class Archive:
    """An archive, checked and open for reading; a context manager. ``sizes`` are its files and their sizes."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            CheckpointError: it is no such archive; saying why.
        """
        self.path = path
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
        try:
            self._members = self._checked()
        except BaseException:
            self._file.close()
            raise
        self.sizes = {name: member.file_size for name, member in self._members.items()}

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def extract(self, name: str, target: Path, sha256: str | None = None) -> None:
        """Write a file to ``target``, which must be new.

        Raises:
            CheckpointError: it is not what its hash says. OSError: it cannot be written.
        """
        digest, left = hashlib.sha256(), self.sizes[name]
        self._file.seek(self._starts[name])
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out:
            while left and (data := self._file.read(min(CHUNK, left))):
                digest.update(data)
                out.write(data)
                left -= len(data)
        if left or (sha256 is not None and digest.hexdigest() != sha256):
            raise self._refuse(f"{name} was altered after it was packed (its sha256 does not match); pack it again")

    def read(self, name: str) -> bytes:
        """A file that is known to be small."""
        self._file.seek(self._starts[name])
        return self._file.read(self.sizes[name])

    def _refuse(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {why}")

    def _checked(self) -> dict[str, zipfile.ZipInfo]:
        start, count = self._directory()
        try:
            with zipfile.ZipFile(self._file) as archive:
                members, begun = archive.infolist(), archive.start_dir
        except Exception as error:  # a damaged directory fails in many ways
            raise self._refuse(f"is no pack: its directory is damaged ({error})") from None
        if begun != start or len(members) != count:
            raise self._refuse("is no pack: its directory does not hold what its end says")
        names = [member.orig_filename for member in members]
        screening.check_names((name for name in names if not screening.packed(name)), str(self.path))
        for name, member in zip(names, members, strict=True):
            self._check(name, member)
        if len(set(names)) != len(names):
            raise self._refuse(f"holds {next(n for n in names if names.count(n) > 1)} twice; nothing of it was read")
        self._starts = self._tiled(members, start)
        return dict(zip(names, members, strict=True))

    def _directory(self) -> tuple[int, int]:
        """Where the directory begins and how many files it lists, before anything reads it."""
        size = self._file.seek(0, os.SEEK_END)
        if size < _END.size or (end := self._unpack(_END, size - _END.size))[0] != b"PK\5\6":
            raise self._refuse("is no pack: it is no zip archive, or truncated")
        at, (count, length, start) = size - _END.size, end[4:7]
        disks, comment = end[1:3], end[7]
        before = at - _LOCATOR.size - _END64.size
        if before >= 0 and self._unpack(_LOCATOR, at - _LOCATOR.size)[0] == b"PK\6\7":
            large = self._unpack(_END64, before)
            if large[0] != b"PK\6\6" or large[1] != _END64.size - 12:
                raise self._refuse("is no pack: its end is damaged")
            at, disks, (count, length, start) = before, large[4:6], large[7:10]
        if count > MAX_MEMBERS or length > MAX_DIRECTORY:
            raise self._refuse(f"lists {count} files in {length} bytes; {MAX_MEMBERS} in {MAX_DIRECTORY} are allowed")
        if comment or any(disks) or start + length != at:
            raise self._refuse("is no pack: there is something before, behind or between its files")
        return start, count

    def _check(self, name: str, member: zipfile.ZipInfo) -> None:
        if not screening.packed(name) or name != member.filename:
            raise self._refuse(f"holds {name[:200]!r}, which is no file of a pack; nothing of it was read")
        if member.flag_bits & 1:
            raise self._refuse(f"{name} is encrypted; a pack is not")
        if member.flag_bits & ~_UTF8 or member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise self._refuse(f"{name} is compressed or of unknown size; what a pack holds is stored as it is")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise self._refuse(f"{name} is a link or no plain file")

    def _tiled(self, members: Iterable[zipfile.ZipInfo], end: int) -> dict[str, int]:
        """Where each file's data begins: one after the other, and as the directory says."""
        at, starts = 0, {}
        for member in sorted(members, key=lambda member: member.header_offset):
            name = member.orig_filename.encode()
            if member.header_offset != at:
                raise self._refuse(f"{member.filename} overlaps another file, or comes after a hole, at byte {at}")
            if at + _LOCAL.size + len(name) > end:
                raise self._refuse(f"{member.filename} is out of the archive")
            mark, _, flags, method, _, _, crc, packed, size, length, extra = self._unpack(_LOCAL, at)
            sizes = {packed, size} - {_FULL}
            if (mark, flags, method, crc) != (b"PK\3\4", member.flag_bits, zipfile.ZIP_STORED, member.CRC) or (
                sizes - {member.file_size} or self._file.read(length) != name
            ):
                raise self._refuse(f"{member.filename}: its header is not what the directory says")
            starts[member.filename] = at + _LOCAL.size + length + extra
            at = starts[member.filename] + member.file_size
            if at > end:
                raise self._refuse(f"{member.filename} says it is {member.file_size} bytes, more than there are")
        if at != end:
            raise self._refuse(f"{end - at} bytes after its last file belong to none")
        return starts

    def _unpack(self, layout: struct.Struct, at: int) -> tuple[Any, ...]:
        self._file.seek(at)
        data = self._file.read(layout.size)
        if len(data) < layout.size:
            raise self._refuse("is no pack: it is truncated")
        return layout.unpack(data)


def write(file: BinaryIO, members: Mapping[str, Path | bytes]) -> None:
    """Write an archive of files, in order; equal files give equal archives.

    Raises:
        OSError: one cannot be read, or the archive not be written.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, source in members.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = (stat.S_IFREG | 0o644) << 16
            if isinstance(source, bytes):
                archive.writestr(member, source)
                continue
            member.file_size = source.stat().st_size
            with source.open("rb") as data, archive.open(member, "w") as out:
                while chunk := data.read(CHUNK):
                    out.write(chunk)
