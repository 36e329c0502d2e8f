"""Test what `predict` and `generate` accept and return."""

import numpy as np
import pytest
from PIL import Image

import mmzoo
from mmzoo.errors import BadImage, BadRecipe, DataError, DoesNotFit


@pytest.fixture(scope="module")
def model():
    from mmzoo.testing import tiny

    return mmzoo.build(tiny("cnn-product-lstm"), seed=0)


@pytest.fixture(scope="module")
def generator():
    from mmzoo.testing import tiny

    return mmzoo.build(tiny("cnn-prefix-gpt"), seed=0)


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    path = tmp_path / "p.png"
    Image.fromarray(pixels).save(path)
    return path, pixels


def test_every_form_of_one_image_gives_one_answer(model, picture):
    path, pixels = picture
    forms = [str(path), path, path.as_uri(), Image.open(path), pixels, pixels / 255.0, pixels.transpose(2, 0, 1)]
    answers = [model.predict(image=form, text="what").scores for form in forms]
    assert all(scores == answers[0] for scores in answers)
    listed = model.predict(image=forms, text="what")
    assert [p.label for p in listed] == [model.predict(image=form, text="what").label for form in forms]


def test_one_gives_one_and_a_list_gives_a_list(model, generator, picture):
    path, _ = picture
    assert model.predict(image=path, text="what").label in ("label_0", "label_1")
    assert len(model.predict(image=[path])) == 1
    assert len(model.predict(image=path, text=["a", "b"])) == 2
    assert len(model.predict(image=[path, path], text="a")) == 2
    assert isinstance(generator.generate(image=path), str)
    assert isinstance(generator.generate(image=path, prompt="a"), str)
    assert [type(t) for t in generator.generate(image=[path], prompt="a")] == [str]
    assert model.predict(image=[]) == []
    assert 0 <= generator.predict(image=path, text="what", scores=True).score <= 1


def test_order_is_kept_over_batches(model, picture):
    _, pixels = picture
    images = [np.roll(pixels, i, axis=0) for i in range(7)]
    small = model.predict(image=images, text="what", batch_size=2)
    alone = [model.predict(image=image, text="what") for image in images]
    assert [p.score for p in small] == pytest.approx([p.score for p in alone], abs=1e-5)


def test_beams_and_sampling_are_the_librarys(generator, picture):
    path, _ = picture
    assert isinstance(generator.generate(image=path, prompt="a", num_beams=3, max_new_tokens=5), str)
    assert isinstance(generator.generate(image=path, prompt="a", do_sample=True, top_k=5, max_new_tokens=5), str)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image": "nowhere.png"}, BadImage, "nowhere.png"),
        ({"image": "https://example.org/cat.jpg"}, BadImage, "file://"),
        ({"image": None}, DataError, "image is needed"),
        ({"image": 7}, BadImage, "int"),
        ({"image": np.zeros((2, 3))[0]}, BadImage, "shape"),
        ({"image": ["a.png", "b.png"], "text": ["one"]}, DataError, "2 images and 1 texts"),
        ({"image": np.zeros((4, 4, 3)), "text": 7}, DataError, "string"),
        ({"image": np.zeros((4, 4, 3)), "text": [{"role": "user", "content": "hi"}]}, DataError, "is for model.generate"),
    ],
)
def test_bad_input(model, arguments, error, message):
    with pytest.raises(error, match=message):
        model.predict(**arguments)


def test_a_reader_does_not_generate(model, picture):
    with pytest.raises(DoesNotFit, match="does not generate"):
        model.generate(image=picture[0])


def test_a_prompt_longer_than_the_context_names_the_lengths(generator, picture):
    with pytest.raises(DataError, match="context of 512"):
        generator.generate(image=picture[0], prompt="word " * 600)


def test_generating_leaves_the_model_as_it_was(generator, picture):
    generator.train()
    held = [set(vars(module)) for module in generator.fusion.modules()]
    generator.generate(image=picture[0], prompt="a", max_new_tokens=2)
    assert generator.training
    assert [set(vars(module)) for module in generator.fusion.modules()] == held
    assert generator.fusion.call is None
    generator.eval()


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 0}, {"max_new_tokens": None}, {"num_beams": 0}, {"beems": 2}, {"temperature": -1.0, "do_sample": True}],
)
def test_a_wrong_option_of_generate_is_named(writer, options):
    with pytest.raises(BadRecipe, match=f"generate: .*{next(iter(options))}"):
        mmzoo.build(writer).generate(image=np.zeros((8, 8, 3), np.uint8), **options)


def test_half_of_a_character_is_read_as_a_replacement(classifier):
    assert mmzoo.build(classifier).predict(image=np.zeros((8, 8, 3), np.uint8), text="\ud83d").label
