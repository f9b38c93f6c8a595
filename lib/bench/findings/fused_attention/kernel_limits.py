"""The sentences of chapter 7 about the registers and the shared memory that its GPU kernels take.

Introduced in chapter 7.
"""

from collections.abc import Sequence
from typing import Any

from lib.bench.findings.values import listed
from lib.bench.measure.data_sheets import H100
from lib.bench.measure.kernel_resources import MULTIPROCESSORS, REGISTERS_PER_SM

LATENCY = (
    0.5e-6  # seconds that a read from an H100's memory takes, as the chapter's Little's law has it
)
PROCESSORS = 132


def render(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What the page says of the rows of `lib.bench.records.kernel_table`."""
    shared = [sm.shared_bytes for sm in MULTIPROCESSORS.values()]
    return {
        "registers_per_sm": f"{REGISTERS_PER_SM:,}",
        "shared_per_sm": f"{min(shared) >> 10} to {max(shared) >> 10} KiB",
        "limits_finding": _limits(rows),
        "spill_finding": _spills(rows),
        "in_flight_finding": _in_flight(rows),
    }


def places(rows: Sequence[dict[str, Any]], gpu: str, counted: int) -> dict[str, str]:
    """The programs of `decode` per multiprocessor that the launch counts on, beside what the compiler finds room for."""
    said = f"The last column counts {counted} programs per multiprocessor, the least that the launch relies on."
    found = next((row["programs_per_sm"] for row in _decode(rows) if row["gpu"] == gpu), None)
    if found is None:
        said += f" The table of the compiler below has no {gpu} to compare with."
    elif found > counted:
        said += (
            f" The compiler's table below finds room for {found} on an {gpu}, so a wave on it has more places "
            "than this column counts."
        )
    elif found < counted:
        said += (
            f" The compiler's table below finds room for only {found} on an {gpu}, so a wave on it has fewer "
            "places than this column counts."
        )
    else:
        said += f" The compiler's table below finds room for as many on an {gpu}."
    return {"places_finding": said}


def table_rows(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The table: GPU, kernel, dtype, tile, registers, KiB of shared memory, programs, what limits them."""
    return [
        [
            row["gpu"],
            row["kernel"],
            row["dtype"],
            row["tile"],
            f"{row['registers']}",
            f"{row['shared_bytes'] / 1024:.1f}",
            f"{row['programs_per_sm']}",
            row["limited_by"],
        ]
        for row in rows
    ]


def _decode(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["kernel"] == "decode" and row["dtype"] != "float32"]


def _limits(rows: Sequence[dict[str, Any]]) -> str:
    by: dict[str, list[str]] = {}
    for row in _decode(rows):
        by.setdefault(row["limited_by"], []).append(f"the {row['gpu']} ({row['programs_per_sm']})")
    parts = [f"by {what} on {listed(gpus)}" for what, gpus in by.items()]
    return (
        "The number of programs of `decode` in half precision that one multiprocessor holds is limited "
        f"{listed(parts)}."
    )


def _spills(rows: Sequence[dict[str, Any]]) -> str:
    spilled = [row for row in rows if row["local_bytes"]]
    if not spilled:
        return "No kernel in the table keeps values outside the registers."
    keep = "keeps" if len(spilled) == 1 else "keep"
    worst = max(spilled, key=lambda row: row["local_bytes"])
    return (
        f"{len(spilled)} of the {len(rows)} kernels in the table {keep} values outside the registers, at most "
        f"{worst['local_bytes']} bytes per thread (`{worst['kernel']}` in {worst['dtype']} on the {worst['gpu']})."
    )


def _in_flight(rows: Sequence[dict[str, Any]]) -> str:
    """The shared memory of all resident programs, in which tiles arrive, against what Little's law asks for."""
    needed = H100.bandwidth * LATENCY / PROCESSORS
    found = [row for row in _decode(rows) if row["gpu"] == "H100"]
    if not found:
        return "The table has no H100 to compare with Little's law."
    held = found[0]["programs_per_sm"] * found[0]["shared_bytes"]
    verdict = "room enough for" if held >= needed else "less than"
    return (
        f"On an H100 the programs of one multiprocessor together have {held / 1e3:,.0f} kB of shared memory, in which "
        f"tiles of keys and values arrive: {verdict} the {needed / 1e3:.0f} kB that Little's law asks for."
    )
