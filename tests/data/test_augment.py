"""Decoding, cropping, resizing, flipping and jittering: timm's pixels on the same draws, and odd files."""

import io
import json
import math
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import GifImagePlugin, Image, ImageEnhance

from configs.default import get_config
from tests.data import odd_images
from tnt_jax.data import augment, randaugment
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


def made(image, seed, settings, size):
    """train_image for one seed."""
    return augment.train_image(image, augment.draw(np.array(seed), settings), settings, size)


def test_evaluation_is_timms(goldens):
    for number, path in enumerate(JPEGS):
        for index, (size, fraction, interpolation) in enumerate(json.loads(str(goldens["evals"]))):
            settings = settings_with(eval_crop_fraction=fraction, eval_interpolation=interpolation)
            ours = augment.eval_image(augment.decode(path.read_bytes()), settings, tuple(size))
            np.testing.assert_array_equal(ours, goldens[f"eval_{number}_{index}"], f"{path.name} {size}")


def test_training_is_timms(goldens):
    """timm's create_transform with the recipe, its random numbers ours: crop, flip and RandAugment in one."""
    for number, path in enumerate(JPEGS):
        for index, (seed, notation, size) in enumerate(json.loads(str(goldens["trains"]))):
            settings = settings_with(randaugment=notation, train_interpolation="random", mean=(0.5, 0.4, 0.3))
            ours = made(augment.decode(path.read_bytes()), seed, settings, tuple(size))
            np.testing.assert_array_equal(ours, goldens[f"train_{number}_{index}"], f"{path.name} {seed} {notation}")


@pytest.mark.parametrize(("height", "width"), [(248, 248), (249, 331), (500, 375), (100, 90), (7, 400)])
def test_evaluation_resizes_and_cuts_where_torchvision_does(height, width):
    """Position codes instead of a picture: columns in red, rows in green."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width) * 255 // width, (np.arange(height) * 255 // height)[:, None]
    image, scale = Image.fromarray(pixels), math.floor(224 / 0.9)
    resized = (scale, int(scale * width / height)) if height <= width else (int(scale * height / width), scale)
    top, left = (round((side - 224) / 2) for side in resized)
    theirs = image.resize(resized[::-1], Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    np.testing.assert_array_equal(augment.eval_image(image, settings_with(), (224, 224)), theirs)


def torchvision_crop(height, width, area, aspect, corner, settings):
    """torchvision's RandomResizedCrop.get_params with given draws -> left, top, width, height."""
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
    assert centred > 50  # the fallback has been seen


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
    first, again = ([made(photographs[0], (n, 1), settings, (32, 24)) for n in range(6)] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first[0].shape == (32, 24, 3) and first[0].dtype == np.uint8
    assert len({image.tobytes() for image in first}) == 6
    assert made(photographs[0], (1, 0), settings, (32, 24)).tobytes() != first[0].tobytes()


def test_flip_probability_is_obeyed(photographs):
    pixels = np.asarray(photographs[0])
    for probability in (0.0, 1.0):
        settings = settings_with(flip_probability=probability, crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0))
        for number in range(3):
            ours = made(photographs[0], (0, number), settings, pixels.shape[:2])
            side = min(pixels.shape[:2])
            assert pixels.shape[0] == pixels.shape[1] or ours.shape != (side, side)
            square = photographs[0].crop((0, 0, side, side))
            ours = made(square, (0, number), settings, (side, side))
            np.testing.assert_array_equal(ours, np.asarray(square)[:, ::-1] if probability else square)


def test_color_jitter_is_torchvisions_on_the_same_draws(photographs):
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    settings = settings_with(color_jitter=0.4)
    orders = set()
    for number in range(12):
        choices = augment.draw(np.array([number, 0]), settings).choices
        factors, order = choices[2:5], choices[5:].astype(int).tolist()
        assert (0.6 <= factors).all() and (factors < 1.4).all() and sorted(order) == [0, 1, 2]
        theirs = Image.fromarray(made(photographs[2], (number, 0), settings_with(), (40, 40)))
        for each in order:
            theirs = enhancers[each](theirs).enhance(float(factors[each]))
        np.testing.assert_array_equal(made(photographs[2], (number, 0), settings, (40, 40)), theirs)
        orders.add(tuple(order))
    assert len(orders) >= 4


def test_color_jitter_is_for_training_without_randaugment(photographs):
    plain, jittered, both = (
        made(photographs[0], (0, 1), settings_with(**values), (24, 24))
        for values in ({}, {"color_jitter": 0.4}, {"color_jitter": 0.4, "randaugment": "rand-p0"})
    )
    assert not np.array_equal(plain, jittered)
    np.testing.assert_array_equal(plain, both)


@pytest.mark.parametrize("value", [-1.0, 2.0])
def test_a_mean_outside_of_the_colours_still_fills(value):
    """The mean is what geometric operations show beside the image, as a colour of 0 to 255."""
    settings = settings_with(mean=(value, 0.5, 0.5), randaugment="rand-m9-p1")
    image = Image.new("RGB", (16, 16), (128, 128, 128))
    seen = {int(red) for n in range(20) for red in np.unique(made(image, (n, 2), settings, (8, 8))[..., 0])}
    assert (0 if value < 0 else 255) in seen


def test_tiny_images_grow():
    for size in ((1, 1), (8, 8)):
        image = Image.new("RGB", size, (77, 77, 77))
        assert (made(image, (0, 0), settings_with(), (32, 32)) == 77).all()
        assert made(image, (0, 0), settings_with(randaugment="rand-m0-p1"), (32, 32)).any()
        assert (augment.eval_image(image, settings_with(), (32, 32)) == 77).all()


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("L", "PNG", {}),
        ("RGB", "BMP", {}),
        ("P", "GIF", {"save_all": True, "append_images": [Image.new("P", (96, 96))]}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("L", "JPEG", {}),
        ("RGB", "JPEG", {"subsampling": 2, "progressive": True}),
        ("CMYK", "JPEG", {}),
    ],
)
def test_formats_are_decoded_as_pillow_does_the_first_frame_of_several(photographs, mode, kind, options):
    file = io.BytesIO()
    photographs[1].convert(mode).save(file, kind, **options)
    np.testing.assert_array_equal(augment.decode(file.getvalue()), Image.open(file).convert("RGB"))


def test_pixels_are_taken_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    np.testing.assert_array_equal(augment.decode(pixels), pixels)
    np.testing.assert_array_equal(augment.decode(pixels[..., :1]), np.repeat(pixels[..., :1], 3, axis=-1))


def with_orientation(number, kind="JPEG"):
    """A red stripe on the left of a grey image of 24 x 16, saved turned so that the tag puts it back."""
    image, exif, file = Image.new("RGB", (24, 16), (90, 90, 90)), Image.Exif(), io.BytesIO()
    image.paste((255, 0, 0), (0, 0, 6, 16))
    exif[0x0112] = number
    if number == 6:  # a phone held upright: the sensor's picture is the one above turned by a quarter
        image = image.transpose(Image.Transpose.ROTATE_90)
    image.save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_turns_an_image_where_it_is_asked_for(kind):
    turned = augment.decode(with_orientation(6, kind), upright=True)
    assert turned.size == (24, 16) and turned.getpixel((2, 8))[0] > 200 and turned.getpixel((20, 8))[0] < 120
    stored = augment.decode(with_orientation(6, kind))
    assert stored.size == (16, 24) and stored.getpixel((8, 2))[0] < 120
    for number in (1, 0, 99):
        assert augment.decode(with_orientation(number, kind), upright=True).size == (24, 16)


def test_a_damaged_exif_block_does_not_make_its_image_faulty():
    data = bytearray(with_orientation(6))
    start = data.index(b"Exif\0\0")
    data[start + 6 : start + 20] = b"\xff" * 14
    assert augment.decode(bytes(data), upright=True).size == (16, 24)


def test_an_odd_tag_beside_the_orientation_does_not_make_its_image_faulty():
    orientation, resolution = struct.pack("<HHII", 0x0112, 3, 1, 6), struct.pack("<HHI4s", 0x011A, 2, 4, b"odd")
    exif, file = b"II*\0\x08\0\0\0\x02\0" + orientation + resolution + bytes(4), io.BytesIO()
    Image.new("RGB", (16, 24)).save(file, "PNG", exif=exif)
    assert augment.decode(file.getvalue(), upright=True).size == (24, 16)


@pytest.mark.parametrize("progressive", [False, True])
def test_what_follows_a_jpeg_does_not_make_it_faulty(progressive):
    """A phone's motion photo has a film behind it, in which the bytes of a scan's start come by chance."""
    image = odd_images.encoded("RGB", "JPEG", (64, 64), progressive=progressive)
    assert augment.decode(image + b"\xff\xda" * 1000) == augment.decode(image)


def test_sixteen_bit_grey_is_grey():
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 30000, np.uint16)).save(file, "PNG")
    assert augment.decode(file.getvalue()).getpixel((0, 0)) == (117, 117, 117)
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(file := io.BytesIO(), "TIFF")
    with pytest.raises(augment.Undecodable, match="32-bit numbers"):
        augment.decode(file.getvalue())


@pytest.mark.parametrize("file", odd_images.FAULTY)
def test_what_cannot_be_decoded_says_why(file):
    make, reason = odd_images.FAULTY[file]
    with pytest.raises(augment.Undecodable) as error:
        augment.decode(make())
    assert reason in str(error.value) and str(error.value) and "0x" not in str(error.value)


def big_header(side):
    """A JPEG of some hundred bytes that says it has so many pixels a side."""
    data = bytearray(odd_images.encoded("RGB", "JPEG"))
    frame = data.index(b"\xff\xc0") + 5
    data[frame : frame + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def many_scans(count, size=(64, 64)):
    """A progressive JPEG whose last scan is there `count` times."""
    data = odd_images.encoded("RGB", "JPEG", size, progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: big_header(9000), "bytes that says 9000 x 9000 pixels: most are missing"),
        (lambda: big_header(13370), "13370 x 13370 pixels, of at most 89,478,485"),
        (lambda: many_scans(2000), "a JPEG of 101 scans of 64 x 64 pixels: too many"),
        (lambda: many_scans(70, (4096, 4096)), "scans of 4096 x 4096 pixels: too many"),
    ],
)
def test_hostile_jpegs_are_refused_at_once(data, reason):
    encoded, started = data(), time.monotonic()
    with pytest.raises(augment.Undecodable, match=reason):
        augment.decode(encoded)
    assert time.monotonic() - started < 1


def test_of_an_animation_only_the_first_frame_is_decoded(monkeypatch):
    frames, file, seen = [Image.new("P", (30, 20), colour) for colour in range(4)], io.BytesIO(), []
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    seek = GifImagePlugin.GifImageFile._seek
    monkeypatch.setattr(
        GifImagePlugin.GifImageFile, "_seek", lambda self, frame, *more: seen.append(frame) or seek(self, frame, *more)
    )
    assert augment.decode(file.getvalue()).size == (30, 20)
    assert set(seen) == {0}


def test_a_single_colour_is_no_hostile_jpeg():
    """The fewest bytes that an honest file has for its pixels, as an encoder of today writes them."""
    for options in ({}, {"progressive": True}, {"optimize": True, "quality": 1}):
        assert augment.decode(odd_images.encoded("RGB", "JPEG", (3000, 2000), **options)).size == (3000, 2000)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="'z9' is not understood"):
        settings_with(randaugment="rand-z9")
    assert randaugment.parse("rand-m9").magnitude == 9


def test_a_damaged_animation_of_millions_of_columns_is_refused_at_once():
    file = io.BytesIO()
    frames = [Image.fromarray(np.full((2, 8, 3), value, np.uint8)) for value in (0, 200)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    sound = file.getvalue()
    assert augment.decode(sound).size == (8, 2) and sound[24:27] == b"\x07\0\0"  # the canvas: its width less one
    with pytest.raises(augment.Undecodable, match="a WebP of 12517385 x 2 pixels, of at most 16,383 a side"):
        augment.decode(sound[:24] + (12_517_384).to_bytes(3, "little") + sound[27:])
