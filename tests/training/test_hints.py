"""Hints for unknown keys: first our key of the same meaning, then keys of similar spelling."""

import difflib

import pytest

from tnt_jax.training.config import KEYS, unknown_key_message
from tnt_jax.training.hints import KEYS_BY_MEANING, NO_SUCH_THING


def test_the_table_leads_to_keys_that_exist_and_from_names_that_do_not():
    accepted = KEYS
    assert set(KEYS_BY_MEANING.values()) <= set(accepted)
    leaves = {key.rpartition(".")[2] for key in accepted}
    assert not leaves & (KEYS_BY_MEANING.keys() | NO_SUCH_THING.keys())
    assert not KEYS_BY_MEANING.keys() & NO_SUCH_THING.keys()


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.in_chans", "Did you mean model.in_channels?"),
        ("lr", "Did you mean learning_rate?"),
        ("model.lr", "Did you mean learning_rate?"),
        ("model.img-size", "Did you mean model.image_size?"),
        ("model.embed_dim", "Did you mean model.outer_dim?"),
        ("model.num_heads", "Did you mean model.outer_num_heads?"),
        ("model.drop_path", "Did you mean model.drop_path_rate?"),
        ("wd", "Did you mean weight_decay?"),
        ("model.drop_rate", "Did you mean model.head_dropout?"),
        ("model.attn_drop", "Blocks have no dropout"),
        ("data.data_dir", "Did you mean data.directory?"),
        ("opt", "Did you mean optimizer?"),
        ("output_dir", "--workdir"),
        ("lerning_rate", "Did you mean learning_rate?"),
        ("modle.image_size", "Did you mean model.image_size?"),
        ("name", "Did you mean model.name or data.name?"),
        ("data.maen", "Did you mean data.mean?"),
        ("data.name.x", "Did you mean data.name?"),
        ("model.patch", "Did you mean model.patch_size?"),
        ("clip", "Did you mean gradient_clip_norm?"),
        ("llrd", "Did you mean layer_decay?"),
        ("model.head_dim", "A key has its default in configs/default.py and its type in tnt_jax/training/config.py."),
        ("decay", "Did you mean weight_decay or layer_decay or ema_decay?"),
        ("model.xyzzy", "A key has its default in configs/default.py and its type in tnt_jax/training/config.py."),
    ],
)
def test_hints(key, words):
    message = unknown_key_message(key)
    assert message.startswith(f"config.{key}: there is no such key. ") and words in message


def test_a_name_of_another_project_is_not_read_as_a_misspelling():
    """Its nearest key by spelling means something else."""
    assert difflib.get_close_matches("model.hidden_dim", KEYS, n=1) == ["model.inner_dim"]
    assert "inner_dim" not in unknown_key_message("model.hidden_dim")
