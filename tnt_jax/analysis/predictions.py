"""Predicts the classes of image files in batches, and goes on after an image that cannot be read."""

import collections
import concurrent.futures
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax.typing import VariableDict

from tnt_jax.data import augment
from tnt_jax.data.decoding import Changes, Channels, decode
from tnt_jax.data.faulty import FaultyImages
from tnt_jax.data.settings import DataSettings, EvalImages
from tnt_jax.models.tnt import TNT
from tnt_jax.training.device_augment import normalize
from tnt_jax.training.state import replicate
from tnt_jax.training.steps import for_platform, over_devices

_READERS = 4  # images decoded at once


class Guess(NamedTuple):
    """A class predicted for an image."""

    label: int
    name: str
    probability: float  # 0..1: softmax over all classes, or each class's sigmoid


class Prediction(NamedTuple):
    """The most probable classes of an image, best first; empty if none is probable enough."""

    path: Path
    guesses: tuple[Guess, ...]


class Failure(NamedTuple):
    """An image that could not be read, and why."""

    path: Path
    reason: str


def classify(
    model: TNT,
    variables: VariableDict,
    images: DataSettings | EvalImages,
    class_names: Sequence[str],
    paths: Sequence[Path],
    *,
    top: int = 5,
    above: float | None = None,
    batch_size: int = 32,
    per_class: bool = False,
) -> Iterator[Prediction | Failure]:
    """Image files -> the `top` classes of each, or all with a probability `above` that, lazily, in the files' order.

    images: how files become the model's input (data.augment.eval_image at model.input_size, then mean and std).
    class_names: [K], one per logit. per_class: as Config.per_class. All local devices share a batch, while the next
    one is read.
    """
    batch_size = whole_batch(batch_size)
    logits_of = predictor(model, variables, images)
    top = min(top, model.num_classes)
    for batch in _batches(paths, batch_size, images, model):
        pixels = [item for _, item in batch if not isinstance(item, str)]
        if pixels:
            filled = np.stack(pixels + [pixels[0]] * (batch_size - len(pixels)))  # one shape, compiled once
            logits = logits_of(filled)[: len(pixels)]
            probabilities = np.asarray(jax.nn.sigmoid(logits) if per_class else jax.nn.softmax(logits))
            rows = zip(logits, probabilities, strict=True)
        for path, item in batch:
            if isinstance(item, str):
                yield Failure(path, item)
                continue
            scores, row = next(rows)
            best = np.argsort(-scores, kind="stable")  # by logits: many probabilities may be 1
            best = best[:top] if above is None else best[row[best] > above]
            yield Prediction(path, tuple(Guess(int(i), class_names[i], float(row[i])) for i in best))


def whole_batch(batch_size: int) -> int:
    """Rounds a batch size up to a multiple of the number of local devices."""
    devices = jax.local_device_count()
    return math.ceil(batch_size / devices) * devices


def predictor(
    model: TNT, variables: VariableDict, images: DataSettings | EvalImages
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function pixels [b, H, W, C] -> logits [b, K] float32, over all local devices.

    b must be a size of `whole_batch`; each new one is compiled.
    """
    step, variables = _logits(model, images), replicate(variables)

    def logits_of(pixels: np.ndarray) -> np.ndarray:
        shards = pixels.reshape(jax.local_device_count(), -1, *pixels.shape[1:])
        return np.asarray(step(variables, shards)).reshape(len(pixels), -1)

    return logits_of


def read_image(
    path: Path,
    images: DataSettings | EvalImages,
    image_size: tuple[int, int],
    channels: int = 3,
    changed: set[str] | None = None,
) -> np.ndarray:
    """An image file (data.folder.SUFFIXES) -> [H, W, channels] as the evaluation sees it (data.augment.eval_image).

    Pixels have images.pixel_bits; `changed` is data.decoding.decode's. The image is rotated by its EXIF orientation,
    unless images.exif_orientation is False. Raises OSError or ValueError if the file cannot be read as an image.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")  # reading a pipe may never end
    wanted = Channels(channels, images.pixel_bits)
    image = decode(path.read_bytes(), images.exif_orientation, wanted, changed)
    return augment.eval_image(image, images, image_size)


def _batches(
    paths: Sequence[Path], batch_size: int, images: DataSettings | EvalImages, model: TNT
) -> Iterator[list[tuple[Path, np.ndarray | str]]]:
    """Files -> lists of at most `batch_size` (file, its pixels or the error); reads the next list meanwhile."""
    faulty = FaultyImages()

    def read(path: Path) -> tuple[Path, np.ndarray | str, set[str]]:
        changed: set[str] = set()
        try:
            return path, read_image(path, images, model.input_size, model.in_channels, changed), changed
        except (OSError, ValueError) as error:
            return path, error.strerror if isinstance(error, OSError) and error.strerror else str(error), changed

    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        # A list begins to be read when it is taken from this iterator.
        reading = (pool.map(read, paths[start : start + batch_size]) for start in range(0, len(paths), batch_size))
        ahead = collections.deque(itertools.islice(reading, 1))
        while ahead:
            ahead.extend(itertools.islice(reading, 1))
            results, changes = list(ahead.popleft()), Changes()
            for path, _, changed in results:
                changes.add(changed, str(path))
            faulty.log_changes("predict", changes)
            yield [(path, item) for path, item, _ in results]


@functools.lru_cache(maxsize=8)  # a notebook predicts image by image
def _logits(model: TNT, images: DataSettings | EvalImages) -> Callable[[VariableDict, np.ndarray], jax.Array]:
    """Returns a function over the devices: variables, pixels [d, b / d, H, W, C] -> [d, b / d, K] float32.

    It does not jit over sharded arrays, because XLA cannot partition TPU kernels among chips.
    """
    model = for_platform(model, jax.devices())
    return over_devices(lambda variables, pixels: model.apply(variables, normalize(pixels, images)))
