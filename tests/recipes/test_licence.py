"""Licences are listed, each with the flags of its terms; nothing decides which may be combined."""

import json

import pytest
import yaml
from hub_server import LICENSES

import mmzoo
from mmzoo.errors import BadRecipe
from mmzoo.recipes import licence
from mmzoo.recipes.licence import LicenceRow
from mmzoo.recipes.schema import PartConfig
from mmzoo.testing import Sample, tiny


@pytest.mark.parametrize(
    ("license", "flags"),
    [
        ("MIT", ""),
        ("apache-2.0", ""),
        ("CC-BY-4.0", ""),
        ("GPL-3.0-only", "copyleft"),
        ("lgpl-2.1", "copyleft"),
        ("CC-BY-SA-4.0", "copyleft"),
        ("CC-BY-NC-4.0", "non-commercial"),
        ("CC-BY-NC-SA-4.0", "non-commercial, copyleft"),
        ("CC-BY-ND-4.0", "no derivatives"),
        ("CC-BY-NC-ND-3.0", "non-commercial, no derivatives"),
        ("LicenseRef-OPT-175B", "research only, non-commercial"),
        ("MIT AND CC-BY-SA-4.0", "copyleft"),
        ("unknown", "terms unknown"),
        ("varies", "terms unknown"),
        ("", "terms unknown"),
        ("CC-BY-4.0-and-more", "terms unknown"),
        ("MIT AND llama3", "terms unknown"),
    ],
)
def test_flags(license, flags):
    assert ", ".join(licence.flags_of(license)) == flags


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        ("MIT MIT", "mit"),
        ("MIT mit", "mit"),
        ("MIT Apache-2.0", "other"),
        ("MIT unknown", "other"),
        ("GPL-3.0-only", "gpl-3.0"),
        ("CC-BY-SA-2.0", "other"),
        ("llama3", "other"),
        ("unknown unknown", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_hub_gets_one_licence_or_a_name_for_several(licences, expected):
    metadata = licence.on_hub([LicenceRow("a part", "x", name, ()) for name in licences.split()])
    assert metadata["license"] == expected
    assert metadata["license"] in LICENSES.split()
    assert metadata.get("license_name") == ("listed-in-the-card" if expected == "other" else None)


@pytest.mark.parametrize("pattern", [pattern for patterns, _ in licence.TERMS for pattern in patterns.split("|")])
def test_the_hub_knows_every_name_that_it_gets(pattern):
    for version in ("1.0", "2.0", "2.5", "3.0", "4.0"):
        name = pattern.split("[")[0].replace("(A", "A") + (version if "[" in pattern else "")
        assert licence.on_hub([LicenceRow("a part", "x", name, ())])["license"] in LICENSES.split()


def test_check_flags_the_licences_of_the_parts(classifier):
    assert "licences: no part is flagged; the training data have their own" in str(mmzoo.check(classifier))
    unknown = mmzoo.check(tiny("clip-prefix-gpt2", language_model="hf-causal:x/y"))
    assert "licences: the language model is varies (terms unknown); the training data have their own" in str(unknown)
    rows = {row["part"]: row for row in json.loads(json.dumps(unknown.to_dict()))["licences"]}
    assert rows["encoder"] == {"part": "encoder", "name": "clip", "license": "MIT", "flags": []}
    assert rows["language model"]["flags"] == ["terms unknown"]
    opt = mmzoo.check(tiny("clip-prefix-gpt2", language_model="opt"))
    assert "the language model is LicenseRef-OPT-175B (research only, non-commercial)" in str(opt)


def test_a_variant_of_ones_own_is_not_under_the_licence_of_the_entry(classifier):
    part = mmzoo.Recipe.of({**classifier.to_dict(short=True), "encoder": {"use": "clip:someone/else"}}).encoder
    assert licence.of_part("encoder", part) == "unknown"
    stated = part.with_options(license="CC-BY-NC-4.0")
    assert licence.of_part("encoder", stated) == "CC-BY-NC-4.0"
    entry = part.with_options(use="clip", license="CC-BY-4.0")
    assert licence.of_part("encoder", entry) == "MIT AND CC-BY-4.0"
    with pytest.raises(BadRecipe, match="license"):
        part.with_options(license="a licence\n| of | two | lines |")


def test_data_of_ones_own_are_unknown_unless_one_says(files, quick, classifier, tmp_path):
    model = mmzoo.train(classifier, dataset=str(files), output=tmp_path / "a", progress=False, training=quick).model
    data = licence.of_model(model.recipe, model.provenance.run)[-1]
    assert data == LicenceRow("training data", "pets", "unknown", ("terms unknown",))
    assert "| training data | `pets` | unknown | terms unknown |" in model.card()
    assert str(tmp_path) not in (tmp_path / "a" / "run.json").read_text() + model.card()
    part = PartConfig.of({"use": str(files), "license": "CC-BY-SA-4.0"}, "data")
    stated = mmzoo.train(classifier, dataset=part, output=tmp_path / "b", progress=False, training=quick).model
    assert "| training data | `pets` | CC-BY-SA-4.0 | copyleft |" in stated.card()
    metadata = yaml.safe_load(stated.card().split("---")[1])
    assert (metadata["license"], metadata["license_name"]) == ("other", "listed-in-the-card")
    # A model that starts from it lists its licences too, whatever it is trained on.
    recipe = classifier.with_part("encoder", weights=str(tmp_path / "b"))
    few = PartConfig.of({"use": "easy-vqa", "limit": 8}, "data")
    later = mmzoo.train(recipe, dataset=few, output=tmp_path / "c", progress=False, training=quick).model
    assert later.provenance.run["weights"]["encoders.image"]["license"] == "Apache-2.0 AND CC-BY-SA-4.0"
    assert "| start of the encoder | `b` | Apache-2.0 AND CC-BY-SA-4.0 | copyleft |" in later.card()
    again = mmzoo.build(stated.recipe, weights=tmp_path / "b")
    assert {origin["license"] for origin in again.provenance.run["weights"].values()} == {"Apache-2.0 AND CC-BY-SA-4.0"}


def test_one_licence_of_all_parts_and_the_data_is_that_of_the_model(files, quick, classifier, tmp_path):
    part = PartConfig.of({"use": str(files), "license": "Apache-2.0"}, "data")
    model = mmzoo.train(classifier, dataset=part, output=tmp_path / "a", progress=False, training=quick).model
    metadata = yaml.safe_load(model.card().split("---")[1])
    assert (metadata["license"], "license_name" in metadata) == ("apache-2.0", False)


def test_without_a_recorded_training_nothing_is_claimed(classifier):
    model = mmzoo.build(classifier)
    assert licence.of_model(model.recipe, model.provenance.run)[-1].flags == ("terms unknown",)
    assert "| training data | `no training is recorded` | unknown | terms unknown |" in model.card()


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "pets"
    folder.mkdir()
    rows = []
    for i, example in enumerate(Sample().load("train")):
        example.image.save(folder / f"{i}.png")
        rows.append(json.dumps({"image": f"{i}.png", "question": example.text, "answer": example.targets[0]}))
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    return folder
