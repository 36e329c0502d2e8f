"""Compute a digest of the content of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping

from mmzoo.common.sanitize import whole
from mmzoo.interfaces import Example
from mmzoo.modalities.identity import content_digest, input_key


def fingerprint(examples: Iterable[Example]) -> str:
    """Return a digest of every text, target and input (a file's bytes, or the pixels or values of data in memory), in order.

    Two data sets with the same fingerprint have the same content, wherever their files are.
    """
    digest = hashlib.sha256()
    known: dict[Hashable, bytes] = {}

    def contents(example: Example, modality: str) -> bytes:
        inputs = example.of(modality) or [None]
        if (key := input_key(inputs)) not in known:
            known[key] = b"".join(map(content_digest, inputs))
        return known[key]

    for example in examples:
        for text in (example.text, *_targets(example)):
            data = whole(text).encode()
            digest.update(len(data).to_bytes(4, "big") + data)
        digest.update(b"|" + contents(example, "image"))
        for modality in example.modalities:
            if modality != "image":
                digest.update(f"|{modality}|".encode() + contents(example, modality))
    return digest.hexdigest()


def _targets(example: Example) -> list[str]:
    if not isinstance(example.targets, Mapping):
        return list(example.targets)
    return [text for name, targets in example.targets.items() for text in (name, str(len(targets)), *targets)]
