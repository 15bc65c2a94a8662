"""Writes what Pillow and timm make of some JPEGs: the goldens of test_augment.py and test_randaugment.py.

Not part of the tests. It needs torch, torchvision, timm and Pillow below 12 (timm's RandAugment refuses newer ones), in
an environment of their own. The goldens kept here were made with Pillow 11.3.0, timm 1.0.31 and torchvision 0.28.0:

    python tests/data/make_augment_goldens.py tests/data/fixtures/augment.npz tests/data/fixtures/*.jpg

The four JPEGs there are photographs of the public ImageNet sample (one for each of n02095889, n02965783, n04443257 and
n13044778), shrunk to 96 pixels by this script: --shrink OUT_DIR JPEG ...

Arrays of the file: `versions`; `fill` (the fill colour); `cases` (JSON: the RandAugment cases, each with operation,
magnitude, negative, bicubic and image); `case_I` (uint8 [48, 64, 3], case I on `small_J`, the J-th image resized);
`crop_J_K` (a resized crop) and `eval_J_K` (timm's evaluation) with their settings in `crops` and `evals` (JSON).
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL import __version__ as pillow_version

operators = torch.library.Library("torchvision", "DEF")  # torchvision beside a CPU build of torch lacks them
for _name in ("nms", "qnms"):
    operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm  # noqa: E402
from timm.data import auto_augment  # noqa: E402

MAGNITUDES = (0, 5, 9, 10)
PLAIN = ("AutoContrast", "Equalize", "Invert")
UNSIGNED = ("Posterize", "Solarize", "SolarizeAdd")
ENHANCEMENTS = ("Color", "Contrast", "Brightness", "Sharpness")
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
TIMM_NAMES = {  # the increasing forms
    "Posterize": "PosterizeIncreasing",
    "Solarize": "SolarizeIncreasing",
    "TranslateX": "TranslateXRel",
    "TranslateY": "TranslateYRel",
} | {name: f"{name}Increasing" for name in ENHANCEMENTS}
FILL = (124, 116, 104)  # three different levels, so that a mix-up of channels shows
CROPS = (  # top, left, height and width in ninety-sixths of the sides; size out; bicubic
    ((0, 0, 96, 96), (40, 40), True),
    ((20, 10, 50, 70), (32, 48), False),
    ((31, 40, 20, 15), (48, 32), True),
    ((31, 40, 20, 15), (32, 32), False),
)
EVALS = (((32, 32), 0.9, "bicubic"), ((48, 48), 0.875, "bilinear"), ((32, 56), 0.9, "bicubic"))


def cases() -> list[dict]:
    """Every operation at every magnitude, with both signs and both interpolations where it has them."""
    found = []
    for name in PLAIN + UNSIGNED + ENHANCEMENTS + GEOMETRIC:
        for magnitude in MAGNITUDES[:1] if name in PLAIN else MAGNITUDES:
            for negative in (False, True) if name in ENHANCEMENTS + GEOMETRIC and magnitude else (False,):
                for bicubic in (False, True) if name in GEOMETRIC else (False,):
                    found.append(dict(operation=name, magnitude=magnitude, negative=negative, bicubic=bicubic))
    return found


def pillow_result(image: Image.Image, case: dict) -> np.ndarray:
    """timm's operation with its random parts fixed."""
    resample = Image.Resampling.BICUBIC if case["bicubic"] else Image.Resampling.BILINEAR
    operation = auto_augment.AugmentOp(
        TIMM_NAMES.get(case["operation"], case["operation"]),
        prob=1.0,
        magnitude=case["magnitude"],
        hparams={"img_mean": FILL, "interpolation": resample},
    )
    random_number, random.random = random.random, lambda: 0.9 if case["negative"] else 0.1
    try:
        return np.asarray(operation(image))
    finally:
        random.random = random_number


def main() -> None:
    """Writes the goldens, or with --shrink the small JPEGs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the .npz file, or with --shrink a folder")
    parser.add_argument("images", nargs="+", type=Path, help="JPEG files")
    parser.add_argument("--shrink", action="store_true", help="write the images with a shorter side of 96 pixels")
    parser.add_argument("--size", type=int, nargs=2, default=(48, 64), help="rows and columns for RandAugment")
    arguments = parser.parse_args()
    if arguments.shrink:
        for path in arguments.images:
            image = Image.open(path)
            ratio = 96 / min(image.size)
            image = image.resize([round(side * ratio) for side in image.size], Image.Resampling.BICUBIC)
            image.save(arguments.output / f"{path.stem}.jpg", quality=88)
        return
    images = [Image.open(path).convert("RGB") for path in arguments.images]
    small = [image.resize(tuple(arguments.size)[::-1], Image.Resampling.BICUBIC) for image in images]
    arrays = {f"small_{number}": np.asarray(image) for number, image in enumerate(small)}
    listed = cases()
    for number, case in enumerate(listed):
        case["image"] = number % len(images)
        arrays[f"case_{number}"] = pillow_result(small[case["image"]], case)
    for number, image in enumerate(images):
        for index, (box, size, bicubic) in enumerate(CROPS):
            top, left, height, width = (part * side // 96 for part, side in zip(box, image.size[::-1] * 2, strict=True))
            resample = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
            crop = image.crop((left, top, left + width, top + height)).resize(size[::-1], resample)
            arrays[f"crop_{number}_{index}"] = np.asarray(crop)
        for index, (size, fraction, interpolation) in enumerate(EVALS):
            transform = timm.data.create_transform(
                (3, *size), crop_pct=fraction, interpolation=interpolation, use_prefetcher=True
            )
            arrays[f"eval_{number}_{index}"] = transform(image).numpy().transpose(1, 2, 0)
    arrays["cases"], arrays["fill"] = json.dumps(listed), np.array(FILL)
    arrays["crops"], arrays["evals"] = json.dumps(CROPS), json.dumps(EVALS)
    arrays["versions"] = json.dumps({"pillow": pillow_version, "timm": timm.__version__})
    np.savez_compressed(arguments.output, **arrays)


if __name__ == "__main__":
    main()
