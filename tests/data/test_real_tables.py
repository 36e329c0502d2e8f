"""Test tables as other programs write them: missing cells, numbers that became floats, keys that appear late, damaged rows."""

import decimal
import json

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mmzoo
from mmzoo.api import is_missing
from mmzoo.data.fingerprint import fingerprint
from mmzoo.data.open import load_split, open_dataset
from mmzoo.errors import BadImage, DataError, SourceError
from mmzoo.interfaces import Example
from mmzoo.modalities.image import open_image
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig
from mmzoo.testing import tiny

ROW = {"image": "a.png", "question": "what?", "answer": "yes"}
NAN = float("nan")


@pytest.fixture(autouse=True)
def _caches(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def write(path, *rows):
    """Write rows in the format that the suffix says, by pandas where it can."""
    if path.suffix == ".jsonl":
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(list(rows)))
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


def load(path, split="train", **options):
    return load_split(open_dataset(PartConfig(use=str(path), **options)), split)


def learned_labels(examples):
    task = resolve("task", PartConfig(use="classify"))
    return task.cls.learn(task.options, examples)["labels"]


# Missing cells


@pytest.mark.parametrize(
    "value",
    [
        None,
        NAN,
        np.float32("nan"),
        pd.NA,
        pd.NaT,
        np.datetime64("NaT"),
        decimal.Decimal("nan"),
        "",
        " \n",
        b"",
        [],
        [""],
        [None, NAN],
    ],
    ids=repr,
)
def test_a_value_that_is_missing(value):
    assert is_missing(value)
    assert Example("1", value).inputs == {}


def test_missing_targets_of_an_example():
    assert Example("1", targets=None).targets == Example("1", targets=NAN).targets == ()
    assert Example("1", targets={"a": NAN, "b": "x"}).targets == {"a": (), "b": ("x",)}
    for wrong in (3, 2.5, ("a", NAN), [None]):
        with pytest.raises(DataError, match="example 1: targets must be texts"):
            Example("1", targets=wrong)


def test_a_missing_text_of_an_example():
    assert Example("1", text=None) == Example(1, text=NAN) == Example("1")
    for wrong in (3, ["what?"], b"what?"):
        with pytest.raises(DataError, match="example 1: the text must be a string"):
            Example("1", text=wrong)


def test_half_of_a_surrogate_pair_in_an_example():
    with pytest.raises(DataError, match="example 1: the target 'a.ud83d' holds half of a surrogate pair"):
        Example("1", targets=("a\ud83d",))
    one, other = (Example("1", text=f"what{end}", targets=("yes",)) for end in ("\ud83d", "?"))
    language = resolve("language_model", PartConfig(use="gpt-mini"))
    learned = [language.cls.learn(language.options, [example.text]) for example in (one, other)]
    assert learned[0] == learned[1]
    assert fingerprint([one]) == fingerprint([other])


@pytest.mark.parametrize("value", [0, False, 0.0, "nan", "None", "0", b"x", ["", "a"], np.zeros((2, 2)), {}], ids=repr)
def test_a_value_that_is_not_missing(value):
    assert not is_missing(value)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("prefix", ["", "datasets:"])
def test_a_missing_cell_is_no_word_in_any_column(tmp_path, suffix, prefix):
    rows = [
        {"image": "a.png", "question": "what?", "answer": "yes", "mood": 2.5, "key": 3.0},
        {"image": NAN, "question": NAN, "answer": NAN, "mood": NAN, "key": NAN},
    ]
    path = write(tmp_path / f"train.{suffix}", *rows)
    use = f"{prefix}{tmp_path}" if prefix else path
    first, second = load(use, id_column="key")
    assert (first.image, first.text, first.targets) == (str(tmp_path / "a.png"), "what?", ("yes",))
    assert second == Example("train/1")
    assert [example.targets for example in load(use, target_column="mood")] == [("2.5",), ()]
    data = open_dataset(PartConfig(use=str(use)))
    data.wanted = ("answer", "mood")
    assert load_split(data, "train")[1].targets == {"answer": (), "mood": ()}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_missing_item_of_a_list(tmp_path, suffix):
    path = write(tmp_path / f"train.{suffix}", {"image": "a", "label": [1.0, NAN, 3.0]}, {"image": "b", "label": [NAN]})
    assert [example.targets for example in load(path)] == [("1", "3"), ()]
    path = write(tmp_path / f"train.{suffix}", {"image": "a", "label": [0.5, NAN]})
    with pytest.raises(DataError, match="1: column 'label' holds a list of numbers that lacks one"):
        list(load(path))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_missing_split(tmp_path, suffix):
    path = write(tmp_path / f"data.{suffix}", {**ROW, "split": "train"}, {**ROW, "split": NAN})
    with pytest.raises(DataError, match="example 2 has nothing in column 'split'"):
        open_dataset(str(path)).splits()


def test_literal_words_of_a_text_stay_words(tmp_path):
    words = ("nan", "NaN", "None", "null", "NA")
    (tmp_path / "a.csv").write_text("image,answer\n" + "".join(f"a,{word}\n" for word in words))
    write(tmp_path / "a.jsonl", *({"image": "a", "answer": word} for word in words))
    for name in ("a.csv", "a.jsonl"):
        assert [example.targets[0] for example in load(tmp_path / name)] == list(words)


# Numbers as texts


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_numbers_are_written_alike(tmp_path, suffix):
    rows = {
        "1": [1, 1.0],
        "2.5": [2.5],
        "0": [0, -0.0],
        "9007199254740993": [2**53 + 1],
        "1e+20": [1e20],
        "true": [True],
    }
    for text, values in rows.items():
        for value in values:
            assert load(write(tmp_path / f"a.{suffix}", {**ROW, "answer": value}))[0].targets == (text,)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_numbers_of_ids_and_texts_have_no_point_either(tmp_path, suffix):
    path = write(tmp_path / f"train.{suffix}", {**ROW, "question": 7.0, "key": 5.0}, {**ROW, "question": 2.5, "key": NAN})
    assert [(example.id, example.text) for example in load(path, id_column="key")] == [("5", "7"), ("train/1", "2.5")]


def test_numbers_of_other_types_in_parquet(tmp_path):
    columns = {
        "1.1": pa.array([1.1], pa.float32()),
        "0.5": pa.array([0.5], pa.float16()),
        "3": pa.array([decimal.Decimal("3.00")], pa.decimal128(5, 2)),
        "3.5": pa.array([decimal.Decimal("3.50")], pa.decimal128(5, 2)),
        "7": pa.array([7], pa.uint8()),
        "false": pa.array([False]),
        "1,2": pa.array([[1.0, 2.0]]),
        "1.0,2.5": pa.array([[1.0, 2.5]]),
    }
    for text, column in columns.items():
        pq.write_table(pa.table({"image": ["a"], "label": column}), tmp_path / "a.parquet")
        assert load(tmp_path / "a.parquet")[0].targets == tuple(text.split(","))


def test_labels_that_became_floats_match_those_that_are_integers(tmp_path):
    picture = {"image": str(tmp_path / "a.png"), "question": "q"}
    write(tmp_path / "train.csv", *({**picture, "label": i % 3} for i in range(6)))
    write(tmp_path / "validation.csv", {**picture, "label": 1.0}, {**picture, "label": 2.0})  # as 1.0 and 2.0
    write(tmp_path / "dev.parquet", {**picture, "label": 1.0}, {**picture, "label": 2.0}, {**picture, "label": NAN})
    labels = learned_labels(load(tmp_path))
    assert labels == ["0", "1", "2"]
    model = mmzoo.build(tiny("cnn-product-lstm"), task={"use": "classify", "labels": labels})
    for split in ("validation", "dev"):
        found = load(tmp_path, split)
        assert [model.task.references(example) for example in found[:2]] == [["1"], ["2"]]
        assert not any(map(model.task.outside_labels, found[:2]))
    # and where the training data are those with the floats
    assert learned_labels(load(tmp_path, "validation")) == ["1", "2"]


def test_truth_values_are_one_label_however_they_are_written():
    model = mmzoo.build(tiny("cnn-product-lstm"), task={"use": "classify", "labels": ["false", "true"]})
    assert model.task.references(Example("1", targets=("True", "FALSE"))) == ["true", "false"]


def test_ratings_stay_as_they_are_written():
    assert learned_labels([Example("", targets=(text,)) for text in ("1.0", "1.5", "2.0") * 2]) == ["1.0", "1.5", "2.0"]


# Keys that appear late


def late(path, count=1200, **more):
    return write(path, *({"image": "a.png", "answer": "yes"} for _ in range(count)), {**ROW, **more})


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_key_that_appears_late_is_read(tmp_path, suffix):
    path = late(tmp_path / f"train.{suffix}", id="last", audio="a.wav", mood="good")
    found = load(path, id_column="id")
    assert found[-1] == Example("last", str(tmp_path / "a.png"), "what?", ("yes",), audio=str(tmp_path / "a.wav"))
    assert found[0] == Example("train/0", str(tmp_path / "a.png"), "", ("yes",))
    data = open_dataset(str(path))
    data.wanted = ("answer", "mood")
    assert [load_split(data, "train")[i].targets["mood"] for i in (0, -1)] == [(), ("good",)]


def test_a_split_and_a_list_that_appear_late(tmp_path):
    rows = [{**ROW, "split": "train"}] * 1100 + [{**ROW, "split": "test", "answer": ["yes", 1], "image": ["a.png", "b.png"]}]
    (test,) = load(write(tmp_path / "data.jsonl", *rows), "test")
    assert test.targets == ("yes", "1")
    assert test.image == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    with pytest.raises(DataError, match="example 1 has nothing in column 'split'"):
        open_dataset(str(late(tmp_path / "data.jsonl", split="test"))).splits()


def test_rows_of_other_names_are_not_left_out(tmp_path):
    rows = [{"image": "a.png", "question": "q", "answer": "x"}] * 1100 + [{"image": "a.png", "prompt": "p", "answer": "y"}]
    path = write(tmp_path / "a.jsonl", *rows)
    with pytest.raises(DataError, match="line 1101 has 'prompt' where others have 'question'.* set text_column to 'question'"):
        load(path)
    assert [load(path, text_column="question")[i].text for i in (0, -1)] == ["q", ""]
    both = [{**ROW, "caption": "a thing"}, {**ROW, "caption": None}, {"image": "a", "caption": "x"}]
    assert [example.targets for example in load(write(tmp_path / "a.jsonl", *both))] == [("yes",), ("yes",), ()]


def test_files_that_differ_in_the_datasets_library_are_refused_with_the_fix(tmp_path):
    write(tmp_path / "train-00000-of-00002.jsonl", {"image": "a.png", "answer": "x"})
    write(tmp_path / "train-00001-of-00002.jsonl", ROW)
    with pytest.raises(SourceError, match="(?s)column names don't match.*one file of JSON lines"):
        load(f"datasets:{tmp_path}")
    with pytest.raises(SourceError, match="(?s)column names don't match.*one file of JSON lines"):
        list(load(f"datasets:{tmp_path}", streaming=True))


# Damaged rows


@pytest.mark.parametrize("column", ["image", "question", "answer", "key", "split"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("\ud83d", r"holds \\ud83d, half of a surrogate pair"),
        ("a\0b", "NUL"),
        ({"x": 1}, "holds a mapping"),
        ([[1]], "list|path"),
    ],
    ids=["surrogate", "NUL", "mapping", "list"],
)
def test_a_damaged_cell_is_named_by_line_and_column(tmp_path, column, value, problem):
    good = {**ROW, "key": "k", "split": "train"}
    path = write(tmp_path / "data.jsonl", good, "", {**good, column: value})
    with pytest.raises(DataError, match=rf"data\.jsonl, line 3: column '{column}'.*({problem})"):
        open_dataset(PartConfig(use=str(path), id_column="key")).splits()


def test_answers_that_are_mappings_are_refused_with_the_fix(tmp_path):
    """As the ten answers of VQA are published."""
    write(tmp_path / "train.jsonl", {"image": "a", "answers": [{"answer": "yes", "answer_id": 1}]})
    with pytest.raises(DataError, match="line 1: column 'answers' holds a mapping.*its keys are 'answer', 'answer_id': write"):
        list(load(tmp_path / "train.jsonl"))


def test_a_number_as_a_picture(tmp_path):
    for value in (3, 2.5, True):
        with pytest.raises(DataError, match="line 2: column 'image' holds a (number|truth value), not a picture"):
            load(write(tmp_path / "a.jsonl", ROW, {**ROW, "image": value}))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json"])
def test_bytes_that_are_not_utf8(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", ROW, {**ROW, "answer": "xyz"})
    text = path.read_text().replace("}, {", "},\n{")
    path.write_bytes(text.encode().replace(b"xyz", b"\xe4"))
    line = 3 if suffix == "csv" else 2
    with pytest.raises(DataError, match=rf"a\.{suffix}, line {line}, character \d+: the byte 0xe4 is not UTF-8"):
        load(path)


def test_a_number_with_too_many_digits(tmp_path):
    with pytest.raises(DataError, match="line 2: not JSON: .*digits"):
        load(write(tmp_path / "a.jsonl", ROW, '{"image": "a", "answer": ' + "1" * 5000 + "}"))


def test_a_text_of_parquet_that_is_not_utf8(tmp_path):
    offsets = pa.py_buffer(np.array([0, 1, 2], np.int32))
    texts = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xff")])
    pq.write_table(pa.table({"image": ["a", "b"], "label": texts}), tmp_path / "a.parquet")
    found = load(tmp_path / "a.parquet")
    assert found[0].targets == ("a",)
    with pytest.raises(DataError, match=r"a\.parquet, row 2: column 'label': 'utf-8' codec can't decode byte 0xff"):
        found[1]


@pytest.mark.parametrize("value", ["", " ", [], [""], None, NAN, {"path": ""}, {"bytes": None, "path": None}], ids=repr)
def test_a_picture_that_is_not_there_is_missing(tmp_path, value):
    assert _with_one_missing(tmp_path, value)[1][2].inputs == {}


def _with_one_missing(folder, value):
    from PIL import Image

    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(folder / f"{colour}.png")
    rows = [{"image": f"{colour}.png", "question": "q", "answer": colour} for colour in ("red", "blue")]
    path = write(folder / "train.jsonl", *rows, {**rows[0], "image": value})
    return path, load(path)


def test_an_example_without_its_picture_is_left_out(tmp_path, quick):
    path, _ = _with_one_missing(tmp_path, NAN)
    options = dict(dataset=str(path), progress=False, training=quick)
    with pytest.raises(BadImage, match="example train/2: there is no image"):
        mmzoo.train(tiny("cnn-product-lstm"), output=tmp_path / "a", **options)
    run = mmzoo.train(tiny("cnn-product-lstm"), output=tmp_path / "b", skip_bad=True, **options)
    assert set(run.skipped) == {("train/2", "there is no image")}


def test_an_empty_path_is_not_the_current_folder():
    with pytest.raises(BadImage, match="its path is empty"):
        open_image("")
    with pytest.raises(BadImage, match="there is no image"):
        mmzoo.build(tiny("cnn-product-lstm")).predict("", "what?")
