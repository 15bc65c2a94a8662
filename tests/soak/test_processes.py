"""Processes that are asked to stop agree on a step and save it; one with other devices resumes with a note."""

import re
import signal
import socket

from tests.soak import harness
from tests.soak.test_short import FLAGS
from tnt_jax import workdir as workdirs

PLAN = harness.Plan(steps=400, log_every=1, checkpoint_every=1000, eval_every=1000)


def start(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    group = [
        "--config.cpu_devices=1",
        "--config.distributed.enabled=True",
        f"--config.distributed.coordinator_address=localhost:{port}",
        "--config.distributed.num_processes=2",
    ]
    return [
        harness.Session(
            PLAN, tmp_path / "run", tmp_path / "cache", FLAGS, (*group, f"--config.distributed.process_id={number}")
        )
        for number in range(2)
    ]


def stopped_step(session):
    said = "\n".join(session.lines)
    found = re.search(r"main\.py: \w+: stopped after step (\d+)", said)
    assert found and "Traceback" not in said, said
    return int(found[1])


def test_one_of_two_processes_is_asked_to_end_and_both_save_the_same_step(tmp_path):
    """Uses SIGINT, which is passed on to jax's preemption service as the SIGTERM that a machine would get."""
    first, second = sessions = start(tmp_path)
    assert first.wait_for(r"^step 5/"), "\n".join(first.lines + second.lines)
    second.process.send_signal(signal.SIGINT)
    codes = [session.end() for session in sessions]
    steps = [stopped_step(session) for session in sessions]
    assert codes == [4, 130]
    assert steps[0] == steps[1] < PLAN.steps
    assert workdirs.checkpoint_steps(tmp_path / "run") == [steps[0]]

    alone = harness.Session(PLAN, tmp_path / "run", tmp_path / "cache", FLAGS, ("--config.cpu_devices=4",))
    assert alone.wait_for(rf"^step {steps[0] + 5}/"), "\n".join(alone.lines)
    alone.kill()
    said = "\n".join(alone.lines)
    assert f"Resuming from step {steps[0]}" in said
    assert "Note: 2 x cpu in 2 processes then, 4 x cpu in 1 process now. " in said
