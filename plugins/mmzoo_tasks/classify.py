"""Choose a label of a fixed set from the fused vector of an example (VQA as classification, Antol et al. 2015,
https://arxiv.org/abs/1505.00468), with the focal loss of Lin et al. 2017 (https://arxiv.org/abs/1708.02002) as an option."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmzoo.api import IGNORE, DataError, Example, Outputs, Prediction, TextContext, pad_rows
from mmzoo_tasks.pooled import PLACEHOLDERS, LabelIndex, Labelled, LabelOptions, label_forms, refuse, text_batch

MANY = 100  # whole numbers that may be labels of one example each, such as digits and years
SCORED, BEST = 1000, 100  # of more than SCORED labels, a prediction has the scores of the BEST, and no class its own score
SHAPES = {"vote": ", answers weighted by votes", "any": ", any answer of an example is right"}


class Classify(Labelled):
    """Train with cross-entropy over ``labels``, weighted by class and focused on hard examples if the options say so.

    The loss of an example with label y of probability p is w_y (1 - p)^gamma (-log p) (Lin et al. 2017, eq. 5); the number of
    examples, not the sum of their weights, divides the sum.

    Several targets of an example are alternatives. With ``alternatives: vote`` the loss is its mean over them, so that of ten
    answers each counts as often as it was given (the soft cross-entropy of Kazemi and Elqursh 2017,
    https://arxiv.org/abs/1704.03162); with ``any``, p is the sum of their probabilities and y the first (Jin and Ghahramani 2002,
    https://papers.nips.cc/paper/2234). A target outside the label set takes no part in it, nor an example without any other.
    """

    metrics = ("accuracy", "precision", "recall", "f1")

    class Options(LabelOptions):
        labels: list[str] | None = Field(
            None, min_length=2, description="the label set; training learns it from the data; two placeholders until then"
        )
        top_answers: int | None = Field(
            None, ge=2, description="learn as labels the targets that are most frequent in the data, this many; null for all"
        )
        alternatives: Literal["vote", "any"] | None = Field(
            None,
            description="how several targets of an example are trained on: each by how often it occurs among them, or any one as "
            "right; training decides it from the data, or refuses them if they look like labels that apply together",
        )
        label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all labels")
        class_weights: Literal["none", "balanced"] = Field(
            "none", description="balanced: weigh the loss of a label by examples / (labels * examples of that label)"
        )
        label_weights: list[float] | None = Field(
            None, description="the weight of each label; training learns it from the data if class_weights is balanced"
        )
        focal_gamma: float = Field(0.0, ge=0, le=100, description="focus on examples of low probability; 0 is cross-entropy")

        @model_validator(mode="after")
        def _one_each(self) -> Any:
            if self.label_weights is not None and len(self.label_weights) != len(self.labels or PLACEHOLDERS):
                raise ValueError("label_weights must have one number for each label")
            if min(self.label_weights or [0]) < 0:
                raise ValueError("label_weights must not be negative")
            return self

    def __init__(self, options: Any, *specs: Any) -> None:
        super().__init__(options, *specs)
        self.shape += SHAPES.get(options.alternatives, "")
        vote = options.alternatives == "vote"
        by_class = self.metrics[1:] if len(self.labels) <= (MANY if vote else SCORED) else ()
        self.metrics = ("accuracy", *(["vqa-accuracy"] if vote else []), *by_class)

    @classmethod
    def learn(cls, options: Any, examples: Iterable[Example]) -> dict[str, Any]:
        """Return ``labels``, ``alternatives`` if examples have several targets, and ``label_weights`` for balanced classes, as
        far as the options lack them.

        The labels are the most frequent target of each example (the first of equal ones), or the ``top_answers``.

        Raises:
            DataError: there are fewer than two labels, they are numbers to estimate, as `_check_classes` decides, or the targets
                of an example are labels that apply together, as `_kind_of_alternatives` decides.
        """
        weighs = options.class_weights == "balanced" and options.label_weights is None
        if options.labels and options.alternatives and not weighs:
            return {}
        known: dict[str, str] = {}  # so that equal targets are one string in memory
        lists = [tuple(known.setdefault(target, target) for target in example.targets) for example in examples if example.targets]
        if options.labels:
            index = LabelIndex(options.labels)
            forms = {target: target if (i := index[target]) is None else options.labels[i] for target in known}
        else:
            forms = label_forms(known)
        lists = [tuple(map(forms.__getitem__, targets)) for targets in lists]
        learned: dict[str, Any] = {}
        if not options.labels:
            learned["labels"] = _labels(lists, options.top_answers)
        labels = options.labels or learned["labels"]
        if options.alternatives is None and any(len(set(targets)) > 1 for targets in lists):
            learned["alternatives"] = _kind_of_alternatives(lists, set(options.labels or map(_most_frequent, lists)))
        if weighs:
            index, found = LabelIndex(labels), [0.0] * len(labels)
            for targets in lists:
                for i, share in _shares(targets, index, options.alternatives or learned.get("alternatives")).items():
                    found[i] += share
            mean = sum(found) / max(1, sum(map(bool, found)))
            learned["label_weights"] = [mean / count if count else 1.0 for count in found]
        return learned

    def references(self, example: Example) -> list[str]:
        if not example.targets:
            raise DataError(f"example {example.id} has no label")
        return super().references(example)

    def outside_labels(self, example: Example) -> list[str]:
        outside = super().outside_labels(example)
        return outside if len(outside) == len(example.targets) else []

    def collate(self, examples: Sequence[Example], text: TextContext, *, training: bool) -> dict[str, Tensor]:
        """Return ``ids`` and ``mask`` [batch, text], and in training ``labels`` [batch]: the most frequent label of each example.

        If an example has several labels, also ``answers`` [batch, answers] and ``shares`` of the same shape, whose sum is 1.
        """
        batch = text_batch([example.text for example in examples], examples, text)
        if training:
            rows = [_shares(self.references(example), self._index, self.options.alternatives) for example in examples]
            batch["labels"] = torch.tensor([max(row, key=row.__getitem__, default=IGNORE) for row in rows])
            if max(map(len, rows)) > 1:
                batch["answers"] = pad_rows([list(row) for row in rows], IGNORE)
                width = batch["answers"].shape[1]
                batch["shares"] = torch.tensor([[*row.values(), *[0.0] * (width - len(row))] for row in rows])
        return batch

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        labels, options = batch["labels"].unsqueeze(1), self.options
        logs = self.logits(outputs).log_softmax(-1)
        answers, shares = batch.get("answers", labels), batch.get("shares", torch.ones_like(labels, dtype=logs.dtype))
        own = logs.gather(1, answers.clamp(min=0))  # [batch, answers]
        if options.alternatives == "any":
            own = own.masked_fill(answers == IGNORE, -math.inf).logsumexp(1, keepdim=True)
            answers, shares = labels, torch.ones_like(own)
        weights = logs.new_tensor(options.label_weights or [1.0] * logs.shape[1])
        losses = -own * weights[answers.clamp(min=0)]
        if smoothing := options.label_smoothing:
            losses = (1 - smoothing) * losses - smoothing * (logs * weights).mean(-1, keepdim=True)
        if options.focal_gamma:
            losses = losses * (1 - own.exp()).clamp(min=1e-6) ** options.focal_gamma  # the slope at 0 may be infinite
        total = torch.where(answers == IGNORE, 0, losses * shares).sum()
        return {"cross-entropy": (total, (labels != IGNORE).sum())}

    def predict(self, outputs: Outputs, batch: Mapping[str, Tensor], **options: Any) -> list[Prediction]:
        """Return the likeliest label and the ``scores`` of all; of more than `SCORED` labels, of the `BEST`."""
        refuse(options)
        predictions = []
        for row in self.logits(outputs).softmax(-1).tolist():
            best = max(range(len(row)), key=row.__getitem__)  # the first of equal ones
            kept = range(len(row)) if len(row) <= SCORED else sorted(range(len(row)), key=row.__getitem__, reverse=True)[:BEST]
            predictions.append(
                Prediction(label=self.labels[best], score=row[best], scores={self.labels[i]: row[i] for i in kept})
            )
        return predictions


def _most_frequent(targets: Sequence[str]) -> str:
    """Return the most frequent target of an example, the first of equal ones."""
    return Counter(targets).most_common(1)[0][0]


def _shares(targets: Sequence[str], index: LabelIndex, alternatives: str | None) -> dict[int, float]:
    """Return the share of each label among the targets of an example that are labels; with ``any`` they are equal."""
    counts = Counter(i for target in targets if (i := index[target]) is not None)
    if alternatives == "any":
        counts = Counter(dict.fromkeys(counts, 1))
    return {i: count / counts.total() for i, count in counts.items()}


def _kind_of_alternatives(lists: Sequence[Sequence[str]], labels: Collection[str]) -> Literal["vote", "any"]:
    """Return what several targets of an example are.

    They are votes if most lists are equally long and most have a target twice, as the ten answers to a question of VQA. They are
    forms of one answer (``any``) if every target goes with one label only.

    Raises:
        DataError: neither; they may be labels that apply together.
    """
    several = [targets for targets in lists if len(targets) > 1]
    repeated = sum(len(set(targets)) < len(targets) for targets in several)
    if min(repeated, Counter(map(len, several)).most_common(1)[0][1]) > len(several) / 2:
        return "vote"
    goes_with = {label: {label} for label in labels}
    for targets in lists:
        if own := [target for target in targets if target in labels]:
            for target in targets:
                goes_with.setdefault(target, set()).add(_most_frequent(own))
    together = [targets for targets in several if any(len(goes_with.get(target, ())) > 1 for target in targets)]
    if not together:
        return "any"
    shown = ", ".join(map(repr, list(dict.fromkeys(together[0]))[:5]))
    raise DataError(
        f"{len(together)} of the {len(lists)} training examples have several targets that are not forms of one label, such as "
        f"{shown}. If all of them apply, use the task multi-label; if several people answered and each answer counts, set "
        "task.alternatives to vote; if any one of them is right, to any"
    )


def _labels(lists: Sequence[Sequence[str]], top: int | None) -> list[str]:
    """Return the sorted labels of the training examples; raise a `DataError` if they are no label set."""
    counts = Counter(chain.from_iterable(lists) if top else map(_most_frequent, lists))
    labels = sorted(sorted(counts, key=lambda label: (-counts[label], label))[:top])
    if len(labels) < 2:
        raise DataError(
            f"classification needs two labels or more, and the training data has {len(labels)}"
            + (f": {labels[0]!r}" if labels else "; is the target column right?")
        )
    if not top:
        _check_classes(labels, len(lists))
    return labels


def _check_classes(labels: Sequence[str], examples: int) -> None:
    """Raise a `DataError` if labels are numbers to estimate.

    They are if all are finite numbers that have fewer than two examples each on average, and one of them is not whole or there
    are more than `MANY`.
    """
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return
    if not all(map(math.isfinite, numbers)) or examples >= 2 * len(labels):
        return
    if len(labels) > MANY or not all(number.is_integer() for number in numbers):
        shown = ", ".join(labels[:3])
        raise DataError(
            f"the {examples} training targets are {len(labels)} different numbers ({shown}, ...), too many to be classes; to "
            "estimate a number use the task regress; to classify by them all the same set task.labels"
        )
