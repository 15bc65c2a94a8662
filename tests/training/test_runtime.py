"""Joining other processes with a bounded wait; and one process per workdir, which any death frees."""

import errno
import fcntl
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.training.helpers import checked_config, tiny_config
from tnt_jax.training import runtime
from tnt_jax.training.runtime import CannotStart

ROOT = pathlib.Path(__file__).parents[2]
JOIN = """
from configs import default
from tnt_jax.training import config, runtime
wanted = default.get_config()
wanted.distributed.enabled = True
wanted.distributed.initialization_timeout_seconds = 60
runtime.join_processes(config.check_config(wanted))
import jax
print(jax.process_index(), jax.process_count())
"""


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start_main(mode, seconds, process=0):
    """Starts main.py as one of two processes; the other never joins."""
    command = [sys.executable, "main.py", "--config=configs/digits.py", f"--mode={mode}", "--workdir=/nowhere/at/all"]
    group = {
        "enabled": True,
        "coordinator_address": f"localhost:{free_port()}",
        "num_processes": 2,
        "process_id": process,
        "initialization_timeout_seconds": seconds,
    }
    command += [f"--config.distributed.{key}={value}" for key, value in group.items()]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE)


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_never_comes_is_said_with_the_keys(process):
    session = start_main("train", seconds=2, process=process)
    _, said = session.communicate(timeout=120)
    assert session.returncode == 2, said
    assert "not all of them joined within 2 s (initialization_timeout_seconds)" in said
    assert "config.distributed.coordinator_address" in said
    assert "Traceback" not in said and "Check failure" not in said


def test_the_wait_for_others_ends_by_sigterm():
    session = start_main("train", seconds=100)
    address = ("localhost", int(session.args[-4].rpartition(":")[2]))
    for _ in range(600):  # until the first process listens for the other
        with socket.socket() as probe:
            if probe.connect_ex(address) == 0:
                break
        time.sleep(0.1)
    session.send_signal(signal.SIGTERM)
    _, said = session.communicate(timeout=20)
    assert session.returncode == 4 and "SIGTERM: ended with nothing new to save" in said, said


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_and_a_number_that_are_taken_are_said_before_jax_is_asked(family):
    with socket.create_server(("", 0), family=family) as other:
        port = other.getsockname()[1]
        group = {"enabled": True, "coordinator_address": f"localhost:{port}", "num_processes": 2}
        first, second = (
            checked_config(**{f"distributed__{key}": value for key, value in (group | {"process_id": number}).items()})
            for number in (0, 1)
        )
        with pytest.raises(ValueError, match=f"coordinator_address=localhost:{port}: port {port} on this machine is"):
            runtime.join_processes(first)
        runtime._claim_number(second.distributed)
        with pytest.raises(ValueError, match=r"process_id=1 is taken: another process on this machine"):
            runtime.join_processes(second)


def test_slurm_tells_each_process_who_it_is_and_where_the_first_one_is():
    """Two tasks of a job on one machine join by srun's variables; besides `enabled`, only a timeout is set."""
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN],
            cwd=ROOT,
            env=os.environ | job | {"SLURM_PROCID": number, "SLURM_LOCALID": number, "JAX_PLATFORMS": "cpu"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in "01"
    ]
    said = [task.communicate(timeout=120) for task in tasks]
    assert [out.strip() for out, _ in said] == ["0 2", "1 2"], said


MEASURED = {"scan_tile_kib": -1, "model__name": "tnt_s_patch16_224", "model__image_size": 224}


@pytest.mark.parametrize(
    ("changes", "present", "then"),
    [
        ({}, None, "--xla_tpu_scoped_vmem_limit_kib=6144"),
        ({}, "--a=1", "--a=1 --xla_tpu_scoped_vmem_limit_kib=6144"),
        ({}, "--xla_tpu_scoped_vmem_limit_kib=99", "--xla_tpu_scoped_vmem_limit_kib=99"),
        ({"model__scan": False}, "--a=1", "--a=1"),
        ({"scan_tile_kib": 0}, None, None),
        (MEASURED, None, "--xla_tpu_scoped_vmem_limit_kib=6144"),
        (MEASURED | {"scan_tile_kib": 0}, None, None),
        (MEASURED | {"model__image_size": 384}, None, None),
        (MEASURED | {"model__name": "tnt_ti_patch16_224"}, None, None),
    ],
)
def test_scanned_blocks_are_compiled_for_a_tpu_in_tiles_as_the_config_says(monkeypatch, changes, present, then):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", present or "")
    if present is None:
        monkeypatch.delenv("LIBTPU_INIT_ARGS")
    runtime.limit_tiles(checked_config(**{"model__scan": True, "scan_tile_kib": 6144} | changes))
    assert os.environ.get("LIBTPU_INIT_ARGS") == then


PREPARED = """
import os, sys
import main
from tnt_jax.training import setup
def prepare(config, workdir):
    print(os.environ.get("LIBTPU_INIT_ARGS"))
    sys.exit()
setup.prepare = setup.prepare_evaluation = prepare
main.main()
"""


@pytest.mark.parametrize("saved", [False, True])
def test_main_prepares_the_devices_before_anything_touches_them(tmp_path, saved):
    """By the config of the command line, or of an old run that is evaluated."""
    flags = ["--config=configs/digits.py", "--config.model.scan=True", "--config.scan_tile_kib=7000"]
    if saved:
        (tmp_path / "config.json").write_text(json.dumps(tiny_config(model__scan=True, scan_tile_kib=7000).to_dict()))
        flags = ["--mode=evaluate"]
    environment = {name: value for name, value in os.environ.items() if name != "LIBTPU_INIT_ARGS"}
    done = subprocess.run(
        [sys.executable, "-c", PREPARED, f"--workdir={tmp_path}", *flags],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert f"{runtime.TILES}=7000" in done.stdout, done.stderr


HOLD = """
import pathlib, sys, time
from tnt_jax.training import runtime
held = runtime.WorkdirLock(pathlib.Path(sys.argv[1]))
held.take()
print("held", flush=True)
time.sleep(600)
"""


def test_another_process_is_named_until_it_dies(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    mine = runtime.WorkdirLock(tmp_path)
    with pytest.raises(CannotStart, match=rf"Process {other.pid} on .* trains in --workdir={tmp_path}\. Wait"):
        mine.take()
    other.send_signal(signal.SIGKILL)
    other.wait()
    mine.take("token")
    assert runtime.lock_holder(tmp_path)["token"] == "token"
    mine.release()
    runtime.WorkdirLock(tmp_path).take()


def test_a_lock_whose_file_is_removed_is_taken_again(tmp_path):
    first, second = runtime.WorkdirLock(tmp_path), runtime.WorkdirLock(tmp_path)
    first.take()
    first.take()  # keeps the same lock
    (tmp_path / runtime.LOCK_FILE).unlink()
    first.take()
    with pytest.raises(CannotStart):
        second.take()
    (tmp_path / runtime.LOCK_FILE).unlink()
    second.take()
    with pytest.raises(CannotStart, match=f"Process {os.getpid()} "):
        first.take()


def test_a_file_system_without_locks_is_said_and_done_without(tmp_path, monkeypatch):
    def none(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    held = runtime.WorkdirLock(tmp_path)
    held.take("token")
    assert (
        f"{tmp_path} is on a file system without locks" in held.note
        and runtime.lock_holder(tmp_path)["token"] == "token"
    )


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_lock_file_of_nobody_is_no_lock(tmp_path, content):
    (tmp_path / runtime.LOCK_FILE).write_bytes(content)
    assert runtime.lock_holder(tmp_path) == {}
    runtime.WorkdirLock(tmp_path).take()


def test_ctrl_c_ends_at_once_after_either_signal(capfd):
    for number in (signal.SIGTERM, signal.SIGINT):
        with runtime.PreemptionGuard() as guard:
            signal.raise_signal(number)
            assert guard.should_stop(1) and guard.signal == number
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert f"{number.name}: stopping after this step" in capfd.readouterr().err
