"""Compiled loops: kept on disk where that can be, and compiled all the same where it cannot."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import numpy as np
from tnt_jax.data import color
print(color.solarize(np.full((2, 2, 3), 200, np.uint8), 128)[0, 0], type(color._look_up._cache).__name__)
"""


def run(program, **environment):
    """-> what it printed; its errors are the test's."""
    command = [sys.executable, "-c", program]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, cwd=root, env=os.environ | environment, text=True, capture_output=True, check=True, timeout=120
    ).stdout


def test_the_machine_code_is_kept_on_disk(tmp_path):
    assert run(PROGRAM, NUMBA_CACHE_DIR=str(tmp_path)) == "[55 55 55] FunctionCache\n"
    kept = sorted(tmp_path.rglob("*.nbc"))
    assert any("_look_up" in path.name for path in kept)
    times = [path.stat().st_mtime_ns for path in kept]
    assert run(PROGRAM, NUMBA_CACHE_DIR=str(tmp_path)) == "[55 55 55] FunctionCache\n"
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.nbc"))] == times


def test_without_a_folder_for_it_functions_are_compiled_in_each_process():
    """Numba finds no folder where none of its ways to one is open: this one is for packages in zip files."""
    only = "numba.core.caching._ZipCacheLocator"
    assert run(PROGRAM, NUMBA_CACHE_LOCATOR_CLASSES=only) == "[55 55 55] NullCache\n"
