"""What several processes have to have in common before the first step: config, code, data set and workdir.

Each compares its own with the first process's, through the key-value store of jax's coordination service (which waits
for a given time, where a sum over the devices would wait for ever). All of them end with the same message.
"""

import hashlib
import importlib.metadata
import itertools
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax._src import distributed  # the store has no public name yet

import tnt_jax
from tnt_jax import workdir as workdirs
from tnt_jax.data.settings import shown
from tnt_jax.training.config import as_dict
from tnt_jax.training.errors import CannotStart
from tnt_jax.training.recorded import leaves
from tnt_jax.training.setup import TrainingRun

# Keys that may differ between the processes of one run: of the machine, not of the run.
OWN = ("distributed.", "data.directory", "data.worker_processes", "prefetch_batches")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
SECONDS_TO_APPEAR = 60  # of a file on another machine of a network file system
CHECKPOINT = "newest checkpoint in --workdir"
SHARED = ": the workdir must be on a file system that all processes share"
FINE = "fine"  # the store takes no empty words
_NAMED = 5  # differences in a message
_topics = itertools.count()  # no two of one process may have the same name in the store


def check_same_start(run: TrainingRun) -> None:
    """Raises CannotStart in every process where one is about to train something else, with what differs."""
    if jax.process_count() > 1:
        mine = statement(run)
        agree("start", json.dumps(mine), lambda first: difference(mine, json.loads(first)), _patience(run))


def check_same_workdir(run: TrainingRun, token: str, read_token: Callable[[Path], str]) -> None:
    """Raises CannotStart in every process where one does not see the file that the first one has just written.

    token: the first process's; read_token: a workdir -> the token in it, "" where there is none.
    """
    if jax.process_count() < 2:
        return

    def compare(first: str) -> str:
        deadline = time.monotonic() + min(SECONDS_TO_APPEAR, _patience(run) / 2)
        while read_token(run.workdir) != first:
            if time.monotonic() > deadline:
                return f"does not see what process 0 writes into --workdir={run.workdir}{SHARED}"
            time.sleep(0.2)
        return ""

    agree("workdir", token, compare, _patience(run))


def statement(run: TrainingRun) -> dict[str, Any]:
    """What this process is about to do, in parts that can be named: {"config.seed": 0, "code tnt_jax/...": ...}."""
    config = {f"config.{key}": value for key, value in leaves(as_dict(run.experiment), "") if not key.startswith(OWN)}
    data = {
        "training examples": run.feed.train_examples,
        "evaluation examples": run.feed.eval_examples,
        "classes": list(run.feed.class_names or ()),
    }
    steps = workdirs.checkpoint_steps(run.workdir)
    here = {CHECKPOINT: steps[-1] if steps else None}
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return config | data | here | versions | {"Python": platform.python_version()} | _code()


def difference(mine: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """Two statements -> what differs, in words; "" for none."""
    names = [name for name in sorted(mine.keys() | first.keys()) if mine.get(name) != first.get(name)]
    if not names:
        return ""
    words = [name if name.endswith(".py") else f"{name} ({_both(mine.get(name), first.get(name))})" for name in names]
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return f"has another {', another '.join(words[:_NAMED])}{more}{SHARED * (CHECKPOINT in names)}"


def _both(mine: Any, first: Any) -> str:
    return f"{shown(mine)} there, {shown(first)} in process 0"


def agree(topic: str, statement: str, compare: Callable[[str], str], seconds: float) -> None:
    """All processes call it. compare: the first one's statement -> what is wrong with this process; "" for nothing.

    Raises CannotStart in all of them where something is wrong with one, or one says nothing for so many seconds.
    """
    client, count = distributed.global_state.client, jax.process_count()
    key, wait = _key(topic), int(1000 * seconds)
    try:
        if jax.process_index() == 0:
            client.key_value_set(f"{key}/statement", statement)
            said = {number: client.blocking_key_value_get(f"{key}/{number}", wait) for number in range(1, count)}
            wrong = [f"process {number} {words}" for number, words in said.items() if words != FINE]
            client.key_value_set(f"{key}/verdict", "; ".join(wrong) or FINE)
        else:
            first = client.blocking_key_value_get(f"{key}/statement", wait)
            client.key_value_set(f"{key}/{jax.process_index()}", compare(first) or FINE)
        verdict = client.blocking_key_value_get(f"{key}/verdict", wait)
        if verdict != FINE:  # the first process keeps the store: it ends when the others have heard
            if jax.process_index():
                client.key_value_set(f"{key}/{jax.process_index()}/heard", FINE)
            else:
                for number in range(1, count):
                    client.blocking_key_value_get(f"{key}/{number}/heard", wait)
    except jax.errors.JaxRuntimeError as error:
        raise CannotStart(
            f"The {count} processes did not all start within {seconds:g} s (distributed.initialization_timeout_seconds)"
            f". The last words of the others say why. ({str(error).partition(chr(10))[0]})"
        ) from error
    if verdict != FINE:
        raise CannotStart(f"The processes of this run differ: {verdict}. Start all of them by the same command.")


def _key(topic: str) -> str:
    return f"tnt_jax/{next(_topics)}/{topic}"


def _code() -> dict[str, str]:
    """The package's files -> a digest of each."""
    root = Path(tnt_jax.__file__).parent
    return {
        f"{root.name}/{path.relative_to(root)}": hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in sorted(root.rglob("*.py"))
    }


def _patience(run: TrainingRun) -> float:
    return float(run.experiment.distributed.initialization_timeout_seconds)
