"""Test audio: clips, log-mel frames, encoders against transformers and torch, padding, tones; then through mmzoo as a whole."""

import json
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
import transformers
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

import mmzoo
from mmzoo import testing
from mmzoo.data.collate import tensors
from mmzoo_audio.clips import BadAudio, Clip, ClipReader, resample
from mmzoo_audio.mel import LogMel, MelTransformer
from mmzoo_audio.pretrained import HFAudio
from mmzoo_audio.recurrent import LogMelGRU
from mmzoo_audio.tones import COMBINATIONS, HELD_OUT, SEEN, SPLITS, Tones

WAV2VEC2 = {
    "model_type": "wav2vec2",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
WHISPER = {
    "model_type": "whisper",
    "d_model": 16,
    **{f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")},
    **{f"{side}_ffn_dim": 32 for side in ("encoder", "decoder")},
    "vocab_size": 64,
    "pad_token_id": 0,
    "max_source_positions": 100,
}
KINDS = {
    "whisper": WHISPER,
    "wav2vec2": WAV2VEC2,
    "wav2vec2-layer-norm": {**WAV2VEC2, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    "hubert": {**WAV2VEC2, "model_type": "hubert"},
    "wavlm": {**WAV2VEC2, "model_type": "wavlm"},
}


@pytest.fixture(autouse=True)
def offline():
    with testing.no_network():
        yield


def clip(seconds, rate=16_000, seed=0):
    random = np.random.default_rng(seed)
    times = np.arange(int(seconds * rate)) / rate
    sound = 0.4 * np.sin(2 * np.pi * (300 + 500 * times) * times) + 0.02 * random.standard_normal(len(times))
    return {"array": sound.astype(np.float32), "sampling_rate": rate}


CLIPS = [clip(seconds, seed=i) for i, seconds in enumerate((0.5, 1.3, 0.5, 0.21))]


ENCODERS = {
    "mel-transformer": (MelTransformer, {"dim": 16, "mels": 16}),
    "log-mel-gru": (LogMelGRU, {"dim": 16, "mels": 16}),
    "log-mel-gru, one direction": (LogMelGRU, {"dim": 16, "mels": 16, "bidirectional": False, "every": 3}),
    **{kind: (HFAudio, {"config": config}) for kind, config in KINDS.items()},
}


def encoder_of(name, **changed):
    cls, options = ENCODERS[name]
    torch.manual_seed(0)
    return cls(cls.Options(**{**options, **changed})).eval()


def pretrained(folder):
    encoder = HFAudio(HFAudio.Options(variant=str(folder)))
    encoder.load_pretrained()
    return encoder.eval()


def batch(encoder, clips):
    opened = [encoder.transform(encoder.reader.read(each)) for each in clips]
    return pad_sequence(opened, batch_first=True), torch.tensor([len(each) for each in opened])


def features(encoder, clips):
    with torch.no_grad():
        return encoder(*batch(encoder, clips))


# Opening


def test_a_clip_is_the_same_from_everywhere(tmp_path):
    sound = clip(0.3)
    values = np.round(sound["array"] * 32767).astype(np.int16)
    reader = ClipReader()
    for suffix in ("wav", "flac"):
        soundfile.write(tmp_path / f"a.{suffix}", values, 16_000)
        path = tmp_path / f"a.{suffix}"
        sources = [str(path), path, path.as_uri(), path.read_bytes(), {"path": str(path)}, {"bytes": path.read_bytes()}]
        for source in [*sources, {"array": values, "sampling_rate": 16_000}]:
            opened = reader.read(source)
            assert opened.rate == 16_000
            np.testing.assert_allclose(opened.samples, values / 32768, atol=1e-7)
    stereo = np.stack([sound["array"], -sound["array"]])
    for array in (stereo, stereo.T):
        assert not reader.read({"array": array, "sampling_rate": 16_000}).samples.any()
    bytes_ = (np.arange(256).astype(np.uint8), np.arange(-128, 128).astype(np.int8))
    for array in bytes_:
        np.testing.assert_allclose(reader.read({"array": array, "sampling_rate": 8000}).samples, np.arange(-128, 128) / 128)
    assert reader.read({"array": torch.zeros(10), "sampling_rate": 8000}).samples.shape == (10,)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 44_099, 1_000_000])
def test_resampling_is_scipys(rate):
    samples = np.random.default_rng(0).standard_normal(rate // 9).astype(np.float32)
    common = np.gcd(rate, 16_000)
    expected = scipy.signal.resample_poly(samples, 16_000 // common, rate // common)
    resampled = resample(samples, rate, 16_000)
    assert resampled.dtype == np.float32
    np.testing.assert_allclose(resampled, expected, atol=1e-5)


def test_rates_are_converted():
    rate = 44_100
    low = Clip(np.sin(2 * np.pi * 1000 * np.arange(rate) / rate).astype(np.float32), rate)
    expected = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    assert np.abs(low.at(16_000) - expected)[200:-200].max() < 5e-3
    high = Clip(np.sin(2 * np.pi * 12_000 * np.arange(rate) / rate).astype(np.float32), rate)
    assert np.abs(high.at(16_000))[200:-200].max() < 0.02, "what is above half the rate would sound as something else"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.wav", "does not exist"),
        (b"no sound", "cannot be read"),
        ("https://example.org/a.wav", "file://"),
        (7, "a clip is a path"),
        (np.zeros(10), "'sampling_rate'"),
        ({"array": np.zeros(10)}, "'sampling_rate'"),
        ({"array": np.zeros(0), "sampling_rate": 16_000}, "holds no samples"),
        ({"array": np.full(10, np.nan), "sampling_rate": 16_000}, "NaN or infinite"),
        ({"array": np.zeros((10, 10)), "sampling_rate": 16_000}, "shape"),
        ({"array": np.zeros(10), "sampling_rate": 0.5}, "1,000 to"),
        ({"array": ["a"], "sampling_rate": 16_000}, "holds no samples"),
    ],
)
def test_bad_clips_are_named(source, message):
    with pytest.raises(BadAudio, match=message):
        ClipReader().read(source)


def test_a_truncated_file_is_named(tmp_path):
    soundfile.write(tmp_path / "a.flac", clip(1.0)["array"], 16_000)
    whole = (tmp_path / "a.flac").read_bytes()
    with pytest.raises(BadAudio, match="cannot be read"):
        ClipReader().read(whole[:20])


@pytest.mark.parametrize(
    ("encoder", "seconds", "message"),
    [
        (encoder_of("log-mel-gru", max_seconds=0.4), 0.5, r"lasts 0\.5 s and the encoder takes 0\.4 s at most"),
        (encoder_of("whisper"), 2.5, "takes 2 s at most"),
        (encoder_of("wav2vec2"), 0.01, "has 160 samples .* needs 400"),
    ],
)
def test_a_clip_of_the_wrong_length_is_refused(encoder, seconds, message):
    with pytest.raises(BadAudio, match=message):
        encoder.transform(encoder.reader.read(clip(seconds)))


# Features


@pytest.mark.parametrize("seconds", [0.4, 1.0, 30.0])
def test_log_mel_is_whispers(seconds):
    samples = clip(seconds)["array"]
    extractor = transformers.WhisperFeatureExtractor()
    expected = extractor(samples, sampling_rate=16_000, return_tensors="pt")["input_features"]
    whole = torch.nn.functional.pad(torch.from_numpy(samples), (0, 480_000 - len(samples)))[None]
    torch.testing.assert_close(LogMel(80)(whole, pad="reflect"), expected, atol=1e-4, rtol=0)


def test_no_frame_depends_on_padding():
    mel = LogMel(64)
    short, long = (torch.from_numpy(sound["array"]) for sound in CLIPS[:2])
    batch = torch.stack([torch.nn.functional.pad(short, (0, len(long) - len(short))), long])
    lengths = torch.tensor([len(short), len(long)])
    together = mel(batch, lengths)
    alone = mel(short[None], lengths[:1])
    assert alone.shape[2] == 50
    torch.testing.assert_close(together[:1, :, :50], alone, atol=1e-5, rtol=0)
    assert not together[0, :, 50:].any()


def test_whisper_is_that_of_transformers(tmp_path):
    whole = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**WHISPER)).eval()
    whole.save_pretrained(tmp_path)
    encoder = pretrained(tmp_path)
    extractor = transformers.WhisperFeatureExtractor(chunk_length=2)
    result = features(encoder, CLIPS)
    for i, each in enumerate(CLIPS):
        mel = extractor(each["array"], sampling_rate=16_000, return_tensors="pt")["input_features"]
        with torch.no_grad():
            expected = whole.get_encoder()(mel).last_hidden_state
        count = int(result.mask[i].sum())
        assert count == -(-len(each["array"]) // 320)
        torch.testing.assert_close(result.tokens[i, :count], expected[0, :count], atol=1e-5, rtol=0)
        torch.testing.assert_close(result.pooled[i], expected[0, :count].mean(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "whisper"])
def test_wav2vec2_is_that_of_transformers(kind, tmp_path):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**KINDS[kind])
    original = transformers.AutoModel.from_config(config).eval()
    original.save_pretrained(tmp_path)
    extractor = transformers.Wav2Vec2FeatureExtractor()
    extractor.save_pretrained(tmp_path)
    encoder = pretrained(tmp_path)
    result = features(encoder, CLIPS)
    for i, each in enumerate(CLIPS):
        values = extractor(each["array"], sampling_rate=16_000, return_tensors="pt")["input_values"]
        with torch.no_grad():
            expected = original(values).last_hidden_state[0]
        count = int(result.mask[i].sum())
        assert count == len(expected)
        torch.testing.assert_close(result.tokens[i, :count], expected, atol=5e-5, rtol=0)
        torch.testing.assert_close(result.pooled[i], expected.mean(0), atol=5e-5, rtol=0)


@pytest.mark.parametrize("every", [1, 7, 1000])
def test_the_gru_is_torchs_on_packed_sequences(every):
    encoder = encoder_of("log-mel-gru", every=every)
    original = torch.nn.GRU(16, 8, 2, batch_first=True, bidirectional=True)
    for number, layer in enumerate(encoder.layers):
        for side, part in (("", layer.forwards), ("_reverse", layer.backwards)):
            for name, value in part.named_parameters():
                getattr(original, name.replace("l0", f"l{number}") + side).data.copy_(value.data)
    waveform, lengths = batch(encoder, CLIPS)
    counts = -(-lengths // 160)
    with torch.no_grad():
        mel = LogMel(16)(waveform, lengths).transpose(1, 2)
        states, last = original(pack_padded_sequence(mel, counts, batch_first=True, enforce_sorted=False))
    states = pad_packed_sequence(states, batch_first=True)[0]
    result = features(encoder, CLIPS)
    torch.testing.assert_close(result.pooled, torch.cat([last[-2], last[-1]], 1), atol=1e-5, rtol=0)
    for i, count in enumerate(counts.tolist()):
        at = [*range(every - 1, count, every), *([count - 1] if count % every else [])]
        assert result.mask[i].tolist() == [1] * len(at) + [0] * (result.tokens.shape[1] - len(at))
        torch.testing.assert_close(result.tokens[i, : len(at)], states[i, at], atol=1e-5, rtol=0)
        assert not result.tokens[i, len(at) :].any()


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_and_company_change_nothing(name):
    encoder = encoder_of(name)
    together = features(encoder, CLIPS)
    for i, each in enumerate(CLIPS):
        alone = features(encoder, [each])
        count = alone.tokens.shape[1]
        assert alone.tokens.shape == (1, count, encoder.spec.dim)
        assert alone.pooled.shape == (1, encoder.spec.pooled_dim)
        assert int(together.mask[i].sum()) == count
        torch.testing.assert_close(together.tokens[i, :count], alone.tokens[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.pooled[i], alone.pooled[0], atol=1e-5, rtol=1e-4)
    assert (together.pooled[0] - together.pooled[1]).abs().max() > 1e-4, "the same for every clip: nothing is tested"


@pytest.mark.parametrize("name", ENCODERS)
def test_half_precision_hears_the_same(name):
    encoder = encoder_of(name)
    whole = features(encoder, CLIPS)
    half = features(encoder.to(torch.bfloat16), CLIPS)
    assert half.tokens.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.pooled.float(), whole.pooled).min() > 0.9  # processors round otherwise


@pytest.mark.parametrize("name", ENCODERS)
def test_it_is_built_on_the_meta_device(name):
    whole = encoder_of(name)
    with torch.device("meta"):
        encoder = encoder_of(name)
    assert "meta" in {parameter.device.type for parameter in encoder.parameters()}
    assert encoder.spec == whole.spec
    encoder.to_empty(device="cpu").load_state_dict(whole.state_dict())
    torch.testing.assert_close(features(encoder, CLIPS).tokens, features(whole, CLIPS).tokens, atol=0, rtol=0)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in KINDS])
def test_the_meta_device_computes_shapes(name):
    encoder = encoder_of(name)
    expected = features(encoder, CLIPS)
    result = encoder.to("meta")(*(tensor.to("meta") for tensor in batch(encoder, CLIPS)))
    assert [result.tokens.shape, result.pooled.shape] == [expected.tokens.shape, expected.pooled.shape]


def test_what_is_no_audio_encoder_is_refused():
    with pytest.raises(mmzoo.errors.DoesNotFit, match="is a gpt2 model; hf-audio takes whisper"):
        encoder_of("whisper", config={"model_type": "gpt2"})
    with pytest.raises(mmzoo.errors.DoesNotFit, match="5 heads do not divide"):
        encoder_of("mel-transformer", heads=5)
    with pytest.raises(mmzoo.errors.DoesNotFit, match="15 is odd"):
        encoder_of("log-mel-gru", dim=15)
    assert encoder_of("log-mel-gru, one direction", dim=15).spec.dim == 15
    with pytest.raises(ValueError, match="needs a variant"):
        HFAudio.Options(variant="")


# Tones


def test_tones_are_what_they_say_and_always_the_same():
    data = Tones(Tones.Options(train_clips=60, test_clips=20))
    first, again, other = (Tones(Tones.Options(train_clips=60, seed=seed)).load("train") for seed in (0, 0, 1))
    made, again, others = ([bytes(example.audio["array"]) for example in clips] for clips in (first, again, other))
    assert made == again
    assert not set(made) & set(others)
    assert first[7].targets == other[7].targets
    assert len(set(made)) == 60
    assert [example.id for example in first[:2]] == ["train/0", "train/1"]
    for example in [*first, *data.load("test")]:
        count = ("one", "two", "three", "four").index(example.targets[0].split()[0]) + 1
        assert beeps_in(example.audio["array"]) == count, example.targets


def beeps_in(array):
    """Return the stretches that are loud, by the energy of 10 ms."""
    frames = np.abs(array[: len(array) // 160 * 160].reshape(-1, 160).astype(float)).mean(1)
    loud = np.convolve(frames, np.ones(4) / 4, "same") > 0.25 * np.sort(frames)[-3:].mean()
    return int((loud[1:] & ~loud[:-1]).sum() + loud[0])


def test_held_out_combinations_are_new_and_their_pairs_are_not():
    assert len(SEEN) + len(HELD_OUT) == len(COMBINATIONS) == 72
    assert len(HELD_OUT) == 14
    assert not set(SPLITS["train"]) & set(SPLITS["test"])
    for columns in combinations(range(4), 2):
        everywhere, seen = ({tuple(c[i] for i in columns) for c in group} for group in (COMBINATIONS, SEEN))
        assert everywhere == seen
    assert all(min(Counter(c[i] for c in HELD_OUT).values()) > 1 for i in range(4))


# Through mmzoo


RECIPES = {
    "mel-transformer": {"use": "mel-transformer"},
    "log-mel-gru": {"use": "log-mel-gru"},
    **{kind: {"use": "hf-audio", "config": KINDS[kind]} for kind in ("whisper", "wav2vec2")},
}


def model_of(encoder, fusion="projector", **more):
    return mmzoo.build(encoder=encoder, fusion=fusion, language_model="gpt-mini", task="caption", seed=0, **more)


def test_a_bad_clip_is_named_with_its_example():
    with pytest.raises(BadAudio, match="example #0: audio .*does not exist"):
        model_of("mel-transformer").predict(audio="nowhere.wav")


def test_a_configuration_names_no_code():
    with pytest.raises(mmzoo.errors.BadRecipe, match="is not allowed in a recipe"):
        model_of({"use": "hf-audio", "config": {**WHISPER, "attn_implementation": "me/kernel"}}, pretrained=False)


def test_a_checkpoint_holds_what_was_trained_and_is_locked_to_the_rest(tmp_path):
    transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**WHISPER)).save_pretrained(tmp_path / "w")
    model = model_of(f"hf-audio:{tmp_path / 'w'}", fusion="prefix-mlp")
    folder = model.save(tmp_path / "model")
    lock = json.loads((folder / "mmzoo.json").read_text())["lock"]["encoders.audio"]
    assert {"config.json", "model.safetensors"} <= set(lock["files"])
    assert mmzoo.load(folder).generate(audio=CLIPS[0], max_new_tokens=3) == model.generate(audio=CLIPS[0], max_new_tokens=3)


def test_recurrent_layers_have_no_adapters():
    with pytest.raises(mmzoo.errors.DoesNotFit, match="no linear layers in blocks to adapt"):
        model_of({**RECIPES["log-mel-gru"], "train": "lora:2"}, pretrained=False)


@pytest.mark.parametrize(
    ("name", "policy"),
    [(n, p) for n in RECIPES for p in ("last:1", "lora:2", "full") if (n, p) != ("log-mel-gru", "lora:2")],
)
def test_part_of_it_can_be_trained(name, policy):
    model = model_of({**RECIPES[name], "train": policy}, pretrained=False)
    trained = [n for n, p in model.encoder.named_parameters() if p.requires_grad]
    assert trained
    batch = model.collator(training=True)([mmzoo.Example("a", targets=("a beep",), audio=each) for each in CLIPS])
    model.train()
    model(**tensors(batch, "cpu"))["loss"].backward()
    touched = [n for n, p in model.encoder.named_parameters() if p.grad is not None]
    assert set(touched) <= set(trained)
    assert touched


@pytest.mark.parametrize("name", ["mel-transformer", pytest.param("log-mel-gru", marks=pytest.mark.slow)])
def test_a_short_training_learns(name, tmp_path):
    small = {"use": name, "dim": 32, "layers": 1, "mels": 32}
    options = {"max_steps": 40, "batch_size": 16, "learning_rate": 3e-3, "log_every": 1, "warmup": 0, "precision": "fp32"}
    run = mmzoo.train(
        "audio-prefix-gpt",
        dataset=mmzoo.recipes.schema.PartConfig(use="tones", train_clips=96),
        output=tmp_path / "model",
        progress=False,
        encoder=small,
        training=options,
    )
    losses = [step["loss"] for step in run.history]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    result = mmzoo.evaluate(
        tmp_path / "model", dataset=mmzoo.recipes.schema.PartConfig(use="tones", test_clips=28), progress=False
    )
    assert set(result.controls) == {"shuffled", "blanked"}
    assert "audio shuffled" in (tmp_path / "model" / "README.md").read_text()


def test_data_of_another_modality_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"image": "1.png", "caption": "a cat"}\n')
    with pytest.raises(mmzoo.errors.DoesNotFit, match=r"holds images, and encoder 'mel-transformer' takes audio(.|\n)*tones"):
        mmzoo.train("audio-prefix-gpt", dataset=str(tmp_path), output=tmp_path / "m", progress=False)
    with pytest.raises(mmzoo.errors.DoesNotFit, match=r"'tones' holds audio, and encoder 'cnn' takes images"):
        mmzoo.train("cnn-prefix-gpt", dataset="tones", output=tmp_path / "m", progress=False)
