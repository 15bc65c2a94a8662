"""The short soak: a run of a real TNT through main.py, killed once in each phase and stopped by both signals."""

import random
import signal

import pytest

from tests.soak import harness
from tests.training.helpers import assert_same_end, assert_same_summary

PLAN = harness.Plan(steps=100)
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def killed(tmp_path, phase, target, number=signal.SIGKILL):
    """Starts the run, or goes on, and ends it in a phase -> (the session, its exit code)."""
    session = harness.Session(PLAN, tmp_path / "killed", tmp_path / "cache", FLAGS)
    session.reach(phase, target, random.Random(0))
    return session, session.kill(number)


def test_killed_in_every_phase_and_stopped_by_both_signals_it_ends_with_the_same_bits(tmp_path):
    whole = harness.Session(PLAN, tmp_path / "whole", None, FLAGS)
    assert whole.end() == 0, "\n".join(whole.lines)
    for phase, target in (("start-up", 0), ("step", 15), ("checkpoint", 20), ("evaluation", 40)):
        for _ in range(3):  # a moment of milliseconds may pass before the signal arrives
            session, code = killed(tmp_path, phase, target)
            assert code == -signal.SIGKILL, "\n".join(session.lines)
            if phase in session.hit():
                break
            target += PLAN.eval_every
        else:
            pytest.fail(f"no kill hit {phase}; the last one hit {session.hit()}")
    for number, code, step in ((signal.SIGTERM, 4, 65), (signal.SIGINT, 130, 75)):
        session, found = killed(tmp_path, "step", step, number)
        assert found == code, "\n".join(session.lines)
        said = "\n".join(session.lines)
        assert f"main.py: {number.name}: stopped after step " in said and "Traceback" not in said
        assert "The same command goes on from there." in said
    last = harness.Session(PLAN, tmp_path / "killed", tmp_path / "cache", FLAGS)
    assert last.end() == 0, "\n".join(last.lines)
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
    assert_same_summary(tmp_path / "killed", tmp_path / "whole")
