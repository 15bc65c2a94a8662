"""A model to draw in figures, and its image: read, cropped to the model's shape, normalised."""

import dataclasses
from pathlib import Path

import numpy as np
from flax.typing import VariableDict
from PIL import Image

from tnt_jax.data.decoding import RGB, Channels, Undecodable, as_array, decode, from_array
from tnt_jax.data.settings import EvalImages
from tnt_jax.models.resize import resize_sentence_positions
from tnt_jax.models.tnt import TNT
from tnt_jax.models.variants import update
from tnt_jax.training.device_augment import normalize
from tnt_jax.workdir import user_path

PAPERS_SIZE, PAPERS_INPUT = 1024, 224  # pixels: the input of Figure 3, and of training


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model with weights, to draw in figures."""

    title: str  # in the figures, such as "TNT-S"
    model: TNT
    variables: VariableDict  # {"params": ...}
    images: EvalImages  # how its images are preprocessed
    weights: str = ""  # such as "raw weights of step 200"

    @property
    def heading(self) -> str:
        """Title and weights, to show to a reader; array names have only the title."""
        return f"{self.title}, {self.weights}" if self.weights else self.title

    @property
    def channels(self) -> Channels:
        """Channels and bits of its images."""
        return Channels(self.model.in_channels, self.images.pixel_bits)

    def inputs(self, pixels: np.ndarray) -> np.ndarray:
        """pixels [H, W, C] uint8 or uint16 -> [1, H, W, C] float32, normalised."""
        return np.asarray(normalize(pixels[None], self.images))

    def at(self, size: tuple[int, int]) -> "Subject":
        """Returns the subject for images of (height, width) pixels, with interpolated sentence positions."""
        model, params = update(self.model, image_size=size), self.variables["params"]
        if "sentence_position" in params:
            positions = resize_sentence_positions(params["sentence_position"], self.model.grid, model.grid)
            params = {**params, "sentence_position": positions}
        return dataclasses.replace(self, model=model, variables={"params": params})


def read_image(path: str | Path, channels: Channels = RGB) -> np.ndarray:
    """An image file (data.folder.SUFFIXES) -> [H, W, C] uint8 or uint16, upright.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not an image.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; give an image, such as a .jpg or .png")
    try:
        return as_array(decode(path.read_bytes(), upright=True, channels=channels))
    except (Undecodable, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def centre_crop(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """pixels [H, W, C], (height, width) -> [height, width, C]: the largest centred part of that shape, bicubic.

    Unlike an evaluation's crop it keeps all of the shorter side, to show the whole image.
    """
    rows, columns = pixels.shape[:2]
    scale = min(rows / size[0], columns / size[1])
    height, width = min(scale * size[0], rows), min(scale * size[1], columns)  # rounding must not leave the image
    top, left = (rows - height) / 2, (columns - width) / 2
    image = from_array(np.ascontiguousarray(pixels))
    box = (left, top, left + width, top + height)
    return as_array(image.resize(size[::-1], Image.Resampling.BICUBIC, box=box))


def map_size(model: TNT) -> tuple[int, int]:
    """model -> (height, width) in pixels for feature maps: its own input enlarged by the paper's factor.

    1024 for a model of 224 (section 3.4 of the paper), 72 for one of 16 with patches of 4: with so few positions, more
    pixels would mainly show their interpolation. Never above 1024, unless the model's own input is.
    """

    def enlarged(side: int) -> int:
        larger = max(min(side * PAPERS_SIZE / PAPERS_INPUT, PAPERS_SIZE), side)
        return round(larger / model.patch_size) * model.patch_size

    height, width = model.input_size
    return enlarged(height), enlarged(width)
