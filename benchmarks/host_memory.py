"""Measures the resident memory of the input pipelines over thousands of steps: it must not grow.

python -m benchmarks.host_memory --folder DIR [--steps 2000] [--batch-size 8] [--case folder-train]

DIR holds CLASS/NAME.jpg (or .jpeg). The cases run one after the other, each in its own process: the folder and
ImageNet (tfds' own builder, on miniature archives), each for training as in configs/default.py (RandAugment, three
copies) and for evaluation (repeated, as in a long run). Prints the resident set in MB after every hundred steps, and
the slope of the second half. Linux only: it reads /proc/self/statm.
"""

import argparse
import dataclasses
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

CASES = ("folder-train", "folder-eval", "imagenet-train", "imagenet-eval")
SIZE = (224, 224)


def resident_megabytes() -> float:
    """Returns the resident memory of this process, in units of 2^20 bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def make_settings(name: str, directory: Path, folder: Path):
    """Makes a data set in `directory` -> the default recipe's data settings for it."""
    from configs.default import get_config
    from tnt_jax.data.settings import DataSettings

    if name == "folder":
        for split in ("train", "test"):
            for file in folder.glob("*/*.[jJ][pP]*[gG]"):
                place = directory / split / file.parent.name
                place.mkdir(parents=True, exist_ok=True)
                (place / file.name.lower()).symlink_to(file.resolve())
    else:
        from tests.data import imagenet_archives
        from tnt_jax.tools import prepare

        imagenet_archives.make_archives(directory / "downloads" / "manual", images_per_synset=50, num_validation=200)
        prepare.main(["imagenet2012", f"--directory={directory}"])
    settings = DataSettings(**get_config().data)
    split = "test" if name == "folder" else "validation"
    return dataclasses.replace(
        settings, name="folder" if name == "folder" else "imagenet2012", directory=str(directory), eval_split=split
    )


def batches(case: str, directory: Path, folder: Path, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Returns endless batches of a case."""
    from tnt_jax.data.batches import eval_batches, train_batches

    name, purpose = case.split("-")
    settings = make_settings(name, directory, folder)
    arguments = dict(batch_size=batch_size, image_size=SIZE, local_devices=1)
    if purpose == "train":
        return train_batches(settings, seed=0, **arguments)
    return itertools.chain.from_iterable(eval_batches(settings, **arguments) for _ in itertools.count())


def run_case(case: str, folder: Path, steps: int, batch_size: int) -> None:
    """Prints "steps MB" after every hundred steps, and a last line with the slope."""
    with tempfile.TemporaryDirectory() as directory:
        started, found = time.monotonic(), []
        for step, _ in enumerate(batches(case, Path(directory), folder, batch_size), start=1):
            if step % 100 == 0:
                found.append(resident_megabytes())
                print(f"{case} {step:6d} {found[-1]:8.0f} MB", flush=True)
            if step == steps:
                break
        half = found[len(found) // 2 :]
        slope = np.polyfit(np.arange(len(half)), half, 1)[0] if len(half) > 1 else float("nan")
        seconds = time.monotonic() - started
        print(
            f"{case}: {slope:+.2f} MB per hundred steps in the second half; {seconds:.0f} s, batch {batch_size}",
            flush=True,
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="CLASS/NAME.jpg")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--case", choices=CASES, help="run only this one, in this process")
    options = parser.parse_args()
    if options.case:
        run_case(options.case, options.folder, options.steps, options.batch_size)
        return
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.host_memory", *sys.argv[1:], f"--case={case}"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
