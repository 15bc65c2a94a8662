"""The examples of a batch read, decoded and augmented, with those that cannot be decoded replaced or left out.

The usual case costs nothing: the whole batch is run, and only if that fails are the faulty examples looked for.
"""

import dataclasses
import re
import struct
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tnt_jax.data import augment, order, sources
from tnt_jax.data.faulty import MAX_PIXELS, FaultyImages, Undecodable, failing
from tnt_jax.data.settings import DataSettings

# What TensorFlow writes before the message of an operation inside a graph's data set.
_AROUND_A_GRAPHS_ERROR = re.compile(
    r"\A(Graph execution error:\s+Detected at node .*\n<stack traces unavailable>\n)?"
    r"(Error in user-defined function passed to \w+:\d+ transformation with iterator: [\w:]+: )?"
)
_ATTEMPTS = 100  # draws of an example to take the place of a faulty one


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads the examples of a split for one process."""

    split: sources.Split
    settings: DataSettings
    faulty: FaultyImages

    def train(
        self, share: order.Share, sample: np.ndarray, images: Callable, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A share of m images -> index [m] of those used, images [n, H, W, 3] and labels [n] of its samples.

        An example that cannot be decoded is replaced by the one that order.replacement draws from (seed, epoch,
        example), with the place's own augmentation seeds: a function of the step, whatever else is in the share and
        whatever the process has met before. Raises ValueError beyond data.max_faulty_images, and for what is no
        image's fault.
        """
        copies = self.settings.repeated_augmentation
        index, records = share.index.copy(), read_records(self.split, share.index)
        everything, chosen = np.arange(len(index)), augment.draw(share.seeds, self.settings)

        def run(rows: np.ndarray, sample: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
            sample = np.arange(len(rows) * copies) if sample is None else sample
            return images(records[rows], index[rows], augment.Draws(*(part[rows] for part in chosen)), sample)

        def replace(row: int, error: Exception) -> None:
            for attempt in range(1, _ATTEMPTS + 1):
                reason = self._reason(records[row], int(index[row]), error, len(index))
                self.faulty.add("train", self.split.where(int(index[row])), reason)
                self.faulty.check_limit("train", self.settings.max_faulty_images)
                place = int(share.index[row])
                index[row] = order.replacement(seed, share.epoch, place, attempt, self.split.num_examples)
                records[row] = read_records(self.split, index[[row]])[0]
                if not list(failing(run, everything[[row]])):
                    return
            raise ValueError(f"{self.split.name}: no usable example was found in {_ATTEMPTS} draws. Check the data.")

        try:
            return index, *run(everything, sample)
        except Exception as error:  # TensorFlow's, whichever an operation raises
            for row in failing(run, everything):
                replace(row, error)
        try:
            return index, *run(everything, sample)
        except Exception as error:  # every example is sound
            raise self._batch_error(error, len(index)) from error

    def evaluate(self, index: np.ndarray, images: Callable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Examples index [m] -> index [k] of those that can be decoded, their images [k, H, W, 3] and labels [k].

        k < m only where data.allow_faulty_eval; else one that cannot be decoded is a ValueError that names it.
        """
        images, records = images.get_concrete_function(), read_records(self.split, index)
        sound = np.ones(len(index), bool)

        def run(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return _run(images, records[rows], index[rows])

        try:
            return index, *run(np.arange(len(index)))
        except Exception as error:  # as above
            for row in failing(run, np.arange(len(index))):
                reason = self._reason(records[row], int(index[row]), error, len(index))
                where = self.split.where(int(index[row]))
                if not self.settings.allow_faulty_eval:
                    raise ValueError(
                        f"{where} cannot be read: {reason}. Mend or remove it, or leave such images out of the "
                        "evaluation by --config.data.allow_faulty_eval=True."
                    ) from error
                self.faulty.add("eval", where, reason)
                sound[row] = False
        if not sound.any():
            return index[:0], np.zeros((0, 0), np.uint8), np.zeros(0, np.int64)
        try:
            return index[sound], *run(np.flatnonzero(sound))
        except Exception as error:  # every example is sound
            raise self._batch_error(error, len(index)) from error

    def _reason(self, record: bytes, index: int, error: Exception, count: int) -> str:
        """Why the example cannot be decoded. ValueError where it can be: the batch's error is of what comes after."""
        try:
            decode(self.split, record, index)
        except Undecodable as cause:
            return str(cause)
        raise self._batch_error(error, count) from error

    def _batch_error(self, error: Exception, count: int) -> ValueError:
        return ValueError(f"A batch with {count} examples of {self.split.name} failed: {first_line(error)}")


def read_records(split: sources.Split, index: np.ndarray) -> np.ndarray:
    """Numbers [m] -> records [m], as objects: NumPy's strings lose zeros at their end. ValueError names the example."""
    try:
        read = split.read(index)
    except Exception as error:  # a missing or damaged file, by whatever library reads it
        for number in index:
            try:
                split.read([number])
            except Exception as cause:
                raise ValueError(f"{split.where(int(number))} cannot be read: {first_line(cause)}") from cause
        raise ValueError(
            f"{len(index)} examples of {split.name} could not be read at once: {first_line(error)}"
        ) from error
    records = np.empty(len(read), object)
    records[:] = read
    return records


def decode(split: sources.Split, record: bytes, index: int) -> tuple[tf.Tensor, int]:
    """Record and number of an example -> uint8 [h, w, 3], label; Undecodable with the reason in words."""
    image = None
    try:
        image, label = split.parse(tf.constant(record), tf.constant(index, tf.int64))
        return augment.decode(image), int(label)
    except Exception as error:  # whatever it is, it is this example's
        raise Undecodable(_size_in_words(image) or first_line(error)) from error


def first_line(error: Exception) -> str:
    """The message without what TensorFlow puts around it about its graph."""
    message = (getattr(error, "message", None) or str(error)).strip()
    message = _AROUND_A_GRAPHS_ERROR.sub("", message)
    line = message.splitlines()[0] if message else repr(error)
    return re.sub(r"^(\{\{.*?\}\}\s*)+|\s*\[Op:\w+\].*$", "", line)


def _run(images: Callable, *arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    image, label = images(*map(tf.constant, arrays))
    return np.asarray(memoryview(image)), label.numpy()  # the images without another copy


def _size_in_words(image: tf.Tensor | None) -> str:
    """Of an encoded JPEG or PNG that says it has more than MAX_PIXELS; empty for any other."""
    encoded = image.numpy() if image is not None and image.dtype == tf.string else b""
    height = width = 0
    if encoded[:8] == b"\x89PNG\r\n\x1a\n":
        width, height = struct.unpack_from(">II", encoded.ljust(24, b"\0"), 16)
    elif bool(tf.io.is_jpeg(encoded)):
        try:
            height, width = tf.image.extract_jpeg_shape(encoded).numpy()[:2].astype(int)
        except tf.errors.InvalidArgumentError:  # its header is damaged as well
            return ""
    words = f"{width} x {height} pixels, of at most {MAX_PIXELS:,} that are decoded"
    return words if int(height) * int(width) > MAX_PIXELS else ""
