"""Tokenizers learned from the training texts."""

import pytest

from mmzoo.data import vocabulary

TEXTS = ["woman: medium-light skin tone", "Face with Tears of Joy!", "“curly” don’t stop, e.g. U.S. 🤷", "a"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_verbatim_vocabulary_gives_back_what_it_read(text):
    tokenizer = vocabulary.make_tokenizer(vocabulary.learn_vocabulary(TEXTS, 500, verbatim=True), verbatim=True)
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_otherwise_words_are_in_lower_case_and_apart_from_punctuation():
    tokenizer = vocabulary.make_tokenizer(vocabulary.learn_vocabulary(TEXTS, 500))
    assert tokenizer.tokenize("Joy!") == ["joy", "!"]


def test_a_vocabulary_is_the_same_in_any_order_of_frequency_ties():
    assert vocabulary.learn_vocabulary(TEXTS, 500, verbatim=True) == vocabulary.learn_vocabulary(
        list(reversed(TEXTS)), 500, verbatim=True
    )
    assert len(vocabulary.learn_vocabulary(TEXTS * 3, 60, verbatim=True)) >= 60


@pytest.mark.parametrize("texts", [[], ["", " \t"]])
def test_without_words_it_is_the_vocabulary_of_an_untrained_model(texts):
    assert vocabulary.learn_vocabulary(texts, 500) == vocabulary.default_vocabulary()
