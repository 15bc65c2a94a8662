"""A worker of benchmarks.speed: this project's forward pass or training step, over the machine's devices.

The training step is the one that training.loop runs (training.steps.make_train_step): pmapped, state donated, with the
config's mixing, erasing, AdamW and moving average. The batch stays on the devices; reading images is not timed.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sides import turns
from tnt_jax.models.variants import create_model
from tnt_jax.training import steps
from tnt_jax.training.config import Config, check_config
from tnt_jax.training.optimizer import make_optimizer, make_schedule
from tnt_jax.training.runtime import limit_tiles
from tnt_jax.training.state import initial_state, replicate, stack_layers

STEPS_PER_EPOCH = 1000  # of the schedule; the speed does not depend on it


class Ours(turns.Side):
    """Case: config (plain form, with the model and batch size), training (bool)."""

    def open(self, case: dict[str, Any]) -> dict[str, Any]:
        """-> platform, device_kind, device_count, versions."""
        config = check_config(case["config"])
        limit_tiles(config)
        devices = jax.local_devices()
        if config.batch_size % len(devices):
            raise ValueError(f"a batch of {config.batch_size} is not a multiple of the {len(devices)} devices")
        model = create_model(**config.model.arguments())
        params = random_params(model)
        images = np.random.default_rng(0).integers(0, 256, batch_shape(config, len(devices)), np.uint8)
        self._step = self._training(config, model, params, images) if case["training"] else None
        if not case["training"]:
            self._step = self._forward(config, model, params, images)
        return {
            "platform": devices[0].platform,
            "device_kind": devices[0].device_kind,
            "device_count": len(devices),
            "versions": {name: __import__(name).__version__ for name in ("jax", "jaxlib", "flax")},
        }

    def _training(self, config: Config, model: nn.Module, params: Any, images: np.ndarray) -> Any:
        """Returns a function that runs one training step and returns what the loop would read."""
        schedule = make_schedule(config, STEPS_PER_EPOCH)
        optimizer = make_optimizer(config, schedule)
        state = jax.jit(lambda params: initial_state(config, model, optimizer, params))(params)
        state = stack_layers(jax.device_get(state), config)
        train_step = steps.make_train_step(config, model, optimizer, schedule, log_every_steps=1000)
        labels = np.random.default_rng(1).integers(0, model.num_classes, images.shape[:2]).astype(np.int32)
        batch = {"image": images, "label": labels, "mask": np.ones(images.shape[:2], np.float32)}
        batch = on_devices(batch)
        self._state = replicate(state)

        def step() -> Any:
            self._state, results = train_step(self._state, batch)
            return results, self._state.step

        return step

    def _forward(self, config: Config, model: nn.Module, params: Any, images: np.ndarray) -> Any:
        """Returns a function that computes the logits of one batch of normalised images."""
        model = steps.for_platform(model, jax.local_devices())
        forward = steps.over_devices(lambda params, images: model.apply({"params": params}, images, train=False))
        params, images = replicate(stack_layers(params, config)), on_devices(images.astype(np.float32) / 127.5 - 1)
        return lambda: forward(params, images)

    def run(self, steps: int) -> None:
        """See Side."""
        for _ in range(steps):
            result = self._step()
        jax.block_until_ready(result)

    def memory(self) -> tuple[int | None, str]:
        """Returns the highest peak of a device if the platform counts it; on a CPU the process's."""
        counted = [device.memory_stats() for device in jax.local_devices()]
        peaks = [counts["peak_bytes_in_use"] for counts in counted if counts and "peak_bytes_in_use" in counts]
        if peaks:
            return max(peaks), "peak of the device's allocated memory since the start (jax memory_stats)"
        if jax.local_devices()[0].platform != "cpu":
            return None, "the platform does not count it"
        return turns.peak_memory()

    def out_of_memory(self, error: Exception) -> bool:
        """See Side."""
        return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def on_devices(batch: Any) -> Any:
    """Arrays [devices, b, ...] -> the same, each device holding its shard."""
    devices = np.array(jax.local_devices())
    mesh = jax.sharding.Mesh(devices, ("batch",))
    return jax.device_put(batch, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch")))


def batch_shape(config: Config, device_count: int) -> tuple[int, ...]:
    """-> [devices, b, H, W, C]."""
    return device_count, config.batch_size // device_count, *config.model.input_size, config.model.in_channels


def random_params(model: nn.Module) -> Any:
    """Draws the model's parameters on the host, N(0, 0.02) and scales 1: quick to make, and no slower to use."""
    shape = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), shape)["params"]
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "scale":
            return np.ones(leaf.shape, leaf.dtype)
        return rng.normal(0, 0.02, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


if __name__ == "__main__":
    turns.serve(Ours)
