"""The two properties, each a function of the number of examples and the seed (None means the same ones each time)."""

import collections
import pathlib

import jax
from hypothesis import HealthCheck, Phase, assume, given, seed, settings

from tests.fuzz import harness, values

MOST_COMPILED = 20
WORKDIR = pathlib.Path("run")


def check_refusals(examples: int, number: int | None = None) -> collections.Counter[str]:
    """Checks that any value for any key is accepted, or refused by the program's own message -> how many of each."""
    found: collections.Counter[str] = collections.Counter()

    def refuses(drawn: tuple[str, values.Changes]) -> None:
        base, changes = drawn
        assume(not harness.writes_elsewhere(harness.changed(base, changes)))
        run = harness.prepare(base, changes, WORKDIR.absolute())
        found["accepted" if run else "refused"] += 1

    _given(refuses, wrong_types=True, examples=examples, number=number)
    return found


def check_training(examples: int, number: int | None = None, verbose: bool = False) -> collections.Counter[str]:
    """Checks that accepted configs train a step, or report that it is not finite -> how many of each."""
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
            jax.clear_caches()  # the programs of some fifty configs exceed the mappings Linux allows a process

    _given(trains, wrong_types=False, examples=examples, number=number)
    return found


def _given(check, wrong_types: bool, examples: int, number: int | None) -> None:
    options = settings(
        max_examples=examples,
        derandomize=number is None,
        deadline=None,
        database=None,
        # A training run takes seconds: failures are not shrunk; they have three keys at most.
        phases=(Phase.explicit, Phase.generate) if not wrong_types else tuple(Phase),
        suppress_health_check=list(HealthCheck),
    )
    check = options(given(values.changes(wrong_types))(check))
    (seed(number)(check) if number is not None else check)()
