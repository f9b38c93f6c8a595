"""The table of the kernels' resources: the file is what the compiler says, and the sentences follow the numbers."""

import json

import pytest

from lib.bench.findings.fused_attention import kernel_limits
from lib.bench.measure.kernel_resources import MULTIPROCESSORS, KernelResources, why_not_compiled
from lib.bench.records.kernel_table import kernel_rows, table_path

RECORDED = json.loads(table_path().read_text())


def test_the_file_has_every_gpu_and_no_kernel_that_cannot_run():
    rows = RECORDED["rows"]
    assert {row["gpu"] for row in rows} == {sm.gpu for sm in MULTIPROCESSORS.values()}
    assert len(rows) == 4 * len(MULTIPROCESSORS)
    for row in rows:
        assert row["programs_per_sm"] >= 2 and 16 <= row["registers"] <= 255, row


@pytest.mark.skipif(why_not_compiled() is not None, reason=str(why_not_compiled()))
def test_the_file_is_what_the_compiler_says():
    import triton

    if triton.__version__ != RECORDED["triton"]:
        pytest.skip(f"the file was written by Triton {RECORDED['triton']}")
    expected = [row for row in RECORDED["rows"] if row["gpu"] == "T4"]
    assert kernel_rows([75]) == expected


def test_what_limits_the_programs_of_a_multiprocessor():
    many_registers = KernelResources("k", 90, 4, shared_bytes=1024, registers=128, local_bytes=0)
    assert many_registers.limits["registers"] == 65536 // (128 * 128) == 4
    assert (many_registers.programs_per_sm, many_registers.limited_by) == (4, "registers")
    much_shared = KernelResources("k", 90, 4, shared_bytes=100 << 10, registers=32, local_bytes=0)
    assert (much_shared.programs_per_sm, much_shared.limited_by) == (2, "shared memory")
    small = KernelResources("k", 75, 4, shared_bytes=0, registers=16, local_bytes=0)
    assert (small.programs_per_sm, small.limited_by) == (8, "threads")
    too_much = KernelResources("k", 75, 4, shared_bytes=65 << 10, registers=16, local_bytes=0)
    assert (too_much.programs_per_sm, too_much.limited_by) == (0, "shared memory")


def row(gpu, programs=4, limited_by="registers", local=0, shared=20000, kernel="decode"):
    return {
        "gpu": gpu, "kernel": kernel, "dtype": "bfloat16", "tile": "16 x 64", "registers": 64, "local_bytes": local,
        "shared_bytes": shared, "programs_per_sm": programs, "limited_by": limited_by,
    }  # fmt: skip


def test_the_sentences_follow_the_numbers():
    said = kernel_limits.render([row("A100", 7, "shared memory"), row("T4"), row("H100", 7)])
    assert said["limits_finding"].endswith(
        "is limited by shared memory on the A100 (7) and by registers on the T4 (4) and the H100 (7)."
    )
    assert said["spill_finding"] == "No kernel in the table keeps values outside the registers."
    assert "have 140 kB" in said["in_flight_finding"]
    assert "room enough for the 13 kB that Little's law asks for." in said["in_flight_finding"]
    assert said["registers_per_sm"] == "65,536" and said["shared_per_sm"] == "64 to 228 KiB"


def test_the_sentences_at_the_extremes():
    said = kernel_limits.render([row("T4", local=200), row("H100", 1, shared=8000)])
    assert said["spill_finding"] == (
        "1 of the 2 kernels in the table keeps values outside the registers, at most 200 bytes per thread "
        "(`decode` in bfloat16 on the T4)."
    )
    assert "less than the 13 kB" in said["in_flight_finding"]
    assert "no H100" in kernel_limits.render([row("T4")])["in_flight_finding"]


def test_the_table_shows_what_the_rows_have():
    assert kernel_limits.table_rows([row("T4")]) == [
        ["T4", "decode", "bfloat16", "16 x 64", "64", "19.5", "4", "registers"]
    ]


@pytest.mark.parametrize(
    "programs, said",
    [(7, "room for 7 on an A100, so a wave on it has more"), (4, "as many on an A100"), (0, "only 0 on an A100")],
)  # fmt: skip
def test_the_programs_that_the_launch_counts_on_stand_beside_the_compilers(programs, said):
    found = kernel_limits.places([row("T4", 1), row("A100", programs)], "A100", 4)
    assert "counts 4 programs per multiprocessor" in found["places_finding"]
    assert said in found["places_finding"]
    assert "no A100 to compare" in kernel_limits.places([row("T4")], "A100", 4)["places_finding"]
