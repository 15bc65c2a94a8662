"""Training and evaluation batches: NumPy arrays [local devices, batch / devices, ...], ready for pmap.

A batch is a function of its step: order.py selects its images, sources.py reads their records by number, decoding.py
decodes them, and augment.py augments them with draws from (seed, epoch, example, copy). So it is the same for any
number of workers, and whether or not earlier batches were made. Grain makes it in pieces of a few images, in worker
processes or in threads of this one; this module only assembles the pieces.
"""

import dataclasses
import functools
import os
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain.python as grain
import numpy as np

from tnt_jax.data import augment, order, sources, synthetic, worker
from tnt_jax.data.decoding import RGB, Changes, Channels, Pixels, Undecodable, decode, is_array
from tnt_jax.data.faulty import FaultyImages
from tnt_jax.data.settings import DataSettings

Batch = dict[str, np.ndarray]

_PIECE = 64  # images made at a time: a worker holds a few pieces in memory, and each costs the main process 0.5 ms
_SMALL = 10_000  # examples; with fewer, workers take longer to start than they save
_MOST_WORKERS = 64  # by default; at 2.7 ms of a core per image they make 20,000 images/s
_LOOKED_AT = 10  # images of a split that are checked before a run starts
_ATTEMPTS = 100  # draws of a replacement for a faulty example


def steps_per_epoch(settings: DataSettings, batch_size: int) -> int:
    """Training steps per epoch: examples of data.train_split // batch_size (repeated copies count as samples).

    Raises ValueError for a batch larger than the split.
    """
    dataset = sources.open_dataset(settings)
    num_examples = dataset.num_examples(settings.train_split, "config.data.train_split")
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"batch_size={batch_size} does not fit the {num_examples} examples of data.train_split="
            f"{settings.train_split!r} ({settings.name}): an epoch would have no step. Take at most {num_examples}."
        )
    return num_examples // batch_size


def check_channels(settings: DataSettings, channels: int) -> None:
    """Raises ValueError if the data set has no images with these channels and data.pixel_bits.

    That is, if none of the first images of data.eval_split can be decoded to that. Every image file can give RGB, so
    for RGB only arrays are checked: damaged files have messages of their own.
    """
    requested, reasons = Channels(channels, settings.pixel_bits), []
    if settings.name == "synthetic":
        return
    source = sources.open_dataset(settings).open_split(settings.eval_split)
    if requested == RGB and not is_array(_record(source, 0)["image"]):
        return
    for index in range(min(len(source), _LOOKED_AT)):
        try:
            decoded(source, index, settings, requested, Changes())
            return
        except Undecodable as error:
            reasons.append(f"{source.where(index)}: {error}")
    raise ValueError(
        f"config.model.in_channels={channels}, config.data.pixel_bits={settings.pixel_bits}: none of the "
        f"first {len(reasons)} images can be decoded to that. {reasons[0]}. Set the two keys to what the images have."
    )


def train_batches(
    settings: DataSettings,
    *,
    batch_size: int,
    image_size: tuple[int, int],
    channels: int = 3,
    seed: int,
    start_step: int = 0,
    local_devices: int,
    process_index: int = 0,
    process_count: int = 1,
    faulty: FaultyImages | None = None,
) -> Iterator[Batch]:
    """Yields this process's part of the batches of steps start_step, start_step + 1, ... without end.

    With d = local_devices and b = batch_size / (process_count * d), a batch has
      "image" [d, b, H, W, channels], uint8 or, with data.pixel_bits=16, uint16 (augmented, not normalised),
      "label" int32 [d, b], "mask" float32 [d, b] (all 1), "index" int32 [d, b] (the example's number in the split);
      with several labels per image also "labels" uint8 [d, b, classes], 1 for each of them ("label" is the first, 0 if
      there is none).
    The batch of a step depends only on (settings, seed, step): see order.TrainOrder for the order and for repeated
    augmentation. batch_size counts samples over all processes.

    An example whose image cannot be decoded is noted in `faulty`, and the one that order.replacement draws takes its
    slot (and the slot's draws); "index" and "label" are then the replacement's.

    Raises ValueError for a batch that the devices do not divide or that is larger than the split; while iterating, for
    more faulty images than data.max_faulty_images, and, with the example, for a file that cannot be read or a label out
    of range; and ChildProcessError if a worker process was killed.
    """
    _check_devices("batch_size", batch_size, local_devices, process_count)
    steps_per_epoch(settings, batch_size)
    dataset = sources.open_dataset(settings)
    source, copies = dataset.open_split(settings.train_split), settings.repeated_augmentation
    steps = order.TrainOrder(len(source), batch_size, copies, seed, process_index, process_count)
    pieces = max(1, min(-(-steps.samples // _PIECE), steps.samples // copies))
    plan = functools.partial(_plan_training, steps, settings, pieces)
    requested, classes = Channels(channels, settings.pixel_bits), _Classes(dataset.num_classes, dataset.several_labels)
    assembler = _Assembler(source, classes, settings, image_size, requested, steps.samples, pieces, plan)
    return _batches(assembler, start_step * pieces, 2**62, local_devices, faulty or FaultyImages(), "train")


def eval_batches(
    settings: DataSettings,
    *,
    batch_size: int,
    image_size: tuple[int, int],
    channels: int = 3,
    local_devices: int,
    process_index: int = 0,
    process_count: int = 1,
    faulty: FaultyImages | None = None,
    count_unlabelled: bool = False,
) -> Iterator[Batch]:
    """Yields this process's part of data.eval_split in its order, each example once, in ceil(n / batch_size) batches.

    Arrays as in train_batches, with images resized and cropped to the centre. The last batch is padded: "mask" 0,
    "index" -1, "label" 0, black images. All processes yield the same number of batches. Errors as in train_batches; an
    image that cannot be decoded is an error too, or, with data.allow_faulty_eval, is noted in `faulty` and leaves its
    slot empty. With several labels per image there is also "labels" uint8 [d, b, classes], 1 for each of them; "label"
    is the first, and an image without any has "label" 0 and, unless `count_unlabelled`, "mask" 0.
    """
    _check_devices("eval_batch_size", batch_size, local_devices, process_count)
    dataset = sources.open_dataset(settings)
    source, samples = dataset.open_split(settings.eval_split), batch_size // process_count
    pieces = -(-samples // _PIECE)
    classes = _Classes(dataset.num_classes, dataset.several_labels, count_unlabelled)
    plan = functools.partial(_plan_evaluation, len(source), batch_size, process_index * samples, samples, pieces)
    requested = Channels(channels, settings.pixel_bits)
    assembler = _Assembler(source, classes, settings, image_size, requested, samples, pieces, plan)
    end = -(-len(source) // batch_size) * pieces
    return _batches(assembler, 0, end, local_devices, faulty or FaultyImages(), "eval")


@dataclasses.dataclass
class _Plan:
    """The c images of a piece."""

    slot: np.ndarray  # int [c], their positions in the local batch
    index: np.ndarray  # int64 [c], their numbers in the split; copies of an image are adjacent
    draws: augment.Draws | None = None  # [c, ...]; None: for evaluation
    replace: Callable[[int, int, int], int] | None = None  # (example, attempt, size of the split) -> another example


def _plan_training(steps: order.TrainOrder, settings: DataSettings, pieces: int, step: int, piece: int) -> _Plan:
    local = steps.local_batch(step)
    image = local.sample // steps.copies
    own = np.flatnonzero(image * pieces // len(local.index) == piece)
    draws = augment.draw(local.seeds.reshape(-1, 2)[local.sample[own]], settings)
    replace = functools.partial(order.replacement, steps.seed, local.epoch)
    return _Plan(np.argsort(steps.arrangement(step))[own], local.index[image[own]], draws, replace)


def _plan_evaluation(
    count: int, batch_size: int, first: int, samples: int, pieces: int, step: int, piece: int
) -> _Plan:
    slot = np.arange(samples * piece // pieces, samples * (piece + 1) // pieces)
    index = step * batch_size + first + slot
    return _Plan(slot[index < count], index[index < count])


class _Classes(NamedTuple):
    """How a batch encodes labels."""

    count: int
    several_labels: bool
    count_unlabelled: bool = True  # an image without a label belongs to no class, and is not masked out


@dataclasses.dataclass
class _Assembler:
    """Makes the pieces of a process's batches, by their number over all steps. Sent to the worker processes."""

    source: sources.Source
    classes: _Classes
    settings: DataSettings
    image_size: tuple[int, int]
    channels: Channels
    samples: int  # per batch, in this process
    pieces: int  # per batch
    plan: Callable[[int, int], _Plan]  # of a step and a piece of its batch

    def __call__(self, number: int) -> dict[str, object]:
        """-> "image", "index", "label" or "labels" as in a batch but [c, ...]; "slot"; "faulty": [(image, reason)].

        "changed" holds the changes that decoding made.
        """
        plan, faulty, changed = self.plan(*divmod(number, self.pieces)), [], Changes()
        index, slot = plan.index.copy(), plan.slot
        if self.settings.name == "synthetic":
            images, labels = synthetic.examples(index, self.image_size, self.channels)
        else:
            shape = len(index), *self.image_size, self.channels.count
            images, labels, sound, last = np.empty(shape, self.channels.dtype), [], [], None
            for row, example in enumerate(plan.index.tolist()):
                if example != last:  # an image is decoded once for all its copies
                    found, last = self._find(example, plan.replace, faulty, changed), example
                if found is not None:
                    index[row], image, label = found
                    images[len(sound)] = self._finished(image, plan.draws, row)
                    labels.append(label)
                    sound.append(row)
            images, index, slot = images[: len(sound)], index[sound], slot[sound]
        out = {"image": images, "index": index.astype(np.int32), "slot": slot, "faulty": faulty, "changed": changed}
        labels = label_array(self.source, index.tolist(), labels, self.classes.count, self.classes.several_labels)
        return out | {"labels" if self.classes.several_labels else "label": labels}

    def _find(
        self, example: int, replace: Callable | None, faulty: list, changed: Changes
    ) -> tuple[int, Pixels, object] | None:
        """Reads an example or its replacement -> its number, image and label, or None: its slot stays empty."""
        index = example
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return index, *decoded(self.source, index, self.settings, self.channels, changed)
            except Undecodable as error:
                where = self.source.where(index)
                if replace is None and not self.settings.allow_faulty_eval:
                    raise ValueError(
                        f"{where} cannot be read: {error}. Repair or remove it, or leave such images out of the "
                        "evaluation with --config.data.allow_faulty_eval=True."
                    ) from error
                faulty.append((where, str(error)))
            if replace is None:
                return None
            index = replace(example, attempt, len(self.source))
        last = ": ".join(faulty[-1])
        raise ValueError(f"{self.source.name}: no usable example was found in {_ATTEMPTS} draws. The last is {last}")

    def _finished(self, image: Pixels, draws: augment.Draws | None, row: int) -> np.ndarray:
        if draws is None:
            return augment.eval_image(image, self.settings, self.image_size)
        return augment.train_image(image, augment.Draws(*(f[row] for f in draws)), self.settings, self.image_size)


def decoded(
    source: sources.Source, index: int, settings: DataSettings, channels: Channels, changed: Changes
) -> tuple[Pixels, object]:
    """-> image and label of an example. Adds what decoding changed to `changed`.

    Raises Undecodable, or ValueError with the example if it cannot be read at all.
    """
    record, kinds = _record(source, index), set()
    image = decode(record["image"], sources.applies_exif(settings), channels, kinds)
    changed.add(kinds, source.where(index))
    return image, record["label"]


def _record(source: sources.Source, index: int) -> dict[str, object]:
    """Returns an example's record. Raises ValueError with the example if it cannot be read."""
    try:
        return source[index]
    except Exception as error:  # a missing or damaged file; the type depends on the library that reads it
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(f"{source.where(index)} cannot be read: {reason}") from error


def label_array(
    source: sources.Source, index: Sequence[int], labels: Sequence[int | np.ndarray], num_classes: int, several: bool
) -> np.ndarray:
    """Labels of the examples `index` [c] -> int32 [c] or, with several per image, uint8 [c, num_classes], 1 for each.

    Raises ValueError with the example for a label out of range.
    """
    for example, label in zip(index, labels, strict=True):
        for each in label if several else (label,):
            if not 0 <= each < num_classes:
                raise ValueError(
                    f"{source.where(example)} has the label {each}; labels are 0 to {num_classes - 1}. (Test splits of "
                    "some sets have no labels, written as -1.)"
                )
    if not several:
        return np.array(labels, np.int32)
    present = np.zeros((len(labels), num_classes), np.uint8)
    for row, label in zip(present, labels, strict=True):
        row[label] = 1
    return present


def worker_processes(settings: DataSettings, num_examples: int) -> int:
    """Returns data.worker_processes; -1 means none for a small or synthetic set, else one per core, at most 64."""
    small = num_examples < _SMALL or settings.name == "synthetic"
    automatic = 0 if small else min(usable_cores(), _MOST_WORKERS)
    return automatic if settings.worker_processes < 0 else settings.worker_processes


def _batches(
    assembler: _Assembler, first: int, end: int, local_devices: int, faulty: FaultyImages, purpose: str
) -> Iterator[Batch]:
    """Pieces number first, ..., end - 1 -> batches, prefetched once the first is requested."""
    workers = min(worker_processes(assembler.settings, len(assembler.source)), end - first)
    ahead = 0 if workers else 2 * assembler.pieces
    threads = grain.ReadOptions(num_threads=min(usable_cores(), ahead), prefetch_buffer_size=ahead)
    pieces = grain.MapDataset.range(first, end).map(assembler).to_iter_dataset(threads)
    if workers:
        worker.prepare_workers()
        pieces = pieces.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    held = [iter(pieces)]

    def close() -> None:
        while held:
            held.pop().close()

    def batches() -> Iterator[Batch]:
        try:
            for _ in range(first, end, assembler.pieces):
                yield _next_batch(assembler, held[0], local_devices, faulty, purpose)
        except RuntimeError as error:
            died = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
            if died is None:
                raise
            close()
            worker.clear_shared_memory(os.getpid())
            raise ChildProcessError(worker.last_words(int(died[1]), workers)) from error
        finally:
            close()

    iterator = batches()
    weakref.finalize(iterator, close)  # at exit too, while the modules that end workers are still there
    return iterator


def _next_batch(
    assembler: _Assembler, pieces: Iterator[dict], local_devices: int, faulty: FaultyImages, purpose: str
) -> Batch:
    """Assembles the next pieces into a batch."""
    changed = Changes()
    batch: Batch = {"mask": np.zeros(assembler.samples, np.float32), "index": np.full(assembler.samples, -1, np.int32)}
    for _ in range(assembler.pieces):
        piece = next(pieces)
        for image, reason in piece.pop("faulty"):
            faulty.add(purpose, image, reason)
        faulty.check_limit(assembler.settings.max_faulty_images)
        changed.update(piece.pop("changed"))
        slot = piece.pop("slot")
        batch["mask"][slot] = 1
        for name, field in piece.items():
            if name not in batch:
                batch[name] = np.empty((assembler.samples, *field.shape[1:]), field.dtype)  # NumPy requests huge pages
            batch[name][slot] = field
    faulty.log_changes(purpose, changed)
    for name in batch.keys() - {"index"}:
        batch[name][batch["index"] < 0] = 0
    if assembler.classes.several_labels:
        if not assembler.classes.count_unlabelled:
            batch["mask"] = batch["labels"].any(-1).astype(np.float32)
        batch["label"] = batch["labels"].argmax(-1).astype(np.int32)
    return {name: field.reshape(local_devices, -1, *field.shape[1:]) for name, field in batch.items()}


def _check_devices(key: str, batch_size: int, local_devices: int, process_count: int) -> None:
    devices = local_devices * process_count
    if batch_size < 1 or devices < 1 or batch_size % devices:
        raise ValueError(f"{key}={batch_size} is not a multiple of the {devices} devices of {process_count} processes.")


def usable_cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
