"""Define `MultimodalModel`: encode inputs, fuse them with text, run the language model, and apply the task.

The model uses its parts only through their interfaces. Generation, the summary and the choice of tensors to save are functions
in the modules beside this one; the methods here call them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmzoo.checkpoints.folder import write_checkpoint
from mmzoo.checkpoints.summary import Summary
from mmzoo.data.batching import batches
from mmzoo.data.collate import Collator, Tiled, tensors
from mmzoo.errors import DataError
from mmzoo.interfaces import Encoder, Example, Features, Fusion, LanguageModel, Prediction, States, Task, TextContext
from mmzoo.interfaces.example import PLACEHOLDER_ID
from mmzoo.interfaces.kinds import PARTS
from mmzoo.modalities.pipeline import InputPipeline
from mmzoo.modalities.reader import NONE
from mmzoo.models import describe, generation, prediction, streaming, trainable
from mmzoo.models.generation import NEW_TOKENS
from mmzoo.models.sequence import drop_none, fuse_input, text_states
from mmzoo.recipes.schema import Recipe
from mmzoo.registry.entries import Entry


@dataclass
class Provenance:
    """Record where a model's parts came from and how it was trained. The mappings have an item for each part."""

    entries: dict[str, Entry]
    policies: dict[str, str]  # of training
    pretrained: dict[str, bool]  # whether it has pretrained weights
    full: bool = False  # whether it comes from a checkpoint that holds every weight; it must be saved that way again
    run: dict[str, Any] = field(default_factory=dict)  # run.json: training, evaluations, and where weights of parts came from

    def plugins(self) -> dict[str, str]:
        """Return the version of each plugin that a part comes from."""
        return {e.plugin: e.version for e in sorted(self.entries.values(), key=lambda e: e.plugin)}


class MultimodalModel(nn.Module):
    """Hold an encoder, a fusion, a language model and a task, and run them as one model. Made by `mmzoo.build`.

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
        self._generating = self._recomputes_blocks = False
        fusion.deep(language_model)
        language_model.forbid_packing = "deep" in fusion.places()
        head = language_model.output_layer()
        if fusion.is_late and head is not None:
            head.register_forward_pre_hook(self._fuse_before_logits)
        self.train(False)

    # The forward pass

    def encode(self, inputs: Tensor, index: Tensor | None = None, lengths: Tensor | None = None) -> Features:
        """Compute the features of inputs. A frozen encoder builds no graph.

        Args:
            inputs: [inputs, ...], or [images, tiles, ...] where the fusion cuts images into tiles.
            index: [batch] or [batch, inputs], the inputs of each example, -1 for none; the features then have one row an example.
            lengths: [inputs], the real length of each input, for an encoder of variable length.
        """
        tiles = inputs.shape[1] if self.fusion.tiles > 1 else 0
        inputs = inputs.to(self.dtype) if inputs.is_floating_point() else inputs
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.provenance.policies["encoder"] != "frozen"):
            features = self.encoder(inputs.flatten(0, 1) if tiles else inputs, *([] if lengths is None else [lengths]))
        if tiles:
            # An image has the tokens of the whole, then of its tiles; its pooled vector is that of the whole.
            tokens = features.tokens.unflatten(0, (-1, tiles)).flatten(1, 2)
            mask = None if features.mask is None else features.mask.unflatten(0, (-1, tiles)).flatten(1, 2)
            features = Features(tokens, features.pooled.unflatten(0, (-1, tiles))[:, 0], mask)
        return features if index is None else features.take(index)

    def batch_features(self, batch: Mapping[str, Tensor]) -> Features:
        """Return the features of a collated batch, one row an example: precomputed ones if it has them, else the encoder's."""
        pooled = batch.get("feature_pooled")
        if pooled is None:
            return self.encode(batch["inputs"], batch["index"], batch.get("input_lengths"))
        tokens = batch.get("feature_tokens")
        if tokens is None:  # the fusion does not read them
            tokens = pooled.new_zeros(len(pooled), 0, self.encoder.spec.dim)
        return Features(tokens, pooled, batch.get("feature_mask")).take(batch["index"])

    def states(self, features: Features, ids: Tensor, mask: Tensor, decoder_ids: Tensor | None = None) -> States:
        """Compute the hidden states of a text through early and deep fusion.

        Args:
            features: one row an example.
            ids, mask: [batch, text]; an id of `PLACEHOLDER_ID` marks the place of an input.
            decoder_ids: [batch, out], for a seq2seq model: the states are then its decoder's, and ``text`` spans all of them.
        """
        mask = mask * (ids != PLACEHOLDER_ID)
        fused = fuse_input(self, features, ids, mask)
        hidden = self.language_model(fused.embeddings, fused.mask, **drop_none(decoder_ids=decoder_ids, memory=fused.memory))
        if decoder_ids is not None:
            return States(hidden, torch.ones_like(decoder_ids), slice(0, decoder_ids.shape[1]))
        return States(hidden, mask, fused.text)

    def pooled(self, features: Features, ids: Tensor, mask: Tensor) -> Tensor:
        """Compute one fused vector for each example, [batch, dim], from ``ids`` and ``mask`` [batch, text]."""
        states = self.states(features, ids, mask)
        vector = self.language_model.pool(text_states(states.hidden, states.text), states.mask)
        return self.fusion.late(features, vector.unsqueeze(1)).squeeze(1)

    def forward(self, labels: Tensor | None = None, num_items_in_batch: Any = None, **batch: Tensor) -> dict[str, Tensor]:
        """Compute the loss of a collated batch.

        Args:
            labels: as the task collates them; None if no input of the batch could be read: the loss is then zero.
            num_items_in_batch: what to divide the summed loss by; None for the number of labels.
            batch: the other tensors of the batch.
        """
        if labels is None:
            zero = torch.zeros((), device=self.device)
            return {"loss": sum((p.sum() * 0 for p in self.parameters() if p.requires_grad), start=zero)}
        features = self.batch_features(batch)
        total, count = self.task.loss(self, features, {"labels": labels, **batch})
        return {"loss": total / (count.clamp(min=1) if num_items_in_batch is None else num_items_in_batch)}

    def train(self, mode: bool = True) -> MultimodalModel:
        """Set training or evaluation mode; frozen parts stay in evaluation mode."""
        self.training = mode
        for kind in PARTS:
            trainable.set_training_mode(getattr(self, kind), self.provenance.policies[kind], mode)
        if mode and self._recomputes_blocks:
            trainable.train_frozen_blocks(self.language_model)
        return self

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Set evaluation mode within a ``with`` block, and the previous mode after it."""
        before = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(before)

    def checkpoint_blocks(self, on: bool = True) -> None:
        """Recompute the language model's blocks in the backward pass instead of keeping their activations.

        Raises:
            DoesNotFit: its blocks do not support that.
        """
        self._recomputes_blocks = on
        if on:
            trainable.recompute_blocks(self.language_model)

    @property
    def device(self) -> torch.device:
        """Return the device of its weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Return the floating-point type of its first weight, which is the encoder's if that has any; float32 without weights."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    # What its parts decide about texts and inputs

    @property
    def modality(self) -> str:
        """Return the modality that it takes beside text, such as ``"image"``; ``"image"`` for an encoder without input."""
        return "image" if self.encoder.modality == NONE else self.encoder.modality

    def text_context(self) -> TextContext:
        """Return what tasks need to lay out text: tokenizer, architecture, context length, added tokens and modality."""
        tokenizer, spec = self.language_model.tokenizer, self.language_model.spec
        return TextContext(tokenizer, spec.architecture, spec.max_length, self.fusion.added_tokens, self.modality)

    def input_pipeline(self) -> InputPipeline:
        """Return the reading, transforming and batching of inputs before the encoder."""
        encoder = self.encoder
        transform = Tiled(encoder.transform, self.fusion.tiles) if self.fusion.tiles > 1 else encoder.transform
        return InputPipeline(encoder.modality, encoder.reader, transform, encoder.variable_length)

    def collator(self, *, training: bool, blank: bool = False) -> Collator:
        """Return the function that collates examples into batches; ``training`` adds labels, ``blank`` blanks every input."""
        return Collator(self.task, self.text_context(), self.input_pipeline(), training=training, blank=blank)

    # Prediction and generation

    def predict(self, image: Any = None, text: Any = None, *, audio: Any = None, batch_size: int = 64, **options: Any) -> Any:
        """Predict with the task: `Prediction` objects with ``label`` and ``score``, or ``value``; lists give lists, in order.

        Args:
            image: a path, ``file://`` URL, PIL image, array, or a list of them; None only if the encoder has no input.
            text: the question or prompt, or a list; one text serves every input and one input every text.
            audio: in place of ``image`` for an encoder of audio: a path, ``file://`` URL, bytes, whatever else its reader takes,
                or a list of them. An encoder of another modality has a keyword of that name.
            options: of the task, such as ``num_beams`` where it generates.

        Raises:
            BadInput: an input cannot be read, BadImage for an image. DataError: lists of different lengths, or an input of
                another modality than the encoder's. BadRecipe: an option.
        """
        source = prediction.select_input(self, {"image": image, "audio": audio}, options)
        pairs, is_list = prediction.pair_inputs(self, source, text)
        if any(isinstance(words, list | tuple) for _, words in pairs):
            raise DataError("predict takes a text; a conversation is for model.generate")
        examples = [prediction.make_example(self, i, one, words or "") for i, (one, words) in enumerate(pairs)]
        predictions = self.predict_examples(examples, batch_size=batch_size, **options)
        return predictions if is_list else predictions[0]

    @torch.no_grad()
    def predict_examples(
        self, examples: Sequence[Example], *, batch_size: int = 64, blank: bool = False, **options: Any
    ) -> list[Prediction]:
        """Predict `Example` objects, in order; ``blank`` blanks their inputs. See `predict`."""
        collate = self.collator(training=False, blank=blank)
        predictions: list[Prediction] = []
        with self.evaluating():
            for group in batches(examples, batch_size):
                predictions += self.predict_batch(collate(group), **options)
        return predictions

    @torch.no_grad()
    def predict_batch(self, batch: dict[str, Any], **options: Any) -> list[Prediction]:
        """Predict one collated batch; see `predict`."""
        prediction.check_readable(self, batch)
        on_device = tensors(batch, self.device)
        try:
            return self.task.predict(self, self.batch_features(on_device), on_device, **options)
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
        """Generate the text that follows ``prompt`` (empty if None), given ``image`` or ``audio``; lists give lists, in order.

        Args:
            image, audio: as `predict` takes them; several for one prompt are a list, each at an ``<image>`` or ``<audio>`` of the
                prompt. Only a model whose encoder has no input can do without.
            prompt: a text, or a conversation ``[{"role": "user", "content": "<image> What is it?"}, ...]``, or a list of either.
            max_new_tokens: the largest number of tokens to generate.
            stop: a text, or several, before which the answer ends.
            chat: put a text into the tokenizer's chat template, as the user's turn; conversations always are.
            options: those of `transformers.GenerationMixin.generate`, such as ``num_beams`` or ``do_sample``.

        Raises:
            DoesNotFit: the language model or the task does not generate text. BadRecipe: an option, or a tokenizer without chat
                template.
            DataError: placeholders and inputs differ in number, or a prompt exceeds the context. BadInput: as `predict`.
        """
        source = prediction.select_input(self, {"image": image, "audio": audio}, options)
        request, is_list = generation.request(
            self, source, prompt, max_new_tokens=max_new_tokens, stop=stop, chat=chat, **options
        )
        with self.evaluating():
            texts = generation.write(self, request, batch_size)
        return texts[0] if len(texts) == 1 and not is_list else texts

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
        """Yield the text that `generate` returns for one prompt in pieces, each as soon as it is generated.

        Raises:
            BadRecipe: beams or several answers, which are known only at the end. Others as `generate`.
        """
        source = prediction.select_input(self, {"image": image, "audio": audio}, options)
        request, is_list = generation.request(
            self, source, prompt, max_new_tokens=max_new_tokens, stop=stop, chat=chat, **options
        )
        with self.evaluating():
            yield from streaming.stream_text(self, request, is_list)

    def generate_ids(self, features: Features, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """Generate token ids [batch * returned, out] after prompts ``ids`` under ``mask`` [batch, text], padded on the left for
        causal models.

        Raises:
            BadRecipe: an option is unknown or has a wrong value. DataError: the input exceeds the context.
            PluginBroken: the language model returns another number of texts than requested.
        """
        self._generating = True
        try:
            return generation.generate_ids(self, features, ids, mask, options)
        finally:
            self._generating = False
            self.fusion.set_features(None)

    def _fuse_before_logits(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Apply late fusion just before the vocabulary, inside the library's own decoding loop."""
        if not self._generating:
            return None
        features = self.fusion.features_for(args[0].shape[0])
        return None if features is None else (self.fusion.late(features, args[0]), *args[1:])

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
        locks = {kind: getattr(self, kind).lock() for kind in PARTS if self.provenance.pretrained[kind]}
        return {kind: facts for kind, facts in locks.items() if facts}

    def save(self, folder: str | Path, *, full: bool = False) -> Path:
        """Write a checkpoint folder: the trained weights (with ``full`` all weights), the recipe, the lock and the card.

        Raises:
            CheckpointError: the folder cannot be written or the disk is full; an older checkpoint there is unchanged.
        """
        full = full or self.provenance.full
        state = self.state_dict()
        return write_checkpoint(
            folder,
            recipe=self.recipe.to_dict(),
            weights={name: state[name].detach().cpu() for name in self.saved_names(full=full)},
            plugins=self.provenance.plugins(),
            lock=self.lock(),
            run=self.provenance.run,
            card=self.card(),
            save_tokenizer=self.language_model.tokenizer.save_pretrained,
            full=full,
        )
