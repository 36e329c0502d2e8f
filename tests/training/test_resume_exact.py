"""A resumed run ends with the bits of an unbroken one; streams go on where they stopped; warm-up; captions are all trained on."""

import itertools
import json
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import mmzoo
from mmzoo.data.collate import Collator
from mmzoo.data.dataset import Dataset
from mmzoo.interfaces import Example
from mmzoo.testing import Sample, tiny
from mmzoo.training.callbacks import StopOnSignal
from mmzoo.training.sampling import TrainingBatches, as_it_is
from mmzoo.training.streams import StreamReader


class Stream(Dataset):
    """A data set of these examples, as a list or as a stream; ``shuffled`` as one that shuffles at each pass."""

    def __init__(self, examples, *, streamed=True, shuffled=False):
        super().__init__(None)
        self.examples, self.streamed, self.shuffled = list(examples), streamed, shuffled

    def splits(self):
        return ["train"]

    def load(self, split):
        return self if self.streamed else self.examples

    def __iter__(self):
        own = list(self.examples)
        if self.shuffled:
            random.shuffle(own)
        return iter(own)


def train(recipe, dataset, output, **more):
    return mmzoo.train(recipe, dataset=dataset, output=output, progress=False, **more)


def stopped_and_resumed(recipe, dataset, output, at, monkeypatch, options):
    """Train, stopped at each step of ``at`` and resumed."""
    on_step_end = StopOnSignal.on_step_end
    run = None
    for stop in [*at, None]:

        def stopping(self, args, state, control, stop=stop, **more):
            if state.global_step == stop:
                self.signal = int(signal.SIGTERM)
            on_step_end(self, args, state, control, **more)

        with monkeypatch.context() as patch:
            patch.setattr(StopOnSignal, "on_step_end", stopping)
            run = train(recipe, dataset, output, training=options, resume=run is not None)
        assert run.finished == (stop is None)
    return run


def check_equal(one, other):
    a, b = one.model.state_dict(), other.model.state_dict()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, f"{len(different)} of {len(a)} tensors differ"
    assert one.history == other.history


def dropping():
    return tiny("cnn-product-lstm", task={"use": "classify", "dropout": 0.3}, encoder={"train": "full"})


def flickering(recipe):
    """Make the encoder's transform add noise, as an augmentation does."""
    real = mmzoo.MultimodalModel.input_pipelines

    class Noisy:
        def __init__(self, transform):
            self.transform = transform

        def __call__(self, image):
            return self.transform(image) + 0.1 * torch.randn(()) + 0.1 * random.random() + 0.1 * np.random.rand()

    def noisy(model):
        pipelines = real(model)
        for pipeline in pipelines.values():
            object.__setattr__(pipeline, "transform", Noisy(pipeline.transform))
        return pipelines

    return noisy


RUN = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "precision": "fp32", "log_every": 3, "cache_features": False}


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ({"workers": 0}, [4]),
        pytest.param({"workers": 2}, [4], marks=pytest.mark.slow),
        pytest.param({"workers": 2, "accumulate": 2, "epochs": 5}, [1, 3], marks=pytest.mark.slow),
        pytest.param({"workers": 1, "save_every": 3}, [3, 6], marks=pytest.mark.slow),  # the ends of epochs
        pytest.param({"workers": 2, "keep_images_together": True}, [2, 5, 7], marks=pytest.mark.slow),
        pytest.param({"workers": 0, "accumulate": 2, "save_every": 2}, [2], marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(tmp_path, monkeypatch, options, at):
    """With dropout and random transforms, in the middle of an epoch and at its end, and of an entry of the log."""
    data = Stream(Sample(count=10).load("train"), streamed=False)
    monkeypatch.setattr(mmzoo.MultimodalModel, "input_pipelines", flickering(dropping()))
    whole = train(dropping(), data, tmp_path / "whole", training={**RUN, **options})
    parts = stopped_and_resumed(dropping(), data, tmp_path / "parts", at, monkeypatch, {**RUN, **options})
    check_equal(whole, parts)


@pytest.mark.slow
def test_a_run_that_stopped_at_its_last_step_gets_no_further_one(tmp_path, monkeypatch):
    """Within an epoch, which has more batches."""
    data, options = Stream(Sample(count=10).load("train"), streamed=False), {**RUN, "max_steps": 4, "schedule": "constant"}
    whole = train(dropping(), data, tmp_path / "whole", training=options)
    parts = stopped_and_resumed(dropping(), data, tmp_path / "parts", [4], monkeypatch, options)
    assert whole.steps == parts.steps == 4
    check_equal(whole, parts)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_to_the_process_group_leaves_the_data_workers_alive(tmp_path, monkeypatch, number):
    """As a terminal and `timeout` send it; the library then stops with an error."""
    on_step_end = StopOnSignal.on_step_end

    def signalled(self, args, state, control, **more):
        if state.global_step == 2:
            workers = multiprocessing.active_children()
            assert workers
            for process in workers:
                if os.getpgid(process.pid) == os.getpgrp():
                    os.kill(process.pid, number)
            os.kill(os.getpid(), number)
            time.sleep(0.3)
        on_step_end(self, args, state, control, **more)

    monkeypatch.setattr(StopOnSignal, "on_step_end", signalled)
    data = Stream(Sample(count=10).load("train"), streamed=False)
    run = train(dropping(), data, tmp_path / "run", training={**RUN, "workers": 1})
    assert (run.finished, run.signal, run.steps) == (False, number, 2)
    for process in multiprocessing.active_children():  # as the interpreter does when it ends
        process.terminate()
        process.join(20)
        assert not process.is_alive()
    monkeypatch.undo()
    run = train(dropping(), data, tmp_path / "run", training={**RUN, "workers": 1}, resume=True)
    check_equal(train(dropping(), data, tmp_path / "whole", training=RUN | {"workers": 0}), run)


def test_the_workers_change_nothing(tmp_path, monkeypatch):
    data = Stream(Sample(count=10).load("train"), streamed=False)
    monkeypatch.setattr(mmzoo.MultimodalModel, "input_pipelines", flickering(dropping()))
    runs = [train(dropping(), data, tmp_path / str(n), training={**RUN, "epochs": 1, "workers": n}) for n in (0, 2)]
    check_equal(*runs)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_where_it_stopped(tmp_path, monkeypatch, workers):
    """41 examples in batches of 4, stopped at step 15 of 24 in the second pass; the order of each pass is another."""
    data = Stream([*Sample(count=41).load("train")], shuffled=True)
    options = {"max_steps": 24, "batch_size": 4, "workers": workers, "log_every": 4, "precision": "fp32"}
    whole = train(dropping(), data, tmp_path / "whole", training=options)
    check_equal(whole, stopped_and_resumed(dropping(), data, tmp_path / "parts", [15], monkeypatch, options))


def test_a_resumed_stream_neither_repeats_nor_loses_an_example(tmp_path, monkeypatch):
    seen = []
    real = Collator.__call__

    def spy(self, examples):
        batch = real(self, examples)
        seen.append(batch["names"])
        return batch

    data = Stream([Example(str(i), e.image, e.text, e.targets) for i, e in enumerate(Sample(count=41).load("train"))])
    options = {"max_steps": 24, "batch_size": 4, "workers": 0, "precision": "fp32"}
    monkeypatch.setattr(Collator, "__call__", spy)
    stopped_and_resumed(dropping(), data, tmp_path / "m", [15], monkeypatch, options)
    # One batch is read ahead, so that the first of the resumed run was read before the stop too.
    before, after = seen[:15], seen[-9:]
    passes = itertools.islice(itertools.cycle(map(str, range(41))), 24 * 4)
    assert [name for batch in before + after for name in batch] == list(passes)


class Names:
    """A collator that gives the ids and the draws."""

    skip_bad = False

    def __call__(self, examples):
        return {"names": [e.id for e in examples], "draws": [e.draw for e in examples], "bad": []}


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_a_stream_read_by_workers_from_any_position(workers):
    stream = [Example(str(i)) for i in range(7)]
    batches = TrainingBatches((each for each in ()), Names(), 0, 40)
    batches.reader = StreamReader(Stream(stream), 0, skip_bad=False)
    loader = DataLoader(batches, 4, sampler=range(12, 40), num_workers=workers, collate_fn=as_it_is)
    read = [(name, draw) for batch in loader for name, draw in zip(batch["names"], batch["draws"], strict=True)]
    assert read == [(str(i % 7), (0, i % 7, i // 7)) for i in range(12, 40)]


def test_a_stream_of_the_datasets_library_goes_on_at_a_position_and_after_a_bad_row():
    import datasets

    from mmzoo_datasets.columns import Columns, RowReader
    from mmzoo_datasets.hub import Stream as HubStream

    table = datasets.Dataset.from_list([{"image": str(i), "target": {"x": i if i == 2 else None}} for i in range(5)])

    class Strict(RowReader):
        def __call__(self, row, index):
            if row["target"]["x"] == 2:
                raise mmzoo.errors.DataError("row 3: no")
            return Example(str(index), row["image"])

    stream = HubStream(table.to_iterable_dataset(2), Strict(Columns("image", None, "target", None), "train", "x"))
    whole = StreamReader(stream, 0, skip_bad=True).read(range(12))
    assert [e.id for e in whole[0]] == ["0", "1", "3", "4", "0", "1", "3", "4", "0", "1"]
    assert whole[1] == [("#3", "row 3: no")] * 2
    again = StreamReader(stream, 0, skip_bad=True).read(range(7, 12))
    assert [(e.id, e.draw) for e in again[0]] == [(e.id, e.draw) for e in whole[0][-4:]]
    with pytest.raises(mmzoo.errors.DataError, match="row 3"):
        StreamReader(stream, 0, skip_bad=False).read([4])


def test_an_empty_pass_of_a_stream_is_an_error():
    with pytest.raises(mmzoo.errors.DataError, match="empty"):
        StreamReader(Stream([]), 0, skip_bad=False).read([0])


def test_each_epoch_has_another_order(tmp_path, monkeypatch):
    seen = []
    real = Collator.__call__
    monkeypatch.setattr(
        Collator, "__call__", lambda self, examples: seen.append([e.id for e in examples]) or real(self, examples)
    )
    train(dropping(), Stream(Sample(count=12).load("train"), streamed=False), tmp_path / "m", training={**RUN, "workers": 0})
    epochs = [[name for batch in seen[i : i + 3] for name in batch] for i in (0, 3, 6)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_filled_cache_changes_nothing(tmp_path):
    """The first run fills the cache, the second finds it."""
    recipe = tiny("cnn-product-lstm", encoder={"train": "frozen"}, task={"use": "classify", "dropout": 0.3})
    data = Stream(Sample(count=10).load("train"), streamed=False)
    options = {**RUN, "cache_features": True}
    check_equal(*[train(recipe, data, tmp_path / name, training=options) for name in "ab"])


@pytest.mark.slow
def test_missing_inputs_and_two_encoders(tmp_path, monkeypatch):
    encoders = {"image": "cnn", "audio": "log-mel-gru"}
    recipe = tiny(mmzoo.Recipe.of({"encoders": encoders, "fusion": "late-concat", "language_model": "lstm", "task": "classify"}))
    data = Stream(Sample(count=10).load("train"), streamed=False)
    options = {**RUN, "modality_dropout": 0.4, "workers": 1}
    whole = train(recipe, data, tmp_path / "whole", training=options)
    check_equal(whole, stopped_and_resumed(recipe, data, tmp_path / "parts", [4], monkeypatch, options))


# Warm-up


def rates(run):
    return [entry["learning_rate"] for entry in run.history]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize(("warmup", "first"), [(0.4, 4), (4, 4), (1, 1), (0, 0), (0.03, 1), (25, 25)])
def test_step_k_of_the_warm_up_has_k_of_its_shares(tmp_path, schedule, warmup, first):
    options = {"max_steps": 10, "batch_size": 2, "log_every": 1, "learning_rate": 0.01, "warmup": warmup, "schedule": schedule}
    found = rates(train(dropping(), Sample(), tmp_path / "m", training=options))
    assert found[:first] == pytest.approx([0.01 * k / first for k in range(1, first + 1)][:10])
    assert min(found) > 0
    rest = found[first:]
    assert all(a >= b for a, b in itertools.pairwise(rest))
    if rest:
        assert rest[0] == pytest.approx(0.01)  # the peak
    if schedule == "linear" and rest:
        assert rest == pytest.approx([0.01 * (10 - k) / (10 - first) for k in range(first, 10)])


def test_a_run_of_one_step_trains(tmp_path):
    recipe = dropping()
    run = train(recipe, Sample(), tmp_path / "m", training={"max_steps": 1, "batch_size": 4, "learning_rate": 0.01})
    before = mmzoo.build(run.model.recipe, seed=recipe.training.seed).state_dict()
    after = run.model.state_dict()
    assert rates(run) == [0.01]
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_rates_of_a_resumed_run(tmp_path, monkeypatch):
    options = {"max_steps": 6, "batch_size": 2, "log_every": 1, "warmup": 4, "workers": 0}
    whole = train(dropping(), Sample(), tmp_path / "whole", training=options)
    parts = stopped_and_resumed(dropping(), Sample(), tmp_path / "parts", [2], monkeypatch, options)
    assert rates(whole) == rates(parts)


# Captions

COLORS = ("red one", "green one", "blue one", "grey one", "white one")


def captioned(count=3, several=COLORS):
    return [Example(str(i), e.image, "", several) for i, e in enumerate(Sample(count=count).load("train"))]


def trained_texts(tmp_path, recipe, data, monkeypatch, options, at=()):
    """Return, by epoch and id of the example, the target texts that were trained on."""
    found = {}
    real = Collator.__call__

    def spy(self, examples):
        batch = real(self, examples)
        for name, own in batch["tasks"].items():
            source = own["labels"] if own["labels"].ndim == 2 else own["ids"]
            for example, ids in zip(examples, source, strict=True):
                text = self.text.tokenizer.decode(ids[ids >= 0], skip_special_tokens=True).strip()
                found[name, example.id, example.draw[2]] = text
        return batch

    with monkeypatch.context() as patch:
        patch.setattr(Collator, "__call__", spy)
        run = stopped_and_resumed(recipe, data, tmp_path, at, monkeypatch, options)
    assert run.finished
    return found


@pytest.mark.parametrize("entry", ["caption", "vqa", "contrastive"])
def test_each_caption_is_trained_on_once_in_as_many_epochs(tmp_path, monkeypatch, entry):
    recipe = tiny("cnn-prefix-gpt", task={"use": entry})
    options = {"epochs": 10, "batch_size": 2, "workers": 0, "precision": "fp32"}
    found = trained_texts(tmp_path / "a", recipe, Stream(captioned(), streamed=False), monkeypatch, options)
    assert len(found) == 30
    walks = {tuple(found[entry, i, epoch] for epoch in range(start, start + 5)) for i in "012" for start in (0, 5)}
    assert all(sorted(walk) == sorted(COLORS) for walk in walks)
    assert len(walks) > 1
    again = trained_texts(tmp_path / "b", recipe, Stream(captioned(), streamed=False), monkeypatch, options, at=[7])
    assert again == found


def test_a_stream_trains_on_the_captions_of_a_list(tmp_path, monkeypatch):
    recipe = tiny("cnn-prefix-gpt", task={"use": "caption"})
    options = {"max_steps": 5, "batch_size": 3, "workers": 0, "precision": "fp32", "cache_features": False}
    streamed = trained_texts(tmp_path / "a", recipe, Stream(captioned()), monkeypatch, options)
    listed = trained_texts(tmp_path / "b", recipe, Stream(captioned(), streamed=False), monkeypatch, options)
    assert listed.items() <= streamed.items()  # it reads one batch ahead
    assert {text for (_, name, epoch), text in listed.items() if name == "0"} == set(COLORS)


def test_a_caption_drawn_depends_on_seed_example_and_epoch_only():
    example = Example("a", targets=COLORS)
    assert example.drawn(example.targets) == "red one"
    draws = {(seed, i): [example.in_epoch(seed, i, e).drawn(COLORS) for e in range(5)] for seed in (0, 1) for i in range(8)}
    assert len({tuple(walk) for walk in draws.values()}) > 8
    assert example.in_epoch(0, 0, 3) == example
    assert Example("b", targets=("", "x", " ")).drawn(("", "x", " ")) == "x"
    with pytest.raises(mmzoo.errors.DataError, match="no target text"):
        example.drawn(["", " "])


def test_sets_of_labels_and_numbers_are_no_alternatives(tmp_path):
    examples = [Example(str(i), e.image, "", ("1", str(i))) for i, e in enumerate(Sample(count=6).load("train"))]
    for entry in ("multi-label", "regress"):
        recipe = tiny("cnn-product-lstm", task={"use": entry})
        run = train(recipe, Stream(examples, streamed=False), tmp_path / entry, training={"epochs": 2, "batch_size": 6})
        batch = run.model.collator(training=True)([e.in_epoch(0, 0, 1) for e in examples])["tasks"]
        plain = run.model.collator(training=True)(examples)["tasks"]
        assert torch.equal(next(iter(batch.values()))["labels"], next(iter(plain.values()))["labels"])


def test_the_record_of_a_checkpoint_is_plain_data(tmp_path, monkeypatch):
    options = {**RUN, "workers": 0}
    on_step_end = StopOnSignal.on_step_end

    def stopping(self, args, state, control, **more):
        self.signal = 2 if state.global_step == 4 else 0
        on_step_end(self, args, state, control, **more)

    monkeypatch.setattr(StopOnSignal, "on_step_end", stopping)
    train(dropping(), Stream(Sample(count=10).load("train"), streamed=False), tmp_path / "m", training=options)
    progress = json.loads((tmp_path / "m" / "checkpoints" / "checkpoint-4" / "progress.json").read_text())
    assert progress["seen"] == 14
    assert progress["losses"][0]["steps"][""] == [3]
