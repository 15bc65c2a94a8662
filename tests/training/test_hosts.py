"""Two processes stand in for two hosts; the long version, with four, is python -m tests.soak.hosts."""

from tests.soak import hosts
from tnt_jax import workdir as workdirs

FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def test_two_processes_train_like_one_and_stop_and_go_on_together(tmp_path):
    """One is killed and the other stops; after a restart the run ends like one process with all devices."""
    cache, run = tmp_path / "cache", tmp_path / "run"
    one = hosts.start(1, tmp_path / "one", cache, FLAGS)  # alongside the first session of the two, which mostly waits
    sessions = hosts.start(2, run, cache, FLAGS)
    seconds = hosts.kill_one(sessions, victim=1)
    assert seconds < 300, "the bound is a few heartbeat timeouts; a test machine may be busy"
    assert workdirs.checkpoint_steps(run)[-1] in (10, 15, 20)
    again = hosts.start(2, run, cache, FLAGS)
    hosts.finish(again)
    hosts.finish(one)
    assert "Resuming from step" in hosts.said(again[0])
    hosts.assert_losses_agree(run, tmp_path / "one")
    # Only the first process writes: the other logs no steps, and each session has one event file.
    assert "step 30/30" in hosts.said(again[0]) and "step 30/30" not in hosts.said(again[1])
    assert len(list(run.glob("events.out.tfevents.*"))) == 2
    assert not list((run / "checkpoints").rglob("*process_1*"))
