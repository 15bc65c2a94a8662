"""Times TNT and DeiT against timm's on a GPU, in one command that fits a short lease.

    python -m benchmarks.gpu --minutes=8
    python -m benchmarks.gpu --minutes=2 --models=tnt_s_patch16_224 --batch-size=8 --train-batch-size=4 --no-baseline

Every case runs in its own process; the cases of a group (one model and kind of work) take turns. Ours are the
implementations of the inner attention ("dot", "broadcast") and of the outer one ("xla", "flash": cuDNN's), and cuDNN's
for both; timm's are eager and compiled. The most informative groups run first; one that would not finish in time is
not started. Tables are printed and the JSON is written after each group, so that an interrupted run leaves its
figures. Needs jax with its CUDA build, flax, optax, ml_collections, absl-py, etils and msgpack (no TensorFlow), and for
the baseline torch and timm in the same Python.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import speed
from tnt_jax.models.cards import model_info
from tnt_jax.models.variants import create_model
from tnt_jax.tools import command_line
from tnt_jax.training.config import as_dict, check_config
from tnt_jax.workdir import write_atomically

MODELS = ["tnt_s_patch16_224", "deit_small_patch16_224", "tnt_ti_patch16_224", "tnt_b_patch16_224"]
# (inner attention, outer attention)
IMPLEMENTATIONS = [("dot", "xla"), ("broadcast", "xla"), ("dot", "flash"), ("broadcast", "flash"), ("cudnn", "flash")]
COMPILED = {"eager": "no", "compiled": "yes"}  # their names in baseline.py


def groups(options: argparse.Namespace, config: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The options and a config's plain form -> groups of cases that take turns, the most informative first.

    A case is one of benchmarks.speed plus an "implementation", such as "dot, flash" or "compiled".
    """
    found = []
    for model in options.models:
        words = bool(create_model(model).config.inner_blocks)
        implementations = [(inner, outer) for inner, outer in IMPLEMENTATIONS if words or inner == "dot"]
        for mode in speed.MODES[::-1]:
            size = options.train_batch_size if mode == "train" else options.batch_size
            cases = []
            for inner, outer in implementations:
                chosen = config["model"] | {"inner_implementation": inner, "outer_implementation": outer}
                case = speed.make_case(options, config | {"model": chosen}, model, mode, size)
                cases.append(case | {"side": speed.OURS, "implementation": f"{inner}, {outer}" if words else outer})
            for name, compiled in COMPILED.items() if options.with_baseline and in_timm(model) else ():
                case = speed.make_case(options, config, model, mode, size)
                cases.append(case | {"side": speed.BASELINE, "implementation": name, "compile": compiled})
            found.append(cases)
    return found


def in_timm(model: str) -> bool:
    """Whether timm has the model: it has those that it publishes weights of, and so no TNT-Ti."""
    return model_info(model).hub_name is not None


def table(results: Sequence[dict[str, Any]]) -> str:
    """Results -> a Markdown table; ratios are to timm's eager mode with the same model and work."""
    eager = {(r["model"], r["mode"]): speed_of(r) for r in results if r["implementation"] == "eager"}
    rows = ["| model | work | batch | implementation | images/s | to timm eager | memory GB |", "|" + " --- |" * 7]
    for result in results:
        rate, base = speed_of(result), eager.get((result["model"], result["mode"]))
        memory = result["memory_bytes"]
        cells = (
            result["model"],
            result["mode"],
            result["batch_size"],
            f"{result['side']} {result['implementation']}",
            f"{rate:,.0f}" if rate else f"failed: {result['error']}",
            f"{rate / base:.2f}" if rate and base else "",
            f"{memory / 1e9:.1f}" if memory else "",
        )
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def speed_of(result: dict[str, Any]) -> float | None:
    """-> images per second, the median over its turns; None if it failed."""
    return result["images_per_second"]["median"] if result["images_per_second"] else None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line -> options, with those that the cases of benchmarks.speed read."""
    parser = command_line.Parser("gpu", __doc__)
    parser.add_config(speed.DEFAULT)
    parser.add_argument(
        "--minutes", type=command_line.at_least(0, float), default=8.0, help="start no group that would end later"
    )
    parser.add_argument("--models", type=speed.listed, default=MODELS, help="names, separated by commas")
    parser.add_argument("--batch-size", type=command_line.at_least(1), default=256, help="images per forward pass")
    parser.add_argument("--train-batch-size", type=command_line.at_least(1), default=128, help="images per step")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the computation")
    parser.add_argument("--no-baseline", action="store_true", help="without timm")
    parser.add_argument("--rounds", type=command_line.at_least(1), default=3, help="turns of each case")
    parser.add_argument("--turn-seconds", type=command_line.at_least(0, float), default=1.0, help="minimum turn length")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="JSON file (default gpu.json)")
    options = parser.parse(arguments)
    options.with_baseline = not options.no_baseline
    options.baseline = "timm" if options.with_baseline else "none"
    options.baseline_python, options.baseline_compile = None, "no"
    options.threads, options.warmup_steps = 0, 3
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table after each group, and writes the JSON."""
    start, options = time.monotonic(), parse(arguments)
    with command_line.one_message("gpu"):
        if options.with_baseline and not all(map(importlib.util.find_spec, ("torch", "timm"))):
            raise ValueError("this Python has no torch and timm: install them, or give --no-baseline.")
        todo = groups(options, as_dict(check_config(command_line.read_config(options))))
        if options.with_baseline and (without := [name for name in options.models if not in_timm(name)]):
            print(f"timm has no {', '.join(without)}: ours alone.", flush=True)
    results, longest = [], 0.0
    for number, cases in enumerate(todo):
        begun = time.monotonic()
        if begun - start + longest > 60 * options.minutes:
            left = ", ".join(f"{each[0]['model']} {each[0]['mode']}" for each in todo[number:])
            print(f"Not started for lack of time: {left}.", flush=True)
            break
        measured = speed.measure(cases, options.rounds, sys.executable)
        results += [
            each | {"implementation": case["implementation"]} for each, case in zip(measured, cases, strict=True)
        ]
        longest = max(longest, time.monotonic() - begun)
        print(table(results[-len(cases) :]), flush=True)
        report = speed.setting(options, results) | {"results": results}
        report["command"] = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
        write_atomically(options.output, json.dumps(report, indent=2) + "\n")
    if not any(map(speed_of, results)):
        sys.exit(3)


if __name__ == "__main__":
    main()
