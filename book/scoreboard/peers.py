"""Two published sweeps on one card, the published engine's and vLLM's, and where this book's engine stands to them.

The claim is about two engines that this book did not run. What a record can say is whether this engine stands to vLLM's
published figure as the published engine does, on the published card and at the published batch.

Introduced in chapter 6.
"""

from book.scoreboard.outcomes import (
    NOT_COMPARABLE,
    Claim,
    Outcome,
    Records,
    card_name,
    direction,
    figure,
    get,
    middle,
    nearest,
    on_card,
    quotient,
    times,
)
from lib.bench.findings.values import cell, value
from lib.bench.records.files import Reference
from lib.bench.records.published_vllm import published_vllm

CAVEAT = "vLLM's version, its dtype and the prompt of its sweep are not stated"
WHY = {
    "vllm_at_first": (
        "Neither engine's step is limited by bandwidth there: the published engine's GPU waits for its host for most of the "
        "step, and vLLM's whole step is shorter than that wait."
    ),
    "vllm_at_last": (
        "A further sequence adds more to vLLM's step than to the published engine's, which runs one fixed batch and "
        "schedules nothing; and vLLM's default limit on an A100 is 256 sequences at once."
    ),
}


def _rates(published: Reference, row: int) -> tuple[int, float, float]:
    """(batch, tokens per second of the published engine, of vLLM) at a row of the published sweep."""
    sweep = published["batch_sweep"]
    batch = sweep["batch"][row]
    return batch, sweep["tok_s"][row], published_vllm().rate(batch)


def _beside(records: Records, published: Reference, row: int) -> Outcome | None:
    """This engine against vLLM's published figure, judged on the published card and at the published batch alone."""
    series = get(records, "03", "batch_sweep_float32")
    if series is None:
        return None
    batch, engine, vllm = _rates(published, row)
    at = nearest(series["batch"], batch)
    ours, size = cell(series, "tok_s", at), series["batch"][at]
    if not value(ours).known:
        return None
    needs = f"chapter 3 on an {card_name(published)}, at batch {batch}"
    said = f"this engine, float32: {middle(ours):,.0f} tokens/s at batch {size:,}"
    if size != batch or not on_card(records, published):
        return Outcome(said, NOT_COMPARABLE, f"needs {needs}")
    pair = (ours, vllm) if engine > vllm else (vllm, ours)
    gain = quotient(pair)
    if gain is None:
        return None
    ahead = "this engine over vLLM" if engine > vllm else "vLLM over this engine"
    theirs = max(engine, vllm) / min(engine, vllm)
    verdict, note = figure(direction(*pair), middle(gain), theirs, card=True, needs=needs)
    return Outcome(
        f"{said}; {ahead}: {times(middle(gain))}", verdict, f"{note}; {CAVEAT}" if note else CAVEAT
    )


def vllm_at_first(records: Records, published: Reference) -> Outcome | None:
    """This engine and vLLM at the smallest published batch."""
    return _beside(records, published, 0)


def vllm_at_last(records: Records, published: Reference) -> Outcome | None:
    """This engine and vLLM at the largest published batch."""
    return _beside(records, published, -1)


def claims(published: Reference) -> list[Claim]:
    """Throughput of the published engine and of vLLM at the two ends of their sweeps."""
    found = []
    for row, judge in ((0, vllm_at_first), (-1, vllm_at_last)):
        batch, engine, vllm = _rates(published, row)
        first, second = (
            ("vLLM", "the published engine") if vllm > engine else ("the published engine", "vLLM")
        )
        text = f"At batch {batch}, throughput of {first} over {second}"
        figures = (
            f"{times(max(engine, vllm) / min(engine, vllm))}: the published engine {engine:,.0f}, vLLM "
            f"{vllm:,.0f} tokens/s; {CAVEAT}"
        )
        found.append(Claim("peer", text, figures, judge, "sec-vllm", WHY[judge.__name__]))
    return found
