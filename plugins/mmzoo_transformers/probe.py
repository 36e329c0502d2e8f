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
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, StoppingCriteria

from mmzoo.api import BIDIRECTIONAL, CAUSAL, DoesNotFit, first_names, one_line, quiet
from mmzoo_transformers.around import Reads, name_of, replaced
from mmzoo_transformers.private_names import attention_implementation, is_stateful, version_of

LENGTH, SHORT = 6, 3  # positions of the two texts of a probe; the second is padded
WORDS = 256  # of a vocabulary, for which logits are compared
TOLERANCE = 1e-3  # of the largest value: sums of float32 in another order
MIXED = 1e-4  # likewise, of what padding may change: small random weights hide much of it
_found: dict[Any, Findings] = {}


@dataclass(frozen=True)
class Findings:
    """Hold what a probe found out about a class.

    Args:
        unpads: whether texts in one row keep apart in training, see `mmzoo_transformers.unpadded`.
        overwrites: whether the class changes the embeddings that it is given.
        mixes_padding: whether the padding beside a text changes its states.
        generates: whether a causal class continues embeddings.
        keeps_batches: whether a text that is continued beside a longer one has the continuation that it has alone.
    """

    unpads: bool = False
    overwrites: bool = False
    mixes_padding: bool = False
    generates: bool = True
    keeps_batches: bool = True


def probe(language: Any) -> Findings:
    """Compare a language model of this plugin with its class; on the meta device as far as it can be seen there.

    Raises:
        DoesNotFit: the class cannot run from embeddings, or computes something else from ids; the message says what.
    """
    model = language.model
    weight = model.get_input_embeddings().weight
    code = frozenset((type(module), type(module).forward) for module in model.modules())
    settings = json.dumps(model.config.to_dict(), default=str, sort_keys=True)
    key = (type(language), code, weight.device.type, attention_implementation(model.config), settings)
    if key not in _found:
        compare = _compare_reads if weight.is_meta else _compare_numbers
        with torch.no_grad(), torch.random.fork_rng(devices=[]), quiet(), _evaluating(model):
            try:
                _found[key] = compare(_with_fewer_words(_with_fewer_blocks(language)))
            except Exception:  # also since a class may count on all its blocks or words
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
    versions = [version_of(each) for each in language.model.parameters()]
    with _meta():
        try:
            with own:
                if language.architecture == BIDIRECTIONAL:  # Funnel's blocks halve a text, and fail at some lengths
                    language.own_output(language.embed(ids[:, :SHORT]), mask[:, :SHORT])
                language.own_output(language.embed(ids), mask)
        except DoesNotFit:
            raise
        except Exception as error:
            if _only_on_meta(error):
                return Findings(generates=_writes_on_meta(language))  # the numbers decide
            raise _refusal(language, f"cannot run from embeddings, which images become: {one_line(error)}") from error
        try:
            with whole:
                language.library_output(mask, input_ids=ids)
        except Exception:
            whole.read.clear()
    if versions != [version_of(each) for each in language.model.parameters()]:
        raise _refusal(language, "changes its weights when it runs")
    if lost := sorted(whole.read - own.read):
        raise _refusal(language, f"also looks up {first_names(lost)} by token ids, which an image has not")
    return Findings(generates=_writes_on_meta(language))


class _Enough(Exception):
    """Report that a class has written two tokens."""


class _Twice(StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Any:
        if input_ids.shape[1] == 2:
            raise _Enough
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _meta() -> AbstractContextManager[Any]:
    """Return a context in which new tensors are on the meta device; a second one in another would cost time."""
    return nullcontext() if torch.get_default_device().type == "meta" else torch.device("meta")


def _writes_on_meta(language: Any) -> bool:
    """Return whether a class continues embeddings by two tokens, with its cache."""
    if language.architecture != CAUSAL:
        return True
    if type(language.model).prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation and not is_stateful(
        language.model
    ):
        return True  # by the library's own code and cache, which need no trial
    with _meta():
        embeddings, mask = language.embed(torch.ones(1, LENGTH, dtype=torch.long)), torch.ones(1, LENGTH, dtype=torch.long)
        try:
            if not language.passes_embeddings():
                return False
            with Reads(language.model, answer=False):  # no text is at its end
                language.write(embeddings, mask, **_WRITE, max_new_tokens=3, stopping_criteria=[_Twice()])
        except _Enough:
            return True
        except Exception as error:
            return _only_on_meta(error)
    return False


_WRITE = {"do_sample": False, "pad_token_id": 0}


def _only_on_meta(error: Exception) -> bool:
    return isinstance(error, NotImplementedError) or "meta" in str(error)


def _compare_numbers(language: Any) -> Findings:
    """Run both paths on two short texts and on one of random embeddings, and compare the logits, or the states."""
    device, vocabulary = language.model.device, language.model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, max(5, vocabulary // 2), (2, LENGTH), generator=generator).to(device)
    mask = torch.ones_like(ids)
    mask[1, SHORT:] = 0
    causal = language.architecture == CAUSAL
    try:
        embeddings = language.embed(ids)
        random = (torch.randn(embeddings[:1].shape, generator=generator) * embeddings.float().std().item()).to(embeddings)
        both = torch.cat([embeddings, random])
        given = both.clone()
        output = language.own_output(given, torch.cat([mask, mask[:1]]))
        overwrites = not torch.equal(given, both)
        # The first text's beginning, and the second text without its padding.
        alone = language.own_output(both[:2, :SHORT].clone(), mask[:, :SHORT])
        expected = language.library_output(mask[:1], inputs_embeds=random.clone())
    except DoesNotFit:
        raise
    except Exception as error:
        raise _refusal(language, f"cannot run from embeddings, which images become: {one_line(error)}") from error
    _expect(language, output[2:], expected, mask[:1], "other values through its own class")
    try:
        expected = language.library_output(mask, input_ids=ids)
    except Exception:  # it runs from embeddings only
        pass
    else:
        _expect(language, output[:2], expected, mask, "other values from embeddings than from token ids")
    beginning, short = output[:1, : alone.shape[1]], output[1:2, : alone.shape[1]]
    writes = causal and language.passes_embeddings()
    if writes and _difference(beginning, alone[:1], mask[:1, :SHORT]) > TOLERANCE:
        raise _refusal(language, "reads what comes after a word, so that it cannot learn to write")
    mixes = _difference(short, alone[1:], mask[1:, :SHORT]) > MIXED
    found = Findings(not mixes and language.keeps_apart(both[:2], mask), overwrites, mixes)
    if not writes:
        return replace(found, generates=not causal)
    last = torch.stack([output[0, -1], alone[1, -1]])
    first, second = _writes(language, embeddings, mask, last)
    return replace(found, generates=first, keeps_batches=second)


def _writes(language: Any, embeddings: Tensor, mask: Tensor, last: Tensor) -> tuple[bool, bool]:
    """Return whether a class continues each of two texts by the words of largest logits, the second beside padding on the left.

    Args:
        embeddings, mask: [2, positions, dim] and [2, positions], where only the second text has padding, on the right.
        last: [2, vocab], the logits of the last real position of each.
    """
    length = int(mask[1].sum())
    left = torch.stack([embeddings[0], embeddings[1].roll(len(mask[1]) - length, 0)])
    try:
        out = language.write(left, mask.flip(1), **_WRITE, max_new_tokens=2, return_dict_in_generate=True, output_logits=True)
    except Exception:  # each class has its own loop
        return False, False
    longer, more = F.pad(embeddings, (0, 0, 0, 1)), F.pad(mask, (0, 1))
    ends = torch.tensor([mask.shape[1], length], device=mask.device)
    rows = torch.arange(2, device=mask.device)
    longer[rows, ends], more[rows, ends] = language.embed(out.sequences[:, :1])[:, 0], 1
    then = language.own_output(longer, more)[rows, ends]
    right = [
        all(_difference(step[i], own[i], mask) <= TOLERANCE for step, own in zip(out.logits, (last, then), strict=True))
        for i in range(2)
    ]
    return right[0], right[1]


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
        if any(isinstance(block, nn.ModuleList) for block in blocks):  # stages, as of Funnel, which all shorten a text
            continue
        fewer = nn.Sequential(*kinds.values()) if isinstance(blocks, nn.Sequential) else nn.ModuleList(kinds.values())
        language = replaced(language, f"model.{name}", fewer)
    return language


def _with_fewer_words(language: Any) -> Any:
    """Return a copy whose output layer has the first `WORDS` words only; it shares all weights."""
    layer = language.output_layer()
    if not isinstance(layer, nn.Linear) or layer.weight.is_meta or len(layer.weight) <= WORDS:
        return language
    fewer = nn.utils.skip_init(nn.Linear, 1, 1, bias=layer.bias is not None)
    fewer.weight = nn.Parameter(layer.weight[:WORDS], requires_grad=False)
    if layer.bias is not None:
        fewer.bias = nn.Parameter(layer.bias[:WORDS], requires_grad=False)
    return replaced(language, f"model.{name_of(language.model, layer)}", fewer)


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
