"""Cycles of an operation from its bundles, with their loops."""

from benchmarks.tpu import bundles

# Two bundles, a loop of 12 iterations with 2 bundles and an inner loop of 4 iterations with 2, and one bundle.
DUMP = """
   0x0   :  { %s1 = smov 0 }
   0x1   :  { %s2 = smov 1 }
   0x2 LB:  > { %s3 = sadd %s3, 1 }
   0x3 LB:  > > { %v1 = vadd.f32 %v2, %v3 }
   0x4   :  > > { %p2 = scmp.ge.s32.totalorder %s9, 4 /* loop exit test */ }
   0x5   :  > { %p1 = scmp.ge.s32.totalorder %s3, 12 /* loop exit test */ }
   0x6   :  { }
"""


def test_loops_are_multiplied(tmp_path):
    path = tmp_path / "0001-fusion.7-71-final_bundles.txt"
    path.write_text(DUMP)
    assert bundles.cycles(path) == 2 + 12 * (2 + 4 * 2) + 1


def test_a_loop_without_a_constant_counts_once(tmp_path):
    path = tmp_path / "dump"
    path.write_text(DUMP.replace("%s3, 12", "%s3, %s4"))
    assert bundles.cycles(path) == 2 + (2 + 4 * 2) + 1


def test_dumps_by_the_operations_name(tmp_path):
    for name in ("0001-fusion.7-71-final_bundles.txt", "0001-copy.3-final_bundles.txt", "0001-fusion.7-02-other.txt"):
        (tmp_path / name).write_text("")
    assert set(bundles.dumped(tmp_path)) == {"fusion.7", "copy.3"}
