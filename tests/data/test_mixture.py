"""Several data sets as one: which tasks each serves, how often each is drawn from, and streams that go on from a state."""

import gzip
import io
import json
import pickle
import tarfile
from collections import Counter
from itertools import islice, pairwise

import datasets
import numpy as np
import pytest
from PIL import Image

import mmzoo
from mmzoo.cli.arguments import datasets_of
from mmzoo.data.mixture import Mixture, StreamMixture, open_sources
from mmzoo.data.open import open_dataset
from mmzoo.errors import BadRecipe, DataError, UnknownName
from mmzoo.interfaces import Example
from mmzoo.recipes.data_options import DataOptions
from mmzoo.recipes.merging import assignments
from mmzoo.recipes.schema import PartConfig
from mmzoo.training.data import open_examples
from mmzoo.training.draws import Draws, Turns
from mmzoo.training.mixing import group, used_sources
from mmzoo.training.sampling import Shuffled, open_reader


@pytest.fixture(autouse=True)
def _caches(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def recipe(tasks=("shape", "topic"), **more):
    parts = {"encoder": "cnn", "fusion": "late-concat", "language_model": "lstm"}
    return mmzoo.Recipe.of({**parts, "tasks": dict.fromkeys(tasks, "classify"), **more})


def table(path, count, **columns):
    """Write a file of JSON lines whose columns have a value of ``columns``, in turn."""
    rows = [{"image": f"{i}.png", **{name: values[i % len(values)] for name, values in columns.items()}} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def examples(name, count, targets="ab"):
    return [Example(f"{name}{i}", f"{name}{i}.png", "", {"shape": (targets[i % len(targets)],)}) for i in range(count)]


def opened(config, specs):
    return open_examples(config, used_sources(config.data, open_sources(config, specs)), "train", None)


class TestTasks:
    def test_each_data_set_serves_the_tasks_that_its_columns_have(self, tmp_path):
        one = table(tmp_path / "one.jsonl", 3, shape="ab", topic="xy")
        two = table(tmp_path / "two.jsonl", 2, topic="yz")
        read = opened(recipe(), [one, two])
        assert [dict(each.targets) for each in read] == [
            {"shape": ("a",), "topic": ("x",)},
            {"shape": ("b",), "topic": ("y",)},
            {"shape": ("a",), "topic": ("x",)},
            {"topic": ("y",)},
            {"topic": ("z",)},
        ]

    def test_easy_vqa_serves_what_it_has(self):
        dataset = open_sources(recipe(("shape", "topic")), [{"use": "easy-vqa", "limit": 2}, "three-signals"])[0].dataset
        assert list(dataset.load("test")[0].targets) == ["shape"]

    def test_one_is_for_a_task_and_others_for_what_they_serve(self, tmp_path):
        both = table(tmp_path / "both.jsonl", 1, shape="a", topic="x")
        other = table(tmp_path / "other.jsonl", 1, answer="y")
        read = opened(recipe(), {"topic": [other, {"use": other, "limit": 1}], None: both})
        assert [dict(each.targets) for each in read] == [
            {"topic": ("y",)},
            {"topic": ("y",)},
            {"shape": ("a",), "topic": ("x",)},
        ]

    def test_one_object_for_two_tasks(self, tmp_path):
        dataset = open_dataset(table(tmp_path / "both.jsonl", 1, shape="a", topic="x"))
        read = opened(recipe(), {"shape": dataset, "topic": dataset})
        assert [dict(each.targets) for each in read] == [{"shape": ("a",)}, {"topic": ("x",)}]

    @pytest.mark.parametrize(
        ("specs", "error", "says"),
        [
            (["{other}", "{shape}"], DataError, "no column serves one of the tasks shape, topic.*'image', 'answer'.*TASK=NAME"),
            (["{shape}", "{shape}"], DataError, "no data set serves the task 'topic'; add --dataset topic=NAME"),
            ({"shape": "{shape}"}, DataError, "no data set serves the task 'topic'"),
            ({"colour": "{shape}"}, UnknownName, "no task 'colour'; the tasks are shape, topic"),
            (["three-signals", "{shape}"], None, ""),
            ([], DataError, "no data set is given"),
        ],
    )
    def test_what_is_served_by_none_is_an_error(self, tmp_path, specs, error, says):
        files = {
            "shape": table(tmp_path / "shape.jsonl", 2, shape="ab"),
            "other": table(tmp_path / "other.jsonl", 2, answer="ab"),
        }
        fill = {k: v.format(**files) for k, v in specs.items()} if isinstance(specs, dict) else [s.format(**files) for s in specs]
        if error is None:
            assert len(opened(recipe(), fill)) == 8002
            return
        with pytest.raises(error, match=says):
            opened(recipe(), fill)

    def test_targets_that_do_not_say_which_task_they_are_for(self, tmp_path):
        other = table(tmp_path / "other.jsonl", 2, topic="ab")
        with pytest.raises(DataError, match=r"'easy-vqa' does not say which task.*TASK=easy-vqa.*mood, topic"):
            opened(recipe(("mood", "topic")), [other, {"use": "easy-vqa", "limit": 2}])

    def test_options_on_the_command_line(self):
        def read(given, data):
            found = datasets_of(given, data)["datasets"]
            return {task: [(p if isinstance(p, str) else (p.use, p.options)) for p in each] for task, each in found.items()}

        assert read(["a=x.csv", "y"], ["a.limit=3", "y.limit=4", "target_columns.a=b", "y.context=1"]) == {
            "a": [("x.csv", {"limit": 3, "target_columns": {"a": "b"}})],
            None: [("y", {"limit": 4, "target_columns": {"a": "b"}, "context": 1})],
        }
        assert read(["x.csv", "y"], ["x.csv.limit=3"]) == {None: [("x.csv", {"limit": 3}), "y"]}

    def test_a_mapping_names_options_and_a_split(self):
        (source,) = open_sources(recipe(("answer",)), {"use": "easy-vqa:test", "limit": 3})
        assert (source.split, len(source.load(recipe(("answer",)), "test"))) == ("test", 3)


def drawn(config, parts, epochs, names=None):
    """Return, by epoch, the (number, pass) of the examples that are drawn."""
    mixture = Mixture(names or [f"d{i}" for i in range(len(parts))], parts)
    epoch = [0]
    together = "image" if config.training.keep_images_together else ""
    order = Shuffled(mixture, config.training.seed, together, lambda: epoch[0], group(config, mixture))
    found = []
    for epoch[0] in range(epochs):
        found.append([divmod(position, len(mixture))[::-1] for position in order])
    return mixture, order, found


class TestWeights:
    def of(self, weights, **more):
        return recipe(("shape",), data={"weights": weights, **more.pop("data", {})}, **more)

    def test_proportional_draws_each_example_once_an_epoch(self):
        _, _, found = drawn(self.of("proportional"), [examples("a", 6), examples("b", 3)], 2)
        assert [sorted(number for number, _ in epoch) for epoch in found] == [list(range(9))] * 2
        assert found[0] != found[1]

    @pytest.mark.parametrize(
        ("weights", "shares"),
        [
            ({"d0": 3, "d1": 1, "d2": 0.001}, (3 / 4.001, 1 / 4.001, 0.001 / 4.001)),
            ("temperature:2", (np.sqrt(40), np.sqrt(10), np.sqrt(2))),
            ("round-robin", (1, 1, 1)),
        ],
    )
    def test_shares(self, weights, shares):
        """Each epoch to a draw, and over all of them to a draw too; each set is walked through before it begins again."""
        sizes = (40, 10, 2)
        _, order, found = drawn(self.of(weights), [examples(f"{i}-", n) for i, n in enumerate(sizes)], 60)
        starts = np.cumsum((0, *sizes))
        total = np.zeros(3)
        seen = Counter()
        for epoch in found:
            counts = np.histogram([number for number, _ in epoch], starts)[0]
            expected = np.array(shares) / sum(shares) * 52
            assert (abs(counts - expected) < 2).all()
            total += counts
            assert (abs(total - expected * (found.index(epoch) + 1)) < 1.01).all()
            for number, times in epoch:
                assert seen[number] == times  # the pass of its own set
                seen[number] += 1
        for start, end in pairwise(starts):
            assert max(seen[i] for i in range(start, end)) - min(seen[i] for i in range(start, end)) <= 1
        sources = np.repeat(range(3), sizes)
        assert order.drawn(sources, 60, 0) == total.tolist()
        part = np.histogram([number for number, _ in found[59][:17]], starts)[0]
        before = np.sum([np.histogram([number for number, _ in epoch], starts)[0] for epoch in found[:59]], 0)
        assert order.drawn(sources, 59, 17) == (before + part).tolist()

    def test_round_robin_takes_turns(self):
        _, _, found = drawn(self.of("round-robin"), [examples("a", 6), examples("b", 3), examples("c", 3)], 2)
        for epoch in found:
            sources = [0 if number < 6 else 1 if number < 9 else 2 for number, _ in epoch]
            assert all(set(sources[i : i + 3]) == {0, 1, 2} for i in range(0, 12, 3))

    def test_examples_of_an_image_stay_together(self):
        pictures = [Example(str(i), f"{i // 3}.png", "", {"shape": ("a",)}) for i in range(12)]
        config = self.of({"d0": 2, "d1": 1}, training={"keep_images_together": True})
        _, _, found = drawn(config, [pictures, examples("b", 6)], 1)
        numbers = [number for number, _ in found[0]]
        places = [numbers.index(3 * picture) for picture in range(4)]
        assert all(numbers[place : place + 3] == [3 * p, 3 * p + 1, 3 * p + 2] for p, place in enumerate(places))
        with pytest.raises(BadRecipe, match="round-robin takes turns by example.*keep_images_together"):
            drawn(self.of("round-robin", training={"keep_images_together": True}), [pictures, pictures], 1)

    def test_classes_are_drawn_equally_often(self):
        config = self.of("proportional", data={"balance": "shape"})
        rare = [Example(str(i), "x", "", {"shape": ("rare" if i % 10 == 0 else "usual",)}) for i in range(40)]
        other = [Example(f"o{i}", "x", "", {"topic": ("t",)}) for i in range(20)]
        _, _, found = drawn(config, [rare, other], 3)
        for epoch in found:
            kinds = Counter("other" if number >= 40 else rare[number].targets["shape"][0] for number, _ in epoch)
            assert kinds == {"other": 20, "rare": 20, "usual": 20}

    @pytest.mark.parametrize(
        ("targets", "says"),
        [([("a", "b")] * 4, "has 2 targets"), ([(str(i / 7),) for i in range(9)], "9 targets are 9 different")],
    )
    def test_a_task_without_classes_is_not_balanced(self, targets, says):
        given = [Example(str(i), "x", "", {"shape": own}) for i, own in enumerate(targets)]
        with pytest.raises(DataError, match=f"task 'shape' has no classes.*{says}"):
            drawn(self.of("proportional", data={"balance": "shape"}), [given], 1)

    def test_a_balance_of_no_task(self):
        with pytest.raises(BadRecipe, match="balance: there is no task 'colour'; the tasks are shape"):
            drawn(self.of("proportional", data={"balance": "colour"}), [examples("a", 4)], 1)

    @pytest.mark.parametrize(
        ("weights", "says"),
        [
            ({"one": 1, "three": 1}, "no data set 'three'; they are called one, two"),
            ({"one": 1}, "'two' has no weight; give it one, or 0"),
        ],
    )
    def test_weights_of_no_data_set(self, weights, says):
        sources = open_sources(recipe(("one", "two")), {"one": "easy-vqa", "two": "easy-vqa"})
        with pytest.raises(BadRecipe, match=says):
            used_sources(DataOptions(weights=weights), sources)
        kept = used_sources(DataOptions(weights={"one": 0, "two": 3}), sources)
        assert [source.name for source in kept] == ["two"]

    def test_names_with_dots(self):
        weights = {"one": 1, **assignments(["a.csv=2", "./b/c.csv=3"])}
        assert DataOptions(weights=weights).weights == {"one": 1, "a.csv": 2, "./b/c.csv": 3}

    @pytest.mark.parametrize(
        ("weights", "says"),
        [
            ({"a": -1}, "negative"),
            ({"a": 0, "b": 0}, "all weights are 0"),
            ("x", "round-robin"),
            ({"a": "x"}, "of 'a' must be"),
            (3, "numbers by name"),
        ],
    )
    def test_weights_that_are_none(self, weights, says):
        with pytest.raises(BadRecipe, match=rf"data\.weights.*{says}"):
            self.of(weights)

    def test_tiny_shares_are_drawn_in_the_long_run(self):
        draws = Draws([1000, 1, 1, 1], 10)
        total = sum(draws.counts(block)[1] for block in range(1003))
        assert total.tolist() == [10_000, 10, 10, 10]
        before = draws.counts(500)[0].tolist()  # going back
        assert before == Draws([1000, 1, 1, 1], 10).counts(500)[0].tolist() == [4985, 5, 5, 5]


class Counted:
    """A stream with a state, which counts the examples that are read."""

    def __init__(self, rows):
        self.rows, self.place, self.start, self.read = rows, 0, 0, 0

    def __iter__(self):
        self.place, self.start = self.start, 0
        while self.place < len(self.rows):
            self.place, self.read = self.place + 1, self.read + 1
            yield self.rows[self.place - 1]

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.start = state["place"]


def reader(streams, weights="round-robin", state=None, window=0):
    names = [f"s{i}" for i in range(len(streams))]
    options = DataOptions(weights=weights, shuffle_buffer=window)
    found = open_reader(StreamMixture(names, streams) if len(streams) > 1 else streams[0], options, 7, skip_bad=False)
    found.load_state_dict(json.loads(json.dumps(state)))
    return found


class TestStreams:
    @pytest.mark.parametrize("window", [0, 5])
    @pytest.mark.parametrize("weights", ["round-robin", {"s0": 5, "s1": 2, "s2": 1}])
    def test_none_is_twice_or_lost_in_a_pass_and_a_state_goes_on(self, window, weights):
        def streams():
            return [Counted(examples("a", 13)), Counted(examples("b", 7)), examples("c", 5)]

        whole, _ = reader(streams(), weights, window=window).read(range(200))
        for name, count in (("a", 13), ("b", 7), ("c", 5)):
            own = [each for each in whole if each.id.startswith(name)]
            for start in range(0, len(own) - count, count):
                one_pass = own[start : start + count]
                assert sorted(each.id for each in one_pass) == sorted(f"{name}{i}" for i in range(count))
                assert {each.draw[2] for each in one_pass} == {start // count}
            assert len({(each.draw[1], each.draw[2]) for each in own}) == len(own)
            in_order = [each.id for each in own[:count]] == [f"{name}{i}" for i in range(count)]
            assert in_order == (window == 0 and name != "c")
        for stop in (1, 13, 64, 150):
            first = reader(streams(), weights, window=window)
            first.read(range(stop))
            again = streams()
            rest, _ = reader(again, weights, first.state_dict(), window).read(range(stop, 200))
            assert [(e.id, e.draw) for e in rest] == [(e.id, e.draw) for e in whole[stop:]]
            own = sum(e.id[0] == "a" for e in rest)
            assert own <= again[0].read <= own + max(2 * window, 1)

    def test_a_stream_for_one_task_has_the_state_of_its_own(self, tmp_path):
        table(tmp_path / "train.jsonl", 6, answer="abc")
        (source,) = open_sources(recipe(("shape",)), {"shape": {"use": f"datasets:{tmp_path}", "streaming": True}})
        stream = source.load(recipe(("shape",)), "train")
        first = reader([stream])
        first.read(range(2))
        again = reader([pickle.loads(pickle.dumps(stream))], state=first.state_dict())
        sent = pickle.loads(pickle.dumps(again))  # to a data worker
        assert sent.state_dict() == first.state_dict() is not None
        read = [sent.at(position) for position in (2, 3)]
        assert [(each.id, each.targets) for each in read] == [("train/2", {"shape": ("c",)}), ("train/3", {"shape": ("a",)})]

    def test_the_shares_of_streams(self):
        turns = Turns([3, 1], 0, turns=False)
        of = [turns.at(position) for position in range(4096)]
        assert Counter(stream for stream, _ in of) == {0: 3072, 1: 1024} == dict(enumerate(turns.drawn(4096)))
        assert [place for stream, place in of if stream == 1] == list(range(1024))
        assert Turns([3, 1], 0, turns=False).at(3000) == of[3000]
        assert turns.drawn(100) == [sum(s == k for s, _ in of[:100]) for k in (0, 1)]

    def test_a_stream_without_a_state_is_read_from_its_beginning(self):
        class Plain:
            def __iter__(self):
                return iter(examples("a", 9))

        first = reader([Plain()])
        first.read(range(4))
        assert first.state_dict() is None
        assert [e.id for e in reader([Plain()]).read(range(4, 12))[0]] == [f"a{i % 9}" for i in range(4, 12)]

    @pytest.mark.parametrize(
        ("data", "says"),
        [
            ({}, "proportional needs the number of examples.*round-robin.*--set data.weights.a=1"),
            ({"weights": "temperature:2"}, "temperature:2 needs the number"),
            ({"weights": "round-robin", "balance": "shape"}, "balance: the classes of a stream"),
        ],
    )
    def test_what_needs_a_length(self, tmp_path, data, says):
        for name in "ab":
            (tmp_path / name).mkdir()
            table(tmp_path / name / "train.jsonl", 4, shape="ab")
        config = recipe(("shape",), data=data, training={"max_steps": 3})
        specs = [{"use": f"datasets:{tmp_path / name}", "streaming": True} for name in "ab"]
        with pytest.raises(BadRecipe, match=says.replace("weights.a", ".*")):
            opened(config, specs)

    def test_a_stream_among_several_needs_max_steps(self, tmp_path):
        table(tmp_path / "train.jsonl", 4, shape="ab")
        config = recipe(("shape",), data={"weights": "round-robin"})
        with pytest.raises(BadRecipe, match="max_steps: a streamed data set has no length"):
            opened(config, [{"use": "easy-vqa", "limit": 2}, {"use": f"datasets:{tmp_path}", "streaming": True}])


def tars(folder, count, shards=3, **suffixes):
    """Write WebDataset tars; each suffix has a function from the number of a sample to its bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"train-{shard:03}.tar", "w") as tar:
            for number in range(shard * count // shards, (shard + 1) * count // shards):
                for suffix, content in suffixes.items():
                    data = content(number)
                    info = tarfile.TarInfo(f"{number:04}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def png(number):
    data = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(data, "PNG")
    return data.getvalue()


def caption(number):
    return json.dumps({"caption": f"caption {number}", "topic": "xy"[number % 2]}).encode()


def stream(spec, wanted=(), **options):
    return open_dataset(PartConfig.of({"use": f"datasets:{spec}", "streaming": True, **options}, "dataset"), wanted).load("train")


class TestShards:
    @pytest.mark.parametrize(
        ("suffixes", "options", "target"),
        [
            ({"png": png, "txt": lambda i: f"text {i}".encode(), "json": caption}, {}, "text 3"),
            ({"png": png, "json": caption}, {}, "caption 3"),
            ({"png": png, "cls": lambda i: str(i).encode()}, {}, "3"),
            ({"png": png, "json": caption}, {"target_column": "json.topic"}, "y"),
        ],
    )
    def test_tars(self, tmp_path, suffixes, options, target):
        read = list(stream(tars(tmp_path / "t", 10, **suffixes), **options))
        assert [each.id for each in read] == [f"{i:04}" for i in range(10)]
        assert read[3].targets == (target,)
        assert read[3].image["bytes"] == png(3)

    def test_a_pattern_and_targets_by_task(self, tmp_path):
        folder = tars(tmp_path / "t", 9, png=png, json=caption)
        read = list(stream(folder / "train-00[12].tar", ("topic",), target_columns={"topic": "json.topic"}))
        assert [each.id for each in read] == [f"{i:04}" for i in range(3, 9)]
        assert read[0].targets == {"topic": ("y",)}

    def test_a_column_that_is_not_there(self, tmp_path):
        folder = tars(tmp_path / "t", 3, 1, png=png, json=caption)
        with pytest.raises(DataError, match=r"'json.caption', 'json.topic'; there is no 'text': set target_column"):
            stream(folder, target_column="text")

    @pytest.mark.parametrize("kind", ["tar", "parquet", "jsonl.gz"])
    def test_a_state_goes_on_within_a_shard_and_the_next_pass_from_the_beginning(self, tmp_path, kind):
        folder = tmp_path / "t"
        if kind == "tar":
            tars(folder, 12, png=png, json=caption)
        else:
            folder.mkdir()
            for shard in range(3):
                rows = [{"image": f"{i}.png", "caption": f"caption {i}"} for i in range(4 * shard, 4 * shard + 4)]
                if kind == "parquet":
                    datasets.Dataset.from_list(rows).to_parquet(folder / f"train-{shard}.parquet")
                else:
                    with gzip.open(folder / f"train-{shard}.jsonl.gz", "wt") as file:
                        file.write("\n".join(map(json.dumps, rows)))
        given = stream(folder)
        every = [each.targets[0] for each in given]
        assert every == [f"caption {i}" for i in range(12)]
        for stop in (1, 4, 7, 12):
            list(islice(rows := iter(given), stop))
            state = json.loads(json.dumps(given.state_dict()))
            other = stream(folder)
            other.load_state_dict(state)
            assert [each.targets[0] for each in other] == every[stop:] == [each.targets[0] for each in rows]
            assert [each.targets[0] for each in other] == every
