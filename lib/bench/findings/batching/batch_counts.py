"""The sentences of chapter 3 from counts and published figures: no measurement here changes them.

Introduced in chapter 3.
"""

from collections.abc import Mapping, Sequence

from lib.bench.findings.values import number, percent, times
from lib.bench.findings.vocabulary import size_of
from lib.bench.measure import counts
from lib.bench.measure.batch_model import step_times, turning_point
from lib.bench.measure.data_sheets import H100, LLAMA_7B

# The prediction, by counts.


def turning(points: Mapping[tuple[str, int], int | None]) -> dict[str, str]:
    """Where decoding turns from bandwidth to arithmetic: {(dtype, tokens of a sequence): batch, or None for none}."""
    said = []
    for length in dict.fromkeys(length for _, length in points):
        found = {dtype: batch for (dtype, n), batch in points.items() if n == length}
        reached = [f"at batch {b:,} in {dtype}" for dtype, b in found.items() if b is not None]
        never = [dtype for dtype, b in found.items() if b is None]
        if never and not reached:
            among = " or ".join(never)
            where = f"no batch is large enough, in {among}"
            said.append(f"with sequences of {number(length)} tokens {where}")
            continue
        if never:
            reached.append(f"at no batch in {' or '.join(never)}")
        said.append(f"with sequences of {number(length)} tokens it turns {' and '.join(reached)}")
    text = "; ".join(said)
    return {"turning_finding": f"{text[:1].upper()}{text[1:]}."}


def realistic_rows(length: int = 1000) -> list[list[str]]:
    """One decode step of a 7B model in bfloat16 on an H100, by its data sheet: batch, read, caches, time, throughput."""
    weights = counts.streamed_bytes(LLAMA_7B, "bfloat16")
    rows = []
    for batch in (1, 8, 64, room(length)):
        read = counts.step_bytes(LLAMA_7B, "bfloat16", [length] * batch)
        moving, computing = step_times(LLAMA_7B, H100, batch, length, "bfloat16")
        step = max(moving, computing)
        rows.append(
            [
                f"{batch:,}",
                f"{read / 1e9:.1f}",
                percent(1 - weights / read),
                f"{1e3 * moving:.2f}",
                f"{1e3 * computing:.2f}",
                f"{batch / step:,.0f}",
            ]
        )
    return rows


def room(length: int, memory: float = 80e9) -> int:
    """Sequences whose caches fit beside the 7B model's weights: 80 GB on the H100's data sheet."""
    free = memory - counts.weight_bytes(LLAMA_7B, "bfloat16")
    return int(free // (length * counts.kv_bytes_per_token(LLAMA_7B, "bfloat16")))


def realistic(length: int = 1000) -> dict[str, str]:
    """The same arithmetic for a 7B model in bfloat16 on an H100."""
    batch = turning_point(LLAMA_7B, H100, length, "bfloat16")
    most = room(length)
    each = counts.decode_flops(LLAMA_7B, length)
    own = each / (length * counts.kv_bytes_per_token(LLAMA_7B, "bfloat16"))
    one, all_ = (max(step_times(LLAMA_7B, H100, b, length, "bfloat16")) for b in (1, most))
    ends_at = (
        f"no batch is bound by arithmetic: a sequence needs {number(round(own))} operations per "
        f"byte of its own cache, and the machine could do {number(round(H100.ridge('bfloat16')))}"
        if batch is None
        else f"arithmetic takes over at batch {batch:,}"
    )
    return {
        "realistic_finding": (
            f"With sequences of {number(length)} tokens {ends_at}. Memory is the limit first: "
            f"{most} such sequences fit beside "
            f"the weights. A step with all of them takes {times(all_ / one)} as long as a step "
            f"with one, so batching gives {times(most * one / all_)} the throughput there, and "
            f"not {most} times."
        )
    }


# The published sweep.


def published_memory(sweep: Mapping[str, Sequence[float]], per_token: float) -> dict[str, str]:
    """How steeply the published memory grows, against a reservation of 1,024 tokens for each sequence."""
    (b0, b1), (m0, m1) = ((sweep[c][0], sweep[c][-1]) for c in ("batch", "peak_mb"))
    slope, reserved = (m1 - m0) / (b1 - b0), 1024 * per_token / 1e6
    both = f"the published memory grows by {number(slope)} MB for each further sequence, and this reservation by {number(reserved)} MB"
    kind = "about as steeply as the reservation" if size_of(slope / reserved) == "about" else (
        "more steeply than the reservation" if slope > reserved else "less steeply than the reservation"
    )  # fmt: skip
    return {"published_memory_finding": f"By the first and the last batch, {both}: {kind}."}


def published_gain(sweep: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """The published gain between the smallest and the largest batch."""
    grown = sweep["tok_s"][-1] / sweep["tok_s"][0]
    said = (
        f"The published run has {times(grown)} the throughput at batch {sweep['batch'][-1]} that it has at batch "
        f"{sweep['batch'][0]}."
    )
    return {"published_gain_finding": said}
