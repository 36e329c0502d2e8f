"""The licence of a model, computed from those of its weights and of its data: the strictest, or ``unknown``; never a guess.

Whether a licence reaches through training into weights is a question for lawyers; here it is taken to, so that nobody is told
less than they may have to keep to. The scale is of what the licences themselves and their authors say of combining them:

- public domain, MIT, BSD, Apache-2.0, LGPL-3.0, GPL-3.0, AGPL-3.0: D. A. Wheeler, "The Free-Libre / Open Source Software License
  Slide" (https://dwheeler.com/essays/floss-license-slide.html); MPL-2.0: its section 3.3; GPL-2.0 and Apache-2.0 exclude each
  other (https://www.gnu.org/licenses/license-list.html#apache2);
- Creative Commons: its chart of compatible licences
  (https://wiki.creativecommons.org/wiki/Wiki/cc_license_compatibility), the later-version clauses of its share-alike licences,
  and CC-BY-SA-4.0 into GPL-3.0 (https://creativecommons.org/compatiblelicenses). What forbids derivatives goes into nothing.

A permissive licence goes into an attribution licence: it asks for its notice to be kept, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mmzoo.errors import UnknownName
from mmzoo.recipes.schema import PartConfig, Recipe
from mmzoo.registry.entries import split_use
from mmzoo.registry.manager import plugin_manager

UNKNOWN = "unknown"
# What an entry may say that is no licence; "other" is one that has no SPDX id.
UNSAID = frozenset({"", UNKNOWN, "varies", "other"})

# Each chain from the freest to the strictest: what is under one may go into a work under any that follows. Of those that ask the
# same, such as MIT and ISC, the later stands for both.
_CHAINS = (
    "0BSD Unlicense PDDL-1.0 CC0-1.0 MIT ISC BSD-2-Clause BSD-3-Clause Apache-2.0",
    "Apache-2.0 LGPL-3.0-or-later LGPL-3.0-only GPL-3.0-or-later GPL-3.0-only AGPL-3.0-or-later AGPL-3.0-only",
    "BSD-3-Clause MPL-2.0 GPL-2.0-or-later GPL-2.0-only",  # not through Apache-2.0, which GPL-2.0 excludes
    "MPL-2.0 LGPL-3.0-or-later",
    "GPL-2.0-or-later GPL-3.0-or-later",
    "Apache-2.0 CC-BY-2.0 CC-BY-2.5 CC-BY-3.0 CC-BY-4.0",
    "CC-BY-2.0 CC-BY-SA-2.0 CC-BY-SA-2.5 CC-BY-SA-3.0 CC-BY-SA-4.0 GPL-3.0-only",
    "CC-BY-4.0 CC-BY-SA-4.0",
    "CC-BY-2.0 CC-BY-NC-2.0 CC-BY-NC-2.5 CC-BY-NC-3.0 CC-BY-NC-4.0",
    "CC-BY-4.0 CC-BY-NC-4.0",
    "CC-BY-NC-2.0 CC-BY-NC-SA-2.0 CC-BY-NC-SA-2.5 CC-BY-NC-SA-3.0 CC-BY-NC-SA-4.0",
    "CC-BY-NC-4.0 CC-BY-NC-SA-4.0",
)


def _scale() -> dict[str, frozenset[str]]:
    """Each licence to those that a work may be under that holds it, itself among them."""
    next_: dict[str, set[str]] = {}
    for chain in _CHAINS:
        names = chain.split()
        for one, following in zip(names, [*names[1:], None], strict=True):
            next_.setdefault(one, set()).update([following] if following else [])
    found = {}
    for name in next_:
        reached, waiting = {name}, [name]
        while waiting:
            waiting += (new := next_[waiting.pop()] - reached)
            reached |= new
        found[name] = frozenset(reached)
    return found


_INTO = _scale()
_SPELLED = {name.lower(): name for name in _INTO} | {f"{n}-3.0": f"{n.upper()}-3.0-only" for n in ("gpl", "lgpl", "agpl")}
_SPELLED |= {"gpl-2.0": "GPL-2.0-only"}
# The Hub's names for those of the scale, where it has one (https://huggingface.co/docs/hub/repositories-licenses).
_NOT_ON_HUB = frozenset({"0BSD", "CC-BY-SA-2.0", "CC-BY-SA-2.5", "CC-BY-NC-2.5", "CC-BY-NC-SA-2.5"})


@dataclass(frozen=True)
class Share:
    """What a model is made from, and under which licence that is: an SPDX id, or what was said in its place."""

    part: str
    name: str
    license: str


@dataclass(frozen=True)
class Licence:
    """The strictest licence of all ``shares``, as an SPDX id; ``unknown`` if there is none, and ``why``."""

    id: str
    why: str
    shares: list[Share]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def strictest(licences: Iterable[str]) -> tuple[str, str]:
    """The one licence that a work may be under that holds works under all of these; ``unknown`` and why if there is none."""
    given = list(dict.fromkeys(_SPELLED.get(name.lower(), name) for name in licences))
    if off := [name for name in given if name not in _INTO]:
        return UNKNOWN, f"{' and '.join(off)} cannot be compared with others"
    for name in given:
        if all(name in _INTO[other] for other in given):
            return name, ""
    return UNKNOWN, f"{' and '.join(given)} cannot be combined" if given else "nothing is said"


def of_part(kind: str, part: PartConfig) -> str:
    """What is known of a part's licence: its entry's, unless a variant of one's own is named, and what the recipe says.

    Raises:
        UnknownName: there is no such entry.
    """
    name, variant, _ = split_use(part.use)
    entry = plugin_manager().get(kind, name)
    own = entry.license if variant in (None, entry.variant) else UNKNOWN
    if part.license is None:
        return own
    return part.license if own in UNSAID else strictest([own, part.license])[0]


def of_data(name: str) -> str:
    """What the entry of a data set says; ``unknown`` where there is none of that name."""
    try:
        return of_part("dataset", PartConfig.of(name, "dataset"))
    except UnknownName:
        return UNKNOWN


def of_recipe(recipe: Recipe, origins: Mapping[str, Mapping[str, Any]] | None = None) -> list[Share]:
    """The shares of the parts: of encoder and language model, of any other that brings pretrained weights, and of the checkpoints
    that parts started from (``origins``, as run.json has them)."""
    shares = []
    for kind, part in recipe.parts().items():
        words = kind.replace("_", " ")
        if kind in ("encoder", "language_model") or getattr(
            plugin_manager().get(kind, split_use(part.use)[0]).load(), "pretrainable", False
        ):
            shares.append(Share(words, part.use, of_part(kind, part)))
        if origin := (origins or {}).get(kind):
            shares.append(Share(f"start of the {words}", str(origin["checkpoint"]), str(origin.get("license") or UNKNOWN)))
    return shares


def computed(recipe: Recipe, run: Mapping[str, Any]) -> Licence:
    """The licence of a model, from its recipe and its run: of the parts, of what they started from, and of the training data."""
    shares = of_recipe(recipe, run.get("weights"))
    if training := run.get("training"):
        license = training.get("license") or of_data(str(training["dataset"]))
        shares.append(Share("training data", str(training["dataset"]), license))
    else:
        shares.append(Share("training data", "no training is recorded", UNKNOWN))
    id, why = strictest(share.license for share in shares)
    if unsaid := [share.part for share in shares if share.license in UNSAID]:
        why = f"that of the {' and the '.join(unsaid)} is not known"
    return Licence(id, why, shares)


def on_hub(license: str) -> dict[str, str]:
    """The metadata that say it on the Hub."""
    if license == "PDDL-1.0":
        return {"license": "pddl"}
    if license in _NOT_ON_HUB:
        link = f"https://spdx.org/licenses/{license}.html"
        return {"license": "other", "license_name": license.lower(), "license_link": link}
    return {"license": license.lower().removesuffix("-only").removesuffix("-or-later")}
