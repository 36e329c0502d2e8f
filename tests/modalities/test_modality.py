"""An encoder of another modality than images, as a plugin would bring it: its clips go everywhere that pictures go."""

import csv
import json
import pickle

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import mmzoo
from mmzoo.cli import app
from mmzoo.data.fingerprint import fingerprint
from mmzoo.data.open import open_dataset
from mmzoo.errors import BadInput, DataError, DoesNotFit, PluginBroken
from mmzoo.interfaces import Encoder, Example, Features, FeatureSpec
from mmzoo.modalities.identity import input_key
from mmzoo.modalities.reader import Reader, file_of, name_of
from mmzoo.registry.entries import Registry
from mmzoo.registry.manager import plugin_manager
from mmzoo.testing import Sample, round_trip, tiny, tiny_parts

DIM, FRAME = 8, 400


class Clips(Reader):
    """Arrays in mappings, and files of raw float32 samples."""

    def read(self, source):
        try:
            file = file_of(source)
            if file is None:
                return np.asarray(source["array"], np.float32)
            return np.frombuffer(file.read_bytes() if hasattr(file, "read_bytes") else file.read(), np.float32)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BadInput(f"clip {name_of(source)} cannot be read: {error}") from None

    def blank(self, transform):
        return transform(np.zeros(2 * FRAME, np.float32))

    def probes(self):
        return [np.linspace(-1, 1, n, dtype=np.float32) for n in (900, 2000)]


def frames(samples):
    count = max(1, len(samples) // FRAME)
    padded = np.resize(samples, count * FRAME) if len(samples) else np.zeros(FRAME, np.float32)
    return torch.from_numpy(np.abs(np.fft.rfft(padded.reshape(count, FRAME)))[:, :DIM].astype(np.float32))


class Ear(Encoder):
    """Spectra of frames [batch, frames, DIM]."""

    modality = "audio"
    reader = Clips()
    variable_length = True

    def __init__(self, options):
        super().__init__()
        self.project = torch.nn.Linear(DIM, DIM)
        self.spec = FeatureSpec(dim=DIM, pooled_dim=DIM, tokens=None, modality="audio")
        self.transform = frames

    def forward(self, inputs, lengths):
        mask = (torch.arange(inputs.shape[1], device=inputs.device) < lengths[:, None]).long()
        tokens = self.project(inputs) * mask[..., None]
        return Features(tokens, tokens.sum(1) / lengths[:, None], mask)


class Deaf(Ear):
    """Opens its clips as images."""

    reader = Encoder.reader


class Nose(Ear):
    """Of a modality that no field of an example is called like."""

    modality = "smell"

    def __init__(self, options):
        super().__init__(options)
        self.spec = FeatureSpec(dim=DIM, pooled_dim=DIM, tokens=None, modality="smell")


class Read(Ear):
    modality = "text"


@pytest.fixture(autouse=True)
def ear(monkeypatch):
    registry = Registry()
    registry.add_all(plugin_manager().registry.entries(), plugin="mmzoo", version=mmzoo.__version__)
    found = [
        mmzoo.Entry(
            "encoder",
            cls.__name__.lower(),
            target=f"test_modality:{cls.__name__}",
            summary="hears",
            license="MIT",
            source="here",
            modality=cls.modality,
        )
        for cls in (Ear, Deaf, Nose, Read)
    ]
    registry.add_all(found, plugin="mmzoo", version=mmzoo.__version__)
    monkeypatch.setattr(plugin_manager(), "registry", registry)


def recipe(fusion="projector", language_model="gpt-mini", task="vqa", encoder="ear"):
    part = {"use": task, **({"labels": list(Sample.COLOURS)} if task == "classify" else {})}
    return tiny(mmzoo.Recipe(encoder=encoder, fusion=fusion, language_model=language_model, task=part))


def clip(seconds=0.2, pitch=440, rate=16_000):
    return {"array": np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate).astype(np.float32), "sampling_rate": rate}


def written(path, **options):
    path.write_bytes(clip(**options)["array"].tobytes())
    return path


def test_the_conformance_kit_serves_it(tmp_path):
    entry = next(entry for entry in mmzoo.entries("encoder") if entry.name == "ear")
    loaded = round_trip(tiny_parts(entry), tmp_path / "model")
    assert loaded.modality == "audio"
    assert 'model.generate(audio="clip.wav"' in loaded.card()


FUSIONS = ["projector", "concat", "resampler", "q-former", "prefix-mlp", "cross-attention", "late-attention", "late-concat"]
USES = [("gpt-mini", "vqa"), ("lstm", "classify"), ("bert", "classify"), ("t5", "vqa")]
FITTING = [(f, *use) for f in FUSIONS for use in USES if (f, use[0]) != ("cross-attention", "lstm")]


@pytest.mark.parametrize(("fusion", "language_model", "task"), FITTING)
def test_padding_and_company_change_nothing(fusion, language_model, task):
    model = mmzoo.build(recipe(fusion, language_model, task), seed=0)
    examples = Sample(4).load("test")
    assert len({len(example.audio["array"]) for example in examples}) == 4, "clips of unequal length"
    together = losses(model, examples)
    alone = torch.cat([losses(model, [example]) for example in examples])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    said = model.predict(audio=[e.audio for e in examples], text=[e.text for e in examples])
    assert [p.label for p in said] == [model.predict(audio=e.audio, text=e.text).label for e in examples]


@torch.no_grad()
def losses(model, examples):
    """The loss of each example, from features that were computed for all of them together."""
    batch = model.collator(training=True)(examples)
    features = model.features(batch["encoders"])
    found = []
    for i, example in enumerate(examples):
        (own,) = model.collator(training=True)([example])["tasks"].values()
        of_one = {name: each.rows(torch.tensor([i])) for name, each in features.items()}
        ((total, _),) = model.task.loss(model.outputs(of_one, own), own).values()
        found.append(total)
    return torch.stack(found)


def test_clips_stand_at_their_placeholders():
    model = mmzoo.build(recipe(), seed=0)
    low, high = clip(pitch=200), clip(0.4, pitch=2000)
    one, other = (
        model.collator(training=False)([Example("a", text="<audio> then <audio>", targets=("red",), audio=pair)])
        for pair in ([low, high], [high, low])
    )
    one, other = one["encoders"]["audio"], other["encoders"]["audio"]
    assert one["index"].tolist() == other["index"].tolist() == [[0, 1]]
    assert (one["lengths"].tolist(), other["lengths"].tolist()) == ([8, 16], [16, 8])
    assert model.generate(audio=[low, high], prompt="<audio> then <audio>", max_new_tokens=2) is not None
    with pytest.raises(DataError, match=r"1 placeholders '<audio>' in the text and 2 audio"):
        model.generate(audio=[[low, high]], prompt=["<audio>"], max_new_tokens=2)


def test_the_wrong_modality_is_named():
    hears, sees = mmzoo.build(recipe(), seed=0), mmzoo.build(recipe(encoder="cnn"), seed=0)
    with pytest.raises(DataError, match=r"takes audio: give audio=\.\.\., not image="):
        hears.predict(image="a.png", text="what")
    with pytest.raises(DataError, match=r"takes images: give image=\.\.\., not audio="):
        sees.generate(audio="a.wav", prompt="what")
    with pytest.raises(DataError, match="audio is needed, as audio="):
        hears.predict(text="what")
    with pytest.raises(BadInput, match=r"example #0: clip 'nowhere\.raw' cannot be read"):
        hears.predict(audio="nowhere.raw", text="what")
    blind = mmzoo.build(recipe(fusion="prefix-mlp", encoder="none"), seed=0)
    assert blind.predict(audio="nowhere.raw", text="what") == blind.predict(text="what")


def test_an_encoder_that_contradicts_itself_is_refused():
    with pytest.raises(PluginBroken, match=r"takes audio and opens images; give it a mmzoo\.api\.Reader"):
        mmzoo.check(recipe(encoder="deaf"))
    with pytest.raises(PluginBroken, match="its modality is 'text'; it must be a name in small letters"):
        mmzoo.check(recipe(encoder="read"))
    with pytest.raises(DoesNotFit, match=r"fusion\.tiles: .* cuts images into tiles, and encoder 'ear' takes no images"):
        mmzoo.check(recipe(), fusion={"tiles": 2})


class Of(mmzoo.Dataset):
    """Given examples."""

    def __init__(self, examples):
        super().__init__(None)
        self.examples = examples

    def splits(self):
        return ["train", "test"]

    def load(self, split):
        return self.examples


def test_a_modality_that_nobody_thought_of_goes_all_the_way(tmp_path, quick):
    examples = [
        Example(str(i), text="what", targets=("red", "green")[i % 2 :], inputs={"smell": clip(pitch=100 * i)})
        for i in range(1, 9)
    ]
    chosen = recipe(encoder="nose")
    run = mmzoo.train(
        chosen,
        dataset=Of(examples),
        output=tmp_path / "model",
        progress=False,
        training={**chosen.training.model_dump(), **quick},
    )
    loaded = mmzoo.load(run.output)
    one = examples[0].inputs["smell"]
    assert loaded.predict(smell=one, text="what") == run.model.predict(smell=one, text="what")
    assert len(loaded.generate(smell=[one, one], prompt="what", max_new_tokens=2)) == 2
    assert loaded.generate(smell=[one, clip(0.4)], prompt="<smell> or <smell>", max_new_tokens=2) is not None
    assert "".join(loaded.stream(smell=one, prompt="what", max_new_tokens=2)) == loaded.generate(
        smell=one, prompt="what", max_new_tokens=2
    )
    found = mmzoo.evaluate(loaded, dataset=Of(examples), split="test", progress=False, record=False)
    assert set(found.controls) == {"shuffled", "blanked"}
    assert "smell" in str(found)
    assert "model.generate(smell=...," in loaded.card()
    with pytest.raises(DataError, match=r"takes smell: give smell=\.\.\., not image="):
        loaded.predict(image="a.png", text="what")
    with pytest.raises(DoesNotFit, match="holds smell, and encoder 'cnn' takes images"):
        mmzoo.train(recipe(encoder="cnn"), dataset=Of(examples), output=tmp_path / "other", progress=False)


def test_data_of_another_modality_is_refused_before_training(tmp_path, quick):
    hears = [Example(str(i), text="what", targets=("red",), audio=clip(pitch=100 * i)) for i in range(1, 4)]
    sees = [Example(str(i), Image.new("RGB", (8, 8)), "what", ("red",)) for i in range(3)]
    with pytest.raises(DoesNotFit, match=r"'Of' holds images, and encoder 'ear' takes audio(.|\n)*cnn(.|\n)*audio_column"):
        mmzoo.train(recipe(), dataset=Of(sees), output=tmp_path / "m", training=quick)
    with pytest.raises(DoesNotFit, match=r"'Of' holds audio, and encoder 'cnn' takes images(.|\n)*fits: .*ear"):
        mmzoo.train(recipe(encoder="cnn"), dataset=Of(hears), output=tmp_path / "m", training=quick)
    assert not (tmp_path / "m").exists()
    with pytest.raises(DoesNotFit, match="holds images"):
        mmzoo.evaluate(mmzoo.build(recipe(), seed=0), dataset=Of(sees), progress=False)


def test_train_evaluate_and_use_from_files(tmp_path, quick):
    rows = []
    for i, pitch in enumerate([200, 800, 3000] * 2):
        written(tmp_path / f"{i}.raw", pitch=pitch, seconds=0.1 + 0.05 * i)
        rows.append({"audio": f"{i}.raw", "question": "how high", "answer": ["low", "middle", "high"][i % 3]})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "model"
    run = mmzoo.train(recipe(), dataset=str(tmp_path), output=out, progress=False, training={**quick, "blank_images": False})
    assert run.steps == 4
    found = mmzoo.evaluate(out, dataset=str(tmp_path), split="train", progress=False)
    assert set(found.controls) == {"shuffled", "blanked"}
    assert "audio shuffled" in str(found)
    card = (out / "README.md").read_text()
    assert "audio shuffled | audio blanked" in card
    assert "image" not in card.split("## Training")[1].split("## Recipe")[0]
    cli = CliRunner()
    said = cli.invoke(app, ["predict", str(out), str(tmp_path / "0.raw"), "--text", "how high", "--json"])
    assert json.loads(said.stdout)[0]["audio"] == str(tmp_path / "0.raw"), said.output
    said = cli.invoke(app, ["generate", str(out), str(tmp_path / "0.raw"), "--prompt", "how high", "--json"])
    assert json.loads(said.stdout)[0]["audio"] == str(tmp_path / "0.raw"), said.output


def test_blanked_and_shuffled_clips_are_others(tmp_path):
    from mmzoo.evaluation.controls import shuffle_inputs

    examples = Sample(4).load("test")
    dealt = shuffle_inputs(examples, 0, "audio")
    assert [e.image for e in dealt] == [e.image for e in examples]
    assert all(input_key(a.audio) != input_key(b.audio) for a, b in zip(dealt, examples, strict=True))
    blank = mmzoo.build(recipe(), seed=0).collator(training=False, blank=True)(examples)["encoders"]["audio"]
    assert blank["inputs"].shape[0] == 1
    assert not blank["inputs"].any()


def test_features_are_kept_by_content(tmp_path, quick):
    examples = Sample(6).load("train")
    chosen = recipe(fusion="prefix-mlp").with_part("encoder", train="frozen")
    runs = {
        cached: mmzoo.train(
            chosen,
            dataset=Of(examples),
            output=tmp_path / str(cached),
            progress=False,
            training={**quick, "cache_features": cached},
        )
        for cached in (True, False)
    }
    assert runs[True].model.provenance.run["training"]["cached_features"]
    for cached, plain in zip(runs[True].history, runs[False].history, strict=True):
        assert cached["loss"] == pytest.approx(plain["loss"], abs=1e-6)
    with pytest.raises(DoesNotFit, match="number of tokens depends on the input"):
        mmzoo.train(
            recipe().with_part("encoder", train="frozen"),
            dataset=Of(examples),
            output=tmp_path / "tokens",
            progress=False,
            training={**quick, "cache_features": True},
        )


def test_a_text_too_long_with_its_clip_is_refused():
    model = mmzoo.build(recipe(), seed=0)
    long = clip(seconds=FRAME / 16_000 * model.language_model.spec.max_length)
    with pytest.raises(DataError, match=r"positions, and the language model's context is \d+; shorten the audio"):
        model.predict(audio=long, text="what")


def test_columns_of_audio(tmp_path):
    paths = [written(tmp_path / f"{i}.raw", pitch=100 * (i + 1)) for i in range(2)]
    with (tmp_path / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "caption"], *([path.name, "a tone"] for path in paths)])
    found = open_dataset(mmzoo.recipes.schema.PartConfig(use=f"files:{tmp_path / 'data.csv'}", audio_column="path")).load("train")
    assert [example.audio for example in found] == [str(path) for path in paths]
    assert found[0].modalities == ["audio"]

    table = {"sound": [{"bytes": path.read_bytes(), "path": path.name} for path in paths], "caption": ["a", "b"]}
    features = datasets.Features({"sound": datasets.Audio(decode=False), "caption": datasets.Value("string")})
    pq.write_table(pa.table(table, schema=features.arrow_schema), tmp_path / "train.parquet")
    found = open_dataset(str(tmp_path / "train.parquet")).load("train")
    assert found[0].audio["bytes"] == paths[0].read_bytes()
    assert found[0].modalities == ["audio"]

    (tmp_path / "none.jsonl").write_text('{"sound": "0.raw", "caption": "a tone"}\n')
    with pytest.raises(DataError, match=r"set image_column .* or audio_column"):
        open_dataset(str(tmp_path / "none.jsonl")).load("none")
    (tmp_path / "list.jsonl").write_text('{"audio": [[0.0, 1.0]], "caption": "a tone"}\n')
    with pytest.raises(DataError, match="a clip in a text file must be the path of a file"):
        open_dataset(str(tmp_path / "list.jsonl")).load("list")


def test_identity_is_by_content():
    assert input_key(clip()) == input_key(clip())
    assert len({input_key(each) for each in (clip(), clip(pitch=441), clip(0.3), {**clip(), "sampling_rate": 8000})}) == 4
    assert input_key({"path": "a.wav", **clip()}) != "a.wav", "what is decoded counts, not where it was"
    quiet = [{"array": np.full((2, 4), value, np.float32), "sampling_rate": 1} for value in (0.0, 1e-4)]
    assert input_key(quiet[0]) != input_key(quiet[1]), "as pixels they would be the same"
    one, other = (Example("1", text="t", audio=each) for each in (clip(), clip(pitch=441)))
    assert fingerprint([one]) == fingerprint([pickle.loads(pickle.dumps(one))]) != fingerprint([other])
    picture = Image.new("RGB", (2, 2))
    assert len({fingerprint([Example("1", picture, "t", audio=each)]) for each in (None, clip())}) == 2
