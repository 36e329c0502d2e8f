"""The model: encode -> fuse -> language model -> task, and nothing that knows a named part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmzoo.checkpoints import card
from mmzoo.checkpoints.folder import write_checkpoint
from mmzoo.checkpoints.summary import Summary, summarise, total_summary
from mmzoo.data.batching import batches, paired
from mmzoo.data.collate import Collator, Tiled, raise_bad, tensors
from mmzoo.errors import BadRecipe, DataError, DoesNotFit
from mmzoo.interfaces.encoder import Encoder
from mmzoo.interfaces.example import FIELD_MODALITIES, PLACEHOLDER_ID, Example
from mmzoo.interfaces.features import Features
from mmzoo.interfaces.fusion import FusedInput, Fusion
from mmzoo.interfaces.kinds import PARTS
from mmzoo.interfaces.language_model import CAUSAL, LanguageModel
from mmzoo.interfaces.part import Part
from mmzoo.interfaces.task import Prediction, Task, TextContext
from mmzoo.interfaces.task_model import States
from mmzoo.modalities.pipeline import InputPipeline
from mmzoo.modalities.reader import NONE, plural
from mmzoo.models.generation import NEW_TOKENS, check_count, check_room, checked, request, write
from mmzoo.models.sequence import pad_to_side, text_states
from mmzoo.models.streaming import stream_text
from mmzoo.models.trainable import set_training_mode
from mmzoo.recipes import licence
from mmzoo.recipes.schema import Recipe
from mmzoo.registry.entries import Entry
from mmzoo.registry.manager import plugin_manager


@dataclass
class Provenance:
    """Where a model's parts came from: the entries, the plugins with versions, and how it was trained."""

    entries: dict[str, Entry]
    policies: dict[str, str]
    pretrained: dict[str, bool]
    full: bool = False  # loaded from a checkpoint that holds every weight; it can only be saved as such again
    run: dict[str, Any] = field(default_factory=dict)

    def plugins(self) -> dict[str, str]:
        return {e.plugin: e.version for e in sorted(self.entries.values(), key=lambda e: e.plugin)}


class MultimodalModel(nn.Module):
    """An encoder, a fusion, a language model and a task, put together by `mmzoo.build`.

    Attributes:
        recipe: the `Recipe` that it was built from; what training learned from the data (labels, vocabulary) is in it.
        encoder, fusion, language_model, task: the parts.
    """

    encoder: Encoder
    fusion: Fusion
    language_model: LanguageModel
    task: Task

    def __init__(
        self, recipe: Recipe, encoder: Encoder, fusion: Fusion, language_model: LanguageModel, task: Task, provenance: Provenance
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.encoder, self.fusion, self.language_model, self.task = encoder, fusion, language_model, task
        self.provenance = provenance
        self._generating = False
        self._checkpoint_blocks = False
        fusion.deep(language_model)
        language_model.forbid_packing = "deep" in fusion.places()
        head = language_model.output_layer()
        if fusion.is_late and head is not None:
            head.register_forward_pre_hook(self._fuse_outputs)
        self.train(False)

    # The way through

    def encode(self, inputs: Tensor, index: Tensor | None = None, lengths: Tensor | None = None) -> Features:
        """Inputs [inputs, ...], or pictures in tiles [images, tiles, ...], to features; with ``index`` ([batch] or
        [batch, inputs]) one row an example. ``lengths`` [inputs] is for an encoder whose inputs vary. A frozen encoder keeps no
        graph."""
        tiles = inputs.shape[1] if self.fusion.tiles > 1 else 0
        inputs = inputs.to(self.dtype) if inputs.is_floating_point() else inputs
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.provenance.policies["encoder"] != "frozen"):
            features = self.encoder(inputs.flatten(0, 1) if tiles else inputs, *([] if lengths is None else [lengths]))
        if tiles:
            # An image's tokens are those of the whole, then of its pieces; its vector is that of the whole.
            tokens = features.tokens.unflatten(0, (-1, tiles)).flatten(1, 2)
            mask = None if features.mask is None else features.mask.unflatten(0, (-1, tiles)).flatten(1, 2)
            features = Features(tokens, features.pooled.unflatten(0, (-1, tiles))[:, 0], mask)
        return features if index is None else features.take(index)

    def batch_features(self, batch: Mapping[str, Tensor]) -> Features:
        """The features of a collated batch, one row an example: those computed beforehand, else the encoder's."""
        pooled = batch.get("feature_pooled")
        if pooled is None:
            return self.encode(batch["inputs"], batch["index"], batch.get("input_lengths"))
        tokens = batch.get("feature_tokens")
        if tokens is None:  # the fusion does not read them
            tokens = pooled.new_zeros(len(pooled), 0, self.encoder.spec.dim)
        return Features(tokens, pooled, batch.get("feature_mask")).take(batch["index"])

    def states(self, features: Features, ids: Tensor, mask: Tensor, decoder_ids: Tensor | None = None) -> States:
        """Text ids and mask [batch, text] to hidden states, through early and deep fusion. With ``decoder_ids``
        [batch, out] the states are the decoder's and ``text`` spans them all."""
        mask = mask * (ids != PLACEHOLDER_ID)
        sequence = self._sequence(features, ids, mask)
        hidden = self.language_model(
            sequence.embeddings, sequence.mask, **_given(decoder_ids=decoder_ids, memory=sequence.memory)
        )
        if decoder_ids is not None:
            return States(hidden, torch.ones_like(decoder_ids), slice(0, decoder_ids.shape[1]))
        return States(hidden, mask, sequence.text)

    def _sequence(self, features: Features, ids: Tensor, mask: Tensor, *, left: bool = False) -> FusedInput:
        """The language model's input, padded on one side, with what deep and late hooks see set on the fusion."""
        slots = ids == PLACEHOLDER_ID
        latest = None
        if bool(slots.any()):
            ids, mask = ids.masked_fill(slots, 0), mask.masked_fill(slots, 0)
            order = slots.long().argsort(dim=1, descending=True, stable=True)[:, : features.images]
            none = ~slots.any(1, keepdim=True)  # one image without a placeholder stands before the text
            order = torch.nn.functional.pad(order, (0, features.images - order.shape[1]))
            features = replace(features, at=order.masked_fill(none, -1))
            latest = (slots.cumsum(1) - 1).masked_fill(none, 0)
        self.fusion.set_features(features)
        sequence = self.fusion.early(features, self.language_model.embed(ids), mask)
        if latest is not None:
            # Only text looks back at images; what the fusion put in does not.
            seen = latest.new_full(sequence.mask.shape, -1)
            if isinstance(sequence.text, slice):
                seen[:, sequence.text] = latest
            else:
                seen.scatter_(1, sequence.text, latest)
            latest = seen
        context, length = self.language_model.spec.max_length, sequence.mask.shape[1]
        if self.fusion.added_tokens is None and context is not None and length > context:  # else it was seen when it was laid out
            raise DataError(
                f"the text and the {self.encoder.modality}'s tokens fill {length} positions, and the language model's context is "
                f"{context}; shorten the {plural(self.encoder.modality)}, or choose another fusion or language model"
            )
        sequence, moved = pad_to_side(sequence, left=left)
        self.fusion.mask = sequence.mask
        self.fusion.latest = latest if latest is None or moved is None else latest.gather(1, moved)
        return sequence

    def pooled(self, features: Features, ids: Tensor, mask: Tensor) -> Tensor:
        """One fused vector an example, [batch, dim]."""
        states = self.states(features, ids, mask)
        vector = self.language_model.pool(text_states(states.hidden, states.text), states.mask)
        return self.fusion.late(features, vector.unsqueeze(1)).squeeze(1)

    def forward(self, labels: Tensor | None = None, num_items_in_batch: Any = None, **batch: Tensor) -> dict[str, Tensor]:
        """The loss of a collated batch: summed over its labels and divided by ``num_items_in_batch``, or by their
        number. A batch of which no input could be read costs nothing."""
        if labels is None:
            return {
                "loss": sum(
                    (p.sum() * 0 for p in self.parameters() if p.requires_grad), start=torch.zeros((), device=self.device)
                )
            }
        features = self.batch_features(batch)
        total, count = self.task.loss(self, features, {"labels": labels, **batch})
        return {"loss": total / (count.clamp(min=1) if num_items_in_batch is None else num_items_in_batch)}

    def train(self, mode: bool = True) -> MultimodalModel:
        """Training or evaluation mode; what is frozen stays in evaluation mode."""
        self.training = mode
        for kind in PARTS:
            set_training_mode(getattr(self, kind), self.provenance.policies[kind], mode)
        if mode and self._checkpoint_blocks:
            for block in self.language_model.blocks():
                if not block.training:
                    block.training = True  # a frozen block recomputes only in this mode
                    for name in ("dropout", "activation_dropout"):  # what OPT and BART would then drop by themselves
                        if isinstance(getattr(block, name, None), float):
                            setattr(block, name, 0.0)
        return self

    def checkpoint_blocks(self, on: bool = True) -> None:
        """Recompute the language model's blocks in the backward pass instead of keeping their activations.

        Raises:
            DoesNotFit: its blocks cannot.
        """
        self._checkpoint_blocks = on
        if not on:
            return
        models: list[Any] = [m for m in self.language_model.modules() if hasattr(m, "activation_checkpointing_enable")]
        if not models:
            raise DoesNotFit("training.gradient_checkpointing: this language model has no blocks that can be recomputed")
        models[0].activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})

    # Use

    def text_context(self) -> TextContext:
        spec = self.language_model.spec
        added = self.fusion.added_tokens
        return TextContext(self.language_model.tokenizer, spec.architecture, spec.max_length, added, self.modality)

    def input_pipeline(self) -> InputPipeline:
        """What becomes of an input before the encoder sees it."""
        encoder = self.encoder
        transform = Tiled(encoder.transform, self.fusion.tiles) if self.fusion.tiles > 1 else encoder.transform
        return InputPipeline(encoder.modality, encoder.reader, transform, encoder.variable_length)

    def collator(self, *, training: bool, blank: bool = False) -> Collator:
        return Collator(self.task, self.text_context(), self.input_pipeline(), training=training, blank=blank)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type that it computes in: that of its first weight, which is the encoder's if that has any."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    @property
    def modality(self) -> str:
        """What it takes beside text, such as ``"image"``; where it looks at nothing, images."""
        return "image" if self.encoder.modality == NONE else self.encoder.modality

    def given(self, **inputs: Any) -> Any:
        """Of inputs by modality, that of the encoder's.

        Raises:
            DataError: another's was given.
        """
        own = self.encoder.modality
        there = [name for name, value in inputs.items() if value is not None]
        if own == NONE:
            return inputs[there[0]] if there else None
        if wrong := [name for name in there if name != own]:
            raise DataError(f"this model takes {plural(own)}: give {own}=..., not {wrong[0]}=...")
        return inputs.get(own)

    def _own(self, options: dict[str, Any]) -> dict[str, Any]:
        """An input of a modality that a plugin brings, taken out of the options that it came with."""
        own = self.encoder.modality
        return {own: options.pop(own)} if own not in FIELD_MODALITIES and own in options else {}

    def example(self, number: int, source: Any, text: str) -> Example:
        """An example of an input of the encoder's modality, or several in a list."""
        inputs = source if isinstance(source, list | tuple) else [source]
        return Example(f"#{number}", text=text).with_inputs(self.modality, inputs)

    def predict(self, image: Any = None, text: Any = None, *, audio: Any = None, batch_size: int = 64, **options: Any) -> Any:
        """What the task says of inputs and texts: `Prediction` objects with ``label`` and ``score``, or ``value``.

        Args:
            image: a path, ``file://`` URL, PIL image, array, or a list of them; None only if the model looks at nothing.
            text: the question or prompt, or a list; one text serves every input and one input every text.
            audio: in the place of ``image`` for an encoder of audio: a path, ``file://`` URL, bytes, what else its reader takes,
                or a list of them. An encoder of another modality has a keyword of that name.

        Raises:
            BadInput: one that cannot be read, BadImage for an image. DataError: lists of different lengths, or an input of
                another modality than the encoder's.
        """
        given, sees = self.given(image=image, audio=audio, **self._own(options)), self.encoder.transform is not None
        pairs, many = paired(given, text, modality=self.modality, sees=sees)
        examples = [self.example(i, source, _plain(words)) for i, (source, words) in enumerate(pairs)]
        found = self.predict_examples(examples, batch_size=batch_size, **options)
        return found if many else found[0]

    @torch.no_grad()
    def predict_examples(
        self, examples: Sequence[Example], *, batch_size: int = 64, blank: bool = False, **options: Any
    ) -> list[Prediction]:
        """Predictions of `Example` objects, in order; see `predict`."""
        collate = self.collator(training=False, blank=blank)
        found: list[Prediction] = []
        with self._evaluating():
            for group in batches(examples, batch_size):
                found += self.predict_batch(collate(group), **options)
        return found

    @torch.no_grad()
    def predict_batch(self, batch: dict[str, Any], **options: Any) -> list[Prediction]:
        """Predictions of one collated batch."""
        for name, message in raise_bad(batch):
            raise self.encoder.reader.error(f"example {name}: {message}")
        moved = tensors(batch, self.device)
        try:
            return self.task.predict(self, self.batch_features(moved), moved, **options)
        finally:
            self.fusion.set_features(None)

    @torch.no_grad()
    def generate(
        self,
        image: Any = None,
        prompt: Any = None,
        *,
        audio: Any = None,
        batch_size: int = 16,
        max_new_tokens: int = NEW_TOKENS,
        stop: str | Sequence[str] = (),
        chat: bool = False,
        **options: Any,
    ) -> Any:
        """Text that follows ``prompt`` (empty if None) given ``image`` or ``audio``, which only a model that looks at nothing can
        do without; lists give lists, in order.

        Args:
            image, audio: as `predict` takes them; several of one prompt are a list, each at an ``<image>`` or ``<audio>`` of the
                prompt.
            prompt: a text, or a conversation ``[{"role": "user", "content": "<image> What is it?"}, ...]``, or a list of either.
            stop: texts that end the answer, which does not hold them.
            chat: put a text into the tokenizer's chat template, as the user's turn; conversations always are.
            options: those of `transformers.GenerationMixin.generate`, such as ``num_beams`` or ``do_sample``.

        Raises:
            DoesNotFit: the language model does not generate, or the task writes nothing. BadRecipe: an option, or a tokenizer
                without chat template.
            DataError: placeholders and inputs differ in number, or a prompt exceeds the context. BadInput: as `predict`.
        """
        given = self.given(image=image, audio=audio, **self._own(options))
        asked, many = request(self, given, prompt, max_new_tokens=max_new_tokens, stop=stop, chat=chat, **options)
        with self._evaluating():
            found = write(self, asked, batch_size)
        return found if many else found[0] if len(found) == 1 else found

    def stream(
        self,
        image: Any = None,
        prompt: Any = None,
        *,
        audio: Any = None,
        max_new_tokens: int = NEW_TOKENS,
        stop: str | Sequence[str] = (),
        chat: bool = False,
        **options: Any,
    ) -> Iterator[str]:
        """The text that `generate` gives for one prompt, in pieces, each as soon as it is written.

        Raises:
            BadRecipe: beams or several answers, which are not known before the end; else as `generate`.
        """
        given = self.given(image=image, audio=audio, **self._own(options))
        asked, many = request(self, given, prompt, max_new_tokens=max_new_tokens, stop=stop, chat=chat, **options)
        if many or options.get("num_beams", 1) > 1 or options.get("num_return_sequences", 1) > 1:
            raise BadRecipe(f"stream: one {self.modality} and one prompt, without beams; use generate for more")
        if "streamer" in options:
            raise BadRecipe("stream: streamer: the pieces are what stream itself gives; use generate with a streamer of your own")
        with self._evaluating():
            yield from stream_text(self, asked)

    def generate_ids(self, features: Features, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """New token ids [batch * returned, out] after prompts [batch, text], padded on the left for causal models.

        Raises:
            BadRecipe: an option that is unknown, or whose value is wrong. DataError: the input exceeds the context.
            PluginBroken: the language model gives another number of texts than is asked for.
        """
        self._generating = True
        try:
            with checked(options):
                sequence = self._sequence(features, ids, mask, left=self.language_model.architecture == CAUSAL)
                check_room(self.language_model.spec, sequence.mask, options.get("max_new_tokens") or 0)
                memory = _given(memory=sequence.memory)
                out = self.language_model.generate(sequence.embeddings, sequence.mask, **memory, **options)
            entry = self.provenance.entries["language_model"]
            check_count(out, len(ids) * (options.get("num_return_sequences") or 1), entry)
            return out
        finally:
            self._generating = False
            self.fusion.set_features(None)

    def _fuse_outputs(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Late fusion just before the vocabulary, inside the library's own decoding loop."""
        if not self._generating:
            return None
        features = self.fusion.features_for(args[0].shape[0])
        return None if features is None else (self.fusion.late(features, args[0]), *args[1:])

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        before = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(before)

    # What it is, and keeping it

    def summary(self) -> Summary:
        """Its parts with dims, tokens, parameters, memory and licence; printable."""
        rows = []
        for kind in PARTS:
            module: Part = getattr(self, kind)
            entry = self.provenance.entries[kind]
            rows.append(
                summarise(
                    kind,
                    module,
                    use=getattr(self.recipe, kind).use,
                    shape=self._shape(kind),
                    policy=self.provenance.policies[kind],
                    license=licence.of_part(kind, getattr(self.recipe, kind)),
                    source=entry.source,
                )
            )
        buffers = sum(b.numel() * b.element_size() for b in self.buffers())
        licences = licence.of_recipe(self.recipe, self.provenance.run.get("weights"))
        return total_summary(self.recipe.name or "unnamed", rows, buffers, licences)

    def _shape(self, kind: str) -> str:
        vision, text = self.encoder.spec, self.language_model.spec
        if kind == "encoder" and self.encoder.transform is None:
            return "looks at nothing"
        if kind == "encoder":
            tokens = (
                "pooled only"
                if vision.tokens == 0
                else f"{'any' if vision.tokens is None else vision.tokens} tokens x {vision.dim}"
            )
            return f"{tokens}, pooled {vision.pooled_dim}"
        if kind == "fusion":
            added = self.fusion.added_tokens
            places = " and ".join(self.fusion.places()) or "nowhere"
            return f"{places}, {'+' + str(added) + ' tokens' if added else 'no added tokens'}"
        if kind == "language_model":
            return f"{text.architecture}, dim {text.dim}, {text.vocab_size} words, context {text.max_length or 'unlimited'}"
        return getattr(self.task, "shape", "")

    def saved_names(self, *, full: bool = False) -> list[str]:
        """The state that a checkpoint holds: of a pretrained part what was trained of it, of any other part all of it.
        Weights that are shared stand once."""
        once = {name for name, _ in self.named_parameters()}
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        names = []
        for name in self.state_dict():
            kind = name.split(".", 1)[0]
            is_buffer = name not in once
            if is_buffer and self._is_parameter(name):
                continue  # the second name of a shared weight
            locked = self.provenance.pretrained[kind] and not full
            policy_name = self.provenance.policies[kind]
            if not locked or policy_name == "full" or name in trained or (is_buffer and policy_name != "frozen"):
                names.append(name)
        return names

    def _is_parameter(self, name: str) -> bool:
        owner, _, leaf = name.rpartition(".")
        return leaf in self.get_submodule(owner)._parameters

    def lock(self) -> dict[str, dict[str, Any]]:
        """Where each pretrained part came from: source, commit and file hashes."""
        found = {kind: getattr(self, kind).lock() for kind in PARTS if self.provenance.pretrained[kind]}
        return {kind: facts for kind, facts in found.items() if facts}

    def save(self, folder: str | Path, *, full: bool = False) -> Path:
        """Write a checkpoint folder: the weights that were trained (``full``: all), the recipe, the lock, the card.

        Raises:
            CheckpointError: the folder cannot be written or the disk is full; an older checkpoint there stays whole.
        """
        full = full or self.provenance.full
        state = self.state_dict()
        weights = {name: state[name].detach().cpu() for name in self.saved_names(full=full)}
        return write_checkpoint(
            folder,
            recipe=self.recipe.to_dict(),
            weights=weights,
            plugins=self.provenance.plugins(),
            lock=self.lock(),
            run=self.provenance.run,
            card=self.card(),
            save_tokenizer=self.language_model.tokenizer.save_pretrained,
            full=full,
        )

    def card(self) -> str:
        """The model card, in Markdown, from the recipe and the recorded run only."""
        run = self.provenance.run
        sections = [s for found in plugin_manager().manager.hook.mmzoo_card_sections(model=self, run=run) for s in found]
        generates = self.task.needs_generation
        return card.render(
            self.recipe,
            self.summary(),
            run,
            generates=generates,
            modality=self.modality,
            folder=card.HERE,
            sections=sections,
        )


def _plain(words: Any) -> str:
    if isinstance(words, list | tuple):
        raise DataError("a conversation is for model.generate; predict takes a text")
    return words or ""


def _given(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not None: a language model that is given none of them need not take them."""
    return {name: value for name, value in arguments.items() if value is not None}
