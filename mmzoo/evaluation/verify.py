"""Verify a shared model: measure the scores that its record and its card claim, and compare them one by one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mmzoo.checkpoints import screening
from mmzoo.checkpoints.record import control_title
from mmzoo.checkpoints.screening import CARD
from mmzoo.common import processes
from mmzoo.common.progress import bar
from mmzoo.data import provenance
from mmzoo.data.bad import read_all
from mmzoo.data.dataset import Dataset
from mmzoo.data.fingerprint import fingerprint
from mmzoo.errors import DataError, MmzooError
from mmzoo.evaluation.controls import AS_IS, make_conditions
from mmzoo.evaluation.run import evaluate, open_source
from mmzoo.evaluation.scoring import metrics_of, score_examples, usable_examples
from mmzoo.evaluation.statistics import Score
from mmzoo.interfaces import Example, Task
from mmzoo.models.compatibility import check_data
from mmzoo.models.load import load
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.schema import PartConfig
from mmzoo.sharing.locations import is_repository, local_folder

_COMMIT = re.compile(r"[0-9a-f]{40}")
# The width of a claimed interval is at most this many times the measured width, plus this many examples (a measured interval
# may have no width).
MAX_WIDTH_RATIO, MAX_EXTRA_EXAMPLES = 3, 20
# Recorded options of these names are ignored: they are parameters of the way to the task, and would change what is verified.
_RESERVED = frozenset(
    {"self", *evaluate.__annotations__, *MultimodalModel.predict_examples.__annotations__, *Task.predict.__annotations__}
)


@dataclass(frozen=True)
class ScoreCheck:
    """Compare a claimed score with the measured one; ``control`` is empty for the score without a control."""

    metric: str
    control: str
    claimed: Score
    measured: Score
    reproduced: bool


@dataclass
class EvaluationCheck:
    """Hold the checks of one recorded evaluation, one for each score."""

    dataset: str
    split: str
    examples: int
    measured: int = 0  # the number of examples that were measured
    checks: list[ScoreCheck] = field(default_factory=list)
    reason: str = ""  # why the evaluation could not be measured
    modalities: tuple[str, ...] = ("image",)  # of the inputs that the controls change

    @property
    def reproduced(self) -> bool:
        """Return whether every score was measured and reproduced."""
        return bool(self.checks) and not self.reason and all(check.reproduced for check in self.checks)


@dataclass
class Verification:
    """Hold the result of verifying a model: a check for each recorded evaluation."""

    model: str
    commit: str | None  # of a repository
    evaluations: list[EvaluationCheck] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)  # scores in the card that its record does not have

    @property
    def reproduced(self) -> bool:
        """Return whether something is claimed, and all of it was reproduced."""
        return bool(self.evaluations) and not self.unrecorded and all(check.reproduced for check in self.evaluations)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data, for JSON."""
        evaluations = [{**asdict(check), "reproduced": check.reproduced} for check in self.evaluations]
        return {"reproduced": self.reproduced, **asdict(self), "evaluations": evaluations}

    def __str__(self) -> str:
        lines = [f"{self.model}{f' at commit {self.commit}' if self.commit else ''}"]
        for check in self.evaluations:
            lines += _table(check)
        lines += [f"\nthe card claims {claim}, which is not in the record" for claim in self.unrecorded]
        if not self.evaluations:
            lines.append("nothing is claimed: no evaluation is recorded")
        return "\n".join([*lines, "", "reproduced" if self.reproduced else "not reproduced"])


def _table(check: EvaluationCheck) -> list[str]:
    """Return the printed lines of one evaluation."""
    partial = 0 < check.measured < check.examples
    part = f", measured only on the first {check.measured}: not a full verification" if partial else ""
    lines = [f"\n{check.dataset}, split {check.split}, {check.examples} examples{part}"]
    if check.reason:
        lines.append(f"not reproduced: {check.reason}")
    if not check.checks:
        return lines
    rows = [("metric", "claimed", "measured", "")]
    for score in check.checks:
        name = score.metric + (f", {control_title(score.control, check.modalities)}" if score.control else "")
        rows.append((name, str(score.claimed), str(score.measured), "reproduced" if score.reproduced else "NOT reproduced"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return lines + ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


@processes.together()
def verify(
    model: str | Path,
    *,
    revision: str | None = None,
    dataset: str | PartConfig | Dataset | None = None,
    limit: int | None = None,
    batch_size: int = 128,
    device: str | None = None,
    progress: bool = True,
    bases: Mapping[str, str | Path] | None = None,
) -> Verification:
    """Measure the scores that a shared model claims, on the same examples, with the same options, metrics, controls and seed.

    A score is reproduced if it is in the claimed interval and that interval is not much wider than the measured one: a wide
    interval would make any claim true. Only the data that was claimed is used: the fingerprint of the examples must match.
    Processes that `accelerate launch` started share the work, and return the same.

    Args:
        model: ``"me/name"``, ``"file:///a/folder/me/name"`` (``@REVISION`` may follow), or a checkpoint folder.
        revision: a branch, tag or commit of a repository.
        dataset: a copy of a data set that has no public name because it is the author's own. If every data set has one, it
            replaces all of them. Recorded options apply where it sets none.
        limit: measure only this many examples of each evaluation; the intervals then only need to overlap.
        bases: as `mmzoo.load` takes them.

    Raises:
        HubError, CheckpointError: as `mmzoo.load`. DataError, BadRecipe: ``dataset`` cannot be opened, or ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit: must be 1 or more, not {limit}")
    with processes.main_first():
        folder = local_folder(model, revision=revision)
    loaded = load(folder, device=device, bases=bases)
    pulled = is_repository(model) and _COMMIT.fullmatch(folder.name)
    claims = list(loaded.provenance.run.get("evaluations", []))
    verification = Verification(str(model), folder.name if pulled else None, unrecorded=_unrecorded(folder, claims))
    replaced = {i for i, claim in enumerate(claims) if not _is_public(claim)} or set(range(len(claims)))
    for i, claim in enumerate(claims):
        copy = dataset if i in replaced else None
        verification.evaluations.append(_check_claim(loaded, claim, copy, limit, batch_size, progress))
    return verification


def _is_public(claim: Mapping[str, Any]) -> bool:
    """Return whether the data set of a claim can be opened by its recorded name."""
    with suppress(MmzooError):
        provenance.reopen(claim)
        return True
    return False


def _check_claim(
    model: MultimodalModel, claim: Mapping[str, Any], copy: str | PartConfig | Dataset | None, limit: int | None, *how: Any
) -> EvaluationCheck:
    """Measure one recorded evaluation, on ``copy`` of its data set if that is not None.

    Errors other than those of opening the copy become the check's ``reason``.
    """
    check = EvaluationCheck(claim["dataset"], claim["split"], claim["examples"], modalities=tuple(model.modalities))
    try:
        with processes.together():
            with processes.main_first():
                spec = provenance.reopen(claim) if copy is None else provenance.substitute(copy, claim)
                task = claim.get("task")
                source = open_source(model.recipe, spec if task is None else {task: spec})
                skipped = claim.get("skipped") or 0
                rows, count = source.load(model.recipe, claim["split"]), max(0, claim["examples"]) + skipped
                read = read_all(rows, count, []) if skipped else list(islice(rows, count))
            examples = list(usable_examples(model, read, [], how[0]) if skipped else read)
    except MmzooError as error:
        if copy is not None:
            raise
        check.reason = str(error)
        return check
    if (actual := processes.once(lambda: fingerprint(examples))) != claim["fingerprint"]:
        expected = claim["fingerprint"]
        check.reason = f"the data differ from those of the claim: fingerprint {actual[:16]}, and {expected[:16]} is claimed"
        return check
    try:
        with processes.together():
            _measure(model, claim, examples[:limit], check, *how)
    except MmzooError as error:  # such as a metric whose plugin is not installed, or an option that no longer exists
        check.reason = str(error)
    return check


def _measure(
    model: MultimodalModel, claim: Mapping[str, Any], examples: list[Example], check: EvaluationCheck, size: int, progress: bool
) -> None:
    """Measure every score of a claim, and add the comparisons to ``check``."""
    controls, seed = claim.get("controls") or {}, claim.get("seed", 0)
    if not claim["scores"]:
        raise DataError("the record has no score")
    check_data(model.recipe, examples[0] if examples else None, claim["dataset"])
    metrics = metrics_of(model, list(claim["scores"]))
    inputs: Any = {"modalities": model.modalities, "optional": model.takes_missing_inputs}
    conditions = make_conditions(examples, list(controls), seed=seed, **inputs)
    options = {name: value for name, value in (claim.get("options") or {}).items() if name not in _RESERVED}
    with bar("evaluating", len(examples) * len(conditions), shown=progress) as shown:
        results = score_examples(
            model, examples, metrics, conditions, seed=seed, batch_size=size, options=options, advance=shown.advance
        )
    check.measured = len(examples)
    for control, scores in {AS_IS: claim["scores"], **controls}.items():
        for metric, values in scores.items():
            if metric not in metrics:
                raise DataError(f"the record has {metric} under the control {control}, but not without a control")
            claimed, measured = Score(values["value"], values["low"], values["high"]), results[control].scores[metric]
            if len(examples) == check.examples:
                agree = _agree(claimed, measured, len(examples))
            else:  # a part of the examples can only show that the intervals overlap
                agree = claimed.low <= measured.high and measured.low <= claimed.high
            check.checks.append(ScoreCheck(metric, control, claimed, measured, agree))


def _agree(claimed: Score, measured: Score, examples: int) -> bool:
    """Return whether a claimed score is reproduced: equal, or near within a claimed interval that is not too wide."""
    if math.isclose(claimed.value, measured.value, rel_tol=1e-9, abs_tol=1e-12):
        return True
    width = claimed.high - claimed.low
    max_width = MAX_WIDTH_RATIO * (measured.high - measured.low) + MAX_EXTRA_EXAMPLES / examples
    return abs(claimed.value - measured.value) <= width <= max_width and claimed.low <= measured.value <= claimed.high


def _unrecorded(folder: Path, claims: list[dict[str, Any]]) -> list[str]:
    """Return the scores in the card's metadata that no recorded evaluation has: the card is not hashed, so anyone can edit it."""
    known = [
        (claim["split"], metric, score["value"])
        for claim in claims
        for scores in (claim["scores"], *(claim.get("controls") or {}).values())
        for metric, score in scores.items()
    ]
    claimed = [
        (_get(_get(result, "dataset"), "split"), _get(metric, "type"), _get(metric, "value"))
        for model in _items(screening.card_metadata(folder / CARD), "model-index")
        for result in _items(model, "results")
        for metric in _items(result, "metrics")
    ]
    return [f"{name} {value} on split {split}"[:200] for split, name, value in claimed if (split, name, value) not in known]


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _items(value: Any, key: str) -> list[Any]:
    items = _get(value, key)
    return items if isinstance(items, list) else []
