"""Cropping, resizing, flipping, jittering and decoding against Pillow, torchvision's formulas and timm."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance

from configs.default import get_config
from tests.data import odd_images
from tests.data.test_resample import pillow_resize
from tnt_jax.data import augment, destinations, randaugment, resample
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
    return [np.asarray(Image.open(path).convert("RGB")) for path in JPEGS]


def difference(ours, theirs):
    """Largest and mean absolute difference in grey levels."""
    gap = np.abs(np.asarray(ours, int) - np.asarray(theirs, int))
    return gap.max(), gap.mean()


def test_resized_crops_agree_with_pillow(goldens, photographs):
    for number, image in enumerate(photographs):
        for index, (box, size, bicubic) in enumerate(json.loads(str(goldens["crops"]))):
            sides = image.shape[:2] * 2
            top, left, height, width = (part * side // 96 for part, side in zip(box, sides, strict=True))
            crop = image[top : top + height, left : left + width]
            ours = resample.resize(crop, tuple(size), bicubic)
            largest, mean = difference(ours, goldens[f"crop_{number}_{index}"])
            assert largest == 0, (number, index, largest, mean)
            mirrored = resample.resize(crop, tuple(size), bicubic, True)
            np.testing.assert_array_equal(mirrored[:, ::-1], ours)


def test_evaluation_agrees_with_timm(goldens):
    for number, path in enumerate(JPEGS):
        for index, (size, fraction, interpolation) in enumerate(json.loads(str(goldens["evals"]))):
            settings = settings_with(eval_crop_fraction=fraction, eval_interpolation=interpolation)
            ours = augment.eval_image(tf.constant(path.read_bytes()), settings, tuple(size))
            largest, mean = difference(ours, goldens[f"eval_{number}_{index}"])
            assert largest == 0, (path.name, size, largest, mean)


@pytest.mark.parametrize(("height", "width"), [(248, 248), (249, 331), (500, 375), (100, 90), (7, 400)])
def test_evaluation_resizes_and_cuts_where_torchvision_does(height, width):
    """Position codes instead of a picture: columns in red, rows in green."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width) * 255 // width, (np.arange(height) * 255 // height)[:, None]
    scale = math.floor(224 / 0.9)
    resized = (scale, int(scale * width / height)) if height <= width else (int(scale * height / width), scale)
    top, left = (round((side - 224) / 2) for side in resized)
    theirs = pillow_resize(Image.fromarray(image), resized, True)
    theirs = theirs.crop((left, top, left + 224, top + 224))
    ours = augment.eval_image(tf.constant(image), settings_with(), (224, 224))
    assert difference(ours, theirs)[0] <= 1


def torchvision_crop(height, width, draws, area, aspect):
    """torchvision's RandomResizedCrop.get_params with given draws."""
    for share, place in zip(draws.area, draws.aspect, strict=True):
        target = (area[0] + (area[1] - area[0]) * share) * height * width
        ratio = math.exp(math.log(aspect[0]) + (math.log(aspect[1]) - math.log(aspect[0])) * place)
        crop = (round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio)))
        if 0 < crop[0] <= height and 0 < crop[1] <= width:
            room = (height - crop[0], width - crop[1])
            corner = [min(int(part * (space + 1)), space) for part, space in zip(draws.corner, room, strict=True)]
            return [*corner, *crop]
    crop = (height, width)
    if width / height < aspect[0]:
        crop = (round(width / aspect[0]), width)
    elif width / height > aspect[1]:
        crop = (height, round(height * aspect[1]))
    return [(height - crop[0]) // 2, (width - crop[1]) // 2, *crop]


def made(image, seeds, settings, size):
    """train_images for one image, an encoded one or an array, and seeds [k, 2] -> array [k, *size, 3]."""
    images = np.zeros((len(seeds), *size, 3), np.uint8)
    chosen = augment.Draws(*map(tf.constant, augment.draw(np.array(seeds)[None], settings)))
    places = tf.range(len(seeds), dtype=tf.int64)[None]
    with destinations.lend(images) as destination:
        destination = tf.constant(destination, tf.int64)
        count = augment.train_images([tf.constant(image)], chosen, places, destination, settings, size)
    assert count == len(seeds)
    return images


def crops_of(sizes, settings):
    """Crop boxes [n, 4] and their draws for sizes [n, 2], seeds (0, 5), (1, 5), ..."""
    draws = augment.draw_crop(np.stack([np.arange(len(sizes)), np.full(len(sizes), 5)], axis=1), settings)
    shares = augment.crop_shares(draws, settings)[:, None]
    rows = zip(sizes, shares, strict=True)
    return np.array([augment.crop_boxes((int(h), int(w)), own, settings)[0] for (h, w), own in rows]), draws


def test_crops_are_torchvisions():
    random = np.random.default_rng(0)
    sizes = np.concatenate([random.integers(1, 600, (600, 2)), random.integers(1, 8, (300, 2)), [[10, 400]] * 100])
    settings = settings_with()
    boxes, draws = crops_of(sizes, settings)
    centred = 0
    for number, (box, (height, width)) in enumerate(zip(boxes, sizes, strict=True)):
        own = augment.CropDraws(*(field[number] for field in draws))
        expected = torchvision_crop(height, width, own, settings.crop_area, settings.crop_aspect)
        assert box.tolist() == expected, (height, width, draws)
        assert (box[:2] >= 0).all() and (box[2:] >= 1).all() and (box[:2] + box[2:] <= (height, width)).all()
        centred += box.tolist() == torchvision_crop(
            height, width, own._replace(area=[9.0] * 10), (1, 1), (3 / 4, 4 / 3)
        )
    assert centred > 50  # the fallback has been seen


def test_frequencies_of_crops_and_flips():
    count = 20_000
    boxes, draws = crops_of([(500, 400)] * count, settings_with(train_interpolation="random", flip_probability=0.3))
    assert abs(draws.bicubic.mean() - 0.5) < 5 * 0.5 / math.sqrt(count)
    assert abs(draws.flip.mean() - 0.3) < 5 * 0.46 / math.sqrt(count)
    areas = boxes[:, 2] * boxes[:, 3] / 200_000
    aspects = boxes[:, 3] / boxes[:, 2]
    for uniform in (draws.area, draws.aspect, draws.corner):
        assert abs(uniform.mean() - 0.5) < 5 / math.sqrt(12 * uniform.size)
    assert 0.078 < areas.min() < 0.09 and areas.max() > 0.97
    assert 0.74 < aspects.min() < 0.76 and 1.31 < aspects.max() < 1.35
    room = np.array([500, 400]) - boxes[:, 2:]
    places = (boxes[:, :2] + 0.5) / (room + 1)
    np.testing.assert_allclose(places.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(places.std(axis=0), 1 / math.sqrt(12), atol=0.01)


@pytest.mark.parametrize("path", JPEGS, ids=lambda path: path.name)
def test_training_agrees_with_pillow_on_the_same_draws(path):
    settings = settings_with(train_interpolation="random")
    image = Image.open(path).convert("RGB")
    for number in range(12):
        seed = np.array([number, 3])
        draws = augment.draw_crop(seed, settings)
        shares = augment.crop_shares(draws, settings)[None]
        top, left, height, width = augment.crop_boxes(image.size[::-1], shares, settings)[0]
        theirs = pillow_resize(image.crop((left, top, left + width, top + height)), (48, 56), bool(draws.bicubic))
        if draws.flip:
            theirs = theirs.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        (ours,) = made(path.read_bytes(), [seed], settings, (48, 56))
        np.testing.assert_array_equal(ours, theirs, str(number))


def test_training_with_the_recipe_is_a_function_of_the_seed(photographs):
    settings = DataSettings(**get_config().data.to_dict())

    def train(*seed):
        return made(photographs[0], [seed], settings, (32, 24))[0]

    first = [train(number, 1) for number in range(6)]
    again = [train(number, 1) for number in range(6)]
    np.testing.assert_array_equal(first, again)
    assert first[0].shape == (32, 24, 3) and first[0].dtype == np.uint8
    assert len({image.tobytes() for image in first}) == 6
    assert train(1, 0).tobytes() != first[0].tobytes()


def test_randaugment_follows_the_crop(photographs):
    """With crop and flip off, training is RandAugment alone, filled with the mean's level."""
    settings = settings_with(
        randaugment="rand-m9-p1",
        crop_area=(1.0, 1.0),
        crop_aspect=(1.0, 1.0),
        flip_probability=0.0,
        mean=(0.5, 0.4, 0.3),
    )
    image = photographs[0]  # a square
    policy = randaugment.parse(settings.randaugment)
    changed = 0
    for number in range(8):
        draws = randaugment.draw(np.array([number, 9]), policy, "bicubic")
        expected = randaugment.apply(image, draws, policy, (128, 102, 76))
        np.testing.assert_array_equal(made(image, [(number, 9)], settings, image.shape[:2])[0], expected)
        changed += not np.array_equal(expected, image)
    assert changed >= 6


def test_copies_are_the_images_of_their_seeds():
    settings = settings_with(randaugment="rand-m9-mstd0.5-inc1")
    encoded = JPEGS[1].read_bytes()
    decoded = augment.decode(tf.constant(encoded)).numpy()
    seeds = [(1, 2), (3, 4), (1, 2)]
    of_bytes, of_pixels = (made(image, seeds, settings, (32, 24)) for image in (encoded, decoded))
    np.testing.assert_array_equal(of_bytes, of_pixels)
    np.testing.assert_array_equal(of_pixels[0], of_pixels[2])
    assert not np.array_equal(of_pixels[0], of_pixels[1])
    for number in range(2):
        np.testing.assert_array_equal(
            of_pixels[number], made(decoded, seeds[number : number + 1], settings, (32, 24))[0]
        )


def test_only_copies_with_a_place_are_made(photographs):
    settings, size = settings_with(), (16, 16)
    images = np.zeros((3, *size, 3), np.uint8)
    seeds = np.array([[(1, 1), (1, 2)], [(2, 1), (2, 2)]])
    chosen = augment.Draws(*map(tf.constant, augment.draw(seeds, settings)))
    with destinations.lend(images) as destination:
        arguments = (chosen, tf.constant([[2, -1], [-1, 0]], tf.int64), tf.constant(destination, tf.int64))
        count = augment.train_images(list(map(tf.constant, photographs[:2])), *arguments, settings, size)
    assert count == 2 and not images[1].any()
    np.testing.assert_array_equal(images[2], made(photographs[0], seeds[0], settings, size)[0])
    np.testing.assert_array_equal(images[0], made(photographs[1], seeds[1], settings, size)[1])
    with pytest.raises(KeyError):
        destinations.borrowed(int(destination))


def test_flip_probability_is_obeyed(photographs):
    image = photographs[0]
    for probability in (0.0, 1.0):
        settings = settings_with(flip_probability=probability, crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0))
        for number in range(3):
            (ours,) = made(image, [(0, number)], settings, image.shape[:2])
            np.testing.assert_array_equal(ours, image[:, ::-1] if probability else image)


def test_color_jitter_is_torchvisions_on_the_same_draws(photographs):
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    image = photographs[2]
    orders = set()
    for number in range(12):
        factors, order = augment.draw_jitter(np.array([number, 0]), 0.4)
        assert (0.6 <= factors).all() and (factors < 1.4).all() and sorted(order) == [0, 1, 2]
        theirs = Image.fromarray(image)
        for turn in order:
            theirs = enhancers[turn](theirs).enhance(float(factors[turn]))
        np.testing.assert_array_equal(augment.color_jitter(image, factors, order), theirs)
        orders.add(tuple(order))
    assert len(orders) >= 4


def test_color_jitter_is_for_training_without_randaugment(photographs):
    plain, jittered, both = (
        made(photographs[0], [(0, 1)], settings_with(**values), (24, 24))
        for values in ({}, {"color_jitter": 0.4}, {"color_jitter": 0.4, "randaugment": "rand-p0"})
    )
    assert not np.array_equal(plain, jittered)
    np.testing.assert_array_equal(plain, both)


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("L", "PNG", {}),
        ("RGB", "BMP", {}),
        ("P", "GIF", {}),
        ("L", "JPEG", {}),
        ("RGB", "JPEG", {"subsampling": 0}),
        ("RGB", "JPEG", {"subsampling": 2, "progressive": True}),
        ("CMYK", "JPEG", {}),
    ],
)
def test_formats_are_decoded_as_pillow_does(photographs, mode, kind, options):
    image = Image.fromarray(photographs[1]).convert(mode)
    file = io.BytesIO()
    if kind == "GIF":
        options = {"save_all": True, "append_images": [Image.new("P", image.size)]}  # the first frame counts
    image.save(file, kind, **options)
    encoded = tf.constant(file.getvalue())
    theirs = np.asarray(Image.open(file).convert("RGB"))
    largest, mean = difference(tf.function(augment.decode)(encoded), theirs)
    # Ink to light: one product rounded, against Pillow's own table
    assert (largest <= 2 and mean < 1) if mode == "CMYK" else largest <= 1 and mean < 0.01
    assert made(file.getvalue(), [(0, 0)], settings_with(), (16, 16)).any()


def test_tiny_images_grow():
    for size in ((1, 1), (8, 8)):
        image = np.full((*size, 3), 77, np.uint8)
        settings = settings_with(randaugment="rand-m0-p1")
        assert (made(image, [(0, 0)], settings_with(), (32, 32)) == 77).all()
        assert made(image, [(0, 0)], settings, (32, 32)).any()
        assert (augment.eval_image(tf.constant(image), settings, (32, 32)).numpy() == 77).all()


def test_a_damaged_image_is_an_error():
    whole = JPEGS[0].read_bytes()
    for encoded in (b"", b"no image", whole[: len(whole) // 2]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            augment.eval_image(tf.constant(encoded), settings_with(), (16, 16))
        with pytest.raises(tf.errors.InvalidArgumentError):
            made(encoded, [(0, 0)], settings_with(crop_area=(1.0, 1.0)), (16, 16))


def test_whether_an_image_is_faulty_does_not_depend_on_the_copies_made_here():
    """Of a JPEG that was cut off: another process, which makes the other copies, must come to the same result."""
    settings = settings_with()
    data = odd_images.noise(0, (64, 64))
    data = data[: len(data) * 3 // 4]
    shares = np.full((1, 2, 11, 2), 0.25)  # crops of 16 x 16
    shares[0, :, -1] = [[0.0, 0.0], [0.99, 0.99]]  # in the first corner, which is there, and in the last
    choices = augment.draw(np.zeros((1, 2, 2), int), settings).choices

    def images(copies, places):
        made = np.zeros((1, 16, 16, 3), np.uint8)
        chosen = augment.Draws(*(tf.constant(part[:, :copies]) for part in (shares, choices)))
        with destinations.lend(made) as destination:
            place = tf.constant([places], tf.int64), tf.constant(destination, tf.int64)
            augment.train_images([tf.constant(data)], chosen, *place, settings, (16, 16))
        return made

    assert images(1, [0]).any()
    for places in ([0, -1], [-1, 0]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            images(2, places)
    assert not images(2, [-1, -1]).any()  # an empty place at a batch's end is not decoded at all


def test_bad_settings_are_named(photographs):
    image = photographs[0]
    with pytest.raises(ValueError, match="'z9' is not understood"):
        made(image, [(0, 0)], settings_with(randaugment="rand-z9"), (16, 16))
    chosen = augment.Draws(*map(tf.constant, augment.draw(np.zeros((2, 1, 2), int), settings_with())))
    with pytest.raises(ValueError, match=r"1 images, draws \(2, 1, 11, 2\): must be"):
        augment.train_images([tf.constant(image)], chosen, tf.zeros([2, 1], tf.int64), 0, settings_with(), (16, 16))


@pytest.mark.parametrize("level", [-1.0, 2.0])
def test_a_mean_outside_of_the_colours_still_fills(level):
    """The mean is what geometric operations show beside the image, as a colour of 0 to 255."""
    settings = DataSettings(**{**get_config().data, "mean": (level, 0.5, 0.5), "randaugment": "rand-m9-p1"})
    image = np.full([16, 16, 3], 128, np.uint8)
    shown = {
        int(level) for number in range(20) for level in np.unique(made(image, [(number, 2)], settings, (8, 8))[..., 0])
    }
    assert (0 if level < 0 else 255) in shown
