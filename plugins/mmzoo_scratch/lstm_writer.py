"""Generate with an LSTM through transformers' own `generate`.

That calls private methods of a model, four of which are overridden here, as seen in transformers 5.24: ``_is_stateful``,
``_supports_default_dynamic_cache``, ``_update_model_kwargs_for_generation`` and ``_reorder_cache``. No other file of this plugin
uses private names of a library. The tests of `LSTM` with beams in tests/plugins/test_decoder.py fail if a version changes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from mmzoo.api import reorder_positions


@dataclass
class WriterOutput(ModelOutput):
    """Hold ``logits`` [rows, 1, vocab] of the last position, and the ``state`` after it, which the library passes back."""

    logits: Tensor | None = None
    state: tuple[Tensor, Tensor] | None = None


class LSTMWriter(PreTrainedModel, GenerationMixin):
    """Give an `LSTM` the interface of the library's `generate`. The cache is the network's state (h, c), [layers, rows, dim]
    each."""

    config_class = PreTrainedConfig
    _is_stateful = True  # tokens cannot be taken back, so there is no assisted decoding

    def __init__(self, reader: Any) -> None:
        super().__init__(PreTrainedConfig(vocab_size=reader.spec.vocab_size))
        self.embedding, self.lstm, self.output = reader.embedding, reader.lstm, reader.output
        tokenizer = reader.tokenizer
        self.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # that cache is for attention's keys and values

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: tuple[Tensor, Tensor] | None = None,
        use_cache: bool = True,
        **_: Any,
    ) -> WriterOutput:
        """Read ``input_ids`` [rows, positions], or ``inputs_embeds`` [rows, positions, dim] with padding on the left.

        After a ``state`` they must be the new positions only.
        """
        embeddings = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if state is None and attention_mask is not None:
            # The LSTM would read padding before the text; moved behind the text, it is cut off.
            order = attention_mask.argsort(dim=1, descending=True, stable=True)
            lengths = attention_mask.sum(1).cpu()
            embeddings = pack_padded_sequence(
                reorder_positions(embeddings, order), lengths, batch_first=True, enforce_sorted=False
            )
        _, (hidden, cell) = self.lstm(embeddings, state)
        return WriterOutput(self.output(hidden[-1].unsqueeze(1)), (hidden, cell) if use_cache else None)

    def _update_model_kwargs_for_generation(
        self, outputs: WriterOutput, model_kwargs: dict[str, Any], **more: Any
    ) -> dict[str, Any]:
        # The library reorders a ``state`` for beam search, but since 5.24 it does not pass it on.
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **more)
        return updated if outputs.state is None else {**updated, "state": outputs.state}

    def _reorder_cache(self, state: tuple[Tensor, Tensor], beams: Tensor) -> tuple[Tensor, Tensor]:
        return state[0].index_select(1, beams), state[1].index_select(1, beams)
