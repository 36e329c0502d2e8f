"""Verifying a shared model: what its record and its card claim is measured again, and compared score by score."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mmzoo.checkpoints import screening
from mmzoo.checkpoints.screening import CARD
from mmzoo.data import provenance
from mmzoo.data.dataset import Dataset
from mmzoo.data.fingerprint import fingerprint
from mmzoo.data.open import load_split, open_dataset
from mmzoo.errors import DataError, MmzooError
from mmzoo.evaluation.run import evaluate
from mmzoo.evaluation.statistics import Score
from mmzoo.interfaces.example import Example
from mmzoo.modalities.reader import plural
from mmzoo.models.load import load
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.schema import PartConfig
from mmzoo.sharing.locations import is_repository, local_folder

_COMMIT = re.compile(r"[0-9a-f]{40}")
# A claimed interval may be so many times as wide as the one found, and so many examples wider, for one of no width.
WIDER, SLACK = 3, 20


@dataclass(frozen=True)
class Check:
    """A score that is claimed, under a control or (where that is empty) as the model is, and what was found."""

    metric: str
    control: str
    claimed: Score
    found: Score
    reproduced: bool


@dataclass
class Rerun:
    """An evaluation that is claimed, with a check of each of its scores; without any, ``why`` it was not measured again."""

    dataset: str
    split: str
    examples: int
    measured: int = 0
    checks: list[Check] = field(default_factory=list)
    why: str = ""
    modality: str = "image"

    @property
    def reproduced(self) -> bool:
        return bool(self.checks) and not self.why and all(check.reproduced for check in self.checks)


@dataclass
class Verification:
    """What became of every claim of a model. ``unrecorded`` are scores of its card that its record does not have."""

    model: str
    commit: str | None
    reruns: list[Rerun] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)

    @property
    def reproduced(self) -> bool:
        """Whether something is claimed, and all of it was found again."""
        return bool(self.reruns) and not self.unrecorded and all(rerun.reproduced for rerun in self.reruns)

    def to_dict(self) -> dict[str, Any]:
        said = asdict(self)
        for data, rerun in zip(said["reruns"], self.reruns, strict=True):
            data["reproduced"] = rerun.reproduced
        return {"reproduced": self.reproduced, **said}

    def __str__(self) -> str:
        lines = [f"{self.model}{f' at commit {self.commit}' if self.commit else ''}"]
        for rerun in self.reruns:
            part = f", measured on the first {rerun.measured}: a look, no proof" if 0 < rerun.measured < rerun.examples else ""
            lines.append(f"\n{rerun.dataset}, split {rerun.split}, {rerun.examples} examples{part}")
            if rerun.why:
                lines.append(f"not reproduced: {rerun.why}")
            rows = [("metric", "claimed", "found", "")] if rerun.checks else []
            for check in rerun.checks:
                name = check.metric + (f", {plural(rerun.modality)} {check.control}" if check.control else "")
                said = "reproduced" if check.reproduced else "NOT reproduced"
                rows.append((name, str(check.claimed), str(check.found), said))
            widths = [max(len(row[i]) for row in rows) for i in range(4)] if rows else []
            lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [f"\nthe card claims {claim}, which is not in the record" for claim in self.unrecorded]
        if not self.reruns:
            lines.append("nothing is claimed: no evaluation is recorded")
        return "\n".join([*lines, "", "reproduced" if self.reproduced else "not reproduced"])


def verify(
    model: str | Path,
    *,
    revision: str | None = None,
    dataset: str | PartConfig | Dataset | None = None,
    limit: int | None = None,
    batch_size: int = 128,
    device: str | None = None,
    progress: bool = True,
) -> Verification:
    """Measure again what a shared model claims: on the same examples, with the same options, metrics, controls and seed.

    A score is reproduced if it lies in the claimed interval, which must not be much wider than the one found: a wide interval
    makes no claim safe. Nothing is measured on other data: the fingerprint of the examples must be the one that is claimed.

    Args:
        model: ``"me/name"``, ``"file:///a/folder/me/name"`` (``@REVISION`` may follow), or a checkpoint folder.
        revision: a branch, tag or commit of a repository.
        dataset: a copy of a data set that cannot be found by its name, because it is the author's own; if each can be found, it
            stands in for all. Options that are recorded are laid under its own.
        limit: measure only the first so many examples of each: a look, in which the intervals need only meet.

    Raises:
        HubError, CheckpointError: as `mmzoo.load`. DataError, BadRecipe: ``dataset`` cannot be opened, or ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit: must be 1 or more, not {limit}")
    folder = local_folder(model, revision=revision)
    loaded = load(folder, device=device)
    pulled = is_repository(model) and _COMMIT.fullmatch(folder.name)
    claims = list(loaded.provenance.run.get("evaluations", []))
    verification = Verification(str(model), folder.name if pulled else None, unrecorded=_unrecorded(folder, claims))
    stands_in = {i for i, claim in enumerate(claims) if _source(claim) is None} or set(range(len(claims)))
    for i, claim in enumerate(claims):
        rerun = Rerun(claim["dataset"], claim["split"], claim["examples"], modality=loaded.modality)
        verification.reruns.append(rerun)
        if dataset is not None and i in stands_in:
            source = open_dataset(provenance.substitute(dataset, claim))
            examples = _examples(source, claim)
        else:
            try:
                examples = _examples(open_dataset(provenance.reopen(claim)), claim)
            except MmzooError as error:
                rerun.why = str(error)
                continue
        if (found := fingerprint(examples)) != claim["fingerprint"]:
            rerun.why = (
                f"the data are not those of the claim: fingerprint {found[:16]}, and {claim['fingerprint'][:16]} is claimed"
            )
            continue
        try:
            _measure(loaded, claim, examples[:limit], rerun, batch_size=batch_size, progress=progress)
        except MmzooError as error:  # a metric whose plugin is not here, an option that is no longer there
            rerun.why = str(error)
    return verification


class _Loaded(Dataset):
    """Examples that are here already."""

    def __init__(self, split: str, examples: list[Example]) -> None:
        super().__init__(None)
        self.split, self.examples = split, examples

    def splits(self) -> list[str]:
        return [self.split]

    def load(self, split: str) -> list[Example]:
        return self.examples


def _source(claim: Mapping[str, Any]) -> PartConfig | None:
    try:
        return provenance.reopen(claim)
    except MmzooError:
        return None


def _examples(source: Dataset, claim: Mapping[str, Any]) -> list[Example]:
    return list(islice(load_split(source, claim["split"]), max(0, claim["examples"])))


def _measure(
    model: MultimodalModel, claim: Mapping[str, Any], examples: list[Example], rerun: Rerun, *, batch_size: int, progress: bool
) -> None:
    controls = claim.get("controls") or {}
    if not claim["scores"]:
        raise DataError("the record has no score")
    found = evaluate(
        model,
        dataset=_Loaded(claim["split"], examples),
        split=claim["split"],
        metrics=list(claim["scores"]),
        controls=list(controls),
        seed=claim.get("seed", 0),
        batch_size=batch_size,
        progress=progress,
        **_options(claim),
    )
    rerun.measured = found.examples
    whole = found.examples == claim["examples"]
    for control, scores in {"": claim["scores"], **controls}.items():
        ours = found.controls[control] if control else found.scores
        for metric, said in scores.items():
            claimed = Score(said["value"], said["low"], said["high"])
            if metric not in ours:
                raise DataError(f"the record has {metric} under the control {control}, and not for the model as it is")
            rerun.checks.append(
                Check(metric, control, claimed, ours[metric], _agree(claimed, ours[metric], found.examples, whole=whole))
            )


def _options(claim: Mapping[str, Any]) -> dict[str, Any]:
    """The options to the prediction; a record has no say in how it is verified."""
    own = evaluate.__annotations__
    return {key: value for key, value in (claim.get("options") or {}).items() if key not in own}


def _agree(claimed: Score, found: Score, examples: int, *, whole: bool) -> bool:
    if not whole:
        return claimed.low <= found.high and found.low <= claimed.high
    if math.isclose(claimed.value, found.value, rel_tol=1e-9, abs_tol=1e-12):
        return True
    width = claimed.high - claimed.low
    plausible = WIDER * (found.high - found.low) + SLACK / examples
    near = abs(claimed.value - found.value) <= width <= plausible
    return near and claimed.low <= found.value <= claimed.high


def _unrecorded(folder: Path, claims: list[dict[str, Any]]) -> list[str]:
    """The scores of the card's metadata that no recorded evaluation gave: a card is prose, and no hash keeps it."""
    recorded = {
        (claim["split"], metric, score["value"])
        for claim in claims
        for scores in (claim["scores"], *(claim.get("controls") or {}).values())
        for metric, score in scores.items()
    }
    found = []
    for model in _list(screening.card_metadata(folder / CARD).get("model-index")):
        for result in _list(_get(model, "results")):
            for metric in _list(_get(result, "metrics")):
                said = (_get(_get(result, "dataset"), "split"), _get(metric, "type"), _get(metric, "value"))
                if not any(said == known for known in recorded):
                    found.append(f"{said[1]} {said[2]} on split {said[0]}"[:200])
    return found


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
