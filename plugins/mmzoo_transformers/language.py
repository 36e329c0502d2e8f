"""Wrap language models of the transformers library (Apache-2.0; each checkpoint has its own licence).

Causal: GPT-2 (Radford et al. 2019), OPT (https://arxiv.org/abs/2205.01068), SmolLM2 (https://arxiv.org/abs/2502.02737), Qwen3
(https://arxiv.org/abs/2505.09388), and every other that the library can load by its type. Bidirectional: BERT
(https://arxiv.org/abs/1810.04805). Sequence to sequence: T5 (https://arxiv.org/abs/1910.10683).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedConfig, RepetitionPenaltyLogitsProcessor
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
)

from mmzoo.api import (
    BIDIRECTIONAL,
    CAUSAL,
    SEQ2SEQ,
    BadRecipe,
    CrossAttentionStates,
    DoesNotFit,
    LanguageModel,
    LanguageSpec,
    Options,
    Source,
    SourceError,
    WholeModel,
    class_for,
    config_of,
    construct_model,
    explain_errors,
    load_backbone,
    quiet,
)
from mmzoo_transformers import bytes as byte_level
from mmzoo_transformers import frozen, towers, unpadded
from mmzoo_transformers.around import Around, States
from mmzoo_transformers.blocks import find_blocks, uncalled
from mmzoo_transformers.probe import Findings, probe
from mmzoo_transformers.vision import CARRIED, HFVision, check_source

GENERATION = "generation_config.json"
DECODER = "bert-decoder"  # the entry for encoders that write
CHECKPOINT = "checkpoint"  # means the tokenizer that is stored in the checkpoint folder only
# What no pass on the meta device shows; `python -m experiments.families` does.
MISFITS = {"mra": "without a kernel of its own for a GPU its attention is zero, and no gradient reaches what is before it"}
NEW_TOKENS = 64  # the limit if a caller gives none


class LanguageOptions(Options):
    """Hold the options of `HFCausal`, `HFEncoder` and `HFSeq2Seq`."""

    variant: str = Field("", description="id on the Hub, or a local folder")
    revision: str | None = Field(None, description="branch, tag or commit; empty for the main branch")
    config: dict[str, Any] | None = Field(
        None, description="build from this configuration (with its `model_type`) and fetch nothing; random weights only"
    )
    tokenizer: str | None = Field(
        None,
        description="another tokenizer: `id[@revision]`, a folder, `bytes`, which needs no file, or `checkpoint`, the one in the "
        "folder that a checkpoint is loaded from; empty for the model's own, and for `bytes` with a config",
    )

    @model_validator(mode="after")
    def _some_source(self) -> LanguageOptions:
        check_source(self.variant, self.config)
        return self


class _HFLanguageModel(LanguageModel):
    """Hold what the three architectures have in common."""

    Options: ClassVar[type[BaseModel]] = LanguageOptions
    default_train: ClassVar[str] = "frozen"
    pretrainable: ClassVar[bool] = True

    def __init__(self, options: LanguageOptions) -> None:
        """Build the model from its configuration, with random weights.

        Raises:
            SourceError: the configuration cannot be fetched or read.
            DoesNotFit: the model is of another kind.
            BadRecipe: ``config`` is not a configuration.
        """
        super().__init__()
        self.options = options
        # A subclass has other options.
        self._keeps_tokenizer, self._data = options.tokenizer == CHECKPOINT, options.config
        self.source = None if options.config is not None else Source(options.variant, options.revision, carried=CARRIED)
        self.name = options.variant if self.source is not None else f"a {options.config['model_type']}"  # type: ignore[index]
        config = config_of(options.config) if self.source is None else self.source.config()  # type: ignore[arg-type]
        self._within: str | WholeModel = ""  # the larger model in the source, if this is a part of one
        self._class, self._config, self._extra = self._plan(config)
        with explain_errors(f"'{self.name}' cannot be built", BadRecipe if self.source is None else SourceError):
            self.model: Any = construct_model(self._class, self._config, **self._extra)
        self._pretrained, self._found = False, Findings()
        self._tokenizer: Any = None
        self._tokenizer_source: Source | None = None
        embedding = word_embeddings(self.model)
        if embedding is None:
            raise DoesNotFit(f"'{self.name}' has no table of word embeddings; choose another language model")
        self._set_up()
        self._found = probe(self)
        self.spec = LanguageSpec(
            architecture=self.architecture,
            dim=embedding.embedding_dim,
            vocab_size=embedding.num_embeddings,
            max_length=self._max_length(),
            generates=self.generates and self._found.generates,
            # Deep fusion is sized by dim; OPT-350m's blocks are wider than its embeddings.
            blocks=len(self.blocks()) if self._width() == embedding.embedding_dim else 0,
        )

    def _plan(self, config: PreTrainedConfig) -> tuple[Any, PreTrainedConfig, dict[str, Any]]:
        """Return the model class, its configuration, and options of its constructor."""
        raise NotImplementedError

    def _plan_inner(self, config: PreTrainedConfig) -> tuple[Any, PreTrainedConfig, dict[str, Any]] | None:
        """Return what `_plan` does for the text model of a larger model; None for any other configuration."""
        inner = towers.text_model(config)
        if inner is None:
            return None
        if inner.architecture != self.architecture:
            raise self._wrong_kind(config, inner.architecture)
        self._within = inner.within
        return inner.cls, inner.config, inner.options

    def _set_up(self) -> None:
        """Prepare ``self.model``; called for each new one."""

    def _look_around(self, bases: Iterable[Any], width: int) -> Around:
        """Return what stands around the output layer; ``bases`` are the modules that may give the last states."""
        output = self.model.get_output_embeddings()
        with explain_errors(f"'{self.name}' cannot be run from embeddings", DoesNotFit):
            around = None if output is None else Around.of(self.model, bases, output, width)
        if around is None:
            raise DoesNotFit(f"'{self.name}' has no separate output layer; choose another language model")
        return around

    @property
    def has_pretrained(self) -> bool:
        return self.source is not None

    def load_pretrained(self) -> None:
        """Replace the model by one with the pretrained weights.

        Raises:
            SourceError: the weights cannot be fetched or read, or are another model's.
        """
        if self.source is None:
            raise SourceError("config: it has no pretrained weights; set pretrained: false, or give a variant instead")
        commit = self.source.commit
        self.model = load_backbone(self._class, self._config, self.source, within=self._within, **self._extra)
        if commit != self.source.commit:  # the source moved to a commit with safetensors
            self._tokenizer = None
        self._pretrained = True
        self._set_up()
        self._found = probe(self)

    def library_output(self, mask: Tensor, **inputs: Tensor) -> Tensor:
        """Return the logits that the library's class computes of ``input_ids`` or ``inputs_embeds``; states if it has none."""
        raise NotImplementedError

    def own_output(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Return the same as this class computes it."""
        raise NotImplementedError

    def passes_embeddings(self) -> bool:
        """Return whether the class hands embeddings on when it generates."""
        return True

    def keeps_apart(self, embeddings: Tensor, mask: Tensor) -> bool:
        """Return whether texts that training lays out in one row get the states that they have in rows of their own."""
        return False

    def _rows(self, model: Any, embeddings: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """Return the last states [batch, positions, width] of a module; those at padding are undefined."""

        def run(rows: Tensor, mask: Tensor) -> Tensor:
            rows = rows.clone() if self._found.overwrites else rows
            return model(inputs_embeds=rows, attention_mask=mask, **options).last_hidden_state

        # A deep fusion needs all rows and positions.
        if not self._found.mixes_padding or self.forbid_packing or mask.all():
            return run(embeddings, mask)
        states = embeddings.new_zeros(*mask.shape, 0)
        for rows, real in by_length(mask):
            texts = embeddings[rows][real].unflatten(0, (len(rows), -1))
            own = run(texts, mask.new_ones(texts.shape[:2]))
            if not states.shape[-1]:
                states = own.new_zeros(*mask.shape, own.shape[-1])
            row, position = real.nonzero(as_tuple=True)
            states = states.index_put((rows[row], position), own.flatten(0, 1))
        return states

    def lock(self) -> dict[str, Any]:
        if self.source is None or not self._pretrained:
            return {}
        _ = self.tokenizer
        if self.generates:
            self.source.find(GENERATION)
        lock = self.source.lock()
        if self._tokenizer_source is not None and self._tokenizer_source is not self.source:
            other = self._tokenizer_source.lock()
            lock["files"].update({f"{other['id']}:{name}": digest for name, digest in other["files"].items()})
        return lock

    def standalone_options(self) -> dict[str, Any] | None:
        if self.source is None:
            return None
        ids, config = self._own_ids(), self.source.portable_config()
        # Beside another tokenizer the ids of the configuration have no meaning.
        config |= {name: ids.get(name) for name in ("bos_token_id", "eos_token_id", "decoder_start_token_id")}
        tokenizer = self.options.tokenizer if self.options.tokenizer == byte_level.NAME else CHECKPOINT
        own = self.options.model_dump(exclude_defaults=True, exclude={"variant", "revision"})
        return {**own, "config": {name: value for name, value in config.items() if value is not None}, "tokenizer": tokenizer}

    @property
    def tokenizer(self) -> Any:
        """Return the tokenizer, loaded on first use; one without a padding token pads with its end token.

        Raises:
            SourceError: it cannot be fetched or read.
            DoesNotFit: it has more tokens than the model has embeddings.
        """
        if self._tokenizer is None:
            chosen = self.options.tokenizer or (byte_level.NAME if self.source is None else None)
            if chosen == CHECKPOINT:
                raise SourceError(
                    "language_model.tokenizer: 'checkpoint' is stored in a checkpoint's folder; load that, or name another one"
                )
            if chosen == byte_level.NAME:
                tokenizer = byte_level.byte_tokenizer(self.architecture)
            else:
                if chosen is None:
                    self._tokenizer_source = self.source
                else:
                    name, _, revision = chosen.partition("@")
                    self._tokenizer_source = Source(name, revision or None)
                try:
                    tokenizer = self._tokenizer_source.tokenizer()  # type: ignore[union-attr]
                except SourceError as error:
                    if self._pretrained:
                        raise
                    fix = f"without the weights another one serves too: language_model.tokenizer={byte_level.NAME} needs no file"
                    raise type(error)(f"{error}; {fix}") from error
            if self.generates and tokenizer.eos_token_id is None:
                tokenizer.eos_token = tokenizer.sep_token  # BERT's, which also GPT-2s in Chinese have
            self._tokenizer = self._fitting(tokenizer, chosen or self.name)
        return self._tokenizer

    @property
    def has_local_tokenizer(self) -> bool:
        chosen = self.options.tokenizer
        if chosen in (CHECKPOINT, byte_level.NAME) or (chosen is None and self.source is None):
            return chosen != CHECKPOINT
        return (self.source.folder is not None) if chosen is None else Path(chosen).is_dir()  # type: ignore[union-attr]

    def _fitting(self, tokenizer: Any, name: str) -> Any:
        if len(tokenizer) > self.spec.vocab_size:
            raise DoesNotFit(
                f"language_model.tokenizer: '{name}' has {len(tokenizer)} tokens, and '{self.name}' "
                f"has embeddings for {self.spec.vocab_size}; choose the model's own tokenizer, or a larger vocab_size"
            )
        return tokenizer

    def restore(self, folder: Path) -> None:
        if self._keeps_tokenizer:
            with quiet():  # the library warns that it does not know the type in the folder's config.json
                self._tokenizer = self._fitting(Source(str(folder)).tokenizer(), CHECKPOINT)

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids)

    def blocks(self) -> Sequence[nn.Module]:
        return find_blocks(self.model)

    @property
    def runs_all_blocks(self) -> bool:
        return not self._found.mixes_padding  # else a batch has a pass for each length

    def uncalled(self, module: nn.Module) -> Collection[str]:
        return uncalled(module) or super().uncalled(module)

    def _width(self) -> int | None:
        return getattr(self._config.get_text_config(), "hidden_size", None)

    def _max_length(self) -> int | None:
        config = self._config.get_text_config()
        # Not n_positions: GPT-2 also has the first name, and T5's is only the length that it was trained on.
        for key in ("max_position_embeddings", "max_sequence_length", "max_seq_len"):
            length = getattr(config, key, None)
            if isinstance(length, int) and length > 0:
                return length - position_offset(self.model)
        return None

    def _set_generation(self) -> None:
        """Remove the checkpoint's sampling settings, so that decoding is greedy by default; `_own_ids` keeps its special ids."""
        self.model.generation_config = GenerationConfig()

    def _generation(self, options: dict[str, Any], used: int = 0) -> dict[str, Any]:
        """Return the options of `generate`, with greedy decoding and the ids that end and pad a text filled in.

        ``used`` is the number of positions of the context that are taken.
        """
        ends = {"pad_token_id": self.tokenizer.pad_token_id, "eos_token_id": self.end_ids or None}
        filled = {"do_sample": False, **ends, **options}
        if filled.get("max_length") is None and filled.get("max_new_tokens") is None:
            room = NEW_TOKENS if self.spec.max_length is None else self.spec.max_length - used
            filled["max_new_tokens"] = max(1, min(NEW_TOKENS, room))
        return filled

    @property
    def end_ids(self) -> list[int]:
        ends = super().end_ids  # first: where the tokenizer is the Hub's, the ids are too
        own = self._own_ids().get("eos_token_id")
        return sorted({*ends, *(own if isinstance(own, list) else [own] if isinstance(own, int) else [])})

    def _own_ids(self) -> dict[str, Any]:
        """Return the special ids that the checkpoint names, unless another tokenizer gives them other meanings."""
        if self._keeps_tokenizer:
            return self._data or {}
        if self.source is None or self.options.tokenizer is not None:
            return {}
        config = self.source.json("config.json")
        text = config.get("text_config") if self._within else None
        generation = {} if self.source.is_carried else self.source.json(GENERATION)
        return {**config, **(text if isinstance(text, dict) else {}), **generation}

    def _wrong_kind(self, config: PreTrainedConfig, architecture: str = "") -> DoesNotFit:
        """Return the error for a configuration of another kind; ``architecture`` is that of the text model in a larger model."""
        # The likely entry comes first; one that refuses too is not named.
        entries = {"hf-causal": HFCausal, "hf-seq2seq": HFSeq2Seq, "hf-encoder": HFEncoder, "hf-vision": HFVision}
        likely = next(
            (name for name, cls in entries.items() if getattr(cls, "architecture", "") == architecture), kind_of(config)
        )
        order = {name: entries[name] for name in sorted(entries, key=lambda name: name != likely)}
        entry = DECODER if likely == DECODER else towers.entry_that_takes(self, order)
        advice = f"write '{entry}:{self.name}'" if entry and self.source else "choose another entry"
        if self.architecture == CAUSAL and entry == "hf-encoder" and can_decode(config):
            advice += f", or '{DECODER}:{self.name}' to have it write" if self.source else f", such as {DECODER}"
        return DoesNotFit(f"'{self.name}' is a {config.model_type} model, not a {self.architecture} language model; {advice}")


def kind_of(config: PreTrainedConfig) -> str | None:
    """Return the name of the entry for a configuration; None if there is none."""
    if config.is_encoder_decoder:
        return "hf-seq2seq" if class_for(config, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING) else None
    if class_for(config, MODEL_FOR_MASKED_LM_MAPPING):
        return DECODER if getattr(config, "is_decoder", False) and can_decode(config) else "hf-encoder"
    if class_for(config, MODEL_FOR_CAUSAL_LM_MAPPING):
        return "hf-causal"
    cls = class_for(config, MODEL_MAPPING)
    return None if cls is None else "hf-vision" if cls.main_input_name == "pixel_values" else "hf-encoder"


def can_decode(config: PreTrainedConfig) -> bool:
    """Return whether a masked language model can run with a causal mask and generate from embeddings."""
    cls = class_for(config, MODEL_FOR_CAUSAL_LM_MAPPING)
    if cls is None or config.is_encoder_decoder or not hasattr(config, "is_decoder"):
        return False
    parameters = inspect.signature(cls.prepare_inputs_for_generation).parameters
    return class_for(config, MODEL_FOR_MASKED_LM_MAPPING) is not None and "inputs_embeds" in parameters


def by_length(mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows [count] of a mask [batch, positions] that have as many real positions, and which those are [count,
    positions]; rows without any are left out."""
    lengths = mask.sum(1)
    for length in lengths.unique().tolist():
        if length:
            rows = (lengths == length).nonzero()[:, 0]
            yield rows, mask[rows].bool()


def word_embeddings(model: Any) -> nn.Embedding | None:
    """Return a model's table of word embeddings; None if it has none."""
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:  # of characters, as CANINE
        return None
    return table if isinstance(table, nn.Embedding) else None


def position_offset(model: nn.Module) -> int:
    """Return the index of the first position: RoBERTa and its relatives count from behind the padding token's id."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


class HFCausal(_HFLanguageModel):
    """Run a causal language model.

    Hidden states are those that `output_layer` turns into logits: after the final norm and, for OPT, the final projection.
    """

    architecture: ClassVar[str] = CAUSAL
    generates: ClassVar[bool] = True

    def _plan(self, config: PreTrainedConfig) -> tuple[Any, PreTrainedConfig, dict[str, Any]]:
        if (inner := self._plan_inner(config)) is not None:
            return inner
        if kind_of(config) != "hf-causal":
            raise self._wrong_kind(config)
        if getattr(config, "is_decoder", True) is False:  # it would attend to what comes after
            config = copy.deepcopy(config)
            config.is_decoder = True
        return class_for(config, MODEL_FOR_CAUSAL_LM_MAPPING), config, {}

    def __init__(self, options: LanguageOptions) -> None:
        self._fast = [False]
        super().__init__(options)

    def _set_up(self) -> None:
        unpadded.fuse_activations(self.model, self._fast)
        frozen.prepare(self.model, self._fast)
        output = self.model.get_output_embeddings()
        if output is None:
            raise DoesNotFit(f"'{self.name}' has no separate output layer; choose another language model")
        wide, narrow = output.weight.shape[1], self.model.get_input_embeddings().weight.shape[1]
        if wide != narrow:
            raise DoesNotFit(
                f"'{self.name}' reads embeddings of {narrow} channels and gives states of {wide}; choose another one"
            )
        # Llama 4's base model and decoder are itself, OPT's base model is not called, and ModernBERT's decoder is a layer.
        bases = (self.model.get_decoder(), self.model.base_model, *self.model.children())
        self._around = self._look_around(bases, self._width() or wide)
        self._set_generation()
        pass_embeddings(self.model)

    def passes_embeddings(self) -> bool:
        # Where it does not, as for XLNet, only token ids can be continued, and an image has none.
        weight = self.model.get_input_embeddings().weight
        inputs = self.model.prepare_inputs_for_generation(
            torch.zeros(1, 0, dtype=torch.long, device=weight.device),
            inputs_embeds=weight.new_zeros(1, 2, weight.shape[1]),
            attention_mask=torch.ones(1, 2, dtype=torch.long, device=weight.device),
            use_cache=True,
            is_first_iteration=True,
        )
        return inputs.get("inputs_embeds") is not None and inputs.get("input_ids") is None

    def forward(
        self, embeddings: Tensor, mask: Tensor, decoder_ids: Tensor | None = None, memory: CrossAttentionStates | None = None
    ) -> Tensor:
        self._fast[0] = self.model_trains and torch.is_grad_enabled()
        if self._fast[0] and self._found.unpads and unpadded.serves(self.model) and not self.forbid_packing:
            states = unpadded.states(self._base, embeddings, mask)
            if states is not None:
                return self._around.states(self.model, states)
        return self._around.states(self.model, self._rows(self._base, embeddings, mask, use_cache=False))

    @property
    def _base(self) -> Any:
        return self.model.get_submodule(self._around.base)

    def library_output(self, mask: Tensor, **inputs: Tensor) -> Tensor:
        return self.model(**inputs, attention_mask=mask, use_cache=False).logits

    def own_output(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        return self.logits(self.forward(embeddings, mask))

    def keeps_apart(self, embeddings: Tensor, mask: Tensor) -> bool:
        return unpadded.serves(self.model) and unpadded.keeps_apart(self._base, embeddings, mask)

    def output_layer(self) -> nn.Module | None:
        return self.model.get_output_embeddings()

    def logits(self, hidden: Tensor) -> Tensor:
        """Turn states [..., dim] into logits [..., vocab], with what the library's class does to its logits."""
        return self._around.logits(self.model, hidden)

    def generate(self, embeddings: Tensor, mask: Tensor, memory: CrossAttentionStates | None = None, **options: Any) -> Tensor:
        """Return new token ids [batch * returned, out]: greedy, and at most `NEW_TOKENS`, unless ``options`` say otherwise."""
        options = self._generation(options, mask.shape[1])
        if self._found.keeps_batches or mask.all():
            return self.write(embeddings, mask, **options)
        if self.forbid_packing:
            raise DoesNotFit(
                f"'{self.name}' cannot continue prompts of different lengths at once with a deep fusion; use batch_size=1"
            )
        # Of each run only the rows that have no padding in it are kept; all rows run, since late fusions count them.
        lengths, runs = mask.sum(1), {}
        for length in lengths.unique().tolist():
            runs[length] = self.write(embeddings[:, -length:], torch.ones_like(mask[:, -length:]), **options)
        longest = max(out.shape[1] for out in runs.values())
        padding = options.get("pad_token_id") or 0
        runs = {length: F.pad(out, (0, longest - out.shape[1]), value=padding) for length, out in runs.items()}
        rows = [runs[length].unflatten(0, (len(mask), -1))[i] for i, length in enumerate(lengths.tolist())]
        return torch.cat(rows)

    def write(self, embeddings: Tensor, mask: Tensor, **options: Any) -> Any:
        """Return what the library generates with these options alone."""
        self._fast[0] = False
        if (penalty := options.get("repetition_penalty")) is None:
            return self.model.generate(inputs_embeds=embeddings, attention_mask=mask, **options)
        # The library's own leaves out as many of the first new tokens as the prompt has padding. This takes its place.
        options["logits_processor"] = [RepetitionPenaltyLogitsProcessor(penalty), *(options.get("logits_processor") or ())]
        with quiet():  # the library says so
            return self.model.generate(inputs_embeds=embeddings, attention_mask=mask, **options)


def pass_embeddings(model: Any) -> None:
    """Let a class generate from embeddings whose generation passes them on without naming them, which the library checks for."""
    cls = type(model)
    if "inputs_embeds" not in inspect.signature(cls.prepare_inputs_for_generation).parameters:
        model.__class__ = _passing(cls)


@cache
def _passing(cls: Any) -> Any:
    # The library looks for the name "kwargs", too.
    def prepare(self: Any, input_ids: Any, inputs_embeds: Tensor | None = None, **kwargs: Any) -> dict[str, Any]:
        if inputs_embeds is not None:
            kwargs["inputs_embeds"] = inputs_embeds
        return cls.prepare_inputs_for_generation(self, input_ids, **kwargs)

    return type(cls.__name__, (cls,), {"__module__": cls.__module__, "prepare_inputs_for_generation": prepare})


class HFEncoder(_HFLanguageModel):
    """Run a bidirectional encoder, such as BERT; a text's vector is the state of its first position."""

    architecture: ClassVar[str] = BIDIRECTIONAL

    def _plan(self, config: PreTrainedConfig) -> tuple[Any, PreTrainedConfig, dict[str, Any]]:
        if (problem := MISFITS.get(config.model_type)) is not None:
            raise DoesNotFit(f"'{self.name}': {problem}; choose another language model")
        inner = self._plan_inner(config)
        cls, config, _ = inner or (class_for(config, MODEL_MAPPING), config, {})
        larger = any(isinstance(getattr(config, name, None), PreTrainedConfig) for name in ("text_config", "vision_config"))
        if cls is None or (inner is None and (larger or kind_of(config) != "hf-encoder")):
            raise self._wrong_kind(config)
        if "inputs_embeds" not in inspect.signature(cls.forward).parameters:
            raise DoesNotFit(f"'{self.name}' takes no embeddings; choose another language model")
        # Checkpoints of masked language models have no pooler, and nothing here uses one.
        has_pooler = "add_pooling_layer" in inspect.signature(cls.__init__).parameters
        return cls, config, {"add_pooling_layer": False} if has_pooler else {}

    def _set_up(self) -> None:
        narrow, wide = self.model.get_input_embeddings().weight.shape[1], self._width()
        if narrow != wide:
            raise DoesNotFit(
                f"'{self.name}' reads embeddings of {narrow} channels and gives states of {wide}; choose another one"
            )

    def forward(
        self, embeddings: Tensor, mask: Tensor, decoder_ids: Tensor | None = None, memory: CrossAttentionStates | None = None
    ) -> Tensor:
        return self._rows(self.model, embeddings, mask)

    def library_output(self, mask: Tensor, **inputs: Tensor) -> Tensor:
        return self.model(**inputs, attention_mask=mask).last_hidden_state

    def own_output(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        states = self.forward(embeddings, mask)
        if (wide := states.shape[-1]) != (narrow := embeddings.shape[-1]):  # Reformer's are twice as wide
            raise DoesNotFit(
                f"'{self.name}' reads embeddings of {narrow} channels and gives states of {wide}; choose another one"
            )
        return states

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the state of the first real position, which is the class token: [batch, dim]."""
        first = mask.long().argmax(1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), first]


class HFSeq2Seq(_HFLanguageModel):
    """Run an encoder and a decoder, such as T5.

    Hidden states are those that `output_layer` turns into logits: for T5 with tied weights they are scaled already. The first
    of ``decoder_ids`` is replaced by the model's own start token, since families differ in it: T5's is the padding token,
    BART's the end token.
    """

    architecture: ClassVar[str] = SEQ2SEQ
    generates: ClassVar[bool] = True

    def _plan(self, config: PreTrainedConfig) -> tuple[Any, PreTrainedConfig, dict[str, Any]]:
        if (inner := self._plan_inner(config)) is not None:
            return inner
        if kind_of(config) != "hf-seq2seq":
            raise self._wrong_kind(config)
        return class_for(config, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING), config, {}

    def _set_up(self) -> None:
        self._around = self._look_around((self.model.get_decoder(),), self._width() or self._config.d_model)
        self._set_generation()

    @property
    def start_id(self) -> int:
        """Return the id that a decoder's input begins with."""
        own = self._own_ids().get("decoder_start_token_id")
        if own is None:
            own = (self.options.config or {}).get("decoder_start_token_id")
        return own if isinstance(own, int) else self.tokenizer.pad_token_id

    def embed(self, ids: Tensor) -> Tensor:
        # Marian, Pegasus and others scale the embeddings of ids, not embeddings that they are given; most have it in their table.
        embeddings, scale = super().embed(ids), getattr(self.model.get_encoder(), "embed_scale", None)
        return embeddings if scale is None else embeddings * scale

    def blocks(self) -> Sequence[nn.Module]:
        """Return the encoder's blocks, then the decoder's."""
        return (*find_blocks(self.model.get_encoder()), *self.decoder_blocks())

    def decoder_blocks(self) -> Sequence[nn.Module]:
        return find_blocks(self.model.get_decoder())

    def forward(
        self, embeddings: Tensor, mask: Tensor, decoder_ids: Tensor | None = None, memory: CrossAttentionStates | None = None
    ) -> Tensor:
        if decoder_ids is None:
            return self._encode(embeddings, mask)
        states, mask = self._read(embeddings, mask, memory)
        decoder_ids = torch.cat([torch.full_like(decoder_ids[:, :1], self.start_id), decoder_ids[:, 1:]], 1)
        return self._decode(states, mask, decoder_ids)

    def _encode(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        return self._rows(self.model.get_encoder(), embeddings, mask)

    def _decode(self, states: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        last = self.model.get_decoder()(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),  # T5Gemma would hide its start token, which is the padding token
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        return self._around.states(self.model, last)

    def library_output(self, mask: Tensor, **inputs: Tensor) -> Tensor:
        ids = _decoder_ids(mask)
        return self.model(**inputs, attention_mask=mask, decoder_input_ids=ids, use_cache=False).logits

    def own_output(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        return self.logits(self._decode(self._encode(embeddings, mask), mask, _decoder_ids(mask)))

    def _read(self, embeddings: Tensor, mask: Tensor, memory: CrossAttentionStates | None) -> tuple[Tensor, Tensor]:
        """Return what the decoder attends to, and its mask: ``memory``, then the encoder's states."""
        states = self._encode(embeddings, mask)
        if memory is None:
            return states, mask
        return torch.cat([memory.states.to(states.dtype), states], 1), torch.cat([memory.mask.to(mask.dtype), mask], 1)

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of the real positions: [batch, dim]."""
        weights = mask.to(hidden.dtype)[..., None]
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)

    def output_layer(self) -> nn.Module | None:
        return self.model.get_output_embeddings()

    def logits(self, hidden: Tensor) -> Tensor:
        return self._around.logits(self.model, hidden)

    def generate(self, embeddings: Tensor, mask: Tensor, memory: CrossAttentionStates | None = None, **options: Any) -> Tensor:
        """Return new token ids [batch * returned, out]: greedy, and at most `NEW_TOKENS`, unless ``options`` say otherwise."""
        states, mask = self._read(embeddings, mask, memory)
        out = self.model.generate(
            encoder_outputs=States(last_hidden_state=states),
            attention_mask=mask,
            **self._generation({"decoder_start_token_id": self.start_id, **options}),
        )
        return out[:, 1:]


def _decoder_ids(mask: Tensor) -> Tensor:
    """Return ids for a probe's decoder, [batch, 3], none of them special in any family."""
    return torch.arange(5, 8, device=mask.device).expand(len(mask), -1)
