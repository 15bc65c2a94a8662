"""Images a second and memory of forward passes and training steps on the device at hand, beside timm's in PyTorch.

    python -m benchmarks.speed --batch-sizes=16 --train-batch-sizes=8 --threads=2 --output=benchmark.json
    python -m benchmarks.speed --models=tnt_s_patch16_224,deit_small_patch16_224 --batch-sizes=64,128 \
        --dtype=bfloat16 --peer=timm --peer-python=PYTHON

For each kind of work (forward, training) and batch size, every model on every side runs in a process of its own; they
take turns within one run, so that a noisy machine disturbs them alike (on a TPU, which belongs to one process, they run
one after the other). Stated are the median, the least and the greatest of the turns, and ratios as the median over
the rounds. Compilation and the first steps are not timed. `--config` gives the recipe of the training step and, with
--config.model.KEY=VALUE, settings for all models. PYTHON is an interpreter with torch and timm.
"""

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

from absl import flags
from ml_collections import config_flags

from benchmarks.sides.turns import Worker, WorkerError
from tnt_jax.tools import arguments as command_line
from tnt_jax.tools import be_quiet

DEFAULT = str(Path(__file__).parents[1] / "configs/default.py")
CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, and settings for all models; configs/default.py.")
flags.DEFINE_list("models", ["tnt_s_patch16_224", "deit_small_patch16_224"], "Names; timm's of the same name.")
flags.DEFINE_list("modes", ["forward", "train"], "What is timed: forward, train or both.")
flags.DEFINE_list("batch_sizes", ["16"], "Images a step, over all devices of the machine.")
flags.DEFINE_list("train_batch_sizes", None, "The same for training, where it differs.")
flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of the arithmetic on both sides; the config's unless given.")
flags.DEFINE_enum("peer", "auto", ["auto", "timm", "none"], "auto: timm where --peer-python or this Python has it.")
flags.DEFINE_string("peer_python", None, "Interpreter with torch and timm; this one unless given.")
flags.DEFINE_enum("peer_compile", "auto", ["auto", "yes", "no"], "torch.compile for the peer; auto: on GPUs.")
flags.DEFINE_integer("rounds", 5, "Turns of each side.", lower_bound=1)
flags.DEFINE_integer("warmup_steps", 2, "Steps before the first turn, beside the one that compiles.", lower_bound=1)
flags.DEFINE_float("turn_seconds", 2.0, "How long a turn is, at least; one step if that is longer.", lower_bound=0)
flags.DEFINE_integer("threads", 0, "Processor cores for each side (Linux); 0: all.", lower_bound=0)
flags.DEFINE_string("output", None, "File for the figures as JSON.")

FLAGS = flags.FLAGS
OURS, PEER = "tnt_jax", "timm"
MODES = ("forward", "train")
OURS_COMMAND = [sys.executable, "-m", "benchmarks.sides.ours"]
PEER_FILE = Path(__file__).parent / "sides/peer.py"
# Several processes share a GPU: each must leave the others room.
OURS_ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}
# Settings that change what is computed; the peer takes image_size, num_classes, depth and drop_path_rate over.
ARCHITECTURE = (
    *("patch_size", "word_size", "inner_dim", "outer_dim", "inner_num_heads", "outer_num_heads", "mlp_ratio"),
    *("tnt_blocks", "word_position", "sentence_position", "squeeze_excitation", "qkv_bias"),
)
NUM_CLASSES = 1000  # where the config leaves it to the data set
PAUSE = 0.3  # seconds between turns: threads of the last side that spin for work go to sleep


def cases(config: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The flags and a config's plain form -> groups of cases that take turns. Raises ValueError with the fix.

    A case: side, model, mode, batch_size, and what the workers need (sides/ours.py and peer.py).
    """
    sides = [OURS] + [PEER] * has_peer()
    if not FLAGS.models:
        raise ValueError("--models is empty: name one at least, such as --models=tnt_s_patch16_224.")
    for mode in FLAGS.modes:
        if mode not in MODES:
            raise ValueError(f"--modes={mode}: must be forward, train or both.")
    groups = []
    for mode in FLAGS.modes:
        texts = FLAGS.train_batch_sizes if mode == "train" and FLAGS.train_batch_sizes else FLAGS.batch_sizes
        for batch_size in map(positive, texts):
            made = [make_case(config, model, mode, batch_size) for model in FLAGS.models]
            groups.append([{"side": side} | case for case in made for side in sides])
    return groups


def positive(text: str) -> int:
    """A batch size as text -> its number."""
    if not text.strip().isdigit() or int(text) < 1:
        raise ValueError(f"--batch-sizes={text}: must be whole numbers of images, such as 8,16.")
    return int(text)


def make_case(config: dict[str, Any], name: str, mode: str, batch_size: int) -> dict[str, Any]:
    """One model, mode and batch size -> a case without its side. Raises ValueError for a model that cannot be."""
    from tnt_jax.models.variants import create_model
    from tnt_jax.training.config import as_dict, check_config

    num_classes = config["model"]["num_classes"] or NUM_CLASSES
    changes = {"name": name, "num_classes": num_classes} | ({"dtype": FLAGS.dtype} if FLAGS.dtype else {})
    # No data is read, but more copies of an image than a batch holds would be refused.
    copies = min(config["data"]["repeated_augmentation"], batch_size)
    config = config | {"model": config["model"] | changes, "data": config["data"] | {"repeated_augmentation": copies}}
    config |= {"batch_size": batch_size, "eval_batch_size": batch_size}
    experiment = check_config(config)
    model = create_model(**experiment.model.arguments())
    unlike = [f"config.model.{key}" for key in ARCHITECTURE if config["model"][key] is not None]
    if unlike and has_peer():
        raise ValueError(f"{', '.join(unlike)}: timm's models keep their own. Leave it out, or give --peer=none.")
    return {
        "model": name,
        "mode": mode,
        "training": mode == "train",
        "batch_size": batch_size,
        "dtype": experiment.model.dtype,
        "config": as_dict(experiment),
        "num_classes": num_classes,
        "image_size": experiment.model.image_size,
        "depth": model.depth,
        "drop_path_rate": model.drop_path_rate,
        "compile": FLAGS.peer_compile,
        "threads": FLAGS.threads,
        "warmup_steps": FLAGS.warmup_steps,
        "turn_seconds": FLAGS.turn_seconds,
    }


def has_peer() -> bool:
    """Whether timm is to run. Raises ValueError where it is asked for and not there."""
    here = all(importlib.util.find_spec(name) for name in ("torch", "timm"))
    if FLAGS.peer == "none":
        return False
    if FLAGS.peer_python and not shutil.which(FLAGS.peer_python):
        raise ValueError(
            f"--peer-python={FLAGS.peer_python}: there is no such program. Name a Python with torch and timm."
        )
    if FLAGS.peer == "timm" and not here and not FLAGS.peer_python:
        raise ValueError("--peer=timm: this Python has no torch and timm. Name one that has: --peer-python=PYTHON.")
    return here or bool(FLAGS.peer_python)


def start(case: dict[str, Any]) -> Worker:
    """A case -> the process that runs it, compiling already."""
    if case["side"] == OURS:
        return Worker(OURS_COMMAND, case, OURS_ENVIRONMENT)
    return Worker([FLAGS.peer_python or sys.executable, str(PEER_FILE)], case)


def measure(group: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cases -> their results, measured in turns; those on a TPU each alone, before the next one starts."""
    entrants, waiting = [], []
    try:
        for case in group:  # one compiles after the other, so that the seconds of a first step mean something
            entrant = Entrant(case)
            entrants.append(entrant)
            if entrant.facts.get("platform") == "tpu":
                entrant.alone()
            else:
                waiting.append(entrant)
        for _ in range(FLAGS.rounds):
            for entrant in waiting:
                entrant.turn()
        for entrant in waiting:
            entrant.end()
    finally:
        for entrant in entrants:
            entrant.worker.close()
    return [entrant.result(interleaved=entrant in waiting) for entrant in entrants]


class Entrant:
    """A case, its worker and what came of it so far."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case, self.rates, self.error = case, [], None
        self.memory = {"memory_bytes": None, "memory_basis": "not measured"}
        say(f"{case['side']}: {case['model']}, {case['mode']}, batch {case['batch_size']}: compiling")
        self.worker = start(case)
        self.facts = self._guarded(self.worker.ready) or {}

    def turn(self) -> None:
        """One turn, unless the worker has failed."""
        time.sleep(PAUSE)
        seconds = self._guarded(self.worker.turn)
        if seconds is not None:
            self.rates.append(self.facts["steps_a_turn"] * self.case["batch_size"] / seconds)

    def end(self) -> None:
        """Asks for the memory; the worker is gone afterwards."""
        self.memory = self._guarded(self.worker.end) or self.memory

    def alone(self) -> "Entrant":
        """All turns on end."""
        try:
            for _ in range(FLAGS.rounds):
                self.turn()
            self.end()
        finally:
            self.worker.close()
        return self

    def _guarded(self, act: Any) -> Any:
        """The act's answer; None once the worker has failed, with its message kept."""
        if self.error is not None:
            return None
        try:
            return act()
        except WorkerError as error:
            self.error = str(error)
            say(f"  {self.case['side']} {self.case['model']}: {error}")
            return None

    def result(self, interleaved: bool) -> dict[str, Any]:
        """-> one entry of the report's `results`; images_per_second is None where there is an error."""
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

    Each a median over the rounds; there is none for a case that failed.
    """
    fast = {(r["model"], r["side"]): r["images_per_second"]["turns"] for r in results if r["images_per_second"]}
    models = list(dict.fromkeys(result["model"] for result in results))
    pairs = [((model, OURS), (model, PEER)) for model in models]
    pairs += [((models[0], side), (model, side)) for side in (OURS, PEER) for model in models[1:]]
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


def setting(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Where and with what: device, processor, threads, versions."""
    facts = [result for result in results if "platform" in result]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "command": " ".join(["python -m benchmarks.speed", *sys.argv[1:]]),
        "devices": sorted({f"{f['device_count']} x {f['device_kind']} ({f['platform']})" for f in facts}),
        "processor": processor_name(),
        "threads": min(FLAGS.threads, cores) if FLAGS.threads else cores,
        "rounds": FLAGS.rounds,
        "turn_seconds": FLAGS.turn_seconds,
        "warmup_steps": FLAGS.warmup_steps,
        "versions": {"python": platform.python_version()} | {k: v for f in facts for k, v in f["versions"].items()},
        "training_step": {
            OURS: "the whole recipe of the config: normalising, mixing, erasing, drop path, AdamW, moving average",
            PEER: "soft targets, drop path, AdamW; no mixing, no moving average",
        },
    }


def processor_name() -> str:
    """The processor's name as Linux gives it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def say(text: str) -> None:
    """Progress, beside the report."""
    print(text, file=sys.stderr, flush=True)


def main(_: Sequence[str]) -> None:
    """Prints the table and the ratios; writes the JSON, after every group, where asked for."""
    from tnt_jax.training.config import as_dict, check_config

    be_quiet()
    try:
        groups = cases(as_dict(check_config(CONFIG.value)))
    except ValueError as error:
        command_line.stop(error, "speed")
    results, quotients = [], []
    for group in groups:
        measured = measure(group)
        results += measured
        quotients += ratios(measured)
        if FLAGS.output:
            report = setting(results) | {"results": results, "ratios": quotients}
            Path(FLAGS.output).write_text(json.dumps(report, indent=2) + "\n")
    where = setting(results)
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
    command_line.run(main, "speed", config=DEFAULT)
