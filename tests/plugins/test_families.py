"""Check model types of transformers, built tiny, through the functions that write docs/reference/language-models.md."""

import os

import pytest
from tiny_families import families, tiny_config
from transformers import CONFIG_MAPPING

from experiments import families as table
from mmzoo.checkpoints import screening

# Of each kind of layer and head one: a mixture of experts, a recurrence, a hybrid, sliding windows, soft caps, scaled embeddings,
# relative positions, a head before the vocabulary.
SAMPLE = (
    ("causal", "qwen3_moe"),
    ("causal", "mamba"),
    ("causal", "qwen3_next"),
    ("causal", "gemma2"),
    ("causal", "bert-generation"),
    ("bidirectional", "deberta-v2"),
    ("decoder", "roberta"),
    ("seq2seq", "marian"),
    ("seq2seq", "t5gemma"),
    ("vision", "swin"),
)


def results(kind, name, **options):
    noted = {}
    table.try_type(kind, name, noted.__setitem__, **options)
    return noted


@pytest.mark.parametrize(("kind", "name"), SAMPLE)
def test_a_type_is_right_or_refused_by_name(kind, name):
    noted = results(kind, name, columns=("probe", "batch", "generation"))
    assert table.is_right(noted), noted
    assert noted["check"] == table.OK, noted


@pytest.mark.parametrize("name", ["recurrent_gemma", "zamba"])
def test_matrices_of_a_recurrent_layer_are_taken_for_no_experts(name):
    assert results("causal", name, columns=("lora",))["lora"] == table.OK


@pytest.mark.slow
@pytest.mark.parametrize("kind", table.ENTRIES)
def test_every_type_is_right_or_refused_by_name(kind):
    wanted = [(kind, name) for name in table.families(kind)]
    wrong = {name: noted for _, name, noted in table.run(wanted, jobs=os.cpu_count() or 1) if not table.is_right(noted)}
    wrong = {name: noted for name, noted in wrong.items() if "tiny" not in noted}
    assert not wrong


def test_the_page_is_of_the_record():
    assert table.PAGE.read_text(encoding="utf-8") == table.page(table.read()), "python -m experiments.families --render"


@pytest.mark.slow
@pytest.mark.parametrize("kind", table.ENTRIES)
def test_the_record_has_every_type(kind):
    missing = set(table.families(kind)) - set(table.read()["types"][kind])
    assert not missing, "python -m experiments.families tries them"


def test_a_fault_is_seen_as_one():
    good = {"check": table.OK, **dict.fromkeys(table.COLUMNS, table.OK)}
    assert table.is_right(good)
    assert table.is_right({"check": "refused: because"})
    assert not table.is_right({**good, "load": "Difference: other predictions"})
    assert not table.is_right({"check": "KeyError: 'x' (file.py:1)"})


@pytest.mark.slow
def test_most_causal_types_can_be_made_tiny():
    made = 0
    for name in families("causal"):
        try:
            tiny_config(name)
        except Exception:
            continue
        made += 1
    assert made >= 190


@pytest.mark.slow
def test_no_default_configuration_of_the_library_is_refused_for_its_size():
    refused = []
    for name in CONFIG_MAPPING:
        try:
            data = CONFIG_MAPPING[name]().to_dict()
        except Exception:
            continue  # a type without defaults
        try:
            screening.check_sizes(data)
        except ValueError as error:
            refused.append((name, str(error)))
    assert not refused
