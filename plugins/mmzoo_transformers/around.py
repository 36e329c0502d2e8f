"""Run what a class of transformers computes around its output layer, with states that were computed elsewhere.

Families differ in what stands between their base model and their logits: prediction heads, scales, soft caps, a bias. None of it
is known here: the class's own forward pass runs, on a shallow copy of the model in which the base model returns the given states,
or the output layer the given logits. The copies share all weights, and each call has its own, so several may run at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from mmzoo_transformers.private_names import shallow_copy, version_of


def replaced(module: Any, name: str, child: nn.Module) -> Any:
    """Return a copy of ``module`` whose descendant ``name`` is ``child``; all other modules and all weights are shared."""
    first, _, rest = name.partition(".")
    return shallow_copy(module, {first: replaced(getattr(module, first), rest, child) if rest else child})


def name_of(module: nn.Module, child: nn.Module) -> str:
    """Return the name of a descendant."""
    return next(name for name, each in module.named_modules() if each is child)


class States(BaseModelOutputWithPast):
    """Hold given states as a base model's output, in which everything else is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class OutputLayer(nn.Module):
    """Stand in for an output layer: keep its input in ``states``, and return ``logits``, or logits of no positions."""

    def __init__(self, layer: Any, logits: Tensor | None = None) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # not a child, whose name would change
        self.logits = logits
        self.states: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)  # some classes read its weight's type

    def forward(self, states: Tensor, *_: Any, **__: Any) -> Tensor:
        self.states = states
        return states.new_zeros(*states.shape[:-2], 0, len(self.layer.weight)) if self.logits is None else self.logits


class Reads(TorchFunctionMode):
    """Record which weights of a model are read, and answer what the meta device cannot: each number is 1, and each condition
    ``answer``."""

    def __init__(self, model: nn.Module, answer: bool = True) -> None:
        super().__init__()
        self.names = {id(each): name for name, each in [*model.named_parameters(), *model.named_buffers()]}
        self.answer = answer
        self.read: set[str] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for each in (*args, *kwargs.values()):
            if (name := self.names.get(id(each))) is not None:
                self.read.add(name)
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if function is Tensor.__bool__:
                return self.answer
            if function in _NUMBERS:
                return _NUMBERS[function]
            name = getattr(function, "__name__", "")
            if name in ("nonzero", "argwhere"):
                return args[0].new_empty(args[0].numel(), args[0].ndim, dtype=torch.long)
            if name.endswith("grouped_mm"):  # which has float32 on other devices only
                return args[0].new_empty(args[0].shape[0], args[1].shape[-1])
        return function(*args, **kwargs)


_NUMBERS: dict[Any, Any] = {Tensor.item: 1, Tensor.__int__: 1, Tensor.__index__: 1, Tensor.__float__: 1.0}


@dataclass(frozen=True)
class Around:
    """Hold the names of a model's base (for seq2seq models its decoder) and output layer, and whether its class computes
    anything before and after that layer."""

    base: str
    output: str
    width: int
    before: bool = True
    after: bool = True

    @classmethod
    def of(cls, model: Any, bases: Iterable[Any], output: Any, width: int) -> Around | None:
        """Return what stands around the output layer of ``model``; None if its class calls none of the ``bases``.

        Args:
            bases: modules that may give the last states, of ``width`` channels.
        """
        weight = output.weight
        last, logits = weight.new_zeros(1, 1, width), weight.new_zeros(1, 1, len(weight))
        for base in bases:
            if base is model or not isinstance(base, PreTrainedModel):
                continue
            found = cls(name_of(model, base), name_of(model, output), width)
            with torch.no_grad(), Reads(model):
                run = found.run(model, last, logits)
            if not run.called or run.layer.states is None:
                continue
            if weight.is_meta:  # nothing is computed there, so nothing can be saved
                return found
            # A slice of all positions is the same memory.
            same = run.layer.states.shape == last.shape and run.layer.states.is_set_to(last) and not version_of(last)
            return replace(found, before=not same, after=not (run.logits is logits and not version_of(logits)))
        return None

    def states(self, model: Any, last: Tensor) -> Tensor:
        """Return what the output layer reads where the base model's last states are ``last`` [batch, positions, width]."""
        if not self.before:
            return last
        states = self.run(model, last, None).layer.states
        assert states is not None
        return states

    def logits(self, model: Any, states: Tensor) -> Tensor:
        """Return logits [..., vocab] of states [..., dim] of the output layer."""
        logits = model.get_submodule(self.output)(states)
        if not self.after:
            return logits
        rows = logits.reshape(1, -1, logits.shape[-1])
        return self.run(model, states.new_zeros(1, 1, self.width), rows).logits.reshape(logits.shape)

    def run(self, model: Any, last: Tensor, logits: Tensor | None) -> Run:
        """Run the class with the base model's ``last`` states, and with ``logits`` as those of its output layer if given."""
        layer = OutputLayer(model.get_submodule(self.output), logits)
        called: list[bool] = []

        def forward(*_: Any, **__: Any) -> States:
            called.append(True)
            return States(last_hidden_state=last)

        base = shallow_copy(model.get_submodule(self.base), {})
        base.forward = forward
        mask = torch.ones(last.shape[:2], dtype=torch.long, device=last.device)
        if model.config.is_encoder_decoder:
            inputs = {"encoder_outputs": States(last_hidden_state=last), "decoder_input_ids": torch.zeros_like(mask)}
        else:
            inputs = {"inputs_embeds": last}
        out = replaced(replaced(model, self.base, base), self.output, layer)(**inputs, attention_mask=mask, use_cache=False)
        return Run(layer, out.logits, bool(called))


@dataclass(frozen=True)
class Run:
    """Hold what a run gave: the stand-in for the output layer, the logits, and whether the base model was called."""

    layer: OutputLayer
    logits: Tensor
    called: bool
