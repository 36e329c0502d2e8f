"""Make a tokenizer that needs no file: every byte of UTF-8 is a token, as in ByT5 (https://arxiv.org/abs/2105.13626).

Ids: ``<pad>`` 0, ``<s>`` 1, ``</s>`` 2, ``<unk>`` 3, the bytes from 4 on in the order of the byte-level BPE alphabet,
``<mask>`` 260. No licence applies.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from mmzoo.api import BIDIRECTIONAL, CAUSAL, SEQ2SEQ

NAME = "bytes"
SIZE = 261


def byte_tokenizer(architecture: str = CAUSAL) -> PreTrainedTokenizerFast:
    """Return the tokenizer for a language model of an ``architecture``.

    With special tokens it adds none for causal models, ``<s> ... </s>`` for bidirectional and ``... </s>`` for seq2seq ones.
    Decoding gives the same text back.
    """
    names = ["<pad>", "<s>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "<mask>"]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    framing = {BIDIRECTIONAL: ("<s> $A </s>", "<s> $A </s> $B </s>"), SEQ2SEQ: ("$A </s>", "$A $B </s>")}
    if architecture in framing:
        single, pair = framing[architecture]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        clean_up_tokenization_spaces=False,
    )
