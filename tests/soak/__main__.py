"""The long soak: python -m tests.soak --kills=20 --seed=0 (or make soak). Takes minutes on an idle machine.

One run of a tiny TNT is killed (kill -9) at random moments of its start-up, steps, evaluations and checkpoint writes
and restarted by the same command until it finishes. Then everything is compared with an undisturbed run: every array
of the state, the metadata, the checkpoints kept, metrics.jsonl, TensorBoard's points, summary.json.
"""

import argparse
import collections
import pathlib
import random
import shutil
import tempfile
import time

from tests.soak import harness


def main() -> None:
    """Prints each kill, and at the end which phases were hit; fails unless both runs end the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="seed of the kill times")
    arguments = parser.parse_args()
    started = time.monotonic()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tnt_jax_soak_"))
    draw = random.Random(arguments.seed)
    plan = harness.Plan(steps=30 * arguments.kills)
    whole = run_undisturbed(plan, folder)
    found = run_killed(plan, folder, arguments.kills, draw)
    from tests.training.helpers import assert_same_end, assert_same_summary  # takes seconds, and imports jax

    assert_same_end(folder / "killed", whole)
    assert_same_summary(folder / "killed", whole)
    hits = ", ".join(f"{count} in {phase}" for phase, count in sorted(found.items()))
    print(f"{arguments.kills} kills ({hits}); the end is the same, bit for bit. {time.monotonic() - started:.0f} s")
    shutil.rmtree(folder)


def run_undisturbed(plan: harness.Plan, folder: pathlib.Path) -> pathlib.Path:
    """Runs from start to end without the compilation cache that the killed run uses -> the workdir."""
    session = harness.Session(plan, folder / "whole", cache=None)
    code = session.end()
    if code:
        raise SystemExit("\n".join(session.lines))
    print(f"undisturbed: {plan.steps} steps in {time.monotonic() - session.started:.0f} s", flush=True)
    return folder / "whole"


def run_killed(plan: harness.Plan, folder: pathlib.Path, kills: int, draw: random.Random) -> collections.Counter[str]:
    """Kills a run `kills` times and lets it finish -> how often each phase was hit."""
    found: collections.Counter[str] = collections.Counter()
    last = 0  # last step logged before a kill
    for left in range(kills, 0, -1):
        phase = draw.choice(harness.PHASES)
        target = last + draw.randint(1, max(1, (plan.steps - 2 * plan.eval_every - last) // left))
        session = harness.Session(plan, folder / "killed", cache=folder / "cache")
        session.reach(phase, target, draw)
        code = session.kill()
        if code != -9:
            raise SystemExit("\n".join(session.lines))
        found.update(session.hit())
        last = max(last, session.last_step())
        print(
            f"killed in {' and '.join(session.hit())} (aimed at {phase}) after step {session.last_step()}", flush=True
        )
    session = harness.Session(plan, folder / "killed", cache=folder / "cache")
    if session.end():
        raise SystemExit("\n".join(session.lines))
    return found


if __name__ == "__main__":
    main()
