"""Build the conditions of an evaluation: the examples as they are, and controls with inputs shuffled or blanked.

A model that ignores its inputs scores the same under all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmzoo.errors import DataError
from mmzoo.interfaces import Example
from mmzoo.modalities.identity import input_key

SHUFFLED, BLANKED = "shuffled", "blanked"
CONTROLS = (SHUFFLED, BLANKED)
AS_IS = ""  # the condition without a control


@dataclass(frozen=True)
class Condition:
    """Hold the examples to predict, and whether their inputs are blanked."""

    examples: Sequence[Example]
    blank: bool = False


def make_conditions(examples: Sequence[Example], controls: Sequence[str], *, seed: int, modality: str) -> dict[str, Condition]:
    """Return the condition `AS_IS` and those of the controls, by name.

    Raises:
        DataError: there is no such control.
    """
    if unknown := [control for control in controls if control not in CONTROLS]:
        raise DataError(f"unknown control '{unknown[0]}'; use one of: {', '.join(CONTROLS)}")
    conditions = {AS_IS: Condition(examples)}
    for control in controls:
        shuffled = shuffle_inputs(examples, seed, modality) if control == SHUFFLED else examples
        conditions[control] = Condition(shuffled, blank=control == BLANKED)
    return conditions


def shuffle_inputs(examples: Sequence[Example], seed: int, modality: str) -> list[Example]:
    """Return the examples with their inputs permuted so that none keeps its place, if there are two or more.

    Examples that shared an input share another one.
    """
    inputs = {input_key(source): source for example in examples for source in example.inputs(modality)}
    keys = list(inputs)
    order = np.random.default_rng(seed).permutation(len(keys))
    # A random cycle: each input goes to the next place, so none stays in its own.
    replacement = {keys[a]: inputs[keys[b]] for a, b in zip(order, np.roll(order, 1), strict=True)}
    return [
        example.with_inputs(modality, [replacement[input_key(source)] for source in example.inputs(modality)])
        for example in examples
    ]
