"""Images per second and memory of forward passes and training steps on the local device, ours and timm's in PyTorch.

    python -m benchmarks.speed --batch-sizes=16 --train-batch-sizes=8 --threads=2 --output=benchmark.json
    python -m benchmarks.speed --models=tnt_s_patch16_224,deit_small_patch16_224 --batch-sizes=64,128 \
        --dtype=bfloat16 --baseline=timm --baseline-python=PYTHON

For each kind of work (forward, training) and batch size, every model on every side runs in its own process; they take
turns within one run, so that a noisy machine affects them alike (on a TPU, which one process owns, they run one after
the other). The report has the median, minimum and maximum over the turns, and ratios as the median over the rounds.
Compilation and the first steps are not timed. `--config` gives the recipe of the training step and, with
--config.model.KEY=VALUE, settings for all models. PYTHON is an interpreter with torch and timm.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.sides.turns import Worker, WorkerError
from tnt_jax.models.variants import create_model
from tnt_jax.tools import command_line
from tnt_jax.training.config import as_dict, check_config
from tnt_jax.workdir import write_atomically

DEFAULT = str(Path(__file__).parents[1] / "configs/default.py")
OURS, BASELINE = "tnt_jax", "timm"
MODES = ("forward", "train")
OURS_COMMAND = [sys.executable, "-m", "benchmarks.sides.ours"]
BASELINE_FILE = Path(__file__).parent / "sides/baseline.py"
# Several processes share a GPU: each must leave memory for the others.
OURS_ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}
# Settings that change the computation; the baseline only takes image_size, num_classes, depth and drop_path_rate.
ARCHITECTURE = (
    *("patch_size", "word_size", "inner_dim", "outer_dim", "inner_num_heads", "outer_num_heads", "mlp_ratio"),
    *("tnt_blocks", "word_position", "sentence_position", "squeeze_excitation", "qkv_bias"),
    *("sentence_encoding", "layer_scale", "pooling"),
)
NUM_CLASSES = 1000  # if the config leaves it to the data set
PAUSE = 0.3  # seconds between turns, in which spinning threads of the last side go to sleep


def cases(options: argparse.Namespace, config: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The options and a config's plain form -> groups of cases that take turns. Raises ValueError with the fix.

    A case has side, model, mode, batch_size, and what the workers need (sides/ours.py and baseline.py).
    """
    sides = [OURS] + [BASELINE] * has_baseline(options)
    if not options.models:
        raise ValueError("--models is empty: name at least one, such as --models=tnt_s_patch16_224.")
    for mode in options.modes:
        if mode not in MODES:
            raise ValueError(f"--modes={mode}: must be forward, train or both.")
    groups = []
    for mode in options.modes:
        texts = options.train_batch_sizes if mode == "train" and options.train_batch_sizes else options.batch_sizes
        for batch_size in map(positive, texts):
            made = [make_case(options, config, model, mode, batch_size) for model in options.models]
            groups.append([{"side": side} | case for case in made for side in sides])
    return groups


def positive(text: str) -> int:
    """Parses a batch size."""
    if not text.strip().isdigit() or int(text) < 1:
        raise ValueError(f"--batch-sizes={text}: must be whole numbers of images, such as 8,16.")
    return int(text)


def make_case(
    options: argparse.Namespace, config: dict[str, Any], name: str, mode: str, batch_size: int
) -> dict[str, Any]:
    """One model, mode and batch size -> a case without its side. Raises ValueError for an impossible model."""
    num_classes = config["model"]["num_classes"] or NUM_CLASSES
    changes = {"name": name, "num_classes": num_classes} | ({"dtype": options.dtype} if options.dtype else {})
    # No data is read, but check_config rejects more copies of an image than fit in a batch.
    copies = min(config["data"]["repeated_augmentation"], batch_size)
    config = config | {"model": config["model"] | changes, "data": config["data"] | {"repeated_augmentation": copies}}
    config |= {"batch_size": batch_size, "eval_batch_size": batch_size}
    checked = check_config(config)
    model = create_model(**checked.model.arguments())
    unlike = [f"config.model.{key}" for key in ARCHITECTURE if config["model"][key] is not None]
    unlike += ["config.model.in_channels"] * (checked.model.in_channels != 3)
    unlike += ["config.model.image_size"] * (not isinstance(checked.model.image_size, int))
    if unlike and has_baseline(options):
        raise ValueError(f"{', '.join(unlike)}: timm's models keep their own. Leave it out, or give --baseline=none.")
    return {
        "model": name,
        "mode": mode,
        "training": mode == "train",
        "batch_size": batch_size,
        "dtype": checked.model.dtype,
        "config": as_dict(checked),
        "num_classes": num_classes,
        "image_size": checked.model.image_size,
        "depth": model.depth,
        "drop_path_rate": model.drop_path_rate,
        "compile": options.baseline_compile,
        "threads": options.threads,
        "warmup_steps": options.warmup_steps,
        "turn_seconds": options.turn_seconds,
    }


def has_baseline(options: argparse.Namespace) -> bool:
    """Whether to run timm. Raises ValueError if it is requested but not installed."""
    here = all(importlib.util.find_spec(name) for name in ("torch", "timm"))
    if options.baseline == "none":
        return False
    if options.baseline_python and not shutil.which(options.baseline_python):
        raise ValueError(
            f"--baseline-python={options.baseline_python}: there is no such program. Name a Python with torch and timm."
        )
    if options.baseline == "timm" and not here and not options.baseline_python:
        raise ValueError(
            "--baseline=timm: this Python has no torch and timm. Name one that has: --baseline-python=PYTHON."
        )
    return here or bool(options.baseline_python)


def start(case: dict[str, Any], baseline_python: str) -> Worker:
    """Starts a case, timm's with the given interpreter -> its process, which begins to compile."""
    if case["side"] == OURS:
        return Worker(OURS_COMMAND, case, OURS_ENVIRONMENT)
    return Worker([baseline_python, str(BASELINE_FILE)], case)


def measure(group: Sequence[dict[str, Any]], rounds: int, baseline_python: str) -> list[dict[str, Any]]:
    """Cases -> their results, measured in turns; on a TPU one case after the other."""
    contenders, waiting = [], []
    try:
        for case in group:  # they compile one by one, so that the time of a first step is meaningful
            contender = Contender(case, baseline_python)
            contenders.append(contender)
            if contender.facts.get("platform") == "tpu":
                contender.alone(rounds)
            else:
                waiting.append(contender)
        for _ in range(rounds):
            for contender in waiting:
                contender.turn()
        for contender in waiting:
            contender.end()
    finally:
        for contender in contenders:
            contender.worker.close()
    return [contender.result(interleaved=contender in waiting) for contender in contenders]


class Contender:
    """A case, its worker and its results so far."""

    def __init__(self, case: dict[str, Any], baseline_python: str) -> None:
        self.case, self.rates, self.error = case, [], None
        self.name = " ".join(case[key] for key in ("side", "model", "mode", "implementation") if key in case)
        self.memory = {"memory_bytes": None, "memory_basis": "not measured"}
        log(f"{self.name}, batch {case['batch_size']}: compiling")
        self.worker = start(case, baseline_python)
        self.facts = self._guarded(self.worker.ready) or {}

    def turn(self) -> None:
        """One turn, unless the worker has failed."""
        time.sleep(PAUSE)
        seconds = self._guarded(self.worker.turn)
        if seconds is not None:
            self.rates.append(self.facts["steps_a_turn"] * self.case["batch_size"] / seconds)
            log(f"  {self.name}: {self.rates[-1]:,.1f} images/s")

    def end(self) -> None:
        """Reads the memory and ends the worker."""
        self.memory = self._guarded(self.worker.end) or self.memory

    def alone(self, rounds: int) -> None:
        """Runs all turns in a row and ends the worker."""
        try:
            for _ in range(rounds):
                self.turn()
            self.end()
        finally:
            self.worker.close()

    def _guarded(self, act: Any) -> Any:
        """Returns the act's result; None once the worker has failed, whose message is kept."""
        if self.error is not None:
            return None
        try:
            return act()
        except WorkerError as error:
            self.error = str(error)
            log(f"  {self.name}: {error}")
            return None

    def result(self, interleaved: bool) -> dict[str, Any]:
        """Returns one entry of the report's `results`; images_per_second is None after an error."""
        rates = self.rates if self.error is None else []
        speed = None
        if rates:
            speed = {"median": statistics.median(rates), "min": min(rates), "max": max(rates), "turns": rates}
        return {
            **{key: self.case[key] for key in ("side", "model", "mode", "batch_size", "dtype")},
            "images_per_second": speed,
            **self.memory,
            "interleaved": interleaved,
            "error": self.error,
            **self.facts,
        }


def ratios(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of one group -> ours over timm's for each model, and the first model over the others on each side.

    Each is a median over the rounds; failed cases have none.
    """
    fast = {(r["model"], r["side"]): r["images_per_second"]["turns"] for r in results if r["images_per_second"]}
    models = list(dict.fromkeys(result["model"] for result in results))
    pairs = [((model, OURS), (model, BASELINE)) for model in models]
    pairs += [((models[0], side), (model, side)) for side in (OURS, BASELINE) for model in models[1:]]
    return [
        {
            "mode": results[0]["mode"],
            "batch_size": results[0]["batch_size"],
            "of": " ".join(over),
            "to": " ".join(under),
            "ratio": statistics.median(a / b for a, b in zip(fast[over], fast[under], strict=True)),
        }
        for over, under in pairs
        if over in fast and under in fast
    ]


def table(results: Sequence[dict[str, Any]]) -> str:
    """Results -> lines of text with aligned columns."""
    rows = [("mode", "batch", "model", "side", "images/s", "least..most", "memory MB", "first step s")]
    for result in results:
        speed, memory, first = (result.get(k) for k in ("images_per_second", "memory_bytes", "first_step_seconds"))
        rows.append(
            (
                result["mode"],
                str(result["batch_size"]),
                result["model"],
                result["side"],
                f"{speed['median']:.1f}" if speed else "failed",
                f"{speed['min']:.1f}..{speed['max']:.1f}" if speed else "",
                f"{memory / 1e6:,.0f}" if memory else "",
                f"{first:.0f}" if first else "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, 2, 3) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def setting(options: argparse.Namespace, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the setting of the measurement: device, processor, threads, versions."""
    facts = [result for result in results if "platform" in result]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "command": " ".join(["python -m benchmarks.speed", *sys.argv[1:]]),
        "devices": sorted({f"{f['device_count']} x {f['device_kind']} ({f['platform']})" for f in facts}),
        "processor": processor_name(),
        "threads": min(options.threads, cores) if options.threads else cores,
        "rounds": options.rounds,
        "turn_seconds": options.turn_seconds,
        "warmup_steps": options.warmup_steps,
        "versions": {"python": platform.python_version()} | {k: v for f in facts for k, v in f["versions"].items()},
        "training_step": {
            OURS: "the config's whole recipe: normalisation, mixing, erasing, drop path, AdamW, moving average",
            BASELINE: "timm's mixing, erasing, drop path, AdamW and moving average, with the config's numbers",
        },
    }


def processor_name() -> str:
    """Returns the processor's name as Linux reports it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def log(text: str) -> None:
    """Prints progress to standard error, apart from the report."""
    print(text, file=sys.stderr, flush=True)


def listed(text: str) -> list[str]:
    """ "a,b" -> ["a", "b"]."""
    return [each for each in text.split(",") if each]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line -> options."""
    parser = command_line.Parser("speed", __doc__)
    parser.add_config(DEFAULT)
    models = ["tnt_s_patch16_224", "deit_small_patch16_224"]
    parser.add_argument("--models", type=listed, default=models, help="names, separated by commas")
    parser.add_argument("--modes", type=listed, default=list(MODES), help="what is timed: forward, train or both")
    parser.add_argument("--batch-sizes", type=listed, default=["16"], help="images per step, over all devices")
    parser.add_argument("--train-batch-sizes", type=listed, help="the same for training, if different")
    dtype = "of the computation on both sides; default: the config's"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help=dtype)
    baseline = "auto: timm if --baseline-python or this Python has it"
    parser.add_argument("--baseline", choices=("auto", "timm", "none"), default="auto", help=baseline)
    parser.add_argument("--baseline-python", help="interpreter with torch and timm; default: this one")
    compiled = "torch.compile for the baseline; auto: on GPUs"
    parser.add_argument("--baseline-compile", choices=("auto", "yes", "no"), default="auto", help=compiled)
    parser.add_argument("--rounds", type=command_line.at_least(1), default=5, help="turns of each side")
    warmup = "steps before the first turn, besides the one that compiles"
    parser.add_argument("--warmup-steps", type=command_line.at_least(1), default=2, help=warmup)
    seconds = "minimum length of a turn; one step if that is longer"
    parser.add_argument("--turn-seconds", type=command_line.at_least(0, float), default=2.0, help=seconds)
    parser.add_argument(
        "--threads", type=command_line.at_least(0), default=0, help="processor cores for each side (Linux); 0: all"
    )
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    return parser.parse(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and the ratios; writes the JSON after every group if asked for."""
    options = parse(arguments)
    with command_line.one_message("speed"):
        groups = cases(options, as_dict(check_config(command_line.read_config(options))))
    results, quotients = [], []
    for group in groups:
        measured = measure(group, options.rounds, options.baseline_python or sys.executable)
        results += measured
        quotients += ratios(measured)
        if options.output:
            report = setting(options, results) | {"results": results, "ratios": quotients}
            write_atomically(options.output, json.dumps(report, indent=2) + "\n")
    where = setting(options, results)
    print(f"{', '.join(where['devices'])}; {where['processor']}; {where['threads']} threads; {results[0]['dtype']}")
    print(table(results))
    for quotient in quotients:
        print(
            f"{quotient['mode']}, batch {quotient['batch_size']}: {quotient['of']} / {quotient['to']} = "
            f"{quotient['ratio']:.2f}"
        )
    if all(result["error"] for result in results):
        sys.exit(3)


if __name__ == "__main__":
    main()
