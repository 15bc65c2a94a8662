"""RandAugment: its notation, the frequencies of its draws, and its operations against timm's."""

import json
import math
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from tnt_jax.data import randaugment

RECIPE = "rand-m9-mstd0.5-inc1"
FILL = (124, 116, 104)


@pytest.fixture(scope="module")
def goldens():
    return dict(np.load(Path(__file__).parent / "fixtures" / "augment.npz"))


@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_operations_are_timms(goldens, name):
    """Pixels are equal. Pillow 12 and later round a rotation's coordinates differently: few pixels differ, by 1."""
    cases = [
        (number, case) for number, case in enumerate(json.loads(str(goldens["cases"]))) if case["operation"] == name
    ]
    assert {case["magnitude"] for _, case in cases} == (
        {0} if name in ("AutoContrast", "Equalize", "Invert") else {0, 5, 9, 10}
    )
    for number, case in cases:
        image = Image.fromarray(goldens[f"small_{case['image']}"])
        choices = float(case["magnitude"]), case["negative"], case["bicubic"], True
        ours = randaugment.operate(name, image, *choices, tuple(goldens["fill"].tolist()))
        difference = np.abs(np.asarray(ours, int) - goldens[f"case_{number}"])
        exact = name != "Rotate" or PIL.__version__ == json.loads(str(goldens["versions"]))["pillow"]
        assert (difference.max() == 0) if exact else (difference.max() <= 1 and difference.mean() < 0.01), case


def policy_with(**values):
    return randaugment.Policy(**values)


@pytest.mark.parametrize(
    ("notation", "policy"),
    [
        (RECIPE, policy_with(magnitude=9, deviation=0.5, increasing=True)),
        ("rand", policy_with()),
        ("rand-n3-m7-p0.25", policy_with(layers=3, magnitude=7, probability=0.25)),
        ("rand-m20-mmax30-inc0", policy_with(magnitude=20, magnitude_max=30)),
        ("rand-m9-mstd101", policy_with(magnitude=9, deviation=math.inf)),
        ("rand-n20", policy_with(layers=20)),
        ("rand-mstd1-tweights", policy_with(deviation=1, weighted=True, increasing=True)),
    ],
)
def test_notation(notation, policy):
    assert randaugment.parse(notation) == policy


@pytest.mark.parametrize(
    ("notation", "message"),
    [
        ("augmix-m3", "must start with 'rand'"),
        ("", "must start with 'rand'"),
        ("rand-m9-x3", "'x3' is not understood"),
        ("rand-m9-t3a", "'t3a' is not understood"),
        ("rand-n16-tweights", "n is 16, must lie in 1 to 15"),
        ("rand-m", "'m' is not understood"),
        ("rand-m9-m8", "gives 'm' twice"),
        ("rand-n2.5", "'n' needs a whole number, not '2.5'"),
        ("rand-p1.5", "p is 1.5, must lie in 0.0 to 1.0"),
        ("rand-n0", "n is 0, must lie in 1 to 100"),
        ("rand-m31", "m is 31.0"),
        ("rand-inc2", "inc is 2"),
    ],
)
def test_bad_notation_is_named(notation, message):
    with pytest.raises(ValueError, match="data.randaugment") as error:
        randaugment.parse(notation)
    assert message in str(error.value)


def draws_of(policy, count, interpolation="random"):
    """Returns draws for the seeds (0, 7), (1, 7), ...: fields [count, layers]."""
    return randaugment.draw(np.stack([np.arange(count), np.full(count, 7)], axis=1), policy, interpolation)


@pytest.fixture(scope="module")
def recipe_draws():
    return draws_of(randaugment.parse(RECIPE), 20_000)


def test_frequencies_over_20000_draws(recipe_draws):
    count, layers = recipe_draws.operation.shape
    assert (count, layers) == (20_000, 2)
    total = count * layers
    counts = np.bincount(recipe_draws.operation.ravel(), minlength=15)
    expected = total / 15
    assert len(counts) == 15 and np.abs(counts - expected).max() < 5 * math.sqrt(expected * 14 / 15)
    for fair in (recipe_draws.applied, recipe_draws.negative, recipe_draws.bicubic):
        assert abs(fair.mean() - 0.5) < 5 * 0.5 / math.sqrt(total)
    # N(9, 0.5) clipped at 10: two deviations above the mean
    density, above = math.exp(-2) / math.sqrt(2 * math.pi), 0.5 * math.erfc(2 / math.sqrt(2))
    mean = 9 - 0.5 * (density - 2 * above)
    magnitude = recipe_draws.magnitude
    assert abs(magnitude.mean() - mean) < 5 * 0.5 / math.sqrt(total)
    assert abs(magnitude.std() - 0.4897) < 0.01
    assert abs((magnitude == 10).mean() - above) < 0.006 and magnitude.min() > 6


def test_weighted_operations_are_drawn_without_replacement_as_often_as_their_weights_say():
    """Like numpy.random.choice(replace=False, p=weights), which timm uses: one operation after the other."""
    count = 20_000
    found = draws_of(randaugment.parse("rand-tweights"), count).operation
    assert (found[:, 0] != found[:, 1]).all()
    share = np.array([randaugment.WEIGHTS[name] for name in randaugment.OPERATIONS])
    share /= share.sum()
    second = (share[None, :] * share[:, None] / (1 - share[:, None]) * (1 - np.eye(15))).sum(axis=0)
    for place, expected in enumerate((share, second)):
        frequency = np.bincount(found[:, place], minlength=15) / count
        assert np.abs(frequency - expected).max() < 5 * math.sqrt(0.25 / count)
        assert (frequency > 0).all()
    every = randaugment.draw(np.array([1, 2]), randaugment.parse("rand-n15-tweights")).operation
    assert sorted(every) == list(range(15))


def test_draws_are_independent(recipe_draws):
    columns = np.concatenate([np.asarray(field, np.float64) for field in recipe_draws], axis=1)
    correlations = np.corrcoef(columns, rowvar=False) - np.eye(columns.shape[1])
    assert np.abs(correlations).max() < 5 / math.sqrt(len(columns))


def test_draws_are_a_function_of_the_seed(recipe_draws):
    policy = randaugment.parse(RECIPE)
    again = randaugment.draw(np.array([123, 7]), policy)
    for field, fields in zip(again, recipe_draws, strict=True):
        np.testing.assert_array_equal(field, fields[123])
    other = randaugment.draw(np.array([7, 123]), policy)
    assert not np.array_equal(other.magnitude, again.magnitude)


def test_other_policies_draw_as_they_say():
    draws = draws_of(randaugment.parse("rand-m8-n3-mstd101-p0.2"), 2_000, "bicubic")
    assert draws.operation.shape == (2_000, 3) and draws.bicubic.all()
    assert abs(draws.applied.mean() - 0.2) < 0.03
    assert draws.magnitude.min() < 0.1 and draws.magnitude.max() > 7.9  # uniform in 0..8
    assert abs(draws.magnitude.mean() - 4) < 5 * 8 / math.sqrt(12 * 6_000)
    draws = draws_of(randaugment.parse("rand-m30"), 10, "bilinear")
    assert not draws.bicubic.any() and (draws.magnitude == 10).all()
    assert (draws_of(randaugment.parse("rand-m20-mmax30"), 10).magnitude == 20).all()


def test_apply_does_what_was_drawn_and_nothing_else():
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 24, 3), np.uint8))
    policy = randaugment.Policy(layers=2, increasing=True)

    def applied(first, second, applied):
        rows = ([first, second], applied, [8.0, 6.0], [True, False], [False, True])
        return randaugment.apply(image, randaugment.Draws(*map(np.array, rows)), policy, FILL)

    def operate(index, image, *choices):
        return randaugment.operate(randaugment.OPERATIONS[index], image, *choices, True, FILL)

    np.testing.assert_array_equal(applied(3, 4, [False, False]), image)
    for index in range(15):
        once = operate(index, image, 8.0, True, False)
        np.testing.assert_array_equal(applied(index, 2, [True, False]), once)
        twice = operate(14 - index, once, 6.0, False, True)
        np.testing.assert_array_equal(applied(index, 14 - index, [True, True]), twice)
        np.testing.assert_array_equal(applied(2, index, [False, True]), operate(index, image, 6.0, False, True))


@pytest.mark.parametrize(("name", "value"), [("Posterize", 0b11000000), ("Solarize", 200), ("SolarizeAdd", 200)])
def test_the_plain_forms_weaken_where_the_increasing_ones_strengthen(name, value):
    """Without inc, magnitude 5 keeps 2 bits and inverts from 128; magnitude 10 keeps all 4 bits and inverts nothing."""
    image = Image.new("RGB", (4, 4), (200, 200, 200))
    assert (np.asarray(randaugment.operate(name, image, 10.0, False, False, False, FILL)) == value).all()


@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_plain_enhancements_reach_from_a_tenth_to_1_9(name):
    """Without inc the sign has no effect; at magnitude 5 the factor is 1, which leaves the image unchanged."""
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (8, 9, 3), np.uint8))
    for negative in (False, True):
        middle = randaugment.operate(name, image, 5.0, negative, False, False, FILL)
        np.testing.assert_array_equal(middle, image)


def test_an_unknown_operation_is_an_error():
    with pytest.raises(ValueError, match="'Blur' is not an operation"):
        randaugment.operate("Blur", Image.new("RGB", (4, 4)), 9.0, False, False, True, FILL)
