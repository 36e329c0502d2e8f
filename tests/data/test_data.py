"""Data sets, pictures and fingerprints."""

import csv
import io
import json
import pickle
from collections.abc import Sequence

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mmzoo.data.fingerprint import fingerprint
from mmzoo.data.open import load_split, open_dataset
from mmzoo.errors import BadImage, BadRecipe, DataError, SourceError, UnknownName
from mmzoo.interfaces import Example
from mmzoo.modalities.identity import input_key
from mmzoo.modalities.image import open_image
from mmzoo.recipes.schema import PartConfig


@pytest.fixture(autouse=True)
def _caches(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def png(colour="red", size=(6, 4)):
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def table(path, header, *rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def load(path, split="train", **options):
    return load_split(open_dataset(PartConfig(use=str(path), **options)), split)


def wanting(path, *wanted, split="train", **options):
    data = open_dataset(PartConfig(use=str(path), **options))
    data.wanted = wanted
    return load_split(data, split)


ROW = {"image": "a.png", "question": "what?", "answer": "yes"}


class TestEasyVQA:
    def test_official_splits(self):
        data = open_dataset("easy-vqa")
        assert data.splits() == ["train", "test"]
        train, test = load_split(data, "train"), load_split(data, "test")
        assert (len(train), len(test)) == (38_575, 9_673)
        assert (len({e.image for e in train}), len({e.image for e in test})) == (4_000, 1_000)
        assert len({e.targets for e in train}) == 13
        assert train[0].id == "train/0"
        assert train[0].text == "what is the blue shape?"
        assert train[0].targets == ("rectangle",)
        assert open_image(train[-1].image).size == (64, 64)

    def test_limit(self):
        few = load_split(open_dataset(PartConfig(use="easy-vqa", limit=5)), "test")
        assert [example.id for example in few] == [f"test/{i}" for i in range(5)]

    def test_the_pictures_show_what_the_questions_say(self):
        from mmzoo_datasets.easy_vqa import COLORS

        shapes = {"circle", "rectangle", "triangle"}
        for split in ("train", "test"):
            pictures = {}
            for example in wanting("easy-vqa", "answer", "shape", "color", "position", split=split):
                (answer,), (shape,), (color,), position = example.targets.values()
                assert pictures.setdefault(example.image, (shape, color, position)) == (shape, color, position)
                words = set(example.text.strip("?").split())
                named = words & (shapes | set(COLORS))
                if answer in ("yes", "no"):
                    assert (answer == "yes") == ((named <= {shape, color}) != bool(words & {"no", "not"})), example
                else:
                    assert answer == (shape if answer in shapes else color), example
                    assert named <= {shape, color}, example
            places = np.array([[float(number) for number in position] for _, _, position in pictures.values()])
            assert 0.05 < places.min() < 0.1 < 0.9 < places.max() < 0.95
            assert (abs(places.mean(0) - 0.5) < 0.03).all()

    def test_position(self, monkeypatch, tmp_path):
        from mmzoo_datasets.easy_vqa import look

        image = Image.new("RGB", (64, 64), (250, 240, 235))
        image.paste((165, 42, 42), (0, 16, 16, 48))
        image.save(tmp_path / "a.png")
        assert look(tmp_path / "a.png") == {"shape": ("rectangle",), "color": ("brown",), "position": ("0.1250", "0.5000")}

    def test_targets_by_task(self, monkeypatch):
        few = wanting("easy-vqa", "color", "answer", limit=2)
        assert few[0].targets == {"color": ("blue",), "answer": ("rectangle",)}
        monkeypatch.setattr("mmzoo_datasets.easy_vqa.look", None)
        assert wanting("easy-vqa", "answer", limit=1)[0].targets == {"answer": ("rectangle",)}
        assert wanting("easy-vqa", "mine", "yours", limit=1)[0].targets == ("rectangle",)
        with pytest.raises(DataError, match="no targets for the task 'size': name the task answer, shape, color or position"):
            wanting("easy-vqa", "answer", "size")

    def test_not_installed(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(DataError, match=r'pip install "mmzoo\[demo\]"'):
            open_dataset("easy-vqa").load("train")

    def test_damaged(self, monkeypatch, tmp_path):
        monkeypatch.setattr("mmzoo_datasets.easy_vqa._folder", lambda: tmp_path)
        with pytest.raises(DataError, match="force-reinstall"):
            open_dataset("easy-vqa").load("train")


class TestOpenMoji:
    @pytest.fixture
    def splits(self, drawings, monkeypatch):
        monkeypatch.setenv("MMZOO_CACHE", str(drawings))
        data = open_dataset(PartConfig(use="openmoji"))
        return {split: data.load(split) for split in data.splits()}

    @pytest.mark.slow
    def test_every_picture_is_in_one_split(self, splits):
        counts = {split: len(examples) for split, examples in splits.items()}
        assert list(counts) == ["train", "validation", "test"]
        assert sum(counts.values()) > 3_600
        assert 150 < counts["test"] < 300
        assert 150 < counts["validation"] < 300
        images = [example.image for examples in splits.values() for example in examples]
        assert len(set(images)) == len(images)
        names = [name for examples in splits.values() for example in examples for name in example.targets]
        assert len(set(names)) == len(names)

    def test_held_out_combinations_are_new_and_their_parts_are_not(self, splits):
        from mmzoo_datasets.openmoji import Combination

        train = [Combination.of(example.targets[0]) for example in splits["train"]]
        parts = {part for combination in train for part in combination.parts()}
        words = {word for example in splits["train"] for word in example.targets[0].split()}
        held = [{Combination.of(example.targets[0]) for example in splits[split]} for split in ("validation", "test")]
        assert held[0].isdisjoint(held[1])
        assert held[0].isdisjoint(train)
        assert held[1].isdisjoint(train)
        assert {part for side in held for combination in side for part in combination.parts()} <= parts
        for split in ("validation", "test"):
            assert {word for example in splits[split] for word in example.targets[0].split()} <= words

    def test_names(self, splits):
        from mmzoo_datasets.openmoji import Combination

        targets = {e.id.split("/")[1]: e.targets for examples in splits.values() for e in examples}
        assert targets["1F469-1F3FF-200D-1F692"] == ("woman firefighter dark skin tone",)
        assert ("man cook", "cook") in targets.values()
        assert ("Spain", "Ceuta & Melilla") in targets.values()
        assert Combination.of("woman firefighter medium-dark skin tone") == ("firefighter", "woman", ("medium-dark",))
        kiss = Combination.of("kiss woman man light skin tone dark skin tone")
        assert kiss == ("kiss", "woman man", ("light", "dark"))
        assert not Combination.of("dark skin tone").is_composed
        assert not Combination.of("waffle").is_composed
        assert Combination.of("thumbs up dark skin tone").is_composed

    def test_splits_do_not_change(self, splits):
        from mmzoo_datasets.openmoji import assign

        names = [example.targets[0] for examples in splits.values() for example in examples]
        assert assign(names) == assign(reversed(names))
        assert splits["test"][0].targets == ("Santa Claus medium-light skin tone",)
        assert splits["validation"][0].targets == ("snowboarder medium-light skin tone",)

    def test_pictures_are_drawn_once_on_white(self, splits, drawings, monkeypatch):
        image = open_image(splits["train"][0].image)
        assert image.size == (64, 64)
        assert image.getpixel((0, 0)) == (255, 255, 255)
        monkeypatch.setattr("mmzoo_datasets.openmoji._draw", None)
        few = open_dataset(PartConfig(use="openmoji", limit=3)).load("train")
        assert few == splits["train"][:3]
        assert [path.name[:9] for path in drawings.iterdir()] == ["openmoji-"]

    def test_nothing_is_left_where_drawing_fails(self, tmp_path, monkeypatch):
        def fail(*args):
            raise KeyboardInterrupt

        monkeypatch.setenv("MMZOO_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("mmzoo_datasets.openmoji._draw", fail)
        with pytest.raises(KeyboardInterrupt):
            open_dataset("openmoji").load("train")
        assert not list((tmp_path / "cache").iterdir())

    def test_errors(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("MMZOO_CACHE", str(tmp_path / "file"))
        with pytest.raises(DataError, match="MMZOO_CACHE"):
            open_dataset("openmoji").load("train")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(DataError, match=r'pip install "mmzoo\[openmoji\]"'):
            open_dataset("openmoji").load("train")


class TestFiles:
    def test_folder_of_json_lines(self, tmp_path):
        lines(tmp_path / "train.jsonl", {"image": "x/a.png", "question": "what?", "answer": ["a cat", "cat"]}, "", ROW)
        lines(tmp_path / "test.jsonl", ROW)
        lines(tmp_path / "dataset_info.json", {"about": "it"})
        data = open_dataset(str(tmp_path))
        assert data.splits() == ["train", "test"]
        train = load_split(data, "train")
        assert list(train) == [
            Example("train/0", str(tmp_path / "x/a.png"), "what?", ("a cat", "cat")),
            Example("train/1", str(tmp_path / "a.png"), "what?", ("yes",)),
        ]
        assert load_split(data, "test")[0].id == "test/0"

    def test_texts_stay_as_they_are_written(self, tmp_path):
        answers = ["007", "NA", "2020-01-31", "1.50", "true", "Ä \u2028 “x”", 7, 2.5, True, [1, None, "", "b"], None]
        rows = [{**ROW, "answer": answer} for answer in answers]
        texts = ["007", "NA", "2020-01-31", "1.50", "true", "Ä \u2028 “x”"]
        expected = [(text,) for text in texts] + [("7",), ("2.5",), ("true",), ("1", "b"), ()]
        assert [e.targets for e in load(lines(tmp_path / "a.jsonl", *rows))] == expected
        path = table(tmp_path / "a.csv", list(ROW), *(["a.png", 'say "x",\nyou', text] for text in texts))
        assert [e.targets for e in load(path)] == expected[: len(texts)]
        assert load(path)[0].text == 'say "x",\nyou'

    @pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
    def test_every_format_gives_the_same(self, tmp_path, suffix):
        rows = [{"image": f"{i}.png", "text": f"q{i}", "label": str(i % 2), "key": f"k{i}"} for i in range(2500)]
        path = tmp_path / f"data.{suffix}"
        if suffix == "json":
            path.write_text("\ufeff" + json.dumps(rows, indent=1), encoding="utf-8")
        elif suffix == "jsonl":
            lines(path, *rows)
        elif suffix == "csv":
            table(path, list(rows[0]), *(row.values() for row in rows))
        else:
            datasets.Dataset.from_list(rows).to_parquet(path)
        for source in (path, tmp_path):
            found = load(source, id_column="key")
            assert len(found) == 2500
            assert found[1234] == Example("k1234", str(tmp_path / "1234.png"), "q1234", ("0",))
            assert found[-1] == list(found)[-1]
            assert [e.id for e in found[1:3]] == ["k1", "k2"]
            assert len(load(source, limit=3)) == 3
        with pytest.raises(IndexError):
            found[2500]
        assert list(pickle.loads(pickle.dumps(found))) == list(found)

    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_split_column(self, tmp_path, suffix):
        rows = [{**ROW, "split": split} for split in ("test", "train", "extra", "train")]
        path = tmp_path / f"metadata.{suffix}"
        datasets.Dataset.from_list(rows).to_parquet(path) if suffix == "parquet" else lines(path, *rows)
        for source in (tmp_path, path):
            data = open_dataset(str(source))
            assert data.splits() == ["train", "test", "extra"]
            assert [e.id for e in data.load("train")] == ["train/0", "train/1"]
            assert len(load(source, limit=1)) == 1

    def test_a_single_file_is_the_split_that_it_is_called(self, tmp_path):
        assert open_dataset(str(lines(tmp_path / "test.jsonl", ROW))).splits() == ["test"]
        assert open_dataset(str(lines(tmp_path / "mine.jsonl", ROW))).splits() == ["train"]

    def test_columns_that_are_named(self, tmp_path):
        path = lines(tmp_path / "a.jsonl", {"img": "a.png", "text": "a cat", "n": 3, "label": "x"})
        found = load(path, image_column="img", target_column="text", id_column="n")[0]
        assert found == Example("3", str(tmp_path / "a.png"), "", ("a cat",))
        assert load(path, image_column="img", id_column="img")[0].id == "a.png"
        assert load(path, image_column="img", text_column="")[0].text == ""
        assert load(path, image_column="img", target_column="")[0].targets == ()

    def test_paths_with_signs_that_mean_something_elsewhere(self, tmp_path, monkeypatch):
        folder = tmp_path / "me@home [1]*"
        folder.mkdir()
        datasets.Dataset.from_list([ROW]).to_parquet(folder / "train.parquet")
        assert load(folder)[0].image == str(folder / "a.png")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert load("~/me@home [1]*")[0].image == str(folder / "a.png")

    def test_a_file_that_changed_is_read_again(self, tmp_path):
        for answer in ("yes", "no"):
            datasets.Dataset.from_list([{**ROW, "answer": answer}]).to_parquet(tmp_path / "a.parquet")
            assert load(tmp_path / "a.parquet")[0].targets == (answer,)

    @pytest.mark.parametrize("how", ["bytes", "mapping", "image", "array"])
    def test_pictures_in_parquet(self, tmp_path, how):
        image, features = png("blue"), None
        if how != "bytes":
            image = {"bytes": image, "path": "a.png"}
        if how == "image":
            features = datasets.Features({"pic": datasets.Image(), "caption": datasets.Value("string")})
        if how == "array":
            image = np.asarray(open_image(png("blue"))).tolist()
        rows = datasets.Dataset.from_dict({"pic": [image], "caption": ["blue"]}, features=features)
        rows.to_parquet(tmp_path / "train.parquet")
        found = load(tmp_path, **({} if how == "image" else {"image_column": "pic"}))[0]
        assert not isinstance(found.image, Image.Image)
        assert open_image(found.image).getpixel((0, 0)) == (0, 0, 255)

    def test_paths_in_parquet_start_from_its_folder(self, tmp_path):
        rows = {"image": [{"bytes": None, "path": "a.png"}], "caption": ["x"]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
        assert load(tmp_path)[0].image == str(tmp_path / "a.png")

    def test_missing_pictures_are_no_error_yet(self, tmp_path):
        with pytest.raises(BadImage, match=r"a\.png' does not exist"):
            open_image(load(lines(tmp_path / "a.jsonl", ROW))[0].image)

    @pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
    def test_a_row_without_an_input(self, tmp_path, suffix):
        path, names = tmp_path / f"a.{suffix}", ("image", "audio", "video", "answer")
        rows = [("a.png", None, "a.mp4", "x"), (None, "a.wav", None, "x"), (None, None, None, "x")]
        if suffix == "csv":
            table(path, names, *rows)
        elif suffix == "jsonl":
            lines(path, *(dict(zip(names, row, strict=True)) for row in rows), {"image": "", "audio": [], "answer": "x"})
        else:
            datasets.Dataset.from_list([dict(zip(names, row, strict=True)) for row in rows]).to_parquet(path)
        found = load(path)
        where = {"image": str(tmp_path / "a.png"), "audio": str(tmp_path / "a.wav"), "video": str(tmp_path / "a.mp4")}
        expected = [{"image": where["image"], "video": where["video"]}, {"audio": where["audio"]}]
        assert [example.inputs for example in found] == expected + [{}] * (len(found) - 2)
        assert found[0].of("audio") == []
        assert load(path, video_column="image")[0].inputs == {"video": where["image"]}

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.jsonl", "", "empty"),
            ("a.jsonl", "\n\n", "empty"),
            ("a.csv", "", "empty"),
            ("a.csv", "image,answer\n", "empty"),
            ("a.json", "[]", "empty"),
            ("a.json", '[{"image": 1},', "not JSON"),
            ("a.json", "[3]", "item 1: '3' is not an object"),
            ("a.jsonl", json.dumps(ROW) + "\n\n{'image': 1}", "line 3: not JSON"),
            ("a.json", json.dumps(ROW) + "\n{", "line 2: not JSON"),
            ("a.jsonl", "[" * 100_000, "line 1: not JSON"),
            ("a.jsonl", "[1]", r"line 1: '\[1\]' is not an object"),
            ("a.jsonl", '{"image": "\\ud800", "answer": ""}', r"line 1: column 'image' holds \\ud800"),
            ("a.jsonl", '{"image": 3, "answer": ""}', "line 1: column 'image' holds a number"),
            ("a.jsonl", '{"image": [1, 2], "answer": ""}', "holds a list of numbers, not a picture"),
            ("a.jsonl", '{"image": [[1], [1, 2]], "answer": ""}', "line 1: .*inhomogeneous"),
            ("a.jsonl", '{"image": [[1]], "answer": ""}', "line 1: column 'image': a picture in a text file must be the path"),
            ("a.jsonl", '{"video": [[1]], "answer": ""}', "line 1: column 'video': a video in a text file must be the path"),
            ("a.jsonl", '{"image": "a", "answer": {"x": 1}}', "line 1: column 'answer' holds a mapping"),
            ("a.jsonl", '{"image": "a", "text": ["x"], "answer": ""}', "line 1: column 'text' holds a list"),
            ("a.csv", "image,answer\na.png,x\nb.png\n", "line 3: 1 cells where the header has 2"),
            ("a.csv", 'image,answer\na.png,"x', "line 2: not CSV"),
            ("a.csv", "image,answer,image\na,b,c", "two columns are called 'image'"),
            ("a.parquet", "", "not a Parquet file"),
            ("a.parquet", "no parquet", "not a Parquet file"),
            ("a.csv", "picture;answer\na;b", r"'picture;answer'; none is called image, .*set image_column"),
            ("a.csv", "image,reply\na,b", r"'image', 'reply'; none is called .*set target_column"),
            ("a.csv", "image,text\na,b", r"'image', 'text'; none is called .*set target_column"),
            ("a.jsonl", '{"image": "a", "answer": "", "split": ""}', "example 1 has nothing in column 'split'"),
        ],
    )
    def test_files_that_cannot_be_used(self, tmp_path, name, content, message):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(DataError, match=message) as error:
            load(path)
        assert str(path) in str(error.value)

    def test_an_encoding_other_than_utf8(self, tmp_path):
        (tmp_path / "a.csv").write_bytes("image,answer\na,ä".encode("latin-1"))
        with pytest.raises(DataError, match=r"a\.csv, line 2, character 3: the byte 0xe4 is not UTF-8"):
            load(tmp_path / "a.csv")

    def test_parquet_without_rows(self, tmp_path):
        datasets.Dataset.from_dict({"image": ["a"], "answer": ["b"]}).select([]).to_parquet(tmp_path / "a.parquet")
        with pytest.raises(DataError, match="empty"):
            load(tmp_path / "a.parquet")

    @pytest.mark.parametrize("key", ["image_column", "text_column", "target_column", "id_column"])
    def test_a_column_that_is_not_there(self, tmp_path, key):
        path = lines(tmp_path / "a.jsonl", ROW)
        message = rf"columns are 'image', 'question', 'answer'; there is no 'nope': set {key}"
        with pytest.raises(DataError, match=message):
            load(path, **{key: "nope"})

    def test_folders_that_cannot_be_used(self, tmp_path):
        with pytest.raises(DataError, match="no such file or folder"):
            open_dataset(str(tmp_path / "nowhere"))
        with pytest.raises(DataError, match="no such file or folder"):
            open_dataset(f"files:{tmp_path / 'nowhere'}").splits()
        with pytest.raises(DataError, match=r"such as train\.jsonl.*datasets:"):
            open_dataset(str(tmp_path)).splits()
        path = lines(tmp_path / "train.jsonl", ROW)
        with pytest.raises(DataError, match="no split 'test'; there are: train"):
            load(tmp_path, "test")
        with pytest.raises(DataError, match="no split 'test'"):
            open_dataset(str(path)).load("test")
        (tmp_path / "train.csv").write_text("image,answer\na,b")
        with pytest.raises(DataError, match=r"both train\.csv and train\.jsonl"):
            open_dataset(str(tmp_path)).splits()
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(DataError, match=r"ends in \.jsonl"):
            open_dataset(str(tmp_path / "notes.txt")).splits()

    def test_wrong_options(self, tmp_path):
        path = lines(tmp_path / "a.jsonl", ROW)
        with pytest.raises(BadRecipe, match="limit"):
            open_dataset(PartConfig(use=str(path), limit=0))
        with pytest.raises(BadRecipe, match="imag_column"):
            open_dataset(PartConfig(use=str(path), imag_column="x"))
        with pytest.raises(BadRecipe, match="variant"):
            open_dataset("files")
        with pytest.raises(UnknownName, match="a path, or an id"):
            open_dataset("easy-vqq")


class TestDatasetsLibrary:
    @pytest.fixture
    def folder(self, tmp_path):
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "question": datasets.Value("string"),
                "label": datasets.ClassLabel(names=["no", "yes"]),
                "other": datasets.Image(),
            }
        )
        for split, count in (("train", 5), ("test", 2)):
            image = {"bytes": png(), "path": None}
            label = [i % 2 for i in range(count - 1)] + [-1]
            rows = {"image": [image] * count, "question": ["q"] * count, "label": label, "other": [image] * count}
            datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
        return tmp_path

    def test_whole(self, folder):
        data = open_dataset(f"datasets:{folder}")
        assert data.splits() == ["train", "test"]
        train = load_split(data, "train")
        assert isinstance(train, Sequence)
        assert len(train) == 5
        assert train[1] == Example("train/1", {"bytes": png(), "path": None}, "q", ("yes",))
        assert train[4].targets == ()  # -1 is no class
        assert train.table.column_names == ["image", "question", "label"]
        assert open_image(train[0].image).size == (6, 4)
        assert list(pickle.loads(pickle.dumps(train))) == list(train)
        assert len(load(f"datasets:{folder}", limit=2)) == 2

    def test_streamed(self, folder):
        streamed = load(f"datasets:{folder}", streaming=True)
        assert not isinstance(streamed, Sequence)
        assert list(streamed) == list(load(f"datasets:{folder}"))
        assert list(streamed) == list(streamed)
        assert [e.id for e in load(f"datasets:{folder}", streaming=True, limit=2)] == ["train/0", "train/1"]
        assert list(pickle.loads(pickle.dumps(streamed))) == list(streamed)

    @pytest.mark.parametrize("streaming", [False, True])
    def test_folders_of_pictures_by_class(self, tmp_path, streaming):
        for colour in ("blue", "red"):
            (tmp_path / "train" / colour).mkdir(parents=True)
            (tmp_path / "train" / colour / "1.png").write_bytes(png(colour))
        found = list(load(f"datasets:{tmp_path}", streaming=streaming))
        assert [e.targets for e in found] == [("blue",), ("red",)]
        assert [open_image(e.image).getpixel((0, 0)) for e in found] == [(0, 0, 255), (255, 0, 0)]

    def test_pictures_in_an_archive_are_read_with_the_stream(self, tmp_path):
        from zipfile import ZipFile

        from mmzoo_datasets.columns import Columns, RowReader
        from mmzoo_datasets.hub import Stream

        with ZipFile(tmp_path / "all.zip", "w") as archive:
            archive.writestr("red.png", png("red"))
        reader = RowReader(Columns("image", None, None, None), "train", "data set 'x'")
        paths = [f"zip://{name}.png::{tmp_path}/all.zip" for name in ("red", "green")]
        red, green = Stream(
            datasets.Dataset.from_list([{"image": {"bytes": None, "path": path}} for path in paths]).to_iterable_dataset(), reader
        )
        assert open_image(red.image).getpixel((0, 0)) == (255, 0, 0)
        with pytest.raises(BadImage, match="green"):
            open_image(green.image)

    def test_subset(self, tmp_path):
        for name in ("one", "two"):
            lines(tmp_path / name / "train.jsonl", {**ROW, "answer": name})
        configs = "".join(f"- config_name: {name}\n  data_files: {name}/train.jsonl\n" for name in ("one", "two"))
        (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
        assert load(f"datasets:{tmp_path}", subset="two")[0].targets == ("two",)
        with pytest.raises(SourceError, match=r"one.*two(.|\n)*Set subset"):
            load(f"datasets:{tmp_path}")
        with pytest.raises(SourceError, match=r"three(.|\n)*Set subset"):
            load(f"datasets:{tmp_path}", subset="three")

    def test_code_is_not_run(self, tmp_path):
        (tmp_path / f"{tmp_path.name}.py").write_text("raise SystemExit('code of a data set was run')")
        with pytest.raises(SourceError, match="never run"):
            open_dataset(f"datasets:{tmp_path}").splits()
        with pytest.raises(SourceError, match="never run"):
            open_dataset(f"datasets:{tmp_path}").load("train")

    def test_errors(self, folder, monkeypatch):
        with pytest.raises(DataError, match="no split 'dev'; there are: train, test"):
            load(f"datasets:{folder}", "dev")
        with pytest.raises(SourceError, match="dev"):
            open_dataset(f"datasets:{folder}").load("dev")
        with pytest.raises(DataError, match="columns are 'image', 'question', 'label', 'other'; there is no 'x'"):
            load(f"datasets:{folder}", target_column="x")
        with pytest.raises(DataError, match="is a folder; it has no revision 'main'"):
            open_dataset(f"datasets:{folder}@main")

        def unreachable(*args, **options):
            raise ConnectionError("Couldn't reach 'org/name' on the Hub")

        monkeypatch.setattr(datasets, "get_dataset_split_names", unreachable)
        monkeypatch.setattr(datasets, "load_dataset", unreachable)
        data = open_dataset("org/name@v1")
        assert (data.options.variant, data.options.revision) == ("org/name", "v1")
        with pytest.raises(SourceError, match="'org/name' cannot be read: Couldn't reach"):
            data.splits()
        with pytest.raises(SourceError, match="'org/name' cannot be read: Couldn't reach"):
            data.load("train")

    @pytest.mark.parametrize("streaming", [False, True])
    def test_empty(self, tmp_path, streaming):
        datasets.Dataset.from_dict({"image": ["a"], "answer": ["b"]}).select([]).to_parquet(tmp_path / "train.parquet")
        with pytest.raises(DataError, match="empty"):
            list(load(f"datasets:{tmp_path}", streaming=streaming))

    def test_a_stream_that_breaks_off(self):
        from mmzoo_datasets.columns import Columns, RowReader
        from mmzoo_datasets.hub import Stream

        def rows():
            yield {"image": "a.png"}
            raise OSError("connection lost")

        table = datasets.IterableDataset.from_generator(rows)
        stream = iter(Stream(table, RowReader(Columns("image", None, None, None), "train", "data set 'x'")))
        assert next(stream).image == "a.png"
        with pytest.raises(SourceError, match="data set 'x': reading example 2 failed: connection lost"):
            next(stream)


class TestTargetsByTask:
    """A model with several tasks says what it wants; each task has a column of its own."""

    ROWS = (
        {"image": "a.png", "text": "hm", "mood": "good", "topic": "food", "label": "7"},
        {"image": "b.png", "text": "ah", "mood": "", "topic": "film", "label": "8"},
    )

    @pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
    def test_columns_that_are_called_as_the_tasks(self, tmp_path, suffix):
        path = tmp_path / f"train.{suffix}"
        if suffix == "csv":
            table(path, list(self.ROWS[0]), *(row.values() for row in self.ROWS))
        elif suffix == "parquet":
            datasets.Dataset.from_list(list(self.ROWS)).to_parquet(path)
        else:
            lines(path, *(self.ROWS if suffix == "jsonl" else [json.dumps(self.ROWS)]))
        found = wanting(path, "topic", "mood")
        assert list(found) == [
            Example("train/0", str(tmp_path / "a.png"), "hm", {"topic": ("food",), "mood": ("good",)}),
            Example("train/1", str(tmp_path / "b.png"), "ah", {"topic": ("film",), "mood": ()}),
        ]
        assert list(found[0].targets) == ["topic", "mood"]
        assert list(pickle.loads(pickle.dumps(found))) == list(found)
        found = wanting(path, "mood", "kind", target_columns={"kind": "topic"})
        assert found[1].targets == {"mood": (), "kind": ("film",)}
        assert [e.targets for e in load(path, target_columns={"mood": "nope"})] == [("7",), ("8",)]

    def test_a_single_task(self, tmp_path):
        path = lines(tmp_path / "a.jsonl", *self.ROWS)
        for options, name in (({}, "good"), ({"target_column": "label"}, "7"), ({"target_columns": {"mood": "topic"}}, "food")):
            assert wanting(path, "mood", **options)[0].targets == {"mood": (name,)}
        assert wanting(path, "mine")[0].targets == {"mine": ("7",)}
        assert wanting(path, "mine", target_column="")[0].targets == {"mine": ()}
        with pytest.raises(DataError, match="none is called target.*set target_column"):
            wanting(lines(tmp_path / "b.jsonl", {"image": "a", "topic": "b"}), "mine")

    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_lists_numbers_and_nothing(self, tmp_path, suffix):
        rows = [
            {"image": "a", "tags": ["x", "y"], "place": [0.25, 1.0], "size": 3},
            {"image": "a", "tags": [], "place": None, "size": None},
        ]
        path = tmp_path / f"train.{suffix}"
        lines(path, *rows) if suffix == "jsonl" else datasets.Dataset.from_list(rows).to_parquet(path)
        found = wanting(path, "tags", "place", "size")
        assert found[0].targets == {"tags": ("x", "y"), "place": ("0.25", "1.0"), "size": ("3",)}
        assert found[1].targets == {"tags": (), "place": (), "size": ()}

    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_nan_is_an_empty_cell(self, tmp_path, suffix):
        rows = [{"image": "a", "size": float("nan"), "question": float("nan")}, {"image": "a", "size": 0.5, "question": 1.0}]
        path = tmp_path / f"train.{suffix}"
        lines(path, *rows) if suffix == "jsonl" else datasets.Dataset.from_list(rows).to_parquet(path)
        assert [(e.text, e.targets) for e in wanting(path, "size")] == [("", {"size": ()}), ("1", {"size": ("0.5",)})]
        assert [e.targets for e in load(path, target_column="size")] == [(), ("0.5",)]

    def test_no_picture_is_needed_where_there_is_something_else(self, tmp_path):
        topics = {"mood": "good", "topic": "food"}
        assert wanting(lines(tmp_path / "a.jsonl", {"text": "hm", **topics}), *topics)[0].inputs == {}
        assert list(wanting(lines(tmp_path / "b.jsonl", {"wav": "a.wav", **topics}), *topics)[0].inputs) == ["audio"]
        for path, wanted in ((lines(tmp_path / "c.jsonl", topics), topics), (tmp_path / "a.jsonl", ("mood",))):
            with pytest.raises(DataError, match="set image_column"):
                wanting(path, *wanted)

    def test_a_column_has_one_meaning(self, tmp_path):
        path = lines(tmp_path / "a.jsonl", {"image": "a", "question": "what?", "text": "a cat", "label": "x"})
        example = wanting(path, "caption", "label", target_columns={"caption": "text"})[0]
        assert (example.text, example.targets) == ("what?", {"caption": ("a cat",), "label": ("x",)})

    def test_a_column_that_is_not_there(self, tmp_path):
        path = lines(tmp_path / "a.jsonl", {"image": "a", "mood": "b"})
        message = r"a\.jsonl: no column serves the task 'topic': its columns are 'image', 'mood'; set target_columns\.topic"
        with pytest.raises(DataError, match=message):
            wanting(path, "mood", "topic")
        with pytest.raises(DataError, match=r"there is no 'x': set target_columns\.topic to one of them"):
            wanting(path, "mood", "topic", target_columns={"topic": "x"})
        with pytest.raises(DataError, match=r"target_columns\.topics: no task reads it; the tasks read mood, topic"):
            wanting(path, "mood", "topic", target_columns={"topics": "mood"})

    def test_one_file_of_all_splits_is_read_anew_for_other_tasks(self, tmp_path):
        rows = [{"image": "a", "answer": "x", "mood": "m", "topic": "t", "split": split} for split in ("train", "test")]
        data = open_dataset(str(lines(tmp_path / "data.jsonl", *rows)))
        assert data.load("test")[0].targets == ("x",)
        data.wanted = ("mood", "topic")
        assert data.load("test")[0] == Example("test/0", str(tmp_path / "a"), "", {"mood": ("m",), "topic": ("t",)})

    @pytest.mark.parametrize("streaming", [False, True])
    def test_of_the_datasets_library(self, tmp_path, streaming):
        kind = datasets.ClassLabel(names=["no", "yes"])
        features = datasets.Features({"pic": datasets.Image(), "round": kind, "tags": datasets.List(kind)})
        rows = {"pic": [{"bytes": png(), "path": None}, None], "round": [1, -1], "tags": [[0, 1], []]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
        first, second = wanting(f"datasets:{tmp_path}", "round", "tags", streaming=streaming)
        assert first == Example("train/0", {"bytes": png(), "path": None}, "", {"round": ("yes",), "tags": ("no", "yes")})
        assert second == Example("train/1", None, "", {"round": (), "tags": ()})


class TestPictures:
    def test_every_kind_of_source(self, tmp_path):
        (tmp_path / "a b.png").write_bytes(png("red"))
        array = np.zeros((4, 6, 3), np.uint8)
        array[..., 0] = 255
        sources = [
            str(tmp_path / "a b.png"),
            tmp_path / "a b.png",
            (tmp_path / "a b.png").as_uri(),
            Image.new("RGB", (6, 4), "red"),
            png("red"),
            {"bytes": png("red"), "path": None},
            {"bytes": None, "path": str(tmp_path / "a b.png")},
            array,
            array / 255,
            torch.tensor(array).permute(2, 0, 1),
        ]
        for source in sources:
            image = open_image(source)
            assert (image.mode, image.size, image.getpixel((5, 3))) == ("RGB", (6, 4), (255, 0, 0)), source

    def test_grey(self):
        for array in (np.full((2, 3), 51, np.uint8), np.full((2, 3, 1), 0.2), np.full((2, 3), 51)):
            assert open_image(array).getpixel((2, 1)) == (51, 51, 51)
        assert open_image(np.eye(2, dtype=bool)).getpixel((0, 0)) == (255, 255, 255)
        deep = io.BytesIO()
        Image.fromarray(np.array([[0, 65535]], np.uint16)).save(deep, "PNG")
        assert [open_image(deep.getvalue()).getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]

    def test_transparency_becomes_white(self):
        assert open_image(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
        assert open_image(Image.new("LA", (2, 2), (0, 0))).getpixel((0, 0)) == (255, 255, 255)
        assert open_image(np.zeros((2, 2, 4), np.uint8)).getpixel((0, 0)) == (255, 255, 255)
        palette = Image.new("P", (2, 2), 0)
        palette.putpalette([255, 0, 0])
        palette.info["transparency"] = 0
        assert open_image(palette).getpixel((0, 0)) == (255, 255, 255)

    def test_rotation(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        data = io.BytesIO()
        Image.new("RGB", (6, 4)).save(data, "JPEG", exif=exif)
        assert open_image(data.getvalue()).size == (4, 6)

    @pytest.mark.parametrize(
        "source",
        [
            None,
            7,
            "",
            {},
            {"bytes": None, "path": None},
            b"",
            "no/such.png",
            "file:///no/such.png",
            "https://example.org/a.png",
            "a\0b",
            np.zeros((0, 4)),
            np.zeros((2, 2, 2)),
            np.full((2, 2), 1.5),
            np.full((2, 2), np.nan),
            np.full((2, 2), 300),
            np.array([["a"]]),
        ],
        ids=repr,
    )
    def test_what_is_no_picture(self, source):
        with pytest.raises(BadImage, match="image"):
            open_image(source)

    def test_damaged_files(self, tmp_path):
        (tmp_path / "text.png").write_text("hello")
        with pytest.raises(BadImage, match=r"text\.png' is not a readable image"):
            open_image(tmp_path / "text.png")
        noise = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(noise, "PNG")
        (tmp_path / "cut.png").write_bytes(noise.getvalue()[:1000])
        with pytest.raises(BadImage, match=r"cut\.png' cannot be read"):
            open_image(tmp_path / "cut.png")

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "DDS"])
    def test_whatever_is_damaged_it_is_a_bad_image(self, kind):
        random = np.random.default_rng(0)
        data = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(data, kind)
        for _ in range(200):
            damaged = bytearray(data.getvalue())
            for at in random.integers(0, min(len(damaged), 200), 4):
                damaged[at] = random.integers(256)
            try:
                open_image(bytes(damaged[: random.integers(1, 2 * len(damaged))]))
            except BadImage:
                continue


class TestIdentity:
    def folder(self, path, colour="red", **row):
        path.mkdir()
        (path / "a.png").write_bytes(png(colour))
        (path / "b.png").write_bytes(png("blue"))
        lines(path / "train.jsonl", {**ROW, **row}, {**ROW, "image": "b.png"})
        return load(path)

    def test_fingerprint(self, tmp_path):
        first = fingerprint(self.folder(tmp_path / "1"))
        assert fingerprint(self.folder(tmp_path / "2")) == first
        others = [
            self.folder(tmp_path / "3", (254, 0, 0)),
            self.folder(tmp_path / "4", answer="no"),
            self.folder(tmp_path / "5", question="who?"),
            self.folder(tmp_path / "6", answer=["yes", "yes"]),
            list(load(tmp_path / "1"))[::-1],
            list(load(tmp_path / "1"))[:1],
        ]
        assert len({first, *map(fingerprint, others)}) == 7

    def test_fingerprint_tells_a_target_from_the_name_of_one(self):
        one, other = ({"tags": ("x",), "topic": ()}, {"tags": ("x", "topic")})
        assert fingerprint([Example("1", targets=one)]) != fingerprint([Example("1", targets=other)])

    def test_fingerprint_is_the_same_from_parquet(self, tmp_path):
        folder = self.folder(tmp_path / "1")
        rows = [{**ROW, "image": {"bytes": png(colour), "path": None}} for colour in ("red", "blue")]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
        assert fingerprint(load(tmp_path / "a.parquet")) == fingerprint(folder)

    def test_fingerprint_of_pictures_that_are_made_when_asked_for(self):
        class Lazy(Sequence):
            def __len__(self):
                return 20

            def __getitem__(self, i):
                return Example(str(range(20)[i]), np.full((4, 4), range(20)[i], np.uint8))

        assert fingerprint(Lazy()) == fingerprint([Lazy()[i] for i in range(20)])
        assert len({input_key(example.image) for example in Lazy()}) == 20
        shapes = [Example("", np.zeros((2, 8), np.uint8)), Example("", np.zeros((4, 4), np.uint8))]
        assert fingerprint(shapes[:1]) != fingerprint(shapes[1:])

    def test_key_of_a_picture(self, tmp_path):
        same = [png(), bytearray(png()).__class__(png()), {"bytes": png(), "path": "x"}]
        assert input_key(same[0]) == input_key(bytes(same[1])) == input_key(same[2])
        assert input_key("a.png") == input_key({"bytes": None, "path": "a.png"}) == "a.png"
        assert input_key(Image.new("RGB", (2, 2))) == input_key(Image.new("RGB", (2, 2)))
        assert input_key(Image.new("RGB", (2, 2))) != input_key(Image.new("RGB", (1, 4)))
