"""Small data sets for the tests of this folder; nothing is written outside pytest's temporary folders."""

import dataclasses
import os
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow_datasets as tfds

from configs.default import get_config
from tnt_jax.data.settings import DataSettings

NUM_TILES = 53  # no multiple of the tests' batch sizes


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """Writes the indices of TFRecord files to a temporary folder."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


class Tiles(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One-colour images whose red value is the example's number in writing order; the feature keys are unusual."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "picture": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "colour": tfds.features.ClassLabel(names=["a", "b", "c"]),
            "note": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("picture", "colour")
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(NUM_TILES), "test": self._generate_examples(7)}

    def _generate_examples(self, count):
        for number in range(count):
            picture = np.full((5 + number % 4, 6, 3), (number, 200, 100), np.uint8)
            yield number, {"picture": picture, "colour": number % 3, "note": "\0" * (number % 3)}


@pytest.fixture(scope="session")
def tiles(tmp_path_factory) -> Callable[[str], str]:
    """Returns a function: file format -> data_dir of the prepared data set "tiles", with several files per split."""
    folders = {}

    def directory(file_format: str) -> str:
        if file_format not in folders:
            folders[file_format] = str(tmp_path_factory.mktemp(file_format))
            builder = Tiles(data_dir=folders[file_format])
            config = tfds.download.DownloadConfig(num_shards=4)
            builder.download_and_prepare(download_config=config, file_format=file_format)
        return folders[file_format]

    return directory


@pytest.fixture(scope="session")
def digits_directory(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def settings_for() -> Callable[..., DataSettings]:
    """Returns a function: (name, directory, **overrides) -> settings with cheap augmentation: crop and flip."""
    cheap = {"randaugment": "", "color_jitter": 0.0, "repeated_augmentation": 1, "train_interpolation": "bilinear"}
    base = DataSettings(**{**get_config().data, **cheap, "eval_split": "test"})

    def make(name: str, directory: str = "", **overrides) -> DataSettings:
        return dataclasses.replace(base, name=name, directory=str(directory), **overrides)

    return make
