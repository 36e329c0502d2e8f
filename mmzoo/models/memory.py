"""Estimate how much memory a training step needs beside weights, gradients and Adam's moments.

A copy of the model without values runs forward on the meta device, in training mode, for batches of `SIZES` examples. The
storages of what autograd saves for the backward pass are counted, and a polynomial of degree two gives the bytes of any batch:
``fixed + each * batch + pairs * batch ** 2``. It is exact for sums of tensors whose sizes are constant, grow with the batch, or
with its square, as the similarities of a contrastive loss do.

It needs private names of torch, which were seen in version 2.14.1: `TorchDispatchMode`, `StorageWeakRef`, and operations of aten.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedTokenizerBase

from mmzoo.checkpoints.summary import Activations
from mmzoo.common.sanitize import one_line
from mmzoo.data.collate import Collator, TaskLayout, tensors
from mmzoo.errors import DataError
from mmzoo.interfaces import BIDIRECTIONAL, SEQ2SEQ, Example
from mmzoo.interfaces.text import TextContext

TEXT_TOKENS = 32  # of each example: of its prompt and target together
SIZES = (2, 3, 4)  # a batch of one is a special case of many losses and norms
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORD = "word"

aten = torch.ops.aten
_AUTOCAST = threading.Lock()  # held while `torch.autocast` is another


def estimate(model: Any) -> Activations:
    """Return what a training step of a model, which may be on the meta device, needs; `Activations.problem` says why it is
    unknown."""
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings(), _autocast_on_meta():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            shadow = without_values(model)
            recomputing = _recomputing(model)
            tokens, needed = 0, []
            for size in SIZES:
                batch, tokens, lengths = artificial_batch(shadow, size)
                needed.append(_needed_bytes(shadow, recomputing, batch))
    except Exception as error:  # a part may raise anything where there are no values
        return Activations(problem=one_line(f"{type(error).__name__}: {error}", 200))
    low, middle, high = needed
    pairs = max(0, (high - 2 * middle + low) / 2)
    each = max(0, (high - low) / 2 - 2 * SIZES[1] * pairs)
    fixed = max(0, middle - each * SIZES[1] - pairs * SIZES[1] ** 2)
    return Activations(fixed, each, pairs, tokens, lengths)


@contextmanager
def _autocast_on_meta() -> Iterator[None]:
    """Let `torch.autocast` do nothing for the meta device, which it does not know; peft turns it off for the experts' weights."""
    with _AUTOCAST:
        real: Any = torch.autocast

        def autocast(device_type: str, *args: Any, **options: Any) -> Any:
            return nullcontext() if device_type == "meta" else real(device_type, *args, **options)

        setattr(torch, "autocast", autocast)  # noqa: B010 - mypy takes it for the class
        try:
            yield
        finally:
            setattr(torch, "autocast", real)  # noqa: B010


def _recomputing(model: Any) -> Any:
    """Return a copy without values that recomputes blocks; None if the recipe does not ask for it."""
    if not model.recipe.training.gradient_checkpointing:
        return None
    copied = without_values(model)
    copied.checkpoint_blocks()
    return copied.train()


def _needed_bytes(model: Any, recomputing: Any, batch: Mapping[str, Any]) -> float:
    """Return the bytes that a step of a batch needs at most at any time: what is saved, and the largest tensor's gradient; where
    blocks are recomputed, also what one of them saves then."""
    with ShapesOnly() as shapes:
        batch = tensors(batch, "meta")  # within the mode, which leaves ids on the CPU
        saved = saved_bytes(model, batch)
        if recomputing is None:
            return saved + shapes.largest
        kept = saved_bytes(recomputing, batch)
    return kept + shapes.largest + (saved - kept) / max(1, len(model.language_model.blocks()))


def saved_bytes(model: nn.Module, batch: Mapping[str, Any]) -> int:
    """Return the bytes that are in memory between the forward and the backward pass of a batch: of the batch, and of the tensors
    that autograd saved, each storage once, without the model's weights and buffers."""
    own = {_storage(tensor).cdata for tensor in chain(model.parameters(), model.buffers())}
    seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def note(tensor: Tensor) -> Tensor:
        with suppress(NotImplementedError, RuntimeError):  # a matrix packed for oneDNN has no storage
            storage = _storage(tensor)
            if storage.cdata not in own:
                seen[storage.cdata] = storage, tensor.untyped_storage().nbytes()
        return tensor.detach()  # the tensor itself would keep its own graph alive

    for tensor in tree_leaves(batch):
        if isinstance(tensor, Tensor):
            note(tensor)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(**batch)["loss"]
    total = sum(size for storage, size in seen.values() if not storage.expired())  # a loss in parts frees some at once
    del loss
    return total


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def without_values(model: Any) -> Any:
    """Return a copy of a model in training mode, whose weights and buffers are on the meta device."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    tokenizers = [value for value in vars(model.language_model).values() if isinstance(value, PreTrainedTokenizerBase)]
    transforms = [encoder.transform for encoder in model.encoders.values()]
    for shared in (model.recipe, model.provenance, *tokenizers, *transforms):
        memo[id(shared)] = shared
    copied = copy.deepcopy(model, memo)
    copied.__dict__.pop("_context", None)
    language = copied.language_model
    # The model's own tokenizer may have to be fetched.
    language.__class__ = type(type(language).__name__, (type(language),), {"tokenizer": _tokenizer(language.architecture)})
    return copied.train()


def artificial_batch(model: Any, size: int) -> tuple[dict[str, Any], int, dict[str, int]]:
    """Return a collated batch with other inputs for each example, the tokens of each text, and by modality the length of inputs
    whose length varies.

    An input is the blank one of its reader. The texts have `TEXT_TOKENS` tokens, or as many as the context holds.

    Raises:
        DataError: a task accepts no artificial target.
    """
    context: TextContext = model.text_context()
    room = TEXT_TOKENS if context.max_length is None else min(TEXT_TOKENS, context.max_length - (context.added_tokens or 0))
    targets = {name: _targets(task) for name, task in model.tasks.items()}
    collator = model.collator(training=True)
    widths = [_width(_texts(collator, size, words, targets)) for words in (1, 2)]
    words = 1 + max(0, room - widths[0]) // max(1, widths[1] - widths[0])
    batch = _texts(collator, size, words, targets)
    lengths = {}
    for name, pipeline in model.input_pipelines().items():
        with torch.no_grad():
            blank = pipeline.blank()
        if pipeline.transform is None:
            batch["encoders"][name] = {"inputs": blank[None], "index": torch.zeros(size, dtype=torch.long)}
        else:
            batch["encoders"][name] = {**pipeline.batch([blank] * size), "index": torch.arange(size)}
        if pipeline.variable_length:
            lengths[pipeline.modality] = len(blank)
    return batch, _width(batch), lengths


def _texts(collator: Collator, size: int, words: int, targets: Mapping[str, Callable[[int], tuple[str, ...]]]) -> dict[str, Any]:
    """Return a batch without inputs of texts and targets of so many words."""
    layouts = {name: TaskLayout(layout.task, name, default=layout.default) for name, layout in collator.tasks.items()}
    inputs = [dict.fromkeys((p.modality for p in collator.pipelines.values()), f"{i}") for i in range(size)]
    own = {name: target(words) for name, target in targets.items()}
    examples = [Example(f"{i}", text=" ".join([WORD] * words), targets=own, inputs=inputs[i]) for i in range(size)]
    batch = Collator(layouts, collator.text, {})(examples)
    if "error" in batch:
        raise batch["error"][0](batch["error"][1])
    return batch


def _width(batch: Mapping[str, Any]) -> int:
    """Return the largest number of tokens that a task's text has, a decoder's included."""
    texts = [[own[key].shape[1] for key in ("ids", "decoder_ids") if key in own] for own in batch["tasks"].values()]
    return max(map(sum, texts))


def _targets(task: Any) -> Callable[[int], tuple[str, ...]]:
    """Return the function from a number of words to artificial targets that a task accepts.

    Raises:
        DataError: it accepts none.
    """
    labels = tuple(getattr(task, "labels", ()))[:1]
    problem = "it accepts no artificial target"
    for fixed in (labels, (), *(("0",) * count for count in range(1, 33))):  # a label, words, numbers

        def make(words: int, fixed: tuple[str, ...] = fixed) -> tuple[str, ...]:
            return fixed or (" ".join([WORD] * words),)

        try:
            task.references(Example("", targets=make(1)))
        except DataError as error:
            problem = str(error)
        except NotImplementedError:
            return make
        else:
            return make
    raise DataError(problem)


def _tokenizer(architecture: str) -> Any:
    """Return a tokenizer with one token a word, which frames texts as tokenizers of language models of an architecture do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    units = {unit: i for i, unit in enumerate((*SPECIAL, WORD))}
    built = Tokenizer(models.WordLevel(units, unk_token="<unk>"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    frame = {BIDIRECTIONAL: "<s> $A </s>", SEQ2SEQ: "$A </s>"}.get(architecture)
    if frame:
        special = [(name, units[name]) for name in ("<s>", "</s>")]
        built.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    pad, start, end, unknown = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=built, pad_token=pad, bos_token=start, eos_token=end, unk_token=unknown, cls_token=start
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    return tokenizer


class ShapesOnly(TorchDispatchMode):
    """Run operations without values: floating-point tensors are on the meta device.

    Ids, masks and indices have their values on the CPU, because models ask about them: whether a mask hides anything, where a
    label is. They are small.

    Attributes:
        largest: bytes of the largest tensor so far; the backward pass needs room for its gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest, self._kernels = 0, Kernels()

    def __enter__(self) -> ShapesOnly:
        super().__enter__()
        self._kernels.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._kernels.__exit__(*error)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if any(each.is_meta for each in given):
            return self._without_values(func, args, kwargs)
        if kwargs.get("device") is None or torch.device(kwargs["device"]).type != "meta":
            return func(*args, **kwargs)
        if (given[0] if given else func(*args, **kwargs)).is_floating_point():
            return func(*args, **kwargs)
        return func(*args, **{**kwargs, "device": torch.device("cpu")})

    def _without_values(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func in _ANSWERS:
            return _ANSWERS[func](*args)
        args, kwargs = tree_map(_to_meta, (list(_indices(func, args)), kwargs))
        if kwargs.get("device") is not None:  # ids may have asked for it on the CPU
            kwargs["device"] = torch.device("meta")
        out = func(*args, **kwargs)
        if not func.is_view:
            sizes = [each.untyped_storage().nbytes() for each in tree_leaves(out) if isinstance(each, Tensor)]
            self.largest = max(self.largest, *sizes, 0)
        return out


def _to_meta(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) and not value.is_meta else value


def _indices(func: Any, args: Any) -> Iterator[Any]:
    """Yield arguments with boolean indices, whose shapes depend on values, as numbers."""
    for number, value in enumerate(args):
        if number == 1 and func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            booleans = [each is not None and each.dtype in (torch.bool, torch.uint8) for each in value]
            value = list(chain(*(_nonzero(e).unbind(1) if b else [e] for e, b in zip(value, booleans, strict=True))))
        yield value


def _nonzero(tensor: Tensor) -> Tensor:
    """Return the indices of what is not zero; of everything if the values are unknown."""
    return tensor.new_empty(tensor.numel(), tensor.ndim, dtype=torch.long) if tensor.is_meta else tensor.nonzero()


def _masked_select(tensor: Tensor, mask: Tensor) -> Tensor:
    return tensor.new_empty(len(_nonzero(mask)))


# What depends on values that are unknown is answered as if nothing were hidden or zero.
_ANSWERS: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: lambda tensor: torch.ones((), dtype=tensor.dtype).item(),
    aten.nonzero.default: _nonzero,
    aten.equal.default: lambda *_: False,
    aten.masked_select.default: _masked_select,
}


class Kernels(TorchFunctionMode):
    """Save what the kernels of a device save, where the meta device would run a sum of smaller operations that save more."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func in _GATES:
            return _recurrent(func, *args)
        if func in _GROUPED:  # a matrix for each group of rows; the meta device has it for bfloat16 only
            return args[0] @ args[1][0]
        return func(*args, **kwargs)


# Vectors as wide as the states that kernels on a CPU save for each position of a layer: oneDNN's workspace, or the gates.
_GATES: dict[Any, int] = {torch.lstm: 16, torch.gru: 6, torch.rnn_tanh: 0, torch.rnn_relu: 0}

# The experts of mixtures; the function has a public name since torch 2.10.
_GROUPED = {getattr(torch.nn.functional, "grouped_mm", None), getattr(torch, "_grouped_mm", None)} - {None}


def _recurrent(func: Any, inputs: Tensor, *args: Any) -> Any:
    """Run a recurrent network without a loop over positions, which takes long and saves other tensors than the kernels do.

    Args:
        args: as `torch.lstm` has them: with ``batch_sizes`` first for packed ``inputs``.
    """
    states, weights, _, layers, dropout, _, both = args[isinstance(args[2], list | tuple) :][:7]
    states = [states] if isinstance(states, Tensor) else states
    units, runs = states[0].shape[-1], layers * (1 + both)
    vectors = runs * (_GATES[func] + 2) - 1 + bool(dropout) * (runs - 1)  # with the states of each layer and what the next reads
    output = _Recurrent.apply(inputs, units, 1 + both, vectors, *weights)
    return (output, *(state.clone() for state in states))


class _Recurrent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, units: int, directions: int, vectors: int, *weights: Tensor) -> Tensor:
        positions = inputs.shape[:-1]
        output = inputs.new_empty(*positions, directions * units)
        work = [inputs.new_empty(*positions, units) for _ in range(vectors - directions)]
        ctx.save_for_backward(inputs, output, *work, *weights)
        return output


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Run attention without the weights [batch, heads, queries, keys] (Dao et al. 2022, https://arxiv.org/abs/2205.14135), unless
    it has dropout or a mask that is learned, which the kernel of CPUs does not support."""
    learned = attn_mask is not None and attn_mask.requires_grad
    if dropout_p or learned or query.ndim != 4 or query.shape[-1] != value.shape[-1]:
        options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **options)
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype, device=query.device)
    flash = aten._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
