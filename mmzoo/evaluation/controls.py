"""Build the conditions of an evaluation: the examples as they are, and controls with inputs shuffled or blanked.

A model that ignores its inputs scores the same under all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmzoo.errors import DataError
from mmzoo.interfaces import Example
from mmzoo.modalities.identity import input_key

SHUFFLED, BLANKED, MISSING = "shuffled", "blanked", "missing"
CONTROLS = (SHUFFLED, BLANKED)  # those of every evaluation
AS_IS = ""  # the condition without a control
TEXT = "text"


@dataclass(frozen=True)
class Condition:
    """Hold the examples to predict, and the modalities whose inputs are blanked."""

    examples: Sequence[Example]
    blank: tuple[str, ...] = ()


def default_controls(modalities: Sequence[str]) -> list[str]:
    """Return `CONTROLS` of all inputs and, where a model takes several modalities, of each by itself."""
    single = [f"{control}:{modality}" for modality in modalities for control in CONTROLS] if len(modalities) > 1 else []
    return [*CONTROLS, *single]


def make_conditions(
    examples: Sequence[Example], controls: Sequence[str], *, seed: int, modalities: Sequence[str], optional: bool = False
) -> dict[str, Condition]:
    """Return the condition `AS_IS` and those of the controls, by name.

    A control is ``shuffled``, ``blanked`` or ``missing``, of all ``modalities`` or of one: ``shuffled:audio``, ``blanked:text``.
    ``optional`` says whether an input may be missing.

    Raises:
        DataError: there is no such control or modality, or the model needs the input that is to be missing.
    """
    conditions = {AS_IS: Condition(examples)}
    for control in controls:
        what, colon, one = control.partition(":")
        if what not in (SHUFFLED, BLANKED, MISSING) or (colon and not one):
            raise DataError(f"unknown control '{control}'; use one of: {SHUFFLED}, {BLANKED}, {MISSING}, or {SHUFFLED}:MODALITY")
        if one and one not in (*modalities, TEXT):
            raise DataError(f"control '{control}': the modalities of this model are {', '.join([*modalities, TEXT])}")
        if what == MISSING and not optional and one != TEXT:
            raise DataError(f"control '{control}': this model has one encoder, which needs its input; use {BLANKED}")
        changed, blank = examples, []
        for modality in [one] if one else modalities:
            if what == SHUFFLED:
                changed = shuffle_inputs(changed, seed, modality)
            elif modality == TEXT:
                changed = [replace(example, text="") for example in changed]
            elif what == MISSING:
                changed = [example.with_inputs(modality, []) for example in changed]
            else:
                blank.append(modality)
        conditions[control] = Condition(changed, tuple(blank))
    return conditions


def shuffle_inputs(examples: Sequence[Example], seed: int, modality: str) -> list[Example]:
    """Return the examples with their inputs, or texts, permuted so that none keeps its place, if there are two or more.

    Examples that shared an input share another one. A missing input stays missing.
    """

    def of(example: Example) -> list[Any]:
        return [example.text] if modality == TEXT else example.of(modality)

    inputs = {input_key(source): source for example in examples for source in of(example)}
    keys = list(inputs)
    order = np.random.default_rng(seed).permutation(len(keys))
    # A random cycle: each input goes to the next place, so none stays in its own.
    replacement = {keys[a]: inputs[keys[b]] for a, b in zip(order, np.roll(order, 1), strict=True)}
    rows = [(example, [replacement[input_key(source)] for source in of(example)]) for example in examples]
    return [replace(e, text=new[0]) if modality == TEXT else e.with_inputs(modality, new) if new else e for e, new in rows]
