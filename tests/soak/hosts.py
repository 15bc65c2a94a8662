"""Processes of main.py on this machine stand in for hosts: python -m tests.soak.hosts (part of make soak).

Two and four processes (connected by gloo, eight virtual devices in all) have the losses of one process with as many
devices over 30 steps. If one of them is killed (kill -9) midway and all are restarted, the run ends with the same bits.
"""

import dataclasses
import json
import pathlib
import shutil
import socket
import tempfile
import time

import numpy as np

from tests.soak import harness

DEVICES = 8  # over all processes
HEARTBEAT_TIMEOUT = 100  # seconds; a busy machine may stall all processes for a while
GONE = (3, -6)  # exit codes of the remaining processes: main.py's own, or jax's SIGABRT
WORDS = ("another process has ended or cannot be reached", "another task died")  # main.py's, or jax's


@dataclasses.dataclass(frozen=True)
class HostPlan(harness.Plan):
    """One of `hosts` processes. Images are not repeated: with copies, the mixed pairs would depend on the processes."""

    steps: int = 30
    eval_every: int = 15
    examples: int = 72  # makes the last evaluation batch ragged
    hosts: int = 1
    index: int = 0
    port: int = 0

    def flags(self, workdir: pathlib.Path) -> list[str]:
        keys = {"cpu_devices": DEVICES // self.hosts, "data.repeated_augmentation": 1, "epochs": 20.0}
        if self.hosts > 1:
            keys |= {
                "distributed.enabled": True,
                "distributed.coordinator_address": f"localhost:{self.port}",
                "distributed.num_processes": self.hosts,
                "distributed.process_id": self.index,
                "distributed.heartbeat_timeout_seconds": HEARTBEAT_TIMEOUT,
            }
        return [*super().flags(workdir), *(f"--config.{key}={value}" for key, value in keys.items())]


def start(hosts: int, workdir: pathlib.Path, cache: pathlib.Path | None, xla_flags: str = "") -> list[harness.Session]:
    """Starts all processes of a run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    plans = [HostPlan(hosts=hosts, index=index, port=port) for index in range(hosts)]
    return [harness.Session(plan, workdir, cache, xla_flags) for plan in plans]


def said(session: harness.Session) -> str:
    """Returns everything that a process has printed."""
    return "\n".join(session.lines)


def finish(sessions: list[harness.Session]) -> None:
    """Waits for all processes to end; raises RuntimeError with the output of one that fails."""
    for session in sessions:
        if code := session.end():
            raise RuntimeError(f"exit code {code}:\n{said(session)}")


def kill_one(sessions: list[harness.Session], victim: int) -> float:
    """Kills a process after step 15 -> seconds until the last of the others has ended, each with a message."""
    if not sessions[0].wait_for(r"^step 15/"):
        raise RuntimeError(said(sessions[0]))
    sessions[victim].process.kill()
    started = time.monotonic()
    for index, session in enumerate(sessions):
        code = session.end()
        if index != victim and (code not in GONE or not any(words in said(session) for words in WORDS)):
            raise RuntimeError(f"process {index} ended with {code}:\n{said(session)}")
    return time.monotonic() - started


def assert_losses_agree(workdir: pathlib.Path, other: pathlib.Path) -> None:
    """Checks that losses agree, up to the rounding of sums in another order, and that every example is counted."""
    ours, others = ([json.loads(line) for line in (folder / "metrics.jsonl").open()] for folder in (workdir, other))
    if [line["step"] for line in ours] != [line["step"] for line in others]:
        raise AssertionError(f"different lines: {ours} {others}")
    compared = ("train/loss", "train/gradient_norm", "eval/loss", "eval_ema/loss")
    for one, two in zip(ours, others, strict=True):
        for name in set(compared) & one.keys():
            np.testing.assert_allclose(one[name], two[name], rtol=2e-4, err_msg=f"{name} at step {one['step']}")
    for folder in (workdir, other):
        summary = json.loads((folder / "summary.json").read_text())
        if summary["eval"]["count"] != HostPlan.examples:
            raise AssertionError(f"{folder} counted {summary['eval']['count']} examples")


def main() -> None:
    """Prints what was compared, and how long the other processes lived after a kill."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tnt_jax_hosts_"))
    finish(start(1, folder / "1", None))
    from tests.training.helpers import assert_same_end, assert_same_summary  # takes seconds, and imports jax

    for hosts in (2, 4):
        whole, killed = folder / f"{hosts}", folder / f"{hosts}_killed"
        finish(start(hosts, whole, None))
        assert_losses_agree(whole, folder / "1")
        print(f"{hosts} processes: the losses of one process", flush=True)
        for victim in (hosts - 1, 0):
            shutil.rmtree(killed, ignore_errors=True)
            # Without a cache, which only the first process writes: gloo lets no process be 30 s ahead of the others.
            seconds = kill_one(start(hosts, killed, None), victim)
            finish(start(hosts, killed, None))
            assert_same_end(killed, whole)
            assert_same_summary(killed, whole)
            print(
                f"process {victim} of {hosts} killed: the others ended after {seconds:.1f} s; the same end", flush=True
            )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
