"""Times the ImageNet training pipeline, from encoded files to finished batches, against timm's loader.

Both sides crop, resize, flip and RandAugment the same JPEGs to 224 x 224 on the same cores, in turns within one run,
so that a noisy machine affects them alike:
  ours   batches (uint8; the training step normalises on the device), with one copy of an image in a batch
         and with three, by as many worker processes as there are cores, and by one
  timm   timm.data.create_loader: worker processes, then normalisation on timm's device, here the CPU. It decodes an
         image again for each repeated copy, so its rate applies to both of ours
Also reports processor time per image (all processes of a side) and, for ours, that of the main process.

    python -m benchmarks.input_pipeline --images DIR --baseline-python PYTHON [--rounds 5] [--output FILE.json]

DIR holds CLASS/*.jpg; PYTHON is an interpreter with torch, torchvision, timm and Pillow below 12. Without it only ours
is measured. `--index` measures the start on TFRecord files of 1.28 million records instead.
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
import time
from pathlib import Path

BATCH_SIZE = 120  # images, a multiple of 2 and 3
SIDE = 224  # pixels
RECORDS, SHARDS = 1_281_167, 1024  # those of ImageNet
TIMM = "timm"


def main() -> None:
    """Measures, prints a line per round and a summary, and writes the figures as JSON if asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, type=Path, help="folder with CLASS/*.jpg")
    parser.add_argument("--baseline-python", default="", help="interpreter with timm; empty: measure only ours")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--batches", type=int, default=24, help=f"batches of {BATCH_SIZE} images per turn")
    parser.add_argument("--cores", type=int, default=2, help="processor cores, and worker processes")
    parser.add_argument("--output", default="", help="file for the figures as JSON")
    parser.add_argument("--index", action="store_true", help="the start on 1.28 million TFRecords instead")
    parser.add_argument("--as-baseline", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    if arguments.as_baseline:
        serve_timm(arguments)
        return
    if arguments.index:
        measure_index()
        return
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "test"):
            (Path(folder) / split).symlink_to(arguments.images.resolve())
        report = measure(arguments, folder)
    print(summary(report))
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(report, indent=2) + "\n")


def measure(arguments: argparse.Namespace, folder: str) -> dict:
    """Runs the turns -> the figures of every round by side, the machine and the versions."""
    sides = {
        f"{copies} {'copy' if copies == 1 else 'copies'}, {workers} worker{'s' * (workers > 1)}": Ours(
            folder, copies, workers
        )
        for workers in sorted({1, arguments.cores})
        for copies in (1, 3)
    }
    if arguments.baseline_python:
        baseline = Baseline(arguments)
        sides |= {TIMM: baseline}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for side in sides.values():
        side.run(2)  # fills the file cache
    for number in range(arguments.rounds):
        for name, side in sides.items():
            rounds[name].append(side.run(arguments.batches))
        cells = [f"{name} {rounds[name][-1]['images_per_second']:.0f}/s" for name in sides]
        print(f"round {number + 1}: " + ", ".join(cells), flush=True)
    report = {"rounds": rounds, "cores": arguments.cores, "processor": processor_name(), "load": os.getloadavg()}
    report["versions"] = versions() | (baseline.close() if arguments.baseline_python else {})
    return report


class Ours:
    """This project's training batches from a folder."""

    def __init__(self, folder: str, copies: int, workers: int) -> None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from configs import default
        from tnt_jax.data.settings import DataSettings

        values = default.get_config().data.to_dict() | {
            "name": "folder",
            "directory": folder,
            "eval_split": "test",
            "repeated_augmentation": copies,
            "worker_processes": workers,
        }
        self.settings = DataSettings(**values)

    def run(self, batches: int) -> dict[str, float]:
        """Opens the pipeline, reads this many batches after the first and closes it -> the figures of the turn."""
        from tnt_jax.data.batches import train_batches

        started, children = time.perf_counter(), processor_time(resource.RUSAGE_CHILDREN)
        iterator = train_batches(self.settings, batch_size=BATCH_SIZE, image_size=(SIDE, SIDE), seed=0, local_devices=1)
        next(iterator)
        first = time.perf_counter() - started
        began, main = time.perf_counter(), time.process_time()
        for _ in range(batches):
            next(iterator)
        seconds, main = time.perf_counter() - began, time.process_time() - main
        held = max(map(resident_megabytes, worker_numbers()), default=0.0)
        iterator.close()
        images = batches * BATCH_SIZE
        return {
            "images_per_second": images / seconds,
            "main_ms": 1000 * main / images,
            "all_ms": 1000 * (main + processor_time(resource.RUSAGE_CHILDREN) - children) / images,
            "first_batch_s": first,
            "worker_mb": held,
        }


class Baseline:
    """timm in its own interpreter, which waits between its turns."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        command = [arguments.baseline_python, __file__, "--as-baseline", "--images", str(arguments.images)]
        self.process = subprocess.Popen(
            [*command, "--cores", str(arguments.cores)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, batches: int) -> dict[str, float]:
        """Opens the loader and reads this many batches after the first -> the figures of the turn."""
        return self.ask(str(batches))

    def close(self) -> dict:
        """Ends the process -> its versions."""
        found = self.ask("versions")
        self.process.stdin.close()
        self.process.wait()
        return found

    def ask(self, question: str) -> dict:
        """Sends a line to the process -> its answer."""
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"timm's process ended (status {self.process.wait()}); its message is above")
        return json.loads(answer)


def serve_timm(arguments: argparse.Namespace) -> None:
    """Runs in timm's process: reads lines with a number of batches, answers each with the turn's figures."""
    import torch

    operators = torch.library.Library("torchvision", "DEF")  # a CPU build of torch may lack them
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import PIL
    import timm

    paths = sorted(path for path in arguments.images.glob("*/*") if path.is_file())
    for line in sys.stdin:
        if line.strip() == "versions":
            found = {"timm": timm.__version__, "torch": torch.__version__, "timm's pillow": PIL.__version__}
            print(json.dumps(found), flush=True)
            continue
        batches = int(line)
        started, processor = time.perf_counter(), sum(map(processor_time, USAGES))
        loader = iter(timm_loader(paths, batches + 1, arguments.cores))
        next(loader)
        first, began = time.perf_counter() - started, time.perf_counter()
        for _ in loader:
            pass
        seconds = time.perf_counter() - began
        del loader  # ends the workers, so that their time is counted
        images = batches * BATCH_SIZE
        turn = {"images_per_second": images / seconds, "first_batch_s": first}
        turn["all_ms"] = 1000 * (sum(map(processor_time, USAGES)) - processor) / images
        print(json.dumps(turn), flush=True)


def timm_loader(paths: list[Path], batches: int, workers: int):
    """Returns timm's create_loader with the recipe of configs/default.py."""
    import timm
    import torch
    from PIL import Image

    class Files(torch.utils.data.Dataset):
        transform = None

        def __len__(self) -> int:
            return batches * BATCH_SIZE

        def __getitem__(self, index: int) -> tuple:
            with open(paths[index % len(paths)], "rb") as file:
                return self.transform(Image.open(file).convert("RGB")), 0

    return timm.data.create_loader(
        Files(),
        (3, SIDE, SIDE),
        BATCH_SIZE,
        is_training=True,
        use_prefetcher=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="random",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        num_workers=workers,
        pin_memory=False,
        persistent_workers=False,
        device=torch.device("cpu"),
    )


def measure_index() -> None:
    """Prints the startup time on TFRecord files with as many records as ImageNet, of 100 bytes each."""
    import struct

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tnt_jax.data import order, tfrecords

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        record, files = struct.pack("<Q", 100) + bytes(4 + 100 + 4), []
        for shard in range(SHARDS):
            count = RECORDS // SHARDS + (shard < RECORDS % SHARDS)
            path = Path(folder) / f"{shard}.tfrecord"
            path.write_bytes(record * count)
            files.append((str(path), count))
        for what in ("first start, which builds the index", "later starts"):
            started = time.perf_counter()
            tfrecords.TFRecordFiles(files).read(SHARDS - 1, 0)
            print(f"{what}: {time.perf_counter() - started:.2f} s", flush=True)
    started = time.perf_counter()
    order.TrainOrder(RECORDS, 1024, 3, 0, 0, 1).local_batch(150 * 1251 + 7)
    print(f"order of an epoch, at any step: {time.perf_counter() - started:.2f} s")


USAGES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def processor_time(who: int) -> float:
    """Returns the processor seconds of this process, or of its children that have ended."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def worker_numbers() -> list[int]:
    """Returns the process ids of the workers."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    children = [int(number) for task in tasks for number in task.read_text().split()]
    return [each for each in children if "spawn_main" in Path(f"/proc/{each}/cmdline").read_text()]


def resident_megabytes(number: int) -> float:
    """Returns a process's private resident memory in units of 2^20 bytes, without shared libraries."""
    fields = Path(f"/proc/{number}/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") / 2**20


def versions() -> dict[str, str]:
    """Returns the versions that the figures of ours depend on."""
    from importlib.metadata import version

    return {"python": platform.python_version()} | {name: version(name) for name in ("pillow", "grain", "numpy")}


def processor_name() -> str:
    """Returns the processor's name as Linux reports it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def summary(report: dict) -> str:
    """Returns a table of the medians, with the median over the rounds of the ratio to timm."""
    rounds = report["rounds"]
    lines = ["| side | images/s | / timm | processor ms an image | of it main process | first batch, s | worker, MB |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, turns in rounds.items():
        middle = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
        ratio = "1"
        if name != TIMM and TIMM in rounds:
            pairs = zip(turns, rounds[TIMM], strict=True)
            ratio = f"{statistics.median(a['images_per_second'] / b['images_per_second'] for a, b in pairs):.2f}"
        cells = [f"{middle['images_per_second']:.0f}", ratio, f"{middle['all_ms']:.2f}"]
        cells += [f"{middle['main_ms']:.3f}" if "main_ms" in middle else "", f"{middle['first_batch_s']:.1f}"]
        cells.append(f"{middle['worker_mb']:.0f}" if "worker_mb" in middle else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    load = ", ".join(f"{value:.1f}" for value in report["load"])
    return "\n".join([*lines, f"{report['cores']} cores of {report['processor']}, load {load}; {report['versions']}"])


if __name__ == "__main__":
    main()
