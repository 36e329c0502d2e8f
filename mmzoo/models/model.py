"""Define `MultimodalModel`: encode inputs, fuse them with text, run the language model, and apply the tasks.

The model uses its parts only through their interfaces. Generation, the summary and the choice of tensors to save are functions
in the modules beside this one; the methods here call them.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmzoo.checkpoints.folder import write_checkpoint
from mmzoo.checkpoints.summary import Summary
from mmzoo.data.batching import batches
from mmzoo.data.collate import TEXT, Collator, TaskLayout, Tiled, raise_bad, tensors
from mmzoo.data.open import takes_default, target_of
from mmzoo.errors import UnknownName
from mmzoo.interfaces import IGNORE, Encoder, Example, Features, Fusion, LanguageModel, Part, Prediction, Task, TextContext
from mmzoo.interfaces.fusion import current_pass
from mmzoo.interfaces.kinds import GROUPS
from mmzoo.modalities.image import BoundedTransform, ImageReader
from mmzoo.modalities.pipeline import InputPipeline
from mmzoo.modalities.reader import NONE
from mmzoo.models import bases, describe, generation, prediction, streaming, trainable
from mmzoo.models.compatibility import check_end
from mmzoo.models.generation import NEW_TOKENS
from mmzoo.models.hooks import AttachedHooks
from mmzoo.models.outputs import LazyOutputs, fuse_late
from mmzoo.models.precision import cast, dtype_of, hook_in_type_of
from mmzoo.recipes.schema import Recipe
from mmzoo.recipes.shape import ALL
from mmzoo.registry.entries import Entry

_MODE = threading.Lock()  # guards the count of callers in `MultimodalModel.evaluating`


@dataclass
class Provenance:
    """Record where a model's parts came from and how it was trained. The mappings have an item for each part, by its key."""

    entries: dict[str, Entry]
    policies: dict[str, str]  # of training
    pretrained: dict[str, bool]  # whether it has pretrained weights
    full: bool = False  # whether it comes from a checkpoint that holds every weight; it must be saved that way again
    run: dict[str, Any] = field(default_factory=dict)  # run.json: training, evaluations, and where weights of parts came from

    def plugins(self) -> dict[str, str]:
        """Return the version of each plugin that a part comes from."""
        return {e.plugin: e.version for e in sorted(self.entries.values(), key=lambda e: e.plugin)}


class PartDict(nn.ModuleDict):
    """Hold parts by name; unlike its base it allows the names of its own methods, such as ``type``."""

    def add_module(self, name: str, module: Any) -> None:
        self._modules[name] = module


class MultimodalModel(nn.Module):
    """Hold encoders, fusions, a language model and tasks, and run them as one model. Made by `mmzoo.build`.

    It keeps nothing of a call on itself: several threads, and open streams, may use it at the same time.

    Attributes:
        recipe: the `Recipe` that it was built from; what training learned from the data (labels, vocabulary) is in it.
        encoders, fusions, tasks: the parts by name. A joint fusion has the name ``all``.
        language_model: the part.
    """

    encoders: Mapping[str, Encoder]
    fusions: Mapping[str, Fusion]
    language_model: LanguageModel
    tasks: Mapping[str, Task]

    def __init__(self, recipe: Recipe, parts: Mapping[str, Part], provenance: Provenance) -> None:
        super().__init__()
        self.recipe = recipe
        for group in ("encoders", "fusions", "language_model", "tasks"):
            own = {key.partition(".")[2]: part for key, part in parts.items() if key.partition(".")[0] == group}
            setattr(self, group, PartDict(own) if group in GROUPS.values() else own[""])
        self.provenance = provenance
        self._evaluating, self._recomputes_blocks, self._resumes_training = 0, False, False
        self._attach()
        trainable.allow_single_values(self)
        self.train(False)

    def _attach(self) -> None:
        """Attach the deep and late hooks of the fusions to the language model."""
        fusions: list[Any] = list(self.fusions.values())
        head = self.language_model.output_layer()
        with AttachedHooks.recorded(self.language_model) as self._hooks:
            for fusion in fusions:
                with AttachedHooks.recorded(self.language_model) as own:
                    fusion.deep(self.language_model)
                own.wrap(self.language_model, partial(hook_in_type_of, fusion))
            if head is not None and any(fusion.is_late for fusion in fusions):
                head.register_forward_pre_hook(self._fuse_before_logits)
        self.language_model.forbid_packing = any("deep" in fusion.places() for fusion in fusions)

    def __deepcopy__(self, memo: dict[int, Any]) -> MultimodalModel:
        """Return a copy whose hooks call its own fusions, which a plain copy's would not."""
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy({**self.__dict__, "_evaluating": 0}, memo))
        copied._hooks.remove(copied.language_model)
        copied._attach()
        return copied

    # Its parts

    def part(self, key: str) -> Part:
        """Return a part by its key in the recipe: ``encoders.image``; ``encoder`` is the only one.

        Raises:
            DoesNotFit: there are several of that kind. UnknownName: there is none of that key.
        """
        group, _, name = self.recipe.key(key).partition(".")
        held: Any = getattr(self, group, {})
        if name and name not in held:
            raise UnknownName(f"this model has no part '{key}'; it has {', '.join(self.recipe.parts())}")
        return held[name] if name else held

    @property
    def encoder(self) -> Encoder:
        """Return the only encoder; raise `DoesNotFit` if there are several."""
        return self.part("encoder")  # type: ignore[return-value]

    @property
    def fusion(self) -> Fusion:
        """Return the only fusion; raise `DoesNotFit` if there are several."""
        return self.part("fusion")  # type: ignore[return-value]

    @property
    def task(self) -> Task:
        """Return the only task; raise `DoesNotFit` if there are several."""
        return self.part("task")  # type: ignore[return-value]

    def fusion_of(self, encoder: str) -> Any:
        """Return the fusion that reads an encoder: its own, or the joint one."""
        return self.fusions[encoder if encoder in self.fusions else ALL]

    def fused_encoders(self) -> list[tuple[Any, list[str]]]:
        """Return each fusion with the names of the encoders that it reads, in the order of the encoders."""
        joint = ALL in self.fusions
        return [(self.fusions[ALL], list(self.encoders))] if joint else [(self.fusions[name], [name]) for name in self.encoders]

    # The forward pass

    def encode(
        self, inputs: Tensor, index: Tensor | None = None, lengths: Tensor | None = None, *, encoder: str | None = None
    ) -> Features:
        """Compute the features of inputs. A frozen encoder builds no graph.

        Args:
            inputs: [inputs, ...], or [images, tiles, ...] where the fusion cuts images into tiles.
            index: [batch] or [batch, inputs], the inputs of each example, -1 for none; the features then have one row an example.
            lengths: [inputs], the real length of each input, for an encoder of variable length.
            encoder: the encoder's name; None for the only one.
        """
        key = self.recipe.key("encoder") if encoder is None else f"encoders.{encoder}"
        name, module = key.partition(".")[2], self.part(key)
        tiles = inputs.shape[1] if self.fusion_of(name).tiles > 1 else 0
        inputs = inputs.to(dtype_of(module) or self.dtype) if inputs.is_floating_point() else inputs
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.provenance.policies[key] != "frozen"):
            features = module(inputs.flatten(0, 1) if tiles else inputs, *([] if lengths is None else [lengths]))
        if tiles:
            # An image has the tokens of the whole, then of its tiles; its pooled vector is that of the whole.
            tokens = features.tokens.unflatten(0, (-1, tiles)).flatten(1, 2)
            mask = None if features.mask is None else features.mask.unflatten(0, (-1, tiles)).flatten(1, 2)
            features = Features(tokens, features.pooled.unflatten(0, (-1, tiles))[:, 0], mask)
        return features if index is None else features.take(index)

    def features(self, encoders: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Features]:
        """Return the features of a collated batch by encoder, one row an example: precomputed ones if it has them.

        A missing input has masked tokens, and the fusion's learned vector in place of the pooled one. In training an input is
        treated as missing with the probability ``training.modality_dropout``.
        """
        return {name: self._features(name, batch) for name, batch in encoders.items()}

    def _features(self, name: str, batch: Mapping[str, Tensor]) -> Features:
        index, dropout = batch["index"], self.recipe.training.modality_dropout
        if self.training and dropout and self.takes_missing_inputs and self.encoders[name].transform is not None:
            index = index if index.ndim == 2 else index[:, None]
            index = index.masked_fill(torch.rand(len(index), 1, device=index.device) < dropout, -1)
        if "inputs" in batch:
            features = self.encode(batch["inputs"], None, batch.get("lengths"), encoder=name)
        elif "pooled" in batch:
            pooled, tokens = batch["pooled"], batch.get("tokens")
            if tokens is None:  # the fusion does not read them
                tokens = pooled.new_zeros(len(pooled), 0, self.encoders[name].spec.dim)
            features = Features(tokens, pooled, batch.get("mask"))
        else:
            features = self._no_features(name)
        features = features.take(index)
        missing = getattr(self.fusion_of(name), "missing", None)
        return features if missing is None else features.fill_missing(missing[name])

    def _no_features(self, name: str) -> Features:
        """Return one row of zeros, for a batch in which no example has an input of the encoder."""
        spec, tiles = self.encoders[name].spec, self.fusion_of(name).tiles
        count = (1 if spec.tokens is None else spec.tokens) * (1 + tiles**2 if tiles > 1 else 1)
        zeros: dict[str, Any] = {"device": self.device, "dtype": dtype_of(self.encoders[name]) or self.dtype}
        return Features(torch.zeros(1, count, spec.dim, **zeros), torch.zeros(1, spec.pooled_dim, **zeros))

    def outputs(self, features: Mapping[str, Features], batch: Mapping[str, Any]) -> LazyOutputs:
        """Return the lazy outputs of a task's batch; ``features`` are those of `features`, for all examples."""
        rows = batch.get("rows")
        return LazyOutputs(self, {name: own.rows(rows) for name, own in features.items()}, batch)

    def task_outputs(self, batch: Mapping[str, Mapping[str, Any]]) -> dict[str, LazyOutputs]:
        """Return the outputs of each task of a collated batch; tasks with the same text share them."""
        features = self.features(batch["encoders"])
        outputs: dict[str, LazyOutputs] = {}
        for name, own in batch["tasks"].items():
            same = outputs[own["text_of"]] if "text_of" in own else self.outputs(features, own)
            outputs[name] = same.read_by(self.tasks[name])
        return outputs

    @staticmethod
    def _with_texts(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return the batches of tasks, those that share a text with its tensors."""
        shared = {name: tasks[own["text_of"]] if "text_of" in own else {} for name, own in tasks.items()}
        return {name: {**{k: shared[name][k] for k in TEXT if k in shared[name]}, **own} for name, own in tasks.items()}

    def forward(
        self,
        encoders: Mapping[str, Any] | None = None,
        tasks: Mapping[str, Any] | None = None,
        num_items_in_batch: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Compute the loss of a collated batch: the weighted sum of the tasks' terms.

        Args:
            encoders, tasks: of the batch; without tasks, because no input could be read, the loss is zero.
            num_items_in_batch: by task the labels of all batches of a step, over which each term is averaged; None for those of
                this batch.

        Returns:
            ``loss``, and ``terms``, the unweighted terms by task and name.
        """
        if not tasks:
            zero = torch.zeros((), device=self.device, requires_grad=True)
            own = (p for p in self.parameters() if p.requires_grad and not hasattr(p, "to_local"))  # nor sharded
            return {"loss": sum((p.sum() * 0 for p in own), start=zero * 1), "terms": {}}
        losses, terms = [], {}
        for name, term, total, count in self.loss_terms({"encoders": encoders or {}, "tasks": tasks}):
            loss = total / count.clamp(min=1)
            if num_items_in_batch is not None:
                loss = loss * (count_labels(tasks[name]["labels"]) / num_items_in_batch[name])
            terms[f"{name}.{term}"] = loss.detach()
            weight = self.recipe.tasks[name].weight
            losses.append(loss if weight == 1 else weight * loss)
        return {"loss": torch.stack(losses).sum(), "terms": terms}  # a tensor of its own, which the trainer multiplies

    def loss_terms(self, batch: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Tensor, Tensor]]:
        """Yield task, name, sum and number of labels of each term of the loss of a collated batch."""
        outputs = self.task_outputs(batch)
        for name, own in self._with_texts(batch["tasks"]).items():
            for term, (total, count) in self.tasks[name].loss(outputs[name], own).items():
                yield name, term, total, count

    def train(self, mode: bool = True) -> MultimodalModel:
        """Set training or evaluation mode; frozen parts stay in evaluation mode."""
        self._resumes_training = mode
        return self._set_mode(mode)

    def _set_mode(self, mode: bool) -> MultimodalModel:
        self.training = mode
        for key, policy in self.provenance.policies.items():
            trainable.set_training_mode(self.part(key), policy, mode)
        if mode and self._recomputes_blocks:
            trainable.train_frozen_blocks(self.language_model)
        return self

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Set evaluation mode within a ``with`` block, and the previous mode when the last of several callers leaves it."""
        with _MODE:
            if self.training:
                self._set_mode(False)
            self._evaluating += 1
        try:
            yield
        finally:
            with _MODE:
                self._evaluating -= 1
                if not self._evaluating and self._resumes_training != self.training:
                    self._set_mode(self._resumes_training)

    def checkpoint_blocks(self, on: bool = True) -> None:
        """Recompute the language model's blocks in the backward pass instead of keeping their activations.

        Raises:
            DoesNotFit: its blocks do not support that.
        """
        if on or self._recomputes_blocks:
            trainable.recompute_blocks(self.language_model, on)
        self._recomputes_blocks = on

    @property
    def device(self) -> torch.device:
        """Return the device of its weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Return the floating-point type of its first weight, an encoder's if one has any; float32 without weights."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    # What its parts decide about texts and inputs

    @property
    def modalities(self) -> list[str]:
        """List the modalities that it takes beside text, in the order of the encoders; only ``"image"`` if it has no input."""
        own = [encoder.modality for encoder in self.encoders.values() if encoder.modality != NONE]
        return list(dict.fromkeys(own)) or ["image"]

    @property
    def modality(self) -> str:
        """Return the first of `modalities`."""
        return self.modalities[0]

    @property
    def has_inputs(self) -> bool:
        """Return whether an encoder has an input."""
        return any(encoder.transform is not None for encoder in self.encoders.values())

    @property
    def takes_missing_inputs(self) -> bool:
        """Return whether an example may lack an input, because there are several encoders."""
        return len(self.encoders) > 1

    def placeholder_id(self, encoder: str) -> int:
        """Return the id that marks the place of an encoder's input in a text."""
        modality = self.encoders[encoder].modality
        return list(self._context.placeholders.values())[0 if modality == NONE else self.modalities.index(modality)]

    def text_context(self) -> TextContext:
        """Return what tasks need to lay out text: tokenizer, architecture, context length, and added tokens by modality."""
        return self._context

    def added_tokens(self) -> dict[str, int | None]:
        """Return by modality the positions that the fusions add for each input; None if that depends on the input."""
        added: dict[str, int | None] = dict.fromkeys(self.modalities, 0)
        for fusion, names in self.fused_encoders():
            modality = self.encoders[names[0]].modality
            modality = self.modality if modality == NONE else modality
            before, own = added[modality], fusion.added_tokens
            added[modality] = None if before is None or own is None else before + own
        return added

    @cached_property
    def _context(self) -> TextContext:
        spec = self.language_model.spec
        check_end(self.tasks, self.language_model, self.provenance.entries["language_model"].label)
        tokenizer, optional = self.language_model.tokenizer, self.takes_missing_inputs
        return TextContext(tokenizer, spec.architecture, spec.max_length, self.added_tokens(), optional)

    def input_pipelines(self) -> dict[str, InputPipeline]:
        """Return the reading, transforming and batching of inputs before each encoder."""
        return {name: self.input_pipeline(name) for name in self.encoders}

    def input_pipeline(self, encoder: str | None = None) -> InputPipeline:
        """Return the reading, transforming and batching of inputs before an encoder; None for the only one."""
        name = self.recipe.key("encoder").partition(".")[2] if encoder is None else encoder
        module, tiles = self.encoders[name], self.fusion_of(name).tiles
        transform = module.transform
        if transform is not None and isinstance(module.reader, ImageReader):
            transform = BoundedTransform(transform)
        transform = Tiled(transform, tiles) if tiles > 1 else transform
        return InputPipeline(module.modality, module.reader, transform, module.variable_length)

    def collator(
        self, *, training: bool, blank: bool | Collection[str] = False, task: str | None = None, skip_bad: bool = False
    ) -> Collator:
        """Return the function that collates examples into batches.

        Args:
            training: add labels, and leave a task out for examples that have no target of it.
            blank: the modalities whose inputs are blanked; true for all.
            task: the only task to collate for; None for all.
            skip_bad: leave out examples that a task refuses, as those whose input cannot be read.
        """
        layouts = {
            name: TaskLayout(module, target_of(self.recipe, name), default=takes_default(self.recipe, name))
            for name, module in self.tasks.items()
            if task is None or name == task
        }
        blanked = tuple(self.modalities if blank is True else blank or ())
        options: dict[str, Any] = {"blank": blanked, "optional": self.takes_missing_inputs, "skip_bad": skip_bad}
        return Collator(layouts, self._context, self.input_pipelines(), training=training, **options)

    # Prediction and generation

    def predict(
        self,
        image: Any = None,
        text: Any = None,
        *,
        audio: Any = None,
        video: Any = None,
        task: str | None = None,
        batch_size: int = 64,
        scores: bool = False,
        skip_bad: bool = False,
        **options: Any,
    ) -> Any:
        """Predict with the tasks; lists give lists, in order. Each of several processes predicts what it is given.

        Args:
            image: a path, ``file://`` URL, PIL image, array, or a list of them. A model with several encoders takes None for a
                missing input; a model with one needs it, unless its encoder has no input.
            text: the question or prompt, or a list; one text serves every input and one input every text.
            audio, video: likewise for encoders of these: a path, ``file://`` URL, bytes, whatever else their reader takes, or a
                list of them. An encoder of another modality has a keyword of that name.
            task: the only task to predict with; None for all.
            scores: also compute the probability of each text that a task generates, which takes one more forward pass. Classes
                always have scores.
            skip_bad: give None in place of a prediction where an input cannot be read or a text is too long, and log the reason.
                If that is so for all, it is an error.
            options: of the task, such as ``num_beams`` where it generates.

        Returns:
            A `Prediction` with ``label`` (and ``score``), or ``value``; for a model of several tasks a mapping of them by task,
            unless ``task`` names one.

        Raises:
            BadInput: an input cannot be read, BadImage for an image. DataError: lists of different lengths, or an input of
                a modality that no encoder takes. BadRecipe: an option, or an unknown task.
        """
        examples, is_list = prediction.request(self, {"image": image, "audio": audio, "video": video}, text, options)
        skipped: list[tuple[str, str]] | None = [] if skip_bad else None
        predictions = self.predict_examples(examples, batch_size=batch_size, task=task, scores=scores, skipped=skipped, **options)
        prediction.report_skipped(self, skipped or [], len(examples))
        return predictions if is_list else predictions[0]

    @torch.no_grad()
    def predict_examples(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int = 64,
        blank: bool | Collection[str] = False,
        task: str | None = None,
        scores: bool = False,
        skipped: list[tuple[str, str]] | None = None,
        **options: Any,
    ) -> list[Any]:
        """Predict `Example` objects, in order; ``blank`` names the modalities to blank, or is true for all. See `predict`.

        An example that cannot be used is an error, or, if there is a list ``skipped``, has None in place of a prediction; its id
        and the reason are added to the list.
        """
        prediction.check_task(self, task)
        collate = self.collator(training=False, blank=blank, task=task, skip_bad=skipped is not None)
        predictions: list[Any] = []
        with self.evaluating():
            for group in batches(examples, batch_size):
                batch = collate(group)
                kept = batch.get("kept", ())
                if skipped is not None:
                    skipped += raise_bad(batch)
                own = self.predict_batch(batch, scores=scores, **options) if kept or skipped is None else []
                rows = dict(zip(kept, own, strict=True))
                predictions += [rows.get(i) for i in range(len(group))]
        return predictions

    @torch.no_grad()
    def predict_batch(self, batch: dict[str, Any], *, scores: bool = False, **options: Any) -> list[Any]:
        """Predict one collated batch; see `predict`. With one task in the batch each example has a `Prediction`."""
        prediction.check_readable(self, batch)
        moved = tensors(batch, self.device)
        outputs = self.task_outputs(moved)
        results: dict[str, list[Prediction]] = {}
        for name, own in self._with_texts(moved["tasks"]).items():
            used = options if prediction.takes_options(self, name, moved["tasks"], options) else {}
            if scores and self.tasks[name].needs_generation:
                used = {**used, "scores": True}
            results[name] = self.tasks[name].predict(outputs[name], own, **used)
        if len(self.tasks) == 1 or len(results) == 1:
            return next(iter(results.values()))
        return [dict(zip(results, row, strict=True)) for row in zip(*results.values(), strict=True)]

    @torch.no_grad()
    def generate(
        self,
        image: Any = None,
        prompt: Any = None,
        *,
        audio: Any = None,
        video: Any = None,
        batch_size: int = 16,
        max_new_tokens: int = NEW_TOKENS,
        stop: str | Sequence[str] = (),
        chat: bool = False,
        **options: Any,
    ) -> Any:
        """Generate the text that follows ``prompt`` (empty if None), given inputs; lists give lists, in order.

        Args:
            image, audio, video: as `predict` takes them; several for one prompt are a list, each at an ``<image>``, ``<audio>``
                or ``<video>`` of the prompt.
            prompt: a text, or a conversation ``[{"role": "user", "content": "<image> What is it?"}, ...]``, or a list of either.
            max_new_tokens: the largest number of tokens to generate.
            stop: a text, or several, before which the answer ends.
            chat: put a text into the tokenizer's chat template, as the user's turn; conversations always are.
            options: those of `transformers.GenerationMixin.generate`, such as ``num_beams`` or ``do_sample``.

        Raises:
            DoesNotFit: the language model or the tasks do not generate text. BadRecipe: an option, or a tokenizer without chat
                template.
            DataError: placeholders and inputs differ in number, or a prompt exceeds the context. BadInput: as `predict`.
        """
        given = prediction.select_inputs(self, {"image": image, "audio": audio, "video": video}, options)
        request, is_list = generation.request(self, given, prompt, max_new_tokens=max_new_tokens, stop=stop, chat=chat, **options)
        with self.evaluating():
            texts = generation.write(self, request, batch_size)
        return texts[0] if len(texts) == 1 and not is_list else texts

    def stream(
        self,
        image: Any = None,
        prompt: Any = None,
        *,
        audio: Any = None,
        video: Any = None,
        max_new_tokens: int = NEW_TOKENS,
        stop: str | Sequence[str] = (),
        chat: bool = False,
        **options: Any,
    ) -> Iterator[str]:
        """Yield the text that `generate` returns for one prompt in pieces, each as soon as it is generated.

        Raises:
            BadRecipe: beams or several answers, which are known only at the end. Others as `generate`.
        """
        given = prediction.select_inputs(self, {"image": image, "audio": audio, "video": video}, options)
        request, is_list = generation.request(self, given, prompt, max_new_tokens=max_new_tokens, stop=stop, chat=chat, **options)
        with self.evaluating():
            yield from streaming.stream_text(self, request, is_list)

    def generate_ids(self, features: Mapping[str, Features], ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """Generate token ids [batch * returned, out] after prompts ``ids`` under ``mask`` [batch, text], padded on the left for
        causal models. ``features`` are by encoder, one row an example.

        Raises:
            BadRecipe: an option is unknown or has a wrong value. DataError: the input exceeds the context.
            PluginBroken: the language model returns another number of texts than requested.
        """
        return generation.generate_ids(self, features, ids, mask, options)

    def _fuse_before_logits(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Apply late fusions just before the vocabulary, inside the library's own decoding loop."""
        current = current_pass()
        if not current.generates:
            return None
        return (cast(fuse_late(self, current.calls, args[0]), args[0].dtype), *args[1:])

    # Description and saving

    def summary(self) -> Summary:
        """Summarise its parts: shapes, tokens, parameters, memory and licences. It can be printed."""
        return describe.summarise_model(self)

    def card(self) -> str:
        """Return the model card, in Markdown, made only from the recipe and the recorded run."""
        return describe.model_card(self)

    def saved_names(self, *, full: bool = False) -> list[str]:
        """Return the names of the tensors to save: only trained ones for pretrained parts, all for the rest. Tied weights are
        saved once. With ``full`` all tensors of all parts are saved."""
        return trainable.saved_names(self, full)

    def lock(self) -> dict[str, dict[str, Any]]:
        """Return where each pretrained part came from: source, commit and file hashes. Parts without a source are left out."""
        locks = {key: self.part(key).lock() for key, pretrained in self.provenance.pretrained.items() if pretrained}
        return {key: facts for key, facts in locks.items() if facts}

    def save(self, folder: str | Path, *, full: bool = False) -> Path:
        """Write a checkpoint folder: the trained weights (with ``full`` all weights), the recipe, the lock and the card.

        A full checkpoint needs no local folder that a part is built on: its configuration and tokenizer are saved too.

        Raises:
            CheckpointError: the folder cannot be written or the disk is full; an older checkpoint there is unchanged.
        """
        full = full or self.provenance.full
        recipe, lock = bases.standalone(self) if full else (self.recipe, self.lock())
        state = self.state_dict()
        return write_checkpoint(
            folder,
            recipe=recipe.to_dict(),
            weights={name: state[name].detach().cpu() for name in self.saved_names(full=full)},
            plugins=self.provenance.plugins(),
            lock=lock,
            run=self.provenance.run,
            card=describe.model_card(self, recipe),
            save_tokenizer=self.language_model.tokenizer.save_pretrained,
            full=full,
        )


def count_labels(labels: Tensor) -> Tensor:
    """Return the number of labels that are not `IGNORE`, or NaN for numbers."""
    return labels.isfinite().sum() if labels.is_floating_point() else (labels != IGNORE).sum()
