"""Searches for the largest batch that fits a chip."""

from collections.abc import Callable

from tnt_jax.tools.tpu.step import CompiledStep


def largest_batch(
    first: CompiledStep, compile_with: Callable[[int], CompiledStep], hbm_bytes: int, unit: int
) -> tuple[int, list[dict[str, int | bool | None]]]:
    """Returns (images per chip: a multiple of `unit`, or 0 if not even one unit fits; what was tried, in order).

    Bisection. Each compilation takes minutes, so the first bounds are guessed: a step's memory grows almost in
    proportion to its batch. A compilation that runs out of memory does not fit.
    """
    tried: dict[int, CompiledStep] = {first.batch_per_chip: first}
    fits, fails = 0, None
    latest = first
    while True:
        if latest.fits(hbm_bytes):
            fits = latest.batch_per_chip // unit * unit
        else:
            fails = -(-latest.batch_per_chip // unit) * unit
        if fails is not None and fails - fits <= unit:
            break
        batch = _next(latest, fits, fails, hbm_bytes, unit)
        latest = tried[batch] = compile_with(batch)
    return fits, [
        {
            "batch_per_chip": batch,
            "fits": step.fits(hbm_bytes),
            "bytes": None if step.memory is None else step.memory.total,
        }
        for batch, step in tried.items()
    ]


def _next(latest: CompiledStep, fits: int, fails: int | None, hbm_bytes: int, unit: int) -> int:
    """Returns the next batch to try: linear extrapolation to the memory limit, or bisection once there are bounds."""
    low, high = fits + unit, None if fails is None else fails - unit
    if latest.memory is None or high is not None and fits:
        guess = (low + (fails if fails is not None else 2 * low)) // 2
    else:
        fixed = latest.memory.total - latest.memory.temporary
        guess = int((hbm_bytes - fixed) / max(latest.memory.temporary / latest.batch_per_chip, 1))
    guess = max(guess // unit * unit, low)
    return guess if high is None else min(guess, high)
