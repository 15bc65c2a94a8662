"""The cost by bundles: with made-up dumps and, if libtpu is installed, of a matrix product."""

import importlib.util
import subprocess
import sys

import pytest

from benchmarks.tpu.cost import by_bundles
from tests.benchmarks.tpu.test_bundles import DUMP
from tests.tools.tpu.test_hlo import BLOCK, TEXT
from tnt_jax.tools.tpu.chips import CHIPS


def test_an_operation_costs_its_bundles_or_its_traffic(tmp_path):
    (tmp_path / "0001-mine-71-final_bundles.txt").write_text(DUMP)  # 123 bundles, more than its traffic
    chip = CHIPS["v5e"]
    found = by_bundles(TEXT, chip, tmp_path, device_count=4)
    costs = {each.name: each for each in found.operations}
    bytes_per_cycle = chip.hbm_bandwidth / chip.clock
    block = BLOCK / bytes_per_cycle
    assert costs["mine"].cycles == 3 * 123
    assert costs["stacked"].cycles == pytest.approx(3 * (2 * block + 4 / bytes_per_cycle))  # no dump: traffic
    assert costs["sum"].cycles > 24 * 4 / bytes_per_cycle  # between chips
    assert found.copy_cycles == pytest.approx(3 * block) and found.xla_cycles == 420
    assert found.cycles_serial == pytest.approx(found.cycles + found.copy_cycles)
    assert found.cycles > found.hbm_cycles > 0


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_cost_of_a_product_on_a_v5e():
    """Runs in its own process, because libtpu reads its flags once. Time at peak speed: 2 x 2048 ^ 3 / 197e12 s."""
    program = (
        "import jax, jax.numpy as jnp\n"
        "jax.config.update('jax_platforms', 'cpu')\n"
        "from benchmarks.tpu.cost import cost\n"
        "x = jax.ShapeDtypeStruct((2048, 2048), jnp.bfloat16)\n"
        "found = cost(lambda a, b: a @ b, x, x)\n"
        "print(found.seconds)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 1 <= float(done.stdout.split()[-1]) / (2 * 2048**3 / 197e12) < 3
