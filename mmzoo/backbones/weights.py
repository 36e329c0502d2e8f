"""Fetch files of weights from a repository on the Hugging Face Hub, and read them as tensors only."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mmzoo.backbones import local_backbones
from mmzoo.backbones.hub_errors import check_connection, explain_hub_errors
from mmzoo.common.files import hash_unchanged
from mmzoo.common.sanitize import one_line
from mmzoo.errors import CheckpointError, MmzooError, SourceError

LISTED = 10


@dataclass(frozen=True)
class Weights:
    """Hold the path of a file of weights, and the repository and commit that it comes from."""

    path: Path
    repository: str
    commit: str

    def lock(self) -> dict[str, Any]:
        """Return the lock of `mmzoo.interfaces.part.Part.lock`: repository, commit, and the file's sha256."""
        files = {self.path.name: hash_unchanged(self.path)}
        return {"source": "hub", "id": self.repository, "commit": self.commit, "files": files}


def fetch_weights(label: str, repository: str, names: Sequence[str], revision: str | None) -> Weights:
    """Return the first of the files ``names`` that a repository has.

    Args:
        label: the part that needs the weights, for messages.
        repository: the repository's id, ``owner/name``.
        names: names of files, the preferred one first.
        revision: a branch, tag or commit; None for the main branch.

    Raises:
        SourceError: the repository has none of the files, or cannot be used.
    """
    packed, record = local_backbones.find_local(repository, revision), local_backbones.fetch_record(repository, revision)
    for name in names:
        if packed is not None:
            path, commit = packed.files.get(name), packed.commit or ""
        else:
            path = _download(label, repository, name, revision)
            commit = path.parent.name if path is not None else ""
        if path is not None:
            record.commit, record.files[name] = commit, path
            return Weights(path, repository, commit)
    raise SourceError(f"{label}: '{repository}' has no {' or '.join(names)}, and pickled weights are never loaded")


def _download(label: str, repository: str, name: str, revision: str | None) -> Path | None:
    """Return the path of a file in the library's cache; None if the repository has no such file."""
    subject, alternative = f"{label}: the repository '{repository}' of its weights", "set pretrained: false"
    with explain_hub_errors(subject, repository, item=name, revision=revision, kind=SourceError, alternative=alternative):
        try:
            check_connection(repository, name, revision)
            return Path(hf_hub_download(repository, name, revision=revision))
        except RemoteEntryNotFoundError:
            return None


@contextmanager
def explain_errors(what: str, kind: type[MmzooError] = SourceError) -> Iterator[None]:
    """Raise an error of the class ``kind`` for whatever a library raises in the block; its message begins with ``what``."""
    try:
        yield
    except MmzooError:
        raise
    except Exception as error:  # transformers, tokenizers and safetensors raise many types for a damaged file
        raise kind(f"{what}: {type(error).__name__}: {one_line(error)}") from error


@contextmanager
def explain_loading(label: str) -> Iterator[None]:
    """Raise a `SourceError` for whatever a library raises while it loads the weights of the part ``label`` in the block."""
    with explain_errors(f"{label}: its weights cannot be loaded"):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the loading report and progress bars of transformers in the block; errors are raised all the same."""
    logging_ = transformers.utils.logging
    verbosity, bars = logging_.get_verbosity(), logging_.is_progress_bar_enabled()
    logging_.set_verbosity_error()
    logging_.disable_progress_bar()
    try:
        yield
    finally:
        logging_.set_verbosity(verbosity)
        if bars:
            logging_.enable_progress_bar()


# Reading


def read_tensors(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Return the tensors of safetensors files by name, mapped from the files; a `CheckpointError` if one is damaged."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            tensors.update(load_file(path))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: is truncated or not valid safetensors: {error}") from None
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file: text by name; a `CheckpointError` if the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is truncated or not valid safetensors: {error}") from None


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors by name of a file written by `torch.save`, whose pickle may hold a mapping of tensors and nothing else.

    Raises:
        CheckpointError: the file is damaged, compressed, or holds anything else.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                    raise CheckpointError(f"{path}: is compressed, and torch.save compresses nothing")
        data = torch.load(path, map_location="cpu", weights_only=True)
    except MmzooError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged archive fails in many ways
        if re.search(r"weights[_\s]+only", str(error), re.I):  # also for the .tar files of the first versions
            fix = "If you trust it, save its state_dict alone, best as safetensors"
            reason = f"holds more than tensors, and such a pickle can run code; it was not read. {fix}"
            raise CheckpointError(f"{path}: {reason}") from None
        raise CheckpointError(f"{path}: is damaged, or was not written by torch.save: {one_line(error, 200)}") from None
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{path}: holds a {type(data).__name__}, not a mapping of tensors")
    if wrong := [key for key, value in data.items() if not (isinstance(key, str) and isinstance(value, Tensor))]:
        keys = f"{first_names(map(str, wrong))} ({type(data[wrong[0]]).__name__})"
        raise CheckpointError(f"{path}: holds more than tensors: {keys}; save the state_dict alone")
    return dict(data)


def names_in(path: Path) -> list[str]:
    """Return the names of the tensors in a safetensors file; empty if it is not a valid one. Only the header is read."""
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError):
        return []


def first_names(names: Iterable[str]) -> str:
    """Return the first 10 names in sorted order as text, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
