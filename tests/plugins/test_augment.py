"""What the augmentations make of known pictures and clips, and what is refused of their options."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

import mmzoo
from mmzoo.api import make_augmentations
from mmzoo.errors import BadRecipe, DoesNotFit, UnknownName
from mmzoo_audio.clips import Clip

RATE = 16_000
ENCODERS = {"image": "cnn", "audio": "log-mel-gru"}


def recipe(**augment):
    parts = {"fusion": "late-concat", "language_model": "lstm", "task": "classify", "encoders": ENCODERS}
    return mmzoo.Recipe.of({**parts, "data": {"augment": augment}})


def made(modality, use, **options):
    [augmentation] = make_augmentations(recipe(**{modality: {"use": use, **options}}))[modality]
    return augmentation


@pytest.fixture
def picture():
    pixels = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(autouse=True)
def seeded():
    np.random.seed(0)
    torch.manual_seed(0)


def noise(seconds=2.0):
    return Clip(np.random.default_rng(1).standard_normal(int(seconds * RATE)).astype(np.float32) / 10, RATE)


# Pictures


def test_flip(picture):
    pixels = np.asarray(picture)
    flipped = made("image", "flip", horizontal=1.0).opened(picture)
    assert (np.asarray(flipped) == pixels[:, ::-1]).all()
    assert (np.asarray(made("image", "flip", horizontal=0, vertical=1).opened(picture)) == pixels[::-1]).all()
    some = [np.asarray(made("image", "flip").opened(picture)) for _ in range(40)]
    assert 10 <= sum((each == pixels).all() for each in some) <= 30
    assert all((each == pixels).all() or (each == pixels[:, ::-1]).all() for each in some)


def test_crop_keeps_the_size_and_shows_a_part(picture):
    ramp = Image.fromarray(np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3)).copy())
    shares = []
    for _ in range(50):
        cropped = made("image", "crop", scale=[0.25, 0.25], ratio=[2, 2]).opened(ramp)
        assert cropped.size == ramp.size
        columns = np.asarray(cropped)[50, :, 0].astype(int)
        shares.append((columns[-1] - columns[0]) / 199)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)  # a quarter of the area, half of each side


def test_color_changes_within_its_bounds():
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    jitter = made("image", "color", brightness=0.3, contrast=0, saturation=0)
    levels = [jitter.opened(grey).getpixel((0, 0)) for _ in range(60)]
    assert all(len(set(level)) == 1 for level in levels)
    assert 69 <= min(levels)[0] < 80
    assert 120 < max(levels)[0] <= 131
    red = made("image", "color").opened(Image.new("RGB", (8, 8), (200, 40, 40)))
    assert red.getpixel((0, 0))[1] == red.getpixel((0, 0))[2]  # the hue stays


def test_rotate_turns_at_most_by_its_angle(picture):
    white = Image.new("RGB", (64, 64), "white")
    shares = []
    for _ in range(30):
        turned = np.asarray(made("image", "rotate", degrees=20, fill=0).opened(white))
        shares.append((turned < 128).mean())
    assert 0 < max(shares) < 0.16  # at 20 degrees four corners of 3.6% each
    assert np.asarray(made("image", "rotate", degrees=0).opened(picture)).tolist() == np.asarray(picture).tolist()


def test_erase_sets_a_rectangle_of_the_encoders_input():
    whole = torch.ones(3, 32, 32)
    erased = made("image", "erase", probability=1, scale=[0.25, 0.25], value=-2).transformed(whole)
    assert set(erased.unique().tolist()) == {1.0, -2.0}
    assert (erased[0] == -2).float().mean() == pytest.approx(0.25, abs=0.04)
    assert torch.equal(erased[0], erased[2])
    assert (whole == 1).all()
    tiles = made("image", "erase", probability=1).transformed(torch.ones(5, 3, 32, 32))
    assert (tiles[0] == tiles[4]).all()
    assert not tiles.all()


@pytest.mark.parametrize("use", ["trivial-augment", "rand-augment"])
def test_the_policies_change_most_pictures_and_keep_their_size(picture, use):
    augmentation = made("image", use)
    changed = [augmentation.opened(picture) for _ in range(40)]
    assert {(each.size, each.mode) for each in changed} == {(picture.size, "RGB")}
    different = {each.tobytes() for each in changed}
    assert len(different) > 20


# Any class of torchvision


def test_a_class_of_torchvision_gets_its_options(picture):
    pixels = np.asarray(picture)
    assert (np.asarray(made("image", "v2:RandomInvert", p=1).opened(picture)) == 255 - pixels).all()
    grey = np.asarray(made("image", "v2:Grayscale").opened(picture))
    assert grey.shape == pixels.shape  # RGB again
    assert (grey[..., 0] == grey[..., 1]).all()
    turned = made("image", "v2:RandomRotation", degrees=[90, 90], expand=True, interpolation="bilinear").opened(picture)
    assert turned.size == picture.size[::-1]
    assert made("image", "v2:AutoAugment", policy="cifar10").opened(picture).size == picture.size


def test_a_class_that_takes_tensors_only_changes_the_encoders_input(picture):
    noisy = made("image", "v2:GaussianNoise", sigma=0.1, clip=False)
    assert noisy.opened(picture) is picture
    assert noisy.transformed(torch.zeros(3, 64, 64)).std().item() == pytest.approx(0.1, rel=0.05)
    flip = made("image", "v2:RandomHorizontalFlip", p=1, on_tensor=True)
    assert flip.transformed(torch.arange(4.0).expand(3, 2, 4))[0, 0].tolist() == [3, 2, 1, 0]


def test_a_class_of_torchvision_for_some_pictures(picture):
    some = made("image", "v2:RandomInvert", p=1, probability=0.25)
    assert 25 <= sum(some.opened(picture) is not picture for _ in range(160)) <= 55


@pytest.mark.parametrize(
    ("augment", "error", "message"),
    [
        ({"image": "flipp"}, UnknownName, "unknown augmentation 'flipp'; did you mean 'flip'"),
        ({"image": "v2"}, BadRecipe, "data.augment.image.0.use: 'v2' needs a variant"),
        (
            {"image": "v2:ColorJiter"},
            BadRecipe,
            "'ColorJiter' is no class of torchvision.transforms.v2; did you mean 'ColorJitter'",
        ),
        ({"image": "v2:MixUp"}, BadRecipe, "'MixUp' changes no single picture"),
        ({"image": "v2:GaussianBlur"}, BadRecipe, "GaussianBlur needs the option kernel_size"),
        ({"image": {"use": "v2:GaussianBlur", "kernel": 3}}, BadRecipe, "has no option 'kernel'; did you mean 'kernel_size'"),
        ({"image": {"use": "v2:GaussianBlur", "kernel_size": 4}}, BadRecipe, "GaussianBlur refuses its options: Kernel size"),
        ({"image": {"use": "v2:RandomRotation", "degrees": 5, "interpolation": "best"}}, BadRecipe, "'best' is none of nearest"),
        ({"image": {"use": "v2:GaussianNoise", "on_tensor": False}}, BadRecipe, "cannot change a picture with these options"),
        (
            {"image": {"use": "v2:CenterCrop", "size": 8, "on_tensor": True}},
            BadRecipe,
            "not make a tensor of a tensor of the same",
        ),
        ({"image": {"use": "flip", "p": 1}}, BadRecipe, "data.augment.image.0.p: unknown option"),
        ({"image": {"use": "flip", "train": "frozen"}}, BadRecipe, "data.augment.image.0.train: an augmentation has no such key"),
        ({"image": {"flip": 1}}, BadRecipe, "each augmentation is a name, or {use: NAME"),
        ({"image": {"use": "crop", "scale": [0.9, 0.1]}}, BadRecipe, "scale: two numbers above 0, the smaller one first"),
        ({"audio": "flip"}, DoesNotFit, "augmentation 'flip' changes images, not audio; those of audio: gain, noise, shift"),
        ({"audio": {"use": "gain", "decibels": [3, -3]}}, BadRecipe, "the smaller one first, not [3.0, -3.0]"),
        ({"video": "flip"}, DoesNotFit, "data.augment.video: the model takes no videos; the encoders take audio and images"),
        ({"image": {"use": "flip", "horizontal": 2}}, BadRecipe, "data.augment.image.0.horizontal: Input should be less"),
    ],
)
def test_what_is_refused(augment, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make_augmentations(recipe(**augment))
    with pytest.raises(error, match=re.escape(message)):
        mmzoo.check(recipe(**augment))


def test_checking_options_takes_no_random_numbers():
    state = torch.get_rng_state()
    made("image", "v2:ElasticTransform")
    assert torch.equal(torch.get_rng_state(), state)


# Sound


def test_gain_is_in_decibels():
    clip = noise()
    louder = made("audio", "gain", decibels=[6, 6]).opened(clip)
    assert louder.rate == clip.rate
    assert louder.samples.dtype == np.float32
    assert louder.samples == pytest.approx(clip.samples * 10**0.3, rel=1e-5)
    changes = [20 * np.log10(made("audio", "gain").opened(clip).samples[0] / clip.samples[0]) for _ in range(50)]
    assert -6 <= min(changes) < -3
    assert 3 < max(changes) <= 6


def test_noise_has_its_signal_to_noise_ratio():
    clip = noise(4)
    for snr in (0, 20):
        added = made("audio", "noise", snr=[snr, snr]).opened(clip).samples - clip.samples
        assert 10 * np.log10(np.mean(clip.samples**2) / np.mean(added**2)) == pytest.approx(snr, abs=0.2)
        assert abs(np.corrcoef(added, clip.samples)[0, 1]) < 0.02
    silence = Clip(np.zeros(100, np.float32), RATE)
    assert not made("audio", "noise").opened(silence).samples.any()


@pytest.mark.parametrize("wrap", [True, False])
def test_shift_moves_by_at_most_its_seconds(wrap):
    clip, moves = Clip(np.arange(1, 1001, dtype=np.float32), 1000), []
    for _ in range(40):
        moved = made("audio", "shift", seconds=0.1, wrap=wrap).opened(clip).samples
        steps = int(np.argmax(moved == 500)) - 499
        moves.append(steps)
        wanted = np.roll(clip.samples, steps)
        if not wrap:
            wanted[: max(steps, 0)] = 0
            wanted[1000 + min(steps, 0) :] = 0
        assert (moved == wanted).all()
    assert -100 <= min(moves) < -50
    assert 50 < max(moves) <= 100


def test_a_shift_beyond_the_clip_leaves_silence():
    clip = Clip(np.ones(10, np.float32), 1000)
    assert any(not made("audio", "shift", seconds=5).opened(clip).samples.any() for _ in range(5))


def stretches(mask):
    """Return the lengths of the stretches of a mask that are true."""
    edges = np.flatnonzero(np.diff(np.r_[0, mask.astype(int), 0]))
    return edges[1::2] - edges[::2]


def test_spec_augment_masks_time():
    clip, lengths = noise(), []
    for _ in range(60):
        options = {"time_masks": 1, "time_width": 50, "time_share": 1, "frequency_masks": 0}
        masked = made("audio", "spec-augment", **options).opened(clip).samples
        assert (masked[masked != 0] == clip.samples[masked != 0]).all()
        found = stretches(masked == 0)
        assert len(found) <= 1
        lengths += [*found]
    assert max(lengths) <= 0.5 * RATE
    assert np.mean(lengths) == pytest.approx(0.25 * RATE, rel=0.25)  # drawn evenly from 0 to 50 frames of 10 ms
    short = made("audio", "spec-augment", time_masks=1, time_share=0.1, frequency_masks=0)
    assert max(np.sum(short.opened(clip).samples == 0) for _ in range(30)) <= 0.1 * len(clip.samples) + 1


def test_spec_augment_masks_frequency():
    clip = noise()
    hertz = np.fft.rfftfreq(len(clip.samples), 1 / RATE)
    bins = 80 * np.log10(1 + hertz / 700) / np.log10(1 + 8000 / 700)
    widths = []
    for _ in range(60):
        options = {"time_masks": 0, "frequency_masks": 1, "frequency_width": 27}
        masked = made("audio", "spec-augment", **options).opened(clip).samples
        before, after = np.abs(np.fft.rfft(clip.samples)), np.abs(np.fft.rfft(masked))
        gone = after < 1e-3 * np.median(before)
        inside = bins[gone & (before > 1e-2 * np.median(before))]
        if len(inside):
            widths.append(inside.max() - inside.min())
            kept = (bins < inside.min() - 0.1) | (bins > inside.max() + 0.1)
            assert after[kept] == pytest.approx(before[kept], abs=float(1e-2 * np.median(before)))
    assert max(widths) <= 27
    assert np.mean(widths) == pytest.approx(13.5, rel=0.25)


def test_what_is_no_clip_is_refused():
    with pytest.raises(TypeError, match="objects with samples and their rate, not list"):
        made("audio", "gain").opened([1.0])
