"""Find examples that share inputs, and those that two data sets have both, by the content of the inputs."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mmzoo.data.open import for_task
from mmzoo.interfaces import Example
from mmzoo.modalities.identity import content_digest, content_digests, input_key
from mmzoo.modalities.reader import unwrap_mapping
from mmzoo.recipes.schema import Recipe


def linked_by_inputs(examples: Sequence[Example]) -> list[list[int]]:
    """Return the numbers of the examples that are linked by the content of their inputs, in order of their first ones."""
    contents = _Contents()
    contents.read([source for example in examples for modality in example.modalities for source in example.of(modality)])
    parents: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        while (parent := parents.setdefault(key, key)) != key:
            parents[key] = parents[parent]
            key = parent
        return key

    firsts: list[Hashable] = []
    for example in examples:
        digests: list[Hashable] = [digest for _, own in contents.digests_of(example) for digest in own]
        first, *others = digests or [example.text]
        for other in others:
            parents[root(other)] = root(first)
        firsts.append(first)
    groups: dict[Hashable, list[int]] = {}
    for number, key in enumerate(firsts):
        groups.setdefault(root(key), []).append(number)
    return list(groups.values())


def find_overlap(recipe: Recipe, examples: Iterable[Example], others: Iterable[Example]) -> tuple[int, set[int]]:
    """Return how many examples are among ``others``, and the numbers of those.

    Two are equal if the text, the targets of a task and the content of the inputs are. Files are read only where the first two
    are equal and they have the same size.
    """
    contents = _Contents()
    known: dict[Hashable, list[tuple[int, Example]]] = {}
    for number, example in enumerate(examples):
        for text in _texts(recipe, example):
            known.setdefault((text, contents.sizes_of(example)), []).append((number, example))
    read: dict[Hashable, dict[Hashable, list[int]]] = {}
    both: set[int] = set()
    twice: set[int] = set()
    for number, example in enumerate(others):
        for text in _texts(recipe, example):
            key = text, contents.sizes_of(example)
            if key in known and key not in read:
                read[key] = {}
                for own, candidate in known[key]:
                    read[key].setdefault(contents.digests_of(candidate), []).append(own)
            if key in read and (equal := read[key].get(contents.digests_of(example))):
                both.update(equal)
                twice.add(number)
    return len(both), twice


def _texts(recipe: Recipe, example: Example) -> list[Hashable]:
    """Return the text with the targets of each task that has any."""
    found = {task: for_task(recipe, task, example).targets for task in recipe.tasks}
    return [(task, example.text, targets) for task, targets in found.items() if targets]


class _Contents:
    """Give the sizes and the digests of the inputs of examples. Each file is read once."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.digests: dict[Hashable, bytes] = {}

    def read(self, sources: Sequence[Any]) -> None:
        """Read files, several at a time."""
        self.digests |= content_digests(dict.fromkeys(key for key in map(input_key, sources) if isinstance(key, str)))

    def sizes_of(self, example: Example) -> Hashable:
        """Return the size of each input that is a file or bytes, by modality; -1 of any other."""
        return tuple((modality, tuple(map(self._size, example.of(modality)))) for modality in sorted(example.modalities))

    def digests_of(self, example: Example) -> tuple[tuple[str, tuple[bytes, ...]], ...]:
        """Return the digest of each input, by modality."""
        return tuple((modality, tuple(map(self._digest, example.of(modality)))) for modality in sorted(example.modalities))

    def _size(self, source: Any) -> int:
        source = unwrap_mapping(source)
        if isinstance(source, bytes):
            return len(source)
        if not isinstance(source, str | Path):
            return -1
        if (path := str(source)) not in self.sizes:
            try:
                self.sizes[path] = os.stat(os.path.expanduser(path)).st_size
            except OSError:
                self.sizes[path] = -1
        return self.sizes[path]

    def _digest(self, source: Any) -> bytes:
        key = input_key(source)
        if isinstance(key, bytes):
            return key
        if key not in self.digests:
            self.digests[key] = content_digest(source)
        return self.digests[key]
