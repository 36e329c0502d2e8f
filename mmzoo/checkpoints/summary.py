"""What a model consists of, in numbers: what ``mmzoo check`` and ``model.summary()`` show."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from mmzoo.recipes.licence import LicenceRow

ADAM_BYTES = 8  # two float32 moments a trained parameter


@dataclass(frozen=True)
class PartSummary:
    """One part: its name and shape, its parameters, and the licence of its weights."""

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
    """All parts, and what the model needs. Memory is in bytes, of weights, gradients and Adam's moments in float32;
    activations come on top and grow with the batch. ``licences`` has the rows of `mmzoo.recipes.licence`, without
    the data that it is trained on."""

    recipe: str
    parts: list[PartSummary] = field(default_factory=list)
    memory_run: int = 0
    memory_train: int = 0
    licences: list[LicenceRow] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def trained(self) -> int:
        return sum(part.trained for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        licences = [row._asdict() for row in self.licences]
        return {"fits": True, **asdict(self), "licences": licences, "parameters": self.parameters, "trained": self.trained}

    def __str__(self) -> str:
        rows = [("part", "entry", "shape", "parameters", "trained", "policy", "licence")]
        for part in self.parts:
            rows.append(
                (
                    part.part.replace("_", " "),
                    part.use,
                    part.shape,
                    format_count(part.parameters),
                    format_count(part.trained),
                    part.policy,
                    part.license,
                )
            )
        rows.append(("total", "", "", format_count(self.parameters), format_count(self.trained), "", ""))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines.append(
            f"memory: {format_bytes(self.memory_run)} to run, {format_bytes(self.memory_train)} to train "
            "(float32 weights, gradients and Adam; activations come on top)"
        )
        flagged = [f"the {row.part} is {row.license} ({', '.join(row.flags)})" for row in self.licences if row.flags]
        lines.append("licences: " + "; ".join([*(flagged or ["no part is flagged"]), "the training data have their own"]))
        return "\n".join(lines)


def summarise(part: str, module: nn.Module, *, use: str, shape: str, policy: str, license: str, source: str) -> PartSummary:
    """Count a part's parameters, shared ones once. Works on the meta device too."""
    parameters = {id(p): p for p in module.parameters()}.values()
    return PartSummary(
        part=part,
        use=use,
        shape=shape,
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        policy=policy,
        license=license,
        source=source,
    )


def total_summary(recipe: str, parts: list[PartSummary], buffers: int = 0, licences: list[LicenceRow] | None = None) -> Summary:
    run = 4 * sum(part.parameters for part in parts) + buffers
    trained = sum(part.trained for part in parts)
    return Summary(recipe, parts, run, run + (4 + ADAM_BYTES) * trained, licences or [])


def format_count(number: int) -> str:
    """12345678 as '12.3 M'."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return str(number)


def format_bytes(number: float) -> str:
    """Bytes as '12.3 MB'."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{int(number)} B"
