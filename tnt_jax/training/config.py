"""An experiment's configuration, typed and checked: one field a key of configs/default.py, under the same name.

`check_config` is the only way in. It accepts exactly the keys of the dataclasses below, so a misspelt key stops the run
with the nearest accepted name, and nothing is filled in silently.
"""

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from tnt_jax.data.settings import DataSettings, shown
from tnt_jax.training.hints import hint


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """`config.model`: the arguments of `tnt_jax.create_model`. None means "as the named variant has it"."""

    name: str
    num_classes: int | None
    image_size: int  # pixels
    patch_size: int | None  # pixels
    word_size: int | None  # pixels
    inner_dim: int | None
    outer_dim: int | None
    inner_num_heads: int | None
    outer_num_heads: int | None
    depth: int | None
    mlp_ratio: float | None
    tnt_blocks: tuple[int, ...] | None
    word_position: bool | None
    sentence_position: bool | None
    squeeze_excitation: bool | None
    qkv_bias: bool | None
    drop_path_rate: float | None
    remat: bool
    remat_keeps: str
    scan: bool
    inner_implementation: str
    dtype: str

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of create_model (`name` included), without the Nones."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class MixingSettings:
    """`config.mixing`: mixup, CutMix and random erasing, all on the device."""

    mixup_alpha: float
    cutmix_alpha: float
    probability: float
    cutmix_probability: float
    erase_probability: float
    erase_area: tuple[float, float]
    erase_aspect: tuple[float, float]
    order: str


@dataclasses.dataclass(frozen=True)
class DistributedSettings:
    """`config.distributed`: how this process finds the others."""

    enabled: bool
    coordinator_address: str
    num_processes: int
    process_id: int
    initialization_timeout_seconds: int
    heartbeat_timeout_seconds: int


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A whole configuration; configs/default.py says what each key means and in which unit."""

    seed: int
    batch_size: int
    eval_batch_size: int
    accumulation_steps: int
    epochs: float
    cooldown_epochs: float
    steps: int
    learning_rate: float
    learning_rate_batch_size: int
    schedule: str
    schedule_unit: str
    warmup_epochs: float
    warmup_learning_rate: float
    min_learning_rate: float
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    gradient_clip_norm: float
    ema_decay: float
    ema_warmup: bool
    label_smoothing: float
    pretrained: str
    pretrained_weights: str
    pretrained_new_head: bool
    log_every_steps: int
    eval_every_steps: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    prefetch_batches: int
    nonfinite: str
    nonfinite_limit: int
    slow_step_factor: float
    cpu_devices: int
    scan_tile_kib: int
    report_card: tuple[str, ...]
    profile_steps: tuple[int, ...]
    model: ModelSettings
    data: DataSettings
    mixing: MixingSettings
    distributed: DistributedSettings


@dataclasses.dataclass(frozen=True)
class Limits:
    """The numbers a key accepts; `above` and `below` exclude the bound itself."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def admit(self, value: float) -> bool:
        """Whether the number lies within. Every key has a `high` or a `below`: infinity is never within."""
        return self.low <= value <= self.high and self.above < value < self.below

    def __str__(self) -> str:
        words = {"at least": self.low, "at most": self.high, "greater than": self.above, "less than": self.below}
        return " and ".join(
            f"{word} {bound:g}" if bound == float(f"{bound:g}") else f"{word} {bound:,}"
            for word, bound in words.items()
            if math.isfinite(bound)
        )


# Whole numbers are int32 on the devices, others float32, where what is larger than this turns into infinity sooner or
# later, and what is smaller than _TINY into zero, which is then divided by.
_MOST = 2**31 - 1
_LARGE, _TINY = 1e30, 1e-30
_COUNT = Limits(low=1, high=_MOST)
_COUNT_OR_NONE = Limits(low=0, high=_MOST)
_NOT_NEGATIVE = Limits(low=0, high=_LARGE)
_POSITIVE = Limits(above=0, high=_LARGE)
_SHARE = Limits(low=0, high=1)
_SHARE_BELOW_ONE = Limits(low=0, below=1)
_SHARE_FAR_FROM_ONE = Limits(low=0, high=0.9999999)  # the next number of float32 but one is 1
_EPOCHS = 1e6
_SECONDS = 1_000_000
_PROCESSES = 2**16  # a list as long is made of them
_PIXELS = Limits(low=1, high=2**14)
_WIDTH = Limits(low=1, high=2**16)

# Numbers by key; a pair of numbers is checked one by one. Keys of `data` check themselves (tnt_jax/data/settings.py).
LIMITS = {
    "seed": _COUNT_OR_NONE,
    "batch_size": _COUNT,
    "eval_batch_size": Limits(low=1, high=2**20),
    "accumulation_steps": _COUNT,
    "epochs": Limits(low=1e-6, high=_EPOCHS),
    "cooldown_epochs": Limits(low=0, high=_EPOCHS),
    "steps": _COUNT_OR_NONE,
    "learning_rate": _POSITIVE,
    "learning_rate_batch_size": _COUNT_OR_NONE,
    "warmup_epochs": Limits(low=0, high=_EPOCHS),
    "warmup_learning_rate": _NOT_NEGATIVE,
    "min_learning_rate": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta1": _SHARE_FAR_FROM_ONE,
    "adam_beta2": _SHARE_FAR_FROM_ONE,
    "adam_epsilon": Limits(low=_TINY, high=_LARGE),
    "gradient_clip_norm": _NOT_NEGATIVE,
    "ema_decay": _SHARE_BELOW_ONE,
    "label_smoothing": _SHARE_BELOW_ONE,
    "log_every_steps": _COUNT_OR_NONE,
    "eval_every_steps": _COUNT_OR_NONE,
    "checkpoint_every_steps": _COUNT_OR_NONE,
    "keep_checkpoints": _COUNT,
    "prefetch_batches": Limits(low=1, high=1000),
    "nonfinite_limit": _COUNT,
    "slow_step_factor": _NOT_NEGATIVE,
    "cpu_devices": Limits(low=0, high=1024),
    "scan_tile_kib": Limits(low=-1, high=2**20),
    "profile_steps": _COUNT,
    "model.num_classes": Limits(low=1, high=2**24),
    "model.image_size": _PIXELS,
    "model.patch_size": _PIXELS,
    "model.word_size": _PIXELS,
    "model.inner_dim": _WIDTH,
    "model.outer_dim": _WIDTH,
    "model.inner_num_heads": _WIDTH,
    "model.outer_num_heads": _WIDTH,
    "model.depth": Limits(low=1, high=1000),
    "model.mlp_ratio": Limits(above=0, high=1000),
    "model.tnt_blocks": _COUNT,
    "model.drop_path_rate": _SHARE_BELOW_ONE,
    "mixing.mixup_alpha": Limits(low=0, high=1e6),
    "mixing.cutmix_alpha": Limits(low=0, high=1e6),
    "mixing.probability": _SHARE,
    "mixing.cutmix_probability": _SHARE,
    "mixing.erase_probability": _SHARE,
    "mixing.erase_area": Limits(above=0, high=1),
    "mixing.erase_aspect": Limits(low=1e-3, high=1e3),
    "distributed.num_processes": Limits(low=0, high=_PROCESSES),
    "distributed.process_id": Limits(low=-1, high=_PROCESSES - 1),
    "distributed.initialization_timeout_seconds": Limits(low=1, high=_SECONDS),
    "distributed.heartbeat_timeout_seconds": Limits(low=10, high=_SECONDS),
}
CHOICES = {
    "schedule": ("cosine", "constant"),
    "schedule_unit": ("epoch", "step"),
    "pretrained_weights": ("best", "raw", "averaged"),
    "nonfinite": ("stop", "skip"),
    "model.remat_keeps": ("inputs", "products"),
    "model.inner_implementation": ("auto", "reference", "xla", "pallas"),
    "model.dtype": ("float32", "bfloat16"),
    "mixing.order": ("mix_erase", "erase_mix"),
}


def check_config(config: ml_collections.ConfigDict | Mapping[str, Any]) -> Experiment:
    """A ConfigDict (or its plain form, as config.json holds it) -> Experiment.

    Raises ValueError that names the key, the value and the fix: for a key that does not exist (with the nearest one
    that does), a missing key, a wrong type, a number out of range, and values that exclude each other.
    """
    values = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    experiment = _build(Experiment, values, "")
    _check_together(experiment)
    return experiment


def peak_learning_rate(experiment: Experiment) -> float:
    """The rate at the end of the warm-up: `learning_rate`, scaled to the batch where the config says for which."""
    if experiment.learning_rate_batch_size:
        return experiment.learning_rate * experiment.batch_size / experiment.learning_rate_batch_size
    return experiment.learning_rate


def accepted_keys() -> list[str]:
    """Every key a configuration may have, dotted: "seed", ..., "model.name", ..."""
    return list(_keys(Experiment, ""))


def unknown_key_message(key: str) -> str:
    """What to say about a dotted key that does not exist: the nearest ones that do, by meaning or by spelling."""
    return f"config.{key}: there is no such key. {hint(key, accepted_keys())}"


def as_dict(experiment: Experiment) -> dict[str, Any]:
    """The plain form: nested dicts of JSON values, the same keys as configs/default.py."""
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def _keys(kind: type, prefix: str) -> typing.Iterator[str]:
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            yield from _keys(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _build(kind: type, values: Any, prefix: str) -> Any:
    """A dict -> the dataclass of the same keys, recursively."""
    if not isinstance(values, Mapping):
        raise ValueError(
            f"config.{prefix[:-1]}={shown(values)}: must be a group of keys (an ml_collections.ConfigDict)."
        )
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise ValueError(unknown_key_message(prefix + key))
    missing = [prefix + key for key in fields if key not in values]
    if missing:
        raise ValueError(f"The config lacks {', '.join(missing)}. Start from configs/default.py, which has every key.")
    arguments = {}
    for key, wanted in fields.items():
        if dataclasses.is_dataclass(wanted):
            arguments[key] = _build(wanted, values[key], f"{prefix}{key}.")
        elif kind is DataSettings:
            arguments[key] = tuple(values[key]) if isinstance(values[key], list) else values[key]
        else:
            arguments[key] = _typed(prefix + key, values[key], wanted)
    return kind(**arguments)


def _typed(key: str, value: Any, wanted: Any) -> Any:
    """The value as the annotated type, within the key's limits and choices."""
    if isinstance(wanted, types.UnionType):
        if value is None:
            return None
        wanted = next(kind for kind in typing.get_args(wanted) if kind is not types.NoneType)
    if typing.get_origin(wanted) is tuple:
        return _typed_tuple(key, value, typing.get_args(wanted))
    accepted = (int, float) if wanted is float else wanted  # a whole number serves where any number does
    if not isinstance(value, accepted) or (wanted is not bool and isinstance(value, bool)):
        name = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}[wanted]
        raise ValueError(f"config.{key}={shown(value)}: must be {name}.")
    if wanted is str and not value.isprintable():  # no path, address or name can hold these
        raise ValueError(f"config.{key}={shown(value)}: must be of characters that can be printed.")
    if key in LIMITS and not LIMITS[key].admit(value):
        raise ValueError(f"config.{key}={shown(value)}: must be {LIMITS[key]}.")
    if key in CHOICES and value not in CHOICES[key]:
        raise ValueError(f"config.{key}={shown(value)}: must be one of {', '.join(CHOICES[key])}.")
    return float(value) if wanted is float else value


def _typed_tuple(key: str, value: Any, items: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise ValueError(f"config.{key}={shown(value)}: must be a tuple, such as (1, 2).")
    if items[-1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(value) != len(items):
        raise ValueError(f"config.{key}={shown(value)}: must hold {len(items)} numbers.")
    return tuple(_typed(key, item, kind) for item, kind in zip(value, items, strict=True))


def _check_together(experiment: Experiment) -> None:
    """What no key can see alone."""
    mixing = experiment.mixing
    for key, (low, high) in {"erase_area": mixing.erase_area, "erase_aspect": mixing.erase_aspect}.items():
        if low > high:
            raise ValueError(f"config.mixing.{key}={(low, high)}: the first number is the smallest; swap them.")
    if experiment.schedule == "constant" and experiment.cooldown_epochs:
        raise ValueError(
            f"config.cooldown_epochs={experiment.cooldown_epochs:g} needs config.schedule=cosine: a constant schedule "
            "has no floor to cool down at. Set cooldown_epochs to 0."
        )
    if experiment.schedule == "cosine" and experiment.min_learning_rate > peak_learning_rate(experiment):
        raise ValueError(
            f"config.min_learning_rate={experiment.min_learning_rate:g} is above the peak of "
            f"{peak_learning_rate(experiment):g} (learning_rate, scaled by learning_rate_batch_size if that is not 0)."
        )
    if experiment.warmup_epochs > experiment.epochs + experiment.cooldown_epochs:
        raise ValueError(
            f"config.warmup_epochs={experiment.warmup_epochs:g} is longer than the whole training of "
            f"{experiment.epochs + experiment.cooldown_epochs:g} epochs (epochs + cooldown_epochs)."
        )
    if experiment.batch_size % experiment.accumulation_steps:
        raise ValueError(
            f"config.batch_size={experiment.batch_size} is not a multiple of config.accumulation_steps="
            f"{experiment.accumulation_steps}; use a batch of "
            f"{nearest_multiples(experiment.batch_size, experiment.accumulation_steps)}."
        )
    if experiment.data.repeated_augmentation > experiment.batch_size:
        raise ValueError(
            f"config.data.repeated_augmentation={experiment.data.repeated_augmentation} copies of an image do not fit "
            f"config.batch_size={experiment.batch_size}, in which copies count. Use fewer copies or a larger batch."
        )
    if 0 < experiment.scan_tile_kib < 1024:
        raise ValueError(
            f"config.scan_tile_kib={experiment.scan_tile_kib}: no operation fits into tiles of less than 1024 KiB; use "
            "-1 for what the model's size was looked at with, 0 for XLA's own limit, or a number such as 6144."
        )
    if len(experiment.profile_steps) not in (0, 2):
        raise ValueError(
            f"config.profile_steps={experiment.profile_steps}: must be (first, count), such as (10, 5), or ()."
        )
    _check_distributed(experiment.distributed)


def _check_distributed(distributed: DistributedSettings) -> None:
    host, _, port = distributed.coordinator_address.rpartition(":")
    if distributed.coordinator_address and not (host and re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 2**16):
        raise ValueError(
            f"config.distributed.coordinator_address={shown(distributed.coordinator_address)}: must be host:port of "
            "process 0, such as 10.0.0.1:1234 or [::1]:1234, the port from 1 to 65535."
        )
    if not distributed.enabled and (distributed.coordinator_address or distributed.num_processes > 1):
        raise ValueError(
            f"config.distributed.coordinator_address={shown(distributed.coordinator_address)} and num_processes="
            f"{distributed.num_processes} name a coordinator or several processes, but config.distributed.enabled is "
            "False. Set it to True, or leave the others as they are in configs/default.py."
        )
    if distributed.num_processes and distributed.process_id >= distributed.num_processes:
        raise ValueError(
            f"config.distributed.process_id={distributed.process_id} counts from 0 and must be less than "
            f"config.distributed.num_processes={distributed.num_processes}."
        )


def nearest_multiples(number: int, unit: int) -> str:
    """The multiples of `unit` next to a number, in words: "120 or 128"."""
    below = number // unit * unit
    return f"{below} or {below + unit}" if below else f"{unit}"
