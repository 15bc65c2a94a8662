"""configs/ablations.py: each row of Tables 5, 6, 7, 8 and 12 is an argument, and has the paper's counts."""

from pathlib import Path

import pytest
from ml_collections.config_flags import config_flags

from configs import ablations, default
from tnt_jax.models.complexity import count_parts, frozen_outer_tokens
from tnt_jax.training.config import as_dict, check_config
from tnt_jax.training.setup import make_model

TNT_S = 23_768_584
# Parameters that the inner path adds to a TNT-S block: 12 C C + M C D, 6 C in biases, norms over C, C, M C and D.
INNER_PATH = 12 * 24 * 24 + 16 * 24 * 384 + 6 * 24 + 2 * (2 * 24 + 16 * 24 + 384)
# Parameters that squeeze-and-excitation adds to a block: D to D / 4 and back with biases, and its norm.
GATE = 2 * 384 * 96 + 96 + 384 + 2 * 384

# Argument: trainable parameters with 1,000 classes; the paper's parameters (millions) and FLOPs (billions of
# multiply-adds), None where the table has none.
ROWS = {
    "blocks=all": (TNT_S, None, 5.2),  # Table 5
    "blocks=1,4,8,12": (TNT_S - 8 * INNER_PATH, None, 4.8),
    "blocks=1,6,12": (TNT_S - 9 * INNER_PATH, None, 4.7),
    "blocks=1,6": (TNT_S - 10 * INNER_PATH, None, 4.7),
    "blocks=1": (TNT_S - 11 * INNER_PATH, None, 4.6),
    "blocks=none": (22_050_664, None, 4.6),  # timm's deit_small_patch16_224
    "sentence_position=false,word_position=false": (TNT_S - 197 * 384 - 16 * 24, None, None),  # Table 6
    "sentence_position=false": (TNT_S - 197 * 384, None, None),
    "word_position=false": (TNT_S - 16 * 24, None, None),
    "inner_heads=1": (TNT_S, None, None),  # Table 7
    "inner_heads=2": (TNT_S, None, None),
    "inner_heads=4": (TNT_S, None, None),
    "inner_heads=6": (TNT_S, None, None),
    "inner_heads=8": (TNT_S, None, None),
    "words=64": (23_686_000, 23.8, 5.1),  # Table 8
    "words=16": (TNT_S, 23.8, 5.2),
    "words=4": (25_032_040, 25.1, 6.0),
    "se=true": (TNT_S + 12 * GATE, 24.7, 5.2),  # Table 12
}


def model_of(argument: str):
    """Returns the ImageNet model of an argument."""
    return make_model(check_config(ablations.get_config(argument)), num_classes=1000)


@pytest.mark.parametrize("argument", ROWS)
def test_counts_are_the_papers(argument):
    """All rows match the paper at its own rounding, once its N x D frozen, unused outer_tokens are counted.

    Without them words=4 has 25.03 M trainable parameters (paper: 25.1 M) and words=64 has 23.69 M (paper: 23.8 M).
    """
    trainable, parameters, flops = ROWS[argument]
    model = model_of(argument)
    parts = count_parts(model)
    assert sum(part.parameters for part in parts) == trainable
    if parameters is not None:
        assert round((trainable + frozen_outer_tokens(model)) / 1e6, 1) == parameters
    if flops is not None:
        assert round(sum(part.multiply_adds for part in parts) / 1e9, 1) == flops


@pytest.mark.parametrize(
    "argument, changed",
    {
        "blocks=12,1,4": {"tnt_blocks": [1, 4, 12]},
        "blocks=none": {"name": "deit_small_patch16_224"},
        "blocks=all,word_position=true": {"word_position": True},
        "sentence_position=false": {"sentence_position": False},
        "inner_heads=8": {"inner_num_heads": 8},
        "words=64": {"word_size": 2, "inner_dim": 6, "inner_num_heads": 2},
        "words=4,inner_heads=16": {"word_size": 8, "inner_dim": 96, "inner_num_heads": 16},
        "blocks=1,6,se=true,words=16": {
            "tnt_blocks": [1, 6],
            "squeeze_excitation": True,
            "word_size": 4,
            "inner_dim": 24,
            "inner_num_heads": 4,
        },
    }.items(),
)
def test_an_argument_changes_what_it_names_and_no_more(argument, changed):
    expected = as_dict(check_config(default.get_config()))
    expected["model"] |= changed
    assert as_dict(check_config(ablations.get_config(argument))) == expected


def test_words_keep_the_width_of_a_sentence():
    for argument in ("words=64", "words=16", "words=4"):
        model = model_of(argument)
        assert model.num_words == int(argument.removeprefix("words="))
        assert model.num_words * model.inner_dim == model.outer_dim == 384


def test_none_is_deit_s():
    model = model_of("blocks=none")
    assert model.inner_blocks == () and model.qkv_bias and model.norm_epsilon == 1e-6


def test_the_command_line_takes_the_argument():
    path = Path(ablations.__file__)
    config = config_flags.ConfigFileFlagParser("config").parse(f"{path}:blocks=1,6,word_position=false")
    assert config.model.tnt_blocks == (1, 6) and config.model.word_position is False


@pytest.mark.parametrize(
    "argument, message",
    [
        ("", "an argument is missing.*blocks=.*sentence_position=.*word_position=.*inner_heads=.*words=.*se="),
        ("word=64", "'word' is not known.*words= 64, 16 or 4"),
        ("64", "'64' is not known.*words= 64, 16 or 4"),
        ("se=true,se=true", "'se' is given twice"),
        ("words=32", "words=32: must be one of 64, 16, 4"),
        ("se=yes", "se=yes: must be one of true, false"),
        ("inner_heads=5", "inner_heads=5: must be one of 1, 2, 3, 4, 6, 8, 12, 24"),
        ("words=64,inner_heads=4", "inner_heads=4: must be one of 1, 2, 3, 6"),
        ("blocks=0,1", "blocks=0,1: must be all, none, or different block numbers from 1 to 12"),
        ("blocks=13", "blocks=13: must be all, none, or"),
        ("blocks=1,1", "blocks=1,1: must be all, none, or different"),
        ("blocks=", "blocks=: must be all, none, or"),
        ("se=true,", "se=true,: must be one of true, false"),
        ("blocks=none,inner_heads=2", "blocks=none has no inner path, so inner_heads must be left out"),
    ],
)
def test_what_is_not_accepted_is_refused_with_what_is(argument, message):
    with pytest.raises(ValueError, match=message):
        ablations.get_config(argument)
