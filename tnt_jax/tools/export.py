"""Exports a trained or published model as a standalone program (StableHLO), or as weights for timm.

    python -m tnt_jax.tools.export --source=runs/photos --output=photos_model
    python -m tnt_jax.tools.export --source=tnt_s_patch16_224:weights.safetensors --output=tnt_s --input=float32
    python -m tnt_jax.tools.export --source=runs/photos --format=safetensors --output=photos.safetensors

stablehlo: OUTPUT is a folder with model.stablehlo, classes.json (names in the order of the logits) and README.md, which
shows in a few lines how to call the program. The one file runs on CPU, GPU (CUDA) and TPU, with any number of images at
a time, and needs jax but not this package. Its weights are inside, as constants: more platforms take no more space, and
nobody can call the program with the wrong weights. Images are uint8 pixels (uint16 if data.pixel_bits is 16), so nobody
can use the wrong mean and deviation either, and a batch is a quarter of the bytes; with --input=float32 the caller
normalises them.

safetensors: OUTPUT is a file, with timm's names (tnt_jax.save_pretrained).
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from tnt_jax import names
from tnt_jax.models import fast
from tnt_jax.models.variants import update
from tnt_jax.pretrained import save_pretrained
from tnt_jax.tools import command_line
from tnt_jax.tools.trained import Trained, add_source_flags, open_trained
from tnt_jax.training.device_augment import normalize
from tnt_jax.workdir import write_atomically

PLATFORMS = ("cpu", "cuda", "tpu")
INPUTS = ("uint8", "float32")
PROGRAM_FILE, CLASSES_FILE, README_FILE = "model.stablehlo", "classes.json", "README.md"

# Suffixes of model files elsewhere: the output folder must not have such a name.
FILES = (".safetensors", ".stablehlo", ".pb", ".pt", ".pth", ".bin", ".h5", ".keras", ".mlmodel", ".engine", ".zip")
# Formats without an export -> what to do instead.
ELSEWHERE = {
    ".onnx": "there is no export to ONNX here. Through timm there is one: --format=safetensors, then the "
    "steps in docs/tools.md.",
    ".tflite": "there is no export to TensorFlow Lite here, nor through timm. A program (--output=FOLDER) runs "
    "wherever jax is installed.",
}

README = """\
# {name} as a program

`{program}` is serialised StableHLO from jax.export, weights inside, for CPU, GPU (CUDA) and TPU. It needs jax and
flatbuffers (`pip install jax flatbuffers`), but not tnt_jax:

```python
import json
import jax.export

program = jax.export.deserialize(open("{program}", "rb").read())
classes = json.load(open("{classes}"))
logits = program.call(images)              # {input} [B, {height}, {width}, {channels}] -> float32 [B, {count}], any B
print(classes[int(logits[0].argmax())])    # jax.nn.{probability}(logits) gives probabilities{each}
```

The first call with a new number of images compiles; `jax.jit(program.call)` caches the compiled program as usual.

Images have {kind}: {resizing}
{scaling}

Made from {source}, {weights}, by jax {version}, calling convention {calling_convention}. jax reads programs from
versions up to six months older than itself; see "Compatibility guarantees" in the documentation of jax.export.
"""
SCALING = {
    "uint8": "The program itself divides by {largest}, subtracts {mean} and divides by {std}.",
    "float32": "Then the caller divides by {largest}, subtracts {mean} by channel and divides by {std}.",
}


def program_of(trained: Trained, input_kind: str = "uint8") -> Callable[[jax.Array], jax.Array]:
    """Returns the function images [B, H, W, C] (uint8: pixels; float32: normalised) -> logits [B, K] float32.

    Attention has one implementation for TPUs and another for other devices, both in plain XLA operations: a kernel for
    one kind of device would not run on the others.
    """

    def logits(device_kind: str, images: jax.Array) -> jax.Array:
        model = fast.replace(trained.model, implementation="xla", outer="xla", device_kind=device_kind)
        return model.apply(trained.variables, images)

    def program(images: jax.Array) -> jax.Array:
        if input_kind == "uint8":
            images = normalize(images, trained.images)
        tpu, others = functools.partial(logits, "TPU"), functools.partial(logits, "cpu")
        return jax.lax.platform_dependent(images, tpu=tpu, default=others)

    return program


def export_program(trained: Trained, input_kind: str = "uint8") -> jax_export.Exported:
    """Exports the program for all PLATFORMS, with a symbolic number of images."""
    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *trained.model.input_shape), _dtype(trained, input_kind))
    return jax_export.export(jax.jit(program_of(trained, input_kind)), platforms=PLATFORMS)(images)


def write_program(trained: Trained, folder: Path, input_kind: str = "uint8") -> Path:
    """Exports into a folder (see the module), replacing an older program there; returns the program's path."""
    exported = export_program(trained, input_kind)
    height, width, channels = trained.model.input_shape
    images = trained.images
    text = README.format(
        name=trained.name,
        program=PROGRAM_FILE,
        classes=CLASSES_FILE,
        input=_dtype(trained, input_kind),
        channels=channels,
        kind={1: "one channel (grey)", 3: "three channels (RGB)"}.get(channels, f"{channels} channels"),
        height=height,
        width=width,
        count=trained.model.num_classes,
        probability="sigmoid" if trained.per_class else "softmax",
        each=", of each class by itself" if trained.per_class else "",
        resizing=_resizing(trained),
        scaling=SCALING[input_kind].format(largest=2**images.pixel_bits - 1, mean=images.mean, std=images.std),
        source=names.printable(Path(trained.source).name),
        weights=trained.weights,
        version=jax.__version__,
        calling_convention=exported.calling_convention_version,
    )
    write_atomically(folder / README_FILE, text)
    write_atomically(folder / CLASSES_FILE, names.as_json(trained.class_names, indent=0) + "\n")
    write_atomically(folder / PROGRAM_FILE, exported.serialize())
    return folder / PROGRAM_FILE


def check_program(path: Path, trained: Trained, input_kind: str = "uint8") -> dict[str, float]:
    """A program's path and its model -> megabytes, seconds to load, and largest difference of their logits.

    Compares them on three images of noise, on this machine's devices.
    """
    size = path.stat().st_size / 1e6
    started = time.perf_counter()
    program = jax_export.deserialize(path.read_bytes())
    seconds = time.perf_counter() - started
    dtype = _dtype(trained, "uint8")
    pixels = np.random.default_rng(0).integers(0, jnp.iinfo(dtype).max, (3, *trained.model.input_shape), dtype)
    images = normalize(pixels, trained.images)
    expected = jax.jit(trained.model.apply)(trained.variables, images)
    found = program.call(pixels if input_kind == "uint8" else images)
    return {"megabytes": size, "seconds": seconds, "difference": float(jnp.abs(found - expected).max())}


def _dtype(trained: Trained, input_kind: str) -> np.dtype:
    """Returns the dtype of the program's images; "uint8" means pixels, which may have 16 bits."""
    return np.dtype("uint16" if input_kind == "uint8" and trained.images.pixel_bits == 16 else input_kind)


def _resizing(trained: Trained) -> str:
    """Describes how to resize and crop a photograph for the program."""
    (height, width), images = trained.model.input_size, trained.images
    sides = [side / images.eval_crop_fraction for side in (height, width)]
    cover = f"they are resized to cover {sides[0]:.0f} x {sides[1]:.0f} pixels"
    first = f"the shorter side is resized to {int(sides[0])} pixels" if height == width else cover
    return f"{first} ({images.eval_interpolation}, with antialiasing), then cropped to the central {height} x {width}."


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command-line arguments -> options."""
    parser = command_line.Parser("export", __doc__)
    parser.add_argument(
        "--output", required=True, type=command_line.path, help="output folder; with --format=safetensors a file"
    )
    add_source_flags(parser)
    parser.add_argument("--format", choices=("stablehlo", "safetensors"), default="stablehlo")
    pixels = "uint8: pixels (uint16 if they have 16 bits); float32: normalised images"
    parser.add_argument("--input", choices=INPUTS, default="uint8", help=pixels)
    size = "in pixels, a side or HEIGHTxWIDTH (default: the model's own)"
    parser.add_argument("--image-size", type=command_line.image_size, help=size)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the computation (default: the model's)")
    options = parser.parse(arguments)
    if options.format == "safetensors" and (options.input, options.dtype) != ("uint8", None):
        parser.error("--input and --dtype apply only to a program; weights are float32")
    return options


def run(options: argparse.Namespace) -> str:
    """Exports and returns a line that sums it up. Raises ValueError or OSError with the fix."""
    if (suffix := options.output.suffix.lower()) in ELSEWHERE:
        raise ValueError(f"--output={options.output}: {ELSEWHERE[suffix]}")
    if options.format == "stablehlo" and (options.output.is_file() or suffix in FILES):
        raise ValueError(f"--output={options.output} is a file's name; a program and its README go into a folder")
    trained = open_trained(options.source, options.image_size, weights=options.weights, changes=options.changes)
    if options.format == "safetensors":
        save_pretrained(options.output, trained.model, trained.variables, note=trained.weights)
        size = options.output.stat().st_size / 1e6
        return f"{options.output}: {size:.1f} MB, {trained.weights}, timm's names for {trained.name}"
    if options.dtype is not None:
        trained = dataclasses.replace(trained, model=update(trained.model, dtype=jnp.dtype(options.dtype)))
    path = write_program(trained, options.output, options.input)
    found = check_program(path, trained, options.input)
    return (
        f"{path}: {trained.weights}, {found['megabytes']:.1f} MB for {', '.join(PLATFORMS)}, loaded in "
        f"{found['seconds']:.2f} s; its logits differ from the model's by at most {found['difference']:.1e} on three "
        f"images. {options.output / README_FILE} shows how to call it."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Exports, prints the result, and for a program its comparison with the model."""
    options = parse(arguments)
    with command_line.one_message("export"):
        command_line.log(run(options))


if __name__ == "__main__":
    main()
