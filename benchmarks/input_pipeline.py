"""Input speed: the ImageNet training pipeline, from encoded files to finished batches, against timm's loader.

All sides crop, resize, flip and RandAugment the same JPEGs to 224 x 224 on the same cores, in turns within one run, so
that a noisy machine disturbs them alike. The sides:
  one copy, three copies  this project's batches (uint8; the training step normalises on the device), with one augmented
                          copy of an image in a batch and with three, decoded once
  timm                    timm.data.create_loader: worker processes, then normalisation on timm's device, here the CPU
  timm's workers          the same without the normalisation: torch's DataLoader with timm's collation to uint8
timm decodes an image anew for each repeated copy, so its rates hold for both of ours. Beside the rates, which other
programs on the machine change, stands the processor time an image takes (all threads and processes of a side).

    python benchmarks/input_pipeline.py --images DIR --peer-python PYTHON [--rounds 5] [--output FILE.json]

DIR holds CLASS/*.jpg; PYTHON is an interpreter with torch, torchvision, timm and Pillow below 12. Without it only ours
is measured.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

BATCH_SIZE = 120  # images, a multiple of 2 and 3
SIDE = 224  # pixels
OURS = {"one copy": 1, "three copies": 3}
PEERS = {"timm": "loader", "timm's workers": "workers"}

Turn = tuple[float, float]  # seconds, processor seconds


def main() -> None:
    """Measures, prints one line a round and a summary, and writes the figures as JSON where asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, type=Path, help="folder with CLASS/*.jpg")
    parser.add_argument("--peer-python", default="", help="interpreter with timm; empty: measure ours alone")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--batches", type=int, default=24, help=f"batches of {BATCH_SIZE} images a turn")
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
    """Runs the turns -> the figures of every round and their medians, by side, and where and with what."""
    sides = {name: Ours(folder, copies) for name, copies in OURS.items()}
    if arguments.peer_python:
        peer = Peer(arguments)
        sides |= {name: peer.side(kind) for name, kind in PEERS.items()}
    rates = {name: [] for name in sides}
    milliseconds = {name: [] for name in sides}
    for side in sides.values():
        side.run(2)  # tracing, worker processes and the files' cache
    images = arguments.batches * BATCH_SIZE
    for number in range(arguments.rounds):
        for name, side in sides.items():
            seconds, processor_seconds = side.run(arguments.batches)
            rates[name].append(round(images / seconds, 1))
            milliseconds[name].append(round(1000 * processor_seconds / images, 2))
        cells = [f"{name} {rates[name][-1]:.0f}/s ({milliseconds[name][-1]:.1f} ms)" for name in sides]
        print(f"round {number + 1}: " + ", ".join(cells), flush=True)
    report = {
        "images_per_second": rates,
        "processor_milliseconds_per_image": milliseconds,
        "files": sum(1 for path in arguments.images.glob("*/*") if path.is_file()),
        "cores": arguments.cores,
        "processor": processor_name(),
        "versions": {"python": platform.python_version()} | sides["one copy"].versions,
    }
    if arguments.peer_python:
        report["versions"] |= peer.close()
        report["ratio"] = {
            f"{ours} / {theirs}": round(statistics.median(map(_quotient, rates[ours], rates[theirs])), 2)
            for ours in OURS
            for theirs in PEERS
        }
    return report


def _quotient(ours: float, theirs: float) -> float:
    return ours / theirs


class Ours:
    """This project's training batches from a folder, `copies` augmented copies of an image in a batch."""

    def __init__(self, folder: str, copies: int) -> None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
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
        self.versions = {"tensorflow": pipeline.tf.__version__}

    def run(self, batches: int) -> Turn:
        """Opens the pipeline and takes this many batches."""
        start, processor_start = time.perf_counter(), time.process_time()
        iterator = self.pipeline.train_batches(
            self.settings, batch_size=BATCH_SIZE, image_size=(SIDE, SIDE), seed=0, local_devices=1
        )
        for _ in range(batches):
            next(iterator)
        seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
        iterator.close()
        for thread in threading.enumerate():  # batches under way must not disturb the next turn
            if thread.name.startswith("batches"):
                thread.join()
        return seconds, processor_seconds


class Peer:
    """timm in an interpreter of its own, which waits while it is not its turn."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        command = [arguments.peer_python, __file__, "--as-peer", "--images", str(arguments.images)]
        self.process = subprocess.Popen(
            [*command, "--cores", str(arguments.cores)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def side(self, kind: str) -> "PeerSide":
        """One of PEERS' kinds, to be run in turns."""
        return PeerSide(self, kind)

    def close(self) -> dict:
        """Ends the process -> its versions."""
        versions = self.ask("versions")
        self.process.stdin.close()
        self.process.wait()
        return versions

    def ask(self, question: str) -> dict | list:
        """A line to the process -> its answer."""
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the peer's process ended (status {self.process.wait()}); its message is above")
        return json.loads(answer)


class PeerSide:
    """One of timm's two sides."""

    def __init__(self, peer: Peer, kind: str) -> None:
        self.peer, self.kind = peer, kind

    def run(self, batches: int) -> Turn:
        """Opens the loader and takes this many batches."""
        return tuple(self.peer.ask(f"{self.kind} {batches}"))


def serve_timm(arguments: argparse.Namespace) -> None:
    """The other process: a line with a kind and a number of batches in, a line with the turn's seconds out."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # beside a CPU build of torch it may lack these operators, which nothing here uses
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    import PIL
    import timm

    paths = sorted(path for path in arguments.images.glob("*/*") if path.is_file())
    for line in sys.stdin:
        if line.strip() == "versions":
            versions = {"timm": timm.__version__, "torch": torch.__version__, "pillow": PIL.__version__}
            print(json.dumps(versions), flush=True)
            continue
        kind, batches = line.split()
        start, processor_start = time.perf_counter(), processor_time()
        loader = timm_loader(kind, paths, int(batches), arguments.cores)
        for _ in loader:
            pass
        seconds = time.perf_counter() - start
        del loader  # ends the workers, so that their time is counted
        print(json.dumps([seconds, processor_time() - processor_start]), flush=True)


def timm_loader(kind: str, paths: list[Path], batches: int, workers: int):
    """timm's create_loader (kind "loader"), or torch's DataLoader around timm's transform and collation."""
    import timm
    import torch
    from PIL import Image
    from timm.data.loader import fast_collate

    class Files(torch.utils.data.Dataset):
        transform = None

        def __len__(self) -> int:
            return batches * BATCH_SIZE

        def __getitem__(self, index: int) -> tuple:
            with open(paths[index % len(paths)], "rb") as file:
                return self.transform(Image.open(file).convert("RGB")), 0

    files = Files()
    recipe = dict(
        is_training=True,
        use_prefetcher=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="random",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    if kind == "loader":
        options = dict(num_workers=workers, pin_memory=False, persistent_workers=False, device=torch.device("cpu"))
        return timm.data.create_loader(files, (3, SIDE, SIDE), BATCH_SIZE, **options, **recipe)
    files.transform = timm.data.create_transform(SIDE, **recipe)
    return torch.utils.data.DataLoader(files, BATCH_SIZE, shuffle=True, num_workers=workers, collate_fn=fast_collate)


def processor_time() -> float:
    """Processor seconds of this process and of its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def processor_name() -> str:
    """The processor's name as Linux gives it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def summary(report: dict) -> str:
    """The medians as lines of text."""
    lines = [
        f"{name}: {statistics.median(rates):.0f} images/s, "
        f"{statistics.median(report['processor_milliseconds_per_image'][name]):.2f} ms of processor time an image"
        for name, rates in report["images_per_second"].items()
    ]
    return "\n".join(lines + [f"{name}: {ratio:.2f}" for name, ratio in report.get("ratio", {}).items()])


if __name__ == "__main__":
    main()
