"""The short soak: a run of a real TNT through main.py, killed once in each phase and stopped by SIGTERM."""

import random
import signal

import pytest

from tests.soak import harness
from tests.training.helpers import assert_same_end, assert_same_summary

PLAN = harness.Plan(steps=200)
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# Kills aim at this many steps after an evaluation: far from the next one, which is another phase.
BEHIND = {"start-up": 0, "step": 5, "checkpoint": 10, "evaluation": 0}
ATTEMPTS = 5  # a phase of milliseconds may end before the signal arrives


class Killed:
    """A run that is started again and again, and ended a little later each time."""

    def __init__(self, tmp_path):
        self.tmp_path, self.reached, self.draw = tmp_path, 0, random.Random(0)

    def start(self):
        return harness.Session(PLAN, self.tmp_path / "killed", self.tmp_path / "cache", FLAGS)

    def end_in(self, phase, number=signal.SIGKILL):
        """Starts or resumes the run, and ends it in a phase -> (the session, its exit code)."""
        ahead = (BEHIND[phase] - self.reached - 1) % PLAN.eval_every + 1
        session = self.start()
        session.reach(phase, self.reached + ahead, self.draw)
        code = session.kill(number)
        self.reached = max(self.reached, session.last_step())
        return session, code


def test_killed_in_every_phase_and_stopped_by_a_signal_it_ends_with_the_same_bits(tmp_path):
    whole = harness.Session(PLAN, tmp_path / "whole", None, FLAGS)
    assert whole.end() == 0, "\n".join(whole.lines)
    run = Killed(tmp_path)
    for phase in BEHIND:
        for _ in range(ATTEMPTS):
            session, code = run.end_in(phase)
            assert code == -signal.SIGKILL, "\n".join(session.lines)
            if phase in session.hit():
                break
        else:
            pytest.fail(f"no kill hit {phase}; the last one hit {session.hit()}")
    session, found = run.end_in("step", signal.SIGTERM)  # for SIGINT see test_processes.py
    said = "\n".join(session.lines)
    assert found == 4, said
    assert "main.py: SIGTERM: stopped after step " in said and "Traceback" not in said
    assert "The same command resumes from there." in said
    last = run.start()
    assert last.end() == 0, "\n".join(last.lines)
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
    assert_same_summary(tmp_path / "killed", tmp_path / "whole")
