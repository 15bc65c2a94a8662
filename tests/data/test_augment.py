"""Cropping, resizing, flipping and jittering: the same pixels as timm for the same draws."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from configs.default import get_config
from tnt_jax.data import augment, decoding, randaugment
from tnt_jax.data.settings import DataSettings

FIXTURES = Path(__file__).parent / "fixtures"
JPEGS = sorted(FIXTURES.glob("*.jpg"))


def settings_with(**overrides):
    plain = {"randaugment": "", "color_jitter": 0.0, "train_interpolation": "bicubic"}
    return DataSettings(**(get_config().data.to_dict() | plain | overrides))


@pytest.fixture(scope="module")
def goldens():
    return dict(np.load(FIXTURES / "augment.npz"))


@pytest.fixture(scope="module")
def photographs():
    return [Image.open(path).convert("RGB") for path in JPEGS]


def augmented(image, seed, settings, size):
    """Applies train_image with the draws of one seed."""
    return augment.train_image(image, augment.draw(np.array(seed), settings), settings, size)


def test_evaluation_is_timms(goldens):
    for number, path in enumerate(JPEGS):
        for index, (size, fraction, interpolation) in enumerate(json.loads(str(goldens["evals"]))):
            settings = settings_with(eval_crop_fraction=fraction, eval_interpolation=interpolation)
            ours = augment.eval_image(decoding.decode(path.read_bytes()), settings, tuple(size))
            np.testing.assert_array_equal(ours, goldens[f"eval_{number}_{index}"], f"{path.name} {size}")


def test_training_is_timms(goldens):
    """timm's create_transform with the recipe and this project's draws: crop, flip and RandAugment together."""
    for number, path in enumerate(JPEGS):
        for index, (seed, notation, size) in enumerate(json.loads(str(goldens["trains"]))):
            settings = settings_with(randaugment=notation, train_interpolation="random", mean=(0.5, 0.4, 0.3))
            ours = augmented(decoding.decode(path.read_bytes()), seed, settings, tuple(size))
            np.testing.assert_array_equal(ours, goldens[f"train_{number}_{index}"], f"{path.name} {seed} {notation}")


@pytest.mark.parametrize(("height", "width"), [(248, 248), (249, 331), (500, 375), (100, 90), (7, 400)])
def test_evaluation_resizes_and_cuts_where_torchvision_does(height, width):
    """The image encodes positions: columns in red, rows in green."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width) * 255 // width, (np.arange(height) * 255 // height)[:, None]
    image, scale = Image.fromarray(pixels), math.floor(224 / 0.9)
    resized = (scale, int(scale * width / height)) if height <= width else (int(scale * height / width), scale)
    top, left = (round((side - 224) / 2) for side in resized)
    theirs = image.resize(resized[::-1], Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    np.testing.assert_array_equal(augment.eval_image(image, settings_with(), (224, 224)), theirs)


def torchvision_crop(height, width, area, aspect, corner, settings):
    """Computes torchvision's RandomResizedCrop.get_params from given draws -> left, top, width, height."""
    low, high = settings.crop_area
    narrow, wide = settings.crop_aspect
    for share, place in zip(area, aspect, strict=True):
        target = (low + (high - low) * share) * height * width
        ratio = math.exp(math.log(narrow) + (math.log(wide) - math.log(narrow)) * place)
        rows, columns = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            down, right = (
                int(part * (free + 1)) for part, free in zip(corner, (height - rows, width - columns), strict=True)
            )
            return right, down, columns, rows
    rows, columns = height, width
    if width / height < narrow:
        rows = max(1, round(width / narrow))
    elif width / height > wide:
        columns = max(1, round(height * wide))
    return (width - columns) // 2, (height - rows) // 2, columns, rows


def test_crops_are_torchvisions():
    random, settings = np.random.default_rng(0), settings_with()
    sizes = np.concatenate([random.integers(1, 600, (600, 2)), random.integers(1, 8, (300, 2)), [[10, 400]] * 100])
    centred = 0
    for number, (height, width) in enumerate(sizes.tolist()):
        seed = np.array([number, 5])
        area, aspect = augment.draws.uniform(seed, augment.draws.CROP, 2, 10)
        corner = augment.draws.uniform(seed, augment.draws.CROP_CHOICES, 4)[:2]
        box = augment.crop_box((width, height), augment.draw(seed, settings), settings)
        assert box == torchvision_crop(height, width, area, aspect, corner, settings), (height, width)
        left, top, columns, rows = box
        assert left >= 0 and top >= 0 and columns >= 1 and rows >= 1
        assert left + columns <= width and top + rows <= height
        centred += box == torchvision_crop(height, width, [9.0], [0.5], corner, settings)
    assert centred > 50  # the fallback was used


@pytest.mark.parametrize("aspect", [0.001, 1000.0])
def test_a_crop_has_a_pixel_where_the_image_is_too_small_for_the_aspect(aspect):
    settings = settings_with(crop_area=(1.0, 1.0), crop_aspect=(aspect, aspect))
    box = augment.crop_box((32, 24), augment.draw(np.array([1, 2]), settings), settings)
    assert box[2:] == ((1, 24) if aspect < 1 else (32, 1))


def test_frequencies_of_crops_and_flips():
    count, settings = 20_000, settings_with(train_interpolation="random", flip_probability=0.3)
    draws = augment.draw(np.stack([np.arange(count), np.full(count, 5)], axis=1), settings)
    bicubic, flip = draws.choices.T
    assert abs(bicubic.mean() - 0.5) < 5 * 0.5 / math.sqrt(count) and abs(flip.mean() - 0.3) < 5 * 0.46 / math.sqrt(
        count
    )
    area, aspect = draws.tries.prod(-1), draws.tries[..., 1] / draws.tries[..., 0]
    assert 0.0799 < area.min() < 0.081 and 0.999 < area.max() <= 1.0 and abs(area.mean() - 0.54) < 0.003
    assert 0.749 < aspect.min() < 0.751 and 1.33 < aspect.max() < 1.334 and abs(np.log(aspect).mean()) < 0.002
    assert abs(draws.corner.mean() - 0.5) < 5 / math.sqrt(12 * draws.corner.size)


def test_draws_for_many_are_the_draws_for_each(photographs):
    for changes in ({"randaugment": "rand-m9-mstd0.5-inc1"}, {"color_jitter": 0.4}, {}):
        settings = settings_with(**changes)
        seeds = np.arange(12).reshape(3, 2, 2)
        together = augment.draw(seeds, settings)
        for one, field in zip(augment.draw(seeds[2, 1], settings), together, strict=True):
            np.testing.assert_array_equal(one, field[2, 1])


def test_training_with_the_recipe_is_a_function_of_the_seed(photographs):
    settings = DataSettings(**get_config().data.to_dict())
    first, again = ([augmented(photographs[0], (n, 1), settings, (32, 24)) for n in range(6)] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first[0].shape == (32, 24, 3) and first[0].dtype == np.uint8
    assert len({image.tobytes() for image in first}) == 6
    assert augmented(photographs[0], (1, 0), settings, (32, 24)).tobytes() != first[0].tobytes()


def test_flip_probability_is_obeyed(photographs):
    pixels = np.asarray(photographs[0])
    for probability in (0.0, 1.0):
        settings = settings_with(flip_probability=probability, crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0))
        for number in range(3):
            ours = augmented(photographs[0], (0, number), settings, pixels.shape[:2])
            side = min(pixels.shape[:2])
            assert pixels.shape[0] == pixels.shape[1] or ours.shape != (side, side)
            square = photographs[0].crop((0, 0, side, side))
            ours = augmented(square, (0, number), settings, (side, side))
            np.testing.assert_array_equal(ours, np.asarray(square)[:, ::-1] if probability else square)


def test_color_jitter_is_torchvisions_on_the_same_draws(photographs):
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    settings = settings_with(color_jitter=0.4)
    orders = set()
    for number in range(12):
        choices = augment.draw(np.array([number, 0]), settings).choices
        factors, order = choices[2:5], choices[5:].astype(int).tolist()
        assert (0.6 <= factors).all() and (factors < 1.4).all() and sorted(order) == [0, 1, 2]
        theirs = Image.fromarray(augmented(photographs[2], (number, 0), settings_with(), (40, 40)))
        for each in order:
            theirs = enhancers[each](theirs).enhance(float(factors[each]))
        np.testing.assert_array_equal(augmented(photographs[2], (number, 0), settings, (40, 40)), theirs)
        orders.add(tuple(order))
    assert len(orders) >= 4


def test_color_jitter_is_for_training_without_randaugment(photographs):
    plain, jittered, both = (
        augmented(photographs[0], (0, 1), settings_with(**values), (24, 24))
        for values in ({}, {"color_jitter": 0.4}, {"color_jitter": 0.4, "randaugment": "rand-p0"})
    )
    assert not np.array_equal(plain, jittered)
    np.testing.assert_array_equal(plain, both)


@pytest.mark.parametrize("value", [-1.0, 2.0])
def test_a_mean_outside_of_the_colours_still_fills(value):
    """Geometric operations fill the area outside the image with the mean, as a colour of 0 to 255."""
    settings = settings_with(mean=(value, 0.5, 0.5), randaugment="rand-m9-p1")
    image = Image.new("RGB", (16, 16), (128, 128, 128))
    seen = {int(red) for n in range(20) for red in np.unique(augmented(image, (n, 2), settings, (8, 8))[..., 0])}
    assert (0 if value < 0 else 255) in seen


def test_tiny_images_grow():
    for size in ((1, 1), (8, 8)):
        image = Image.new("RGB", size, (77, 77, 77))
        assert (augmented(image, (0, 0), settings_with(), (32, 32)) == 77).all()
        assert augmented(image, (0, 0), settings_with(randaugment="rand-m0-p1"), (32, 32)).any()
        assert (augment.eval_image(image, settings_with(), (32, 32)) == 77).all()


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="'z9' is not understood"):
        settings_with(randaugment="rand-z9")
    assert randaugment.parse("rand-m9").magnitude == 9


def test_each_channel_of_others_is_made_as_one_of_rgb_is(photographs):
    """Five channels are cropped, resized and flipped like RGB: each equals the RGB channel it repeats, bit for bit.

    16-bit values, which are not rounded and clipped between the two passes of a resize, are close to 257 times those.
    """
    rgb = np.asarray(photographs[0])
    five = np.concatenate([rgb, rgb[..., :2]], axis=-1)
    for bits, scale in ((8, 1), (16, 257)):
        pixels = decoding.from_array(five * np.uint16(257) if bits == 16 else five)
        for number in range(8):
            settings = settings_with(train_interpolation="random", pixel_bits=bits)
            found = augmented(pixels, (number, 0), settings, (24, 40))
            expected = augmented(photographs[0], (number, 0), settings, (24, 40))[..., [0, 1, 2, 0, 1]]
            assert found.dtype == (np.uint8 if bits == 8 else np.uint16) and found.shape == (24, 40, 5)
            assert np.abs(found / scale - expected).max() <= (0 if bits == 8 else 3)
        found = augment.eval_image(pixels, settings, (24, 40))
        expected = augment.eval_image(photographs[0], settings, (24, 40))[..., [0, 1, 2, 0, 1]]
        assert np.abs(found / scale - expected).max() <= (0 if bits == 8 else 3)


def test_alpha_is_a_channel_and_not_multiplied_into_colours():
    """Pillow's own resizing of RGBA makes transparent pixels black."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., :3] = 200
    pixels[:4, :, 3] = 255
    found = augment.eval_image(decoding.from_array(pixels), settings_with(), (4, 4))
    assert (found[..., :3] == 200).all() and found[0, 0, 3] == 255 and found[-1, -1, 3] == 0


@pytest.mark.parametrize(("count", "dtype"), [(1, np.uint8), (1, np.uint16), (4, np.uint8), (5, np.uint16)])
def test_a_flip_flips_all_channels_and_a_constant_stays(count, dtype):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (16, 16, count)).astype(dtype)
    whole = {"crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0)}
    for probability, expected in ((0.0, pixels), (1.0, pixels[:, ::-1])):  # the low bits are kept too
        settings = settings_with(flip_probability=probability, **whole)
        found = augmented(decoding.from_array(pixels), (1, 0), settings, (16, 16))
        np.testing.assert_array_equal(found, expected)
    constant = np.full((9, 13, count), np.arange(count) + np.iinfo(dtype).max - 12).astype(dtype)
    for found in (
        augmented(decoding.from_array(constant), (3, 0), settings_with(), (16, 24)),
        augment.eval_image(decoding.from_array(constant), settings_with(), (16, 24)),
    ):
        assert found.shape == (16, 24, count) and (found == constant[0, 0]).all()


@pytest.mark.parametrize("notation", ["", *(f"rand-m9-n4-p1-mstd{deviation}-inc1" for deviation in (0, 101))])
def test_grey_is_augmented_as_grey_rgb_is(photographs, notation):
    """One channel, and the same channel three times, get the same operations; enhancements round RGB once more."""
    grey = photographs[1].convert("L")
    for number in range(12):
        settings = settings_with(randaugment=notation, color_jitter=0.4, mean=(0.4,))
        found = augmented(grey, (number, 2), settings, (32, 24))
        assert found.shape == (32, 24, 1) and found.dtype == np.uint8
        expected = augmented(grey.convert("RGB"), (number, 2), settings, (32, 24))
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_the_fill_is_the_mean_of_each_channel():
    for mean, image in (((0.2,), "L"), ((0.2, 0.4, 0.6), "RGB"), ((0.6,), "RGB")):
        settings, seen = settings_with(mean=mean, randaugment="rand-m10-p1-n1"), set()
        for number in range(20):
            pixels = augmented(Image.new(image, (16, 16), 0), (number, 2), settings, (16, 16))
            seen |= set(map(tuple, pixels.reshape(-1, pixels.shape[-1]).tolist()))
        count = len(Image.new(image, (1, 1)).getbands())
        assert tuple(round(255 * value) for value in np.broadcast_to(mean, count)) in seen


def test_three_augment_is_deits_on_the_same_draws(photographs):
    """DeiT's augment.py: RandomChoice of Grayscale(3), ImageOps.solarize and GaussianBlur; then ColorJitter."""
    plain, settings, seen = settings_with(), settings_with(three_augment=True, color_jitter=0.3), []
    for number in range(24):
        drawn = augment.draw(np.array([number, 3]), settings)
        operation, strength = drawn.choices[2:4].tolist()
        image = Image.fromarray(augmented(photographs[0], (number, 3), plain, (32, 24)))
        seen.append(int(3 * operation))
        grey = image.convert("L")
        image = [
            Image.merge("RGB", (grey, grey, grey)),
            ImageOps.solarize(image),
            image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * strength)),
        ][seen[-1]]
        for each in drawn.choices[7:].astype(int).tolist():
            image = augment._JITTER[each](image).enhance(float(drawn.choices[4 + each]))
        np.testing.assert_array_equal(augmented(photographs[0], (number, 3), settings, (32, 24)), image)
    assert set(seen) == {0, 1, 2}
    many = augment.draw(np.stack([np.arange(6000), np.full(6000, 5)], axis=1), settings_with(three_augment=True))
    shares = np.bincount((3 * many.choices[:, 2]).astype(int)) / 6000
    assert np.abs(shares - 1 / 3).max() < 5 * math.sqrt(2 / 9 / 6000)


def test_a_simple_crop_is_torchvisions_on_the_same_draws(photographs):
    """Resize(side), then RandomCrop(side, padding=4, padding_mode="reflect"), with uniform integer corners."""
    settings, corners = settings_with(crop="simple", flip_probability=0.0), set()
    photograph = photographs[1]
    for number in range(30):
        drawn = augment.draw(np.array([number, 3]), settings)
        found = augment.train_image(photograph, drawn, settings, (32, 32))
        width, height = (32 * side // min(photograph.size) for side in photograph.size)
        resized = np.asarray(photograph.resize((width, height), Image.Resampling.BICUBIC))
        padded = np.pad(resized, ((4, 4), (4, 4), (0, 0)), "reflect")
        room = height + 8 - 32 + 1, width + 8 - 32 + 1
        top, left = (int(share * count) for share, count in zip(drawn.corner, room, strict=True))
        corners.add((top, left))
        np.testing.assert_array_equal(found, padded[top : top + 32, left : left + 32])
    assert len({top for top, _ in corners}) > 5
    assert augment.train_image(photograph, drawn, settings, (24, 40)).shape == (24, 40, 3)
    five = decoding.from_array(np.asarray(photograph)[..., [0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(augment.train_image(five, drawn, settings, (32, 32))[..., :3], found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"three_augment": True, "randaugment": "rand-m9"}, "three_augment=True and config.data.randaugment='rand-m9'"),
        ({"three_augment": True, "on_device": True}, "data.three_augment to False"),
        ({"crop": "simple", "on_device": True}, "only random resized crops"),
        ({"crop": "centre"}, "must be one of random_resized, simple"),
    ],
)
def test_what_excludes_another_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings_with(**changes)
