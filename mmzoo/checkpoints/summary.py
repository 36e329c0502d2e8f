"""Count the parameters and the memory of a model, as ``mmzoo check`` and ``model.summary()`` print them."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from mmzoo.common.sanitize import one_line
from mmzoo.errors import BadRecipe
from mmzoo.recipes.licence import LicenceRow

MAX_DIGITS = 20  # of a size
ADAM_BYTES = 8  # per trained parameter: two float32 moments
HEADER = ("part", "entry", "shape", "parameters", "trained", "policy", "licence")


@dataclass(frozen=True)
class PartSummary:
    """Describe one part: its entry, shape, parameters, training policy, and the licence and source of its weights.

    ``adapters`` says in words which of its matrices have adapters; empty if none has.
    """

    part: str
    use: str
    shape: str
    parameters: int
    trained: int
    policy: str
    license: str
    source: str
    adapters: str = ""


@dataclass(frozen=True)
class Activations:
    """Hold an estimate of the bytes that a training step needs beside weights, gradients and Adam's moments, in float32.

    They are ``fixed + each * batch + pairs * batch ** 2``: what autograd saves, the batch, and the largest tensor once more, for
    its gradient.

    Attributes:
        text_tokens: the tokens of each text that it was made for.
        lengths: by modality, the length of inputs that it was made for, where it varies.
        problem: why there is no estimate; empty if there is one.
    """

    fixed: float = 0
    each: float = 0
    pairs: float = 0
    text_tokens: int = 0
    lengths: dict[str, int] = field(default_factory=dict)
    problem: str = ""

    def bytes(self, batch: int) -> int:
        """Return the bytes for a batch of so many examples."""
        return math.ceil(self.fixed + self.each * batch + self.pairs * batch**2)

    def largest_batch(self, room: float) -> int:
        """Return the most examples that need at most ``room`` bytes; 0 if not even one fits."""
        left = room - self.fixed
        if left <= 0 or not (self.each or self.pairs):
            return 0
        # The positive root of pairs * b ** 2 + each * b - left, in the form that also holds if pairs is 0.
        batch = int(2 * left / (self.each + math.sqrt(self.each**2 + 4 * self.pairs * left)))
        return batch + 1 if self.bytes(batch + 1) <= room else batch - (self.bytes(batch) > room)


@dataclass(frozen=True)
class Summary:
    """Describe the parts of a model and the memory that it needs; ``str()`` gives a table.

    Attributes:
        recipe: the name of the recipe.
        parts: one `PartSummary` per part.
        memory_run: bytes of the float32 weights and the buffers.
        memory_train: the same with gradients and Adam's moments; `activations` come on top and grow with the batch.
        licences: the licences of the parts (`mmzoo.recipes.licence`); the training data have their own.
        adds: by modality, the tokens that the fusions add to a text for each input; None if that depends on the input.
        activations: None if they were not asked for.
        batch_size: that of the recipe.
        memory: the bytes that a batch should fit into, if given.
    """

    recipe: str
    parts: list[PartSummary] = field(default_factory=list)
    memory_run: int = 0
    memory_train: int = 0
    licences: list[LicenceRow] = field(default_factory=list)
    adds: dict[str, int | None] = field(default_factory=dict)
    activations: Activations | None = None
    batch_size: int = 1
    memory: int | None = None

    @property
    def memory_step(self) -> int | None:
        """Return the bytes of a training step of ``batch_size`` examples; None if there is no estimate."""
        return self._step(self.batch_size)

    @property
    def largest_batch(self) -> int | None:
        """Return the most examples of a batch that fits into ``memory``, 0 if none does; None if either is unknown."""
        if self.memory is None or self.activations is None or self.activations.problem:
            return None
        return self.activations.largest_batch(self.memory - self.memory_train)

    def _step(self, batch: int) -> int | None:
        estimate = self.activations
        return None if estimate is None or estimate.problem else self.memory_train + estimate.bytes(batch)

    @property
    def parameters(self) -> int:
        """Return the number of parameters of all parts."""
        return sum(part.parameters for part in self.parts)

    @property
    def trained(self) -> int:
        """Return the number of parameters that are trained."""
        return sum(part.trained for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain data."""
        licences = [row._asdict() for row in self.licences]
        counts = {"parameters": self.parameters, "trained": self.trained}
        memory = {"memory_step": self.memory_step, "largest_batch": self.largest_batch}
        return {"fits": True, **asdict(self), "licences": licences, **counts, **memory}

    def __str__(self) -> str:
        rows = [HEADER]
        for part in self.parts:
            counts = format_count(part.parameters), format_count(part.trained)
            rows.append((part.part.replace("_", " "), part.use, part.shape, *counts, part.policy, part.license))
        rows.append(("total", "", "", format_count(self.parameters), format_count(self.trained), "", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines += [f"{part.part.replace('_', ' ')}: {part.adapters}" for part in self.parts if part.adapters]
        lines += self._memory_lines()
        flagged = [f"the {row.part} is {row.license} ({', '.join(row.flags)})" for row in self.licences if row.flags]
        lines.append("licences: " + "; ".join([*(flagged or ["no part is flagged"]), "the training data have their own"]))
        return "\n".join(lines)

    def _memory_lines(self) -> list[str]:
        added = ["any number of tokens" if n is None else f"+{n} tokens" if n else "no tokens" for n in self.adds.values()]
        adds = ", ".join(f"{name} {count}" for name, count in zip(self.adds, added, strict=True))
        lines = [f"adds: {adds}"] if adds else []
        needs = f"memory: {format_bytes(self.memory_run)} to run, {format_bytes(self.memory_train)} to train"
        estimate = self.activations
        step = self.memory_step
        if estimate is None or step is None:
            lines.append(f"{needs} (float32 weights, gradients and Adam; activations come on top)")
            return lines if estimate is None else [*lines, f"activations: not estimated ({estimate.problem})"]
        lines.append(f"{needs} (float32 weights, gradients and Adam)")
        per = estimate.bytes(self.batch_size) / self.batch_size
        made_for = [f"{estimate.text_tokens} text tokens", *(f"{name} of length {n}" for name, n in estimate.lengths.items())]
        lines.append(
            f"activations: about {format_bytes(per)} for each example ({', '.join(made_for)}); "
            f"{format_bytes(step)} in all at batch_size {self.batch_size}"
        )
        if self.memory is not None:
            fits = f"about {_rounded(self.largest_batch or 0):,}" if self.largest_batch else "none"
            least = "" if self.largest_batch else f"; one example needs {format_bytes(self._step(1) or 0)}"
            lines.append(f"largest batch in {format_bytes(self.memory)}: {fits}{least}")
        return lines


def summarise(part: str, module: nn.Module, **facts: str) -> PartSummary:
    """Count the parameters of a part; shared ones are counted once. It may be on the meta device."""
    parameters = sum(p.numel() for p in module.parameters())  # each once
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return PartSummary(part=part, parameters=parameters, trained=trained, **facts)


def total_summary(recipe: str, parts: list[PartSummary], buffers: int = 0, **facts: Any) -> Summary:
    """Return the summary of a model of these parts, whose buffers take ``buffers`` bytes; ``facts`` are further attributes."""
    run = 4 * sum(part.parameters for part in parts) + buffers
    trained = sum(part.trained for part in parts)
    return Summary(recipe, parts, run, run + (4 + ADAM_BYTES) * trained, **facts)


def format_count(number: int) -> str:
    """Return a number such as 12345678 as ``"12.3 M"``."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return str(number)


def format_bytes(number: float) -> str:
    """Return a number of bytes such as 12345678 as ``"12.3 MB"``."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{int(number)} B"


def parse_bytes(text: str | int) -> int:
    """Return a size such as ``"24GB"``, ``"1.5 GiB"`` or ``2000000`` in bytes; GB is 10 ** 9, and GiB 2 ** 30.

    Raises:
        BadRecipe: it is no positive size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(?:([kmgt])(i?))?b?", str(text).strip().lower())
    size = 0
    if found and len(found[1]) <= MAX_DIGITS:
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " "))
    if size < 1:
        raise BadRecipe(f"memory: {one_line(repr(text), 80)} is no size; write it like 24GB, 16GiB or 800MB")
    return size


def _rounded(number: int) -> int:
    """Return a number rounded down to two digits, as exact as the estimate is."""
    scale = 10 ** max(0, len(str(number)) - 2)
    return number // scale * scale
