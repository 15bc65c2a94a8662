"""Runs timm's transforms with this project's draws: writes the golden outputs of the tests, or compares many images.

Not part of the tests. It needs an environment of its own with torch, torchvision, timm and Pillow below 12 (timm's
RandAugment refuses newer ones); of this project it uses only tnt_jax.data's augmentation modules, which need Pillow and
NumPy. The stored golden outputs were made with Pillow 11.3.0, timm 1.0.31 and torchvision 0.28.0:

    python -m tests.data.make_augment_goldens tests/data/fixtures/augment.npz tests/data/fixtures/*.jpg
    python -m tests.data.make_augment_goldens --compare DIR/*/*.JPEG        (prints how many are equal, pixel for pixel)

The four JPEGs are photographs from the public ImageNet sample (one each of n02095889, n02965783, n04443257 and
n13044778), resized by Pillow to a shorter side of 96 pixels (bicubic, quality 88).

Arrays in the file: `versions`; `fill` (the fill colour); `cases` (JSON: single RandAugment operations, each with
operation, magnitude, negative, bicubic and image); `case_I` (uint8 [48, 64, 3], case I on `small_J`, the resized J-th
image); `eval_J_K` and `train_J_K`, timm's evaluation and training transforms of image J, entry K of `evals`, `trains`.
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import PIL
import torch
from PIL import Image

operators = torch.library.Library("torchvision", "DEF")  # torchvision lacks them beside a CPU build of torch
for _name in ("nms", "qnms"):
    operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm  # noqa: E402
import timm.data.transforms  # noqa: E402
from timm.data import auto_augment  # noqa: E402

from tnt_jax.data import augment, decoding, draws, randaugment  # noqa: E402

MAGNITUDES = (0, 5, 9, 10)
PLAIN = ("AutoContrast", "Equalize", "Invert")
ENHANCEMENTS = ("Color", "Contrast", "Brightness", "Sharpness")
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
TIMM_NAMES = {  # the increasing variants
    "Posterize": "PosterizeIncreasing",
    "Solarize": "SolarizeIncreasing",
    "TranslateX": "TranslateXRel",
    "TranslateY": "TranslateYRel",
} | {name: f"{name}Increasing" for name in ENHANCEMENTS}
FILL = (124, 116, 104)  # three different values, so that swapped channels show
EVALS = (((32, 32), 0.9, "bicubic"), ((48, 48), 0.875, "bilinear"), ((32, 56), 0.9, "bicubic"))
RECIPE = "rand-m9-mstd0.5-inc1"
# Seed, RandAugment, size. None of them draws a rotation, which Pillow 12 and later round differently.
TRAINS = (
    ((23, 1), RECIPE, (32, 32)),
    ((36, 1), RECIPE, (40, 24)),
    ((9, 3), "rand-m7-n3-p1", (32, 32)),
    ((18, 1), RECIPE, (32, 32)),
)
MEAN = (0.5, 0.4, 0.3)


class Script:
    """Replaces the module `random` in timm, with the draws of one seed."""

    def __init__(self, seed: tuple[int, int], policy: randaugment.Policy):
        seed = np.array(seed)
        tries, self.choices = draws.uniform(seed, draws.CROP, 2, 10), draws.uniform(seed, draws.CROP_CHOICES, 4)
        self.uniforms, self.corner = iter(tries.T.ravel().tolist()), iter(self.choices[:2].tolist())
        self.drawn = randaugment.draw(seed, policy)
        self.normal = policy.magnitude + policy.deviation * draws.normal(seed, draws.POLICY_NORMAL, policy.layers)
        self.layer, self.asked = -1, 0

    def uniform(self, low: float, high: float) -> float:
        """Returns the area, then the aspect ratio, of each try."""
        return low + (high - low) * next(self.uniforms)

    def randint(self, low: int, high: int) -> int:
        """Returns the crop's top, then its left."""
        return low + int(next(self.corner) * (high - low + 1))

    def choice(self, interpolations: tuple) -> object:
        """Returns the interpolation of the crop, then of each geometric operation."""
        bicubic = self.choices[2] < 0.5 if self.layer < 0 else self.drawn.bicubic[self.layer]
        return next(each for each in interpolations if ("bicubic" in str(each).lower() or each == 3) == bicubic)

    def random(self) -> float:
        """Returns what decides whether an operation is applied, then its sign."""
        self.asked += 1
        said = not self.drawn.applied[self.layer] if self.asked == 1 else self.drawn.negative[self.layer]
        return 0.99 if said else 0.01

    def gauss(self, mean: float, deviation: float) -> float:
        """Returns the magnitude before clipping."""
        return float(self.normal[self.layer])


def timm_train(image: Image.Image, seed: tuple[int, int], notation: str, size: tuple[int, int]) -> np.ndarray:
    """Applies timm's training transform with the draws of a seed -> uint8 [H, W, 3]."""
    script = Script(seed, randaugment.parse(notation))
    transform = timm.data.create_transform(
        (3, *size), is_training=True, use_prefetcher=True, auto_augment=notation, interpolation="random", mean=MEAN
    )
    call = auto_augment.AugmentOp.__call__

    def layer(self: object, image: Image.Image) -> Image.Image:
        script.layer, script.asked = script.layer + 1, int(self.prob == 1)  # timm draws nothing if prob is 1
        return call(self, image)

    def chosen(operations: list, count: int, replace: bool, p: object) -> list:
        names = [randaugment.OPERATIONS[number] for number in script.drawn.operation]
        forms = [{TIMM_NAMES.get(name, name), name} for name in names]
        return [next(each for each in operations if each.name in form) for form in forms]

    flip = SimpleNamespace(rand=lambda _: torch.tensor(script.choices[3]))
    with (
        mock.patch.object(timm.data.transforms, "random", script),
        mock.patch.object(auto_augment, "random", script),
        mock.patch.object(auto_augment.np.random, "choice", chosen),
        mock.patch.object(auto_augment.AugmentOp, "__call__", layer),
        mock.patch("torchvision.transforms.transforms.torch", flip),
    ):
        return np.asarray(transform(image)).transpose(1, 2, 0)


def timm_eval(image: Image.Image, size: tuple[int, int], fraction: float, interpolation: str) -> np.ndarray:
    """Applies timm's evaluation transform -> uint8 [H, W, 3]."""
    transform = timm.data.create_transform(
        (3, *size), crop_pct=fraction, interpolation=interpolation, use_prefetcher=True
    )
    return np.asarray(transform(image)).transpose(1, 2, 0)


def cases() -> list[dict]:
    """Returns every operation at every magnitude, with both signs and interpolations where it has them."""
    found = []
    for name in randaugment.OPERATIONS:
        for magnitude in MAGNITUDES[:1] if name in PLAIN else MAGNITUDES:
            for negative in (False, True) if name in ENHANCEMENTS + GEOMETRIC and magnitude else (False,):
                for bicubic in (False, True) if name in GEOMETRIC else (False,):
                    found.append(dict(operation=name, magnitude=magnitude, negative=negative, bicubic=bicubic))
    return found


def timm_operation(image: Image.Image, case: dict) -> np.ndarray:
    """Applies timm's operation with its random parts fixed."""
    resample = Image.Resampling.BICUBIC if case["bicubic"] else Image.Resampling.BILINEAR
    name, hparams = TIMM_NAMES.get(case["operation"], case["operation"]), {"img_mean": FILL, "interpolation": resample}
    operation = auto_augment.AugmentOp(name, prob=1.0, magnitude=case["magnitude"], hparams=hparams)
    with mock.patch.object(auto_augment, "random", SimpleNamespace(random=lambda: 0.9 if case["negative"] else 0.1)):
        return np.asarray(operation(image))


def compare(paths: list[Path]) -> None:
    """Prints how many evaluation and training images are equal at 224 x 224, and the largest difference."""
    from tests.data.test_augment import settings_with

    size, found = (224, 224), {"evaluation": [], "training": []}
    for number, path in enumerate(paths):
        theirs, ours = Image.open(path).convert("RGB"), decoding.decode(path.read_bytes())
        for fraction, interpolation in ((0.9, "bicubic"), (0.875, "bilinear")):
            settings = settings_with(eval_crop_fraction=fraction, eval_interpolation=interpolation)
            pair = augment.eval_image(ours, settings, size), timm_eval(theirs, size, fraction, interpolation)
            found["evaluation"].append(np.abs(np.subtract(*pair, dtype=int)).max())
        for copy in range(3):
            for notation in (RECIPE, "rand-m9-n3-p1-mstd0.5"):
                settings = settings_with(randaugment=notation, train_interpolation="random", mean=MEAN)
                draw = augment.draw(np.array((number, copy)), settings)
                pair = (
                    augment.train_image(ours, draw, settings, size),
                    timm_train(theirs, (number, copy), notation, size),
                )
                found["training"].append(np.abs(np.subtract(*pair, dtype=int)).max())
    for name, largest in found.items():
        equal = sum(value == 0 for value in largest)
        print(f"{name}: {equal} of {len(largest)} images equal, largest difference {max(largest)}")
    print(f"{len(paths)} files, Pillow {PIL.__version__}, timm {timm.__version__}")


def main() -> None:
    """Writes the golden outputs, or compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compare", action="store_true", help="compare the images instead of writing golden outputs")
    parser.add_argument("paths", nargs="+", type=Path, help="the .npz file to write (without --compare), JPEG files")
    arguments = parser.parse_args()
    if arguments.compare:
        compare(arguments.paths)
        return
    output, *paths = arguments.paths
    images = [Image.open(path).convert("RGB") for path in paths]
    small = [image.resize((64, 48), Image.Resampling.BICUBIC) for image in images]
    arrays = {f"small_{number}": np.asarray(image) for number, image in enumerate(small)}
    listed = cases()
    for number, case in enumerate(listed):
        case["image"] = number % len(images)
        arrays[f"case_{number}"] = timm_operation(small[case["image"]], case)
    for number, image in enumerate(images):
        arrays |= {f"eval_{number}_{index}": timm_eval(image, *each) for index, each in enumerate(EVALS)}
        arrays |= {f"train_{number}_{index}": timm_train(image, *each) for index, each in enumerate(TRAINS)}
    for seed, notation, _ in TRAINS:
        drawn = randaugment.draw(np.array(seed), randaugment.parse(notation))
        applied = [randaugment.OPERATIONS[number] for number in drawn.operation[drawn.applied]]
        if "Rotate" in applied:
            raise SystemExit(f"seed {seed} rotates: {applied}")
        print(seed, notation, applied)
    arrays |= {"cases": json.dumps(listed), "fill": np.array(FILL)}
    arrays |= {"evals": json.dumps(EVALS), "trains": json.dumps(TRAINS)}
    arrays["versions"] = json.dumps({"pillow": PIL.__version__, "timm": timm.__version__})
    np.savez_compressed(output, **arrays)


if __name__ == "__main__":
    main()
