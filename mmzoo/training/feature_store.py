"""Store the features of a frozen encoder on disk, in safetensors files.

    KEY/RANDOM.safetensors
        sha256    [records, 32] uint8, the digest of each input's content
        crc32     [records] int64, the checksum of each record
        pooled    [records, dim], and where they are stored also tokens [records, tokens, dim] and mask [records, tokens]
        metadata  facts (what the features depend on), and a checksum of all but the features

A writer holds records in memory and writes them to a new file every `COMMIT_SECONDS`. Files get their names when they are
complete and never change afterwards. So processes can write at the same time without locks, also on a network file system, and
a process that is killed loses only what it held in memory.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from rich.filesize import decimal
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmzoo.common.files import staged_file
from mmzoo.common.sanitize import one_line
from mmzoo.errors import FeatureCacheError

FORMAT = 1  # is one of the facts, so a store of another format has another folder
SUFFIX = ".safetensors"
COMMIT_SECONDS = 2.0  # the most that a killed process loses
COMMIT_BYTES = 2**28  # the most that a writer holds in memory
TURN_OFF = "--set training.cache_features=false"
INDEX = ("crc32", "sha256")  # the tensors of a file that are not features

FeatureLayout = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # dtype and shape of each tensor of a record


class CacheUnavailable(FeatureCacheError):
    """Report that the cache folder cannot be used or has no room."""


class FeatureStore:
    """Read and write the features of one encoder in ``folder``, which `prepare` makes. Picklable.

    ``facts`` is JSON data: everything that the features depend on except the input. The index is read when it is first needed.
    Whatever reads it may raise `FeatureCacheError` (the store is damaged, or was written with other facts) or
    `CacheUnavailable` (the folder cannot be read).
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder, self.facts = folder, {"format": FORMAT, **json.loads(json.dumps(facts))}
        self.reload()

    def reload(self) -> None:
        """Forget the index, so that it is read again when it is next needed."""
        self._index: dict[bytes, tuple[Path, int]] | None = None
        self._layout: FeatureLayout | None = None
        self.size = 0  # bytes of the files in the index

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._read_index()

    def __len__(self) -> int:
        return len(self._read_index())

    def get(self, digest: bytes) -> dict[str, Tensor] | None:
        """Return the features of the input with this sha256, or None if they are not stored."""
        if (place := self._read_index().get(digest)) is None:
            return None
        path, row = place
        with self._opened(path) as file:
            record = {name: file.get_slice(name)[row] for name in self._layout or ()}
            if _checksum(digest, record) != int(file.get_slice("crc32")[row]):
                raise self._damaged(path, f"record {row} is not what was written")
        return record

    def prepare(self, layout: FeatureLayout, count: int, *, share: float) -> None:
        """Make the folder and check that ``count`` more records fit into ``share`` of the free space of its disk.

        Raises:
            CacheUnavailable: they do not, or the folder cannot be written.
            FeatureCacheError: the stored features have another layout.
        """
        required = count * record_bytes(layout)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise self._unusable(error) from None
        if required > share * free:
            raise CacheUnavailable(
                f"{self.folder}: the features of {count} images need {decimal(required)}, and {decimal(free)} are free there; "
                f"free some space, set MMZOO_CACHE to a folder on a larger disk, or encode in each epoch: {TURN_OFF}"
            )
        self._read_index()
        if self._layout not in (None, layout):
            raise FeatureCacheError(f"{self.folder}: holds features {self._layout}, the encoder gives {layout}; {self._fix()}")

    @contextmanager
    def writing(self) -> Iterator[FeatureWriter]:
        """Yield a `FeatureWriter`. What it holds is written at the end of the block, also when the block fails."""
        writer = FeatureWriter(self)
        try:
            yield writer
        finally:
            try:
                writer.commit()
            finally:
                self.reload()

    def _read_index(self) -> dict[bytes, tuple[Path, int]]:
        """Return the file and row of each record by the sha256 of its input."""
        if self._index is None:
            try:
                names = sorted(os.listdir(self.folder))
            except FileNotFoundError:
                names = []
            except OSError as error:
                raise self._unusable(error) from None
            index: dict[bytes, tuple[Path, int]] = {}
            for path in (self.folder / name for name in names if name.endswith(SUFFIX)):
                index.update((digest, (path, row)) for row, digest in enumerate(self._read_file(path)))
            self._index = index
        return self._index

    def _read_file(self, path: Path) -> list[bytes]:
        """Check a file's metadata, index and layout, and return the sha256 of its records in order."""
        with self._opened(path) as file:
            metadata = file.metadata() or {}
            digests, checksums = file.get_tensor("sha256"), file.get_tensor("crc32")
            layout = layout_of({name: file.get_slice(name)[:1] for name in {*file.keys()}.difference(INDEX)})
        facts_text = metadata.get("facts", "")
        if metadata.get("checksum") != _file_checksum(facts_text, layout, digests, checksums):
            raise self._damaged(path, "is not what was written")
        facts = json.loads(facts_text)
        if facts["format"] != FORMAT:
            raise FeatureCacheError(f"{path}: has another format ({facts['format']}, this mmzoo reads {FORMAT}); {self._fix()}")
        if different := sorted(key for key in {*facts, *self.facts} if facts.get(key) != self.facts.get(key)):
            raise FeatureCacheError(
                f"{self.folder}: these features were made by another encoder (different: {', '.join(different)}) and would be "
                f"wrong here; {self._fix()}"
            )
        if layout != (self._layout or layout):
            raise self._damaged(path, f"holds features {layout}, other files {self._layout}")
        self._layout = layout
        self.size += path.stat().st_size
        return [row.tobytes() for row in digests.numpy()]

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        """Open a file of the store; safetensors refuses one that is cut short or whose header is damaged."""
        try:
            with safe_open(path, "pt") as file:
                yield file
        except (OSError, SafetensorError) as error:
            raise self._damaged(path, f"cannot be read ({one_line(error)})") from None

    def _damaged(self, path: Path, problem: str) -> FeatureCacheError:
        return FeatureCacheError(f"{path}: the feature cache is damaged: the file {problem}; {self._fix()}")

    def _unusable(self, error: OSError) -> CacheUnavailable:
        return CacheUnavailable(
            f"{self.folder}: features cannot be stored here: {error.strerror or error}; set MMZOO_CACHE to a folder that can be "
            f"written, or encode in each epoch: {TURN_OFF}"
        )

    def _fix(self) -> str:
        return f"delete the folder {self.folder}, and the images are encoded again, or train without it: {TURN_OFF}"


class FeatureWriter:
    """Write records to files of its own."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._digests: list[bytes] = []
        self._batches: list[dict[str, Tensor]] = []
        self._committed_at = time.monotonic()

    def append(self, digests: Sequence[bytes], features: Mapping[str, Tensor]) -> None:
        """Add records: the sha256 of each input, and features [records, ...] by name. Writes them when it is time.

        Raises:
            FeatureCacheError: the features have another layout than those before, or the disk is full.
        """
        layout = layout_of(features)
        if self._batches and layout != (before := layout_of(self._batches[0])):
            raise FeatureCacheError(f"the encoder gives features of more than one shape, {before} and {layout}; {TURN_OFF}")
        self._digests += digests
        self._batches.append({name: value.detach().cpu().contiguous() for name, value in features.items()})
        late = time.monotonic() - self._committed_at > COMMIT_SECONDS
        if late or len(self._digests) * record_bytes(layout) > COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        """Write the records that are in memory to a new file.

        Raises:
            FeatureCacheError: the disk is full. What was written before stays.
        """
        digests, batches = self._digests, self._batches
        self._digests, self._batches, self._committed_at = [], [], time.monotonic()
        if not digests:
            return
        features = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        records = ({name: value[row] for name, value in features.items()} for row in range(len(digests)))
        checksums = torch.tensor([_checksum(digest, record) for digest, record in zip(digests, records, strict=True)])
        keys = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).view(-1, 32)
        facts = json.dumps(self._store.facts, sort_keys=True)
        metadata = {"facts": facts, "checksum": _file_checksum(facts, layout_of(features), keys, checksums)}
        folder = self._store.folder
        try:
            with staged_file(folder / f"{uuid.uuid4().hex}{SUFFIX}") as staged:
                save_file({**features, "sha256": keys, "crc32": checksums}, staged, metadata)
        except (OSError, SafetensorError) as error:
            raise FeatureCacheError(
                f"{folder}: the features cannot be stored: {one_line(error)}. What was encoded before stays. Free some space or "
                f"set MMZOO_CACHE to a folder on a larger disk, then train again; or encode in each epoch: {TURN_OFF}"
            ) from None


def layout_of(features: Mapping[str, Tensor]) -> FeatureLayout:
    """Return the layout of a record of features [records, ...]."""
    return {name: (value.dtype, tuple(value.shape[1:])) for name, value in features.items()}


def record_bytes(layout: FeatureLayout) -> int:
    """Return the size of a record in bytes."""
    return sum(dtype.itemsize * prod(shape) for dtype, shape in layout.values())


def _checksum(digest: bytes, record: Mapping[str, Tensor]) -> int:
    """Return the crc32 of an input's sha256 and its features."""
    value = zlib.crc32(digest)
    for name in sorted(record):
        value = zlib.crc32(record[name].contiguous().view(torch.uint8).numpy().data, value)
    return value


def _file_checksum(facts: str, layout: FeatureLayout, digests: Tensor, checksums: Tensor) -> str:
    """Return the crc32 of a file's facts, layout and index, as text."""
    value = zlib.crc32(f"{facts}{sorted(layout.items())}".encode())
    return str(zlib.crc32(checksums.numpy().tobytes(), zlib.crc32(digests.numpy().tobytes(), value)))
