"""Huge pages for a process's large arrays, which glibc gives only to a process that is started with them.

XLA's CPU backend takes one block of memory for all intermediate results of a step, some gigabytes, and returns it
afterwards. In pages of 4 kB the system hands out half a million of them in every step, one by one; in pages of 2 MB a
training step of TNT-S takes a sixth less time (benchmarks/cpu.md). Accelerators are not affected.
"""

import os
import sys
from pathlib import Path

SETTING = "glibc.malloc.hugetlb"  # since glibc 2.35; an older one takes no notice
SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def environment() -> dict[str, str]:
    """-> the variable that gives a new process huge pages; empty where it has them, cannot or shall not have them.

    It shall not where GLIBC_TUNABLES says something of its own on it (glibc.malloc.hugetlb=0 turns it off). It cannot
    without Linux, glibc and a system that leaves the choice to the program, and has them where the system always
    gives them.
    """
    present = os.environ.get("GLIBC_TUNABLES", "")
    glibc = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ())
    if not glibc or SETTING in present or not SYSTEM.is_file() or "[madvise]" not in SYSTEM.read_text():
        return {}
    return {"GLIBC_TUNABLES": ":".join(filter(None, [present, f"{SETTING}=1"]))}


def start_anew() -> None:
    """Replaces this process by the same command with huge pages, if that makes a difference. Before large imports."""
    if added := environment():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | added)
