"""The features of a frozen encoder: encoded once, kept by content, and never wrong."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import Given, bad_pictures, losses, recipe_file, train

import mmzoo
from mmzoo.errors import BadImage, BadRecipe, DoesNotFit, FeatureCacheError
from mmzoo.interfaces.example import Example
from mmzoo.modalities.identity import content_digest
from mmzoo.testing import tiny
from mmzoo.training import feature_cache, feature_store
from mmzoo.training.feature_store import DATA, INDEX, MANIFEST, FeatureStore, Layout
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


def cached(run):
    return run.model.provenance.run["training"]["cached_features"]


@pytest.mark.parametrize(
    ("fusion", "options"),
    [
        ("prefix-mlp", {"accumulate": 2, "workers": 1}),
        ("cross-attention", {"keep_images_together": True}),
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
        facts = [json.loads((cache / name / MANIFEST).read_text())["facts"] for name in folders(cache)]
        place = next(i for i, fact in enumerate(facts) if (fact["precision"] == "bf16") == (precision == "bf16"))
        store = FeatureStore(cache / folders(cache)[place], facts[place])
        for i, example in enumerate(examples):
            found = store.get(content_digest(example.image))
            for name, expected in (("tokens", direct.tokens[i]), ("pooled", direct.pooled[i])):
                assert found[name].dtype == expected.dtype
                assert torch.equal(found[name], expected)


def test_only_what_the_fusion_reads_is_kept(sample, cache, tmp_path, recipe):
    train(recipe, sample, tmp_path / "a", training=OPTIONS)
    assert list(json.loads((cache / folders(cache)[0] / MANIFEST).read_text())["layout"]) == ["pooled"]
    train(tiny(recipe, fusion={"use": "projector"}), sample, tmp_path / "b", training=OPTIONS)
    layouts = [list(json.loads((cache / name / MANIFEST).read_text())["layout"]) for name in folders(cache)]
    assert sorted(layouts) == [["pooled"], ["pooled", "tokens"]]


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


def one(folder, suffix):
    (found,) = folder.glob(f"*{suffix}")
    return found


DAMAGE = {
    "a record": (lambda folder: flip(one(folder, DATA), 5), DATA),
    "the last record": (lambda folder: flip(one(folder, DATA), -1), DATA),
    "records cut short": (lambda folder: os.truncate(one(folder, DATA), one(folder, DATA).stat().st_size - 1), DATA),
    "no records": (lambda folder: one(folder, DATA).unlink(), DATA),
    "an entry": (lambda folder: flip(one(folder, INDEX), 50), INDEX),
    "the manifest": (lambda folder: (folder / MANIFEST).write_text('{"format": 1'), MANIFEST),
    "a word of the manifest": (lambda folder: flip(folder / MANIFEST, 40), MANIFEST),
    "bytes that are no text": (lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\x00"), MANIFEST),
    "another JSON": (lambda folder: (folder / MANIFEST).write_text("[1]"), MANIFEST),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), MANIFEST),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(tmp_path, what):
    folder = tmp_path / "s"
    store = FeatureStore(folder, {"weights": "w"})
    layout = Layout.of(rows([0])[1])
    store.begin(layout, 3, most=1)
    with store.writing(layout) as writer:
        writer.append(*rows([1, 2, 3]))
    check(store, [1, 2, 3])
    damage, suffix = DAMAGE[what]
    damage(folder)
    store.reload()
    with pytest.raises(FeatureCacheError) as error:
        check(store, [1, 2, 3])
    said = str(error.value)
    assert suffix in said.split(": ")[0]
    assert "is damaged" in said
    assert f"delete the folder {folder}" in said
    assert "--set training.cache_features=false" in said


@pytest.mark.parametrize("what", ["a record", "the manifest"])
def test_damage_stops_training_until_the_folder_is_deleted(sample, cache, tmp_path, recipe, what):
    before = train(recipe, sample, tmp_path / "a", training=OPTIONS)
    folder = cache / folders(cache)[0]
    DAMAGE[what][0](folder)
    with pytest.raises(FeatureCacheError, match="is damaged"):
        train(recipe, sample, tmp_path / "b", training=OPTIONS)
    assert not (tmp_path / "b").exists()
    without = train(recipe, sample, tmp_path / "b", training={**OPTIONS, "cache_features": False})
    assert losses(without) == pytest.approx(losses(before), abs=1e-6)
    shutil.rmtree(folder)
    assert losses(train(recipe, sample, tmp_path / "c", training=OPTIONS)) == losses(before)


def test_damage_seen_in_a_data_worker_is_the_same_message(sample, cache, tmp_path, recipe):
    train(recipe, sample, tmp_path / "a", training=OPTIONS)
    flip(one(cache / folders(cache)[0], DATA), 5)
    with pytest.raises(FeatureCacheError, match=r"\.data: the feature cache is damaged: the file record 0 is not"):
        train(recipe, sample, tmp_path / "b", training={**OPTIONS, "workers": 1})


def test_the_store_of_another_encoder_is_refused(sample, cache, tmp_path, recipe):
    train(recipe, sample, tmp_path / "a", training=OPTIONS)
    (first,) = folders(cache)
    train(recipe, sample, tmp_path / "b", training={**OPTIONS, "seed": 1})
    (second,) = set(folders(cache)) - {first}
    shutil.rmtree(cache / second)
    (cache / first).rename(cache / second)
    with pytest.raises(FeatureCacheError, match=r"another encoder \(different: weights\)"):
        train(recipe, sample, tmp_path / "c", training={**OPTIONS, "seed": 1})
    assert (cache / second / MANIFEST).exists()


def test_a_store_of_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "FORMAT", 2)
    FeatureStore(tmp_path / "s", {}).begin(Layout.of({"pooled": torch.zeros(1, 3)}), 1, most=1)
    monkeypatch.undo()
    with pytest.raises(FeatureCacheError, match="format 2, this mmzoo reads 1"):
        len(FeatureStore(tmp_path / "s", {}))


def test_a_run_that_is_stopped_while_it_encodes_goes_on_there(captions, recipe, tmp_path, cache, encoded, monkeypatch):
    whole = train(recipe, captions, tmp_path / "a", training={**OPTIONS, "cache_features": False})
    encoded.clear()
    append, calls = feature_store.Writer.append, []

    def stop(self, *arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        append(self, *arguments)

    monkeypatch.setattr(feature_store.Writer, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, captions, tmp_path / "b", training={**OPTIONS, "batch_size": 2})
    monkeypatch.setattr(feature_store.Writer, "append", append)
    assert not (tmp_path / "b").exists()
    encoded.clear()
    run = train(recipe, captions, tmp_path / "b", training=OPTIONS)
    assert encoded == [1]
    assert losses(run) == pytest.approx(losses(whole), abs=1e-6)


def killed(folder):
    store = FeatureStore(folder, {"weights": "w"})
    layout = Layout.of(rows([0])[1])
    store.begin(layout, 9, most=1)
    with store.writing(layout) as writer:
        writer.append(*rows([1, 2, 3]))
        writer.commit()
        writer.append(*rows([4, 5]))
        for file in writer._files:
            file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_leaves_whole_records_only(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path / "s",))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with one(tmp_path / "s", INDEX).open("ab") as file:
        file.write(b"half an entry")
    store = FeatureStore(tmp_path / "s", {"weights": "w"})
    assert len(store) == 3
    check(store, [1, 2, 3])
    with store.writing(Layout.of(rows([0])[1])) as writer:
        writer.append(*rows([4, 5]))
    assert len(store) == 5
    check(store, range(1, 6))


def write_some(folder, first, barrier):
    feature_store.COMMIT_SECONDS = 0
    store = FeatureStore(folder, {"weights": "w"})
    layout = Layout.of(rows([0])[1])
    barrier.wait()
    store.begin(layout, 50, most=1)
    with store.writing(layout) as writer:
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
    assert sorted(path.suffix for path in (tmp_path / "s").iterdir()) == [DATA] * 3 + [INDEX] * 3 + [".json"]


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
    real, calls = feature_store.os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 4:  # the manifest, the first batch's records and entries, the second's records
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(feature_store.os, "fsync", full)
    options = {**OPTIONS, "batch_size": 2}
    with pytest.raises(FeatureCacheError, match=r"No space left on device.*stays.*MMZOO_CACHE"):
        train(recipe, captions, tmp_path / "a", training=options)
    assert not (tmp_path / "a").exists()
    folder = cache / folders(cache)[0]
    record = Layout.read(json.loads((folder / MANIFEST).read_text())["layout"]).record
    assert one(folder, DATA).stat().st_size == 2 * record
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
    assert len(run.skipped) == 24


def test_resuming_gives_the_numbers_of_an_unbroken_run(captions, recipe, tmp_path, encoded, monkeypatch):
    from mmzoo.training.callbacks import Stop

    options = {**OPTIONS, "save_every": 3}
    whole = train(recipe, captions, tmp_path / "whole", training=options)
    encoded.clear()
    on_step_end = Stop.on_step_end

    def stop_at_7(self, args, state, control, **more):
        if state.global_step == 7:
            self.asked = int(signal.SIGTERM)
        on_step_end(self, args, state, control, **more)

    monkeypatch.setattr(Stop, "on_step_end", stop_at_7)
    assert not train(recipe, captions, tmp_path / "parts", training=options).finished
    monkeypatch.setattr(Stop, "on_step_end", on_step_end)
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

    real = feature_cache._digests
    monkeypatch.setattr(feature_cache, "_digests", change)
    with pytest.raises(FeatureCacheError, match="not what it was when training began"):
        train(recipe, captions, tmp_path / "a", training=OPTIONS)


@pytest.mark.slow
def test_two_processes_share_the_work(recipe, captions, tmp_path, cache):
    lines = [json.dumps({"image": e.image, "text": e.text, "target": e.targets[0]}) for e in captions.examples[:16]]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    command = ["-m", "mmzoo", "train", str(recipe_file(tmp_path, recipe)), "--dataset", str(tmp_path / "train.jsonl"), "--json"]
    command += ["--set", "training.epochs=3", "--set", "training.log_every=1", "--set", "training.precision=fp32"]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}

    def curve(head, output, batch):
        full = [sys.executable, *head, *command, "-o", str(tmp_path / output), "--set", f"training.batch_size={batch}"]
        done = subprocess.run(full, capture_output=True, text=True, timeout=200, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return [entry["loss"] for entry in json.loads(done.stdout[done.stdout.index("{") :])["history"]]

    two = curve(launch, "two", 4)
    (name,) = folders(cache)
    assert sorted(path.stat().st_size // feature_store.ENTRY.itemsize for path in (cache / name).glob(f"*{INDEX}")) == [2, 3]
    assert two == pytest.approx(curve([], "one", 8), abs=1e-4)
    assert mmzoo.load(tmp_path / "two").provenance.run["training"]["cached_features"]
