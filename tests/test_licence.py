"""The licence of a model: the strictest of what it is made from, or `unknown`, never a guess."""

import itertools

import pytest
from hub_server import LICENSES

import mmzoo
from mmzoo.errors import BadRecipe
from mmzoo.recipes import licence
from mmzoo.recipes.schema import PartConfig
from mmzoo.testing import Sample, tiny


@pytest.mark.parametrize(
    ("given", "strictest"),
    [
        ("MIT", "MIT"),
        ("MIT Apache-2.0 CC0-1.0", "Apache-2.0"),
        ("mit APACHE-2.0", "Apache-2.0"),
        ("MIT CC-BY-4.0", "CC-BY-4.0"),
        ("Apache-2.0 CC-BY-SA-4.0 CC-BY-3.0", "CC-BY-SA-4.0"),
        ("CC-BY-SA-4.0 GPL-3.0", "GPL-3.0-only"),
        ("CC-BY-4.0 CC-BY-NC-SA-4.0 MIT", "CC-BY-NC-SA-4.0"),
        ("GPL-2.0-or-later LGPL-3.0-only GPL-3.0-only", "GPL-3.0-only"),
        ("CC-BY-SA-4.0 CC-BY-NC-4.0", "unknown"),
        ("GPL-2.0-only Apache-2.0", "unknown"),
        ("GPL-3.0-only CC-BY-NC-4.0", "unknown"),
        ("MIT CC-BY-ND-4.0", "unknown"),
        ("MIT llama3", "unknown"),
        ("MIT unknown", "unknown"),
        ("MIT varies", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_strictest(given, strictest):
    for order in itertools.permutations(given.split()):
        assert licence.strictest(order)[0] == strictest


def test_what_the_hub_calls_each():
    for name in licence._INTO:
        said = licence.on_hub(name)
        assert said["license"] in LICENSES.split(), name
        assert said["license"] != "other" or said["license_name"]
    assert licence.on_hub("unknown") == {"license": "unknown"}


def test_a_check_says_that_of_the_parts(classifier):
    assert mmzoo.check(classifier).license == "Apache-2.0"
    assert "licence of the parts: Apache-2.0" in str(mmzoo.check(classifier))
    assert mmzoo.check(tiny("clip-prefix-gpt2")).license == "MIT"
    assert mmzoo.check(tiny("clip-prefix-gpt2", language_model="hf-causal:x/y")).license == "unknown"


def test_a_variant_of_ones_own_is_not_under_the_licence_of_the_entry(classifier):
    part = mmzoo.Recipe.of({**classifier.to_dict(), "encoder": {"use": "clip:someone/else"}}).encoder
    assert licence.of_part("encoder", part) == "unknown"
    said = part.with_options(license="CC-BY-NC-4.0")
    assert licence.of_part("encoder", said) == "CC-BY-NC-4.0"
    entry = part.with_options(use="clip", license="CC-BY-4.0")
    assert licence.of_part("encoder", entry) == "CC-BY-4.0"
    with pytest.raises(BadRecipe, match="license"):
        part.with_options(license="a licence\n| of | two | lines |")


def test_data_of_ones_own_are_unknown_unless_one_says(files, quick, classifier, tmp_path):
    run = mmzoo.train(classifier, dataset=str(files), output=tmp_path / "a", progress=False, training=quick)
    found = licence.computed(run.model.recipe, run.model.provenance.run)
    assert (found.id, found.why) == ("unknown", "that of the training data is not known")
    assert run.model.provenance.run["training"]["dataset"] == "pets"
    assert str(tmp_path) not in (tmp_path / "a" / "run.json").read_text() + run.model.card()
    said = PartConfig.of({"use": str(files), "license": "CC-BY-SA-4.0"}, "data")
    stated = mmzoo.train(classifier, dataset=said, output=tmp_path / "b", progress=False, training=quick).model
    assert "**CC-BY-SA-4.0**, the strictest of:" in stated.card()
    assert "license: cc-by-sa-4.0" in stated.card()
    # What starts from it is under it too, whatever it is trained on.
    recipe = {**classifier.to_dict(), "encoder": {**classifier.to_dict()["encoder"], "weights": str(tmp_path / "b")}}
    few = PartConfig.of({"use": "easy-vqa", "limit": 8}, "data")
    later = mmzoo.train(recipe, dataset=few, output=tmp_path / "c", progress=False, training=quick).model
    assert later.provenance.run["weights"]["encoder"]["license"] == "CC-BY-SA-4.0"
    assert licence.computed(later.recipe, later.provenance.run).id == "CC-BY-SA-4.0"
    again = mmzoo.build(stated.recipe, weights=tmp_path / "b")
    assert {origin["license"] for origin in again.provenance.run["weights"].values()} == {"CC-BY-SA-4.0"}


def test_without_a_recorded_training_nothing_is_claimed(classifier):
    card = mmzoo.build(classifier).card()
    assert "**unknown**: that of the training data is not known" in card
    assert "license: unknown" in card


@pytest.fixture
def files(tmp_path):
    import json

    folder = tmp_path / "pets"
    folder.mkdir()
    rows = []
    for i, example in enumerate(Sample().load("train")):
        example.image.save(folder / f"{i}.png")
        rows.append(json.dumps({"image": f"{i}.png", "question": example.text, "answer": example.targets[0]}))
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    return folder
