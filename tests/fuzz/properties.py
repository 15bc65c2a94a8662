"""The two properties, each as a function of how many examples it takes and of the seed (None: always the same ones)."""

import collections
import pathlib

import jax
from hypothesis import HealthCheck, Phase, assume, given, seed, settings

from tests.fuzz import harness, values

MOST_COMPILED = 20
WORKDIR = pathlib.Path("run")


def check_refusals(examples: int, number: int | None = None) -> collections.Counter[str]:
    """Values of any type for any key are accepted, or refused in the program's own words -> how many of each."""
    found: collections.Counter[str] = collections.Counter()

    def refuses(drawn: tuple[str, values.Changes]) -> None:
        base, changes = drawn
        assume(not harness.writes_elsewhere(harness.changed(base, changes)))
        run = harness.prepare(base, changes, WORKDIR.absolute())
        found["accepted" if run else "refused"] += 1

    _given(refuses, wrong_types=True, examples=examples, number=number)
    return found


def check_training(examples: int, number: int | None = None, verbose: bool = False) -> collections.Counter[str]:
    """What is accepted trains one step, or says that the step is not finite -> how many of each."""
    found: collections.Counter[str] = collections.Counter()

    def trains(drawn: tuple[str, values.Changes]) -> None:
        base, changes = drawn
        assume(not harness.writes_elsewhere(harness.changed(base, changes)))
        run = harness.prepare(base, changes, WORKDIR.absolute())
        found["refused"] += run is None
        assume(run is not None)
        if verbose:
            print(f"{base}, {changes}", flush=True)
        summary = harness.train(run, f"{base}, {changes}")
        found["trained" if summary else "not finite"] += 1
        if (found["trained"] + found["not finite"]) % MOST_COMPILED == 0:
            jax.clear_caches()  # the programs of some fifty configs are more than Linux lets a process map

    _given(trains, wrong_types=False, examples=examples, number=number)
    return found


def _given(check, wrong_types: bool, examples: int, number: int | None) -> None:
    options = settings(
        max_examples=examples,
        derandomize=number is None,
        deadline=None,
        database=None,
        # A run that trains takes seconds: what is found is not made smaller, it has three keys at most.
        phases=(Phase.explicit, Phase.generate) if not wrong_types else tuple(Phase),
        suppress_health_check=list(HealthCheck),
    )
    check = options(given(values.changes(wrong_types))(check))
    (seed(number)(check) if number is not None else check)()
