"""tfds data sets by name: found, prepared where that is possible, and read by the number of an example."""

import difflib
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from tnt_jax.data import records

_PROBE_SECONDS = 10


class PreparedSplit:
    """A split (in tfds notation, such as "train[:80%]") of a prepared builder, read by the number of an example.

    Records are tf.train.Example strings; images stay encoded. Raises ValueError for a data set that has no
    (image, class) pair, and for a file format without random access.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, spec: str):
        self.name = f"{builder.info.full_name}, split {spec!r}"
        self._image_key, self._label_key = supervised_keys(builder)
        keys = (self._image_key, self._label_key)
        # Only these two are parsed: segmentation masks and the like stay bytes.
        self._features = tfds.features.FeaturesDict({key: builder.info.features[key] for key in keys})
        instructions = builder.info.splits[spec].file_instructions
        readers = {
            tfds.core.FileFormat.TFRECORD: records.TFRecordFiles,
            tfds.core.FileFormat.ARRAY_RECORD: records.ArrayRecordFiles,
        }
        if builder.info.file_format not in readers:
            raise ValueError(
                f"{self.name}: examples of {builder.info.file_format.value} files cannot be read by their number. "
                f"Prepare the set once more as tfrecord files: {_prepare_command(builder, 'ANOTHER_FOLDER')}"
            )
        self._records = readers[builder.info.file_format](instructions)

    @property
    def num_examples(self) -> int:
        """Examples in the split."""
        return len(self._records)

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Numbers in the split -> the serialized examples, in this order."""
        return self._records.read(indices)

    def parse(self, record: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Record -> image (encoded string scalar; decoded uint8 [h, w, 3] where the set stores pixels), label int64 [].

        Where the set has several labels an image: uint8 [num_classes], 1 for each of them, in place of the label.
        """
        del index  # the label is in the record
        feature = self._features[self._image_key]
        encoded = isinstance(feature, tfds.features.Image)
        decoders = {self._image_key: tfds.decode.SkipDecoding()} if encoded else None
        example = self._features.deserialize_example(record, decoders=decoders)
        image = example[self._image_key]
        if not encoded and feature.shape[-1] == 1:
            image = tf.image.grayscale_to_rgb(image)
        label, classes = example[self._label_key], self._features[self._label_key]
        if isinstance(classes, tfds.features.Sequence):
            hits = tf.one_hot(tf.cast(label, tf.int32), classes.feature.num_classes, dtype=tf.uint8)
            return image, tf.reduce_max(hits, axis=0)  # of none: zeros
        return image, tf.cast(label, tf.int64)

    def where(self, index: int) -> str:
        """The example in words, for messages."""
        return f"example {index} of {self.name} ({self._records.where(index)})"


def open_builder(name: str, directory: str) -> tfds.core.DatasetBuilder:
    """A tfds name (with /config and :version if wanted) and tfds' data_dir (empty: its default) -> prepared builder.

    Prepares the data set if it is not there, with a line in the log. Raises ValueError or FileNotFoundError that name
    the data set, the directory and the mend: an unknown name, a directory that does not exist, archives that must be
    fetched by hand, no network.
    """
    directory = os.path.expanduser(directory)
    if directory and not tf.io.gfile.isdir(directory):
        raise FileNotFoundError(
            f"data.directory={directory!r} does not exist. Make it (mkdir -p) if {name} is to be prepared there, "
            "or set --config.data.directory to the folder that holds the prepared data sets."
        )
    return prepared(lambda: find_builder(name, directory))


def prepared(make_builder: Callable[[], tfds.core.DatasetBuilder]) -> tfds.core.DatasetBuilder:
    """A function that makes a builder -> the builder, its data set prepared; see open_builder for what is raised."""
    builder = make_builder()
    supervised_keys(builder)  # before anything is downloaded
    if builder.info.splits:
        return builder
    root, place = builder.data_dir_root, builder.data_path
    if place.exists() and any(place.iterdir()) and not builder.is_prepared():
        raise ValueError(f"{place} holds no finished data set (no dataset_info.json). Remove it and start again.")
    command = _prepare_command(builder, root)
    manual, instructions = root / "downloads" / "manual", (builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").strip()
    if instructions and not (manual.exists() and any(manual.iterdir())):
        raise FileNotFoundError(
            f"{builder.name} is not prepared in {root}, and its archives must be fetched by hand into {manual} "
            f"(missing or empty now):\n{instructions}\nThen start again, or run: {command}"
        )
    _check_network(builder, command)
    logging.info("Preparing %s in %s (once)", builder.info.full_name, root)
    try:
        builder.download_and_prepare()
    except Exception as error:  # from a full disk to a changed archive: the mend is the same
        builder = make_builder()
        if not builder.info.splits:  # else another process was faster
            hint = f" Its archives belong in {manual}:\n{instructions}\n" if instructions else " "
            raise ValueError(
                f"{builder.name} could not be prepared in {root}: {_in_short(error)}.{hint}"
                f"When that is mended, start again or run: {command}"
            ) from error
    return make_builder()


def supervised_keys(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    """-> the names of the image feature and of the class feature, a ClassLabel or a Sequence of them.

    Raises ValueError where the set is not (image, class) or (image, classes).
    """
    name, features, keys = builder.info.full_name, builder.info.features, builder.info.supervised_keys
    if not (
        isinstance(keys, tuple) and len(keys) == 2 and all(isinstance(key, str) and key in features for key in keys)
    ):
        raise ValueError(
            f"{name} has no (image, label) pair (its supervised_keys are {keys}): it cannot be classified."
        )
    image, label = features[keys[0]], features[keys[1]]
    pixels = isinstance(image, tfds.features.Tensor) and len(image.shape) == 3 and image.shape[-1] in (1, 3)
    if not isinstance(image, tfds.features.Image) and not (pixels and image.np_dtype == np.uint8):
        raise ValueError(f"{name}: the feature {keys[0]!r} is {image}, not an image of 8-bit pixels.")
    label = label.feature if isinstance(label, tfds.features.Sequence) else label
    if not isinstance(label, tfds.features.ClassLabel) or label.num_classes is None:
        raise ValueError(
            f"{name}: the feature {keys[1]!r} is {label}, not one class, or several, of a known number of classes."
        )
    return keys


def label_feature(builder: tfds.core.DatasetBuilder) -> tuple[tfds.features.ClassLabel, bool]:
    """-> the classes of the set, and whether an image has any number of them in place of one."""
    label = builder.info.features[supervised_keys(builder)[1]]
    several = isinstance(label, tfds.features.Sequence)
    return label.feature if several else label, several


def find_builder(name: str, directory: str) -> tfds.core.DatasetBuilder:
    """A tfds name and data_dir -> its builder, prepared or not; ValueError for a name that is not known."""
    try:
        return tfds.builder(name, data_dir=directory or None)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(name, ["folder", "digits", "synthetic", *tfds.list_builders()], n=3)
        near = f"Near names: {', '.join(near)}." if near else "Names: https://www.tensorflow.org/datasets/catalog."
        place = directory or "tfds' default data_dir"
        raise ValueError(
            f"data.name={name!r} is no tfds data set, and none of that name lies in {place}. {near}"
        ) from error
    except Exception as error:  # a wrong config, version or argument: tfds raises many kinds
        raise ValueError(f"data.name={name!r} cannot be opened: {_in_short(error)}") from error


def _prepare_command(builder: tfds.core.DatasetBuilder, directory: object) -> str:
    """The shell command that prepares the data set in a directory (`tfds build` would do, but needs Apache Beam)."""
    config = f"/{builder.builder_config.name}" if builder.builder_config else ""
    return f"python -m tnt_jax.tools.prepare {builder.name}{config} --directory={directory}"


def _check_network(builder: tfds.core.DatasetBuilder, command: str) -> None:
    """Raises FileNotFoundError where downloading is hopeless: tfds itself would retry for minutes before it says so."""
    urls = [urllib.parse.urlsplit(url) for url in builder.url_infos or ()]
    hosts = [(url.hostname, url.port or 443) for url in urls if url.scheme == "https" and url.hostname]
    fetched = builder.data_dir_root / "downloads" / builder.name
    if (
        not hosts
        or urllib.request.getproxies()
        or (fetched.exists() and any(".tmp." not in f.name for f in fetched.iterdir()))
    ):
        return  # nothing to ask, no way to ask directly, or archives that are there already
    try:
        socket.create_connection(hosts[0], timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise FileNotFoundError(
            f"{builder.name} is not prepared in {builder.data_dir_root} and cannot be downloaded: {hosts[0][0]} is out "
            f"of reach ({error}). Prepare it where there is a network ({command}) and copy the folder {builder.name}."
        ) from error


def _in_short(error: Exception) -> str:
    """The first lines of an error (tfds appends lists of hundreds of names)."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
