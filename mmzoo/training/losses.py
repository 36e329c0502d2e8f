"""Sum the losses of a run for its curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor


class LossSums:
    """Sum the loss, under the name ``""``, and its terms between two entries of the log. A step has each at most once: its
    batches, in all processes, have shares of it."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # on the device of the losses
        self.steps: dict[str, set[int]] = {}

    def add(self, terms: Mapping[str, Tensor], step: int) -> None:
        """Add the terms of a batch."""
        for name, value in terms.items():
            # The sums of a checkpoint are on the CPU.
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)).to(value.device) + value
            self.steps.setdefault(name, set()).add(step)

    def to_dict(self) -> dict[str, Any]:
        """Return the sums and the steps by name, as plain data."""
        sums = {name: float(total) for name, total in self.sums.items()}
        return {"sums": sums, "steps": {name: sorted(steps) for name, steps in self.steps.items()}}

    def update(self, other: Mapping[str, Any]) -> None:
        """Add the sums and steps of another process, or of a checkpoint, from `to_dict`."""
        for name, total in other["sums"].items():
            self.sums[name] = self.sums.get(name, torch.zeros(())) + total
            self.steps.setdefault(name, set()).update(other["steps"][name])

    def means(self, processes: int = 1) -> dict[str, float]:
        """Return the mean of each term over the steps that have it, and start anew.

        With several ``processes`` all must call this. One may lack a term, so names are gathered with the sums.
        """
        own = [self.to_dict()]
        self.sums, self.steps = {}, {}
        total = LossSums()
        for other in gather_object(own) if processes > 1 else own:
            total.update(other)
        return {name: float(value) / len(total.steps[name]) for name, value in total.sums.items()}
