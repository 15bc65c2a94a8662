"""Finds tfds data sets by name, prepares them where possible, and reads their examples by number.

tfds imports TensorFlow when it prepares a data set; nothing else here does.
"""

import difflib
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from tnt_jax.data import digits, tfrecords

Builder = tfds.core.DatasetBuilder

BUILT_IN = ("synthetic", "folder", "digits")  # not in tfds' catalog; `_open` in sources.py has a branch for each
FILE_FORMAT = "array_record"  # of data sets prepared here; supports random access without a separate index
_PROBE_SECONDS = 10


class Features(NamedTuple):
    """The features of a data set that are read."""

    image: str  # feature name
    label: str
    classes: tfds.features.ClassLabel
    several: bool  # an image has any number of classes instead of one


class TfdsSource:
    """Examples of a prepared builder's split (tfds notation) by number; images stay encoded.

    Raises ValueError for a file format without random access, and FileNotFoundError for a missing file.
    """

    def __init__(self, builder: Builder, spec: str):
        self.name = f"{builder.info.full_name}, split {spec!r}"
        self._keys = keys = features_of(builder)[:2]
        # Only these two are parsed: segmentation masks and the like stay bytes.
        self._features = tfds.features.FeaturesDict({key: builder.info.features[key] for key in keys})
        encoded = isinstance(self._features[keys[0]], tfds.features.Image)
        self._decoders = {keys[0]: tfds.decode.SkipDecoding()} if encoded else None
        self._files = tuple(builder.info.splits[spec].file_instructions)
        self._ends = np.cumsum([each.take for each in self._files])
        self._tfrecords = self._others = None
        if builder.info.file_format == tfds.core.FileFormat.TFRECORD:
            self._tfrecords = tfrecords.TFRecordFiles([(each.filename, each.examples_in_shard) for each in self._files])
            return
        if missing := [each.filename for each in self._files if not epath.Path(each.filename).exists()]:
            raise FileNotFoundError(f"{missing[0]} is missing ({len(missing)} of {len(self._files)} files are).")
        try:
            self._others = builder.as_data_source(spec).data_source
        except NotImplementedError as error:
            raise ValueError(
                f"{self.name}: {builder.info.file_format.value} files cannot be read by number. Convert them: "
                f"tfds convert_format --dataset_version_dir={builder.data_path} --out_file_format={FILE_FORMAT}"
            ) from error

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, object]:
        file, number = self._locate(index)
        record = self._tfrecords.read(file, number) if self._tfrecords else self._others[index]
        example = self._features.deserialize_example_np(record, decoders=self._decoders)
        return dict(zip(("image", "label"), map(example.get, self._keys), strict=True))

    def labels(self) -> np.ndarray:
        """Returns all labels of all examples, int64. Reads every record but decodes no image."""
        return np.concatenate([np.atleast_1d(self[index]["label"]).astype(np.int64) for index in range(len(self))])

    def where(self, index: int) -> str:
        """Describes an example for messages."""
        file, record = self._locate(index)
        return f"example {index} of {self.name} ({self._files[file].filename}, record {record})"

    def _locate(self, index: int) -> tuple[int, int]:
        """Number in the split -> (file, record in it), as numbers. Raises IndexError beyond the split."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of a split of {len(self)} examples")
        file = int(np.searchsorted(self._ends, index, side="right"))
        return file, index - int(self._ends[file]) + self._files[file].take + self._files[file].skip


def open_builder(name: str, directory: str) -> Builder:
    """digits or a tfds name (optionally with /config and :version), data_dir (empty: tfds' default) -> its builder.

    Prepares a missing data set and logs that it does. Raises ValueError or FileNotFoundError, with the data set, the
    directory and the fix, for an unknown name, a directory that does not exist or holds another version of the set,
    archives that must be downloaded by hand, and no network.
    """
    if name == "digits":
        return ensure_prepared(lambda: digits.digits_builder(directory))
    directory = os.path.expanduser(directory)
    if directory and not epath.Path(directory).is_dir():
        raise FileNotFoundError(
            f"data.directory={directory!r} does not exist. Create it (mkdir -p) to prepare {name} there, "
            "or set --config.data.directory to the folder that holds the prepared data sets."
        )
    return ensure_prepared(lambda: find_builder(name, directory), asked=name)


def ensure_prepared(make_builder: Callable[[], Builder], asked: str = "") -> Builder:
    """A function that makes a builder -> the builder with its data set prepared. Errors as in open_builder."""
    builder = make_builder()
    features_of(builder)  # before anything is downloaded
    if builder.info.splits:
        return builder
    root, place = builder.data_dir_root, builder.data_path
    if place.exists() and any(place.iterdir()) and not builder.is_prepared():
        raise ValueError(f"{place} holds no finished data set (no dataset_info.json). Remove it and start again.")
    name = builder.name + (f"/{builder.builder_config.name}" if builder.builder_config else "")
    command = f"python -m tnt_jax.tools.prepare {name}:{builder.version} --directory={root}"
    others = sorted(path.parent.name for path in place.parent.glob("*/dataset_info.json"))
    if others and ":" not in asked:
        raise FileNotFoundError(
            f"{name} means version {builder.version}, tfds' newest, but {place.parent} holds version "
            f"{', '.join(others)}. Set --config.data.name={name}:{others[-1]}, or prepare the newest: {command}"
        )
    manual, instructions = root / "downloads" / "manual", (builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").strip()
    if instructions and not (manual.exists() and any(manual.iterdir())):
        raise FileNotFoundError(
            f"{builder.name} is not prepared in {root}, and its archives must be fetched by hand into {manual} "
            f"(missing or empty now):\n{instructions}\nThen start again, or run: {command}"
        )
    _check_network(builder, command)
    logging.info("Preparing %s in %s (once)", builder.info.full_name, root)
    try:
        builder.download_and_prepare(file_format=FILE_FORMAT)
    except Exception as error:  # from a full disk to a changed archive: the fix is the same
        if not make_builder().info.splits:  # else another process was faster
            hint = f" Its archives belong in {manual}:\n{instructions}\n" if instructions else " "
            raise ValueError(
                f"{builder.name} could not be prepared in {root}: {_in_short(error)}.{hint}"
                f"When that is solved, start again or run: {command}"
            ) from error
    return make_builder()


def features_of(builder: Builder) -> Features:
    """-> the features that are read. Raises ValueError unless they are (image, class) or (image, classes)."""
    name, features, keys = builder.info.full_name, builder.info.features, builder.info.supervised_keys
    if not (isinstance(keys, tuple) and len(keys) == 2 and all(isinstance(key, str) for key in keys)):
        raise ValueError(
            f"{name} has no (image, label) pair (its supervised_keys are {keys}): it cannot be used for classification."
        )
    image, label = features[keys[0]], features[keys[1]]
    pixels = isinstance(image, tfds.features.Tensor) and len(image.shape) == 3
    if not isinstance(image, tfds.features.Image) and not (pixels and image.np_dtype in (np.uint8, np.uint16)):
        raise ValueError(f"{name}: the feature {keys[0]!r} is {image}, not an image of 8 or 16-bit pixels.")
    several = isinstance(label, tfds.features.Sequence)
    label = label.feature if several else label
    if not isinstance(label, tfds.features.ClassLabel) or label.num_classes is None:
        raise ValueError(
            f"{name}: the feature {keys[1]!r} is {label}, not one or more labels of a known number of classes."
        )
    return Features(*keys, label, several)


def find_builder(name: str, directory: str) -> Builder:
    """A tfds name and data_dir -> its builder, prepared or not. Raises ValueError for an unknown name."""
    if name in BUILT_IN:
        raise ValueError(f"data.name={name!r} is read as it is: there is nothing to prepare.")
    try:
        return tfds.builder(name, data_dir=os.path.expanduser(directory) or None)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(name, [*BUILT_IN, *tfds.list_builders()], n=3)
        near = f"Similar names: {', '.join(near)}." if near else "Names: https://www.tensorflow.org/datasets/catalog."
        place = directory or "tfds' default data_dir"
        raise ValueError(
            f"data.name={name!r} is not a tfds data set, and not in {place}. {near} A folder of images is "
            "data.name=folder with its path as data.directory."
        ) from error
    except Exception as error:  # a wrong config, version or argument: tfds raises many kinds
        raise ValueError(f"data.name={name!r} cannot be opened: {_in_short(error)}") from error


def _check_network(builder: Builder, command: str) -> None:
    """Raises FileNotFoundError if a download cannot work: tfds itself would retry for minutes before it fails."""
    urls = [urllib.parse.urlsplit(url) for url in builder.url_infos or ()]
    hosts = [(url.hostname, url.port or 443) for url in urls if url.scheme == "https" and url.hostname]
    fetched = builder.data_dir_root / "downloads" / builder.name
    complete = fetched.exists() and any(".tmp." not in file.name for file in fetched.iterdir())
    if not hosts or complete or urllib.request.getproxies():
        return  # nothing to download, archives already there, or no direct connection to test
    try:
        socket.create_connection(hosts[0], timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise FileNotFoundError(
            f"{builder.name} is not prepared in {builder.data_dir_root} and cannot be downloaded: no connection to "
            f"{hosts[0][0]} ({error}). Prepare it where there is a network ({command}) and copy the folder."
        ) from error


def _in_short(error: Exception) -> str:
    """Shortens an error to 400 characters (tfds appends lists of hundreds of names)."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
