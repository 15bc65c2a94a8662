"""Batches of a training or evaluation run: numpy arrays [local devices, batch / devices, ...], ready for pmap.

A batch is a function of its step: which images it holds (order.py), their records read by number (sources.py), decoded
and augmented (augment.py) with draws from (seed, epoch, example, copy). So it is the same whatever the number of
threads, and whether or not the steps before it were made. Two batches are under way in the background at any time.

tf.data runs inside the making of one batch alone, in one call of a graph. A Python iterator over tf.data would not do:
one that is dropped while it waits for a Python function, which the augmentation is, stops the whole process (it waits
with Python's lock in its hands).
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow as tf

from tnt_jax.data import augment, destinations, order, sources, synthetic
from tnt_jax.data.faulty import FaultyImages
from tnt_jax.data.reading import Reader
from tnt_jax.data.settings import DataSettings

Batch = dict[str, np.ndarray]

_UNDER_WAY = 2  # batches that are being made, or wait in host memory
_TOGETHER = 4  # training images that are made in one call, at least
_PADDING = -1  # the index of an empty place in the last evaluation batch


def steps_per_epoch(settings: DataSettings, batch_size: int) -> int:
    """Training steps an epoch: examples of data.train_split // batch_size (repeated copies count as samples).

    Raises ValueError for a batch that is larger than the split, and for a set with several labels an image.
    """
    source = sources.open_source(settings)
    if source.several_labels:
        raise ValueError(
            f"data.name={settings.name!r} has several labels an image: it can be evaluated (config.report_card), "
            "not trained on. Set --config.data.name to a set with one."
        )
    num_examples = source.num_examples(settings.train_split, "config.data.train_split")
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"batch_size={batch_size} does not fit the {num_examples} examples of data.train_split="
            f"{settings.train_split!r} ({settings.name}): an epoch would have no step. Take at most {num_examples}."
        )
    return num_examples // batch_size


def train_batches(
    settings: DataSettings,
    *,
    batch_size: int,
    image_size: tuple[int, int],
    seed: int,
    start_step: int = 0,
    local_devices: int,
    process_index: int = 0,
    process_count: int = 1,
    faulty: FaultyImages | None = None,
) -> Iterator[Batch]:
    """This process's share of the batches of steps start_step, start_step + 1, ...; endless.

    With d = local_devices and b = batch_size / (process_count * d), a batch has
      "image" uint8 [d, b, H, W, 3] (augmented, not normalised), "label" int32 [d, b], "mask" float32 [d, b] (all 1),
      "index" int32 [d, b] (the example's number in the split).
    The batch of a step is a function of (settings, seed, step) alone: see order.TrainOrder for the order and for what
    repeated augmentation does. batch_size counts samples over all processes.

    An example whose image cannot be decoded is noted in `faulty`, and its place (with the draws for it) taken by the
    one that order.replacement draws; "index" and "label" are then that one's. A JPEG that was cut off is faulty where
    what the crops of its copies need of it is not all there; one of another kind than jpeg.opened's, anyway.

    Raises ValueError for a batch that the devices do not divide or that is larger than the split; while iterating, for
    more faulty images than data.max_faulty_images, a file that cannot be read or a label out of range (by name).
    """
    _check_devices("batch_size", batch_size, local_devices, process_index, process_count)
    steps_per_epoch(settings, batch_size)
    source = sources.open_source(settings)
    split = source.open_split(settings.train_split)
    steps = order.TrainOrder(
        split.num_examples, batch_size, settings.repeated_augmentation, seed, process_index, process_count
    )
    maker = _Maker(split, source.num_classes, local_devices, steps.samples)
    reader = Reader(split, settings, FaultyImages() if faulty is None else faulty)
    images = None if isinstance(split, sources.SyntheticSplit) else _train_images(split, settings, image_size)

    def make(step: int) -> Batch:
        share = steps.share(step)
        sample = share.sample[steps.arrangement(step)]
        place = sample // settings.repeated_augmentation
        if images is None:
            index = share.index[place]
            return maker.batch(*synthetic.synthetic_examples(index, image_size), index)
        index, *examples = reader.train(share, sample, images, seed)
        return maker.batch(*examples, index[place])

    return _in_background(make, itertools.count(start_step))


def eval_batches(
    settings: DataSettings,
    *,
    batch_size: int,
    image_size: tuple[int, int],
    local_devices: int,
    process_index: int = 0,
    process_count: int = 1,
    faulty: FaultyImages | None = None,
) -> Iterator[Batch]:
    """This process's share of data.eval_split in its own order, each example once; ends after ceil(n / batch_size).

    Arrays as in train_batches, images resized and cropped to the centre. The last batch is padded: "mask" 0,
    "index" -1, "label" 0, black images. All processes yield the same number of batches. Errors as in train_batches; an
    image that cannot be decoded is one, or, with data.allow_faulty_eval, is noted in `faulty` and left out: one more
    empty place at the end of its batch.
    Where the set has several labels an image there is also "labels" uint8 [d, b, classes], 1 for each of them; "label"
    is the first, and an image without any has "mask" 0 and "label" 0.
    """
    _check_devices("eval_batch_size", batch_size, local_devices, process_index, process_count)
    source = sources.open_source(settings)
    split = source.open_split(settings.eval_split)
    samples = batch_size // process_count
    maker = _Maker(split, source.num_classes, local_devices, samples, source.several_labels)
    reader = Reader(split, settings, FaultyImages() if faulty is None else faulty)
    images = None if isinstance(split, sources.SyntheticSplit) else _eval_images(split, settings, image_size)

    def make(step: int) -> Batch:
        first = step * batch_size + process_index * maker.samples
        index = np.arange(first, min(first + maker.samples, split.num_examples), dtype=np.int64)
        if images is not None and len(index):
            index, *examples = reader.evaluate(index, images)
        if images is None or not len(index):  # the last batch ended in another process's share, or nothing is sound
            examples = synthetic.synthetic_examples(index, image_size)
        return maker.batch(*examples, index)

    return _in_background(make, range(-(-split.num_examples // batch_size)))


def _check_devices(key: str, batch_size: int, local_devices: int, process_index: int, process_count: int) -> None:
    if local_devices < 1 or not 0 <= process_index < process_count:
        raise ValueError(
            f"{local_devices} devices, process {process_index} of {process_count}: there must be at least one "
            "device, and processes are numbered from 0."
        )
    devices = local_devices * process_count
    if batch_size < 1 or batch_size % devices:
        lower, upper = batch_size // devices * devices, (max(batch_size, 0) // devices + 1) * devices
        near = f"{lower} or {upper}" if lower > 0 else str(upper)
        raise ValueError(
            f"{key}={batch_size} cannot be divided among {devices} devices ({process_count} processes with "
            f"{local_devices} each). Take a multiple of {devices}, such as {near}."
        )


@dataclasses.dataclass(frozen=True)
class _Maker:
    """Makes the batches of one process from what is read for them."""

    split: sources.Split | sources.SyntheticSplit
    num_classes: int
    devices: int
    samples: int  # of this process
    several_labels: bool = False

    def batch(self, image: np.ndarray, label: np.ndarray, index: np.ndarray) -> Batch:
        """image [n, H, W, 3], label [n], index [n], n <= samples -> a batch, padded if n < samples.

        With several labels an image, label is uint8 [n, classes].
        """
        fields = {"image": image, "mask": np.ones(len(index), np.float32), "index": index.astype(np.int32)}
        if self.several_labels:
            fields["labels"] = label.reshape(len(index), self.num_classes).astype(np.uint8)
            fields["mask"] = fields["labels"].any(-1).astype(np.float32)
            label = fields["labels"].argmax(-1)
        wrong = np.flatnonzero((label < 0) | (label >= self.num_classes))
        if len(wrong):
            raise ValueError(
                f"{self.split.where(int(index[wrong[0]]))} has the label {label[wrong[0]]}; labels are 0 to "
                f"{self.num_classes - 1}. (Test splits of some sets have no labels, written as -1.)"
            )
        fields["label"] = label.astype(np.int32)
        padding = self.samples - len(index)
        if padding:
            for name, field in fields.items():
                empty = np.full((padding, *field.shape[1:]), _PADDING if name == "index" else 0, field.dtype)
                fields[name] = np.concatenate([field, empty])
        return {name: field.reshape(self.devices, -1, *field.shape[1:]) for name, field in fields.items()}


def _in_background(make: Callable[[int], Batch], steps: Iterable[int]) -> Iterator[Batch]:
    """-> make(step) for each step, in order, made ahead in threads; begins at once, before the first is asked for.

    No more than the threads can take is ever under way, so nothing waits in the pool: an iterator that is dropped, or
    a program that ends, waits for two batches at most.
    """
    steps = iter(steps)
    pool = concurrent.futures.ThreadPoolExecutor(_UNDER_WAY, thread_name_prefix="batches")
    under_way = collections.deque(pool.submit(make, step) for step in itertools.islice(steps, _UNDER_WAY))

    def batches() -> Iterator[Batch]:
        while under_way:
            batch = under_way.popleft().result()
            under_way.extend(pool.submit(make, step) for step in itertools.islice(steps, 1))
            yield batch

    return batches()


@functools.lru_cache(maxsize=8)  # tracing takes a while; evaluations come again and again
def _train_images(split: sources.Split, settings: DataSettings, image_size: tuple[int, int]) -> Callable:
    """-> (records [m], index [m], augment.Draws [m, k, ...], sample [n]) -> uint8 [n, H, W, 3], label int64 [n].

    sample: image * k + copy of each. Several images go through augment.train_images together.
    """
    copies = settings.repeated_augmentation
    together = -(-_TOGETHER // copies)
    parallel = _Parallel(settings)

    def made(records: tf.Tensor, index: tf.Tensor, *parts: tf.Tensor) -> tf.Tensor:
        *chosen, places, destination = parts
        examples = [split.parse(*example) for example in zip(tf.unstack(records), tf.unstack(index), strict=True)]
        images, labels = zip(*examples, strict=True)
        chosen = augment.Draws(*chosen)
        with tf.control_dependencies(
            [augment.train_images(list(images), chosen, places, destination, settings, image_size)]
        ):
            return tf.stack(labels)

    def labels(*fields: tf.Tensor) -> tf.Tensor:
        """Fields with a leading axis [groups, images of a group], then the destination -> labels [groups, images]."""
        *fields, destination = fields
        rows = tf.data.Dataset.from_tensor_slices(tuple(fields))
        rows = rows.map(_plain(lambda *row: made(*row, destination)), **parallel.map)
        return parallel.stack(rows, tf.shape(fields[0])[0])

    drawn = augment.draw(np.zeros([1, copies, 2], np.int32), settings)
    fields = [tf.TensorSpec([None, together], kind) for kind in (tf.string, tf.int64)]
    fields += [tf.TensorSpec([None, together, *part.shape[1:]], tf.float64) for part in drawn]
    fields += [tf.TensorSpec([None, together, copies], tf.int64), tf.TensorSpec([], tf.int64)]
    labels = tf.function(labels, fields, autograph=False)

    def images(
        records: np.ndarray, index: np.ndarray, chosen: augment.Draws, sample: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        places = np.full([len(records), copies], -1, np.int64)
        places.reshape(-1)[sample] = np.arange(len(sample))
        groups = -(-len(records) // together)
        last = groups * together - len(records)  # empty places of the last group: its last image, not made again
        fields = [np.concatenate([field, np.repeat(field[-1:], last, axis=0)]) for field in (records, index, *chosen)]
        fields.append(np.concatenate([places, np.full([last, copies], -1, np.int64)]))
        fields = [tf.constant(field.reshape(groups, together, *field.shape[1:])) for field in fields]
        image = np.empty([len(sample), *image_size, 3], np.uint8)
        with destinations.lend(image) as destination:
            label = labels.get_concrete_function()(*fields, tf.constant(destination, tf.int64))
        return image, label.numpy().reshape(-1)[sample // copies]

    return images


@functools.lru_cache(maxsize=8)
def _eval_images(split: sources.Split, settings: DataSettings, image_size: tuple[int, int]) -> Callable:
    """-> (records [m], index [m]) -> images uint8 [m, H, W, 3], label int64 [m]."""
    parallel = _Parallel(settings)

    def cropped(record: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, label = split.parse(record, index)
        return augment.eval_image(image, settings, image_size), label

    def images(records: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, ...]:
        rows = tf.data.Dataset.from_tensor_slices((records, index)).map(_plain(cropped), **parallel.map)
        return parallel.stack(rows, tf.size(records))

    signature = [([None], tf.string), ([None], tf.int64)]
    return tf.function(images, [tf.TensorSpec(*field) for field in signature], autograph=False)


_plain = tf.autograph.experimental.do_not_convert  # these functions are graph code as they stand; converting takes time


class _Parallel:
    """How a data set inside a tf.function is worked through: several rows at a time, in the rows' order."""

    def __init__(self, settings: DataSettings):
        self.map = {"num_parallel_calls": settings.reader_threads or _cores(), "deterministic": True}
        self._options = tf.data.Options()
        self._options.autotune.enabled = False

    def stack(self, rows: tf.data.Dataset, count: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """The `count` rows (exactly: tf.data allocates that many), stacked field by field."""
        return rows.batch(tf.cast(count, tf.int64)).with_options(self._options).get_single_element()


def _cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
