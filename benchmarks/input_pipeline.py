"""Input speed: the ImageNet training pipeline, from encoded files to finished uint8 batches, against timm's loader.

Both sides crop, resize, flip and RandAugment the same JPEGs to 224 x 224 on the same cores, in turns within one run, so
that a noisy machine disturbs them alike. Neither normalises: both leave that to the device. timm gets its usual loader
(torch's DataLoader with worker processes and timm's collation to uint8). It decodes an image anew for each of its
repeated copies, so its rate holds for both of ours (one copy, and copies of an image decoded once).

    python benchmarks/input_pipeline.py --images DIR --peer-python PYTHON [--rounds 5] [--output FILE.json]

DIR holds CLASS/*.jpg; PYTHON is an interpreter with torch, torchvision, timm and Pillow below 12. Without it only ours
is measured.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

BATCH_SIZE = 120  # images, a multiple of 2 and 3
SIDE = 224  # pixels


def main() -> None:
    """Measures, prints one line a round and a summary, and writes the figures as JSON where asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, type=Path, help="folder with CLASS/*.jpg")
    parser.add_argument("--peer-python", default="", help="interpreter with timm; empty: measure ours alone")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--batches", type=int, default=10, help=f"batches of {BATCH_SIZE} images a turn")
    parser.add_argument("--cores", type=int, default=2, help="processor cores, and timm's worker processes")
    parser.add_argument("--output", default="", help="file for the figures as JSON")
    parser.add_argument("--as-peer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    if arguments.as_peer:
        serve_timm(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "test"):
            (Path(folder) / split).symlink_to(arguments.images.resolve())
        report = measure(arguments, folder)
    print(summary(report))
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(report, indent=2) + "\n")


def measure(arguments: argparse.Namespace, folder: str) -> dict:
    """Runs the turns -> {"images_per_second": {side: [rate a round]}, "ratio": {side: median ratio}, ...}."""
    turns = {"one copy": Ours(folder, copies=1), "three copies": Ours(folder, copies=3)}
    if arguments.peer_python:
        turns["timm"] = Peer(arguments)
    rates = {name: [] for name in turns}
    for turn in turns.values():
        turn.run(2)  # tracing, worker processes and the files' cache
    for number in range(arguments.rounds):
        for name, turn in turns.items():
            rates[name].append(arguments.batches * BATCH_SIZE / turn.run(arguments.batches))
        print(
            f"round {number + 1}: " + ", ".join(f"{name} {rate[-1]:.0f}/s" for name, rate in rates.items()), flush=True
        )
    report = {
        "images_per_second": rates,
        "median_images_per_second": {name: statistics.median(rate) for name, rate in rates.items()},
        "files": sum(1 for path in arguments.images.glob("*/*") if path.is_file()),
        "cores": arguments.cores,
        "processor": processor(),
        "versions": {"python": platform.python_version()} | turns["one copy"].versions,
    }
    if "timm" in turns:
        report["versions"] |= turns["timm"].close()
        report["ratio"] = {
            name: statistics.median(ours / theirs for ours, theirs in zip(rates[name], rates["timm"], strict=True))
            for name in rates
            if name != "timm"
        }
    return report


class Ours:
    """This project's training batches from a folder, `copies` augmented copies of an image in a batch."""

    def __init__(self, folder: str, copies: int) -> None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        import tensorflow as tf

        from configs import default
        from tnt_jax.data import pipeline, settings

        values = default.get_config().data.to_dict() | {
            "name": "folder",
            "directory": folder,
            "train_split": "train",
            "eval_split": "test",
            "repeated_augmentation": copies,
        }
        self.settings = settings.DataSettings(**values)
        self.pipeline = pipeline
        self.versions = {"tensorflow": tf.__version__}

    def run(self, batches: int) -> float:
        """Seconds for this many batches, from opening the pipeline."""
        start = time.perf_counter()
        iterator = self.pipeline.train_batches(
            self.settings, batch_size=BATCH_SIZE, image_size=(SIDE, SIDE), seed=0, local_devices=1
        )
        for _ in range(batches):
            next(iterator)
        seconds = time.perf_counter() - start
        iterator.close()
        for thread in threading.enumerate():  # batches under way must not disturb the next turn
            if thread.name.startswith("batches"):
                thread.join()
        return seconds


class Peer:
    """timm's loader in an interpreter of its own, which waits while it is not its turn."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        command = [arguments.peer_python, __file__, "--as-peer", "--images", str(arguments.images)]
        self.process = subprocess.Popen(
            [*command, "--cores", str(arguments.cores)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, batches: int) -> float:
        """Seconds for this many batches."""
        return float(self._ask(str(batches)))

    def close(self) -> dict:
        """Ends the process -> its versions."""
        versions = json.loads(self._ask("versions"))
        self.process.stdin.close()
        self.process.wait()
        return versions

    def _ask(self, question: str) -> str:
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the peer's process ended (status {self.process.wait()}); its message is above")
        return answer


def serve_timm(arguments: argparse.Namespace) -> None:
    """The other process: a line with a number of batches in, a line with the seconds they took out."""
    import torch

    operators = torch.library.Library("torchvision", "DEF")  # torchvision beside a CPU build of torch lacks them
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import PIL
    import timm
    from PIL import Image
    from timm.data.loader import fast_collate

    transform = timm.data.create_transform(
        SIDE,
        is_training=True,
        use_prefetcher=True,  # uint8 out: the device normalises
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="random",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )

    @dataclasses.dataclass
    class Files(torch.utils.data.Dataset):
        paths: list
        length: int

        def __len__(self) -> int:
            return self.length

        def __getitem__(self, index: int) -> tuple:
            with open(self.paths[index % len(self.paths)], "rb") as file:
                return transform(Image.open(file).convert("RGB")), 0

    torch.set_num_threads(1)
    files = Files(sorted(path for path in arguments.images.glob("*/*") if path.is_file()), 0)
    for line in sys.stdin:
        if line.strip() == "versions":
            print(
                json.dumps({"timm": timm.__version__, "torch": torch.__version__, "pillow": PIL.__version__}),
                flush=True,
            )
            continue
        files.length = int(line) * BATCH_SIZE
        loader = torch.utils.data.DataLoader(
            files, BATCH_SIZE, shuffle=True, num_workers=arguments.cores, collate_fn=fast_collate
        )
        start = time.perf_counter()
        for _ in loader:
            pass
        print(time.perf_counter() - start, flush=True)


def processor() -> str:
    """The processor's name as Linux gives it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def summary(report: dict) -> str:
    """The figures as lines of text."""
    lines = [f"{name}: median {rate:.0f} images/s" for name, rate in report["median_images_per_second"].items()]
    lines += [f"{name} / timm: {ratio:.2f}" for name, ratio in report.get("ratio", {}).items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
