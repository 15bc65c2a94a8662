"""Which devices a process has, and which other processes belong to it. Before anything else touches a device."""

import jax

from tnt_jax.training.config import Experiment


def split_cpu(experiment: Experiment) -> None:
    """Makes several jax devices of the host's CPU as the config says; before any device is touched."""
    if experiment.cpu_devices:
        jax.config.update("jax_num_cpu_devices", experiment.cpu_devices)


def join_processes(experiment: Experiment) -> None:
    """Joins the other processes as the config says; before any device is touched."""
    settings = experiment.distributed
    if not settings.enabled:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # for processes without accelerators
    jax.distributed.initialize(
        coordinator_address=settings.coordinator_address or None,
        num_processes=settings.num_processes or None,
        process_id=settings.process_id if settings.process_id >= 0 else None,
    )
