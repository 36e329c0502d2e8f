"""Count the parameters and the memory of a model, as ``mmzoo check`` and ``model.summary()`` print them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from mmzoo.recipes.licence import LicenceRow

ADAM_BYTES = 8  # per trained parameter: two float32 moments
HEADER = ("part", "entry", "shape", "parameters", "trained", "policy", "licence")


@dataclass(frozen=True)
class PartSummary:
    """Describe one part: its entry, shape, parameters, training policy, and the licence and source of its weights."""

    part: str
    use: str
    shape: str
    parameters: int
    trained: int
    policy: str
    license: str
    source: str


@dataclass(frozen=True)
class Summary:
    """Describe the parts of a model and the memory that it needs; ``str()`` gives a table.

    Attributes:
        recipe: the name of the recipe.
        parts: one `PartSummary` per part.
        memory_run: bytes of the float32 weights and the buffers.
        memory_train: the same with gradients and Adam's moments. Activations come on top and grow with the batch.
        licences: the licences of the parts (`mmzoo.recipes.licence`); the training data have their own.
    """

    recipe: str
    parts: list[PartSummary] = field(default_factory=list)
    memory_run: int = 0
    memory_train: int = 0
    licences: list[LicenceRow] = field(default_factory=list)

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
        return {"fits": True, **asdict(self), "licences": licences, "parameters": self.parameters, "trained": self.trained}

    def __str__(self) -> str:
        rows = [HEADER]
        for part in self.parts:
            counts = format_count(part.parameters), format_count(part.trained)
            rows.append((part.part.replace("_", " "), part.use, part.shape, *counts, part.policy, part.license))
        rows.append(("total", "", "", format_count(self.parameters), format_count(self.trained), "", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines.append(
            f"memory: {format_bytes(self.memory_run)} to run, {format_bytes(self.memory_train)} to train "
            "(float32 weights, gradients and Adam; activations come on top)"
        )
        flagged = [f"the {row.part} is {row.license} ({', '.join(row.flags)})" for row in self.licences if row.flags]
        lines.append("licences: " + "; ".join([*(flagged or ["no part is flagged"]), "the training data have their own"]))
        return "\n".join(lines)


def summarise(part: str, module: nn.Module, **facts: str) -> PartSummary:
    """Count the parameters of a part; shared ones are counted once. It may be on the meta device."""
    parameters = sum(p.numel() for p in module.parameters())  # each once
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return PartSummary(part=part, parameters=parameters, trained=trained, **facts)


def total_summary(recipe: str, parts: list[PartSummary], buffers: int = 0, licences: list[LicenceRow] | None = None) -> Summary:
    """Return the summary of a model of these parts, whose buffers take ``buffers`` bytes."""
    run = 4 * sum(part.parameters for part in parts) + buffers
    trained = sum(part.trained for part in parts)
    return Summary(recipe, parts, run, run + (4 + ADAM_BYTES) * trained, licences or [])


def format_count(number: int) -> str:
    """Return a number such as 12345678 as ``"12.3 M"``."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return str(number)


def format_bytes(number: float) -> str:
    """Return a number of bytes such as 12345678 as ``"12.3 MB"``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{int(number)} B"
