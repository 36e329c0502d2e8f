"""One file of safetensors weights from a repository on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mmzoo.errors import MmzooError, SourceError


@dataclass(frozen=True)
class Weights:
    """A file, and the repository and commit that it is of."""

    path: Path
    repository: str
    commit: str

    def lock(self) -> dict[str, Any]:
        """As `mmzoo.interfaces.Part.lock`."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"source": "hub", "id": self.repository, "commit": self.commit, "files": {self.path.name: digest}}


def fetch(label: str, repository: str, names: Sequence[str], revision: str | None) -> Weights:
    """The first of ``names`` that ``repository`` has; ``label`` is the part that wants it.

    Raises:
        SourceError: it has none of them, or the Hub does not give it.
    """
    page = f"{constants.ENDPOINT}/{repository}"
    for name in names:
        try:
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
            return Weights(path, repository, path.parent.name)
        raise SourceError(f"{label}: the repository '{repository}' of its weights {why}")
    raise SourceError(f"{label}: '{repository}' has no {' or '.join(names)}, and pickled weights are never loaded")


@contextmanager
def loading(label: str) -> Iterator[None]:
    """Turn whatever loading raises into a `SourceError`."""
    try:
        yield
    except MmzooError:
        raise
    except Exception as error:  # a damaged or foreign file fails in many ways
        text = " ".join(str(error).split())[:300]
        raise SourceError(f"{label}: its weights cannot be loaded: {type(error).__name__}: {text}") from error
