"""main.py starts anew, once, with huge pages where the system gives them to who asks."""

import os
import pathlib
import subprocess
import sys

import pytest

import huge_pages

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = """
import os, pathlib, sys

import huge_pages

huge_pages.SYSTEM = pathlib.Path("enabled")
print("start", sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), flush=True)
huge_pages.start_anew()
print("end")
"""

pytestmark = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()), reason="huge pages are asked for through glibc"
)


@pytest.mark.parametrize(
    ("system", "present", "added"),
    [
        ("always [madvise] never", None, "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.check=1", "glibc.malloc.check=1:glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", None),  # somebody has chosen
        ("[always] madvise never", None, None),  # they come anyway
        ("always madvise [never]", None, None),
        (None, None, None),
    ],
)
def test_huge_pages_are_asked_for_where_that_changes_something(system, present, added, tmp_path, monkeypatch):
    monkeypatch.setattr(huge_pages, "SYSTEM", tmp_path / "enabled")
    if system:
        huge_pages.SYSTEM.write_text(system)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if present:
        monkeypatch.setenv("GLIBC_TUNABLES", present)
    assert huge_pages.environment() == ({"GLIBC_TUNABLES": added} if added else {})


def test_the_same_command_is_started_anew_once(tmp_path):
    (tmp_path / "enabled").write_text("always [madvise] never")
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "program.py", "--key=a value"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    started = "start ['--key=a value']"
    assert done.stdout.splitlines() == [f"{started} None", f"{started} glibc.malloc.hugetlb=1", "end"]
