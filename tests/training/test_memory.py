"""What can never fit is refused; what turns out not to fit ends a run with one message."""

import jax
import pytest

from tests.training.helpers import experiment
from tnt_jax.models.complexity import count_parameters
from tnt_jax.training import memory, setup
from tnt_jax.training.errors import RunError


def model_of(settings, num_classes=1000):
    return setup.make_model(settings, num_classes)


@pytest.mark.parametrize("name", ["tnt_s_patch16_224", "tnt_b_patch16_224", "deit_tiny_patch16_224"])
def test_the_least_is_less_than_the_weights_and_their_copies_alone_can_explain(name):
    sizes = dict.fromkeys(("patch_size", "word_size", "inner_dim", "outer_dim", "inner_num_heads", "outer_num_heads"))
    changes = {f"model__{key}": None for key in (*sizes, "depth")} | {"model__name": name, "model__image_size": 224}
    settings = experiment(batch_size=1, eval_batch_size=1, **changes, data__repeated_augmentation=1)
    model = model_of(settings)
    least, weights = memory.least_bytes(settings, model, 1), 20 * count_parameters(model)
    assert 0.95 * weights < least < 1.05 * weights + 2**26


def test_published_sizes_are_not_refused():
    settings = experiment(batch_size=1024, eval_batch_size=1024, model__image_size=224, model__patch_size=16)
    memory.check_memory(settings, model_of(settings))


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), MemoryError()])
def test_a_full_memory_ends_the_run_with_the_mend(error):
    with pytest.raises(RunError, match="memory does not suffice: .*accumulation_steps"), memory.enough():
        raise error


def test_other_errors_pass():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.enough():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
