"""List the licence of each part and of the data, and flag restrictive terms. Whether licences may be combined is left to people.

Sources of `TERMS`: SPDX ids (https://spdx.org/licenses/), Creative Commons (https://creativecommons.org/share-your-work/cclicenses/),
copyleft as "same license" of https://choosealicense.com/appendix/, the Hub's ids of research licences
(https://huggingface.co/docs/hub/repositories-licenses) and OPT's own
(https://github.com/facebookresearch/metaseq/blob/main/projects/OPT/MODEL_LICENSE.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mmzoo.interfaces.kinds import kind_of
from mmzoo.recipes.schema import PartConfig, Recipe
from mmzoo.registry.entries import split_use
from mmzoo.registry.manager import plugin_manager

UNKNOWN = "unknown"
UNREAD = "terms unknown"  # no licence is named, or `TERMS` does not have it
TERMS: tuple[tuple[str, tuple[str, ...]], ...] = (  # a pattern of whole ids, in any case, and their flags
    ("0BSD|Unlicense|PDDL-1.0|CC0-1.0|MIT|MIT-0|ISC|BSD-[23]-Clause|Apache-2.0|BSL-1.0|Zlib|NCSA|PostgreSQL", ()),
    ("CC-BY-[1-4].[05]|ODC-By-1.0|CDLA-Permissive-[12].0", ()),
    ("(A|L)?GPL-[123].[01](-only|-or-later)?|MPL-[12].[01]|EPL-[12].0|EUPL-1.[12]|OSL-3.0|CDDL-1.[01]|MS-RL", ("copyleft",)),
    ("CC-BY-SA-[1-4].[05]|ODbL-1.0|CDLA-Sharing-1.0", ("copyleft",)),
    ("CC-BY-ND-[1-4].[05]", ("no derivatives",)),
    ("CC-BY-NC-[1-4].[05]|PolyForm-Noncommercial-1.0.0", ("non-commercial",)),
    ("CC-BY-NC-SA-[1-4].[05]", ("non-commercial", "copyleft")),
    ("CC-BY-NC-ND-[1-4].[05]", ("non-commercial", "no derivatives")),
    ("LicenseRef-OPT-175B|apple-amlr|intel-research|fair-noncommercial-research-license", ("research only", "non-commercial")),
)
_ON_HUB = re.compile(  # the ids of common licences that the Hub has a name for
    "unknown|apache-2.0|mit|isc|bsd-[23]-clause|cc0-1.0|cc-by(-sa|-nc|-nc-sa|-nc-nd|-nd)?-4.0|mpl-2.0|[al]?gpl-3.0|gpl-2.0"
)


class LicenceRow(NamedTuple):
    """Hold what a model is made from, its licence (an SPDX id, some joined by ``AND``, or ``"unknown"``) and its flags."""

    part: str
    name: str
    license: str
    flags: tuple[str, ...]


def flags_of(license: str) -> tuple[str, ...]:
    """Return the flags of an SPDX id, or of all ids joined by ``AND``; `UNREAD` for one that is not in `TERMS`."""
    flags: list[str] = []
    for name in license.split(" AND "):
        flags += next((flags for pattern, flags in TERMS if re.fullmatch(pattern, name, re.IGNORECASE)), (UNREAD,))
    return tuple(dict.fromkeys(flags))


def join(licences: Iterable[str]) -> str:
    """Return all licences as one SPDX expression, each id once; ``"unknown"`` if there are none."""
    names = {name.lower(): name for license in licences for name in license.split(" AND ")}
    return " AND ".join(names.values()) or UNKNOWN


def of_part(kind: str, part: PartConfig) -> str:
    """Return the licence that the entry states (unknown if the recipe names another variant), and the one of the recipe."""
    name, variant, _ = split_use(part.use)
    entry = plugin_manager().get(kind, name)
    own = entry.license if variant in (None, entry.variant) else UNKNOWN
    return join([part.license] if own in ("", UNKNOWN, "varies", "other") and part.license else filter(None, [own, part.license]))


def of_recipe(recipe: Recipe, origins: Mapping[str, Mapping[str, Any]] | None = None) -> list[LicenceRow]:
    """Return a row for each part that has pretrained weights, and for each checkpoint that a part started from.

    ``origins`` has those checkpoints by part, as ``run.json`` records them. Encoders and the language model always have a row.
    """
    rows = []
    for key, part in recipe.parts().items():
        kind, label = kind_of(key), recipe.label(key).replace("_", " ")
        entry = plugin_manager().get(kind, split_use(part.use)[0])
        if kind in ("encoder", "language_model") or getattr(entry.load(), "pretrainable", False):
            rows.append((label, part.use, of_part(kind, part)))
        if origin := (origins or {}).get(key):
            rows.append((f"start of the {label}", str(origin["checkpoint"]), str(origin.get("license") or UNKNOWN)))
    return [LicenceRow(*row, flags_of(row[-1])) for row in rows]


def of_model(recipe: Recipe, run: Mapping[str, Any]) -> list[LicenceRow]:
    """Return the rows of `of_recipe` and that of the training data, from a recipe and the content of ``run.json``."""
    training = run.get("training") or {"dataset": "no training is recorded"}
    name, license = str(training["dataset"]), training.get("license") or UNKNOWN
    if license == UNKNOWN and name in {entry.name for entry in plugin_manager().registry.entries("dataset")}:
        license = of_part("dataset", PartConfig.of(name, "dataset"))
    return [*of_recipe(recipe, run.get("weights")), LicenceRow("training data", name, license, flags_of(license))]


def on_hub(rows: Iterable[LicenceRow]) -> dict[str, str]:
    """Return a card's metadata for the Hub: the one licence that all rows have, else ``other``, as the card lists each."""
    license = re.sub("-only$|-or-later$", "", join(row.license for row in rows).lower())
    return {"license": license} if _ON_HUB.fullmatch(license) else {"license": "other", "license_name": "listed-in-the-card"}
