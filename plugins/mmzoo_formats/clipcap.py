"""Read ClipCap's checkpoints (Mokady et al. 2021, https://arxiv.org/abs/2111.09734), as its own code saves them.

https://github.com/rmokady/CLIP_prefix_caption (MIT) writes the ``state_dict`` of its whole model: ``clip_project.*``, an MLP, a
transformer with 8 heads or (in its older notebooks, for long prefixes) one linear layer, and ``gpt.*``, a GPT-2. CLIP, the
tokenizer and GPT-2's number of heads are not in it; sizes follow from the shapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mmzoo.api import (
    BadRecipe,
    CheckpointError,
    Clues,
    Format,
    MultimodalModel,
    Options,
    Source,
    WeightSource,
    convert_checkpoint,
    not_this_format,
    read_metadata,
    read_pickle,
    read_tensors,
)

GPT2 = "openai-community/gpt2"
WORDS = 50257  # of GPT-2's vocabulary
CHANNELS = 768  # of the smallest GPT-2, for files without gpt.*
SIZES = {768: GPT2, 1024: f"{GPT2}-medium", 1280: f"{GPT2}-large", 1600: f"{GPT2}-xl"}
# The encoders of its parse_coco.py, by the size of their embedding.
ENCODERS = {512: "clip", 640: "open_clip:RN50x4/openai"}
HEADS = 8  # of every mapper
NEW_TOKENS = 67  # the limit of its own generate
WORDS_IN, WORDS_OUT = "gpt.transformer.wte.weight", "gpt.lm_head.weight"  # one matrix; some writers keep one name of it
MASKS = re.compile(r"gpt\.transformer\.h\.\d+\.attn\.(bias|masked_bias)")  # buffers of old versions of transformers
MAPPER = {
    "constants": "prefix_const",
    "layers.": "transformer.layers.",
    "queries": "attn.to_queries",
    "keys_values": "attn.to_keys_values",
    "project": "attn.project",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


class ClipCap(Format):
    """Read a file that ClipCap's training saved, or the same tensors in a safetensors file."""

    class Options(Options):
        encoder: str | dict[str, Any] | None = Field(
            None, description="the CLIP that the embeddings came from; empty for `clip` (512) or `open_clip:RN50x4/openai` (640)"
        )
        heads: int | None = Field(
            None, ge=1, description="GPT-2's attention heads; empty for what the file says, else one for each 64 channels"
        )
        tokenizer: str | None = Field(
            None,
            description="`id[@revision]`, a folder, or `bytes`; empty for GPT-2's, or numbers for a vocabulary of another size",
        )
        normalize_prefix: bool = Field(False, description="whether it was trained with --normalize_prefix")

    @classmethod
    def recognises(cls, source: Clues) -> bool:
        return any(key.startswith("clip_project.") for key in source.keys)

    def read(self, source: str) -> MultimodalModel:
        path = Path(source).expanduser()
        if not path.is_file():
            problem = "is a folder, and this format is a file: .pt or .safetensors" if path.is_dir() else "is not a file"
            raise not_this_format(source, problem)
        is_safetensors = path.suffix == ".safetensors"
        state = read_tensors([path]) if is_safetensors else read_pickle(path)
        if not any(key.startswith("clip_project.") for key in state):
            raise not_this_format(source, "has no clip_project.*, so ClipCap's training did not save it")
        has_gpt = any(key.startswith("gpt.") for key in state)
        if WORDS_OUT in state:
            state.setdefault(WORDS_IN, state[WORDS_OUT])
        dim = _size(state, WORDS_IN, 1, source) if has_gpt else None
        fusion, pooled, dim = self._fusion(state, dim, source)
        metadata = read_metadata(path) if is_safetensors else {}
        language, tokenizer = self._language(state, dim, metadata, source) if has_gpt else (None, None)
        if language is None and dim not in SIZES:
            raise CheckpointError(f"{source}: has no gpt.*, and no pretrained GPT-2 has {dim} channels")
        room = language["config"]["n_positions"] if language else 1024
        recipe = {
            "name": "clipcap",
            "source": "ClipCap, Mokady et al. 2021, https://arxiv.org/abs/2111.09734",
            "encoder": self._encoder(pooled, source),
            "fusion": fusion,
            "language_model": language or {"use": f"gpt2:{SIZES[dim]}"},
            "task": {"use": "caption", "max_new_tokens": max(1, min(NEW_TOKENS, room - fusion["length"] - 1))},
        }
        try:
            return convert_checkpoint(
                recipe,
                state,
                lambda name: _find(name, has_gpt),
                label=source,
                ignore=lambda key: MASKS.fullmatch(key) is not None,
                tokenizer=tokenizer,
            )
        except CheckpointError as error:
            if re.search(r"missing.*c_attn\.bias", str(error)):
                raise CheckpointError(
                    f"{error}\nThe names of GPT-2's c_attn.bias end like those of its old mask buffers, attn.bias: a filter of "
                    "these by the ends of names drops weights, which cannot be computed from the rest. Take the original file"
                ) from None
            raise

    def _fusion(self, state: Mapping[str, Tensor], dim: int | None, source: str) -> tuple[dict[str, Any], int, int]:
        """Return the fusion, the size of the pooled features, and the channels of GPT-2."""
        normalize = {"normalize": True} if self.options.normalize_prefix else {}
        if any(key.startswith("clip_project.model.") for key in state):
            dim = dim or CHANNELS
            length = _size(state, "clip_project.model.2.weight", 0, source) // dim
            pooled = _size(state, "clip_project.model.0.weight", 1, source)
            return {"use": "prefix-mlp", "length": max(1, length), **normalize}, pooled, dim
        if any(key.startswith(("clip_project.transformer.", "clip_project.prefix_const")) for key in state):
            dim = dim or _size(state, "clip_project.prefix_const", 1, source)
            layers = _count(state, r"clip_project\.transformer\.layers\.(\d+)\.")
            options = {
                "length": _size(state, "clip_project.prefix_const", 0, source),
                "clip_length": max(1, _size(state, "clip_project.linear.weight", 0, source) // dim),
                "layers": max(1, layers),
                "heads": HEADS,
            }
            pooled = _size(state, "clip_project.linear.weight", 1, source)
            return {"use": "prefix-transformer", **options, **normalize}, pooled, dim
        dim = dim or CHANNELS
        length = _size(state, "clip_project.weight", 0, source) // dim
        pooled = _size(state, "clip_project.weight", 1, source)
        return {"use": "prefix-linear", "length": max(1, length), **normalize}, pooled, dim

    def _language(
        self, state: Mapping[str, Tensor], dim: int, metadata: Mapping[str, str], source: str
    ) -> tuple[dict[str, Any], Any]:
        """Return the language model, and its tokenizer if the checkpoint must store one."""
        words = _size(state, WORDS_IN, 0, source)
        config = {
            "model_type": "gpt2",
            "vocab_size": words,
            "n_positions": _size(state, "gpt.transformer.wpe.weight", 0, source),
            "n_embd": dim,
            "n_layer": _count(state, r"gpt\.transformer\.h\.(\d+)\."),
            "n_head": self._heads(dim, metadata, source),
            "n_inner": _size(state, "gpt.transformer.h.0.mlp.c_fc.weight", 1, source),
            "bos_token_id": None,
            "eos_token_id": None,
        }
        tokenizer = None
        if self.options.tokenizer is None:
            tokenizer = Source(GPT2).tokenizer() if words == WORDS else numbers(words)
            # It was trained without an end token; its own generate stops after the first full stop.
            config["eos_token_id"] = tokenizer.encode(".")[0] if words == WORDS else None
        chosen = self.options.tokenizer or "checkpoint"
        return {"use": "gpt2", "config": config, "tokenizer": chosen, "train": "full"}, tokenizer

    def _heads(self, dim: int, metadata: Mapping[str, str], source: str) -> int:
        heads = self.options.heads
        if heads is None:
            try:
                heads = json.loads(metadata.get("gpt2_config", "{}")).get("n_head")
            except (ValueError, AttributeError, RecursionError):
                raise CheckpointError(f"{source}: the gpt2_config in its header is not valid JSON") from None
        if heads is None and dim % 64 == 0:
            heads = dim // 64
        if not isinstance(heads, int) or heads < 1 or dim % heads:
            raise BadRecipe(
                f"clipcap.heads: shapes do not show GPT-2's number of heads, and {heads or 'no default'} fits its {dim} "
                "channels; give --set heads=N"
            )
        return heads

    def _encoder(self, pooled: int, source: str) -> str | dict[str, Any]:
        chosen = self.options.encoder or ENCODERS.get(pooled)
        if chosen is None:
            raise BadRecipe(
                f"clipcap.encoder: {source} reads image embeddings of size {pooled}, and holds no encoder; ClipCap's encoders "
                f"give {' or '.join(map(str, ENCODERS))}. Name the one that it was trained with: --encoder clip:owner/model"
            )
        return chosen


def numbers(words: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer for a vocabulary whose words are not known: a text is token ids in digits, separated by spaces.

    The last id ends and pads, as in GPT-2's vocabulary.
    """
    end = str(words - 1)
    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(words)}, unk_token=end))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=end, unk_token=end, clean_up_tokenization_spaces=False
    )


def _find(name: str, has_gpt: bool) -> WeightSource | None:
    kind, _, rest = name.partition(".")
    if kind == "language_model":
        key = "gpt." + rest.removeprefix("model.")
        return WeightSource((key, WORDS_OUT) if key == WORDS_IN else (key,)) if has_gpt else None
    if kind != "fusion":
        return None
    if rest.startswith("model."):
        return WeightSource((f"clip_project.{rest}",))
    for own, original in MAPPER.items():
        rest = rest.replace(own, original)
    return WeightSource((f"clip_project.{rest}", f"clip_project.{rest.removeprefix('linear.')}"))


def _size(state: Mapping[str, Tensor], key: str, axis: int, source: str) -> int:
    """Return a size of a matrix.

    Raises:
        CheckpointError: there is no tensor of that name, or it is not a matrix.
    """
    if key not in state:
        raise CheckpointError(f"{source}: 1 keys are missing: {key}")
    if state[key].ndim != 2 or 0 in state[key].shape:
        raise CheckpointError(f"{source}: 1 tensors do not fit: {key} is {list(state[key].shape)}, and should be a matrix")
    return state[key].shape[axis]


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many numbered layers there are; one that is missing between them is reported later."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})
