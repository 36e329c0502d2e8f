"""A store of features on disk: one record a picture, named by the picture's content.

    features.json      format, facts (what the features depend on), layout of a record, and a digest of these
    NAME.data          records of one size, one after another
    NAME.index         an entry a record: the picture's sha256, the record's crc32, and the entry's own crc32

A process appends only to files of its own, so that several can write at once. A record counts from when its entry is
written, which is after the record has reached the disk, so a process that is killed leaves a store that can be used.
Records are read, not mapped: a mapped file that is cut short ends the process, where a read can say so.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
import uuid
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from rich.filesize import decimal
from torch import Tensor

from mmzoo.errors import FeatureCacheError

FORMAT = 1
MANIFEST = "features.json"
DATA, INDEX = ".data", ".index"
ENTRY = np.dtype([("picture", "V32"), ("record", "<u4"), ("entry", "<u4")])
COMMIT_SECONDS = 2.0  # what a killed process loses at most
ALIGN = 8  # bytes that each field of a record begins at a multiple of
OFF = "--set training.cache_features=false"


class NoPlace(FeatureCacheError):
    """The folder cannot be used, or has no room."""


@dataclass(frozen=True)
class Layout:
    """The tensors of a record: name to dtype and shape."""

    fields: dict[str, tuple[str, tuple[int, ...]]]

    @classmethod
    def of(cls, rows: Mapping[str, Tensor]) -> Layout:
        """Of tensors [records, ...]."""
        return cls({name: (str(t.dtype).removeprefix("torch."), tuple(t.shape[1:])) for name, t in rows.items()})

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Layout:
        return cls({name: (str(dtype), tuple(shape)) for name, (dtype, shape) in data.items()})

    @property
    def record(self) -> int:
        """Bytes of a record."""
        return sum(_padded(_size(*field)) for field in self.fields.values())

    def pack(self, rows: Mapping[str, Tensor]) -> np.ndarray:
        """Tensors [records, ...] to bytes [records, record]."""
        count = len(next(iter(rows.values())))
        packed = np.zeros((count, self.record), np.uint8)
        at = 0
        for name, field in self.fields.items():
            size = _size(*field)
            plain = rows[name].detach().cpu().contiguous().reshape(count, -1)
            packed[:, at : at + size] = plain.view(torch.uint8).numpy()
            at += _padded(size)
        return packed

    def unpack(self, record: bytearray) -> dict[str, Tensor]:
        """The tensors of one record, which share its memory."""
        found: dict[str, Tensor] = {}
        at = 0
        for name, (dtype, shape) in self.fields.items():
            flat = torch.frombuffer(record, dtype=getattr(torch, dtype), count=math.prod(shape), offset=at)
            found[name] = flat.view(shape)
            at += _padded(_size(dtype, shape))
        return found


def _size(dtype: str, shape: Sequence[int]) -> int:
    return getattr(torch, dtype).itemsize * math.prod(shape)


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


@dataclass
class _Shard:
    """Files of one writer: ``entries`` of `ENTRY`."""

    data: Path
    entries: np.ndarray


class FeatureStore:
    """The features that one encoder gives, in a folder.

    Picklable; each process reads the index when it first asks for something.

    Args:
        folder: where it lies; it need not be there.
        facts: plain data: everything that the features depend on but the picture.

    Raises (whatever reads):
        FeatureCacheError: the store is damaged, or was made with other facts.
        NoPlace: the folder cannot be read.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder, self.facts = folder, json.loads(json.dumps(facts))
        self.reload()

    def reload(self) -> None:
        """Forget what was read; the index is read anew when it is needed."""
        self._layout: Layout | None = None
        self._shards: list[_Shard] = []
        self._starts: list[int] = []  # the first row of each shard
        self._rows: dict[bytes, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "facts": self.facts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __contains__(self, picture: bytes) -> bool:
        return picture in self._index()

    def __len__(self) -> int:
        return len(self._index())

    @property
    def size(self) -> int:
        """Bytes of its records."""
        return 0 if not len(self) or self._layout is None else len(self) * self._layout.record

    def get(self, picture: bytes) -> dict[str, Tensor] | None:
        """The features of the picture with that sha256, None if they are not there."""
        row = self._index().get(picture)
        if row is None or self._layout is None:
            return None
        number = bisect_right(self._starts, row) - 1
        shard, place = self._shards[number], row - self._starts[number]
        record = bytearray(self._layout.record)
        try:
            with shard.data.open("rb", buffering=0) as file:
                file.seek(place * len(record))
                count = file.readinto(record)
        except OSError as error:
            raise self._damaged(shard.data, f"cannot be read ({error.strerror or error})") from None
        if count != len(record):
            raise self._damaged(shard.data, "is cut short")
        if zlib.crc32(record) != shard.entries["record"][place]:
            raise self._damaged(shard.data, f"record {place} is not what was written")
        return self._layout.unpack(record)

    def _index(self) -> dict[bytes, int]:
        if self._rows is None:
            self._rows = self._read()
        return self._rows

    def _read(self) -> dict[bytes, int]:
        rows: dict[bytes, int] = {}
        try:
            files = sorted(self.folder.glob(f"*{INDEX}"))
            self._layout = self._manifest()
            if self._layout is None:
                if files:
                    raise self._damaged(self.folder / MANIFEST, "is missing")
                return rows
            for path in files:
                raw = path.read_bytes()
                entries = np.frombuffer(raw, ENTRY, len(raw) // ENTRY.itemsize)  # a killed process may leave half of one
                shard = _Shard(path.with_suffix(DATA), entries)
                self._check(path, shard)
                start = self._starts[-1] + len(self._shards[-1].entries) if self._shards else 0
                self._shards.append(shard)
                self._starts.append(start)
                rows.update((picture.tobytes(), start + i) for i, picture in enumerate(entries["picture"]))
        except OSError as error:
            raise _unusable(self.folder, error) from None
        return rows

    def _check(self, path: Path, shard: _Shard) -> None:
        assert self._layout is not None
        raw, step = shard.entries.tobytes(), ENTRY.itemsize
        for i, expected in enumerate(shard.entries["entry"]):
            if zlib.crc32(raw[i * step : (i + 1) * step - 4]) != expected:
                raise self._damaged(path, f"entry {i} is not what was written")
        try:
            there = shard.data.stat().st_size
        except FileNotFoundError:
            raise self._damaged(shard.data, "is missing") from None
        if there < len(shard.entries) * self._layout.record:
            raise self._damaged(shard.data, "is cut short")

    def _manifest(self) -> Layout | None:
        """The layout that the store was begun with, None if it was not begun."""
        path = self.folder / MANIFEST
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            raise self._damaged(path, "is not what was written") from None
        try:
            data = json.loads(text)
            digest, version, facts = data.pop("digest"), data["format"], data["facts"]
            whole = digest == _digest(data)
        except (ValueError, KeyError, TypeError, AttributeError):
            whole, version, facts = False, FORMAT, {}
        if not whole:
            raise self._damaged(path, "is not what was written")
        if version != FORMAT:
            raise FeatureCacheError(f"{path}: has format {version}, this mmzoo reads {FORMAT}; {self._fix()}")
        if different := sorted(key for key in {*facts, *self.facts} if facts.get(key) != self.facts.get(key)):
            raise FeatureCacheError(
                f"{self.folder}: these features were made by another encoder (different: {', '.join(different)}) and would be "
                f"wrong here; {self._fix()}"
            )
        return Layout.read(data["layout"])

    def _damaged(self, path: Path, what: str) -> FeatureCacheError:
        return FeatureCacheError(f"{path}: the feature cache is damaged: the file {what}; {self._fix()}")

    def _fix(self) -> str:
        return f"delete the folder {self.folder}, and the images are encoded again, or train without it: {OFF}"

    # Writing

    def begin(self, layout: Layout, count: int, *, most: float) -> None:
        """Make the folder ready for ``count`` more records, which may take the share ``most`` of what the disk has free.

        Raises:
            NoPlace: they would take more, or the folder cannot be written.
            FeatureCacheError: the store is of another layout.
        """
        need = layout.record * count
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if need > most * free:
                raise NoPlace(
                    f"{self.folder}: the features of {count} images need {decimal(need)}, and {decimal(free)} are free there; "
                    f"free some space, set MMZOO_CACHE to a folder on a larger disk, or encode in each epoch: {OFF}"
                )
            found = self._manifest()
            if found is None:
                self._write_manifest(layout)
            elif found != layout:
                raise FeatureCacheError(
                    f"{self.folder}: its features are {found.fields}, and the encoder gives {layout.fields}; {self._fix()}"
                )
        except OSError as error:
            raise _unusable(self.folder, error) from None

    def _write_manifest(self, layout: Layout) -> None:
        """Whole or not at all. Two processes may do so at once: they write the same."""
        data: dict[str, Any] = {"format": FORMAT, "facts": self.facts, "layout": layout.fields}
        data = json.loads(json.dumps(data))
        handle, name = tempfile.mkstemp(prefix=f".{MANIFEST}-", dir=self.folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({**data, "digest": _digest(data)}, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, self.folder / MANIFEST)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    @contextmanager
    def writing(self, layout: Layout) -> Iterator[Writer]:
        """A `Writer` for the length of a block, after `begin`. What it has appended is kept, also when the block fails."""
        writer = Writer(self.folder, layout)
        try:
            yield writer
        finally:
            writer.close()
            self.reload()


class Writer:
    """Appends records to files of its own.

    Raises (every method):
        FeatureCacheError: the disk is full. What was committed before stays, and nothing broken.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.layout = layout
        stem = folder / f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._paths = (stem.with_suffix(DATA), stem.with_suffix(INDEX))
        self._pending: list[bytes] = []
        self._committed = 0
        self._files: tuple[BinaryIO, BinaryIO] | None = None
        self._last = time.monotonic()

    def append(self, pictures: Sequence[bytes], rows: Mapping[str, Tensor]) -> None:
        """Features [records, ...] of the pictures with these sha256.

        Raises:
            FeatureCacheError: also if they are not of the store's layout.
        """
        if (found := Layout.of(rows)) != self.layout:
            raise FeatureCacheError(
                f"the encoder gives features of more than one shape, {self.layout.fields} and {found.fields}; {OFF}"
            )
        packed = self.layout.pack(rows)
        with self._failing():
            if self._files is None:
                self._files = (self._paths[0].open("xb"), self._paths[1].open("xb"))
            self._files[0].write(packed.tobytes())
        for picture, record in zip(pictures, packed, strict=True):
            entry = picture + zlib.crc32(record.tobytes()).to_bytes(4, "little")
            self._pending.append(entry + zlib.crc32(entry).to_bytes(4, "little"))
        if time.monotonic() - self._last > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Make what was appended part of the store: the records first, then their entries."""
        if self._files is None or not self._pending:
            return
        data, index = self._files
        with self._failing():
            data.flush()
            os.fsync(data.fileno())
            index.write(b"".join(self._pending))
            index.flush()
            os.fsync(index.fileno())
        self._committed += len(self._pending)
        self._pending = []
        self._last = time.monotonic()

    def close(self) -> None:
        try:
            self.commit()
        finally:
            self._shut()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._pending = []
            self._shut()
            raise FeatureCacheError(
                f"{self._paths[0].parent}: the features cannot be kept: {error.strerror or error}. What was encoded so far "
                f"stays. Free some space or set MMZOO_CACHE to a folder on a larger disk, then train again; or encode in each "
                f"epoch: {OFF}"
            ) from None

    def _shut(self) -> None:
        """Close the files and cut off what was not committed."""
        if self._files is None:
            return
        for file in self._files:
            with suppress(OSError):  # on a full disk, closing writes and fails again
                file.close()
        for path, size in zip(self._paths, (self.layout.record, ENTRY.itemsize), strict=True):
            with suppress(OSError):
                os.truncate(path, self._committed * size) if self._committed else path.unlink()
        self._files = None


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _unusable(folder: Path, error: OSError) -> NoPlace:
    return NoPlace(
        f"{folder}: features cannot be kept here: {error.strerror or error}; set MMZOO_CACHE to a folder that can be written, or "
        f"encode in each epoch: {OFF}"
    )
