"""Compiles the training step of a config for a TPU slice that is not present."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp

from tnt_jax.models import fast
from tnt_jax.models.complexity import multiply_adds
from tnt_jax.training import steps
from tnt_jax.training.config import Config
from tnt_jax.training.freezing import check_freeze
from tnt_jax.training.optimizer import make_optimizer, make_schedule
from tnt_jax.training.setup import check_devices, make_model
from tnt_jax.training.state import initial_params, initial_state, stack_layers

STEPS_PER_EPOCH = 1000  # for the schedule; the compiled step is the same with any value
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|[Rr]an out of memory")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per chip, as laid out by the compiler; `aliased` outputs reuse the memory of donated arguments."""

    arguments: int
    outputs: int
    temporary: int
    aliased: int
    generated_code: int

    @property
    def total(self) -> int:
        """Bytes that the step needs at the same time."""
        return self.arguments + self.outputs + self.temporary + self.generated_code - self.aliased


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """The result of compiling; `memory` and `text` are None if the compiler ran out of the chip's memory."""

    batch_per_chip: int
    multiply_adds_per_image: int  # of the forward pass
    lower_seconds: float
    compile_seconds: float
    memory: Memory | None
    text: str | None
    refusal: str = ""  # the compiler's message then
    fused: bool = False  # the inner blocks run in the kernel

    def fits(self, hbm_bytes: int) -> bool:
        """Whether it compiled and needs no more than this memory."""
        return self.memory is not None and self.memory.total <= hbm_bytes


def compile_step(
    config: Config, num_classes: int, devices: list[jax.Device], examples: tuple[int, int, int] | None = None
) -> CompiledStep:
    """Compiles the pmapped training step of a config, as the loop runs it, for devices (real or of a topology).

    examples: (count, height, width) of the data set, if it is kept on the device (data.on_device). Nothing is
    computed. Raises ValueError if the devices do not divide the batch, for impossible sizes, for a distillation teacher
    and for a pattern of config.freeze that matches no parameter.
    """
    check_devices(config, "batch_size", len(devices), config.accumulation_steps)
    if config.distillation.teacher:
        raise ValueError(
            f"config.distillation.teacher={config.distillation.teacher}: the step is compiled without the teacher's "
            "forward pass. For the student alone give --config.distillation.teacher=."
        )
    start = time.perf_counter()
    model = make_model(config, num_classes)
    if config.freeze:
        check_freeze(config, jax.eval_shape(lambda: initial_params(config, model)))
    schedule = make_schedule(config, STEPS_PER_EPOCH)
    optimizer = make_optimizer(config, schedule)
    every = config.log_every_steps or STEPS_PER_EPOCH
    step = steps.make_train_step(config, model, optimizer, schedule, log_every_steps=every, devices=devices)
    state = jax.eval_shape(lambda: stack_layers(initial_state(config, model, optimizer), config))
    local = config.batch_size // len(devices)
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((len(devices), *leaf.shape), leaf.dtype),
        (state, batch_shapes(config, local, examples)),
    )
    lowered = step.lower(*arguments)
    lowered_at = time.perf_counter()
    memory = text = None
    refusal = ""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        # Too much vector memory in a kernel does not mean that the batch is too large.
        if not _OUT_OF_MEMORY.search(str(error)) or "memory space vmem" in str(error):
            raise
        found = re.search(r"[^\n]*Used [^\n]* of [^\n.]*[^\n]*", str(error))  # the line with the sizes
        refusal = (found.group(0) if found else str(error).splitlines()[0]).strip()[:300]
    else:
        sizes, text = compiled.memory_analysis(), compiled.as_text()
        memory = Memory(
            arguments=sizes.argument_size_in_bytes,
            outputs=sizes.output_size_in_bytes,
            temporary=sizes.temp_size_in_bytes,
            aliased=sizes.alias_size_in_bytes,
            generated_code=sizes.generated_code_size_in_bytes,
        )
    return CompiledStep(
        batch_per_chip=local,
        multiply_adds_per_image=multiply_adds(model),
        lower_seconds=lowered_at - start,
        compile_seconds=time.perf_counter() - lowered_at,
        memory=memory,
        text=text,
        refusal=refusal,
        fused=fast.choose(model.config, model.ops.implementation, devices[0].device_kind).reason is None,
    )


def batch_shapes(
    config: Config, local: int, examples: tuple[int, int, int] | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns a device's local batch, as from the input pipeline; with data.on_device all examples and random seeds.

    Raises ValueError for data.on_device without `examples`.
    """
    array, kind = jax.ShapeDtypeStruct, jnp.dtype(f"uint{config.data.pixel_bits}")
    channels = config.model.in_channels
    if not config.data.on_device:
        images = {"image": array((local, *config.model.input_size, channels), kind)}
    elif examples is None:
        raise ValueError(
            "config.data.on_device=True: give the number of examples and their size, such as --examples=50000x32x32."
        )
    else:
        images = {"examples": array((*examples, channels), kind), "seed": array((local, 2), jnp.uint32)}
    kinds = {"label": jnp.int32, "mask": jnp.float32, "index": jnp.int32}
    return images | {name: array((local,), kind) for name, kind in kinds.items()}
