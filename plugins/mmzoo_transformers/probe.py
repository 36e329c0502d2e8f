"""Compare a language model's own path with its class in transformers, so that a family that differs is refused by name.

An entry runs a model from embeddings, and computes logits only where it needs them; the class runs from token ids. Both must give
the same. On the meta device, where `check` runs, what can be seen is that both run, and which weights each reads: a table that is
read only with ids, such as the embeddings of each layer of Gemma 3n, is lost. With weights the numbers are compared. Blocks that
are alike are run once, so that a probe takes a small part of a build, and a configuration is probed once in a process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmzoo.api import DoesNotFit, first_names, one_line, quiet
from mmzoo_transformers.around import Reads, name_of, replaced

LENGTH, SHORT = 5, 3  # positions of the two texts of a probe; the second is padded
TOLERANCE = 1e-3  # of the largest value: sums of float32 in another order
_found: dict[Any, Findings] = {}


@dataclass(frozen=True)
class Findings:
    """Hold what a probe found out about a class.

    Args:
        unpads: whether texts in one row keep apart in training, see `mmzoo_transformers.unpadded`.
        overwrites: whether the class changes the embeddings that it is given.
        mixes_padding: whether the padding beside a text changes its states.
    """

    unpads: bool = False
    overwrites: bool = False
    mixes_padding: bool = False


def probe(language: Any) -> Findings:
    """Compare a language model of this plugin with its class; on the meta device as far as it can be seen there.

    Raises:
        DoesNotFit: the class cannot run from embeddings, or computes something else from ids; the message says what.
    """
    model = language.model
    code = tuple(cls.forward for cls in {type(module) for module in model.modules()})
    key = (
        type(language),
        type(model),
        code,
        model.get_input_embeddings().weight.device.type,
        json.dumps(model.config.to_dict(), default=str, sort_keys=True),
    )
    if key not in _found:
        compare = _compare_reads if model.get_input_embeddings().weight.is_meta else _compare_numbers
        with torch.no_grad(), quiet(), _evaluating(model):
            try:
                _found[key] = compare(_with_fewer_blocks(language))
            except Exception:  # also since a class may count on all its blocks
                _found[key] = compare(language)
    return _found[key]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model without dropout in the block."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _compare_reads(language: Any) -> Findings:
    """Run both paths on the meta device, and compare which weights they read."""
    ids = torch.ones(1, LENGTH, dtype=torch.long, device="meta")
    mask = torch.ones_like(ids)
    whole, own = Reads(language.model), Reads(language.model)
    with torch.device("meta"):
        try:
            with own:
                language.own_output(language.embed(ids), mask)
        except Exception as error:
            if _only_on_meta(error):
                return Findings()  # the numbers decide
            raise _refusal(language, f"cannot run from embeddings, which images become: {one_line(error)}") from error
        try:
            with whole:
                language.library_output(mask, input_ids=ids)
        except Exception:
            return Findings()
    if lost := sorted(whole.read - own.read):
        raise _refusal(language, f"also looks up {first_names(lost)} by token ids, which an image has not")
    return Findings()


def _only_on_meta(error: Exception) -> bool:
    return isinstance(error, NotImplementedError) or "meta" in str(error)


def _compare_numbers(language: Any) -> Findings:
    """Run both paths on two short texts and on two texts of random embeddings, and compare the logits, or the states."""
    device, vocabulary = language.model.device, language.model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, max(5, vocabulary // 2), (2, LENGTH), generator=generator).to(device)
    mask = torch.ones_like(ids)
    mask[1, SHORT:] = 0
    try:
        embeddings = language.embed(ids)
        spread = embeddings.float().std().item()
        random = (torch.randn(embeddings.shape, generator=generator) * spread).to(embeddings)
        both = torch.cat([embeddings, random])
        given, masks = both.clone(), torch.cat([mask, mask])
        output = language.own_output(given, masks)
        overwrites = not torch.equal(given, both)
        alone = language.own_output(both[1:2, :SHORT].clone(), mask[1:, :SHORT])
        expected = language.library_output(mask, inputs_embeds=random.clone())
    except DoesNotFit:
        raise
    except Exception as error:
        raise _refusal(language, f"cannot run from embeddings, which images become: {one_line(error)}") from error
    _expect(language, output[2:], expected, mask, "other values through its own class")
    try:
        expected = language.library_output(mask, input_ids=ids)
    except Exception:  # it runs from embeddings only
        pass
    else:
        _expect(language, output[:2], expected, mask, "other values from embeddings than from token ids")
    mixes = _difference(output[1:2, : alone.shape[1]], alone, mask[1:, :SHORT]) > TOLERANCE
    return Findings(not mixes and language.keeps_apart(both[:2], mask), overwrites, mixes)


def _expect(language: Any, output: Tensor, expected: Tensor, mask: Tensor, what: str) -> None:
    """Refuse a class whose values differ at real positions."""
    if output.shape != expected.shape:
        raise _refusal(language, f"gives {what}: {list(output.shape)} in place of {list(expected.shape)}")
    if (difference := _difference(output, expected, mask)) > TOLERANCE:
        raise _refusal(language, f"gives {what} (they differ by {difference:.1%})")


def _difference(output: Tensor, expected: Tensor, mask: Tensor) -> float:
    """Return the largest difference at real positions, as a part of the largest value; infinite if one is not finite."""
    if mask.shape == output.shape[:2]:  # not a decoder's
        output, expected = output[mask.bool()], expected[mask.bool()]
    output, expected = output.float(), expected.float()
    if not torch.equal(output.isfinite(), expected.isfinite()):
        return float("inf")
    scale = expected.nan_to_num(0.0).abs().max().clamp(min=1e-6)
    return float((output - expected).nan_to_num(0.0).abs().max() / scale)


def _refusal(language: Any, problem: str) -> DoesNotFit:
    cls = type(language.model).__name__
    return DoesNotFit(f"'{language.name}': {cls} of transformers {problem}; choose another language model")


def _with_fewer_blocks(language: Any) -> Any:
    """Return a copy with the first of those blocks that are alike; it shares all weights."""
    model = language.model
    for name in {name_of(model, block).rpartition(".")[0] for block in language.blocks()}:
        blocks = model.get_submodule(name)
        kinds: dict[Any, nn.Module] = {}
        for block in blocks:
            kinds.setdefault(_kind(block), block)
        fewer = nn.Sequential(*kinds.values()) if isinstance(blocks, nn.Sequential) else nn.ModuleList(kinds.values())
        language = replaced(language, f"model.{name}", fewer)
    return language


def _kind(block: nn.Module) -> str:
    """Return what tells blocks apart: classes, shapes and settings, but not their number in the model."""
    return repr(
        [
            (name, type(module), {k: v for k, v in vars(module).items() if isinstance(v, _PLAIN) and not _NUMBER.search(k)})
            for name, module in block.named_modules()
        ]
        + [(name, each.shape) for name, each in block.named_parameters()]
    )


_PLAIN = (str, int, float, bool, tuple)
_NUMBER = re.compile(r"idx|index|(layer|block)_?(id|number|num)|^training$")
