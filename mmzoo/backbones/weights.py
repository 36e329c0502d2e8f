"""Files of weights: one fetched from a repository on the Hugging Face Hub, and any read as tensors and nothing else."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mmzoo.backbones import local_backbones
from mmzoo.errors import CheckpointError, MmzooError, SourceError

LISTED = 10
MAX_HEADER = 100 << 20


@dataclass(frozen=True)
class Weights:
    """A file, and the repository and commit that it is of."""

    path: Path
    repository: str
    commit: str

    def lock(self) -> dict[str, Any]:
        """As `mmzoo.interfaces.part.Part.lock`."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"source": "hub", "id": self.repository, "commit": self.commit, "files": {self.path.name: digest}}


def fetch_weights(label: str, repository: str, names: Sequence[str], revision: str | None) -> Weights:
    """The first of ``names`` that ``repository`` has; ``label`` is the part that wants it.

    Raises:
        SourceError: it has none of them, or the Hub does not give it.
    """
    page = f"{constants.ENDPOINT}/{repository}"
    packed, record = local_backbones.find_local(repository, revision), local_backbones.fetch_record(repository, revision)
    for name in names:
        try:
            if packed is not None:
                if name not in packed.files:
                    continue
                path = packed.files[name]
            else:
                path = Path(hf_hub_download(repository, name, revision=revision))
        except RemoteEntryNotFoundError:
            continue
        except GatedRepoError:
            why = f"is gated: accept its terms at {page}, then log in with `hf auth login`"
        except RevisionNotFoundError:
            why = f"has no revision '{revision}'; {page}/commits/main lists them"
        except RepositoryNotFoundError:
            why = f"is not at {constants.ENDPOINT}, or private; `hf auth login` gives access to private ones"
        except Exception as error:  # an HTTP client without a network raises what it likes
            why = f"could not be fetched: {' '.join(str(error).split())[:300]}\n"
            if constants.is_offline_mode():
                why += "HF_HUB_OFFLINE is set; unset it, or download the weights before"
            else:
                why += f"Check the connection to {constants.ENDPOINT}, or set pretrained: false"
        else:
            commit = path.parent.name if packed is None else packed.commit or ""
            record.commit, record.files[name] = commit, path
            return Weights(path, repository, commit)
        raise SourceError(f"{label}: the repository '{repository}' of its weights {why}")
    raise SourceError(f"{label}: '{repository}' has no {' or '.join(names)}, and pickled weights are never loaded")


@contextmanager
def explain_loading(label: str) -> Iterator[None]:
    """Turn whatever loading raises into a `SourceError`."""
    try:
        yield
    except MmzooError:
        raise
    except Exception as error:  # a damaged or foreign file fails in many ways
        text = " ".join(str(error).split())[:300]
        raise SourceError(f"{label}: its weights cannot be loaded: {type(error).__name__}: {text}") from error


# Reading


def read_tensors(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of safetensors files, mapped, not copied.

    Raises:
        CheckpointError: a file is truncated or damaged.
    """
    found: dict[str, Tensor] = {}
    for path in paths:
        try:
            found.update(load_file(path))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: is truncated or not valid safetensors: {error}") from None
    return found


def read_metadata(path: Path) -> dict[str, str]:
    """The words in the header of a safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is truncated or not valid safetensors: {error}") from None


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` wrote, whose pickle may build a mapping of tensors and nothing else.

    Raises:
        CheckpointError: it is damaged, compressed, or holds anything else.
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
        said = " ".join(str(error).split())
        if "weights_only" in said.lower() or "weights only" in said.lower():  # also of the .tar files of the first versions
            raise CheckpointError(
                f"{path}: holds more than tensors, and such a pickle can run code; it was not read. Where it is to be trusted, "
                "save its state_dict alone, best as safetensors"
            ) from None
        raise CheckpointError(f"{path}: is damaged, or was not written by torch.save: {said[:200]}") from None
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{path}: holds a {type(data).__name__} and not a mapping of tensors")
    if wrong := [key for key, value in data.items() if not (isinstance(key, str) and isinstance(value, Tensor))]:
        kinds = type(data[wrong[0]]).__name__
        raise CheckpointError(
            f"{path}: holds more than tensors: {first_names(map(str, wrong))} ({kinds}); save the state_dict alone"
        )
    return dict(data)


def names_in(path: Path) -> list[str]:
    """The names in a safetensors file; none if it is no such file."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        return list(json.loads(file.read(size))) if size <= min(MAX_HEADER, path.stat().st_size) else []


def first_names(names: Iterable[str]) -> str:
    """The first names of many, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
