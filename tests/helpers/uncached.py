"""The library's own decoding loop without any cache, to hold the cached one against.

`generate(inputs_embeds=..., use_cache=False)` is no such thing: for a decoder that is given embeddings transformers
turns the cache on again. So the prompt is given as ids that stand for it, and at each step its embeddings are laid in
front of those of the new tokens.
"""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from transformers import GenerationMixin

CACHED = GenerationMixin.generate


@contextmanager
def without_cache():
    """Every `generate` inside computes the whole sequence at each step."""
    with patch.object(GenerationMixin, "generate", _generate):
        yield


def _generate(model, inputs_embeds=None, attention_mask=None, **options):
    if inputs_embeds is None:  # an encoder-decoder
        return CACHED(model, attention_mask=attention_mask, use_cache=False, **options)
    rows, width = inputs_embeds.shape[:2]
    steps = []

    def lay_prompt(_, args, kwargs):
        ids = kwargs.pop("input_ids")
        assert ids.shape[1] == width + len(steps), "each step reads the whole sequence"
        assert not any(kwargs.get(name) is not None for name in ("past_key_values", "cache", "cache_params", "state"))
        steps.append(ids)
        prompt = inputs_embeds.repeat_interleave(ids.shape[0] // rows, 0)
        new = model.get_input_embeddings()(ids[:, width:])
        return args, {**kwargs, "inputs_embeds": torch.cat([prompt, new], 1)}

    handle = model.register_forward_pre_hook(lay_prompt, with_kwargs=True)
    try:
        stand_in = torch.full((rows, width), options.get("pad_token_id", 0))
        out = CACHED(model, input_ids=stand_in, attention_mask=attention_mask, use_cache=False, **options)
    finally:
        handle.remove()
    assert steps
    return out[:, width:]
