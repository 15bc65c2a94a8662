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
from tnt_jax.data import augment, randaugment, resample
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


def pillow_resize(image, size, bicubic):
    """Image -> Image of size (height, width): along the rows first, as Pillow did alone until version 12.

    timm needs such a version; later ones begin with the columns where that is less work.
    """
    resampling = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    return image.resize((size[1], image.height), resampling).resize(size[::-1], resampling)


def difference(ours, theirs):
    """Largest and mean absolute difference in grey levels."""
    gap = np.abs(np.asarray(ours, int) - np.asarray(theirs, int))
    return gap.max(), gap.mean()


def test_resized_crops_agree_with_pillow(goldens, photographs):
    for number, image in enumerate(photographs):
        for index, (box, size, bicubic) in enumerate(json.loads(str(goldens["crops"]))):
            sides = image.shape[:2] * 2
            top, left, height, width = (part * side // 96 for part, side in zip(box, sides, strict=True))
            crop = tf.constant(image[top : top + height, left : left + width])
            ours = resample.resize(crop, tuple(size), bicubic)
            largest, mean = difference(ours, goldens[f"crop_{number}_{index}"])
            assert largest <= 1 and mean < 0.02, (number, index, largest, mean)
            mirrored = resample.resize(crop, tuple(size), tf.constant(bicubic), tf.constant(True))
            np.testing.assert_array_equal(mirrored[:, ::-1], ours)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (300, 2), (17, 31)])
@pytest.mark.parametrize("bicubic", [False, True])
def test_any_size_is_resized_as_pillow_does(height, width, bicubic):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    theirs = pillow_resize(Image.fromarray(image), (37, 20), bicubic)
    largest, mean = difference(resample.resize(tf.constant(image), (37, 20), bicubic), theirs)
    assert largest <= 1 and mean < 0.02


def test_levels_are_rounded_half_up_and_kept_in_range():
    levels = np.arange(-3000, 2600000, 7, np.float32) / 10000  # -0.3 to 260
    levels = np.concatenate([levels, np.arange(256, dtype=np.float32) + 0.5, [-1e9, -0.5, 1e9]]).astype(np.float32)
    expected = np.clip(np.floor(levels.astype(np.float64) + 0.5), 0, 255)
    np.testing.assert_array_equal(resample.to_levels(tf.constant(levels)), expected)


def test_a_part_of_the_resized_image_is_that_part():
    image = tf.cast(tf.random.stateless_uniform([50, 70, 3], [1, 2], maxval=256, dtype=tf.int32), tf.uint8)
    whole = resample.resize(image, (40, 61), True)
    part = resample.resize(image, (16, 21), True, resized=tf.constant([40, 61]), corner=tf.constant([11, 40]))
    np.testing.assert_array_equal(part, whole[11:27, 40:61])


def test_evaluation_agrees_with_timm(goldens):
    for number, path in enumerate(JPEGS):
        for index, (size, fraction, interpolation) in enumerate(json.loads(str(goldens["evals"]))):
            settings = settings_with(eval_crop_fraction=fraction, eval_interpolation=interpolation)
            ours = augment.eval_image(tf.constant(path.read_bytes()), settings, tuple(size))
            largest, mean = difference(ours, goldens[f"eval_{number}_{index}"])
            assert largest <= 1 and mean < 0.02, (path.name, size, largest, mean)


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


def crops_of(sizes, settings):
    """Crop boxes [n, 4] and their draws for sizes [n, 2], seeds (0, 5), (1, 5), ..."""

    @tf.function
    def all_crops():
        signature = augment.CropDraws(tf.float32, tf.float32, tf.float32, tf.bool, tf.bool)

        def one(row):
            draws = augment.draw_crop(tf.stack([row[0], 5]), settings)
            return augment.crop_box(row[1:], draws, settings), draws

        rows = tf.concat([tf.range(len(sizes))[:, None], tf.constant(sizes, tf.int32)], axis=1)
        return tf.map_fn(one, rows, fn_output_signature=(tf.int32, signature))

    boxes, draws = all_crops()
    return boxes.numpy(), augment.CropDraws(*(field.numpy() for field in draws))


def test_crops_are_torchvisions():
    random = np.random.default_rng(0)
    sizes = np.concatenate([random.integers(1, 600, (600, 2)), random.integers(1, 8, (300, 2)), [[10, 400]] * 100])
    settings = settings_with()
    boxes, draws = crops_of(sizes, settings)
    centred = 0
    for number, (box, (height, width)) in enumerate(zip(boxes, sizes, strict=True)):
        own = augment.CropDraws(*(field[number] for field in draws))
        expected = torchvision_crop(height, width, own, settings.crop_area, settings.crop_aspect)
        # float32 here, float64 there: a side may round the other way once in thousands
        assert np.abs(box - expected).max() <= 1, (height, width, box, expected)
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


@pytest.fixture(scope="module")
def crop_and_flip():
    """The settings and the compiled training function of the next test: (encoded, seed) -> image."""
    settings = settings_with(train_interpolation="random")
    return settings, tf.function(lambda encoded, seed: augment.train_image(encoded, seed, settings, (48, 56)))


@pytest.mark.parametrize("path", JPEGS, ids=lambda path: path.name)
def test_training_agrees_with_pillow_on_the_same_draws(path, crop_and_flip):
    settings, train = crop_and_flip
    encoded = tf.constant(path.read_bytes())
    image = Image.open(path).convert("RGB")
    for number in range(12):
        seed = tf.constant([number, 3])
        draws = augment.draw_crop(tf.random.split(seed, 3, alg="philox")[0], settings)
        top, left, height, width = augment.crop_box(tf.constant(image.size[::-1]), draws, settings).numpy().tolist()
        theirs = pillow_resize(image.crop((left, top, left + width, top + height)), (48, 56), bool(draws.bicubic))
        if draws.flip:
            theirs = theirs.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        ours = train(encoded, seed).numpy()
        gap = np.abs(ours.astype(int) - np.asarray(theirs, int))
        # Decoding a part of a JPEG with halved colours smooths the colours at the crop's border another way.
        assert gap.mean() < 0.1 and gap[6:-6, 6:-6].max() <= 1, (number, gap.mean(), gap[6:-6, 6:-6].max())


def test_training_with_the_recipe_is_a_function_of_the_seed(photographs):
    settings = DataSettings(**get_config().data.to_dict())
    image = tf.constant(photographs[0])

    def train(*seed):
        return augment.train_image(image, tf.constant(seed), settings, (32, 24)).numpy()

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
    image = tf.constant(photographs[0])  # a square
    policy = randaugment.parse(settings.randaugment)
    changed = 0
    for number in range(8):
        seed = tf.constant([number, 9])
        draws = randaugment.draw(tf.random.split(seed, 3, alg="philox")[1], policy, "bicubic")
        expected = randaugment.apply(image, draws, policy, (128, 102, 76))
        np.testing.assert_array_equal(augment.train_image(image, seed, settings, image.shape[:2]), expected)
        changed += not np.array_equal(expected, image)
    assert changed >= 6


def test_copies_are_the_images_of_their_seeds():
    settings = settings_with(randaugment="rand-m9-mstd0.5-inc1")
    encoded = tf.constant(JPEGS[1].read_bytes())
    decoded = augment.decode(encoded)
    seeds = tf.constant([[1, 2], [3, 4], [1, 2]])
    of_bytes, of_pixels = (
        augment.train_copies(image, seeds, settings, (32, 24)).numpy() for image in (encoded, decoded)
    )
    assert of_bytes.shape == (3, 32, 24, 3)
    np.testing.assert_array_equal(of_bytes, of_pixels)
    np.testing.assert_array_equal(of_pixels[0], of_pixels[2])
    assert not np.array_equal(of_pixels[0], of_pixels[1])
    for number in range(2):
        np.testing.assert_array_equal(
            of_pixels[number], augment.train_image(decoded, seeds[number], settings, (32, 24))
        )


def test_flip_probability_is_obeyed(photographs):
    image = tf.constant(photographs[0])
    for probability in (0.0, 1.0):
        settings = settings_with(flip_probability=probability, crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0))
        for number in range(3):
            ours = augment.train_image(image, tf.constant([0, number]), settings, image.shape[:2])
            np.testing.assert_array_equal(ours, photographs[0][:, ::-1] if probability else photographs[0])


def test_color_jitter_is_torchvisions_on_the_same_draws(photographs):
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    image = photographs[2]
    orders = set()
    for number in range(12):
        seed = tf.constant([number, 0])
        uniform = tf.random.stateless_uniform([6], seed, alg="philox").numpy()
        factors, order = 0.6 + np.float32(0.8) * uniform[:3], np.argsort(uniform[3:])
        theirs = Image.fromarray(image)
        for turn in order:
            theirs = enhancers[turn](theirs).enhance(float(factors[turn]))
        largest, mean = difference(augment.color_jitter(tf.constant(image), seed, 0.4), theirs)
        assert largest <= 1 and mean < 0.01
        orders.add(tuple(order))
    assert len(orders) >= 4
    np.testing.assert_array_equal(augment.color_jitter(tf.constant(image), tf.constant([0, 0]), 0.0), image)


def test_color_jitter_is_for_training_without_randaugment(photographs):
    image, seed = tf.constant(photographs[0]), tf.constant([0, 1])
    plain, jittered, both = (
        augment.train_image(image, seed, settings_with(**values), (24, 24)).numpy()
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
    assert augment.train_image(encoded, tf.constant([0, 0]), settings_with(), (16, 16)).shape == (16, 16, 3)


def test_tiny_images_grow():
    for size in ((1, 1), (8, 8)):
        image = tf.fill([*size, 3], tf.constant(77, tf.uint8))
        settings = settings_with(randaugment="rand-m0-p1")
        assert (
            augment.train_image(image, tf.constant([0, 0]), settings_with(), (32, 32)).numpy().tolist()
            == [[[77] * 3] * 32] * 32
        )
        assert augment.train_image(image, tf.constant([0, 0]), settings, (32, 32)).shape == (32, 32, 3)
        assert (augment.eval_image(image, settings, (32, 32)).numpy() == 77).all()


def test_a_damaged_image_is_an_error():
    whole = JPEGS[0].read_bytes()
    for encoded in (b"", b"no image", whole[: len(whole) // 2]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            augment.eval_image(tf.constant(encoded), settings_with(), (16, 16))
        with pytest.raises(tf.errors.InvalidArgumentError):
            augment.train_image(
                tf.constant(encoded), tf.constant([0, 0]), settings_with(crop_area=(1.0, 1.0)), (16, 16)
            )


def test_bad_settings_are_named(photographs):
    image = tf.constant(photographs[0])
    with pytest.raises(ValueError, match="'z9' is not understood"):
        augment.train_image(image, tf.constant([0, 0]), settings_with(randaugment="rand-z9"), (16, 16))
    with pytest.raises(ValueError, match="number of copies"):
        tf.function(
            lambda seeds: augment.train_copies(image, seeds, settings_with(), (16, 16)),
            input_signature=[tf.TensorSpec([None, 2], tf.int32)],
        ).get_concrete_function()


@pytest.mark.parametrize("level", [-1.0, 2.0])
def test_a_mean_outside_of_the_colours_still_fills(level):
    """The mean is what geometric operations show beside the image, as a colour of 0 to 255."""
    settings = DataSettings(**{**get_config().data, "mean": (level, 0.5, 0.5), "randaugment": "rand-m9-p1"})
    image = tf.zeros([16, 16, 3], tf.uint8)
    assert augment.train_image(image, tf.constant([1, 2]), settings, (8, 8)).shape == (8, 8, 3)
