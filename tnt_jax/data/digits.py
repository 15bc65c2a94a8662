"""`digits`: the 1,797 handwritten digits that come with scikit-learn, as a tfds data set. Nothing is downloaded."""

import os
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds


class Digits(tfds.core.GeneratorBasedBuilder):
    """8 x 8 pixel images (PNG, uint8, the grey value in all three channels) of the digits 0 to 9.

    "test" is a fixed, stratified fifth: every fifth of the images sorted by class (in scikit-learn's order within a
    class), 360 images; "train" is the other 1,437. The same people wrote the digits of both.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(8, 8, 3), encoding_format="png")
        label = tfds.features.ClassLabel(names=[str(digit) for digit in range(10)])
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        # dataset_info_from_configs would look for a package folder with a README of its own.
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {"train": self._generate_examples(test=False), "test": self._generate_examples(test=True)}

    def _generate_examples(self, test: bool) -> Iterator[tuple[int, dict[str, object]]]:
        from sklearn import datasets  # takes a second to import, needed once per machine

        digits = datasets.load_digits()
        held_out = np.zeros(len(digits.target), bool)
        held_out[np.argsort(digits.target, kind="stable")[::5]] = True
        for number in np.flatnonzero(held_out == test):
            grey = np.round(digits.images[number] * (255 / 16)).astype(np.uint8)  # the grey values are 0..16
            yield int(number), {"image": np.repeat(grey[:, :, None], 3, axis=-1), "label": int(digits.target[number])}


def digits_builder(directory: str) -> Digits:
    """The builder over `directory` (empty: tfds' default, ~/tensorflow_datasets), not yet prepared."""
    return Digits(data_dir=os.path.expanduser(directory) or None)
