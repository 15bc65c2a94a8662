"""Worker processes: the same batches for any number, no jax or TensorFlow in them, and no silent deaths."""

import gc
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest

from tests.data import odd_images
from tnt_jax.data import batches, worker
from tnt_jax.data.faulty import FaultyImages

ROOT = pathlib.Path(__file__).parents[2]
PLACE = dict(batch_size=24, image_size=(16, 16), local_devices=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Writes 40 training images, two of them faulty, and 13 test images."""
    root = tmp_path_factory.mktemp("workers")
    for split, count in {"train": 40, "test": 13}.items():
        for number in range(count):
            path = root / split / "ab"[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no image" if split == "train" and number in (3, 4) else odd_images.noise(number))
    return root


def assert_equal(out, others):
    for batch, other in zip(out, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_batches_are_the_same_for_any_number_of_workers(settings_for, folder, monkeypatch):
    """From steps 0, 1 and 7, in different epochs; faulty images are reported."""
    before = shared_memory()
    monkeypatch.setattr(batches, "_PIECE", 10)
    recipe = {"randaugment": "rand-m9-mstd0.5-inc1", "repeated_augmentation": 3}
    alone = settings_for("folder", folder, **recipe, worker_processes=0)
    expected = list(itertools.islice(batches.train_batches(alone, seed=1, **PLACE), 9))
    evaluated = list(batches.eval_batches(alone, **PLACE))
    for workers, start in ((1, 0), (2, 1), (3, 7)):
        settings, found = settings_for("folder", folder, **recipe, worker_processes=workers), FaultyImages()
        out = batches.train_batches(settings, seed=1, start_step=start, faulty=found, **PLACE)
        assert_equal(itertools.islice(out, 9 - start), expected[start:])
        out.close()
        assert start or found.count("train") == 2 and all("cannot identify" in name for name in found.names("train"))
    assert_equal(batches.eval_batches(settings, **PLACE), evaluated)
    gc.collect()  # Grain's iterators are reference cycles
    assert gone([], before)


def test_an_error_in_a_worker_is_the_main_processs(settings_for, folder):
    settings = settings_for("folder", folder, worker_processes=1, max_faulty_images=0)
    with pytest.raises(ValueError, match=r"data\.max_faulty_images=0, but"):
        list(itertools.islice(batches.train_batches(settings, seed=1, **PLACE), 4))
    settings = settings_for("folder", folder, worker_processes=1, eval_split="train")
    with pytest.raises(ValueError, match=r"train/[ab]/\d+\.jpg\) cannot be read: cannot identify"):
        list(batches.eval_batches(settings, **PLACE))


@pytest.mark.parametrize(
    ("examples", "changes", "expected"),
    [
        (batches._SMALL, {}, min(batches.usable_cores(), batches._MOST_WORKERS)),
        (batches._SMALL - 1, {}, 0),
        (batches._SMALL, {"name": "synthetic"}, 0),
        (10, {"worker_processes": 3}, 3),
        (10**6, {"worker_processes": 0}, 0),
    ],
)
def test_how_many_workers_there_are(settings_for, examples, changes, expected):
    changes = {"name": "folder"} | changes
    assert batches.worker_processes(settings_for(changes.pop("name"), **changes), examples) == expected


@pytest.mark.parametrize(("code", "words"), [(-9, "out of memory"), (-7, "/dev/shm.*--shm-size"), (1, "exit code 1,")])
def test_the_message_says_why_a_worker_may_have_ended(code, words):
    assert re.search(f"One of 3 worker processes .*{words}.*worker_processes, or 0", worker.last_words(code, 3))


PROGRAM = """
import dataclasses, json, os, pathlib, signal, sys, time
from configs.default import get_config
from tnt_jax.data import batches, settings

if __name__ == "__main__":
    import jax
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes background jobs ignore SIGINT

    from tnt_jax.training import runtime

    data = settings.DataSettings(**get_config().data)
    data = dataclasses.replace(data, name="folder", directory=sys.argv[1], eval_split="test", worker_processes=2)
    made = batches.train_batches(data, seed=0, batch_size=24, image_size=(16, 16), local_devices=1)
    next(made)
    tasks = pathlib.Path(f"/proc/{os.getpid()}/task").glob("*/children")  # Grain starts workers from threads
    children = [int(pid) for task in tasks for pid in task.read_text().split()]
    workers = [pid for pid in children if "spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_text()]
    maps = [pathlib.Path(f"/proc/{pid}/maps").read_text() for pid in workers]
    print(json.dumps({
        "workers": workers,
        "loaded": [name for name in ("jaxlib", "tensorflow") for text in maps if f"/{name}/" in text],
        "here": [name for name in ("jax", "tensorflow") if name in sys.modules],
        "Pillow": all("/PIL/" in text for text in maps),
    }), flush=True)
    if sys.argv[2] == "train":
        try:
            for _ in runtime.readable(lambda: made):
                pass
        except runtime.RunError as error:
            print(f"RunError: {error}", flush=True)
            sys.exit(3)
    if sys.argv[2] == "leave":
        os._exit(0)
    if sys.argv[2] in ("interrupted", "terminated"):
        time.sleep(60)  # not in next(made): Grain's finalizers may get the KeyboardInterrupt, which Python drops there
"""


def start(folder, tmp_path, what):
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(folder), what],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    line = process.stdout.readline()
    if not line:
        pytest.fail(process.communicate()[1])
    return process, json.loads(line)


def shared_memory():
    return {path for pattern in ("psm_*", "tnt_jax_*") for path in pathlib.Path("/dev/shm").glob(pattern)}


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def gone(pids, before, seconds=30):
    """Returns whether all processes end and all shared memory new since `before`, other tests' too, vanishes."""
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    left = shared_memory() - before
    while left & shared_memory() and time.monotonic() < end:
        time.sleep(0.1)
    return not any(map(alive, pids)) and not left & shared_memory()


def test_a_worker_imports_neither_jax_nor_tensorflow_and_a_killed_one_ends_the_run_with_a_message(folder, tmp_path):
    before = shared_memory()
    process, found = start(folder, tmp_path, "train")
    assert len(found["workers"]) == 2 and found["loaded"] == [] and found["Pillow"] and found["here"] == ["jax"]
    os.kill(found["workers"][0], signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert re.search(r"RunError: The data cannot be read any further\. One of 2 worker processes .*SIGKILL", out)
    assert gone(found["workers"], before)


def test_what_a_killed_worker_left_in_shared_memory_is_removed_by_its_runs_name():
    """kill -9 between two system calls can leave a segment that Python's resource tracker does not know."""
    names = [f"tnt_jax_{run}_left" for run in ("0", "1")]
    for name in names:
        SharedMemory(name, create=True, size=8).close()
    worker.clear_shared_memory(0)
    left = [name for name in names if pathlib.Path("/dev/shm", name).exists()]
    worker.clear_shared_memory(1)
    assert left == names[1:] and not pathlib.Path("/dev/shm", names[1]).exists()


@pytest.mark.parametrize("what", ["end", "leave", "killed", "interrupted", "terminated"])
def test_nothing_is_left_of_workers(folder, tmp_path, what):
    """After a normal end, os._exit, kill -9, and Ctrl-C or SIGTERM to all, which workers leave to the main process."""
    before = shared_memory()
    process, found = start(folder, tmp_path, "train" if what == "killed" else what)
    if what == "killed":
        process.kill()
    if what in ("interrupted", "terminated"):
        os.killpg(process.pid, signal.SIGINT if what == "interrupted" else signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert gone(found["workers"], before)
    assert process.returncode == {"killed": -9, "interrupted": -2, "terminated": -15}.get(what, 0), err
    assert err.count("Traceback") == (what == "interrupted")  # only the main process's own
