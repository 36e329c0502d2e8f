"""Recipes: where they come from, how they are changed, and what is said of a wrong one."""

import pytest
import yaml

import mmzoo
from mmzoo.errors import BadRecipe, UnknownName
from mmzoo.recipes.merging import assignments
from mmzoo.recipes.reading import read_recipe
from mmzoo.recipes.schema import Recipe

PARTS = {"encoder": "cnn", "fusion": "prefix-mlp", "language_model": "gpt-mini", "task": "caption"}


def test_by_name_by_parts_by_file_and_by_object_are_the_same(tmp_path):
    by_parts = read_recipe(**PARTS)
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(PARTS))
    assert read_recipe(str(path)) == read_recipe(path) == read_recipe(by_parts) == read_recipe(Recipe(**PARTS)) == by_parts


def test_changes_are_laid_over_a_recipe():
    changed = read_recipe("clip-prefix-gpt2", fusion={"length": 20}, training={"epochs": 1})
    assert changed.fusion.options == {"length": 20}
    assert changed.training.epochs == 1
    assert changed.training.batch_size == 40


def test_another_part_loses_the_old_ones_options():
    assert read_recipe("clip-prefix-gpt2", fusion="projector").fusion.options == {}
    assert read_recipe("clip-prefix-gpt2", fusion={"use": "prefix-linear", "length": 3}).fusion.options == {"length": 3}


def test_a_recipe_survives_its_own_data():
    for name in ("clip-prefix-gpt2", "cnn-attention-lstm"):
        recipe = read_recipe(name)
        assert Recipe.of(recipe.to_dict()) == recipe


def test_assignments_read_numbers_lists_and_words():
    found = assignments(["training.learning_rate=1e-3", "encoder.channels=[8, 16]", "task=caption", "pretrained=false"])
    assert found == {
        "training": {"learning_rate": 0.001},
        "encoder": {"channels": [8, 16]},
        "task": "caption",
        "pretrained": False,
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fusion": {"lenght": 3}}, "fusion.lenght: unknown option; did you mean 'length'"),
        ({"fusion": {"length": "many"}}, "fusion.length"),
        ({"fusion": {"length": 0}}, "fusion.length"),
        ({"training": {"epochs": -1}}, "training.epochs"),
        ({"training": {"epoch": 1}}, "training.epoch: unknown option; did you mean 'epochs'"),
        ({"training": {"epochs": float("inf")}}, "training.epochs"),
        ({"training": {"seed": 1 << 32}}, "training.seed"),
        ({"encoder": {"use": "cnn", "channels": [0]}}, "encoder.channels.0"),
        ({"encoder": {"learning_rate": float("inf")}}, "encoder.learning_rate"),
        ({"encoder": "timm:"}, "name a variant"),
        ({"encoder": {"train": "some"}}, "encoder.train"),
        ({"encoder": 7}, "encoder"),
        ({"decoder": "x"}, "decoder"),
        ({"encoder": "cnn:large"}, "has no variants"),
        ({"encoder": "cnn@main"}, "has no revisions"),
        ({"encoder": "timm"}, "needs a variant"),
        ({"language_model": {"heads": 3}}, "language_model.heads"),
    ],
)
def test_a_wrong_key_is_named(changes, said):
    with pytest.raises(BadRecipe) as error:
        mmzoo.check(Recipe(**PARTS), **changes)
    assert said in str(error.value)


def test_a_missing_part_is_named():
    with pytest.raises(BadRecipe, match="^task is missing"):
        mmzoo.build(encoder="cnn", fusion="prefix-mlp", language_model="gpt-mini")


@pytest.mark.parametrize("text", ["[1, 2]", "encoder: {", "a: *b", "\x00"])
def test_a_file_that_is_no_recipe(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(BadRecipe, match="bad.yaml"):
        mmzoo.build(path)


def test_no_such_recipe_or_file():
    with pytest.raises(BadRecipe, match="cannot be read"):
        mmzoo.build("nowhere.yaml")
    with pytest.raises(UnknownName, match="clip-prefix-gpt2"):
        mmzoo.build("clip-prefix-gpt3")
