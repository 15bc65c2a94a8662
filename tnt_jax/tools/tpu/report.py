"""The report of tpu_report: a dict for JSON, and the same as text."""

import dataclasses
from typing import Any

from tnt_jax.tools.tpu.chips import Chip
from tnt_jax.tools.tpu.costs import BASIS, CostEstimate
from tnt_jax.tools.tpu.step import CompiledStep
from tnt_jax.training.config import Config
from tnt_jax.training.monitor import FLOPS_PER_MULTIPLY_ADD, PASSES

STATIC = "static: compiled for the slice, never run on it"
TOP_OPERATIONS = 10
MODEL_KEYS = (  # keys of config.model in the report
    "name",
    "image_size",
    "dtype",
    "scan",
    "remat",
    "remat_policy",
    "inner_implementation",
    "outer_implementation",
)


def describe(
    config: Config, topology: str, chip: Chip, chips: int, step: CompiledStep, costs: CostEstimate | None
) -> dict[str, Any]:
    """Returns all figures of a compiled step (bytes, seconds); without costs, time, parts, top_operations are None."""
    flops = step.multiply_adds_per_image * step.batch_per_chip * FLOPS_PER_MULTIPLY_ADD * PASSES
    found: dict[str, Any] = {
        "figures": STATIC,
        "topology": topology,
        "chips": chips,
        "chip": {
            "name": chip.device_kind,
            "peak_flops": chip.peak,
            "clock_hz": chip.clock,
            "hbm_bytes": chip.hbm_bytes,
            "hbm_bytes_per_second": chip.hbm_bandwidth,
        },
        "model": {key: getattr(config.model, key) for key in MODEL_KEYS} | {"kernel": step.fused},
        "batch_size": config.batch_size,
        "batch_per_chip": step.batch_per_chip,
        "accumulation_steps": config.accumulation_steps,
        "lower_seconds": step.lower_seconds,
        "compile_seconds": step.compile_seconds,
        "memory": None if step.memory is None else dataclasses.asdict(step.memory) | {"total": step.memory.total},
        "fits": step.fits(chip.hbm_bytes),
        "compiler_refusal": step.refusal or None,
        "arithmetic": {"model_flops_per_chip": flops, "seconds_at_peak": flops / chip.peak},
        "time": None,
        "parts": None,
        "top_operations": None,
    }
    if costs is None:
        return found
    seconds, parts = costs.cycles / chip.clock, costs.by_part()
    found["time"] = {
        "basis": BASIS,
        "cycles": costs.cycles,
        "seconds": seconds,
        "kernels_left_out": costs.unknown_kernels,
        "images_per_second": config.batch_size / seconds,
        "utilization": flops / (chip.peak * seconds),
        "loops_counted_once": costs.uncounted_loops,
    }
    found["parts"] = {
        part: {"cycles": cycles, "share": cycles / costs.cycles}
        for part, cycles in sorted(parts.items(), key=lambda item: -item[1])
    }
    found["top_operations"] = [dataclasses.asdict(each) for each in costs.top(TOP_OPERATIONS)]
    return found


def as_text(found: dict[str, Any]) -> str:
    """`describe`'s dict -> lines for a terminal."""
    model, chip = found["model"], found["chip"]
    loops = ["scan"] * model["scan"] + [f"remat ({model['remat_policy']})"] * model["remat"]
    lines = [
        f"{model['name']}, {model['image_size']} pixels, {', '.join([model['dtype'], *loops])}, inner_implementation "
        f"{model['inner_implementation']} ({'with' if model['kernel'] else 'without'} the kernel), "
        f"outer_implementation {model['outer_implementation']}: the training step on {found['topology']}",
        f"{found['chips']} x {chip['name']}, batch {found['batch_size']:,}: {found['batch_per_chip']} images per chip; "
        f"compiled in {found['compile_seconds']:.0f} s. {found['figures'].capitalize()}.",
        "",
        *_memory_lines(found),
    ]
    return "\n".join([*lines, *_time_lines(found)] if found["time"] else lines)


def _memory_lines(found: dict[str, Any]) -> list[str]:
    hbm = found["chip"]["hbm_bytes"]
    verdict = "fits" if found["fits"] else "DOES NOT FIT"
    if found["memory"] is None:
        lines = [f"Memory per chip: {verdict} into {hbm / 2**30:.0f} GiB. The compiler: {found['compiler_refusal']}"]
    else:
        memory = found["memory"]
        rows = {"arguments": 1, "outputs": 1, "temporary": 1, "generated_code": 1, "aliased": -1}
        lines = ["Memory per chip (GB)"]
        lines += [f"  {name.replace('_', ' '):16s} {sign * memory[name] / 1e9:8.3f}" for name, sign in rows.items()]
        share = memory["total"] / hbm
        lines.append(f"  {'total':16s} {memory['total'] / 1e9:8.3f}  {share:.0%} of {hbm / 1e9:.1f}: {verdict}")
    largest = found.get("largest_batch")
    if largest:
        tried = ", ".join(f"{each['batch_per_chip']} {'yes' if each['fits'] else 'no'}" for each in largest["tried"])
        lines.append(f"  largest batch per chip, in steps of {largest['unit']}: {largest['batch_per_chip']} ({tried})")
    return lines


def _time_lines(found: dict[str, Any]) -> list[str]:
    """Returns the lines of the step, its bound, parts and top operations."""
    time, arithmetic = found["time"], found["arithmetic"]
    lines = [
        "",
        f"Step: {1e3 * time['seconds']:.1f} ms ({time['cycles'] / 1e6:.1f}M cycles), "
        f"{time['images_per_second']:,.0f} images/s on the slice, {time['utilization']:.1%} model FLOPs utilisation,",
        f"  by {time['basis']}",
        f"At the peak: {1e3 * arithmetic['seconds_at_peak']:.1f} ms for the model's arithmetic, "
        f"{arithmetic['model_flops_per_chip'] / 1e12:.2f} TFLOP a chip; no step is faster",
    ]
    if time["kernels_left_out"]:
        lines.append(f"  TOO LOW: without {time['kernels_left_out']} Pallas kernels; benchmarks/tpu estimates them")
    if time["loops_counted_once"]:
        lines.append(f"  {len(time['loops_counted_once'])} loops without a constant number of turns are counted once")
    lines += ["", f"{'part':18s} {'M cycles':>9s} {'share':>6s}"]
    for part, each in found["parts"].items():
        lines.append(f"{part:18s} {each['cycles'] / 1e6:9.2f} {each['share']:6.1%}")
    lines += ["", f"{'M cycles':>9s} {'turns':>5s}  {'part':18s} {'operation':34s} {'shape':34s} where"]
    for each in found["top_operations"]:
        lines.append(
            f"{each['cycles'] / 1e6:9.2f} {each['trips']:5d}  {each['part']:18s} {each['name'][:34]:34s} "
            f"{each['shape'][:34]:34s} {each['source'][-60:]}"
        )
    return lines
