"""From a config to the report's tables, compiled for the CPU, because a TPU slice's compiler needs libtpu."""

import dataclasses
import importlib.util
import json
import re

import jax
import pytest

from tests.training.helpers import checked_config
from tnt_jax.tools.tpu import chips
from tnt_jax.tools.tpu.costs import estimate
from tnt_jax.tools.tpu.report import STATIC, as_text, describe
from tnt_jax.tools.tpu.search import largest_batch
from tnt_jax.tools.tpu.step import CompiledStep, Memory, compile_step

SETTINGS = {"model__scan": True, "model__depth": 3}


def estimated(text):
    """Adds an estimate to each instruction of a program's text, which a TPU's has and a CPU's lacks."""
    return re.sub(r"(?m)^( +\S* ?%?[\w.\-]+ = .*)$", r'\1, "estimated_cycles":"7"', text)


@pytest.fixture(scope="module")
def found():
    """Returns the compiled step of a small TNT on four devices, and its description."""
    settings = checked_config(**SETTINGS)
    step = compile_step(settings, 4, jax.devices()[:4])
    chip = chips.CHIPS["v5e"]
    return step, describe(settings, "v5e:2x2", chip, 4, step, estimate(estimated(step.text), chip, 4))


def test_the_step_is_the_loops_own(found):
    step, description = found
    assert step.batch_per_chip == 4 and description["batch_size"] == 16
    memory = step.memory
    assert memory.aliased > 0  # the state is donated
    assert memory.total == (
        memory.arguments + memory.outputs + memory.temporary + memory.generated_code - memory.aliased
    )
    # Parameters, two moments and the average, and the batch of 4 images of 8 x 8 pixels.
    assert memory.arguments > 4 * 4 * 452 + 4 * 8 * 8 * 3


def test_a_scanned_step_has_like_blocks_as_one(found):
    """This leaves fewer arrays to update: no block has its own, [1 device, 4, 16] for an MLP's first layer."""
    assert set(re.findall(r"f32\[1,([0-9,]*4,16)\]\S* parameter\(", found[0].text)) == {"3,4,16"}


def test_the_parts_share_the_whole_step(found):
    parts = found[1]["parts"]
    assert set(parts) >= {
        *("word_embedding", "inner", "projection", "outer", "head", "optimizer", "input", "loss", "all-reduce", "other")
    }
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
    assert all(part["share"] > 0 for part in parts.values())


def test_json_and_text_say_that_nothing_ran(found):
    description = found[1]
    assert json.loads(json.dumps(description))["figures"] == STATIC
    assert description["model"]["kernel"] is False
    text = as_text(description)
    assert "inner_implementation auto (without the kernel)" in text
    assert "never run" in text and "fits" in text
    assert 0 < description["time"]["utilization"] <= 1
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if "M cycles turns" in line)
    assert len(lines[start + 1 :]) == len(description["top_operations"]) == 10
    cycles = [each["cycles"] for each in description["top_operations"]]
    assert cycles == sorted(cycles, reverse=True)
    assert 3 in {each["trips"] for each in description["top_operations"]}  # blocks


def test_a_step_that_the_compiler_refuses(found):
    step = dataclasses.replace(found[0], memory=None, text=None, refusal="Used 20.1G of 15.75G hbm.")
    text = as_text(describe(checked_config(), "v5e:2x2", chips.CHIPS["v5e"], 4, step, None))
    assert (
        "DOES NOT FIT into 16 GiB. The compiler: Used 20.1G of 15.75G hbm." in text
        and "Step:" not in text
        and "At the peak" not in text
    )


def test_the_step_of_a_set_on_the_device_holds_the_set():
    settings = checked_config(data__on_device=True, data__randaugment="", data__color_jitter=0.0)
    with pytest.raises(ValueError, match="--examples=50000x32x32"):
        compile_step(settings, 4, jax.devices()[:2])
    memory = compile_step(settings, 4, jax.devices()[:2], (3000, 10, 12)).memory
    assert 0 < memory.arguments - 3000 * 10 * 12 * 3 < 20_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"distillation__teacher": "runs/large"},
            "config.distillation.teacher=runs/large: the step is compiled without",
        ),
        ({"freeze": ("block_9/.*",)}, "config.freeze: 'block_9/.*' matches no parameter"),
    ],
)
def test_what_the_report_would_leave_out_is_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        compile_step(checked_config(**changes), 4, jax.devices()[:2])


def test_devices_that_do_not_divide_the_batch():
    with pytest.raises(ValueError, match="batch_size=16 is not a multiple of the 3 devices; use 15 or 18"):
        compile_step(checked_config(), 4, jax.devices()[:3])


def pretend(batch, per_image=10, fixed=100, refuses_from=10**9):
    memory = Memory(arguments=fixed, outputs=0, temporary=per_image * batch, aliased=0, generated_code=0)
    return CompiledStep(batch, 1, 0.0, 0.0, None if batch >= refuses_from else memory, "")


@pytest.mark.parametrize(
    ("first", "hbm", "options", "expected"),
    [
        (32, 100 + 10 * 77, {}, 72),  # 77 fit, in steps of 8
        (200, 100 + 10 * 77, {}, 72),  # searched from above
        (72, 100 + 10 * 77, {}, 72),
        (30, 100 + 10 * 77, {}, 72),  # a first batch that is not a multiple of 8
        (32, 100 + 10 * 77, {"refuses_from": 50}, 48),  # the compiler needs more than it reports
        (32, 150, {}, 0),  # not even 8 fit
        (4, 100 + 10 * 9, {}, 8),
    ],
)
def test_the_largest_batch_is_found_in_a_few_compilations(first, hbm, options, expected):
    batch, tried = largest_batch(
        pretend(first, **options), lambda batch: pretend(batch, **options), hbm_bytes=hbm, unit=8
    )
    assert batch == expected and len(tried) <= 6
    assert all(each["fits"] == (each["bytes"] is not None and each["bytes"] <= hbm) for each in tried)


def test_memory_that_grows_faster_than_the_batch():
    def crooked(batch):
        return pretend(batch, per_image=10 if batch < 60 else 14)

    batch, _ = largest_batch(crooked(16), crooked, hbm_bytes=1000, unit=4)
    assert batch == 64  # 100 + 14 * 64 = 996


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v7:2x2", "'v7' is not one of v4, v5e, v5p, v6e"),
        ("v4:2x2", "v4 have 3 dimensions, such as v4:2x2x1"),
        ("v5e", "2 dimensions, such as v5e:2x2"),
    ],
)
def test_names_of_slices(topology, message):
    with pytest.raises(ValueError, match=message):
        chips.chip_of(topology)


def test_without_libtpu_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'jax\[tpu\]'"):
        chips.devices_of("v5e:2x2")
