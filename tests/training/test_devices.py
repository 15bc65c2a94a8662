"""Joining other processes: they are found, waited for as long as the config says, and the wait can be ended."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.training.helpers import experiment, tiny_config
from tnt_jax.training import devices

ROOT = pathlib.Path(__file__).parents[2]
JOIN = """
from configs import default
from tnt_jax.training import config, devices
wanted = default.get_config()
wanted.distributed.enabled = True
wanted.distributed.initialization_timeout_seconds = 60
devices.join_processes(config.check_config(wanted))
import jax
print(jax.process_index(), jax.process_count())
"""


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start_main(mode, seconds, process=0):
    """main.py as one of two processes; the other does not come."""
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
    assert "not all of them have come within 2 s (initialization_timeout_seconds)" in said
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


def test_a_port_and_a_number_that_are_taken_are_said_before_jax_is_asked():
    with socket.create_server(("", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        group = {"enabled": True, "coordinator_address": f"localhost:{port}", "num_processes": 2}
        first, second = (
            experiment(**{f"distributed__{key}": value for key, value in (group | {"process_id": number}).items()})
            for number in (0, 1)
        )
        with pytest.raises(ValueError, match=f"coordinator_address=localhost:{port}: port {port} of this machine is"):
            devices.join_processes(first)
        devices._claim_place(second.distributed)
        with pytest.raises(ValueError, match=r"process_id=1 is taken: another process of this machine"):
            devices.join_processes(second)


def test_slurm_tells_each_process_who_it_is_and_where_the_first_one_is():
    """Two tasks of a job on one machine, by the variables that srun gives them, and no other key than `enabled`."""
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
    devices.limit_tiles(experiment(**{"model__scan": True, "scan_tile_kib": 6144} | changes))
    assert os.environ.get("LIBTPU_INIT_ARGS") == then


PREPARED = """
import os, sys
import main
from tnt_jax.training import setup
def prepare(config, workdir):
    print(os.environ.get("LIBTPU_INIT_ARGS"))
    sys.exit()
setup.prepare = setup.prepare_evaluation = prepare
main.arguments.run(main.main, "main.py", run_flag="workdir")
"""


@pytest.mark.parametrize("saved", [False, True])
def test_main_prepares_the_devices_before_anything_touches_them(tmp_path, saved):
    """By the config of the command line, and of an old run that is evaluated."""
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
    assert f"{devices.TILES}=7000" in done.stdout, done.stderr
