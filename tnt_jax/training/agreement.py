"""Checks that the processes and sessions of a run agree: config, code, data set, workdir, devices.

Each process compares its values with process 0's through the key-value store of jax's coordination service, which has
a timeout (a sum over the devices would wait for ever). All processes end with the same message.
"""

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jax._src import distributed  # the store has no public name yet

import tnt_jax
from tnt_jax import workdir as workdirs
from tnt_jax.data.decoding import DECODER
from tnt_jax.keys import short_repr
from tnt_jax.training.config import as_dict
from tnt_jax.training.logging import versions
from tnt_jax.training.runtime import CannotStart, RunError, lock_holder
from tnt_jax.training.saved_config import differences
from tnt_jax.training.setup import Run

# Keys that may differ between the processes of one run: they describe the machine, not the run.
OWN = ("distributed.", "data.directory", "data.worker_processes", "prefetch_batches")
SECONDS_TO_APPEAR = 60  # for a file to reach another machine over a network file system
CHECKPOINT = "newest checkpoint in --workdir"
SHARED = ": the workdir must be on a file system that all processes share"
FINE = "fine"  # the store accepts no empty string
_NAMED = 5  # differences listed in a message
_topics = itertools.count()  # keys in the store must be unique


def check_same_start(run: Run) -> None:
    """Raises CannotStart in every process, with the differences, if one is about to train something else."""
    if jax.process_count() > 1:
        mine = statement(run)
        agree("start", json.dumps(mine), lambda first: difference(mine, json.loads(first)), _patience(run))


def check_same_workdir(run: Run, token: str) -> None:
    """Raises CannotStart in every process if one does not see the lock that process 0 has just taken.

    token: the string that process 0 has written into the lock.
    """
    if jax.process_count() < 2:
        return

    def compare(first: str) -> str:
        deadline = time.monotonic() + min(SECONDS_TO_APPEAR, _patience(run) / 2)
        while lock_holder(run.workdir).get("token") != first:
            if time.monotonic() > deadline:
                return f"does not see what process 0 writes into --workdir={run.workdir}{SHARED}"
            time.sleep(0.2)
        return ""

    agree("workdir", token, compare, _patience(run))


def check_same_step(run: Run, step: int) -> None:
    """Raises CannotStart in every process if one passed over a checkpoint that process 0 could read, or the reverse."""

    def compare(first: str) -> str:
        return "" if int(first) == step else f"resumes from step {step}, process 0 from step {first}"

    if jax.process_count() > 1:
        agree("step", str(step), compare, _patience(run))


def statement(run: Run) -> dict[str, Any]:
    """Returns what this process is about to train, by name: {"config.seed": 0, "tnt_jax/....py": digest, ...}."""
    keys = flatten_dict(as_dict(run.config), sep=".")
    config = {f"config.{key}": value for key, value in keys.items() if not key.startswith(OWN)}
    data = {
        "training examples": run.pipeline.train_examples,
        "evaluation examples": run.pipeline.eval_examples,
        "classes": list(run.pipeline.class_names or ()),
        "data set": run.pipeline.identity,
    }
    if run.pretrained is not None:  # the same path may be a different file in each process
        checksums = repr(sorted(workdirs.checksums(run.pretrained).items()))
        data["weights at the start"] = hashlib.sha256(checksums.encode()).hexdigest()[:12]
    if run.teacher is not None:
        data["the teacher's weights"] = run.teacher.digest
    steps = workdirs.checkpoint_steps(run.workdir)
    local = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"  # batches are split evenly
    here = {CHECKPOINT: steps[-1] if steps else None, "number of devices": local}
    return config | data | here | versions() | _code()


def difference(mine: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """Two statements -> a description of the differences; "" if there are none."""
    names = [name for name in sorted(mine.keys() | first.keys()) if mine.get(name) != first.get(name)]
    if not names:
        return ""
    words = [name if name.endswith(".py") else f"{name} ({_both(mine.get(name), first.get(name))})" for name in names]
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return f"differs in {', '.join(words[:_NAMED])}{more}{SHARED * (CHECKPOINT in names)}"


def _both(mine: object, first: object) -> str:
    return f"{short_repr(mine)} there, {short_repr(first)} in process 0"


def agree(topic: str, statement: str, compare: Callable[[str], str], seconds: float) -> None:
    """Compares process 0's statement in every process; all must call it. compare: statement -> problem, "" if none.

    Raises CannotStart in all processes if one has a problem, or if one does not answer within `seconds`.
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
        if verdict != FINE:  # process 0 hosts the store: it ends after the others have read the verdict
            if jax.process_index():
                client.key_value_set(f"{key}/{jax.process_index()}/heard", FINE)
            else:
                for number in range(1, count):
                    client.blocking_key_value_get(f"{key}/{number}/heard", wait)
    except jax.errors.JaxRuntimeError as error:
        raise CannotStart(
            f"The {count} processes did not all start within {seconds:g} s (distributed.initialization_timeout_seconds)"
            f". The last messages of the others say why. ({str(error).partition(chr(10))[0]})"
        ) from error
    if verdict != FINE:
        raise CannotStart(f"The processes of this run differ: {verdict}. Start all of them with the same command.")


def _key(topic: str) -> str:
    return f"tnt_jax/{next(_topics)}/{topic}"


def _code() -> dict[str, str]:
    """The package's files -> a digest of each."""
    root = Path(tnt_jax.__file__).parent
    return {
        f"{root.name}/{path.relative_to(root)}": hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in sorted(root.rglob("*.py"))
    }


def _patience(run: Run) -> float:
    return float(run.config.distributed.initialization_timeout_seconds)


def devices() -> dict[str, Any]:
    """Returns what the last bits of a run depend on besides its config."""
    kind = jax.devices()[0].device_kind
    return {"device_count": jax.device_count(), "process_count": jax.process_count(), "device_kind": kind}


def check_same_model(run: Run, metadata: Mapping[str, Any]) -> None:
    """Raises RunError if a checkpoint is of another model than config.json describes, even if every array fits.

    metadata: the checkpoint's; earlier versions have no model in it.
    """
    trained = workdirs.with_current_keys(metadata)[0].get("model") or {}
    now = {name: value for name, value in as_dict(run.config)["model"].items() if name in trained}
    if differing := differences({"model": trained}, {"model": now}):
        words = "; ".join(f"{name} ({old!r} there, {new!r} now)" for name, old, new in differing)
        raise RunError(
            f"The checkpoint of step {metadata['step']} in {run.workdir} is of another model than "
            f"{workdirs.CONFIG_FILE} says: {words}. Was that file edited? Restore the old values of these keys."
        )


def resume_notes(run: Run, metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yields notes on whatever makes a resumed run differ from an uninterrupted one, even in the last bits only.

    metadata: the checkpoint's; earlier versions lack some of the entries compared here.
    """
    config, now = run.config, devices()
    before = {name: metadata.get(name, value) for name, value in now.items()}
    if before != now:
        note = (
            f"{_in_words(**before)} then, {_in_words(**now)} now. Sums are rounded in another order and drop "
            "path is drawn anew, so the run continues equivalently but not bit for bit."
        )
        if before["process_count"] != now["process_count"] and config.data.repeated_augmentation > 1:
            note += " The copies of an image (config.data.repeated_augmentation) are mixed with other images now."
        yield note
    decoder = metadata.get("decoder", "the decoder of earlier versions")
    if decoder != DECODER and config.data.name != "synthetic":
        yield (
            f"images were decoded by {decoder} then and are decoded by {DECODER} now, so the remaining ones may differ "
            "slightly; whether a folder's images are rotated by their EXIF tag depends on "
            f"config.data.exif_orientation={config.data.exif_orientation}."
        )
    teacher = run.teacher and run.teacher.digest
    if "teacher" in metadata and metadata["teacher"] != teacher:
        yield (
            f"the teacher, config.distillation.teacher={config.distillation.teacher}, has other weights than then: the "
            "run resumes with a different loss."
        )
    data = run.pipeline.identity
    examples, found = metadata.get("train_examples", run.pipeline.train_examples), run.pipeline.train_examples
    if examples != found:
        yield (
            f"the training split {config.data.train_split!r} of {config.data.name} had {examples:,} examples then and "
            f"has {found:,} now: the run resumes with different batches and a different epoch length."
        )
    elif metadata.get("data_set", data) != data:
        yield (
            f"{config.data.name} has changed ({metadata['data_set']} then, {data} now), though it has as many "
            "training examples: they may be different ones, or in a different order."
        )


def _in_words(device_count: int, process_count: int, device_kind: str) -> str:
    return f"{device_count} x {device_kind} in {process_count} process{'es' * (process_count > 1)}"
