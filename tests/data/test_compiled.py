"""Compiled loops: kept on disk where that can be, and compiled all the same where it cannot."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tnt_jax.data import compiled

PROGRAM = """
import numpy as np
from tnt_jax.data import color
print(color.solarize(np.full((2, 2, 3), 200, np.uint8), 128)[0, 0], type(color._solarize._cache).__name__)
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
    assert any("_solarize" in path.name for path in kept)
    times = [path.stat().st_mtime_ns for path in kept]
    assert run(PROGRAM, NUMBA_CACHE_DIR=str(tmp_path)) == "[55 55 55] FunctionCache\n"
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.nbc"))] == times


def test_a_changed_file_changes_what_others_have_taken_from_it(tmp_path):
    """Numba itself looks at the file of a function alone, not at the constants that it takes from others."""
    package = tmp_path / "tnt_jax" / "data"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    shutil.copy(compiled.__file__, package)
    line = "from tnt_jax.data.compiled import compiled  # noqa: F401\n"
    (package / "sums.py").write_text(
        f"{line}from tnt_jax.data.numbers import NUMBER\n\n\n@compiled\ndef more(x):\n    return x + NUMBER\n"
    )
    for number in (1, 20, 300):
        (package / "numbers.py").write_text(f"{line}NUMBER = {number}\n")
        program = "from tnt_jax.data import sums; print(sums.more(1000))"
        command = [sys.executable, "-c", program]
        found = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=True, timeout=120).stdout
        assert found == f"{1000 + number}\n"


def test_without_a_folder_for_it_functions_are_compiled_in_each_process():
    """Numba finds no folder where none of its ways to one is open: this one is for packages in zip files."""
    only = "numba.core.caching._ZipCacheLocator"
    assert run(PROGRAM, NUMBA_CACHE_LOCATOR_CLASSES=only) == "[55 55 55] NullCache\n"
