"""An experiment's typed and checked configuration: one field per key of configs/default.py, under the same name.

The fields below and in data/settings.py are the one table of keys: type, limits, choices, whether a resumed run may
change the key, and the value for older runs that lack it. configs/default.py has defaults and units. `check_config` is
the only entry point.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from tnt_jax.data.settings import DataSettings
from tnt_jax.keys import INT32, Group, key, keys_of, short_repr
from tnt_jax.models.checks import CHOICES, IMPLEMENTATIONS, OUTER_IMPLEMENTATIONS, REMAT_POLICIES
from tnt_jax.training.hints import hint
from tnt_jax.workdir import WEIGHTS

# Floats are float32 on the devices: values above LARGE sooner or later overflow to infinity, and values below TINY
# underflow to zero, which is then a divisor.
LARGE, TINY = 1e30, 1e-30
PER_CLASS_LOSSES = ("sigmoid",)  # values of `loss`; the others expect one label per image


@dataclasses.dataclass(frozen=True)
class ModelSettings(Group):
    """`config.model`: the arguments of `tnt_jax.create_model`. None keeps the named variant's value."""

    prefix = "model."

    name: str
    num_classes: int | None = key(1, 2**24)
    image_size: int | tuple[int, int] = key(1, 2**14)
    in_channels: int = key(1, 1024, before=3)
    patch_size: int | None = key(1, 2**14)
    word_size: int | None = key(1, 2**14)
    inner_dim: int | None = key(1, 2**16)
    outer_dim: int | None = key(1, 2**16)
    inner_num_heads: int | None = key(1, 2**16)
    outer_num_heads: int | None = key(1, 2**16)
    depth: int | None = key(1, 1000)
    mlp_ratio: float | None = key(above=0, high=1000)
    tnt_blocks: tuple[int, ...] | None = key(1, INT32)
    word_position: bool | None
    sentence_position: bool | None
    sentence_encoding: str | None = key(choices=CHOICES["sentence_encoding"], before="learned")
    squeeze_excitation: bool | None
    qkv_bias: bool | None
    layer_scale: float | None = key(0, LARGE, before=0.0)
    pooling: str | None = key(choices=CHOICES["pooling"], before="class_token")
    drop_path_rate: float | None = key(0, below=1, evaluates_otherwise=True)
    drop_path_schedule: str = key(choices=CHOICES["drop_path_schedule"], evaluates_otherwise=True, before="linear")
    head_dropout: float = key(0, below=1, evaluates_otherwise=True, before=0.0)
    initialization: str = key(choices=CHOICES["initialization"], evaluates_otherwise=True, before="published")
    zero_init_head: bool = key(evaluates_otherwise=True, before=False)
    remat: bool = key(resumable=True)
    remat_policy: str = key(choices=REMAT_POLICIES, resumable=True, before="nothing_saveable")
    scan: bool = key(resumable=True)
    inner_implementation: str = key(choices=IMPLEMENTATIONS, resumable=True, before="auto")
    outer_implementation: str = key(choices=OUTER_IMPLEMENTATIONS, resumable=True, before="xla")
    dtype: str = key(choices=("float32", "bfloat16"), evaluates_otherwise=True)

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    def arguments(self) -> dict[str, Any]:
        """Returns the keyword arguments of create_model (`name` included) that are not None."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class MixingSettings(Group):
    """`config.mixing`: mixup, CutMix and random erasing, all on the device."""

    prefix = "mixing."

    mixup_alpha: float = key(0, 1e6)
    cutmix_alpha: float = key(0, 1e6)
    probability: float = key(0, 1)
    cutmix_probability: float = key(0, 1)
    erase_probability: float = key(0, 1)
    erase_area: tuple[float, float] = key(above=0, high=1)
    erase_aspect: tuple[float, float] = key(1e-3, 1e3)
    order: str = key(choices=("mix_erase", "erase_mix"))


@dataclasses.dataclass(frozen=True)
class DistillationSettings(Group):
    """`config.distillation`: the teacher, and how to learn from it."""

    prefix = "distillation."

    teacher: str = key(before="")
    kind: str = key(choices=("soft", "hard"), before="soft")
    temperature: float = key(above=0, high=1e6, before=1.0)
    weight: float = key(0, 1, before=0.5)


@dataclasses.dataclass(frozen=True)
class DistributedSettings(Group):
    """`config.distributed`: how this process finds the others."""

    prefix = "distributed."

    enabled: bool = key(resumable=True)
    coordinator_address: str = key(resumable=True)
    num_processes: int = key(0, 2**16, resumable=True)  # a list of this length is built
    process_id: int = key(-1, 2**16 - 1, resumable=True)
    initialization_timeout_seconds: int = key(1, 10**6, resumable=True, before=300)
    heartbeat_timeout_seconds: int = key(10, 10**6, resumable=True, before=100)


@dataclasses.dataclass(frozen=True)
class Config(Group):
    """The whole configuration; configs/default.py documents each key and its unit."""

    seed: int = key(0, INT32)
    batch_size: int = key(1, INT32)
    eval_batch_size: int = key(1, 2**20, resumable=True)
    accumulation_steps: int = key(1, INT32)
    epochs: float = key(1e-6, 1e6)
    cooldown_epochs: float = key(0, 1e6)
    steps: int = key(0, INT32, resumable=True)
    optimizer: str = key(choices=("adamw", "sgd", "lamb", "lion", "muon"), before="adamw")
    learning_rate: float = key(above=0, high=LARGE)
    learning_rate_batch_size: int = key(0, INT32)
    schedule: str = key(choices=("cosine", "constant"))
    schedule_unit: str = key(choices=("epoch", "step"))
    warmup_epochs: float = key(0, 1e6)
    warmup_learning_rate: float = key(0, LARGE)
    min_learning_rate: float = key(0, LARGE)
    weight_decay: float = key(0, LARGE)
    adam_beta1: float = key(0, 0.9999999)  # two float32 steps below 1
    adam_beta2: float = key(0, 0.9999999)
    adam_epsilon: float = key(TINY, LARGE)
    momentum: float = key(0, 0.9999999, before=0.9)
    layer_decay: float = key(1e-3, 1, before=1.0)
    freeze: tuple[str, ...] = key(before=())
    gradient_clip_norm: float = key(0, LARGE)
    ema_decay: float = key(0, below=1)
    ema_warmup: bool = key(before=False)
    loss: str = key(choices=("softmax", "sigmoid"), before="softmax")
    label_smoothing: float = key(0, below=1)
    bce_threshold: float | None = key(0, below=1, before=None)
    bce_sum_classes: bool = key(before=False)
    class_weights: str = key(before="none")
    pretrained: str
    pretrained_weights: str = key(choices=WEIGHTS, before="best")
    pretrained_new_head: bool
    log_every_steps: int = key(0, INT32, resumable=True)
    eval_every_steps: int = key(0, INT32, resumable=True)
    checkpoint_every_steps: int = key(0, INT32, resumable=True)
    keep_checkpoints: int = key(1, INT32, resumable=True)
    prefetch_batches: int = key(1, 1000, resumable=True)
    nonfinite: str = key(choices=("stop", "skip"), resumable=True, before="stop")
    nonfinite_limit: int = key(1, INT32, resumable=True, before=10)
    slow_step_factor: float = key(0, LARGE, resumable=True, before=10.0)
    cpu_devices: int = key(0, 1024, resumable=True, before=0)
    scan_tile_kib: int = key(-1, 2**20, resumable=True, before=-1)
    report_card: tuple[str, ...] = key(resumable=True, before=())
    profile_steps: tuple[int, ...] = key(1, INT32, resumable=True, before=())
    model: ModelSettings
    data: DataSettings
    mixing: MixingSettings
    distillation: DistillationSettings
    distributed: DistributedSettings

    @property
    def per_class(self) -> bool:
        """Whether the loss and all probabilities are per class (sigmoid) instead of a softmax over the classes."""
        return self.loss in PER_CLASS_LOSSES


KEYS = dict(keys_of(Config))  # "seed", ..., "model.name", ...


def check_config(given: ml_collections.ConfigDict | Mapping[str, Any] | Config) -> Config:
    """A ConfigDict, or its plain form in config.json -> checked Config; a Config is returned as it is.

    Raises ValueError with the key, the value and the fix for an unknown key (with the nearest known one), a missing
    key, a wrong type, a number out of range, and values that exclude each other.
    """
    if isinstance(given, Config):
        return given
    values = given.to_dict() if isinstance(given, ml_collections.ConfigDict) else dict(given)
    config = _build(Config, values, "")
    _check_together(config)
    return config


def named_class_weights(config: Config) -> dict[str, float]:
    """Parses config.class_weights -> the weight of each class by its name; {} for "none" and "balanced".

    Raises ValueError for other text than a JSON object, a class named twice, and a weight outside TINY..LARGE.
    """
    text = config.class_weights
    if text in ("none", "balanced"):
        return {}
    what = f"config.class_weights={short_repr(text)}: must be none, balanced, or numbers by class name in JSON, such as"
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        pairs = None
    if not (isinstance(pairs, list) and pairs and all(isinstance(pair, tuple) for pair in pairs)):
        raise ValueError(f'{what} \'{{"cat": 1, "dog": 2.5}}\'.')
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"config.class_weights names the class {short_repr(twice[0])} twice.")
    for name, weight in pairs:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not TINY <= weight <= LARGE:
            raise ValueError(
                f"config.class_weights gives {short_repr(name)} the weight {short_repr(weight)}: must be a number "
                f"from {TINY:g} to {LARGE:g}."
            )
    return {name: float(weight) for name, weight in pairs}


def peak_learning_rate(config: Config) -> float:
    """Returns the rate after the warm-up: `learning_rate`, scaled to the batch unless learning_rate_batch_size is 0."""
    if config.learning_rate_batch_size:
        return config.learning_rate * config.batch_size / config.learning_rate_batch_size
    return config.learning_rate


def unknown_key_message(key: str) -> str:
    """Returns the message for an unknown dotted key, with the nearest known ones by meaning or by spelling."""
    if inside := [name for name in KEYS if name.startswith(f"{key}.")]:
        return f"config.{key} must be a group of keys, such as {inside[0]}."
    return f"config.{key}: there is no such key. {hint(key, list(KEYS))}"


def as_dict(config: Config) -> dict[str, Any]:
    """Returns the plain form: nested dicts of JSON values with the keys of configs/default.py."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _build(kind: type[Group], values: Any, prefix: str) -> Any:
    """A dict -> the dataclass with the same keys, recursively."""
    if not isinstance(values, Mapping):
        raise ValueError(
            f"config.{prefix[:-1]}={short_repr(values)}: must be a group of keys (an ml_collections.ConfigDict)."
        )
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise ValueError(unknown_key_message(prefix + name))
    missing = [prefix + name for name in fields if name not in values]
    if missing:
        raise ValueError(f"The config lacks {', '.join(missing)}. Start from configs/default.py, which has every key.")
    groups = {name: each for name, each in fields.items() if dataclasses.is_dataclass(each)}
    return kind(**values | {name: _build(each, values[name], each.prefix) for name, each in groups.items()})


def _check_together(config: Config) -> None:
    """Checks keys against each other."""
    _check_images(config.data, config.model.in_channels)
    if config.schedule == "constant" and config.cooldown_epochs:
        raise ValueError(
            f"config.cooldown_epochs={config.cooldown_epochs:g} needs config.schedule=cosine: a constant schedule "
            "has no floor to cool down at. Set cooldown_epochs to 0."
        )
    if config.schedule != "constant" and config.min_learning_rate > peak_learning_rate(config):
        raise ValueError(
            f"config.min_learning_rate={config.min_learning_rate:g} is above the peak of "
            f"{peak_learning_rate(config):g} (learning_rate, scaled by learning_rate_batch_size if that is not 0)."
        )
    if config.warmup_epochs > config.epochs + config.cooldown_epochs:
        raise ValueError(
            f"config.warmup_epochs={config.warmup_epochs:g} is longer than the whole training of "
            f"{config.epochs + config.cooldown_epochs:g} epochs (epochs + cooldown_epochs)."
        )
    named_class_weights(config)  # raises ValueError if malformed
    if config.loss != "sigmoid" and (config.bce_threshold is not None or config.bce_sum_classes):
        name = "bce_sum_classes" if config.bce_threshold is None else "bce_threshold"
        raise ValueError(
            f"config.{name}={getattr(config, name)} needs config.loss=sigmoid, not {config.loss}. "
            "Set --config.loss=sigmoid, or leave it as it is in configs/default.py."
        )
    for pattern in config.freeze:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"config.freeze: {short_repr(pattern)} is not a regular expression: {error}. Example: 'block_1/.*'."
            ) from error
    if config.data.repeated_augmentation > config.batch_size:
        raise ValueError(
            f"config.data.repeated_augmentation={config.data.repeated_augmentation} copies of an image do not fit in "
            f"config.batch_size={config.batch_size}, which counts copies. Use fewer copies or a larger batch."
        )
    if 0 < config.scan_tile_kib < 1024:
        raise ValueError(
            f"config.scan_tile_kib={config.scan_tile_kib}: no operation fits into tiles of less than 1024 KiB; use "
            "-1 for the value that docs/tpu.md found for the model, 0 for XLA's own limit, or a number such as 6144."
        )
    if len(config.profile_steps) not in (0, 2):
        raise ValueError(
            f"config.profile_steps={config.profile_steps}: must be (first, count), such as (10, 5), or ()."
        )
    _check_distributed(config.distributed)


def _check_images(data: DataSettings, channels: int) -> None:
    for name in ("mean", "std"):
        values = getattr(data, name)
        if len(values) not in (1, channels):
            raise ValueError(
                f"config.data.{name}={short_repr(values)} does not fit config.model.in_channels={channels}: give one "
                f'number per channel, or one for all, such as --config.data.{name}="(0.5,)".'
            )
    if (channels not in (1, 3) or data.pixel_bits != 8) and (
        data.randaugment or data.three_augment or data.color_jitter
    ):
        raise ValueError(
            f"config.data.randaugment={short_repr(data.randaugment)}, three_augment={data.three_augment} and "
            f"color_jitter={data.color_jitter:g} need one or three channels of 8 bits, not "
            f"config.model.in_channels={channels} with config.data.pixel_bits={data.pixel_bits}. Set "
            'data.randaugment="", data.three_augment=False and data.color_jitter=0.'
        )


def _check_distributed(distributed: DistributedSettings) -> None:
    address = distributed.coordinator_address
    host, _, port = address.rpartition(":")
    if address and not (host and re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 2**16):
        raise ValueError(
            f"config.distributed.coordinator_address={short_repr(address)}: must be host:port of process 0, such as "
            "10.0.0.1:1234 or [::1]:1234, the port from 1 to 65535."
        )
    if not distributed.enabled and (address or distributed.num_processes > 1):
        raise ValueError(
            f"config.distributed.coordinator_address={short_repr(address)} and num_processes="
            f"{distributed.num_processes} name a coordinator or several processes, but config.distributed.enabled is "
            "False. Set it to True, or leave the others as they are in configs/default.py."
        )
    if distributed.num_processes and distributed.process_id >= distributed.num_processes:
        raise ValueError(
            f"config.distributed.process_id={distributed.process_id} counts from 0 and must be less than "
            f"config.distributed.num_processes={distributed.num_processes}."
        )


def nearest_multiples(number: int, unit: int) -> str:
    """Returns the multiples of `unit` next to a number, as text: "120 or 128"."""
    below = number // unit * unit
    return f"{below} or {below + unit}" if below else f"{unit}"
