"""Batches of a training or evaluation run: numpy arrays [local devices, batch / devices, ...], ready for pmap.

The way of an image: its number (order.py says whose turn it is) -> record (read by number) -> decoded and augmented
(augment.py) -> batch. Every stage keeps the order, and all draws come from (seed, epoch, example, copy), so that the
batch of a step is the same whatever the number of threads, and whether or not the steps before it were run.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from tnt_jax.data import augment, order, sources, synthetic
from tnt_jax.data.settings import DataSettings

Batch = dict[str, np.ndarray]

_READ_CHUNK = 32  # images a call of Python reads: its cost is spread, and little memory is held
_PREFETCHED = 2  # finished batches that wait in host memory
_PADDING = -1  # the index of an empty place in the last evaluation batch


def steps_per_epoch(settings: DataSettings, batch_size: int) -> int:
    """Training steps an epoch: examples of data.train_split // batch_size (repeated copies count as samples).

    Raises ValueError for a batch that is larger than the split.
    """
    num_examples = sources.open_source(settings).num_examples(settings.train_split)
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
) -> Iterator[Batch]:
    """This process's share of the batches of steps start_step, start_step + 1, ...; endless.

    With d = local_devices and b = batch_size / (process_count * d), a batch has
      "image" uint8 [d, b, H, W, 3] (augmented, not normalised), "label" int32 [d, b], "mask" float32 [d, b] (all 1),
      "index" int32 [d, b] (the example's number in the split).
    The batch of a step is a function of (settings, seed, step) alone: see order.TrainOrder for the order and for what
    repeated augmentation does. batch_size counts samples over all processes.

    Raises ValueError for a batch that the devices do not divide or that is larger than the split, and while iterating
    for an image that cannot be decoded or a label out of range (each names the example).
    """
    _check_devices("batch_size", batch_size, local_devices, process_index, process_count)
    steps_per_epoch(settings, batch_size)
    source = sources.open_source(settings)
    split = source.open_split(settings.train_split)
    steps = order.TrainOrder(
        split.num_examples, batch_size, settings.repeated_augmentation, seed, process_index, process_count
    )

    def indices_of(step: int) -> np.ndarray:
        return steps.share(step).sample_index[steps.arrangement(step, local_devices)]

    shape = _Shape(local_devices, steps.samples, image_size, source.num_classes)
    if isinstance(split, sources.SyntheticSplit):
        return _synthetic_batches(shape, indices_of, start_step, None)
    dataset = _train_dataset(split, steps, settings, image_size, start_step, local_devices)
    return _numpy_batches(dataset.as_numpy_iterator(), shape, split, settings, indices_of, start_step, None)


def eval_batches(
    settings: DataSettings,
    *,
    batch_size: int,
    image_size: tuple[int, int],
    local_devices: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """This process's share of data.eval_split in its own order, each example once; ends after ceil(n / batch_size).

    Arrays as in train_batches, images resized and cropped to the centre. The last batch is padded: "mask" 0,
    "index" -1, "label" 0, black images. All processes yield the same number of batches. Errors as in train_batches.
    """
    _check_devices("eval_batch_size", batch_size, local_devices, process_index, process_count)
    source = sources.open_source(settings)
    split = source.open_split(settings.eval_split)
    samples = batch_size // process_count
    num_batches = -(-split.num_examples // batch_size)

    def indices_of(step: int) -> np.ndarray:
        first = step * batch_size + process_index * samples
        return np.arange(first, max(first, min(first + samples, split.num_examples)), dtype=np.int64)

    shape = _Shape(local_devices, samples, image_size, source.num_classes)
    if isinstance(split, sources.SyntheticSplit):
        return _synthetic_batches(shape, indices_of, 0, num_batches)
    dataset = _eval_dataset(split, indices_of, settings, image_size, num_batches, samples)
    return _numpy_batches(dataset.as_numpy_iterator(), shape, split, settings, indices_of, 0, num_batches)


@dataclasses.dataclass(frozen=True)
class _Shape:
    """The shape of a process's batches, and what their labels may be."""

    devices: int
    samples: int  # of this process
    image_size: tuple[int, int]
    num_classes: int

    def batch(self, image: np.ndarray, label: np.ndarray, index: np.ndarray) -> Batch:
        """image [n, H, W, 3], label [n], index [n], n <= samples -> a batch, padded if n < samples."""
        real = len(index)
        if real < self.samples:
            padding = self.samples - real
            image = np.concatenate([image, np.zeros((padding, *self.image_size, 3), np.uint8)])
            label = np.concatenate([label, np.zeros(padding, label.dtype)])
            index = np.concatenate([index, np.full(padding, _PADDING, index.dtype)])
        fields = {
            "image": image,
            "label": label.astype(np.int32),
            "mask": (np.arange(self.samples) < real).astype(np.float32),
            "index": index.astype(np.int32),
        }
        return {name: field.reshape(self.devices, -1, *field.shape[1:]) for name, field in fields.items()}


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


def _train_dataset(
    split: sources.Split,
    steps: order.TrainOrder,
    settings: DataSettings,
    image_size: tuple[int, int],
    start_step: int,
    local_devices: int,
) -> tf.data.Dataset:
    """-> elements (image uint8 [n, H, W, 3], label int64 [n], index int64 [n]), one a step, endless."""
    copies = settings.repeated_augmentation

    def plan(step: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        share = steps.share(int(step))
        return share.index, share.seeds, share.count

    def planned(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
        index, seeds, count = tf.numpy_function(plan, [step], [tf.int64, tf.int32, tf.int64])
        return tf.ensure_shape(index, [None]), tf.ensure_shape(seeds, [None, copies, 2]), tf.ensure_shape(count, [None])

    def augmented(record: tf.Tensor, index: tf.Tensor, seeds: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, ...]:
        image, label = split.parse(record, index)
        if copies == 1:
            return augment.train_image(image, seeds[0], settings, image_size), label, index
        # All k copies, so that the number is known to the graph; of an image at the share's end some are dropped.
        images = augment.train_copies(image, seeds, settings, image_size)[:count]
        return images, tf.fill(count[None], label), tf.fill(count[None], index)

    threads = settings.reader_threads or tf.data.AUTOTUNE
    every_step = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    elements = _read(every_step.map(planned).unbatch(), split, threads)
    elements = elements.map(augmented, num_parallel_calls=threads)
    if copies == 1:
        return _finish(elements.batch(steps.samples), settings)
    # The images of one step have `samples` copies together: the batches below never straddle two steps.
    batches = elements.unbatch().batch(steps.samples)
    arrangement = every_step.map(
        lambda step: tf.numpy_function(lambda s: steps.arrangement(int(s), local_devices), [step], tf.int64)
    )

    def arranged(batch: tuple[tf.Tensor, ...], arrangement: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(tf.gather(field, tf.ensure_shape(arrangement, [steps.samples])) for field in batch)

    return _finish(tf.data.Dataset.zip(batches, arrangement).map(arranged), settings)


def _eval_dataset(
    split: sources.Split,
    indices_of: Callable[[int], np.ndarray],
    settings: DataSettings,
    image_size: tuple[int, int],
    num_batches: int,
    samples: int,
) -> tf.data.Dataset:
    """-> elements (image uint8 [n, H, W, 3], label int64 [n], index int64 [n]); the last may be shorter or missing."""

    def planned(step: tf.Tensor) -> tuple[tf.Tensor]:
        index = tf.numpy_function(lambda s: indices_of(int(s)), [step], tf.int64)
        return (tf.ensure_shape(index, [None]),)

    def cropped(record: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, ...]:
        image, label = split.parse(record, index)
        return augment.eval_image(image, settings, image_size), label, index

    threads = settings.reader_threads or tf.data.AUTOTUNE
    elements = _read(tf.data.Dataset.range(num_batches).map(planned).unbatch(), split, threads)
    return _finish(elements.map(cropped, num_parallel_calls=threads).batch(samples), settings)


def _read(elements: tf.data.Dataset, split: sources.Split, threads: int) -> tf.data.Dataset:
    """Elements (index, ...) -> (record, index, ...), in the same order."""

    def read(index: tf.Tensor, *rest: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # As objects: NumPy's own strings lose zeros at their end.
        records = tf.numpy_function(lambda numbers: np.array(split.read(numbers), object), [index], tf.string)
        return (tf.ensure_shape(records, [None]), index, *rest)

    return elements.batch(_READ_CHUNK).map(read, num_parallel_calls=threads).unbatch()


def _finish(batches: tf.data.Dataset, settings: DataSettings) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_warm_start = True  # reading begins now, while the training step compiles
    options.threading.max_intra_op_parallelism = 1  # images are parallel, not the arithmetic of one
    if settings.reader_threads:
        options.threading.private_threadpool_size = settings.reader_threads
    return batches.prefetch(_PREFETCHED).with_options(options)


def _numpy_batches(
    elements: Iterator[tuple[np.ndarray, ...]],
    shape: _Shape,
    split: sources.Split,
    settings: DataSettings,
    indices_of: Callable[[int], np.ndarray],
    start_step: int,
    num_batches: int | None,
) -> Iterator[Batch]:
    """Elements (image, label, index) -> `num_batches` batches (None: endless); empty ones where they have ended."""
    step = start_step
    while num_batches is None or step < num_batches:
        expected = indices_of(step) if num_batches is not None else None
        if expected is not None and len(expected) == 0:
            image, label, index = np.zeros((0, *shape.image_size, 3), np.uint8), np.zeros(0, int), np.zeros(0, int)
        else:
            try:
                image, label, index = next(elements)
            except tf.errors.OpError as error:
                raise _named_error(error, split, settings, shape.image_size, indices_of(step)) from error
        wrong = np.flatnonzero((label < 0) | (label >= shape.num_classes))
        if len(wrong):
            raise ValueError(
                f"{split.where(int(index[wrong[0]]))} has the label {label[wrong[0]]}; labels are 0 to "
                f"{shape.num_classes - 1}. (Test splits of some sets have no labels, written as -1.)"
            )
        yield shape.batch(image, label, index)
        step += 1


def _named_error(
    error: tf.errors.OpError,
    split: sources.Split,
    settings: DataSettings,
    image_size: tuple[int, int],
    indices: np.ndarray,
) -> Exception:
    """The error of a batch -> one that names the example: its examples are gone through once more, one by one."""
    for number in np.unique(indices):
        try:
            record = tf.constant(split.read([number])[0])
            image, _ = split.parse(record, tf.constant(number))
            augment.eval_image(image, settings, image_size)
        except Exception as cause:  # whatever it is, it is this example's
            message = getattr(cause, "message", str(cause)).strip().splitlines()
            return ValueError(f"{split.where(int(number))} cannot be read: {message[0] if message else cause!r}")
    return ValueError(f"Reading examples {indices[0]} to {indices[-1]} of {split.name} failed: {error.message}")


def _synthetic_batches(
    shape: _Shape, indices_of: Callable[[int], np.ndarray], start_step: int, num_batches: int | None
) -> Iterator[Batch]:
    step = start_step
    while num_batches is None or step < num_batches:
        index = indices_of(step)
        yield shape.batch(synthetic.synthetic_images(index, shape.image_size), synthetic.synthetic_labels(index), index)
        step += 1
