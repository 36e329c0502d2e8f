"""The features of a frozen encoder: encoded once, kept by content, and never wrong."""

import contextlib
import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
from collections import namedtuple
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from launcher import head
from PIL import Image
from safetensors import safe_open
from test_train import Given, bad_pictures, losses, recipe_file, train

import mmzoo
from mmzoo.errors import BadImage, BadRecipe, DoesNotFit, FeatureCacheError
from mmzoo.interfaces import Example
from mmzoo.modalities.identity import content_digest
from mmzoo.testing import tiny
from mmzoo.training import feature_cache, feature_store
from mmzoo.training.feature_store import SUFFIX, FeatureStore, layout_of
from mmzoo_fusions.cross import GatedCrossAttention
from mmzoo_scratch.cnn import CNN

FROZEN = {"train": "frozen"}
OPTIONS = {"epochs": 2, "batch_size": 4, "log_every": 1, "precision": "fp32"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def recipe():
    return tiny("cnn-prefix-gpt", encoder=FROZEN)


@pytest.fixture
def captions(tmp_path):
    """Five pictures in files, one of them under two names, with three captions each."""
    examples = []
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    shutil.copy(tmp_path / "4.png", tmp_path / "5.png")
    for i in range(18):
        examples.append(Example(str(i), str(tmp_path / f"{i % 6}.png"), "what", (f"number {i}",)))
    return Given(*examples)


@pytest.fixture
def encoded(monkeypatch):
    """How many pictures each call of the encoder was given."""
    counts, forward = [], CNN.forward

    def counting(self, inputs):
        if not inputs.is_meta:
            counts.append(len(inputs))
        return forward(self, inputs)

    monkeypatch.setattr(CNN, "forward", counting)
    return counts


def folders(cache):
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


def stored(folder):
    """The facts of a store, and the names of its features."""
    with safe_open(next(folder.glob(f"*{SUFFIX}")), "pt") as file:
        return json.loads(file.metadata()["facts"]), sorted({*file.keys()} - {"sha256", "crc32"})


def cached(run):
    return run.model.provenance.run["training"]["cached_features"]


@pytest.mark.parametrize(
    ("fusion", "options"),
    [
        ("prefix-mlp", {"accumulate": 2, "workers": 1}),
        pytest.param("cross-attention", {"keep_images_together": True}, marks=pytest.mark.slow),
        ("late-attention", {"precision": "bf16"}),
    ],
)
def test_the_curve_is_that_of_encoding_every_time(captions, tmp_path, fusion, options):
    recipe = tiny("cnn-prefix-gpt", encoder=FROZEN, fusion={"use": fusion})
    options = {**OPTIONS, **options}
    without = train(recipe, captions, tmp_path / "a", training={**options, "cache_features": False})
    kept = train(recipe, captions, tmp_path / "b", training=options)
    assert (cached(without), cached(kept)) == (False, True)
    tolerance = 1e-3 if options["precision"] == "bf16" else 1e-6
    assert losses(kept) == pytest.approx(losses(without), abs=tolerance)


@pytest.mark.parametrize("tiles", [1, 2])
def test_several_images_and_tiles(tmp_path, encoded, monkeypatch, tiles):
    monkeypatch.setattr(GatedCrossAttention, "tiles", tiles)
    red, green, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue"))
    data = Given(
        Example("two", [red, green], "a <image> and <image>", ("x",)),
        Example("one", [green], "a <image>", ("y",)),
        Example("three", [blue, red, green], "<image><image> and <image>", ("z",)),
    )
    recipe = tiny("cnn-prefix-gpt", encoder=FROZEN, fusion={"use": "cross-attention"})
    options = {**OPTIONS, "learning_rate": 0.1}
    without = train(recipe, data, tmp_path / "a", training={**options, "cache_features": False})
    encoded.clear()
    kept = train(recipe, data, tmp_path / "b", training=options)
    assert cached(kept)
    assert sum(encoded) == 3 * (1 if tiles == 1 else 5)
    assert losses(kept) == pytest.approx(losses(without), abs=1e-5)


def test_each_picture_is_encoded_once_even_in_the_first_epoch(captions, recipe, tmp_path, encoded):
    run = train(recipe, captions, tmp_path / "a", training={**OPTIONS, "epochs": 1, "keep_images_together": False})
    assert cached(run)
    assert sum(encoded) == 5
    encoded.clear()
    train(recipe, captions, tmp_path / "b", training=OPTIONS)
    assert encoded == []
    more = Given(*captions.examples, Example("new", Image.new("RGB", (32, 32), "red"), "what", ("red",)))
    train(recipe, more, tmp_path / "c", training=OPTIONS, language_model={"vocabulary": None})
    assert encoded == [1]


def test_records_are_what_the_encoder_gave_to_the_last_bit(sample, cache, tmp_path):
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        recipe = tiny("siglip-projector-smollm2")
        run = train(recipe, sample, tmp_path / precision, training={**OPTIONS, "batch_size": 8, "precision": precision})
        assert cached(run)
        examples, model = sample.load("train"), run.model
        inputs = torch.stack([model.encoder.transform(example.image) for example in examples])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            direct = model.encode(inputs)
        assert direct.pooled.dtype == dtype
        facts = [stored(cache / name)[0] for name in folders(cache)]
        place = next(i for i, fact in enumerate(facts) if (fact["precision"] == "bf16") == (precision == "bf16"))
        store = FeatureStore(cache / folders(cache)[place], facts[place])
        for i, example in enumerate(examples):
            found = store.get(content_digest(example.image))
            for name, expected in (("tokens", direct.tokens[i]), ("pooled", direct.pooled[i])):
                assert found[name].dtype == expected.dtype
                assert torch.equal(found[name], expected)


def test_only_what_the_fusion_reads_is_kept(sample, cache, tmp_path, recipe):
    train(recipe, sample, tmp_path / "a", training=OPTIONS)
    assert stored(cache / folders(cache)[0])[1] == ["pooled"]
    train(tiny(recipe, fusion={"use": "projector"}), sample, tmp_path / "b", training=OPTIONS)
    assert sorted(stored(cache / name)[1] for name in folders(cache)) == [["pooled"], ["pooled", "tokens"]]


def test_other_weights_and_other_preprocessing_have_other_stores(sample, cache, tmp_path, recipe):
    train(recipe, sample, tmp_path / "a", training=OPTIONS)
    train(recipe, sample, tmp_path / "b", training={**OPTIONS, "seed": 1})
    assert len(folders(cache)) == 2
    train(recipe, sample, tmp_path / "c", training=OPTIONS, encoder={"image_size": 40})
    assert len(folders(cache)) == 3
    train(recipe, sample, tmp_path / "d", training=OPTIONS, fusion={"length": 3})
    assert len(folders(cache)) == 3


def rows(numbers):
    """Pictures and features that tell their numbers."""
    tokens = torch.arange(6.0).view(1, 2, 3) + torch.tensor(numbers).view(-1, 1, 1)
    digests = [number.to_bytes(32, "big") for number in numbers]
    return digests, {"tokens": tokens.to(torch.bfloat16), "pooled": torch.tensor(numbers)[:, None] * torch.ones(1, 5)}


def check(store, numbers):
    digests, expected = rows(numbers)
    for i, digest in enumerate(digests):
        found = store.get(digest)
        assert all(torch.equal(found[name], value[i]) and found[name].dtype == value.dtype for name, value in expected.items())


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def one(folder):
    (path,) = folder.glob(f"*{SUFFIX}")
    return path


def part(folder, name):
    """Where the values of a tensor begin in the store's only file."""
    raw = one(folder).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return 8 + size + json.loads(raw[8 : 8 + size])[name]["data_offsets"][0]


DAMAGE = {
    "a record": lambda folder: flip(one(folder), part(folder, "pooled")),
    "another record": lambda folder: flip(one(folder), part(folder, "tokens") + 20),
    "the checksum of a record": lambda folder: flip(one(folder), part(folder, "crc32") + 1),
    "the name of a record": lambda folder: flip(one(folder), part(folder, "sha256") + 40),
    "the facts": lambda folder: flip(one(folder), one(folder).read_bytes().index(b"weights")),
    "the header": lambda folder: flip(one(folder), one(folder).read_bytes().index(b"pooled")),
    "the length of the header": lambda folder: flip(one(folder), 0),
    "a file cut short": lambda folder: os.truncate(one(folder), one(folder).stat().st_size - 1),
    "a file cut to half": lambda folder: os.truncate(one(folder), one(folder).stat().st_size // 2),
    "an empty file": lambda folder: one(folder).write_bytes(b""),
    "bytes that are no text": lambda folder: one(folder).write_bytes(b"\xff\xfe\x00" * 20),
}


def write(folder, numbers, facts=None):
    store = FeatureStore(folder, facts or {"weights": "w"})
    digests, features = rows(numbers)
    store.prepare(layout_of(features), len(digests), share=1)
    with store.writing() as writer:
        writer.append(digests, features)
    return store


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(tmp_path, what):
    folder = tmp_path / "s"
    store = write(folder, [1, 2, 3])
    check(store, [1, 2, 3])
    DAMAGE[what](folder)
    store.reload()
    with pytest.raises(FeatureCacheError) as error:
        check(store, [1, 2, 3])
    message = str(error.value)
    assert message.startswith(str(one(folder)))
    assert "is damaged" in message
    assert f"delete the folder {folder}" in message
    assert "--set training.cache_features=false" in message


def test_no_flipped_bit_and_no_cut_goes_unnoticed(tmp_path):
    folder = tmp_path / "s"
    store = write(folder, [1, 2, 3])
    path = one(folder)
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]):
            path.write_bytes(damaged)
            store.reload()
            with pytest.raises(FeatureCacheError):
                check(store, [1, 2, 3])


def test_a_file_that_vanishes_is_named(tmp_path):
    store = write(tmp_path / "s", [1])
    check(store, [1])
    one(tmp_path / "s").unlink()
    with pytest.raises(FeatureCacheError, match=r"safetensors: .* is damaged: the file cannot be read \(No such file"):
        check(store, [1])


@pytest.mark.parametrize("what", ["a record", "the facts"])
def test_damage_stops_training_until_the_folder_is_deleted(sample, cache, tmp_path, recipe, what):
    before = train(recipe, sample, tmp_path / "a", training=OPTIONS)
    folder = cache / folders(cache)[0]
    DAMAGE[what](folder)
    with pytest.raises(FeatureCacheError, match="is damaged"):
        train(recipe, sample, tmp_path / "b", training=OPTIONS)
    assert not (tmp_path / "b").exists()
    without = train(recipe, sample, tmp_path / "b", training={**OPTIONS, "cache_features": False})
    assert losses(without) == pytest.approx(losses(before), abs=1e-6)
    shutil.rmtree(folder)
    assert losses(train(recipe, sample, tmp_path / "c", training=OPTIONS)) == losses(before)


def test_damage_seen_in_a_data_worker_is_the_same_message(sample, cache, tmp_path, recipe):
    train(recipe, sample, tmp_path / "a", training=OPTIONS)
    DAMAGE["a record"](cache / folders(cache)[0])
    with pytest.raises(FeatureCacheError, match=r"\.safetensors: the feature cache is damaged: the file record 0 is not"):
        train(recipe, sample, tmp_path / "b", training={**OPTIONS, "workers": 1})


@pytest.mark.slow
def test_the_store_of_another_encoder_is_refused(sample, cache, tmp_path, recipe):
    train(recipe, sample, tmp_path / "a", training=OPTIONS)
    (first,) = folders(cache)
    train(recipe, sample, tmp_path / "b", training={**OPTIONS, "seed": 1})
    (second,) = set(folders(cache)) - {first}
    shutil.rmtree(cache / second)
    (cache / first).rename(cache / second)
    with pytest.raises(FeatureCacheError, match=r"another encoder \(different: weights\)"):
        train(recipe, sample, tmp_path / "c", training={**OPTIONS, "seed": 1})
    assert one(cache / second).exists()


def test_a_store_of_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "FORMAT", 2)
    write(tmp_path / "s", [1])
    monkeypatch.undo()
    with pytest.raises(FeatureCacheError, match=r"another format \(2, this mmzoo reads 1\)"):
        len(FeatureStore(tmp_path / "s", {"weights": "w"}))


def test_features_of_another_layout_are_refused(tmp_path):
    store = write(tmp_path / "s", [1])
    digests, features = rows([2])
    wider = {**features, "pooled": torch.zeros(1, 6)}
    with pytest.raises(FeatureCacheError, match="the encoder gives"):
        store.prepare(layout_of(wider), 1, share=1)
    with store.writing() as writer:
        writer.append(digests, features)
        with pytest.raises(FeatureCacheError, match="more than one shape"):
            writer.append(digests, wider)
    check(store, [1, 2])
    with store.writing() as writer:
        writer.append([bytes(32)], wider)
    with pytest.raises(FeatureCacheError, match="is damaged: the file holds features"):
        len(store)


def test_a_store_is_picklable(tmp_path):
    store = write(tmp_path / "s", [1, 2])
    check(pickle.loads(pickle.dumps(store)), [1, 2])


def test_a_run_that_is_stopped_while_it_encodes_goes_on_there(captions, recipe, tmp_path, cache, encoded, monkeypatch):
    whole = train(recipe, captions, tmp_path / "a", training={**OPTIONS, "cache_features": False})
    encoded.clear()
    append, calls = feature_store.FeatureWriter.append, []

    def stop(self, *arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        append(self, *arguments)

    monkeypatch.setattr(feature_store.FeatureWriter, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, captions, tmp_path / "b", training={**OPTIONS, "batch_size": 2})
    monkeypatch.setattr(feature_store.FeatureWriter, "append", append)
    assert not (tmp_path / "b").exists()
    encoded.clear()
    run = train(recipe, captions, tmp_path / "b", training=OPTIONS)
    assert encoded == [1]
    assert losses(run) == pytest.approx(losses(whole), abs=1e-6)


def killed(folder):
    store = FeatureStore(folder, {"weights": "w"})
    store.prepare(layout_of(rows([0])[1]), 9, share=1)
    save_file = feature_store.save_file

    def die(tensors, path, metadata):
        save_file(tensors, path, metadata)
        os.truncate(path, 100)
        os.kill(os.getpid(), signal.SIGKILL)

    with store.writing() as writer:
        writer.append(*rows([1, 2, 3]))
        writer.commit()
        writer.append(*rows([4, 5]))
        feature_store.save_file = die
        writer.commit()


def test_a_process_that_is_killed_while_it_writes_leaves_complete_files_only(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path / "s",))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    store = FeatureStore(tmp_path / "s", {"weights": "w"})
    assert len(store) == 3
    check(store, [1, 2, 3])
    with store.writing() as writer:
        writer.append(*rows([4, 5]))
    assert len(store) == 5
    check(store, range(1, 6))


def test_a_writer_writes_every_two_seconds_and_before_its_memory_is_full(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(feature_store.time, "monotonic", lambda: clock[0])
    store = FeatureStore(tmp_path / "s", {"weights": "w"})
    store.prepare(layout_of(rows([0])[1]), 9, share=1)

    def files():
        return len(list((tmp_path / "s").iterdir()))

    with store.writing() as writer:
        writer.append(*rows([1]))
        assert files() == 0
        clock[0] += 2.1
        writer.append(*rows([2]))
        assert files() == 1
        monkeypatch.setattr(feature_store, "COMMIT_BYTES", 1)
        writer.append(*rows([3]))
        assert files() == 2
    check(store, [1, 2, 3])


def write_some(folder, first, barrier):
    feature_store.COMMIT_SECONDS = 0
    store = FeatureStore(folder, {"weights": "w"})
    barrier.wait()
    store.prepare(layout_of(rows([0])[1]), 50, share=1)
    with store.writing() as writer:
        for number in range(first, first + 30, 2):
            writer.append(*rows([number, number + 1]))


def test_processes_that_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    children = [context.Process(target=write_some, args=(tmp_path / "s", first, barrier)) for first in (0, 20, 40)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    store = FeatureStore(tmp_path / "s", {"weights": "w"})
    assert len(store) == 70
    check(store, range(70))
    assert {path.suffix for path in (tmp_path / "s").iterdir()} == {SUFFIX}


Disk = namedtuple("Disk", "total used free")


def test_a_disk_without_room(sample, cache, recipe, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda path: Disk(1000, 900, 100))
    with pytest.raises(FeatureCacheError, match=r"8 images need .*kB, and 100 bytes are free.*MMZOO_CACHE.*cache_features=false"):
        train(recipe, sample, tmp_path / "a", training={**OPTIONS, "cache_features": True})
    assert not (tmp_path / "a").exists()
    run = train(recipe, sample, tmp_path / "a", training=OPTIONS)
    assert not cached(run)
    assert "goes on without a feature cache" in caplog.text
    assert [path for name in folders(cache) for path in (cache / name).iterdir()] == []


def test_a_disk_that_fills_up_keeps_what_was_encoded(captions, recipe, cache, tmp_path, encoded, monkeypatch):
    monkeypatch.setattr(feature_store, "COMMIT_SECONDS", 0)
    real, calls = feature_store.save_file, []

    def full(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, metadata)

    monkeypatch.setattr(feature_store, "save_file", full)
    options = {**OPTIONS, "batch_size": 2}
    with pytest.raises(FeatureCacheError, match=r"No space left on device.*stays.*MMZOO_CACHE.*cache_features=false"):
        train(recipe, captions, tmp_path / "a", training=options)
    assert not (tmp_path / "a").exists()
    folder = cache / folders(cache)[0]
    assert list(folder.iterdir()) == [one(folder)]
    assert len(FeatureStore(folder, stored(folder)[0])) == 2
    encoded.clear()
    assert cached(train(recipe, captions, tmp_path / "a", training=options))
    assert sum(encoded) == 3


def test_a_folder_that_cannot_be_used(sample, recipe, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMZOO_CACHE", str(tmp_path / "file"))
    with pytest.raises(FeatureCacheError, match="set MMZOO_CACHE"):
        train(recipe, sample, tmp_path / "a", training={**OPTIONS, "cache_features": True})
    assert not cached(train(recipe, sample, tmp_path / "a", training=OPTIONS))
    assert "goes on without a feature cache" in caplog.text


def test_bad_images_are_what_they_were(tmp_path):
    recipe = tiny("cnn-product-lstm", encoder=FROZEN)
    data, options = bad_pictures(tmp_path), {**OPTIONS, "batch_size": 2, "epochs": 2}
    with pytest.raises(BadImage, match=r"example bad\d+: .*\n.*--skip-bad"):
        train(recipe, data, tmp_path / "m", training=options)
    assert not (tmp_path / "m").exists()
    run = train(recipe, data, tmp_path / "m", skip_bad=True, training=options)
    assert cached(run)
    assert sorted(run.skipped) == sorted(
        train(recipe, data, tmp_path / "n", skip_bad=True, training={**options, "cache_features": False}).skipped
    )
    assert len(run.skipped) == 12  # each once, also after two epochs


def test_resuming_gives_the_numbers_of_an_unbroken_run(captions, recipe, tmp_path, encoded, monkeypatch):
    from mmzoo.training.callbacks import StopOnSignal

    options = {**OPTIONS, "save_every": 3}
    whole = train(recipe, captions, tmp_path / "whole", training=options)
    encoded.clear()
    on_step_end = StopOnSignal.on_step_end

    def stop_at_7(self, args, state, control, **more):
        if state.global_step == 7:
            self.signal = int(signal.SIGTERM)
        on_step_end(self, args, state, control, **more)

    monkeypatch.setattr(StopOnSignal, "on_step_end", stop_at_7)
    assert not train(recipe, captions, tmp_path / "parts", training=options).finished
    monkeypatch.setattr(StopOnSignal, "on_step_end", on_step_end)
    second = train(recipe, captions, tmp_path / "parts", training=options, resume=True)
    assert losses(second) == losses(whole)
    assert encoded == []


class Noisy(Given):
    """Another picture each time."""

    class Examples(Sequence):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            if i >= 8:
                raise IndexError
            pixels = np.random.default_rng().integers(0, 255, (32, 32, 3), dtype=np.uint8)
            return Example(str(i), Image.fromarray(pixels), "what", ("red",))

    def load(self, split):
        return self.Examples()


class Jitter(torch.nn.Module):
    """A transform that draws."""

    def __init__(self, transform):
        super().__init__()
        self.transform = transform

    def forward(self, image):
        return self.transform(image) + torch.rand(())


def test_what_cannot_be_kept_is_encoded_each_time_and_refused_if_asked_for(sample, recipe, tmp_path, cache, monkeypatch):
    stream = Given(*sample.load("train"), streamed=True)
    cases = [
        (sample, {"encoder": {"train": "full"}}, {}, DoesNotFit, r"encoder\.train: full"),
        (sample, {}, {"blank_images": True}, BadRecipe, r"training\.blank_images"),
        (stream, {}, {"max_steps": 12}, BadRecipe, "streamed"),
        (Noisy(), {}, {}, BadRecipe, "change each time"),
    ]
    for number, (data, changes, options, kind, said) in enumerate(cases):
        options = {**OPTIONS, **options}
        with pytest.raises(kind, match=rf"training\.cache_features: .*{said}"):
            train(recipe, data, tmp_path / f"{number}", training={**options, "cache_features": True}, **changes)
        run = train(recipe, data, tmp_path / f"{number}", training=options, **changes)
        assert not cached(run)
    made = CNN.__init__

    def jittery(self, options):
        made(self, options)
        self.transform = Jitter(self.transform)

    monkeypatch.setattr(CNN, "__init__", jittery)
    with pytest.raises(DoesNotFit, match="transform is random"):
        train(recipe, sample, tmp_path / "j", training={**OPTIONS, "cache_features": True})
    assert folders(cache) == []


def test_nothing_is_kept_where_it_would_not_pay(sample, recipe, tmp_path, cache):
    assert not cached(train(recipe, sample, tmp_path / "a", training={**OPTIONS, "epochs": 1}))
    assert not cached(train(recipe, sample, tmp_path / "b", training={**OPTIONS, "max_steps": 1}))
    assert folders(cache) == []
    assert cached(train(recipe, sample, tmp_path / "c", training={**OPTIONS, "max_steps": 1, "cache_features": True}))
    assert cached(train(recipe, sample, tmp_path / "d", training={**OPTIONS, "max_steps": 1}))


def test_an_image_that_changes_while_training_is_noticed(captions, recipe, tmp_path, monkeypatch):
    def change(*arguments):
        result = real(*arguments)
        Image.new("RGB", (32, 32), "blue").save(tmp_path / "0.png")
        return result

    real = feature_cache.content_digests
    monkeypatch.setattr(feature_cache, "content_digests", change)
    with pytest.raises(FeatureCacheError, match="changed after training began"):
        train(recipe, captions, tmp_path / "a", training=OPTIONS)


@pytest.mark.slow
def test_two_processes_share_the_work(recipe, captions, tmp_path, cache):
    lines = [json.dumps({"image": e.image, "text": e.text, "target": e.targets[0]}) for e in captions.examples[:16]]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    command = ["-m", "mmzoo", "train", str(recipe_file(tmp_path, recipe)), "--dataset", str(tmp_path / "train.jsonl"), "--json"]
    command += ["--set", "training.epochs=3", "--set", "training.log_every=1", "--set", "training.precision=fp32"]
    launch = head()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}

    def curve(start, output, batch):
        full = [*start, *command, "-o", str(tmp_path / output), "--set", f"training.batch_size={batch}"]
        done = subprocess.run(full, capture_output=True, text=True, timeout=200, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return [entry["loss"] for entry in json.loads(done.stdout[done.stdout.index("{") :])["history"]]

    two = curve(launch, "two", 4)
    (name,) = folders(cache)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in (cache / name).glob(f"*{SUFFIX}")]
        assert sorted(file.get_slice("crc32").get_shape()[0] for file in files) == [2, 3]
    assert two == pytest.approx(curve(head(None), "one", 8), abs=1e-4)
    assert mmzoo.load(tmp_path / "two").provenance.run["training"]["cached_features"]
