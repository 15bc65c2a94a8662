"""Values for the keys of configs/default.py: ones that work, edge cases, absurd ones of their type, wrong types.

SOUND has a line for every key. A new key must be added here (`keys` checks it) and is drawn from then on.
"""

import dataclasses
import math
import pathlib
import types
import typing
from typing import Any

import numpy as np
from hypothesis import strategies as st

from configs import default
from tnt_jax.data.randaugment import OPERATIONS
from tnt_jax.models.variants import VARIANTS
from tnt_jax.training.config import KEYS, Config

Changes = dict[str, Any]

BASES = ("synthetic", "digits", "folder", "device")  # see harness.py
NUMBER = (0.0, 0.1, 0.5, 1.0, 2.0, 1e-3)
INTERVAL = (0, 1, 2, 5)
FLAG = (False, True)
HUGE = (2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 10**30, 10**400)
WHOLE = (0, -1, 1, 2, 3, 4, 7, 8, 16, 24, -(10**30), *HUGE)
FLOATS = (
    *(0.0, -0.0, -1.0, 1e-3, 0.5, 1.0, 1.5, 2.0, 100.0, 1e8, math.inf, -math.inf, math.nan),
    *(5e-324, 1e-300, 1e-45, 1e-38, 1e-30, 1e-8),  # zero in float32, or too small a divisor
    *(0.9999999, 0.9999999999, 1 - 2**-53, 1 + 2**-52),  # one in float32
    *(1e30, 3.4e38, 3.5e38, 1e300, 1.7e308, 10**400),  # infinite in float32, or once multiplied
)
TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "é🙂",
    "x" * 5000,
    "none",
    "nowhere",
    "a/b",
    "%s{}",
    "[",
    "../nowhere",
    "True",
)
SPLITS = (
    *("train", "test", "train[:8]", "train[:50%]", "train[-9:]", "train+test", "train[:99%]", "test[:8]"),
    *("train[", "train[:0%]", "train[:1]", "train[5:2]", "train[:10000000000]", "train[:999%]", "all", "train+", "+"),
    *("train[-1:]", "train[:x]", "train[:50%](closest)", "validation", "train[1:2:3]", "test[:0]", " train"),
)
PAIRS = (
    *((0.1, 1.0), (1.0, 1.0), (0.5, 2.0), (1e-9, 1e-9), (1e-300, 1e300), (1e-38, 1.0), (1e30, 1e30), (50.0, 100.0)),
    *((0.01, 0.02), (5e-324, 1.0), (1.0, 0.5), (0, 1), (-1, 1), (math.nan, math.nan), (0.1, math.inf), (10**400, 1)),
)
TUPLES = (
    (),
    (0,),
    (1,),
    (1, 1),
    (2, 1),
    (-1,),
    (1, 2, 3, 4),
    ("a",),
    (None,),
    ((1,),),
    (1.5,),
    (True,),
    [1],
    (1,) * 999,
)
WRONG = (
    *(None, True, 3, 2.5, "x", b"x", (), (1, 2), [], [1.0], {}, {"a": 1}, frozenset(), 1j, ..., int),
    *(np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True), np.arange(2), pathlib.Path("x")),
)

# Values that may work on the bases; other draws follow from the key's type.
SOUND: dict[str, tuple[Any, ...]] = {
    "seed": (0, 1, 2**31 - 1),
    "batch_size": (8, 16, 24),
    "eval_batch_size": (8, 16, 64),
    "accumulation_steps": (1, 2, 4),
    "epochs": (1.0, 3.5, 300.0, 0.01),
    "cooldown_epochs": (0.0, 1.0, 10),
    "steps": (0, 1, 7),
    "optimizer": KEYS["optimizer"].choices,
    "learning_rate": (1e-3, 0.1, 1e-6, 1e6),
    "learning_rate_batch_size": (0, 512, 1),
    "schedule": KEYS["schedule"].choices,
    "schedule_unit": KEYS["schedule_unit"].choices,
    "warmup_epochs": (0.0, 0.5, 1),
    "warmup_learning_rate": (0.0, 1e-6, 1.0),
    "min_learning_rate": (0.0, 1e-5, 1e-2),
    "weight_decay": NUMBER,
    "adam_beta1": (0.0, 0.9, 0.999),
    "adam_beta2": (0.0, 0.9, 0.999),
    "adam_epsilon": (1e-8, 1e-3, 1.0),
    "momentum": (0.0, 0.9, 0.95),
    "layer_decay": (1.0, 0.75, 0.5),
    "freeze": ((), ("(?!head/).*",), ("block_1/.*", "norm/.*"), (".*",), ("head",), ("(",)),
    "gradient_clip_norm": NUMBER,
    "ema_decay": (0.0, 0.9, 0.99996),
    "ema_warmup": FLAG,
    "loss": KEYS["loss"].choices,
    "label_smoothing": (0.0, 0.1, 0.9),
    "bce_threshold": (None, 0.0, 0.2),
    "bce_sum_classes": FLAG,
    "class_weights": ("none", "balanced", '{"0": 1, "1": 2.5}', '{"a": 0}', '{"a": 1, "a": 2}', "{}", "[1]"),
    "pretrained": ("", "folder", "empty.safetensors", "broken.pth", "hf-hub:", "hf-hub:a", "hf-hub:a/b/c"),
    "pretrained_weights": KEYS["pretrained_weights"].choices,
    "pretrained_new_head": FLAG,
    "log_every_steps": INTERVAL,
    "eval_every_steps": INTERVAL,
    "checkpoint_every_steps": INTERVAL,
    "keep_checkpoints": (1, 2, 3),
    "prefetch_batches": (1, 2, 8),
    "nonfinite": KEYS["nonfinite"].choices,
    "nonfinite_limit": (1, 2, 10),
    "slow_step_factor": (0.0, 0.5, 10.0),
    "cpu_devices": (0, 1, 2),
    "scan_tile_kib": (-1, 0, 6144),
    "report_card": ((), ("digits:test",), ("imagenet_a:test", "nowhere"), ("",), ("[",)),
    "profile_steps": ((), (2, 1), (1, 1)),
    "model.name": (*VARIANTS, "tnt"),
    "model.num_classes": (None, 10, 1000),
    "model.image_size": (8, 16, (8, 16)),
    "model.in_channels": (3, 1),
    "model.patch_size": (None, 4, 8, 2),
    "model.word_size": (None, 1, 2, 4),
    "model.inner_dim": (None, 2, 3, 4),
    "model.outer_dim": (None, 4, 6, 8),
    "model.inner_num_heads": (None, 1, 2),
    "model.outer_num_heads": (None, 1, 2),
    "model.depth": (1, 2, 3),
    "model.mlp_ratio": (None, 0.5, 1, 4.0),
    "model.tnt_blocks": (None, (), (1,), (1, 2), [1]),
    "model.word_position": (None, *FLAG),
    "model.sentence_position": (None, *FLAG),
    "model.sentence_encoding": (None, "learned", "sincos"),
    "model.layer_scale": (None, 0.0, 1e-5, 1.0),
    "model.pooling": (None, "class_token", "mean"),
    "model.head_dropout": (0.0, 0.5),
    "model.initialization": KEYS["model.initialization"].choices,
    "model.zero_init_head": FLAG,
    "model.squeeze_excitation": (None, *FLAG),
    "model.qkv_bias": (None, *FLAG),
    "model.drop_path_rate": (None, 0.0, 0.1, 0.9),
    "model.drop_path_schedule": KEYS["model.drop_path_schedule"].choices,
    "model.remat": FLAG,
    "model.remat_policy": KEYS["model.remat_policy"].choices,
    "model.scan": FLAG,
    "model.inner_implementation": KEYS["model.inner_implementation"].choices,
    "model.outer_implementation": ("auto", "xla"),
    "model.dtype": (*KEYS["model.dtype"].choices, "float16", "int8"),
    "data.name": ("synthetic", "folder", "digits", "imagenet2012", "digits/large", "digits:9.9.9", "a/b/c", "../x"),
    "data.directory": ("folder", "nowhere", "empty.safetensors", "empty"),
    "data.train_split": SPLITS,
    "data.eval_split": SPLITS,
    "data.pixel_bits": (8, 16),
    "data.mean": (
        (0.5,),
        (0.5, 0.5, 0.5),
        (0, 0, 0),
        [1.0, 0.0, -1.0],
        (1e300, 0, 0),
        (-1e9, 1e9, 0),
        (1e20, 1e30, 1e38),
    ),
    "data.std": ((0.25,), (0.5, 0.5, 0.5), (1, 2, 3), (1e-300, 1, 1), (1e-30, 1e30, 1.0), (1e300, 1, 1), (0, 1, 1)),
    "data.repeated_augmentation": (1, 2, 3, 8),
    "data.crop": ("random_resized", "simple"),
    "data.crop_area": PAIRS,
    "data.crop_aspect": PAIRS,
    "data.train_interpolation": ("bilinear", "bicubic", "random"),
    "data.flip_probability": (0.0, 0.5, 1.0),
    "data.randaugment": (
        *("", "rand-m9-mstd0.5-inc1", "rand", "rand-n15-p1", "rand-m30-mmax30-p1-mstd101", "rand-m0-mmax0", "rand-n0"),
        *("rand-m9-n99", "rand-n1.5", "rand-", "rand-m9-m9", "rand-m1e9", "m9", "rand-n" + "9" * 5000, OPERATIONS[0]),
        *("rand-m" + "9" * 400, "rand-mstd" + "9" * 400, "rand-mstd" + "9" * 40, "rand-p0.0000001"),
    ),
    "data.three_augment": FLAG,
    "data.color_jitter": (0.0, 0.4, 1.0),
    "data.eval_crop_fraction": (0.9, 1.0, 0.5, 0.1),
    "data.eval_interpolation": ("bilinear", "bicubic"),
    "data.exif_orientation": FLAG,
    "data.worker_processes": (-1, 0, 1),
    "data.on_device": FLAG,
    "data.synthetic_examples": (8, 33, 5000),
    "data.max_faulty_images": (0, 1, 10),
    "data.allow_faulty_eval": FLAG,
    "mixing.mixup_alpha": (0.0, 0.8, 10.0),
    "mixing.cutmix_alpha": (0.0, 1.0, 10.0),
    "mixing.probability": (0.0, 0.5, 1.0),
    "mixing.cutmix_probability": (0.0, 0.5, 1.0),
    "mixing.erase_probability": (0.0, 0.25, 1.0),
    "mixing.erase_area": PAIRS,
    "mixing.erase_aspect": PAIRS,
    "mixing.order": KEYS["mixing.order"].choices,
    "distillation.teacher": ("", "folder", "nowhere", "empty.safetensors"),
    "distillation.kind": ("soft", "hard"),
    "distillation.temperature": (1.0, 4, 1e-30),
    "distillation.weight": (0.5, 0, 1.0),
    "distributed.enabled": FLAG,
    "distributed.coordinator_address": ("", "localhost:1", "localhost:abc", "nowhere"),
    "distributed.num_processes": (0, 1, 2, 2**31 - 1),
    "distributed.process_id": (-1, 0, 1),
    "distributed.initialization_timeout_seconds": (1, 300),
    "distributed.heartbeat_timeout_seconds": (10, 100),
}


def keys() -> list[str]:
    """Returns the dotted keys of configs/default.py. Raises AssertionError if SOUND lacks one or has a stale one."""
    found = list(_flat(default.get_config().to_dict(), ""))
    assert set(found) == set(SOUND), f"tests/fuzz/values.py, SOUND: {set(found) ^ set(SOUND)} to add or to remove"
    return found


def changes(wrong_types: bool) -> st.SearchStrategy[tuple[str, Changes]]:
    """Draws (one of BASES, one to three keys with a value each). Without `wrong_types` most values may work."""
    chosen = st.lists(st.sampled_from(keys()), min_size=1, max_size=3, unique=True)
    valued = chosen.flatmap(lambda names: st.fixed_dictionaries({name: _values(name, wrong_types) for name in names}))
    return st.tuples(st.sampled_from(BASES), valued)


def _values(key: str, wrong_types: bool) -> st.SearchStrategy[Any]:
    typed = {
        int: st.sampled_from(WHOLE) | st.integers(-3, 40) | st.integers(),
        float: st.sampled_from(FLOATS) | st.floats(0, 2) | st.floats(),
        str: st.sampled_from(TEXTS),
        tuple: st.sampled_from(TUPLES),
        bool: st.booleans(),
    }[_kind(key)]
    sound = st.sampled_from(SOUND[key])
    return sound | typed | st.sampled_from(WRONG) if wrong_types else sound | sound | typed


def _kind(key: str) -> type:
    """Returns int, float, str, bool or tuple, by the annotation of the dataclass field."""
    kind: Any = Config
    for part in key.split("."):
        kind = {field.name: field.type for field in dataclasses.fields(kind)}[part]
    if isinstance(kind, types.UnionType):
        kind = next(each for each in typing.get_args(kind) if each is not types.NoneType)
    return typing.get_origin(kind) or kind


def _flat(tree: dict[str, Any], prefix: str) -> typing.Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key
