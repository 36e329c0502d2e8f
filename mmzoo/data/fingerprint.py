"""Compute a digest of a data set's content."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable

from mmzoo.interfaces.example import Example
from mmzoo.modalities.identity import content_digest, input_key
from mmzoo.modalities.image import open_image as open_image  # where it was first, and people look for it


def fingerprint(examples: Iterable[Example]) -> str:
    """A digest of every text, target and input (its file's bytes; of one that is only in memory, its pixels or values), in order.

    Two sets with one fingerprint hold the same data, wherever their files lie.
    """
    digest = hashlib.sha256()
    known: dict[Hashable, bytes] = {}

    def contents(example: Example, modality: str) -> bytes:
        inputs = example.inputs(modality)
        key = input_key(inputs)
        if key not in known:
            known[key] = b"".join(content_digest(each) for each in inputs)
        return known[key]

    for example in examples:
        for text in (example.text, *example.targets):
            data = text.encode()
            digest.update(len(data).to_bytes(4, "big") + data)
        digest.update(b"|" + contents(example, "image"))
        for modality in example.modalities:
            if modality != "image":
                digest.update(f"|{modality}|".encode() + contents(example, modality))
    return digest.hexdigest()
